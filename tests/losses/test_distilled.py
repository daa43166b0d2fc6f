"""Distillation against the formula written out, and what becomes of the teachers."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltzoo
from ltzoo.losses import Distilled, ObjectiveError, create_objective, teacher_names

COUNTS = torch.tensor([90, 9, 1])
OF_100 = torch.arange(1, 101)


class Times(nn.Module):
    """A model whose logits are its input, times a factor."""

    num_classes = 3

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.fixture
def of_three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ltzoo.losses.distilled.create_model', lambda name, pretrained: Times(float(name)))


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def by_hand(logits: list[float], target: list[float], share: float, temperature: float) -> float:
    """With teachers that say twice and minus once what the network says."""
    says = softmax(logits, temperature)
    taught = [softmax([factor * z for z in logits], temperature) for factor in (2.0, -1.0)]
    mean = [(one + other) / 2 for one, other in zip(*taught, strict=True)]
    divergence = sum(p * math.log(p / q) for p, q in zip(mean, says, strict=True))
    adjusted = softmax([z + math.log(n / 100) for z, n in zip(logits, (90, 9, 1), strict=True)], 1)
    from_labels = -sum(t * math.log(q) for t, q in zip(target, adjusted, strict=True))
    return share * temperature**2 * divergence + (1 - share) * from_labels


@pytest.mark.usefixtures('of_three_classes')
@pytest.mark.parametrize(('share', 'temperature'), [(0.9, 2.0), (0.3, 1.0), (1.0, 4.0)])
@pytest.mark.parametrize('mixed', [False, True])
def test_equals_the_formula(share: float, temperature: float, mixed: bool) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 3
        labels = torch.tensor([0, 1, 2, 2, 1, 0, 0])
        options = {'teachers': ['2.0', '-1.0'], 'share': share, 'temperature': temperature}
        objective = create_objective('distilled', Times(), COUNTS, **options)
        shares = torch.softmax(logits.flip(0), 1) if mixed else nn.functional.one_hot(labels, 3).double()
        losses = objective(Times(), (logits,), labels, *((shares,) if mixed else ()))
    finally:
        torch.set_default_dtype(torch.float32)
    pairs = zip(logits.tolist(), shares.tolist(), strict=True)
    expected = [by_hand(row, target, share, temperature) for row, target in pairs]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.usefixtures('of_three_classes')
def test_the_network_alone_learns_and_has_nothing_to_learn_from_one_that_says_the_same() -> None:
    model = Times(0.5)
    views, labels = (torch.randn(6, 3),), torch.tensor([0, 1, 2] * 2)
    objective: Any = create_objective('distilled', model, COUNTS, teachers='0.5', share=1.0)
    objective(model, views, labels).sum().backward()
    assert model.factor.grad is not None
    torch.testing.assert_close(model.factor.grad, torch.tensor(0.0), rtol=0, atol=1e-6)
    model.zero_grad()
    objective = create_objective('distilled', model, COUNTS, teachers='2.0', share=1.0)
    objective(model, views, labels).sum().backward()
    # Towards the larger factor.
    assert model.factor.grad < 0
    assert all(p.grad is None for p in objective.teachers['2.0'].parameters())


@pytest.mark.usefixtures('of_three_classes')
def test_extreme_logits_and_half_precision_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]]).to(torch.bfloat16)
    model = Times(-1.0).to(torch.bfloat16)
    losses = create_objective('distilled', model, COUNTS, teachers=['1.0', '2.0'])(model, (logits,), torch.tensor([1]))
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


def test_teachers_are_moved_with_the_objective_and_are_no_part_of_its_state() -> None:
    model = ltzoo.create_model('resnet20_cifar', num_classes=100)
    objective: Any = create_objective('distilled', model, OF_100, teachers=['resnet32_cifar_bcl', 'resnet32_cifar_bs'])
    objective.feed((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert not list(objective.parameters())
    assert not objective.state_dict()
    taught = objective.teach(torch.ones(2, 3, 32, 32))
    torch.testing.assert_close(taught.exp().sum(1), torch.ones(2))
    copied = copy.deepcopy(objective).train().double()
    # Batch-norm goes by what it has seen, in a training, too.
    torch.testing.assert_close(
        copied.teach(torch.ones(2, 3, 32, 32, dtype=torch.float64)), taught.double(), rtol=0, atol=1e-4
    )
    assert objective.teach(torch.ones(1, 3, 32, 32)).dtype == torch.float32


def test_teachers_are_fed_as_they_were() -> None:
    objective: Any = create_objective('distilled', nn.Identity(), OF_100, teachers='resnet32_cifar_bcl')
    pixels = torch.rand(2, 3, 32, 32)
    (teacher,) = objective.teachers.values()
    mean, std = (torch.tensor(teacher.pretrained_cfg[key])[:, None, None] for key in ('mean', 'std'))
    normalised = (pixels - mean) / std
    expected = torch.log_softmax(teacher(normalised) / 2, 1)
    objective.feed(teacher.pretrained_cfg['mean'], teacher.pretrained_cfg['std'])
    assert torch.equal(objective.teach(normalised), expected)
    objective.feed((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    other_mean, other_std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(objective.teach((pixels - other_mean) / other_std), expected, rtol=0, atol=1e-4)


def test_one_name_or_a_list_of_them() -> None:
    assert teacher_names('resnet32_cifar_bcl') == teacher_names(['resnet32_cifar_bcl']) == ['resnet32_cifar_bcl']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, "objective distilled needs the option 'teachers'"),
        ({'teachers': 3}, 'teachers must be names of trained models, not 3'),
        ({'teachers': []}, 'teachers must be names of trained models, not []'),
        ({'teachers': ['resnet32_cifar_bs', None]}, "not ['resnet32_cifar_bs', None]"),
        ({'teachers': ['resnet32_cifar_bs'] * 2}, 'the teacher resnet32_cifar_bs is named twice'),
        ({'share': 0}, 'share must be more than 0 and at most 1, not 0'),
        ({'share': 1.1}, 'share must be more than 0 and at most 1, not 1.1'),
        ({'temperature': 0.0}, 'temperature must be more than 0, not 0.0'),
        ({'temprature': 1.0}, "has no option 'temprature'; did you mean temperature?"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    if options and 'teachers' not in options:
        options = {'teachers': 'resnet32_cifar_bs', **options}
    with pytest.raises(ObjectiveError, match=re.escape(message)):
        create_objective('distilled', nn.Identity(), OF_100, **options)


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(ObjectiveError, match='the teacher resnet32_cifar_bs has 100 classes, where there are 3'):
        Distilled(Times(), COUNTS, 'resnet32_cifar_bs')
