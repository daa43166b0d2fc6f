"""Many, Medium and Few: the three groups of classes that long-tailed results are reported by.

Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019.
"""

from __future__ import annotations

import numpy as np

from ltzoo.errors import LtzooError

__all__ = ['FEW_BELOW', 'MANY_ABOVE', 'SHOT_COLOURS', 'ShotError', 'check_thresholds', 'shot_classes']

# The thresholds of the literature: Many has more training images, Few has fewer.
MANY_ABOVE, FEW_BELOW = 100, 20

# In every plot.
SHOT_COLOURS = {'many': 'tab:blue', 'medium': 'tab:orange', 'few': 'tab:red'}


class ShotError(LtzooError, ValueError):
    """Thresholds that would put a class into both Many and Few."""


def check_thresholds(many_above: int, few_below: int, names: tuple[str, str] = ('many_above', 'few_below')) -> None:
    """Refuse thresholds that overlap, calling them by the names that they were given under.

    Raises:
        ShotError: if they would put a class into both Many and Few.
    """
    if few_below > many_above + 1:
        raise ShotError(f'{names[1]} {few_below} must be at most {names[0]} + 1, which is {many_above + 1}: set both')


def shot_classes(
    class_counts: np.ndarray, many_above: int = MANY_ABOVE, few_below: int = FEW_BELOW
) -> dict[str, np.ndarray]:
    """Group classes by their number of training images.

    Args:
        class_counts: training images per class, integer, shape (C,).
        many_above: Many-shot classes have more images than this.
        few_below: Few-shot classes have fewer images than this; Medium are the rest.

    Returns:
        'many', 'medium' and 'few', in this order, each an int64 array of class indices in ascending order, which may
        be empty.

    Raises:
        ShotError: if the thresholds would put a class into both Many and Few.
    """
    check_thresholds(many_above, few_below)
    counts = np.asarray(class_counts)
    many = counts > many_above
    few = counts < few_below
    groups = {'many': many, 'medium': ~many & ~few, 'few': few}
    return {shot: np.flatnonzero(members).astype(np.int64) for shot, members in groups.items()}
