"""Cross-entropy, plain and adjusted to a long-tailed prior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.objective import Objective, ObjectiveError, register_objective

__all__ = ['CrossEntropy', 'LogitAdjusted', 'check_class_counts', 'log_prior', 'widen']


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is narrower: losses are not computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_prior(class_counts: Tensor) -> Tensor:
    """Return the log of every class's share of the training images: shape (C,), in the default type.

    A class without a training image counts as having one: its logit is pushed down as far as a class of one image
    has it, instead of by an infinity.

    Args:
        class_counts: training images of every class, integers of 0 or more, shape (C,).

    Raises:
        ObjectiveError: as `check_class_counts`.
    """
    check_class_counts(class_counts)
    counts = class_counts.double().clamp(min=1)
    return (counts / counts.sum()).log().to(torch.get_default_dtype())


def check_class_counts(class_counts: Tensor) -> None:
    """Refuse what cannot be the numbers of training images of every class.

    Raises:
        ObjectiveError: if they are something else, such as shares, or there is no training image at all.
    """
    if not isinstance(class_counts, Tensor) or class_counts.ndim != 1 or class_counts.is_floating_point():
        what = f'{class_counts.dtype} {tuple(class_counts.shape)}' if isinstance(class_counts, Tensor) else class_counts
        raise ObjectiveError(f'class_counts must be a tensor of whole numbers, one for each class, not {what}')
    if (class_counts < 0).any():
        raise ObjectiveError(f'class_counts must be 0 or more, not {int(class_counts.min())}')
    if class_counts.sum() == 0:
        raise ObjectiveError('class_counts are all 0: no class has a training image')


@register_objective('ce')
class CrossEntropy(Objective):
    """Cross-entropy of the first and only view."""

    takes_shares = True

    def __init__(self, model: nn.Module, class_counts: Tensor) -> None:
        super().__init__()

    def forward(
        self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor, shares: Tensor | None = None
    ) -> Tensor:
        return F.cross_entropy(widen(model(views[0])), labels if shares is None else shares, reduction='none')


@register_objective('logit_adjusted')
class LogitAdjusted(Objective):
    """Cross-entropy of logits + tau log prior, so that the plain logits serve a balanced test set.

    Sources: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, Eq. 10. With tau = 1 it is the balanced
    softmax of Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020, Eq. 4.

    Args:
        model: unused.
        class_counts: training images per class, an integer tensor of shape (C,).
        tau: strength of the adjustment; 0 is plain cross-entropy.
    """

    takes_shares = True
    balanced = True
    logit_adjustment: Tensor

    def __init__(self, model: nn.Module, class_counts: Tensor, tau: float = 1.0) -> None:
        super().__init__(tau * log_prior(class_counts))

    def forward(
        self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor, shares: Tensor | None = None
    ) -> Tensor:
        logits = widen(model(views[0])) + self.logit_adjustment
        return F.cross_entropy(logits, labels if shares is None else shares, reduction='none')
