"""What the sources of users' own data share."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ltzoo.data.dataset import DataError

logger = logging.getLogger(__name__)


def names_of_integers(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Return '0' to 'C - 1' as the class names of integer labels.

    Args:
        labels: of all parts together, shape (N,).
        where: what they are, for the error message.

    Raises:
        DataError: if a label is negative, or one below the largest never occurs (labels that count from 1, or codes).
    """
    present = np.unique(labels)
    if present[0] < 0:
        raise DataError(f'{where} have label {present[0]}; labels count from 0')
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise DataError(
            f'{where} go up to {present[-1]} but no image has label {gaps[0]}; labels must be 0 to C - 1, all in use'
        )
    return tuple(str(label) for label in present)


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
