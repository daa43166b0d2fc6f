"""Model and objective as one module, so that one forward pass is what gets compiled, synchronised and cast."""

from __future__ import annotations

import math

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ltzoo.errors import did_you_mean
from ltzoo.losses import Objective
from ltzoo.models.heads import classifier_of
from ltzoo.training.recipe import OptimizerPart, Recipe, RecipeError, SchedulePart

__all__ = ['Learner', 'check_optimizer', 'create_optimizer', 'learning_rate', 'learning_rate_factor']


class Learner(nn.Module):
    """A model with the objective that trains it; only `model` is exported.

    Called with views, (B, 3, H, W) each, and labels, (B,), it returns the objective's per-sample losses, shape (B,).

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

    def forward(self, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        losses = self.objective(self.model, views, labels)
        return losses if self.weights_now is None else losses * self.weights_now[labels]

    def no_weight_decay(self) -> set[str]:
        """Return what timm leaves undecayed beside biases and norms: the list of the model, such as its tokens."""
        return {f'model.{name}' for name in getattr(self.model, 'no_weight_decay', set)()}


def create_optimizer(learner: Learner, part: OptimizerPart) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name over everything trainable.

    Raises:
        RecipeError: if timm has no such optimiser, or it needs more than gradients, other settings or a GPU.
    """
    check_optimizer(part.name)
    try:
        return create_optimizer_v2(
            learner,
            opt=part.name,
            lr=part.lr,
            momentum=part.momentum,
            weight_decay=part.weight_decay,
            filter_bias_and_bn=not part.decay_norm_and_bias,
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f'optimizer.name={part.name}, optimizer.momentum={part.momentum:g}: {error}') from error


def check_optimizer(name: str) -> None:
    """Refuse the name of an optimiser that cannot train.

    Raises:
        RecipeError: if timm has none of that name, or it needs more than gradients.
    """
    if name not in list_optimizers():
        raise RecipeError(f'optimizer.name: timm has no {name!r}{did_you_mean(name, map(str, list_optimizers()))}')
    if get_optimizer_info(name).second_order:
        raise RecipeError(f'optimizer.name: {name} needs second derivatives, which training does not compute')


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    stage, first = recipe.retraining, recipe.scheduled_epochs
    if stage is None or epoch < first:
        return recipe.optimizer.lr * learning_rate_factor(recipe.schedule, epoch, first)
    rate = recipe.optimizer.lr if stage.lr is None else stage.lr
    return rate * learning_rate_factor(SchedulePart(name='cosine'), epoch - first, recipe.epochs - first)


def learning_rate_factor(part: SchedulePart, epoch: int, epochs: int) -> float:
    """Return what the base learning rate is multiplied by in an epoch, counted from 0.

    Warm-up is linear and reaches 1 in its last epoch, as in LDAM. A milestone m takes effect in epoch m. The cosine
    runs over all epochs, warm-up included: (1 + cos(pi epoch / epochs)) / 2 (BCL's code begins it after the warm-up).
    """
    if epoch < part.warmup_epochs:
        return (epoch + 1) / part.warmup_epochs
    if part.name == 'multistep':
        return part.gamma ** sum(epoch >= milestone for milestone in part.milestones)
    if part.name == 'cosine':
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return 1.0
