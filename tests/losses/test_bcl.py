"""Balanced contrastive learning against a slow, plain reference in float64, alone and on two processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import of_both

import ltzoo
from ltzoo.losses import ObjectiveError, balanced_contrastive_loss, create_objective
from ltzoo.losses.bcl import BCL


def reference(features: Tensor, labels: list[int], prototypes: Tensor, temperature: float) -> Tensor:
    """Zhu et al. 2022, written out item by item."""
    contrast = [*features, *prototypes]
    classes = [*labels, *range(len(prototypes))]
    losses = []
    for i, anchor in enumerate(features):
        positives = [k for k in range(len(contrast)) if k != i and classes[k] == classes[i]]
        denominator = torch.zeros((), dtype=features.dtype)
        for k, item in enumerate(contrast):
            if k == i:
                continue
            in_class = sum(c == classes[k] for c in classes) - (1 if k in positives else 0)
            denominator = denominator + (anchor @ item / temperature).exp() / in_class
        terms = [-((anchor @ contrast[k] / temperature).exp() / denominator).log() for k in positives]
        losses.append(sum(terms, torch.zeros((), dtype=features.dtype)) / len(positives))
    return torch.stack(losses)


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1).requires_grad_()


@pytest.mark.parametrize(
    'labels',
    [[0, 0, 0, 1, 2, 2] * 2, [3] * 8, [0, 1, 2, 3, 4, 5] * 2, [4, 0] * 2],
    ids=['long-tailed', 'one class', 'every class once', 'classes absent'],
)
@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_equals_the_reference(labels: list[int], temperature: float) -> None:
    features, prototypes = unit(len(labels), 5, seed=0), unit(6, 5, seed=1)
    fast = balanced_contrastive_loss(features, torch.tensor(labels), prototypes, temperature)
    slow = reference(features, labels, prototypes, temperature)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weights = torch.arange(1.0, len(labels) + 1, dtype=torch.float64)
    fast_gradients = torch.autograd.grad(fast @ weights, (features, prototypes))
    slow_gradients = torch.autograd.grad(slow @ weights, (features, prototypes))
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_tiny_temperatures_stay_finite() -> None:
    features, prototypes = unit(6, 5, seed=0).float(), unit(3, 5, seed=1).float()
    assert balanced_contrastive_loss(features, torch.tensor([0, 1, 2] * 2), prototypes, 1e-3).isfinite().all()


@pytest.fixture
def learned() -> Iterator[tuple[torch.nn.Module, BCL, tuple[Tensor, ...], Tensor]]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet20_cifar', num_classes=5, head='cosine')
    objective = create_objective('bcl', model, torch.tensor([50, 20, 5, 2, 1]), hidden_dim=16, out_dim=8)
    views = tuple(torch.randn(6, 3, 8, 8) for _ in range(3))
    yield model, objective, views, torch.tensor([0, 0, 1, 2, 0, 4])  # type: ignore[misc]
    torch.set_default_dtype(torch.float32)


def test_the_objective_is_the_papers_sum(learned: tuple[torch.nn.Module, BCL, tuple[Tensor, ...], Tensor]) -> None:
    model, objective, views, labels = learned
    losses = objective(model, views, labels)

    features = model.forward_head(model.forward_features(torch.cat(views)), pre_logits=True)  # type: ignore[operator]
    weight = model.get_classifier().weight  # type: ignore[operator]
    cosine = F.normalize(features[:6], dim=1) @ F.normalize(weight, dim=1).T
    prior = torch.tensor([50, 20, 5, 2, 1]) / 78
    ce = torch.tensor(
        [
            -math.log(prior[y] * math.exp(30 * row[y]) / sum(prior[c] * math.exp(30 * row[c]) for c in range(5)))
            for row, y in zip(cosine.detach(), labels, strict=True)
        ]
    )
    projected = F.normalize(objective.feature_head(features[6:]), dim=1)
    prototypes = F.normalize(objective.prototype_head(weight), dim=1)
    contrastive = reference(projected, [*labels.tolist()] * 2, prototypes, 0.1)
    expected = 2.0 * ce + 0.6 * (contrastive[:6] + contrastive[6:]) / 2
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)


def test_shares_are_those_of_the_first_view_alone(
    learned: tuple[torch.nn.Module, BCL, tuple[Tensor, ...], Tensor],
) -> None:
    model, objective, views, labels = learned
    shares = F.one_hot(torch.tensor([1, 0, 1, 4, 3, 4]), 5) * 0.25 + F.one_hot(labels, 5) * 0.75
    logits = model.get_classifier()(model.forward_head(model.forward_features(torch.cat(views)), pre_logits=True)[:6])
    of_classes = -(logits + (torch.tensor([50, 20, 5, 2, 1]) / 78).log()).log_softmax(1)
    expected = objective(model, views, labels) + 2.0 * (of_classes * (shares - F.one_hot(labels, 5))).sum(1)
    torch.testing.assert_close(objective(model, views, labels, shares), expected, rtol=0, atol=1e-10)


def test_parameters_of_the_published_model() -> None:
    model = ltzoo.create_model('resnet32_cifar_bcl.cifar100_lt_r100')
    objective = create_objective('bcl', model, torch.arange(1, 101))
    assert sum(p.numel() for p in [*model.parameters(), *objective.parameters()]) == 669_840


def test_half_precision_is_finite_and_close() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet20_cifar', num_classes=5, head='cosine')
    objective = create_objective('bcl', model, torch.tensor([50, 20, 5, 2, 1]))
    views = tuple(torch.randn(32, 3, 8, 8) for _ in range(3))
    labels = torch.arange(32) % 5
    full = objective(model, views, labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = objective(model, views, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(full.mean(), half.mean(), rtol=0.05, atol=0)


def test_similarities_are_not_rounded_to_half_precision() -> None:
    features, prototypes = unit(12, 5, seed=0).float(), unit(6, 5, seed=1).float()
    labels = torch.arange(12) % 6
    full = balanced_contrastive_loss(features, labels, prototypes)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = balanced_contrastive_loss(features, labels, prototypes)
    assert torch.equal(half, full)


@pytest.mark.parametrize(
    ('option', 'value', 'right'),
    [
        ('hidden_dim', 0, 'a whole number of 1 or more'),
        ('out_dim', 1.5, 'a whole number of 1 or more'),
        ('contrastive_weight', -1, '0 or more'),
        ('temperature', 0, 'more than 0'),
    ],
)
def test_values_out_of_range_are_refused(option: str, value: float, right: str) -> None:
    model = ltzoo.create_model('resnet20_cifar', num_classes=5)
    with pytest.raises(ObjectiveError, match=f'{option} must be {right}, not {value}'):
        create_objective('bcl', model, torch.ones(5, dtype=torch.int64), **{option: value})


def test_a_classifier_without_class_vectors_is_refused() -> None:
    model = ltzoo.create_model('resnet20_cifar', num_classes=0)
    with pytest.raises(ObjectiveError, match='takes its prototypes from the class vectors'):
        create_objective('bcl', model, torch.ones(5, dtype=torch.int64))


def _local_loss(rank: int) -> tuple[float, list[Any], list[Any]]:
    # Of what PyTorch is about to drop.
    warnings.simplefilter('error', FutureWarning)
    features, prototypes = unit(8, 5, seed=0).detach(), unit(6, 5, seed=1).detach().requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 3, 0, 0, 5])
    mine = features[rank * 4 : rank * 4 + 4].requires_grad_()
    loss = balanced_contrastive_loss(mine, labels[rank * 4 : rank * 4 + 4], prototypes).mean()
    loss.backward()
    assert mine.grad is not None and prototypes.grad is not None
    return loss.item(), mine.grad.tolist(), prototypes.grad.tolist()


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    shares = of_both(_local_loss, tmp_path)
    features, prototypes = unit(8, 5, seed=0).detach().requires_grad_(), unit(6, 5, seed=1).detach().requires_grad_()
    whole = balanced_contrastive_loss(features, torch.tensor([0, 0, 1, 2, 3, 0, 0, 5]), prototypes).mean()
    whole.backward()
    assert sum(share[0] for share in shares) / 2 == pytest.approx(whole.item(), abs=1e-12)
    # DistributedDataParallel averages what the processes have.
    local = torch.tensor(shares[0][1] + shares[1][1], dtype=torch.float64) / 2
    torch.testing.assert_close(local, features.grad, rtol=0, atol=1e-10)
    shared = torch.tensor([share[2] for share in shares], dtype=torch.float64).mean(0)
    torch.testing.assert_close(shared, prototypes.grad, rtol=0, atol=1e-10)
