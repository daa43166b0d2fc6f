"""Cross-entropy and its adjustment to the prior, against the formula written out."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltzoo
from ltzoo.losses import (
    Objective,
    ObjectiveError,
    create_objective,
    is_balanced,
    list_objectives,
    log_prior,
    objective,
)

COUNTS = torch.tensor([90, 9, 1])


class Logits(nn.Module):
    """A model whose logits are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def by_hand(logits: list[float], label: int, tau: float) -> float:
    prior = [0.9, 0.09, 0.01]
    shares = [math.exp(z) * p**tau for z, p in zip(logits, prior, strict=True)]
    return -math.log(shares[label] / sum(shares))


@pytest.mark.parametrize(
    ('name', 'options', 'tau'), [('ce', {}, 0), ('logit_adjusted', {}, 1), ('logit_adjusted', {'tau': 0.5}, 0.5)]
)
def test_equals_the_formula(name: str, options: dict[str, float], tau: float) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 3
        labels = torch.tensor([0, 1, 2, 2, 1, 0, 0])
        losses = create_objective(name, Logits(), COUNTS, **options)(Logits(), (logits,), labels)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = [by_hand(row.tolist(), int(y), tau) for row, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_extreme_logits_and_half_precision_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]]).to(torch.bfloat16)
    losses = create_objective('logit_adjusted', Logits(), COUNTS)(Logits(), (logits,), torch.tensor([1]))
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@pytest.mark.parametrize('name', ['ce', 'logit_adjusted'])
def test_the_loss_of_shares_is_that_of_the_classes_by_their_shares(name: str) -> None:
    made = create_objective(name, Logits(), COUNTS)
    assert made.takes_shares
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([[1, 0, 0], [0, 0.25, 0.75], [0.5, 0.5, 0], [0, 0, 1]])
    of_class = torch.stack([made(Logits(), (logits,), torch.full((4,), c)) for c in range(3)], 1)
    labels = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(made(Logits(), (logits,), labels, shares), (of_class * shares).sum(1))


def test_a_class_without_images_counts_as_one_image() -> None:
    torch.testing.assert_close(log_prior(torch.tensor([3, 1, 0])), torch.tensor([0.6, 0.2, 0.2]).log())
    with pytest.raises(ObjectiveError, match='all 0'):
        log_prior(torch.zeros(3, dtype=torch.int64))


def test_options_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Objective):
        def __init__(
            self, model: nn.Module, counts: Tensor, kind: str = 'a', on: bool = False, margin: float = 1
        ) -> None:
            super().__init__()
            self.kind, self.on, self.margin = kind, on, margin

    monkeypatch.setitem(objective._OBJECTIVES, 'own', Own)
    made = create_objective('own', Logits(), COUNTS, kind='drw', on=True, margin=0.5)
    assert (made.kind, made.on, made.margin) == ('drw', True, 0.5)
    with pytest.raises(ObjectiveError, match='own: margin must be a finite number, not True'):
        create_objective('own', Logits(), COUNTS, margin=True)


def test_options_that_a_new_objective_needs_or_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, '_OBJECTIVES', dict(objective._OBJECTIVES))

    @objective.register_objective('own')
    class Own(Objective):
        def __init__(self, model: nn.Module, counts: Tensor, gamma: float, **others: float) -> None:
            super().__init__()
            self.given = (gamma, others)

    with pytest.raises(ObjectiveError, match=r"own needs the option 'gamma': write objective\.gamma="):
        create_objective('own', Logits(), COUNTS)
    assert create_objective('own', Logits(), COUNTS, gamma=2, delta=3).given == (2, {'delta': 3})
    assert objective.register_objective('own')(Own) is Own
    with pytest.raises(ObjectiveError, match='ce is an objective of ltzoo: choose another name'):
        objective.register_objective('ce')(Own)
    with pytest.raises(ObjectiveError, match=r'must be a subclass of ltzoo\.losses\.Objective'):
        objective.register_objective('other')(Logits)  # type: ignore[type-var]


def test_a_name_says_whether_it_is_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, '_OBJECTIVES', dict(objective._OBJECTIVES))
    monkeypatch.setattr(
        'ltzoo.losses.distilled.create_model', lambda name, pretrained: ltzoo.create_model(name, num_classes=3)
    )
    needed: dict[str, Any] = {'ride': {'reweighting_epoch': 1}, 'distilled': {'teachers': 'resnet8_cifar'}}
    cosine, experts = ({'name': name, 'num_classes': 3} for name in ('resnet8_cifar', 'resnet32_cifar_ride'))
    for name in list_objectives():
        model = ltzoo.create_model(**(experts if name == 'ride' else {**cosine, 'head': 'cosine'}))
        made = create_objective(name, model, COUNTS, **needed.get(name, {}))
        # RIDE weighs its losses; the others make up for the numbers by the logits.
        assert made.balanced == is_balanced(name) == (name == 'ride' or made.logit_adjustment is not None), name

    @objective.register_objective('own')
    class Own(Objective):
        def __init__(self, model: nn.Module, counts: Tensor, adjusted: bool) -> None:
            super().__init__(log_prior(counts) if adjusted else None)

    assert [create_objective('own', Logits(), COUNTS, adjusted=on).balanced for on in (True, False)] == [True, False]
    assert not is_balanced('own') and not is_balanced('unknown')
    Own.balanced = True
    assert is_balanced('own')


def test_unknown_names_get_the_nearest() -> None:
    assert list_objectives() == ['bcl', 'ce', 'distilled', 'focal', 'ldam', 'logit_adjusted', 'ride']
    with pytest.raises(ObjectiveError, match='did you mean logit_adjusted'):
        create_objective('logit_adjustment', Logits(), COUNTS)
    with pytest.raises(ObjectiveError, match="logit_adjusted: tau must be a finite number, not 'abc'"):
        create_objective('logit_adjusted', Logits(), COUNTS, tau='abc')
    with pytest.raises(ObjectiveError, match='tau must be a finite number, not nan'):
        create_objective('logit_adjusted', Logits(), COUNTS, tau=math.nan)
    with pytest.raises(ObjectiveError, match="no option 'taus'; did you mean tau"):
        create_objective('logit_adjusted', Logits(), COUNTS, taus=1)
    with pytest.raises(ObjectiveError, match="ce has no option 'tau'; it takes none"):
        create_objective('ce', Logits(), COUNTS, tau=1)


@pytest.mark.parametrize('name', ['logit_adjusted', 'bcl'])
@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        (torch.tensor([0.5, 0.3, 0.2]), 'whole numbers, one for each class, not torch.float32 (3,)'),
        (torch.tensor([[5], [3], [2]]), 'whole numbers, one for each class, not torch.int64 (3, 1)'),
        ([5, 3, 2], 'whole numbers, one for each class, not [5, 3, 2]'),
        (torch.tensor([5, -3, 2]), 'class_counts must be 0 or more, not -3'),
        (torch.tensor([5]), 'class_counts has 1 entries, the model 3 classes'),
        (torch.tensor([0, 0, 0]), 'class_counts are all 0'),
    ],
)
def test_counts_that_a_prior_cannot_be_taken_from(name: str, counts: Any, message: str) -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=3)
    with pytest.raises(ObjectiveError, match=re.escape(message)):
        create_objective(name, model, counts)
