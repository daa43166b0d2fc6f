"""What a run trains on and what it is measured on: images set aside to choose settings on, so that the test set is
touched once, at the end.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, drop_unreadable, load_data
from ltzoo.data.images import ArrayImages, join_images
from ltzoo.errors import first_of, one_of

__all__ = ['load_parts', 'split_off', 'with_holdout']

logger = logging.getLogger(__name__)

_MOST_PER_CLASS = 50


def with_holdout(dataset: Dataset, *, per_class: int | None = None, seed: int = 0) -> Dataset:
    """Return the data set with a hold-out in the place of its test set; its training set excludes the hold-out.

    A validation set of the user's own is the hold-out, and training keeps all it has, if no size is asked for.

    Where a long-tailed profile (or an official validation list) left training images out, the hold-out is balanced and
    drawn from those. A class with too few of them, such as the head class of CIFAR-100-LT, which has none, gives up
    training images for the missing part, never more than half of what it has. Where nothing was left out, or less than
    an image of a class with fewer images than the average, the hold-out is a stratified fifth of the training set, see
    `split_off`.

    Args:
        dataset: the data set; its test images are not looked at.
        per_class: images of every class in a balanced hold-out. By default 50, or the most for which no class with
            fewer training images than the average has to give any up.
        seed: of the draw; the global generators play no part.

    Raises:
        DataError: if a class has too few images for it, or `per_class` is below 1.
        MissingDataError: if the official list of images left out is not there.
    """
    if per_class is not None and per_class < 1:
        raise DataError(f'per_class must be at least 1, not {per_class}')
    if dataset.validation is not None and per_class is None:
        return replace(dataset, test=dataset.validation, validation=None)
    if dataset.missing_spare is not None:
        raise MissingDataError(
            f'{dataset.missing_spare} is missing: a hold-out of {dataset.name} is drawn from the images that it lists'
        )
    if per_class is None and dataset.spare is not None:
        per_class = _most_per_class(dataset) or None
    if per_class is not None:
        return _balanced(dataset, per_class, seed)
    train, held_out = split_off(dataset.train, seed)
    return replace(dataset, train=train, test=held_out, drawn_from=dataset.drawn_from or dataset.train.digest())


def split_off(split: Split, seed: int = 0) -> tuple[Split, Split]:
    """Split off 20 % of the samples of every class.

    A class of two or more images has at least one in each part; a class with one image keeps it in the first.

    Args:
        split: the samples.
        seed: of the draw.

    Returns:
        What is left and what was split off, both in the order of `split`.
    """
    # NumPy's legacy generator: its streams are frozen, so a split stays the same with every version of NumPy.
    generator = np.random.RandomState(seed)
    chosen = np.zeros(len(split), dtype=bool)
    classes, labels = np.unique(split.labels, return_inverse=True)
    for members in _members(labels, len(classes)):
        number = min(max(1, round(0.2 * len(members))), len(members) - 1)
        chosen[generator.permutation(members)[:number]] = True
    return split.select(np.flatnonzero(~chosen)), split.select(np.flatnonzero(chosen))


def _left_out(dataset: Dataset) -> np.ndarray:
    """Return how many images of every class a profile or a list left out of the training set."""
    labels = np.zeros(0, dtype=np.int64) if dataset.spare is None else dataset.spare.labels
    return np.bincount(labels, minlength=dataset.num_classes)


def _most_per_class(dataset: Dataset) -> int:
    """Return the size of a balanced hold-out for which no class below the average gives up any training image."""
    kept, left_out = dataset.class_counts, _left_out(dataset)
    gives_none = kept * dataset.num_classes < kept.sum()
    return min(_MOST_PER_CLASS, int(np.where(gives_none, left_out, left_out + kept // 2).min()))


def _balanced(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    nothing = dataset.train.select(np.zeros(0, dtype=np.int64))
    spare = nothing if dataset.spare is None else dataset.spare
    left_out = _left_out(dataset)
    limits = left_out + dataset.class_counts // 2
    if (limits < per_class).any():
        c = int(limits.argmin())
        most = f'give at most {limits[c]}' if limits[c] else 'leave the number out, to hold out 20 % of every class'
        raise DataError(
            f'a hold-out of {per_class} images a class (holdout_per_class) would take more than half the training '
            f'images of class {dataset.class_names[c]} of {dataset.name}: {most}'
        )
    generator = np.random.RandomState(seed)
    from_spare = np.zeros(len(spare), dtype=bool)
    from_train = np.zeros(len(dataset.train), dtype=bool)
    of_spare = _members(spare.labels, dataset.num_classes)
    of_train = _members(dataset.train.labels, dataset.num_classes)
    for c, missing in enumerate(np.maximum(per_class - left_out, 0)):
        from_spare[generator.permutation(of_spare[c])[:per_class]] = True
        from_train[generator.permutation(of_train[c])[:missing]] = True
    drawn, given = spare.select(np.flatnonzero(from_spare)), dataset.train.select(np.flatnonzero(from_train))
    return replace(
        dataset,
        train=dataset.train.select(np.flatnonzero(~from_train)),
        test=Split(join_images(drawn.images, given.images), np.concatenate([drawn.labels, given.labels])),
        spare=None if from_spare.all() else spare.select(np.flatnonzero(~from_spare)),
        drawn_from=dataset.drawn_from or dataset.train.digest() + spare.digest(),
    )


def _members(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Return the indices of every class."""
    counts = np.bincount(labels, minlength=num_classes)
    return np.split(np.argsort(labels, kind='stable'), np.cumsum(counts)[:-1])


def load_parts(
    name: str,
    data_dir: str | Path | None = None,
    *,
    split_seed: int = 0,
    download: bool = False,
    split: Literal['test', 'holdout'] = 'test',
    holdout_per_class: int | None = None,
    unreadable: Literal['stop', 'skip'] = 'stop',
) -> Dataset:
    """Load a data set whose `test` is what a run is measured on.

    Args:
        name, data_dir, split_seed, download: as `load_data` takes them.
        split: `holdout` measures on images that are taken out of training, see `with_holdout`.
        holdout_per_class: how many of every class.
        unreadable: `skip` leaves out images that cannot be decoded.

    Raises:
        DataError: if `split` or `unreadable` is another word, or no training image of a class can be decoded.
        LtzooError: as `load_data` and `with_holdout`.
    """
    one_of('split', split, ('test', 'holdout'), DataError)
    one_of('unreadable', unreadable, ('stop', 'skip'), DataError)
    dataset = load_data(name, data_dir, split_seed=split_seed, download=download)
    if empty := [dataset.class_names[c] for c in np.flatnonzero(dataset.class_counts == 0)]:
        logger.warning(
            'classes of %s without training images: %d of %d (%s); add images, or leave the classes out',
            dataset.name, len(empty), dataset.num_classes, first_of(empty),
        )  # fmt: skip
    if split == 'holdout':
        dataset = with_holdout(dataset, per_class=holdout_per_class)
    if unreadable == 'skip':
        before = dataset.class_counts
        dataset = replace(dataset, train=drop_unreadable(dataset.train), test=drop_unreadable(dataset.test))
        if (lost := (before > 0) & (dataset.class_counts == 0)).any():
            c = lost.argmax()
            raise DataError(
                f'no training image of class {dataset.class_names[c]} of {dataset.name} can be decoded ({before[c]} in '
                'all): replace them or remove the class'
            )
    if isinstance(dataset.test.images, ArrayImages):
        # A pack may have been made without them: that is better known before training than after it.
        dataset.test.images[0]
    return dataset
