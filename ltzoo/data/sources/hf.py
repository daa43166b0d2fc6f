"""Image classification sets in the format of the Hugging Face library `datasets`, from the hub or a local folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, register_source
from ltzoo.data.images import UnreadableImageError, as_rgb, decoding
from ltzoo.data.sources._own import from_parts, warn_of_left_out
from ltzoo.errors import one_line

# The splits that are used; those to test on in order of preference.
_PARTS = ('train', 'test', 'validation', 'valid', 'val')


@dataclass(frozen=True)
class HubImages:
    """Images in a table of `datasets`, decoded when asked for.

    Attributes:
        table: a `datasets.Dataset` whose only column holds images.
        column: its name.
        rows: int64, shape (N,), rows of the table.
        label: what the table is, for names.
        files: str, shape (N,): the images' files without folders, empty where they have none.
    """

    table: Any
    column: str
    rows: np.ndarray
    label: str
    files: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        with decoding(self.name(index)):
            image = self.table[int(self.rows[index])][self.column]
            if image is not None:
                return as_rgb(image)
        raise UnreadableImageError(f'{self.name(index)} is missing')

    def select(self, indices: np.ndarray) -> HubImages:
        return replace(self, rows=self.rows[indices], files=self.files[indices])

    def name(self, index: int) -> str:
        return f'image in row {self.rows[index]} of {self.label}'

    def identity(self) -> bytes:
        files = '\0'.join(self.files).encode('utf-8', 'surrogateescape')
        return f'rows of {self.label.rpartition(" ")[2]}'.encode() + self.rows.tobytes() + files


@register_source('hf', needs_location=True)
def hf(location: Path, download: bool) -> Dataset:
    """Read `hf:org/name` from the hub (through the library's own cache) or `hf:/folder` from a local folder.

    Of a set with several configurations `hf:org/name:config` says which. A folder is anything that
    `datasets.load_dataset` or `load_from_disk` reads. The set needs a column of images and one of class labels, found
    by their types. Where there are several, the columns `image` and `label` are taken, or
    else the class labels with the most classes (the fine ones of CIFAR-100). The training set is the split `train`;
    the test set is `test`, or `validation` (or `valid`, `val`) if there is no test split with labels, or else 20 % of
    every class, always the same ones (`ltzoo.data.split_off`). The validation split beside a test set is what
    hold-outs are. Other splits are left out with a warning. Labels go by the names of the classes of `train`.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf: needs the package datasets ({one_line(error)}): pip install 'ltzoo[datasets]'") from error
    place = location.as_posix()
    name, _, config = (place, '', '') if location.exists() else place.partition(':')
    if location.is_absolute() and not os.path.exists(name):
        raise MissingDataError(f'{place} does not exist; write hf:org/name for a data set on the hub')
    try:
        saved = any((location / file).exists() for file in ('dataset_dict.json', 'state.json'))
        tables = datasets.load_from_disk(place) if saved else datasets.load_dataset(name, config or None)
    except FileNotFoundError as error:
        raise MissingDataError(f'hf:{place} cannot be found: {one_line(error)}') from error
    except Exception as error:  # Whatever HTTP library the hub's client is built on, and whatever is damaged.
        nor = '' if os.path.exists(name) else f', and there is no folder {place}'
        if 'Config name is missing' in str(error) or 'BuilderConfig' in str(error):
            nor = f'; write hf:{name}:CONFIG, with one of these'
        raise DataError(f'hf:{place} cannot be loaded: {one_line(error)}{nor}') from error
    if isinstance(tables, datasets.Dataset):
        tables = {'train': tables}
    if 'train' not in tables:
        raise DataError(f'hf:{place} has no split train, only {", ".join(tables)}')
    features = tables['train'].features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    if not classes or not (len(images) == 1 or 'image' in images):
        raise DataError(
            f'hf:{place} needs a column of type Image and one of type ClassLabel; it has '
            + ', '.join(f'{name} ({type(feature).__name__})' for name, feature in features.items())
        )
    image = 'image' if 'image' in images else images[0]
    label = 'label' if 'label' in classes else max(classes, key=lambda name: classes[name].num_classes)
    class_names = classes[label].names
    splits = {}
    for part in [part for part in _PARTS if part in tables]:
        split = _split(tables[part], image, label, class_names, f'hf:{place} {part}')
        unlabelled = split.labels < 0
        # A competition's test split may hide all its labels.
        if part != 'train' and unlabelled.all():
            continue
        if unlabelled.any():
            raise DataError(
                f'row {unlabelled.argmax()} of hf:{place} {part} has no {label}: give it one, or leave it out'
            )
        splits[part] = split
    train, *others = list(splits)[:3]
    left_out = [
        f'{part} (without labels)' if part in _PARTS and part not in splits else part
        for part in tables
        if part not in (train, *others)
    ]
    warn_of_left_out(f'hf:{place}', train, next(iter(others), None), left_out)
    return from_parts(f'hf:{place}', [splits[part] for part in (train, *others)], tuple(class_names))


def _split(table: Any, image: str, label: str, class_names: list[str], what: str) -> Split:
    """Return a part, with -1 for a label that is missing.

    Raises:
        DataError: if it lacks a column, has a class that is not in `class_names`, or labels that are no numbers.
    """
    for column in (image, label):
        if column not in table.features:
            raise DataError(f'{what} has no column {column}, which the split train has: add it, or leave the split out')
    # A saved table may give tensors.
    table = table.with_format(None)
    written = [-1 if y is None else y for y in table.select_columns([label])[:][label]]
    if wrong := [y for y in written if not isinstance(y, int)]:
        raise DataError(
            f'the column {label} of {what} has {wrong[0]!r}, where the split train has numbers of classes: make it a '
            'ClassLabel as there, or leave the split out'
        )
    labels = np.array(written, dtype=np.int64)
    theirs = getattr(table.features[label], 'names', class_names)
    if theirs != class_names:
        place = {name: label for label, name in enumerate(class_names)}
        if unknown := [theirs[y] for y in np.unique(labels[labels >= 0]) if theirs[y] not in place]:
            raise DataError(f'{what} has the class {unknown[0]}, which the split train lacks: give both the same names')
        # The -1 at the end is for those without a label.
        labels = np.array([*(place.get(name, -1) for name in theirs), -1])[labels]
    images = HubImages(table.select_columns([image]), image, np.arange(len(labels)), what, _files(table, image))
    return Split(images, labels)


def _files(table: Any, image: str) -> np.ndarray:
    """Return the names of the images' files, without folders, empty where they have none; no image is read."""
    import datasets

    if not isinstance(table.features[image], datasets.Image):
        return np.full(len(table), '')
    undecoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False)).flatten()
    paths = undecoded.select_columns([f'{image}.path'])[:][f'{image}.path']
    return np.array([os.path.basename(path or '') for path in paths], dtype=np.str_)
