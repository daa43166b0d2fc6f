"""How large views are, and how a model that was trained on them is tested."""

from __future__ import annotations

from typing import Any

from ltzoo.data import ArrayImages, Dataset
from ltzoo.data.views import parse_views
from ltzoo.training.recipe import Recipe

__all__ = ['image_config', 'view_sizes']


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
