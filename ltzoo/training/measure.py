"""Training and test images as evaluation sees them, and the scores of a model in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ltzoo.data import ArrayImages, Dataset, Split
from ltzoo.data.views import parse_views
from ltzoo.errors import LtzooError
from ltzoo.evaluation import Scores, predict, score
from ltzoo.evaluation.predict import image_batches
from ltzoo.training.recipe import Recipe

__all__ = ['image_config', 'measure', 'training_samples', 'view_sizes']


def measure(model: nn.Module, images: Split, dataset: Dataset, recipe: Recipe, accelerator: Accelerator) -> Scores:
    """Score the model on a part of the data, the images shared out to all processes.

    Raises:
        LtzooError: if the device has no memory for so large a batch.
    """
    part = recipe.evaluation
    try:
        predictions = predict(
            model,
            images,
            image_config(recipe, dataset),
            batch_size=part.batch_size,
            device=accelerator.device,
            workers=recipe.workers,
        )
    except torch.OutOfMemoryError as error:
        raise LtzooError(
            f'there is no memory to test with evaluation.batch_size={part.batch_size}: go on with a smaller one and '
            'resume=auto'
        ) from error
    return score(
        *predictions,
        dataset.class_counts,
        dataset.class_names,
        many_above=part.many_above,
        few_below=part.few_below,
    )


def training_samples(
    dataset: Dataset, indices: np.ndarray, recipe: Recipe, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training images as evaluation would see them, with their labels, in batches as large as training's."""
    part, size = dataset.train.select(indices), recipe.batch_size
    images = image_batches(part, image_config(recipe, dataset), size, accelerator.device, recipe.workers)
    labels = torch.from_numpy(part.labels).to(accelerator.device).split(size)
    yield from zip(images, labels, strict=True)


def view_sizes(recipe: Recipe, dataset: Dataset) -> list[tuple[int, int]]:
    """Return height and width of each view that training sees."""
    images, side = dataset.train.images, dataset.image_size
    height, width = images.array.shape[1:3] if isinstance(images, ArrayImages) else (side, side)
    return [view.output_size(height, width) for view in parse_views(recipe.views)]


def image_config(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return, as timm names it, how a model is tested: on images of the size of the first view that it was trained on.

    Arrays are not cropped.
    """
    cropped = any(op.enlarges for op in parse_views(recipe.views)[0].ops)
    crop_pct = recipe.evaluation.crop_pct if cropped else 1.0
    return {
        'input_size': (3, *view_sizes(recipe, dataset)[0]),
        'mean': tuple(dataset.mean),
        'std': tuple(dataset.std),
        'crop_pct': 1.0 if isinstance(dataset.test.images, ArrayImages) else crop_pct,
    }
