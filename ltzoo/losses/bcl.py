"""Balanced contrastive learning.

Source: Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual Recognition, CVPR 2022 (arXiv:2207.09052):
class averaging and class complement, Eq. 8 and 9, and the two-branch objective, Eq. 12.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.cross_entropy import log_prior, widen
from ltzoo.losses.objective import Objective, ObjectiveError, register_objective
from ltzoo.models.heads import ProjectionMLP, classifier_of
from ltzoo.processes import rank_and_number

__all__ = ['BCL', 'balanced_contrastive_loss']


def balanced_contrastive_loss(features: Tensor, labels: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the balanced supervised contrastive loss of every anchor.

    The contrast set of an anchor is all features and all class prototypes but the anchor itself. In the denominator
    every class weighs the same: the items of a class are averaged, for each positive without that positive itself.

    With several processes the anchors are the local features and the contrast set is everyone's, so the mean over
    processes, value and gradient, is what one process would have of the whole batch.

    Args:
        features: L2-normalised, shape (N, d); all views of the batch.
        labels: int64, shape (N,).
        prototypes: L2-normalised, one per class, shape (C, d).
        temperature: of the similarities.

    Returns:
        Shape (N,), in float32 or the features' wider type.
    """
    features, prototypes = widen(features), widen(prototypes)
    anchors, anchor_labels, first = features, labels, 0
    rank, processes = rank_and_number()
    if processes > 1:
        first = rank * len(features)
        features, labels = _Gathered.apply(features), _gathered(labels)
    classes = torch.arange(len(prototypes), device=labels.device)
    contrast_labels = torch.cat([labels, classes])
    with torch.autocast(features.device.type, enabled=False):
        similarity = anchors @ torch.cat([features, prototypes]).T / temperature

    own = torch.arange(len(anchors), device=labels.device) + first
    is_self = own[:, None] == torch.arange(len(contrast_labels), device=labels.device)
    positive = (anchor_labels[:, None] == contrast_labels) & ~is_self
    # Every item is divided by how many its class has; where it is a positive, the anchor itself is not counted.
    ones = torch.ones_like(contrast_labels, dtype=features.dtype)
    items = torch.zeros(len(prototypes), device=labels.device, dtype=features.dtype).index_add(0, contrast_labels, ones)
    positives = items[anchor_labels] - 1
    divisor = torch.where(positive, positives[:, None], items[contrast_labels])
    log_denominator = (similarity - divisor.log()).masked_fill(is_self, -torch.inf).logsumexp(1)
    return log_denominator - (similarity * positive).sum(1) / positives


def _gathered(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    """The rows of all processes, in order of rank; a row's gradient is the sum of what all of them have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


@register_objective('bcl')
class BCL(Objective):
    """Logit-adjusted cross-entropy of view 1 and balanced contrastive loss of views 2 and 3.

    The projection heads are trained with the model but do not belong to it: one maps features, the other the
    classifier's class vectors, which become the class prototypes.

    Args:
        model: its classifier must have one class vector per class (a linear or cosine layer).
        class_counts: training images per class, an integer tensor of shape (C,).
        ce_weight, contrastive_weight: of the two terms; 2.0 and 0.6 on CIFAR-LT, 1.0 and 0.35 on large data.
        temperature: of the contrastive term; 0.1 on CIFAR-LT, 0.07 on large data.
        hidden_dim, out_dim: of the projection heads; 512 and 128 on CIFAR-LT, 2048 and 1024 on large data.

    Raises:
        ObjectiveError: if the classifier has no class vectors, or a value is out of range.
    """

    num_views = 3
    takes_shares = True
    balanced = True
    logit_adjustment: Tensor

    def __init__(
        self,
        model: nn.Module,
        class_counts: Tensor,
        ce_weight: float = 2.0,
        contrastive_weight: float = 0.6,
        temperature: float = 0.1,
        hidden_dim: int = 512,
        out_dim: int = 128,
    ) -> None:
        super().__init__(log_prior(class_counts))
        for name, width in (('hidden_dim', hidden_dim), ('out_dim', out_dim)):
            if not isinstance(width, int) or width < 1:
                raise ObjectiveError(f'objective bcl: {name} must be a whole number of 1 or more, not {width}')
        for name, weight in (('ce_weight', ce_weight), ('contrastive_weight', contrastive_weight)):
            if weight < 0:
                raise ObjectiveError(f'objective bcl: {name} must be 0 or more, not {weight}')
        if temperature <= 0:
            raise ObjectiveError(f'objective bcl: temperature must be more than 0, not {temperature}')
        features = class_vectors(model).shape[1]
        self.ce_weight = ce_weight
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.feature_head = ProjectionMLP(features, hidden_dim, out_dim)
        self.prototype_head = ProjectionMLP(features, hidden_dim, out_dim)

    def forward(self, model: Any, views: tuple[Tensor, ...], labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the losses of three views; of a first view alone, `ce_weight` times its cross-entropy.

        Where the images of the first view are mixed, cross-entropy is with their shares of classes, (B, C).

        Raises:
            ObjectiveError: if there are neither three views nor one.
        """
        if len(views) not in (1, 3):
            raise ObjectiveError(f'objective bcl takes 3 views, not {len(views)}')
        # One pass for all views, so that batch-norm sees their joint statistics; a sample's views lie side by side.
        images = torch.stack(views, 1).flatten(0, 1)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        features = features.unflatten(0, (len(labels), len(views)))
        logits = widen(model.get_classifier()(features[:, 0])) + self.logit_adjustment
        targets = labels if shares is None else shares
        loss = self.ce_weight * F.cross_entropy(logits, targets, reduction='none')
        if len(views) == 1:
            return loss
        contrastive = balanced_contrastive_loss(
            F.normalize(widen(self.feature_head(features[:, 1:].flatten(0, 1))), dim=1),
            labels.repeat_interleave(2),
            F.normalize(widen(self.prototype_head(class_vectors(model))), dim=1),
            self.temperature,
        )
        return loss + self.contrastive_weight * contrastive.unflatten(0, (len(labels), 2)).mean(1)


def class_vectors(model: Any) -> Tensor:
    """Return the classifier's weight, one vector per class: shape (C, d).

    Raises:
        ObjectiveError: if the classifier is not a single layer with such a weight.
    """
    classifier, kind = classifier_of(model)
    weight = getattr(classifier, 'weight', None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or len(weight) != model.num_classes:
        raise ObjectiveError(
            f'objective bcl takes its prototypes from the class vectors of a linear or cosine classifier; '
            f'{type(model).__name__} has {kind}'
        )
    return weight
