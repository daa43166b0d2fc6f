"""The long-tail profile: how many training images each class keeps, and which.

Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (LDAM), NeurIPS 2019,
whose CIFAR split every later paper uses.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ['ProfileKind', 'longtail_counts', 'longtail_indices']

ProfileKind = Literal['exp', 'step']


def longtail_counts(num_classes: int, largest: int, imbalance_ratio: float, kind: ProfileKind = 'exp') -> np.ndarray:
    """Return how many images each class keeps.

    Args:
        num_classes: number of classes C.
        largest: images of the largest class, n_max.
        imbalance_ratio: largest over smallest class, r >= 1.
        kind: 'exp' keeps int(n_max r^(-c/(C-1))) of class c; 'step' keeps n_max of the first half of the classes and
            int(n_max / r) of the rest.

    Returns:
        int64 array, shape (C,), in class order, from the head to the tail.

    Raises:
        ValueError: if the ratio is below 1, there is one class, a class would keep no image, or there is no such kind.
    """
    if num_classes < 2:
        raise ValueError(f'a long-tailed profile needs at least 2 classes, not {num_classes}')
    if not imbalance_ratio >= 1:
        raise ValueError(f'imbalance_ratio is the largest over the smallest class, at least 1, not {imbalance_ratio}')
    if kind == 'exp':
        # The order of operations is LDAM's: the product must round as theirs does before it is cut to an integer.
        counts = [int(largest * (1 / imbalance_ratio) ** (c / (num_classes - 1.0))) for c in range(num_classes)]
    elif kind == 'step':
        counts = [largest if c < num_classes // 2 else int(largest * (1 / imbalance_ratio)) for c in range(num_classes)]
    else:
        raise ValueError(f"kind must be 'exp' or 'step', not {kind!r}")
    if min(counts) < 1:
        raise ValueError(
            f'imbalance_ratio {imbalance_ratio:g} leaves no image in the smallest class: '
            f'with {largest} images in the largest, take one below {min(largest, imbalance_ratio):g}'
        )
    return np.array(counts, dtype=np.int64)


def longtail_indices(
    labels: np.ndarray,
    imbalance_ratio: float,
    kind: ProfileKind = 'exp',
    seed: int = 0,
    largest: int | None = None,
) -> np.ndarray:
    """Return the indices of a long-tailed subset of a balanced data set, exactly as LDAM draws them.

    For every class in ascending order the class's indices are shuffled by NumPy's legacy generator and the first
    n_c are kept. The counts start from the images per class, N // C, as in LDAM, unless `largest` says otherwise.

    Args:
        labels: integer class labels, shape (N,), 0 to C - 1, in the official file order.
        imbalance_ratio: largest over smallest class.
        kind: 'exp' or 'step', see `longtail_counts`.
        seed: of the legacy generator; published numbers use 0.
        largest: images of the largest class; a smaller set of the same shape is part of the larger one.

    Returns:
        int64 array of indices into `labels`, class after class.

    Raises:
        ValueError: if `labels` is not a 1-D integer array, a class is empty or has too few images, or the ratio does
            not fit.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        raise ValueError(f'labels must be a non-empty 1-D integer array, not {labels.dtype} of shape {labels.shape}')
    if labels.min() < 0:
        raise ValueError(f'labels must be 0 or more, not {labels.min()}')
    num_classes = int(labels.max()) + 1
    largest = len(labels) // num_classes if largest is None else largest
    counts = longtail_counts(num_classes, largest, imbalance_ratio, kind)
    available = np.bincount(labels, minlength=num_classes)
    if (available < counts).any():
        c = int(np.argmax(available < counts))
        raise ValueError(
            f'class {c} has {available[c]} images, but the long-tailed profile keeps {counts[c]}: it needs a balanced '
            f'set (on average {len(labels) // num_classes} images a class here); use an unbalanced set without _lt, '
            'or a smaller _n'
        )
    generator = np.random.RandomState(seed)
    kept = []
    for c in range(num_classes):
        indices = np.flatnonzero(labels == c)
        generator.shuffle(indices)
        kept.append(indices[: counts[c]])
    return np.concatenate(kept).astype(np.int64)
