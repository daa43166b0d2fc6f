"""A user's own images in one folder for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, register_source
from ltzoo.data.images import FileImages
from ltzoo.data.sources._own import from_parts, warn_of_left_out
from ltzoo.errors import first_of

_TRAIN_PARTS = ('train', 'training')
_VALIDATION_PARTS = ('val', 'valid', 'validation')
# In order of preference.
_TEST_PARTS = ('test', 'testing', *_VALIDATION_PARTS)

logger = logging.getLogger(__name__)


@register_source('folder', needs_location=True)
def folder(location: Path, download: bool) -> Dataset:
    """Read images from class folders, which may have sub-folders; classes are in the order of their sorted names.

    `location` holds ::

        train/CLASS/*.jpg and test/CLASS/*.jpg    or training/; or testing/, val/, valid/ or validation/

    or ::

        CLASS/*.jpg

    In the first form the case of these names is ignored, and so are other folders, with a warning. val/ beside test/ is
    the validation set, which hold-outs are. A test set of images without class folders, as competitions have it, is
    left out with a warning. In the second form, or with train/ alone, 20 % of every class become the
    test set, of the same images always the same ones (`ltzoo.data.split_off`). Images are files with one of
    torchvision's extensions; others are left out with a warning, and names that begin with a dot are skipped.
    """
    if not location.is_dir():
        raise MissingDataError(f'{location} is not a folder; it must hold one folder of images for each class')
    names = _folder_names(location)
    parts = {name.lower(): location / name for name in names}
    there = [parts[part] for part in _TEST_PARTS if part in parts]
    # Images without class folders, as a competition's test set has them.
    unlabelled = [part for part in there if not _folder_names(part) and _number_of_images(part)]
    tested = [part for part in there if part not in unlabelled]
    beside = next(iter(tested), None)
    choose_on = next((part for part in tested[1:] if part.name.lower() in _VALIDATION_PARTS), None)
    with_train = next((parts[part] for part in _TRAIN_PARTS if part in parts), None)
    # Train among other classes, with images of its own, is a vehicle.
    only_parts = parts.keys() <= {*_TRAIN_PARTS, *_TEST_PARTS}
    has_parts = with_train is not None and (
        'train' in names or beside is not None or only_parts or not _number_of_images(with_train)
    )
    root, class_names = location, names
    if with_train is not None and has_parts and (in_train := _folder_names(with_train)):
        root, class_names = with_train, in_train
        left_out = [
            f'{name} (no class folders)' if location / name in unlabelled else name
            for name in names
            if location / name not in (with_train, beside, choose_on)
        ]
        warn_of_left_out(str(location), with_train.name, beside.name if beside else None, left_out)
    elif has_parts and only_parts:
        raise DataError(f'{with_train} has no folders; it must hold one folder of images for each class')
    elif parts and parts.keys() <= {*_TEST_PARTS}:
        raise DataError(f'{location} holds {" and ".join(names)} but no folder train')
    if root == location:
        for part in tested:
            inside = _folder_names(part)
            if inside and set(inside) <= set(names) - {part.name}:
                raise DataError(
                    f'{part} holds folders that are called as those beside it, such as {inside[0]}: put the class '
                    f'folders beside it into {location / "train"}, and it is the test set'
                )
        for part in unlabelled if with_train is None else ():
            logger.warning(
                '%s is taken for a class: if it is the test set, put its images into class folders, and the class '
                'folders beside it into %s', part, location / 'train',
            )  # fmt: skip
    train = _read(location, root, class_names)
    _warn_of_parts(root, class_names)
    if root == location or beside is None:
        return from_parts(f'folder:{location}', [train], tuple(class_names))
    splits = [train, _read_part(location, beside, class_names)]
    if choose_on is not None:
        try:
            splits.append(_read_part(location, choose_on, class_names))
        except DataError as error:
            logger.warning('%s is left out, and a hold-out drawn from training: %s', choose_on, error)
    return from_parts(f'folder:{location}', splits, tuple(class_names))


def _number_of_images(folder: Path) -> int:
    return sum(file.lower().endswith(IMG_EXTENSIONS) and not file.startswith('.') for file in os.listdir(folder))


def _read_part(location: Path, part: Path, class_names: list[str]) -> Split:
    if unknown := sorted(set(_folder_names(part)) - set(class_names)):
        raise DataError(
            f'class folder {part / unknown[0]} has no counterpart in the training set: '
            'put images of that class there, or remove it; names count with their case'
        )
    return _read(location, part, class_names, may_lack_some=True)


def _warn_of_parts(root: Path, class_names: list[str]) -> None:
    """Warn where what was taken for classes may be parts with other names, such as training_set and test_set.

    Raises:
        DataError: if the classes hold the parts, instead of the parts the classes.
    """
    known = (*_TRAIN_PARTS, *_TEST_PARTS)
    held = [_only_folders(root / name) for name in class_names]
    if not all(held):
        if all(name.lower().startswith(known) for name in class_names):
            logger.warning(
                'the classes of %s are %s: if these are its parts, call them train and test, with a folder in them for '
                'each class', root, ', '.join(class_names[:5]),
            )  # fmt: skip
        return
    found = {name.lower() for of_class in held for name in of_class}
    if found & {*_TRAIN_PARTS} and found & {*_TEST_PARTS} and found <= {*known}:
        if len(class_names) == 1:
            raise DataError(f'{root} holds {class_names[0]} alone, which holds the parts: give {root / class_names[0]}')
        raise DataError(
            f'the folders of {root}, such as {class_names[0]}, hold {" and ".join(sorted(found))} each: put it '
            'the other way round, the folders of the classes into train and test'
        )
    most = max(held, key=len)
    if len(class_names) > 1 and len(most) > 1 and all(of_class <= most for of_class in held):
        logger.warning(
            'the classes of %s are %s, which hold the folders %s and nothing else: if those are the classes, call the '
            'upper ones train and test', root, ', '.join(class_names[:5]), ', '.join(sorted(most)[:5]),
        )  # fmt: skip


def _only_folders(folder: Path) -> set[str]:
    """Return the names of the folders in a folder, none if anything else is in it."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith('.')]
    return {entry.name for entry in entries} if all(entry.is_dir() for entry in entries) else set()


def _folder_names(root: Path) -> list[str]:
    names = []
    for entry in os.scandir(root):
        if entry.name.startswith('.'):
            continue
        _require_target(entry.path)
        if entry.is_dir():
            names.append(entry.name)
    return sorted(names)


def _require_target(path: str) -> None:
    """Refuse a link that leads nowhere: of images below it nobody would hear."""
    if os.path.islink(path) and not os.path.exists(path):
        raise DataError(f'{path} is a link to {os.readlink(path)}, which is not there: remove it or mount that')


def _read(location: Path, root: Path, class_names: list[str], *, may_lack_some: bool = False) -> Split:
    present = [(label, name) for label, name in enumerate(class_names) if (root / name).is_dir()]
    if not present:
        raise DataError(f'{root} has no folders; it must hold one folder of images for each class')
    paths: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    if loose := _number_of_images(root):
        logger.warning('images left out in %s itself: %d, as they lie in no class folder', root, loose)
    for label, name in present:
        images, more = images_below(root / name)
        others += more
        if not images and not may_lack_some:
            instead = f'save its files ({first_of(more)}) so' if more else 'put some there'
            raise DataError(
                f'class folder {root / name} has no images ({", ".join(IMG_EXTENSIONS)}): {instead} or remove it'
            )
        paths += [os.path.relpath(file, location) for file in images]
        labels += [label] * len(images)
    if not paths:
        raise DataError(f'the class folders of {root} have no images ({", ".join(IMG_EXTENSIONS)}): put some there')
    warn_of_others(root, others)
    return Split(FileImages(location, paths), np.array(labels, dtype=np.int64))


def images_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images below a folder, in order, and how many other files there are by what their names end in.

    Raises:
        DataError: if a link in it leads nowhere.
    """
    images, others = [], Counter[str]()
    for file in files_below(folder):
        if file.lower().endswith(IMG_EXTENSIONS):
            images.append(Path(file))
        else:
            _require_target(file)
            others[os.path.splitext(file)[1].lower() or os.path.basename(file)] += 1
    return images, others


def warn_of_others(root: Path, others: Counter[str]) -> None:
    """Log that files below a folder are no images, if there are some."""
    if others:
        found = ', '.join(f'{ending} ({number})' for ending, number in others.most_common(5))
        logger.warning(
            'files left out below %s: %d, as images end in %s; these end in %s%s',
            root, others.total(), ', '.join(IMG_EXTENSIONS), found, ', ...' if len(others) > 5 else '',
        )  # fmt: skip


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, in order, those of a folder that links lead to as well but once.

    A link to a folder above it is passed over, as it would lead back without end.
    """

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f'{error.filename} cannot be read: {error.strerror}') from error

    found, known, waiting = [], set[str](), [str(folder)]
    while waiting:
        # Links come after all folders, so that a name that a link gives is taken only where there is no other.
        start, links = waiting.pop(0), list[str]()
        for top, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(top)
            if real in known:
                logger.warning('%s leads to %s, whose files are there already: it is left out', top, real)
                folders[:] = []
                continue
            known.add(real)
            found.append((top, sorted(name for name in files if not name.startswith('.'))))
            names = sorted(name for name in folders if not name.startswith('.'))
            linked = [name for name in names if os.path.islink(f'{top}/{name}')]
            folders[:] = sorted({*names} - {*linked})
            links += [f'{top}/{name}' for name in linked if not _holds(f'{top}/{name}', real)]
        waiting += links
    for top, files in sorted(found):
        yield from (os.path.join(top, name) for name in files)


def _holds(folder: str, inner: str) -> bool:
    above = os.path.realpath(folder)
    return os.path.commonpath([above, inner]) == above
