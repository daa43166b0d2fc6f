"""timm's optimisers, and the learning rate of every epoch."""

from __future__ import annotations

import math

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

from ltzoo.errors import did_you_mean
from ltzoo.training.learner import Learner
from ltzoo.training.recipe import OptimizerPart, Recipe, RecipeError, SchedulePart

__all__ = ['check_optimizer', 'create_optimizer', 'learning_rate', 'learning_rate_factor']


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
