"""Stand-ins for data sets that are too large to fetch for a try: the same folders, lists, class counts and image sizes.

The images are noise, whatever class they are said to be of: a model trained on them has learnt nothing.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ltzoo.data.dataset import DataError
from ltzoo.data.sources import imagenet_lt, inat18, places_lt
from ltzoo.data.sources._lists import STANDIN, read_list
from ltzoo.files import new_folder, require_outside, write_atomically

__all__ = ['STANDIN', 'STANDINS', 'Standin', 'make_standin', 'standin_counts']

# Distinct images: a file has at most 65,000 names on ext4, and there are 461,939 to give.
IMAGES = 100
# Standard deviations, in grey levels, of patches and of grain: half a byte a pixel in JPEG, as photographs have.
PATCHES, GRAIN = 50.0, 15.0
QUALITY = 90


@dataclass(frozen=True)
class Standin:
    """What is known of a data set.

    Attributes:
        classes, images: C and N of the training set.
        largest, smallest: training images of the largest and the smallest class.
        many, medium: classes with more than 100 training images, and with 20 to 100.
        test, spare: images a class of the other parts; no spare part where it is 0.
        size: width and height in pixels of a usual image.
        lists: file names of the lists of the training, the test and the spare part.
        folders: where the images of the training and the test set lie, with `{name}` for the class.
        names: of a class, with `{label}` for its number.
        suffix: of image files.
    """

    classes: int
    images: int
    largest: int
    smallest: int
    many: int
    medium: int
    test: int
    spare: int
    size: tuple[int, int]
    lists: tuple[str, ...]
    folders: tuple[str, str]
    names: str
    suffix: str


STANDINS = {
    'imagenet_lt': Standin(
        1000, 115_846, 1280, 5, 385, 479, 50, 20, (500, 375),
        imagenet_lt.LISTS,
        ('train/{name}', 'val/{name}'), 'n{label:08}', '.JPEG',
    ),
    'places_lt': Standin(
        365, 62_500, 4980, 5, 131, 163, 100, 20, (683, 512),
        places_lt.LISTS,
        ('train/{name}', 'val/{name}'), 'scene_{label:03}', '.jpg',
    ),
    'inat18': Standin(
        8142, 437_513, 1000, 2, 842, 4076, 3, 0, (800, 600),
        (inat18.LISTS['train'], inat18.LISTS['val']),
        ('train_val2018/Standin/{name}',) * 2, '{label}', '.jpg',
    ),
}  # fmt: skip


def standin_counts(standin: Standin) -> np.ndarray:
    """Return training images of every class, largest first: int64, shape (C,).

    Extremes, total and the number of classes in each shot are the data set's; in between, the head is a power of the
    rank and the rest geometric, as in the list of Places-LT.
    """
    few = standin.classes - standin.many - standin.medium
    tail = np.rint(np.r_[np.geomspace(100, 20, standin.medium), np.geomspace(19, standin.smallest, few)])
    remaining = standin.images - int(tail.sum())

    def head(power: float) -> np.ndarray:
        """From the largest class down to 101 images as a power of the rank."""
        ranks = np.arange(1, standin.many + 1) ** -power
        return np.rint(101 + (standin.largest - 101) * (ranks - ranks[-1]) / (ranks[0] - ranks[-1]))

    low, high = -9.9, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if head(middle).sum() > remaining else (low, middle)
    counts = np.r_[head(high), tail].astype(np.int64)
    # What rounding left over, one image for each of the classes after the largest.
    left_over = standin.images - int(counts.sum())
    counts[1 : 1 + abs(left_over)] += np.sign(left_over)
    return counts


def make_standin(
    name: str,
    folder: Path,
    *,
    classes: int | None = None,
    share: float | None = None,
    size: tuple[int, int] | None = None,
    lists: Path | None = None,
) -> dict[str, int]:
    """Make a folder that the source `name` reads as it would the real one.

    A hundred images lie there under very many names (hard links), so that it takes seconds and some megabytes.

    Args:
        name: one of `STANDINS`.
        folder: new or empty; it appears whole or not at all.
        classes: keep so many, spread evenly from the largest to the smallest class.
        share: keep this share of the images of every class in every part, one at least.
        size: width and height of the images, if not the usual ones.
        lists: folder with official lists; those that are there are taken, the others made.

    Returns:
        Number of images by list.

    Raises:
        DataError: if the folder holds something, the name or a number is out of range, lists are given together with
            `classes` or `share`, or the file system has no hard links.
        OSError: if the disk refuses.
    """
    if name not in STANDINS:
        raise DataError(f'no stand-in is called {name!r}; known: {", ".join(STANDINS)}')
    standin = STANDINS[name]
    if classes is not None and not 2 <= classes <= standin.classes:
        raise DataError(f'classes must be 2 to {standin.classes} ({name} has {standin.classes}), not {classes}')
    if share is not None and not 0 < share <= 1:
        raise DataError(f'share must be more than 0 and at most 1, not {share}')
    if size is not None and min(size) < 8:
        raise DataError(f'size must be 8 pixels or more on either side, not {size[0]} x {size[1]}')
    if lists is not None and (classes, share) != (None, None):
        raise DataError('official lists are taken whole: leave classes and share out, or the lists')
    if lists is not None and not any((lists / file).is_file() for file in standin.lists):
        raise DataError(f'{lists} holds none of the lists {", ".join(standin.lists)}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f'{folder} holds something already; a stand-in needs a new or empty folder')
    require_outside(folder, DataError)
    parts = _parts(standin, classes, share, lists)
    with new_folder(folder) as made:
        originals = _write_images(made / 'images', size or standin.size)
        for file, part in parts.items():
            write_atomically(made / file, ''.join(f'{path} {label}\n' for path, label in part))
        number = 0
        for directory in sorted({posixpath.dirname(path) for part in parts.values() for path, _ in part}):
            (made / directory).mkdir(parents=True)
        for part in parts.values():
            for path, _ in part:
                try:
                    os.link(originals[number % len(originals)], made / path)
                except FileExistsError as error:
                    raise DataError(f'{lists} names {path} more than once') from error
                except OSError as error:
                    raise DataError(f'{folder} cannot be filled with hard links ({error.strerror})') from error
                number += 1
        write_atomically(
            made / STANDIN, f'A stand-in for {name}: images of noise. What is measured here means nothing.\n'
        )
    return {file: len(part) for file, part in parts.items()}


def _parts(
    standin: Standin, classes: int | None, share: float | None, lists: Path | None
) -> dict[str, list[tuple[str, int]]]:
    """Return (path, label) of every image, by list."""
    counts = standin_counts(standin)
    if classes is not None:
        counts = counts[np.linspace(0, len(counts) - 1, classes).round().astype(int)]
    # Real lists are not sorted by class size either.
    counts = np.random.RandomState(0).permutation(counts)
    names = [standin.names.format(label=label) for label in range(len(counts))]
    given = {file: _official(lists / file, names) for file in standin.lists if lists and (lists / file).is_file()}
    parts = {}
    for file, numbers, folder in zip(
        standin.lists,
        (counts, np.full_like(counts, standin.test), np.full_like(counts, standin.spare)),
        (*standin.folders, standin.folders[0]),
        strict=False,
    ):
        kept = np.rint(numbers * (share or 1)).astype(int).clip(1).tolist()
        kind = Path(file).stem.rpartition('_')[2]
        parts[file] = given.get(file) or [
            (f'{folder.format(name=names[label])}/{kind}_{number:05}{standin.suffix}', label)
            for label, count in enumerate(kept)
            for number in range(count)
        ]
    return parts


def _official(file: Path, names: list[str]) -> list[tuple[str, int]]:
    """Read a list, and write down in `names` what folder the images of each class lie in."""
    found = read_list(file, '')
    for path, label in zip(found.paths, found.labels.tolist(), strict=True):
        if label >= len(names):
            raise DataError(f'{file} has label {label}; its labels are 0 to {len(names) - 1}')
        if path.startswith('/') or '..' in path.split('/'):
            raise DataError(f'{file} names {path}, but paths start from its folder')
        names[label] = posixpath.basename(posixpath.dirname(path))
    return list(zip(found.paths, found.labels.tolist(), strict=True))


def _write_images(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Write images with patches and grain, of which JPEG makes files as large as photographs of that size."""
    folder.mkdir()
    files = []
    for number, pixels in enumerate(_pixels(*size)):
        files.append(folder / f'{number:03}.jpg')
        Image.fromarray(pixels).save(files[-1], quality=QUALITY)
    return files


def _pixels(width: int, height: int) -> Iterator[np.ndarray]:
    """Yield arrays (height, width, 3) of uint8: windows on two fields of noise, which are made once."""
    random = np.random.default_rng(0)
    high, wide = 2 * height, 2 * width
    coarse = random.integers(0, 256, (high // 16 + 1, wide // 16 + 1, 3), dtype=np.uint8)
    patches = np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC), dtype=np.float32)
    patches = (patches - patches.mean()) * (PATCHES / patches.std())
    grain = GRAIN * random.standard_normal((high, wide, 3), dtype=np.float32)
    for _ in range(IMAGES):
        windows = []
        for field in (patches, grain):
            y, x = random.integers(height), random.integers(width)
            windows.append(field[y : y + height, x : x + width])
        yield (128 + windows[0] + windows[1]).clip(0, 255).astype(np.uint8)
