"""Label-distribution-aware margins."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.cross_entropy import check_class_counts, widen
from ltzoo.losses.objective import Objective, ObjectiveError, register_objective
from ltzoo.models.heads import CosineLinear, classifier_of

__all__ = ['LDAM', 'class_margins', 'with_margins']


@register_objective('ldam')
class LDAM(Objective):
    """Cross-entropy of scaled cosines that takes a margin off the cosine of the sample's class, wider for rarer ones.

    The margin is proportional to n_c^(-1/4). Deferred re-weighting, the DRW of LDAM-DRW, is a part of a recipe by
    itself: `reweighting`.

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, Sec.
    3.2.

    Args:
        model: its classifier must be a cosine head, whose scale is that of the margins.
        class_counts: training images per class, an integer tensor of shape (C,); a class without one has the margin of
            a class of one.
        max_margin: of the rarest class, as a difference of cosines.

    Raises:
        ObjectiveError: if the classifier is another one, or the margin below 0.
    """

    margins: Tensor

    def __init__(self, model: nn.Module, class_counts: Tensor, max_margin: float = 0.5) -> None:
        super().__init__()
        classifier, kind = classifier_of(model)
        if not isinstance(classifier, CosineLinear):
            raise ObjectiveError(
                'objective ldam puts its margins between cosines: it needs a single cosine classifier '
                f'(model.head=cosine in a recipe), and {type(model).__name__} has {kind}'
            )
        margins = class_margins('ldam', class_counts, max_margin)
        # Of the logits, which the classifier has scaled.
        self.register_buffer('margins', classifier.scale * margins, persistent=False)

    def forward(self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        logits = with_margins(widen(model(views[0])), labels, self.margins)
        return F.cross_entropy(logits, labels, reduction='none')


def class_margins(objective: str, class_counts: Tensor, max_margin: float) -> Tensor:
    """Return the margin of every class, shape (C,), as a difference of cosines.

    Args:
        objective: whose they are, for the message.
        class_counts, max_margin: as `LDAM` takes them.

    Raises:
        ObjectiveError: if the margin is below 0, or the class counts are no such tensor or all 0.
    """
    if max_margin < 0:
        raise ObjectiveError(f'objective {objective}: max_margin must be 0 or more, not {max_margin}')
    check_class_counts(class_counts)
    counts = class_counts.clamp(min=1)
    return max_margin * (counts.min() / counts) ** 0.25


def with_margins(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Return logits, shape (..., C), that have lost the margin, (C,), of the labels' classes, shape (...)."""
    own = labels[..., None]
    return logits.scatter_add(-1, own, -margins[own].to(logits.dtype))
