"""Shears, translations and rotations, each image by its own amount.

Images are uint8, (n, 3, H, W); an amount is float32, (n,). All of them sample with torchvision's inverse matrices.
Pixels are the nearest ones, or between them (`bilinear`); where nothing is, they have a colour, of 0 to 255.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['Filling', 'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y']


@dataclass(frozen=True)
class Filling:
    """How pixels are taken that do not lie on the grid, and what is beyond the edge."""

    colour: tuple[int, int, int]
    bilinear: bool = False


def shear_x(images: Tensor, amount: Tensor, filling: Filling) -> Tensor:
    """Shear along the rows, by `amount` pixels a row from the top."""
    return _sample(images, filling, 1.0, amount, amount * images.shape[2] / 2, 0.0, 1.0, 0.0)


def shear_y(images: Tensor, amount: Tensor, filling: Filling) -> Tensor:
    """Shear along the columns, by `amount` pixels a column from the left."""
    return _sample(images, filling, 1.0, 0.0, 0.0, amount, 1.0, amount * images.shape[3] / 2)


def translate_x(images: Tensor, pixels: Tensor, filling: Filling) -> Tensor:
    """Move to the right, by whole pixels where none are mixed."""
    return _sample(images, filling, 1.0, 0.0, -_moved(pixels, filling), 0.0, 1.0, 0.0)


def translate_y(images: Tensor, pixels: Tensor, filling: Filling) -> Tensor:
    """Move down, by whole pixels where none are mixed."""
    return _sample(images, filling, 1.0, 0.0, 0.0, 0.0, 1.0, -_moved(pixels, filling))


def _moved(pixels: Tensor, filling: Filling) -> Tensor:
    return pixels if filling.bilinear else pixels.trunc()


def rotate(images: Tensor, degrees: Tensor, filling: Filling) -> Tensor:
    """Turn counter-clockwise about the centre."""
    angle = -degrees * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _sample(images, filling, cosine, sine, 0.0, -sine, cosine, 0.0)


def _on(images: Tensor, entry: Tensor | float) -> Tensor:
    # Filled in on the device: a copy from the host would wait for it.
    return entry if isinstance(entry, Tensor) else torch.full((), entry, device=images.device)


def _sample(images: Tensor, filling: Filling, *matrix: Tensor | float) -> Tensor:
    """Take every pixel from where the 2 x 3 matrix, in pixels from the image's centre, says."""
    n, _, height, width = images.shape
    scales = (width / 2, width / 2, width / 2, height / 2, height / 2, height / 2)
    a, b, c, d, e, f = (
        _on(images, entry).expand(n).view(n, 1, 1) / scale for entry, scale in zip(matrix, scales, strict=True)
    )
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = (torch.arange(height, device=images.device) + (0.5 - height / 2)).view(-1, 1)
    grid = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3)
    # What lies beyond the edge is zero: the distance from the colour that is to be there.
    colour = _colour(filling.colour, images.device)
    mode = 'bilinear' if filling.bilinear else 'nearest'
    taken = F.grid_sample(images.float().sub_(colour), grid, mode, 'zeros', align_corners=False).add_(colour)
    return (taken.round_() if filling.bilinear else taken).to(torch.uint8)


@functools.cache
def _colour(colour: tuple[int, int, int], device: torch.device) -> Tensor:
    # Kept on the device: making it anew would be a copy that the host waits for.
    return torch.tensor(colour, dtype=torch.float32, device=device).view(1, 3, 1, 1)
