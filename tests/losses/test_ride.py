"""RIDE's loss against its formula in float64, sample by sample and expert by expert."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltzoo
from ltzoo.losses import RIDE, ObjectiveError, class_balanced_weights, create_objective
from ltzoo.models.heads import ExpertLinear

COUNTS = torch.tensor([500, 100, 16, 5])
LABELS = torch.tensor([0, 3, 2, 1, 3])


class Fixed(nn.Module):
    """Experts that return the logits they are made with, shape (B, experts, C)."""

    num_classes = 4

    def __init__(self, logits: Tensor, scale: float = 30.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.fc = ExpertLinear(2 * logits.shape[1], 4, logits.shape[1], 'cosine', scale)
        self.fc._expert_logits = lambda features: self.logits  # type: ignore[method-assign]

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        assert pre_logits
        return x


def softmax(row: list[float], temperatures: list[float]) -> list[float]:
    powers = [math.exp(value / t) for value, t in zip(row, temperatures, strict=True)]
    return [power / sum(powers) for power in powers]


def expected(
    logits: list[list[float]], label: int, *, late: bool, scale: float, spread: float, diversity: float
) -> float:
    counts = COUNTS.tolist()
    weight = class_balanced_weights(COUNTS)[label].item() if late else 1.0
    # C n_c / sum n, moved towards 1, and scaled so that the largest is 1.
    raised = [len(counts) * n / sum(counts) * spread + 1 - spread for n in counts]
    temperatures = [value / max(raised) for value in raised] if late else [1.0] * 4
    mean = softmax([sum(expert[c] for expert in logits) / len(logits) for c in range(4)], temperatures)
    total = 0.0
    for expert in logits:
        margin = 0.4 * (min(counts) / counts[label]) ** 0.25
        own = [value - (scale * margin if c == label else 0) for c, value in enumerate(expert)]
        total += weight * -math.log(softmax(own, [1.0] * 4)[label])
        predicted = softmax(expert, temperatures)
        distance = sum(p * math.log(p / q) for p, q in zip(mean, predicted, strict=True))
        total -= diversity * (sum(temperatures) / 4) ** 2 * distance
    return total


@pytest.mark.parametrize(('spread', 'diversity'), [(0.05, 0.2), (0.5, 1.0), (0, 0)])
@pytest.mark.parametrize('experts', [1, 3])
def test_it_is_its_formula_early_and_late(experts: int, spread: float, diversity: float) -> None:
    torch.manual_seed(0)
    logits = 16 * torch.rand(5, experts, 4, dtype=torch.float64) - 8
    model = Fixed(logits, 16.0)
    options = {'temperature_spread': spread, 'diversity': diversity, 'reweighting_epoch': 3, 'max_margin': 0.4}
    objective = create_objective('ride', model, COUNTS, **options)
    for epoch, late in ((0, False), (2, False), (3, True), (7, True), (1, False)):
        objective.start_epoch(epoch)
        losses = objective(model, (torch.zeros(5, 1),), LABELS)
        for loss, rows, label in zip(losses.tolist(), logits.tolist(), LABELS.tolist(), strict=True):
            known = expected(rows, label, late=late, scale=16, spread=spread, diversity=diversity)
            assert loss == pytest.approx(known, rel=1e-6)


def test_every_expert_is_pushed_away_from_the_mean() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 4, dtype=torch.float64)
    gradients = []
    for diversity in (0.0, 1.0):
        model = Fixed(logits)
        objective = create_objective('ride', model, COUNTS, reweighting_epoch=3, diversity=diversity)
        objective(model, (torch.zeros(1, 1),), torch.tensor([2])).sum().backward()
        gradients.append(model.logits.grad)
    # Of minus the divergence of a fixed mean from an expert: what the mean says less what the expert says.
    pushed = logits.mean(1, keepdim=True).softmax(-1) - logits.softmax(-1)
    torch.testing.assert_close(gradients[1] - gradients[0], pushed)


def test_it_goes_with_the_network_of_its_recipe_and_trains_it() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet32_cifar_ride', num_classes=4, layers=[1, 1, 1])
    objective = create_objective('ride', model, COUNTS, reweighting_epoch=3)
    assert isinstance(objective, RIDE)
    assert objective.margins[-1] == 15 and not list(objective.parameters()) and not objective.state_dict()
    with torch.autocast('cpu', torch.bfloat16):
        losses = objective(model, (torch.randn(5, 3, 8, 8),), LABELS)
    assert losses.shape == (5,) and losses.dtype == torch.float32
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'max_margin': -0.1}, 'max_margin must be 0 or more, not -0.1'),
        ({'diversity': -0.2}, 'diversity must be 0 or more, not -0.2'),
        ({'temperature_spread': 1}, 'temperature_spread must be 0 or more and below 1, not 1'),
        ({'temperature_spread': -0.1}, 'temperature_spread must be 0 or more and below 1, not -0.1'),
        ({'reweighting_epoch': 2.5}, 'reweighting_epoch must be a whole number of 0 or more, not 2.5'),
        ({'reweighting_epoch': -1}, 'reweighting_epoch must be a whole number of 0 or more, not -1'),
        ({'beta': 1}, 'beta must be 0 or more and below 1, not 1'),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        create_objective('ride', Fixed(torch.zeros(1, 2, 4)), COUNTS, **{'reweighting_epoch': 3, **option})


@pytest.mark.parametrize(
    ('model', 'kind'),
    [
        ({'name': 'resnet8_cifar', 'head': 'cosine'}, 'CosineLinear'),
        ({'name': 'resnet32_cifar_ride', 'head': 'linear'}, 'ExpertLinear, with linear ones'),
    ],
)
def test_networks_without_experts_or_cosines_are_refused(model: dict[str, Any], kind: str) -> None:
    with pytest.raises(ObjectiveError, match=f'trains several experts with cosine heads.* is {kind}$'):
        create_objective('ride', ltzoo.create_model(**model, num_classes=4), COUNTS, reweighting_epoch=3)
