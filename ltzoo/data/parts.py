"""A data set as a run sees it: what it trains on, and what it is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ltzoo.data.dataset import DataError, Dataset, drop_unreadable, load_data
from ltzoo.data.holdout import with_holdout
from ltzoo.data.images import ArrayImages

__all__ = ['load_parts']


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
        DataError: if no training image of a class can be decoded.
        LtzooError: as `load_data` and `with_holdout`.
    """
    dataset = load_data(name, data_dir, split_seed=split_seed, download=download)
    if split == 'holdout':
        dataset = with_holdout(dataset, per_class=holdout_per_class)
    if unreadable == 'skip':
        before = dataset.class_counts
        dataset = replace(dataset, train=drop_unreadable(dataset.train), test=drop_unreadable(dataset.test))
        if (lost := (before > 0) & (dataset.class_counts == 0)).any():
            c = lost.argmax()
            raise DataError(
                f'none of the {before[c]} training images of class {dataset.class_names[c]} of {dataset.name} can be '
                'decoded: replace them or remove the class'
            )
    if isinstance(dataset.test.images, ArrayImages):
        # A pack may have been made without them: that is better known before training than after it.
        dataset.test.images[0]
    return dataset
