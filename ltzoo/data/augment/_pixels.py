"""Changes of colour and brightness, each image by its own amount, as torchvision computes them on uint8 tensors.

Images are uint8, (n, 3, H, W); an amount is float32, (n,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'adjust_brightness',
    'adjust_contrast',
    'adjust_hue',
    'adjust_saturation',
    'adjust_sharpness',
    'autocontrast',
    'equalize',
    'grey',
    'invert',
    'posterize',
    'solarize',
    'solarize_add',
]


def _per_image(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share * images + (1 - share) * other, cut to 0..255 and down to whole levels."""
    share = _per_image(share)
    return torch.addcmul(other * (1 - share), images.float(), share).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return the luminance (ITU-R 601-2) in whole levels, as float32 of shape (n, 1, H, W)."""
    red, green, blue = images.float().unbind(1)
    return red.mul_(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.float().mul_(_per_image(factor)).clamp_(0, 255).to(torch.uint8)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, grey(images), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3 x 3 blur; the border of one pixel stays as it is."""
    if min(images.shape[2:]) <= 2:
        return images
    sharp = images.float()
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1].fill_(5 / 13)
    blurred = F.conv2d(sharp, kernel, groups=3).round_()
    inner = sharp[:, :, 1:-1, 1:-1]
    inner.add_((blurred - inner) * (1 - _per_image(factor)))
    return sharp.clamp_(0, 255).to(torch.uint8)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, -0.5 to 0.5; value and chroma stay.

    In hexcone coordinates, with h the hue in sixths of the circle, a channel is the least of the three plus the chroma
    times a trapezium of h: |h - 3| - 1 for red, 2 - |h - 2| for green, 2 - |h - 4| for blue, each cut to 0..1.
    """
    red, green, blue = (images.float() * (1 / 255)).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    per_chroma = chroma.clamp(min=1e-9).reciprocal_()
    sixths = torch.where(
        value == red,
        (green - blue).mul_(per_chroma),
        torch.where(
            value == green,
            (blue - red).mul_(per_chroma).add_(2),
            (red - green).mul_(per_chroma).add_(4),
        ),
    )
    sixths.add_(shift.view(-1, 1, 1) * 6)
    sixths.sub_((sixths * (1 / 6)).floor_().mul_(6))
    out = torch.empty(images.shape, device=images.device)
    for channel, (peak, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (sixths - peak).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(least, chroma, share, out=out[:, channel])
    # torchvision scales to just below 256 and cuts, so that every level is equally wide.
    return out.mul_(255.999).to(torch.uint8)


def invert(images: Tensor) -> Tensor:
    return images.bitwise_not()


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the given number of leading bits of every value."""
    dropped = 8 - bits.to(torch.int32)
    mask = (torch.full_like(dropped, 255) >> dropped << dropped).to(torch.uint8)
    return images & _per_image(mask)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values from the threshold (0..255) upwards."""
    return torch.where(images >= _per_image(threshold), images.bitwise_not(), images)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Add to the values below 128."""
    added = (images.int() + _per_image(amount.to(torch.int32))).clamp_(0, 255).to(torch.uint8)
    return torch.where(images < 128, added, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to 0..255; a channel of one value stays."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return values.sub_(torch.where(flat, 0.0, low)).div_(scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram of every channel by Pillow's table; a channel of too few values stays."""
    values = images.flatten(2).long()
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    cumulative = histogram.cumsum(2)
    # The number of pixels that are not of the channel's largest value, over the 255 steps of the table.
    last = histogram.gather(2, cumulative.argmax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = cumulative - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.to(torch.uint8).gather(2, values).view_as(images)
