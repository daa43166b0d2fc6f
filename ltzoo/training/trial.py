"""One step before the run: what cannot be trained is refused while there is nothing yet to clean up."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from ltzoo.errors import one_line
from ltzoo.training.learner import Learner, create_optimizer
from ltzoo.training.recipe import Recipe, RecipeError

__all__ = ['try_step']


def try_step(
    learner: Learner,
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    recipe: Recipe,
    accelerator: Accelerator,
) -> None:
    """Take a step on noise with a copy of the learner, and classify with it.

    Args:
        learner: on its device; neither it nor the global random generators are changed.
        sizes: height and width of each view; what it is measured on is as large as the first.

    Raises:
        RecipeError: if model, objective and optimiser do not go together or do not take such images.
    """
    # Batch-norm may need two samples, which a small piece of a batch does not have.
    count = min(2, recipe.batch_size // (accelerator.num_processes * recipe.accumulation))
    device = accelerator.device
    with torch.random.fork_rng():
        trial = copy.deepcopy(learner).train()
        optimizer = create_optimizer(trial, recipe.optimizer)
        views = tuple(torch.randn(count, 3, *size, device=device) for size in sizes)
        labels = torch.arange(count, device=device) % num_classes
        try:
            with accelerator.autocast():
                losses = trial(views, labels)
            losses.sum().backward()
            optimizer.step()
            with torch.inference_mode():
                logits = trial.model.eval()(views[0])
        except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
            reason = one_line(error)
            raise RecipeError(
                f'no step can be taken with model {recipe.model.name}, objective {recipe.objective.name} and optimizer '
                f'{recipe.optimizer.name} on images of {sizes[0][0]} x {sizes[0][1]} pixels, {count} at once: {reason}'
            ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (count, num_classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RecipeError(
            f'model {recipe.model.name} returns {given} for {count} images, where logits of shape '
            f'({count}, {num_classes}) are needed'
        )
