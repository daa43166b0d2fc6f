"""Take the colour out of some images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment._pixels import grey
from ltzoo.data.augment.op import Op, Params, ViewError, apply_where, register_op

__all__ = ['RandomGrayscale']


@register_op('random_grayscale')
@dataclass(frozen=True)
class RandomGrayscale(Op):
    """Make an image grey, in three equal channels, with probability `p`."""

    p: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ViewError(f'random_grayscale: p is a probability, 0 to 1, not {self.p}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        return {'chosen': torch.rand(n, generator=generator, device=generator.device) < self.p}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return apply_where(params['chosen'], images, lambda some: grey(some).to(some.dtype).expand_as(some))

    def on_picture(self) -> v2.Transform:
        return v2.RandomGrayscale(self.p)
