"""What the sources of users' own data share."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ltzoo.data.dataset import DataError

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
