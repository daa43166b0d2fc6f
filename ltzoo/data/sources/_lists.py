"""What the sources with official split lists share."""

from __future__ import annotations

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split
from ltzoo.data.images import FileImages

# Marks a folder that `ltzoo.data.standin` made.
STANDIN = 'STANDIN.txt'

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageList:
    """Paths and labels of one part, as a file lists them.

    Attributes:
        file: where the list was read.
        paths: N image paths relative to the data set's folder, with / between their parts.
        labels: int64, shape (N,).
    """

    file: Path
    paths: list[str]
    labels: np.ndarray


def find_folder(location: Path, name: str, files: Sequence[str]) -> Path:
    """Return the folder of an official data set: `location` if it holds one of `files`, else `location/name`."""
    return location if any((location / file).exists() for file in files) else location / name


def read_list(file: Path, origin: str) -> ImageList:
    """Read lines of `path label`.

    Args:
        file: the list.
        origin: where users get it, for the error message.

    Raises:
        MissingDataError: if the file is missing.
        DataError: if a line is something else.
    """
    if not file.is_file():
        raise MissingDataError(f'{file} is missing: {origin}')
    paths, labels = [], []
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f'{file} is not a list in UTF-8: {error}') from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.rstrip().rpartition(' ')
        if not path or not re.fullmatch(r'[0-9]{1,18}', label):
            raise DataError(f'line {number} of {file} must be an image path, a space and a label, not {line[:80]!r}')
        paths.append(path)
        labels.append(int(label))
    return ImageList(file, paths, np.array(labels, dtype=np.int64))


def from_lists(
    name: str,
    folder: Path,
    train: ImageList,
    test: ImageList,
    *,
    images_origin: str,
    spare: ImageList | Path | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Make a data set of images that lists name.

    Args:
        name: the source's name.
        folder: what the paths start from.
        train, test, spare: the parts; `spare` are images left out of training, or the file that would list them.
        images_origin: where users get the images and how they must lie, for the error message.
        class_names: by default the folders that the images of a class lie in.

    Raises:
        MissingDataError: if the first image of a list is not there.
        DataError: if the lists share images or do not agree on the labels.
    """
    parts = [part for part in (train, test, spare) if isinstance(part, ImageList)]
    for part in parts:
        if part.paths and not (folder / part.paths[0]).is_file():
            raise MissingDataError(
                f'{folder / part.paths[0]}, the first image of {part.file.name}, is missing: {images_origin}'
            )
    _require_disjoint(parts)
    if (folder / STANDIN).exists():
        logger.warning(
            '%s is a stand-in for %s: its images are noise, numbers measured on them mean nothing', folder, name
        )
    return Dataset(
        name,
        train=_split(folder, train),
        test=_split(folder, test),
        class_names=tuple(_class_names(parts, class_names)),
        spare=_split(folder, spare) if isinstance(spare, ImageList) else None,
        missing_spare=spare if isinstance(spare, Path) else None,
    )


def from_oltr_lists(name: str, location: Path, lists: tuple[str, str, str], images_from: str) -> Dataset:
    """Read one of the two data sets of Liu et al. (OLTR).

    Args:
        name: the source's name.
        location: the folder that holds the lists, or one above it.
        lists: file names of the lists of training, of testing and of the images left out, as `ImageNet_LT_train.txt`.
        images_from: what to get the images from, for the error message.

    Raises:
        MissingDataError, DataError: as `read_list` and `from_lists`.
    """
    called = lists[0].removesuffix('_train.txt')
    folder = find_folder(location, called, lists)
    train, test, spare = (folder / file for file in lists)
    origin = (
        f'the {called.replace("_", "-")} lists are linked from the project page of "Large-Scale Long-Tailed '
        'Recognition in an Open World", https://github.com/zhmiao/OpenLongTailRecognition-OLTR'
    )
    return from_lists(
        name,
        folder,
        train=read_list(train, origin),
        test=read_list(test, origin),
        spare=read_list(spare, origin) if spare.exists() else spare,
        images_origin=(
            f'get {images_from} and put or link it so that {folder / "train"} and {folder / "val"} hold one folder for '
            'each class'
        ),
    )


def _split(folder: Path, part: ImageList) -> Split:
    return Split(FileImages(folder, part.paths), part.labels)


def _require_disjoint(parts: list[ImageList]) -> None:
    named_in: dict[str, Path] = {}
    for part in parts:
        for path in part.paths:
            before = named_in.setdefault(path, part.file)
            if before is not part.file:
                raise DataError(f'{part.file} names the image {path}, which is in {before} too')
        if len(set(part.paths)) < len(part.paths):
            twice = Counter(part.paths).most_common(1)[0][0]
            raise DataError(f'{part.file} names the image {twice} more than once')


def _class_names(parts: list[ImageList], given: Sequence[str] | None) -> Sequence[str]:
    """Return the names given, or the folder of every class, which all lists agree on: their orders differ at times."""
    # With the list that names each first.
    names: dict[int, tuple[str, str]] = {}
    for part in parts:
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            found = posixpath.basename(posixpath.dirname(path))
            before, file = names.setdefault(label, (found, part.file.name))
            if before != found:
                raise DataError(
                    f'label {label} is folder {before} in {file} but {found} in {part.file.name}: '
                    'the lists must come from the same place'
                )
    if given is not None:
        return given
    missing = next((label for label in range(len(names)) if label not in names), None)
    if missing is not None:
        raise DataError(f'{parts[0].file} and its companions have labels up to {max(names)} but none is {missing}')
    return [names[label][0] for label in range(len(names))]
