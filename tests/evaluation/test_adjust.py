"""Logit adjustment after training, against the formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import ltzoo
from ltzoo.evaluation import EvaluationError, adjust_logits
from ltzoo.losses import ObjectiveError

COUNTS = torch.tensor([70, 25, 4, 1])


@pytest.mark.parametrize('tau', [0, 0.5, 1.0])
@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('resnet8_cifar', {}),
        ('timm/test_vit', {}),
        # The mean of several classifiers.
        ('resnet32_cifar_experts', {'num_experts': 2, 'head': 'linear'}),
    ],
)
def test_logits_lose_tau_log_prior(name: str, options: dict[str, Any], tau: float) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model(name, num_classes=4, **options).eval()
    images = torch.randn(3, *model.pretrained_cfg['input_size'])
    with torch.no_grad():
        before = model(images)
        assert adjust_logits(model, COUNTS, tau) is model
        after = model(images)
    expected = before - tau * torch.tensor([math.log(n / 100) for n in (70, 25, 4, 1)])
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ltzoo.create_model('resnet8_cifar', num_classes=5), r'of 4 classes.*Linear, has a bias of shape .5,'),
        (lambda: ltzoo.create_model('resnet8_cifar', num_classes=0), 'Identity, has no bias'),
        (lambda: ltzoo.create_model('resnet8_cifar', head='cosine', num_classes=4), 'CosineLinear, has no bias'),
        (lambda: nn.Linear(3, 4), 'that of Linear, none, has no bias'),
    ],
)  # fmt: skip
def test_classifiers_without_a_bias_of_every_class_are_refused(make: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        adjust_logits(make(), COUNTS)


@pytest.mark.parametrize('tau', [math.nan, math.inf])
def test_a_strength_that_is_no_number_is_refused(tau: float) -> None:
    with pytest.raises(EvaluationError, match='tau must be a finite number'):
        adjust_logits(ltzoo.create_model('resnet8_cifar', num_classes=4), COUNTS, tau)


def test_shares_are_no_counts_and_leave_the_model_alone() -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    before = model.get_classifier().bias.clone()
    with pytest.raises(ObjectiveError, match='class_counts must be a tensor of whole numbers'):
        adjust_logits(model, COUNTS / 100)
    assert torch.equal(model.get_classifier().bias, before)
