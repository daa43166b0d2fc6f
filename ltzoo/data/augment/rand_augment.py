"""RandAugment: a number of operations at one strength.

Source: Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, NeurIPS 2020.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment._operations import NAMES, apply_operations, magnitude_table
from ltzoo.data.augment.op import Op, Params, ViewError, register_op

__all__ = ['RandAugment']

# torchvision's own number of magnitude levels.
BINS = 31


@register_op('rand_augment')
@dataclass(frozen=True)
class RandAugment(Op):
    """`n` operations, any of torchvision's 14, one after the other at level `m` of 0 to 30."""

    n: int = 2
    m: int = 10

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.m < BINS:
            raise ViewError(f'rand_augment: n must be 1 or more and m 0 to {BINS - 1}, not n {self.n}, m {self.m}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        device = generator.device
        operations, magnitudes, signed = _space(self.m, height, width, device)
        chosen = torch.randint(0, len(operations), (n, self.n), generator=generator, device=device)
        negative = torch.rand(n, self.n, generator=generator, device=device) <= 0.5
        magnitude = magnitudes[chosen]
        return {
            'operation': operations[chosen],
            'magnitude': torch.where(negative & signed[chosen], -magnitude, magnitude),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        for slot in range(self.n):
            images = apply_operations(images, params['operation'][:, slot], params['magnitude'][:, slot])
        return images

    def torchvision(self) -> v2.Transform:
        return v2.RandAugment(self.n, self.m, BINS)


@functools.cache
def _space(m: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operations to choose from, each one's magnitude at level m, and whether it has a sign."""
    space = v2.RandAugment._AUGMENTATION_SPACE
    magnitudes, signed = magnitude_table(space, BINS, height, width)
    operations = torch.tensor([NAMES.index(name) for name in space])
    return operations.to(device), magnitudes[operations, m].to(device), signed[operations].to(device)
