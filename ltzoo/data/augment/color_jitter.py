"""Colour jitter: brightness, contrast, saturation and hue by random amounts in random order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment import _pixels
from ltzoo.data.augment.op import Op, Params, ViewError, apply_where, register_op

__all__ = ['ColorJitter']

CHANGES = (_pixels.adjust_brightness, _pixels.adjust_contrast, _pixels.adjust_saturation, _pixels.adjust_hue)


@register_op('color_jitter')
@dataclass(frozen=True)
class ColorJitter(Op):
    """With probability `p`, multiply brightness, contrast and saturation by 1 - x to 1 + x and turn the hue.

    Args:
        brightness, contrast, saturation: the greatest change x, 0 or more; a factor does not fall below 0.
        hue: the greatest turn, 0 to 0.5 of the circle.
        p: probability that an image is changed at all.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ViewError('color_jitter: brightness, contrast and saturation must be 0 or more, hue 0 to 0.5')
        if not 0 <= self.p <= 1:
            raise ViewError(f'color_jitter: p is a probability, 0 to 1, not {self.p}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        device = generator.device
        amounts = torch.rand(n, 4, generator=generator, device=device)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [max(0.0, 1 - x) + (1 + x - max(0.0, 1 - x)) * amounts[:, i] for i, x in enumerate(strengths)]
        return {
            'chosen': torch.rand(n, generator=generator, device=device) < self.p,
            'amount': torch.stack([*factors, (2 * amounts[:, 3] - 1) * self.hue], 1),
            # Sorting random numbers gives every order the same chance.
            'order': torch.rand(n, 4, generator=generator, device=device).argsort(1),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        active = [i for i, x in enumerate((self.brightness, self.contrast, self.saturation, self.hue)) if x > 0]
        for place in range(4):
            for i in active:
                now = params['chosen'] & (params['order'][:, place] == i)
                images = apply_where(now, images, CHANGES[i], params['amount'][:, i])
        return images

    def on_picture(self) -> v2.Transform:
        jitter = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        return jitter if self.p == 1 else v2.RandomApply([jitter], self.p)
