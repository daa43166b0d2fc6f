"""Focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.cross_entropy import widen
from ltzoo.losses.objective import Objective, ObjectiveError, register_objective

__all__ = ['Focal']


@register_objective('focal')
class Focal(Objective):
    """Cross-entropy times (1 - p)^gamma, p being the probability of the sample's class: what is learnt weighs less.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, Eq. 4, with softmax for the sigmoid.

    Args:
        model: unused.
        class_counts: unused.
        gamma: 0 is plain cross-entropy; 1 in the long-tailed benchmarks (the code of Cao et al., LDAM), 2 in detection.

    Raises:
        ObjectiveError: if gamma is below 0.
    """

    def __init__(self, model: nn.Module, class_counts: Tensor, gamma: float = 1.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ObjectiveError(f'objective focal: gamma must be 0 or more, not {gamma}')
        self.gamma = gamma

    def forward(self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        losses = F.cross_entropy(widen(model(views[0])), labels, reduction='none')
        # The slope of a root is infinite at 0, where p has been rounded to 1.
        missing = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        return missing**self.gamma * losses
