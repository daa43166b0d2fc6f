"""One step before the run: what cannot be trained is refused while there is nothing yet to clean up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ltzoo.errors import one_line
from ltzoo.gkpgsa import GkpGsa, GkpGsaSettings, diagonal_fisher, estimated_statistics
from ltzoo.gkpgsa.passes import of_each
from ltzoo.gkpgsa.rows import RowsForm
from ltzoo.training.compiled import Compiled
from ltzoo.training.learner import Learner
from ltzoo.training.optimizer import create_optimizer
from ltzoo.training.recipe import Recipe, RecipeError

__all__ = ['try_step']


def try_step(
    learner: Learner,
    sizes: Sequence[tuple[int, int]],
    class_counts: Tensor,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    rows_form: RowsForm = 'sliced',
) -> None:
    """Take a step on noise with a copy of the learner, and classify with it; with the recipe's method, one of its too.

    Args:
        learner: on its device; neither it nor the global random generators are changed.
        sizes: height and width of each view; what it is measured on is as large as the first.
        class_counts: training images per class, int64, shape (C,).
        rows_form: of the method, as `GkpGsa` has it; of `sorted` rows a step that can be compiled is traced, too.

    Raises:
        RecipeError: if model, objective, optimiser and method do not go together or do not take such images.
    """
    num_classes = len(class_counts)
    # Batch-norm may need two samples, which a small piece of a batch does not have.
    count = min(2, recipe.batch_size // (accelerator.num_processes * recipe.accumulation))
    device = accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        trial = copy.deepcopy(learner).train()
        optimizer = create_optimizer(trial, recipe.optimizer)
        views = tuple(torch.randn(count, 3, *size, device=device) for size in sizes)
        labels = torch.arange(count, device=device) % num_classes
        if trial.class_scales is not None:
            trial.scale_logits()
        try:
            with accelerator.autocast():
                shares = None if recipe.mixing is None else F.one_hot(labels, num_classes).float()
                losses = of_each(trial(views, labels, shares), labels)
            losses.sum().backward()
            if trial.class_scales is not None and trial.class_scales.grad is None:
                raise ValueError(
                    "the losses never call the module that the model's get_classifier() returns, whose logits "
                    'retraining.part=scales multiplies'
                )
            optimizer.step()
            if recipe.method is not None:
                _try_method(trial, views, class_counts, recipe.method, accelerator, rows_form)
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


def _try_method(
    trial: Learner,
    views: tuple[Tensor, ...],
    class_counts: Tensor,
    settings: GkpGsaSettings,
    accelerator: Accelerator,
    rows_form: RowsForm,
) -> None:
    """Take a step of the method, as if there were groups from the start, and the Fisher diagonal of a sample."""
    settings = replace(
        settings,
        group_by='frequency' if settings.group_by == 'bank' else settings.group_by,
        snapshots='memory',
        sharpness=settings.sharpness and replace(settings.sharpness, start_epoch=0),
    )
    # Noise of the most and the least frequent classes that have images, which are in different groups if any are.
    order = class_counts.argsort(descending=True)
    labels = order[class_counts[order] > 0][[0, -1][: len(views[0])]]
    prior = trial.objective.logit_adjustment
    all_labels = torch.arange(len(class_counts)).repeat_interleave(class_counts)
    method = GkpGsa(trial, trial.model, class_counts, all_labels, 2, settings, log_prior=prior, rows_form=rows_form)
    on_device = labels.to(views[0].device)

    method.start_epoch(0)

    def gradient(*tensors: Tensor) -> Tensor:
        trial.zero_grad()
        return method.gradient(trial, [(tensors[:-1], tensors[-1])], autocast=accelerator.autocast).loss

    # Other steps are taken as they are in the run, too.
    traced = rows_form == 'sorted' and method.static
    take = Compiled(gradient, list(trial.parameters())) if traced else gradient
    for _ in range(2 if traced else 1):
        take(*views, on_device)
    if settings.preservation is not None:
        if settings.preservation.statistics == 'estimated':
            estimated_statistics(trial.model, method.encoder, [(views[0].repeat(2, 1, 1, 1), on_device)])
        sample = [(views[0][:1], on_device[:1])]
        diagonal_fisher(trial.model, method.encoder, sample, settings.preservation.fisher, log_prior=prior)
