"""Evaluation mode, or full precision, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ['evaluating', 'full_precision']


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and give every module its own flag back: some may be frozen in it."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def full_precision() -> Iterator[None]:
    """Let convolutions of float32 compute in float32 on a GPU, too, whose default is TF32, with ten bits."""
    cudnn: Any = torch.backends.cudnn
    # From 2.9 on PyTorch has a setting for each kind of operator, and `allow_tf32` cannot be read where these differ.
    apart = hasattr(cudnn, 'conv')
    parts, key, full = ((cudnn.conv, cudnn.rnn), 'fp32_precision', 'ieee') if apart else ((cudnn,), 'allow_tf32', False)
    before = [getattr(part, key) for part in parts]
    for part in parts:
        setattr(part, key, full)
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, key, value)
