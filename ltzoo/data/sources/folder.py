"""A user's own images in one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, register_source
from ltzoo.data.holdout import split_off
from ltzoo.data.images import FileImages


@register_source('folder', needs_location=True)
def folder(location: Path, download: bool) -> Dataset:
    """Read images from class folders, which may have sub-folders; classes are in the order of their sorted names.

    `location` holds ::

        train/CLASS/*.jpg and test/CLASS/*.jpg    or val/ in the place of test/, which is ignored beside test/

    or ::

        CLASS/*.jpg

    In the second form, or with train/ alone, 20 % of every class become the test part, always the same ones
    (`ltzoo.data.split_off`). Images are files with one of torchvision's extensions; names that begin with a dot are
    skipped.
    """
    if not location.is_dir():
        raise MissingDataError(f'{location} is not a folder; it must hold one folder of images for each class')
    root = location / 'train' if _class_names(location / 'train') else location
    class_names = _class_names(root)
    train = _read(location, root, class_names)
    parts = [location / part for part in ('test', 'val') if root != location and (location / part).is_dir()]
    if parts:
        unknown = sorted(set(_class_names(parts[0])) - set(class_names))
        if unknown:
            raise DataError(f'class folder {parts[0] / unknown[0]} has no counterpart in {root}')
        test = _read(location, parts[0], class_names)
    else:
        train, test = split_off(train)
    return Dataset(f'folder:{location}', train, test, tuple(class_names))


def _class_names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith('.'))


def _read(location: Path, root: Path, class_names: list[str]) -> Split:
    labels_of = {name: label for label, name in enumerate(class_names) if (root / name).is_dir()}
    if not labels_of:
        raise DataError(f'{root} has no folders; it must hold one folder of images for each class')
    samples = make_dataset(root, labels_of, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    empty = sorted(set(labels_of.values()) - set(labels.tolist()))
    if empty:
        raise DataError(
            f'class folder {root / class_names[empty[0]]} has no images ({", ".join(IMG_EXTENSIONS)}): '
            'put some there or remove it'
        )
    return Split(FileImages(location, [os.path.relpath(path, location) for path, _ in samples]), labels)
