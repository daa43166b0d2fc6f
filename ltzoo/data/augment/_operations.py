"""The operations of AutoAugment and RandAugment by torchvision's names, SolarizeAdd by timm's; their magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltzoo.data.augment import _affine, _pixels
from ltzoo.data.augment._affine import Filling
from ltzoo.data.augment.op import apply_where

__all__ = ['IDENTITY', 'NAMES', 'apply_operations', 'magnitude_table']

# Each takes images (n, 3, H, W) and magnitudes (n,) on torchvision's scale; the first ones also how to fill the edge.
MOVING: dict[str, Callable[..., Tensor]] = {
    'ShearX': _affine.shear_x,
    'ShearY': _affine.shear_y,
    'TranslateX': _affine.translate_x,
    'TranslateY': _affine.translate_y,
    'Rotate': _affine.rotate,
}
COLOURING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'Brightness': lambda images, magnitude: _pixels.adjust_brightness(images, 1 + magnitude),
    'Color': lambda images, magnitude: _pixels.adjust_saturation(images, 1 + magnitude),
    'Contrast': lambda images, magnitude: _pixels.adjust_contrast(images, 1 + magnitude),
    'Sharpness': lambda images, magnitude: _pixels.adjust_sharpness(images, 1 + magnitude),
    'Posterize': _pixels.posterize,
    'Solarize': lambda images, magnitude: _pixels.solarize(images, 255 * magnitude),
    'SolarizeAdd': _pixels.solarize_add,
    'AutoContrast': lambda images, _: _pixels.autocontrast(images),
    'Equalize': lambda images, _: _pixels.equalize(images),
    'Invert': lambda images, _: _pixels.invert(images),
}
NAMES = ('Identity', *MOVING, *COLOURING)
IDENTITY = NAMES.index('Identity')


def magnitude_table(
    space: Mapping[str, tuple[Callable[[int, int, int], Any], bool]], bins: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return magnitudes (operations, bins) and which operations draw a sign (operations,), from torchvision's space."""
    magnitudes = torch.zeros(len(NAMES), bins)
    signed = torch.zeros(len(NAMES), dtype=torch.bool)
    for name, (values, has_sign) in space.items():
        row = values(bins, height, width)
        if row is not None:
            magnitudes[NAMES.index(name)] = row
        signed[NAMES.index(name)] = has_sign
    return magnitudes, signed


def apply_operations(
    images: Tensor, operation: Tensor, magnitude: Tensor, filling: Filling, among: Collection[str] = NAMES
) -> Tensor:
    """Apply to every image the operation (int64, (n,), an index into `NAMES`) at its magnitude (n,).

    `among` are the names of those that may occur: on a GPU all images go through each of them.
    """
    moving = {name: partial(move, filling=filling) for name, move in MOVING.items()}
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {**moving, **COLOURING}
    for index, name in enumerate(NAMES):
        if index != IDENTITY and name in among:
            images = apply_where(operation == index, images, changes[name], magnitude)
    return images
