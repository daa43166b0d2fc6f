"""Model and objective as one module, so that one forward pass is what gets compiled, synchronised and cast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ltzoo.gkpgsa.passes import of_each
from ltzoo.losses import Objective
from ltzoo.models.heads import classifier_of

__all__ = ['Learner']


class Learner(nn.Module):
    """A model with the objective that trains it; only `model` is exported.

    Called with views, (B, 3, H, W) each, labels, (B,), and the shares of classes in mixed images, (B, C), where there
    are some, it returns the objective's per-sample losses, shape (B,).

    Args:
        class_weights: what a sample's loss is multiplied by, by its class, shape (C,); None for nothing.
        weighted_from: the epoch, counted from 0, in which that begins.
        scaled_classes: number of classes for whose logits there are factors to train, see `scale_logits`; 0 for none.

    Attributes:
        class_scales: these factors, shape (C,), or None.
    """

    class_scales: nn.Parameter | None
    class_weights: Tensor | None
    weights_now: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        class_weights: Tensor | None = None,
        weighted_from: int = 0,
        scaled_classes: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.weighted_from = weighted_from
        self.class_scales = nn.Parameter(torch.ones(scaled_classes)) if scaled_classes else None
        self._scaling: RemovableHandle | None = None
        self.register_buffer('class_weights', class_weights, persistent=False)
        self.register_buffer('weights_now', None if class_weights is None else class_weights.clone(), persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Be told which epoch begins, counted from 0."""
        self.objective.start_epoch(epoch)
        if self.weights_now is not None and self.class_weights is not None:
            # In place, for a replayed step reads it there.
            self.weights_now.copy_(self.class_weights if epoch >= self.weighted_from else torch.ones(()))

    def scale_logits(self) -> None:
        """Multiply the model's logits by `class_scales` from now on, whoever calls it."""
        if self._scaling is None:
            classifier, _ = classifier_of(self.model)
            self._scaling = classifier.register_forward_hook(lambda module, args, logits: logits * self.class_scales)

    @torch.no_grad()
    def fold_scales(self) -> None:
        """Multiply `class_scales`, if there are some, into the classifier, which then gives these logits itself."""
        if self.class_scales is None:
            return
        if self._scaling is not None:
            self._scaling.remove()
            self._scaling = None
        classifier, _ = classifier_of(self.model)
        classifier.weight *= self.class_scales[:, None]
        if classifier.bias is not None:
            classifier.bias *= self.class_scales
        self.class_scales.fill_(1)

    def forward(self, views: tuple[Tensor, ...], labels: Tensor, shares: Tensor | None = None) -> Tensor:
        mixed = () if shares is None else (shares,)
        losses = self.objective(self.model, views, labels, *mixed)
        if self.weights_now is None:
            return losses
        # Weights would make losses of each of one that is a mean.
        losses = of_each(losses, labels)
        return losses * (self.weights_now[labels] if shares is None else (shares * self.weights_now).sum(1))

    def no_weight_decay(self) -> set[str]:
        """Return what timm leaves undecayed beside biases and norms: the list of the model, such as its tokens."""
        return {f'model.{name}' for name in getattr(self.model, 'no_weight_decay', set)()}
