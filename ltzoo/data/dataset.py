"""What a data set is here, the registry of sources, and the names that resolve to one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ltzoo.data.images import ArrayImages, Images, MissingImageError, UnreadableImageError, examine
from ltzoo.data.longtail import ProfileKind, longtail_indices
from ltzoo.errors import LtzooError, did_you_mean
from ltzoo.processes import rank_and_number

__all__ = [
    'DataError',
    'Dataset',
    'MissingDataError',
    'Source',
    'Split',
    'check_data_name',
    'drop_unreadable',
    'list_data',
    'load_data',
    'register_source',
    'require_readable',
    'source_of',
    'spelled_plainly',
    'with_place',
    'without_folders',
]

logger = logging.getLogger(__name__)


class DataError(LtzooError, ValueError):
    """A data set that cannot be used as asked; the message names it, what is wrong and what would be right."""


class MissingDataError(LtzooError, FileNotFoundError):
    """Files of a data set that are not there; the message says which and where they come from."""


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Attributes:
        images: N images.
        labels: int64, shape (N,); given as any integers.
    """

    images: Images
    labels: np.ndarray

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (labels.size and labels.dtype.kind not in 'iu'):
            raise DataError(
                f'labels are {labels.dtype} of shape {labels.shape}, where integers of shape (N,) are needed'
            )
        object.__setattr__(self, 'labels', labels.astype(np.int64, copy=False))
        if len(self.images) != len(self.labels):
            raise DataError(f'{len(self.images)} images but {len(self.labels)} labels')

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> Split:
        """Return the samples at `indices` (int64, any order), or those where a mask (bool, one of each) is true."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return Split(self.images.select(indices), self.labels[indices])

    def digest(self) -> str:
        """Return a SHA-256, hexadecimal, of the labels in their order and of the images' names, if they have some."""
        return hashlib.sha256(self.labels.tobytes() + self.images.identity()).hexdigest()


def drop_unreadable(split: Split) -> Split:
    """Return the samples whose images can be decoded, with a warning that names each of the others.

    Every image file is read once, which takes minutes for a large set. Several processes share them, and all leave out
    what one cannot decode.

    Raises:
        DataError: if no image can be decoded.
    """
    if isinstance(split.images, ArrayImages):
        return split
    rank, processes = rank_and_number()
    share = np.arange(rank, len(split), processes)
    bad: dict[int, str] = {}
    for index, found in zip(share, examine(split.images.select(share), lambda image: None), strict=True):
        if isinstance(found, UnreadableImageError):
            logger.warning('left out: %s', found)
            bad[int(index)] = str(found)
    if processes > 1:
        of_all: list[dict[int, str]] = [{} for _ in range(processes)]
        dist.all_gather_object(of_all, bad)
        bad = {index: reason for part in of_all for index, reason in part.items()}
    readable = [index for index in range(len(split)) if index not in bad]
    if not readable:
        raise DataError(f'no image can be decoded ({len(split)} in all, the first is {split.images.name(0)})')
    return split if len(readable) == len(split) else split.select(np.array(readable))


def require_readable(split: Split) -> None:
    """Read every image file once; several processes share them, and only the one that finds a fault tells it.

    Raises:
        MissingDataError: for the first one, if it is not there.
        UnreadableImageError: for the first one, if it cannot be decoded.
    """
    if not isinstance(split.images, ArrayImages):
        rank, processes = rank_and_number()
        share = split.images.select(np.arange(rank, len(split), processes))
        for found in examine(share, lambda image: None):
            if isinstance(found, MissingImageError):
                # To leave it out helps nobody whose images lie elsewhere.
                raise MissingDataError(str(found)) from found
            if isinstance(found, UnreadableImageError):
                raise found


@dataclass(frozen=True)
class Dataset:
    """A classification data set, ready to train and test on.

    Attributes:
        name: the name that `load_data` takes.
        train, test: the two parts.
        class_names: C names; a label is an index into them.
        mean, std: per channel, of images scaled to 0..1.
        image_size: side in pixels that images of this set are usually trained at.
        spare: training images that a long-tailed profile left out, None where nothing was left out.
        missing_spare: the list of those images, where the data set has one and it is not there.
        validation: a set of the user's own to choose settings on, beside a test set of its own; see `with_holdout`.
        drawn_from: digest of the images that `test` was drawn from by chance, None where it is a part of its own. If
            the images are others, so is the draw, and a model may have been trained on some of it.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    image_size: int = 224
    spare: Split | None = None
    missing_spare: Path | None = None
    validation: Split | None = None
    drawn_from: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'class_names', tuple(self.class_names))
        if self.num_classes < 2:
            only = f', {self.class_names[0]}' if self.class_names else ''
            raise DataError(f'{self.name} has {self.num_classes} class{only}; a classifier needs at least 2')
        for part, split in self.parts.items():
            if len(split) == 0:
                raise DataError(f'the {part} set of {self.name} has no images')
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f'the {part} set of {self.name} has label {low if low < 0 else high}; '
                    f'with {self.num_classes} classes labels are 0 to {self.num_classes - 1}'
                )

    @property
    def parts(self) -> dict[str, Split]:
        """The parts by what they are called: training, test and, if there is one, validation."""
        parts = {'training': self.train, 'test': self.test}
        return parts if self.validation is None else {**parts, 'validation': self.validation}

    @property
    def users_own(self) -> bool:
        """Whether it was read from where the user said, and is no benchmark."""
        source = source_of(self.name)
        return source is not None and _SOURCES[source].needs_location

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_counts(self) -> np.ndarray:
        """Training images per class: int64, shape (C,)."""
        return np.bincount(self.train.labels, minlength=self.num_classes)

    @property
    def test_counts(self) -> np.ndarray:
        """Test images per class: int64, shape (C,)."""
        return np.bincount(self.test.labels, minlength=self.num_classes)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these images and classes from others, in JSON's types; it is taken of all images, once."""
        return {
            'class_counts': self.class_counts.tolist(),
            'test_counts': self.test_counts.tolist(),
            'class_names': list(self.class_names),
            'drawn_from': self.drawn_from,
            'images': f'{self.train.digest()} {self.test.digest()}',
        }

    def longtailed(
        self, imbalance_ratio: float, kind: ProfileKind = 'exp', seed: int = 0, largest: int | None = None
    ) -> Dataset:
        """Return this set with a long-tailed training set; what is left out is `spare`.

        Args and Raises: as for `longtail_indices`.
        """
        kept = longtail_indices(self.train.labels, imbalance_ratio, kind, seed, largest)
        left_out = np.setdiff1d(np.arange(len(self.train)), kept)
        spare = self.train.select(left_out) if len(left_out) else None
        return replace(self, train=self.train.select(kept), spare=spare, missing_spare=None)


class Source(Protocol):
    """Reads a data set; `location` is a folder, a file or a name, whatever the source documents.

    The processes of a training call it at the same time, also to download.
    """

    def __call__(self, location: Path, download: bool) -> Dataset: ...


@dataclass(frozen=True)
class _Entry:
    read: Callable[..., Dataset]
    needs_location: bool
    default_ratio: float | None
    takes_root: bool


_SOURCES: dict[str, _Entry] = {}
_USUAL_ENDINGS = {'_lt_r100', '_lt_r50', '_lt_r10'}
_LONGTAIL = re.compile(
    r'(?P<source>.+?)_lt(?:_r(?P<ratio>\d+(?:\.\d+)?))?(?:_n(?P<largest>\d+))?(?:_(?P<kind>exp|step))?'
)


def register_source(
    name: str, *, needs_location: bool = False, default_ratio: float | None = None, takes_root: bool = False
) -> Callable[[Source], Source]:
    """Register a function that reads a data set under `name`.

    It is called as `read(location, download)`; `location` is a path: what follows the colon, else data_dir,
    $LTZOO_DATA or `data`. It raises MissingDataError for files that are not there, DataError for what is no such set.

    Args:
        name: what users write.
        needs_location: there is no usual place: the user says where (`name:WHERE` or `data_dir`).
        default_ratio: imbalance ratio of plain `<name>_lt`.
        takes_root: it has a third argument, `root`: where relative paths start from that it reads at its place. That is
            the `data_dir` given beside the place.

    Raises:
        DataError: if the name is one of ltzoo's.
    """

    def decorate(read: Source) -> Source:
        # One's own may be made again, by a notebook's cell.
        if name in _SOURCES and getattr(_SOURCES[name].read, '__module__', '').startswith('ltzoo.'):
            raise DataError(f'{name} is a source of ltzoo: choose another name')
        _SOURCES[name] = _Entry(read, needs_location, default_ratio, takes_root)
        return read

    return decorate


def list_data() -> list[str]:
    """Return the names of all registered sources."""
    return sorted(_SOURCES)


def load_data(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, split_seed: int = 0, download: bool = False
) -> Dataset:
    """Load a data set by name.

    Args:
        name: a source (`cifar100`, `imagenet_lt`), a source made long-tailed (`cifar100_lt_r100`,
            `cifar10_lt_r50_step`, `digits_lt`), with a smaller head class (`cifar10_lt_r100_n500`), or a source with
            its place (`folder:/my/images`, `csv:/my/list.csv`, `folder_lt_r50:/my/balanced/images`).
        data_dir: the place, where the name does not say it; by default $LTZOO_DATA, else `data`. Beside a list of
            files, `csv:/my/list.csv`, the folder that its relative paths start from, by default the list's own.
        split_seed: seed of the long-tailed draw; published numbers use 0.
        download: fetch the official files if they are missing and the source can.

    Raises:
        DataError: if the name is unknown, what is found there is not such a data set, `data_dir` is given beside a name
            that has its place, or `split_seed` for a set that is not drawn by it.
        MissingDataError: if files are missing; the message says which and where they come from.
    """
    if not isinstance(name, str):
        raise DataError(f'a data set has a name, such as cifar100_lt_r100 or folder:/my/images, not {name!r}')
    base, _, place = name.partition(':')
    entry, longtail = _resolve(base)
    if split_seed and longtail is None:
        raise DataError(
            f'{name} is not drawn by a seed: leave split_seed={split_seed} out, which is for long-tailed forms such as '
            'cifar100_lt_r100 or folder_lt_r50:/my/images'
        )
    root = data_dir if place and data_dir else None
    if root is not None and not entry.takes_root:
        raise DataError(
            f'{name} contains its path already: leave data_dir={os.fspath(root)} out (LTZOO_DATA is for the other data '
            'sets)'
        )
    name = with_place(name, data_dir)
    place = name.partition(':')[2]
    if not place and entry.needs_location:
        raise DataError(f'{base} needs a path: write {base}:PATH, or give data_dir')
    location = place or (os.fspath(data_dir) if data_dir is not None else os.environ.get('LTZOO_DATA', 'data'))
    where = _expanded(location, name)
    more = {} if root is None else {'root': _expanded(root, name)}
    try:
        dataset = entry.read(where, download, **more)
    except OSError as error:
        if isinstance(error, LtzooError):
            raise
        raise DataError(f'{name} cannot be read: {error}') from error
    if longtail is not None:
        try:
            dataset = dataset.longtailed(**longtail, seed=split_seed)
        except (ValueError, OverflowError) as error:
            raise DataError(f'{name}: {error}') from error
    return replace(dataset, name=name)


def _expanded(place: str | os.PathLike[str], name: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise DataError(f'{name}: there is no home folder {Path(place).parts[0]}') from error


def check_data_name(name: str) -> None:
    """Refuse a name that `load_data` does not know; whether the files are there is another question.

    Raises:
        DataError: with the nearest known name.
    """
    _resolve(name.partition(':')[0])


def source_of(name: str) -> str | None:
    """Return the source in the name of a data set: `folder` of `folder_lt_r50:/my/images`; None if none is known."""
    base = name.partition(':')[0]
    match = _LONGTAIL.fullmatch(base)
    return next((source for source in (base, match and match['source']) if source in _SOURCES), None)


def with_place(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """Return the whole name of a data set: `folder:/my/images` for `folder` with that `data_dir`.

    Raises:
        DataError: if there is no such data set.
    """
    base, _, place = name.partition(':')
    if place or not data_dir or not _resolve(base)[0].needs_location:
        return name
    return f'{base}:{os.fspath(data_dir)}'


def takes_data_dir(name: str) -> bool:
    """Return whether `data_dir` may be given beside a name: where its files are, or where a list's paths start.

    Raises:
        DataError: if there is no such data set.
    """
    base, _, place = name.partition(':')
    entry, _ = _resolve(base)
    return not place or entry.takes_root


def spelled_plainly(class_name: str) -> str:
    """Return a class's name without what tells two spellings of one name apart: case, and how accents are encoded."""
    return unicodedata.normalize('NFC', class_name).casefold()


def without_folders(name: str) -> str:
    """Return the name of a data set, or of a model, as it is published: `folder:images` for `folder:/my/images`.

    A name on the Hub, such as `hf:org/name`, stays whole. Of a run's model the run is kept: `local-dir:bcl/model`.
    """
    base, colon, place = name.partition(':')
    if not colon or (base.startswith('hf') and not place.startswith(('/', '.', '~'))):
        return name
    *_, above, last = ('', '', *Path(place).parts)
    if base == 'local-dir' and last == 'model' and above not in ('', '/', '.', '..', '~'):
        return f'{base}:{above}/{last}'
    # Here and above have a name, too.
    return f'{base}:{Path(os.path.abspath(place)).name if set(place) <= {*"./"} else Path(place).name}'


def _resolve(base: str) -> tuple[_Entry, dict[str, Any] | None]:
    """Return what reads a data set, and the arguments of `Dataset.longtailed` that its name stands for."""
    if base in _SOURCES:
        return _SOURCES[base], None
    match = _LONGTAIL.fullmatch(base)
    if match and match['source'] in _SOURCES:
        entry = _SOURCES[match['source']]
        ratio = float(match['ratio']) if match['ratio'] else entry.default_ratio
        if ratio is None:
            longtailed = f'{match["source"]}_lt'
            instead = f'{longtailed}_r100{base.removeprefix(longtailed)}'
            raise DataError(f'{base} does not say how long-tailed: write {instead} for an imbalance ratio of 100')
        kind: ProfileKind = 'step' if match['kind'] == 'step' else 'exp'
        largest = int(match['largest']) if match['largest'] else None
        return entry, {'imbalance_ratio': ratio, 'kind': kind, 'largest': largest}
    there = os.path.expanduser(base)
    form = 'folder' if os.path.isdir(there) else Path(base).suffix.lower().removeprefix('.')
    if os.path.exists(there) and form in ('folder', 'csv', 'npz'):
        raise DataError(f'no data set is called {base!r}: write {form}:{base} for what lies there')
    known = list_data()
    endings = {*_USUAL_ENDINGS, base.removeprefix(match['source'])} if match else _USUAL_ENDINGS
    forms = [source + ending for source in known if not source.endswith('_lt') for ending in sorted(endings)]
    hint = did_you_mean(base, [*known, *forms], cutoff=0.5)
    raise DataError(
        f'no data set is called {base!r}{hint} Known: {", ".join(known)}; add _lt_r100 for a long-tailed form'
    )
