"""Checkpoints as other projects save them, and what becomes of them here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_networks import Check

import ltzoo
from ltzoo.hub.converted import export_converted
from ltzoo.models.checkpoints import Converted, convert


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Return a function that saves, converts, writes and loads a checkpoint, and compares logits with the network's."""

    def run(content: Any, family: str, logits: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> Converted:
        file = tmp_path / 'checkpoint.pth.tar'
        torch.save(content, file)
        converted = convert(file, family, **options)
        export_converted(converted, tmp_path / 'folder')
        model = ltzoo.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True).eval()
        torch.manual_seed(1)
        # Vision transformers take no other size than theirs.
        side = min(model.pretrained_cfg['input_size'][-1], 200 if family == 'timm' else 64)
        x = torch.randn(3, 3, side, side)
        with torch.no_grad():
            expected, got = logits(x), model(x)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 2e-6 * expected.abs().max()
        # The oracle itself must tell images and classes apart.
        assert expected.std(0).min() > 1e-4 * expected.abs().max()
        return converted

    return run
