"""Random crop of an image padded with black: the first augmentation of every CIFAR recipe (He et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ltzoo.data.augment.op import Op, Params, ViewError, register_op

__all__ = ['RandomCrop']


@register_op('random_crop')
@dataclass(frozen=True)
class RandomCrop(Op):
    """Pad by `padding` pixels of black on every side and cut a window out, anywhere.

    With `size` the window is a square of that side, out of the image resized so that its shorter side is as long:
    what is tested is then as large in the picture as what was trained on. Without it the window is as large as the
    image was, which an array says and a folder of files does not.
    """

    padding: int = 4
    size: int | None = None

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ViewError(f'random_crop: padding must be 0 or more pixels, not {self.padding}')
        if self.size is not None and self.size < 1:
            raise ViewError(f'random_crop: size must be 1 or more pixels, not {self.size}')

    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        out_height, out_width = self.output_size(height, width)
        height, width = self._resized(height, width)
        device = generator.device
        return {
            'top': torch.randint(
                0, height + 2 * self.padding - out_height + 1, (n,), generator=generator, device=device
            ),
            'left': torch.randint(
                0, width + 2 * self.padding - out_width + 1, (n,), generator=generator, device=device
            ),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        out_height, out_width = self.output_size(*images.shape[2:])
        if images.shape[2:] != self._resized(*images.shape[2:]):
            images = v2.functional.resize(images, list(self._resized(*images.shape[2:])), antialias=True)
        n, channels = images.shape[:2]
        padded = F.pad(images, (self.padding,) * 4)
        rows = params['top'][:, None] + torch.arange(out_height, device=images.device)
        columns = params['left'][:, None] + torch.arange(out_width, device=images.device)
        pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, pixels).view(n, channels, out_height, out_width)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size or height, self.size or width

    def on_picture(self) -> v2.Transform:
        if self.size is None:
            raise ViewError('random_crop: images from files need a size')
        return v2.Compose([v2.Resize(self.size, antialias=True), v2.RandomCrop(self.size, self.padding)])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width before padding, as torchvision rounds them."""
        if self.size is None:
            return height, width
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter
