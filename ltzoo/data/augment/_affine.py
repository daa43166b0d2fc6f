"""Shears, translations and rotations by nearest pixel, each image by its own amount, black where nothing is.

Images are uint8, (n, 3, H, W); an amount is float32, (n,). All of them sample with torchvision's inverse matrices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y']


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """Shear along the rows, by `amount` pixels a row from the top."""
    return _sample(images, 1.0, amount, amount * images.shape[2] / 2, 0.0, 1.0, 0.0)


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Shear along the columns, by `amount` pixels a column from the left."""
    return _sample(images, 1.0, 0.0, 0.0, amount, 1.0, amount * images.shape[3] / 2)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Move to the right by whole pixels."""
    return _sample(images, 1.0, 0.0, -pixels.trunc(), 0.0, 1.0, 0.0)


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Move down by whole pixels."""
    return _sample(images, 1.0, 0.0, 0.0, 0.0, 1.0, -pixels.trunc())


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise about the centre."""
    angle = -degrees * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _sample(images, cosine, sine, 0.0, -sine, cosine, 0.0)


def _on(images: Tensor, entry: Tensor | float) -> Tensor:
    # Filled in on the device: a copy from the host would wait for it.
    return entry if isinstance(entry, Tensor) else torch.full((), entry, device=images.device)


def _sample(images: Tensor, *matrix: Tensor | float) -> Tensor:
    """Take every pixel from where the 2 x 3 matrix, in pixels from the image's centre, says."""
    n, _, height, width = images.shape
    scales = (width / 2, width / 2, width / 2, height / 2, height / 2, height / 2)
    a, b, c, d, e, f = (
        _on(images, entry).expand(n).view(n, 1, 1) / scale for entry, scale in zip(matrix, scales, strict=True)
    )
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = (torch.arange(height, device=images.device) + (0.5 - height / 2)).view(-1, 1)
    grid = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3)
    return F.grid_sample(images.float(), grid, 'nearest', 'zeros', align_corners=False).to(torch.uint8)
