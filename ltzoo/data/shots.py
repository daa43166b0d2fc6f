"""Many, Medium and Few: the three groups of classes that long-tailed results are reported by.

Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019.
"""

from __future__ import annotations

import numpy as np

__all__ = ['shot_classes']


def shot_classes(class_counts: np.ndarray, many_above: int = 100, few_below: int = 20) -> dict[str, np.ndarray]:
    """Group classes by their number of training images.

    Args:
        class_counts: training images per class, integer, shape (C,).
        many_above: Many-shot classes have more images than this.
        few_below: Few-shot classes have fewer images than this; Medium are the rest.

    Returns:
        'many', 'medium' and 'few', in this order, each an int64 array of class indices in ascending order, which may
        be empty.

    Raises:
        ValueError: if the thresholds would put a class into both Many and Few.
    """
    if few_below > many_above + 1:
        raise ValueError(f'few_below {few_below} must be at most many_above + 1, which is {many_above + 1}')
    counts = np.asarray(class_counts)
    many = counts > many_above
    few = counts < few_below
    groups = {'many': many, 'medium': ~many & ~few, 'few': few}
    return {shot: np.flatnonzero(members).astype(np.int64) for shot, members in groups.items()}
