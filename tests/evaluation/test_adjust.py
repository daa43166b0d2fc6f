"""Logit adjustment and tau-normalisation after training, against their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ltzoo
from ltzoo.evaluation import EvaluationError, adjust_logits, tau_normalize
from ltzoo.evaluation.adjust import correct, trains_for_equal_classes
from ltzoo.losses import ObjectiveError
from ltzoo.models.lt_zoo import METHODS
from ltzoo.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / 'recipes' / 'cifar100_lt_r100'
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
    with pytest.raises(EvaluationError, match='tau must be a finite number'):
        tau_normalize(ltzoo.create_model('resnet8_cifar', num_classes=4), tau)


def test_shares_are_no_counts_and_leave_the_model_alone() -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    before = model.get_classifier().bias.clone()
    with pytest.raises(ObjectiveError, match='class_counts must be a tensor of whole numbers'):
        adjust_logits(model, COUNTS / 100)
    assert torch.equal(model.get_classifier().bias, before)


@pytest.mark.parametrize('tau', [0, 0.5, 1.0])
@pytest.mark.parametrize('name', ['resnet8_cifar', 'timm/test_vit'])
def test_logits_are_products_with_the_weights_over_tau_powers_of_their_norms(name: str, tau: float) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model(name, num_classes=4).eval()
    images = torch.randn(3, *model.pretrained_cfg['input_size'])
    with torch.no_grad():
        model.get_classifier().weight *= torch.tensor([[3.0], [1.0], [0.5], [2.0]])
        model.get_classifier().bias += torch.tensor([5.0, 0.0, -1.0, 1.0])
        weights = model.get_classifier().weight.clone()
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        assert tau_normalize(model, tau) is model
        after = model(images)
    expected = torch.stack([features @ w / w.square().sum().sqrt() ** tau for w in weights], dim=1)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_a_linear_classifier_without_a_bias_is_normalised_too() -> None:
    model = ltzoo.create_model('timm/test_vit', num_classes=4)
    model.head = nn.Linear(model.head.in_features, 4, bias=False)
    tau_normalize(model)
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ('name', 'options', 'kind'),
    [
        ('resnet8_cifar', {'head': 'cosine', 'num_classes': 4}, 'CosineLinear'),
        ('resnet8_cifar', {'num_classes': 0}, 'Identity'),
        ('resnet32_cifar_experts', {'num_experts': 2, 'head': 'linear', 'num_classes': 4}, 'ExpertLinear'),
    ],
)
def test_only_a_linear_layer_is_normalised(name: str, options: dict[str, Any], kind: str) -> None:
    with pytest.raises(EvaluationError, match=f'tau-normalisation needs a linear classifier; that of .* is {kind}'):
        tau_normalize(ltzoo.create_model(name, **options))


def test_a_class_without_weights_is_named_and_the_model_left_alone() -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    with torch.no_grad():
        model.get_classifier().weight[2] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(EvaluationError, match='weights of class 2 are all zero'):
        tau_normalize(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_method_of_the_zoo_but_two_needs_no_correction() -> None:
    recipes = {name: load_recipe(RECIPES / f'{name}.yaml').decides_result() for name in METHODS}
    assert [name for name, recipe in recipes.items() if not trains_for_equal_classes(recipe)] == ['ce', 'focal']


@pytest.mark.parametrize(
    ('recipe', 'tau', 'told'),
    [
        ({'objective': {'name': 'ce'}}, 1.0, None),
        ({'objective': {'name': 'ce'}}, -1.0, 'classes as frequent as in its training (ce)'),
        ({'objective': {'name': 'logit_adjusted'}}, -1.0, None),
        ({'objective': {'name': 'logit_adjusted'}}, 1.0, 'equally frequent classes (logit_adjusted)'),
        ({'objective': {'name': 'ce'}, 'retraining': {'start_epoch': 3}}, -0.5, None),
        # Of a part that is registered elsewhere nothing is known.
        ({'objective': {'name': 'their own'}}, 1.0, None),
        ({'objective': {'name': 'their own'}}, -1.0, None),
        ({}, 1.0, None),
    ],
)
def test_who_needs_no_correcting_is_told(
    recipe: dict[str, Any], tau: float, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    training: Any = SimpleNamespace(name='net', lt={'recipe': recipe, 'class_counts': COUNTS.tolist()})
    before = model.get_classifier().bias.clone()
    correct(model, training, tau=tau)
    assert caplog.messages == ([] if told is None else [f'net was trained for {told}: it needs no correcting'])
    prior = torch.tensor([0.7, 0.25, 0.04, 0.01]).log()
    torch.testing.assert_close(model.get_classifier().bias, before - tau * prior)
