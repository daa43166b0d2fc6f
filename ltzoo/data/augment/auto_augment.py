"""AutoAugment with the policy learnt on CIFAR-10.

Source: Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019; the policy is torchvision's.
What is moved over the edge leaves grey, as in the code of BCL.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

from ltzoo.data.augment._affine import Filling
from ltzoo.data.augment._operations import IDENTITY, NAMES, apply_operations
from ltzoo.data.augment.op import Op, Params, register_op

__all__ = ['AutoAugment']

# torchvision's own number of magnitude levels.
BINS = 10
FILLING = Filling((128, 128, 128))
# What the first and the second operation of a pair may be.
AMONG = [{pair[slot][0] for pair in v2.AutoAugment(AutoAugmentPolicy.CIFAR10)._policies} for slot in range(2)]


@register_op('auto_augment')
@dataclass(frozen=True)
class AutoAugment(Op):
    """One of the 25 pairs of the policy for CIFAR-10 (not torchvision's default, that for ImageNet).

    Each operation of a pair is done with its own probability.
    """

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        device = generator.device
        operation, probability, magnitude, signed = _policy(height, width, device)
        pair = torch.randint(0, len(operation), (n,), generator=generator, device=device)
        done = torch.rand(n, 2, generator=generator, device=device) <= probability[pair]
        negative = torch.rand(n, 2, generator=generator, device=device) <= 0.5
        return {
            'operation': torch.where(done, operation[pair], IDENTITY),
            'magnitude': torch.where(negative & signed[pair], -magnitude[pair], magnitude[pair]),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        for slot, among in enumerate(AMONG):
            operation, magnitude = params['operation'][:, slot], params['magnitude'][:, slot]
            images = apply_operations(images, operation, magnitude, FILLING, among)
        return images

    def on_picture(self) -> v2.Transform:
        return v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=list(FILLING.colour))


@functools.cache
def _policy(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return operation, probability, magnitude and whether it has a sign, of every pair: each (25, 2)."""
    transform = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    space, pairs = transform._AUGMENTATION_SPACE, transform._policies
    magnitudes = {name: values(BINS, height, width) for name, (values, _) in space.items()}
    operation = torch.tensor([[NAMES.index(name) for name, _, _ in pair] for pair in pairs])
    probability = torch.tensor([[p for _, p, _ in pair] for pair in pairs])
    magnitude = torch.tensor(
        [[0.0 if level is None else float(magnitudes[name][level]) for name, _, level in pair] for pair in pairs]
    )
    signed = torch.tensor([[space[name][1] for name, _, _ in pair] for pair in pairs])
    tables = (operation, probability, magnitude, signed)
    return tuple(table.to(device) for table in tables)  # type: ignore[return-value]
