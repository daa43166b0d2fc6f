"""Views: what training sees of an image, from a list of operations to tensors.

A recipe gives one list for each view, or the name of a preset:

    views:
      - [{random_crop: {padding: 4}}, horizontal_flip]
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment import Op, Params, ViewError, create_op, join_rows, take_rows
from ltzoo.errors import did_you_mean

__all__ = ['PRESETS', 'FileViews', 'TensorViews', 'View', 'normalise', 'parse_views']

Items = Sequence[str | dict[str, Any]]
Spec = Sequence[Items]

_CONTRASTIVE_JITTER: dict[str, float] = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1, 'p': 0.8}
_CIFAR_PLAIN: Items = [{'random_crop': {'padding': 4, 'size': 32}}, 'horizontal_flip']
_CIFAR_STRONG: Items = [*_CIFAR_PLAIN, {'auto_augment': {}}, {'cutout': {'size': 16}}]
_CIFAR_CONTRASTIVE: Items = [
    {'random_resized_crop': {'size': 32, 'scale': [0.2, 1.0]}},
    'horizontal_flip',
    {'color_jitter': _CONTRASTIVE_JITTER},
    {'random_grayscale': {'p': 0.2}},
]
_IMAGENET_PLAIN: Items = [
    {'random_resized_crop': {'size': 224}},
    'horizontal_flip',
    {'color_jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.0}},
]
_IMAGENET_STRONG: Items = [*_IMAGENET_PLAIN, {'rand_augment': {'n': 2, 'm': 10, 'mstd': 0.5}}]
_IMAGENET_CONTRASTIVE: Items = [
    {'random_resized_crop': {'size': 224}},
    'horizontal_flip',
    {'color_jitter': _CONTRASTIVE_JITTER},
    {'random_grayscale': {'p': 0.2}},
]
_DIGITS_PLAIN: Items = [{'random_crop': {'padding': 1, 'size': 8}}]
_DIGITS_CONTRASTIVE: Items = [
    {'random_resized_crop': {'size': 8, 'scale': [0.6, 1.0]}},
    {'color_jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.0, 'hue': 0.0, 'p': 0.8}},
]

# The views of the field's standard recipes; those with three are of Zhu et al., BCL, CVPR 2022, and the strong ones the
# first of these.
PRESETS: dict[str, Spec] = {
    'cifar_plain': [_CIFAR_PLAIN],
    'cifar_strong': [_CIFAR_STRONG],
    'cifar_bcl': [_CIFAR_STRONG, _CIFAR_CONTRASTIVE, _CIFAR_CONTRASTIVE],
    'imagenet_plain': [_IMAGENET_PLAIN],
    'imagenet_strong': [_IMAGENET_STRONG],
    'imagenet_bcl': [_IMAGENET_STRONG, _IMAGENET_CONTRASTIVE, _IMAGENET_CONTRASTIVE],
    # A mirrored or coloured digit is no digit.
    'digits_plain': [_DIGITS_PLAIN],
    'digits_bcl': [_DIGITS_PLAIN, _DIGITS_CONTRASTIVE, _DIGITS_CONTRASTIVE],
}


@dataclass(frozen=True)
class View:
    """One way of seeing an image: operations, applied in order."""

    ops: tuple[Op, ...]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that images of this size are seen with."""
        for op in self.ops:
            height, width = op.output_size(height, width)
        return height, width


def parse_views(spec: str | Spec) -> list[View]:
    """Make views from a preset's name or from one list of operations per view.

    Raises:
        ViewError: if a preset, an operation or a setting is unknown, with the nearest valid name.
    """
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise ViewError(f'no views are called {spec!r}{did_you_mean(spec, PRESETS)} Known: {", ".join(PRESETS)}')
        spec = PRESETS[spec]
    if not spec:
        raise ViewError('views is an empty list: give at least one view')
    return [View(tuple(_parse_op(item) for item in items)) for items in spec]


def _parse_op(item: str | dict[str, Any]) -> Op:
    if isinstance(item, str):
        return create_op(item)
    if len(item) != 1:
        raise ViewError(f'{item} is not a view operation: write its name, or one name with its settings')
    ((name, settings),) = item.items()
    if not isinstance(settings, dict):
        raise ViewError(f'{name}: settings are a mapping such as {{padding: 4}}, not {settings!r}')
    return create_op(name, **settings)


class TensorViews:
    """The views of batches of uint8 images, made on the images' device."""

    def __init__(self, views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> None:
        self.views = views
        self.mean = tuple(mean)
        self.std = tuple(std)

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> list[list[Params]]:
        """Draw the parameters of every view and operation for n images of one size."""
        drawn = []
        for view in self.views:
            params, size = [], (height, width)
            for op in view.ops:
                params.append(op.sample(n, *size, generator))
                size = op.output_size(*size)
            drawn.append(params)
        return drawn

    @staticmethod
    def rows(params: list[list[Params]], rows: Any) -> list[list[Params]]:
        """Return the parameters of some of the images: `rows` is a slice or an index tensor."""
        return [[take_rows(p, rows) for p in view] for view in params]

    def __call__(self, images: Tensor, params: list[list[Params]]) -> tuple[Tensor, ...]:
        """Return one normalised float32 tensor (n, 3, H, W) for each view of uint8 images (n, 3, H, W)."""
        made: list[Tensor] = []
        # Neighbours that are alike are made as one batch: half the calls for the two contrastive views of BCL.
        for view, alike in itertools.groupby(zip(self.views, params, strict=True), lambda pair: pair[0]):
            drawn = [p for _, p in alike]
            seen = images.repeat(len(drawn), 1, 1, 1) if len(drawn) > 1 else images
            for op, *p in zip(view.ops, *drawn, strict=True):
                seen = op.apply(seen, join_rows(p))
            made += normalise(seen, self.mean, self.std).chunk(len(drawn))
        return tuple(made)


class FileViews:
    """The views of one PIL image, made in a worker process."""

    def __init__(self, views: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.transforms = [v2.Compose([*(op.on_picture() for op in view.ops), v2.ToImage()]) for view in views]
        self.tail = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])

    def pixels(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Return one uint8 tensor (3, H, W) for each view, to be normalised on the device: a quarter of the bytes."""
        return tuple(transform(image).as_subclass(Tensor) for transform in self.transforms)

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Return one normalised float32 tensor (3, H, W) for each view."""
        return tuple(self.tail(pixels) for pixels in self.pixels(image))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 images (n, 3, H, W) as float32, scaled to 0..1, less the mean, over the deviation."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return torch.addcmul(shift, images.float(), scale)


@functools.cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: making them anew would be a copy that the host waits for, in every step.
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)
    return scale, shift
