"""What a model is computed with for a while."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltzoo.gkpgsa import diagonal_fisher, estimated_statistics
from ltzoo.models.mode import full_precision

cudnn: Any = torch.backends.cudnn


def test_full_precision_is_for_a_while() -> None:
    before = cudnn.conv.fp32_precision
    with pytest.raises(KeyError), full_precision():
        assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == 'ieee'
        raise KeyError
    assert cudnn.conv.fp32_precision == before != 'ieee'


class Watched(nn.Module):
    """Takes note of the precision that it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.seen: list[str] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(cudnn.conv.fp32_precision)
        return F.relu(self.classifier(self.norm(images)))


def test_fisher_and_statistics_are_taken_in_full_precision() -> None:
    model = Watched()
    weights, batches = dict(model.named_parameters()), [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    estimated_statistics(model, weights, batches)
    diagonal_fisher(model, weights, batches)
    assert set(model.seen) == {'ieee'}
