"""The operations of AutoAugment and RandAugment by torchvision's names, SolarizeAdd by timm's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from torch import Tensor

from ltzoo.data.augment import _affine, _pixels
from ltzoo.data.augment._affine import Filling
from ltzoo.data.augment.op import apply_where

__all__ = ['IDENTITY', 'NAMES', 'apply_operations']

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
