"""How a model wants its images: size, mean, deviation, crop."""

from __future__ import annotations

from typing import Any

from torch import nn

try:
    from timm.data import resolve_input_data_config as _resolve
except ImportError:
    # Before timm 1.0.31, which a machine without a network may have: the same for images of three channels.
    from timm.data import resolve_model_data_config as _resolve

__all__ = ['input_config']


def input_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's `input_size` (channels, height, width), `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`."""
    config: dict[str, Any] = _resolve(model)
    return config
