"""What the sources of users' own data share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, Split
from ltzoo.data.holdout import split_off

logger = logging.getLogger(__name__)


def classes_of_integers(labels: np.ndarray, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the integers that occur, in their order, as class names, and the labels as indices into them.

    A label below the largest that never occurs is no class; there is a warning, as labels may count from 1 or be codes.

    Args:
        labels: of all parts together, shape (N,).
        where: what they are, for messages.

    Raises:
        DataError: if a label is negative.
    """
    present, indices = np.unique(labels, return_inverse=True)
    if present[0] < 0:
        raise DataError(f'{where} have label {present[0]}; labels count from 0')
    if present[-1] >= len(present):
        logger.warning(
            '%s go up to %d but no image has label %d: the %d labels that occur are the classes, named by them',
            where, present[-1], np.flatnonzero(present != np.arange(len(present)))[0], len(present),
        )  # fmt: skip
    return tuple(str(label) for label in present), indices


def warn_of_left_out(where: str, train: str, test: str | None, left_out: Sequence[str]) -> None:
    """Log the parts that are neither trained nor tested on, if there are some.

    Args:
        where: what holds the parts.
        train, test: the part trained on, and the one tested on, if there is one.
        left_out: the others.
    """
    if left_out:
        logger.warning(
            '%s is trained on %s and tested on %s: %s %s left out',
            where, train, test or '20 % of it', ', '.join(left_out), 'is' if len(left_out) == 1 else 'are',
        )  # fmt: skip


def from_parts(name: str, parts: Sequence[Split], class_names: tuple[str, ...], **described: Any) -> Dataset:
    """Return a data set of a user's parts: training, test, validation.

    Where there is but the first, 20 % of every class become the test set, see `split_off`.

    Args:
        name, class_names, **described: of the data set.
        parts: one to three, in this order.

    Raises:
        DataError: if the test set is to be drawn and no class has two images.
    """
    if len(parts) > 1:
        train, test, *more = parts
        return Dataset(name, train, test, class_names, validation=next(iter(more), None), **described)
    (whole,) = parts
    train, test = split_off(whole)
    if len(whole) and not len(test):
        raise DataError(
            f'no class of {name} has two images, so that no test set can be drawn: add images, or give it a test set'
        )
    return Dataset(name, train, test, class_names, drawn_from=whole.digest(), **described)
