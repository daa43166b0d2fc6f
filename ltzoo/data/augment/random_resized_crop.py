"""Random resized crop: a window of random area and shape, brought back to one size.

Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015, as torchvision draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment.op import Op, Params, ViewError, register_op

__all__ = ['RandomResizedCrop']

# A window that does not fit into the image is drawn again, this often, as torchvision does.
TRIES = 10


@register_op('random_resized_crop')
@dataclass(frozen=True)
class RandomResizedCrop(Op):
    """Crop and resize, bilinear with antialiasing.

    Args:
        size: side of the result in pixels; without it an array keeps its own height and width.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height.
    """

    enlarges: ClassVar[bool] = True

    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ViewError(f'random_resized_crop: size must be 1 or more pixels, not {self.size}')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ViewError(f'random_resized_crop: scale is two shares of the area such as [0.2, 1], not {self.scale}')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ViewError(f'random_resized_crop: ratio is a least and a greatest shape, not {self.ratio}')

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or height, self.size or width

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)

        area = height * width * uniform(*self.scale, n, TRIES)
        aspect = uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), n, TRIES).exp()
        widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        whole_height, whole_width = self._central(height, width)
        h = torch.where(found, heights.gather(1, first).squeeze(1), whole_height)
        w = torch.where(found, widths.gather(1, first).squeeze(1), whole_width)
        top = torch.where(found, (uniform(0, 1, n) * (height - h + 1)).floor(), (height - whole_height) // 2)
        left = torch.where(found, (uniform(0, 1, n) * (width - w + 1)).floor(), (width - whole_width) // 2)
        return {'top': top, 'left': left, 'height': h, 'width': w}

    def _central(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the window where no drawn one fits: the largest of an allowed shape."""
        if width < height * self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width > height * self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width

    def apply(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[2:]
        out_height, out_width = self.output_size(height, width)
        across = _resampling(params['left'], params['width'], width, out_width)
        down = _resampling(params['top'], params['height'], height, out_height)
        # torchvision rounds to whole grey levels between the two passes as well.
        columns = torch.matmul(images.float(), across.mT[:, None]).round_()
        return torch.matmul(down[:, None], columns).round_().clamp_(0, 255).to(torch.uint8)

    def on_picture(self) -> v2.Transform:
        if self.size is None:
            raise ViewError('random_resized_crop: images from files need a size')
        return v2.RandomResizedCrop(self.size, self.scale, self.ratio, antialias=True)


def _resampling(start: Tensor, length: Tensor, side: int, out: int) -> Tensor:
    """Return the weight of every input position for every output position of a window, shape (n, out, side).

    The filter is a triangle as wide as an output pixel is on the input, at least one pixel to either side.
    """
    scale = (length / out)[:, None, None]
    centre = start[:, None, None] + scale * (torch.arange(out, device=start.device)[:, None] + 0.5)
    position = torch.arange(side, device=start.device)
    weight = (1 - ((position + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp_(min=0)
    inside = (position >= start[:, None]) & (position < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)
