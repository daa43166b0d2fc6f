"""Weights of classes that make up for their numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ltzoo.losses.cross_entropy import check_class_counts
from ltzoo.losses.objective import ObjectiveError

__all__ = ['class_balanced_weights']


def class_balanced_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return what the losses of a class's samples are multiplied by: shape (C,), in the default type.

    They are in proportion to one over the effective number of samples, (1 - beta^n) / (1 - beta), and their mean over
    the training samples is 1, so that the learning rate keeps its meaning. (The code of Cao et al., LDAM, has that mean
    over every batch.)

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, Proposition 1.

    Args:
        class_counts: training images per class, an integer tensor of shape (C,); a class without one counts as having
            one.
        beta: 0 weighs all classes alike; towards 1 a class weighs one over its number of samples.

    Raises:
        ObjectiveError: if beta is not in [0, 1), or the class counts are no such tensor or all 0.
    """
    if not 0 <= beta < 1:
        raise ObjectiveError(f'beta must be 0 or more and below 1, not {beta}')
    check_class_counts(class_counts)
    counts = class_counts.double()
    # 1 - beta^n, also where beta^n is close to 1.
    effective = -torch.expm1(counts.clamp(min=1) * torch.log(torch.tensor(beta, dtype=torch.float64)))
    weights = 1 / effective
    return (weights * counts.sum() / (weights @ counts)).to(torch.get_default_dtype())
