"""Mirror images left to right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment.op import Op, Params, ViewError, apply_where, register_op

__all__ = ['HorizontalFlip']


@register_op('horizontal_flip')
@dataclass(frozen=True)
class HorizontalFlip(Op):
    """Flip with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ViewError(f'horizontal_flip: p is a probability, 0 to 1, not {self.p}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        return {'flip': torch.rand(n, generator=generator, device=generator.device) < self.p}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return apply_where(params['flip'], images, lambda chosen: chosen.flip(3))

    def on_picture(self) -> v2.Transform:
        return v2.RandomHorizontalFlip(self.p)
