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
# Before 2.9 PyTorch has one setting for all operators.
FULL: tuple[Any, ...] = ('ieee', 'ieee') if hasattr(cudnn, 'conv') else (False,)


def precision() -> tuple[Any, ...]:
    return (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) if hasattr(cudnn, 'conv') else (cudnn.allow_tf32,)


def test_full_precision_is_for_a_while() -> None:
    before = precision()
    with pytest.raises(KeyError), full_precision():
        assert precision() == FULL
        raise KeyError
    assert precision() == before != FULL


class Watched(nn.Module):
    """Takes note of the precision that it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.seen: list[tuple[Any, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(precision())
        return F.relu(self.classifier(self.norm(images)))


def test_fisher_and_statistics_are_taken_in_full_precision() -> None:
    model = Watched()
    weights, batches = dict(model.named_parameters()), [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    estimated_statistics(model, weights, batches)
    diagonal_fisher(model, weights, batches)
    assert set(model.seen) == {FULL}
