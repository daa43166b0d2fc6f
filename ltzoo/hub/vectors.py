"""Test vectors: images and logits that lie beside a model and show that it is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_input_data_config
from torch import Tensor, nn

from ltzoo.errors import LtzooError, one_line

__all__ = ['LOGIT_TOLERANCE', 'VerificationError', 'check_vectors', 'logit_difference', 'make_vectors']

# The most that rounding, on another machine or by another runtime, may make of `logit_difference`.
LOGIT_TOLERANCE = 1e-4


class VerificationError(LtzooError, ValueError):
    """A model that is not what its results say."""


@torch.inference_mode()
def make_vectors(model: nn.Module) -> dict[str, Tensor]:
    """Return images of noise, normalised as the model wants them, and its logits.

    Args:
        model: in evaluation mode, on the CPU.

    Returns:
        `images` (N, 3, H, W) and `logits` (N, C), float32; N is 4 for images of up to 64 pixels, else 1.
    """
    cfg = resolve_input_data_config(model)
    channels, height, width = cfg['input_size']
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4 if height <= 64 else 1, channels, height, width, generator=generator)
    mean, std = (torch.tensor(cfg[key]).view(1, -1, 1, 1) for key in ('mean', 'std'))
    images = (images - mean) / std
    return {'images': images, 'logits': model(images)}


@torch.inference_mode()
def check_vectors(model: Any, vectors: Path, name: str) -> float:
    """Return how far a model's logits are from stored ones, relative to the largest of them.

    Raises:
        VerificationError: if they differ by more than rounding.
    """
    try:
        stored = load_file(vectors)
        logits, wanted = model(stored['images']), stored['logits']
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise VerificationError(f'{vectors} is damaged, or not of {name}: {one_line(error)}') from error
    if logits.shape != wanted.shape:
        raise VerificationError(f'{name} gives logits of shape {tuple(logits.shape)}, stored are {tuple(wanted.shape)}')
    difference = logit_difference(logits, wanted)
    if not difference <= LOGIT_TOLERANCE:
        raise VerificationError(
            f'{name} gives other logits than those stored with it: off by {difference:.1e} of the largest'
        )
    return difference


def logit_difference(logits: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of a logit, relative to the largest of those wanted."""
    return float((logits - wanted).abs().max() / wanted.abs().max())
