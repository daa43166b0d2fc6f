"""RandAugment: a number of operations at one strength.

Source: Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, NeurIPS 2020, as
timm has it, whose levels go from 0 to 10: n 2, m 10 and mstd 0.5 is what the code of BCL trains large data with.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from ltzoo.data.augment._affine import Filling
from ltzoo.data.augment._operations import IDENTITY, NAMES, apply_operations
from ltzoo.data.augment.op import Op, Params, ViewError, register_op

__all__ = ['RandAugment']

LEVELS = 10
# Beyond the edge lies the mean colour of ImageNet.
FILLING = Filling((124, 116, 104), bilinear=True)
# The share of a side that level 10 translates by.
TRANSLATION = 0.45


@register_op('rand_augment')
@dataclass(frozen=True)
class RandAugment(Op):
    """`n` of timm's 15 operations, one after the other, each done with probability 0.5.

    Images on the device are turned, sheared and moved with bilinear interpolation; files go through timm itself, which
    draws bilinear or bicubic.

    Args:
        m: level, of 0 to 10; colour and contrast are lowered by levels below 5 and raised by those above.
        mstd: standard deviation of the level, which is drawn anew for each and cut to 0 to 10.
    """

    n: int = 2
    m: float = 10
    mstd: float = 0.5

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.m <= LEVELS or self.mstd < 0:
            raise ViewError(
                f'rand_augment: n must be 1 or more, m 0 to {LEVELS} and mstd 0 or more, not n {self.n}, m {self.m}, '
                f'mstd {self.mstd}'
            )

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        device = generator.device
        operations, slopes, offsets, whole, signed = _space(height, width, device)
        draw = functools.partial(torch.rand, n, self.n, generator=generator, device=device)
        chosen = torch.randint(0, len(operations), (n, self.n), generator=generator, device=device)
        done = draw() <= 0.5
        negative = draw() <= 0.5
        noise = torch.randn(n, self.n, generator=generator, device=device)
        magnitude = slopes[chosen] * (self.m + self.mstd * noise).clamp_(0, LEVELS)
        magnitude = torch.where(whole[chosen], magnitude.floor(), magnitude) + offsets[chosen]
        # A threshold of solarisation is a share of 255.
        magnitude = torch.where(operations[chosen] == NAMES.index('Solarize'), magnitude / 255, magnitude)
        return {
            'operation': torch.where(done, operations[chosen], IDENTITY),
            'magnitude': torch.where(negative & signed[chosen], -magnitude, magnitude),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        for slot in range(self.n):
            images = apply_operations(images, params['operation'][:, slot], params['magnitude'][:, slot], FILLING)
        return images

    def on_picture(self) -> Callable[[Any], Any]:
        hparams = {'img_mean': FILLING.colour, 'magnitude_std': self.mstd, 'translate_pct': TRANSLATION}
        transform = rand_augment_transform(f'rand-n{self.n}', hparams)
        for operation in transform.ops:
            operation.magnitude = self.m
        return functools.partial(_drawn_from_pytorch, transform)


@functools.cache
def _space(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return of every operation its index, slope and offset of its magnitude, if it is whole and if it has a sign.

    The magnitude is slope x level + offset; a whole one is rounded down, and one with a sign gets it by chance.
    """
    blend, shear, side = (1.8 / LEVELS, -0.9), 0.3 / LEVELS, TRANSLATION / LEVELS
    space = {
        'AutoContrast': (0, 0, False, False),
        'Equalize': (0, 0, False, False),
        'Invert': (0, 0, False, False),
        'Rotate': (30 / LEVELS, 0, False, True),
        'Posterize': (4 / LEVELS, 0, True, False),
        'Solarize': (256 / LEVELS, 0, True, False),
        'SolarizeAdd': (110 / LEVELS, 0, True, False),
        **{name: (*blend, False, False) for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')},
        'ShearX': (shear, 0, False, True),
        'ShearY': (shear, 0, False, True),
        'TranslateX': (side * width, 0, False, True),
        'TranslateY': (side * height, 0, False, True),
    }
    slopes, offsets, whole, signed = map(list, zip(*space.values(), strict=True))
    tables = (torch.tensor([NAMES.index(name) for name in space]), torch.tensor(slopes, dtype=torch.float32),
              torch.tensor(offsets, dtype=torch.float32), torch.tensor(whole), torch.tensor(signed))  # fmt: skip
    return tuple(table.to(device) for table in tables)  # type: ignore[return-value]


def _drawn_from_pytorch(transform: Callable[[Any], Any], picture: Any) -> Any:
    """Call what draws from Python's and NumPy's global generators, so that PyTorch's decides; they are left alone."""
    python, numpy = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**32, ()))
    random.seed(seed)
    np.random.seed(seed)
    try:
        return transform(picture)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
