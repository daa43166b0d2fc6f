"""Cutout: a black square somewhere in the image.

Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment.op import Op, Params, ViewError, register_op

__all__ = ['Cutout']


@register_op('cutout')
@dataclass(frozen=True)
class Cutout(Op):
    """Blacken a square of side `size` whose centre is any pixel; what reaches over the border is cut off."""

    size: int = 16

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ViewError(f'cutout: size must be 1 or more pixels, not {self.size}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        device = generator.device
        return {
            'row': torch.randint(0, height, (n,), generator=generator, device=device),
            'column': torch.randint(0, width, (n,), generator=generator, device=device),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        rows = self._covered(params['row'], images.shape[2])
        columns = self._covered(params['column'], images.shape[3])
        return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)

    def _covered(self, centre: Tensor, side: int) -> Tensor:
        offset = torch.arange(side, device=centre.device) - centre[:, None] + self.size // 2
        return (offset >= 0) & (offset < self.size)

    def on_picture(self) -> v2.Transform:
        return _CutoutTransform(self.size)


class _CutoutTransform(v2.Transform):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        top = int(torch.randint(0, height, ())) - self.size // 2
        left = int(torch.randint(0, width, ())) - self.size // 2
        bottom, right = min(top + self.size, height), min(left + self.size, width)
        top, left = max(top, 0), max(left, 0)
        return {'i': top, 'j': left, 'h': bottom - top, 'w': right - left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.erase, inpt, **params, v=torch.zeros(1, 1, 1))
