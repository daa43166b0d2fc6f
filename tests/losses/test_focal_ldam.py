"""Focal loss, margins and class weights against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ltzoo
from ltzoo.losses import LDAM, ObjectiveError, class_balanced_weights, create_objective

COUNTS = torch.tensor([500, 100, 16, 1])
LABELS = torch.tensor([0, 3, 2, 1, 3])
LOGITS = torch.tensor(
    [[4.0, 1, 0, -1], [0, 0, 0, 0], [3, -2, 9, 1], [5, 5, -5, 0], [60, 0, 0, -60]], dtype=torch.float64
)


class Fixed(nn.Module):
    """A classifier that returns the logits it is made with, and a cosine head for what asks for one."""

    num_classes = 4

    def __init__(self, logits: Tensor, scale: float = 30.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.fc = ltzoo.models.CosineLinear(2, 4, scale)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def views(model: nn.Module) -> tuple[Tensor, ...]:
    return (torch.zeros(len(LABELS), 3, 8, 8),)


@pytest.mark.parametrize('gamma', [0, 0.5, 1, 2.0])
def test_focal_is_its_formula(gamma: float) -> None:
    model = Fixed(LOGITS)
    losses = create_objective('focal', model, COUNTS, gamma=gamma)(model, views(model), LABELS)
    for loss, row, label in zip(losses.tolist(), LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        assert loss == pytest.approx((1 - p) ** gamma * -math.log(p), rel=1e-9)


@pytest.mark.parametrize('gamma', [0.5, 1, 2])
def test_focal_has_a_gradient_where_nothing_is_left_to_learn(gamma: float) -> None:
    # In float32 the probability is 1 and the loss 0.
    model = Fixed(torch.tensor([[200.0, 0, 0, 0]]))
    loss = create_objective('focal', model, COUNTS, gamma=gamma)(model, views(model), torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == 0
    assert not model.logits.grad.any() and model.logits.grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize('scale', [30.0, 16.0])
def test_ldam_takes_the_margin_off_the_cosine_of_the_own_class(scale: float) -> None:
    cosines = torch.tensor(
        [[0.9, 0.1, 0, -1], [0, 0, 0, 0], [0.3, -0.2, 0.9, 0.1], [0.5, 0.5, -0.5, 0], [1, 0, 0, 0.9]],
        dtype=torch.float64,
    )
    model = Fixed(scale * cosines, scale)
    losses = create_objective('ldam', model, COUNTS, max_margin=0.4)(model, views(model), LABELS)
    # 500, 100, 16 and 1 to the -1/4, of which the last has the margin 0.4.
    margins = [0.4 * 500**-0.25, 0.4 * 100**-0.25, 0.2, 0.4]
    for loss, row, label in zip(losses.tolist(), cosines.tolist(), LABELS.tolist(), strict=True):
        own = scale * (row[label] - margins[label])
        others = [scale * cosine for c, cosine in enumerate(row) if c != label]
        expected = math.log(sum(math.exp(other - own) for other in others) + 1)
        assert loss == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_ldam_goes_with_the_network_of_its_recipe_and_trains_it() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar', head='cosine', num_classes=4)
    objective = create_objective('ldam', model, COUNTS)
    assert isinstance(objective, LDAM)
    assert objective.margins[-1] == 15 and not list(objective.parameters()) and not objective.state_dict()
    images = torch.randn(5, 3, 8, 8)
    with torch.autocast('cpu', torch.bfloat16):
        losses = objective(model, (images,), LABELS)
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_class_without_images_has_the_margin_of_one() -> None:
    model = ltzoo.create_model('resnet8_cifar', head='cosine', num_classes=3)
    margins = create_objective('ldam', model, torch.tensor([16, 0, 1])).margins
    assert margins.tolist() == pytest.approx([7.5, 15, 15])


def test_the_rarest_class_has_the_whole_margin_however_many_images_it_has() -> None:
    model = ltzoo.create_model('resnet8_cifar', head='cosine', num_classes=3)
    margins = create_objective('ldam', model, torch.tensor([1280, 80, 5]), max_margin=0.4).margins / 30
    assert margins.tolist() == pytest.approx([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ('name', 'option', 'message'),
    [
        ('focal', {'gamma': -1}, 'objective focal: gamma must be 0 or more, not -1'),
        ('ldam', {'max_margin': -0.1}, 'objective ldam: max_margin must be 0 or more, not -0.1'),
        ('ldam', {'scale': 30}, "objective ldam has no option 'scale'; it takes max_margin"),
    ],
)
def test_options_out_of_range_are_refused(name: str, option: dict[str, float], message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        create_objective(name, Fixed(LOGITS), COUNTS, **option)


@pytest.mark.parametrize(
    ('model', 'told'),
    [
        ({'num_classes': 4}, 'has Linear'),
        ({'num_classes': 0, 'head': 'cosine'}, 'has Identity'),
        ({'name': 'resnet32_cifar_experts', 'num_experts': 2, 'num_classes': 4}, 'has ExpertLinear'),
    ],
)
def test_margins_between_what_is_no_cosine_are_refused(model: dict[str, object], told: str) -> None:
    with pytest.raises(
        ObjectiveError, match=rf'needs a single cosine classifier \(model.head=cosine in a recipe\).*{told}$'
    ):
        create_objective('ldam', ltzoo.create_model(**{'name': 'resnet8_cifar', **model}), COUNTS)


def test_class_weights_are_one_over_the_effective_number_of_samples() -> None:
    counts = torch.tensor([500, 60, 7])
    weights = class_balanced_weights(counts, 0.99).double()
    effective = [sum(0.99**i for i in range(n)) for n in counts.tolist()]
    assert (weights * torch.tensor(effective)).tolist() == pytest.approx([weights[0].item() * effective[0]] * 3)
    # The mean over the training samples.
    assert (weights @ counts.double()).item() == pytest.approx(567)


def test_the_ends_of_beta() -> None:
    assert class_balanced_weights(COUNTS, 0).tolist() == [1, 1, 1, 1]
    # Every class weighs the same in all.
    whole = class_balanced_weights(COUNTS, 1 - 1e-12) * COUNTS
    assert whole.tolist() == pytest.approx([617 / 4] * 4, rel=1e-4)
    assert class_balanced_weights(torch.tensor([5, 0, 1])).tolist()[1] == class_balanced_weights(
        torch.tensor([5, 0, 1])
    ).tolist()[2]  # fmt: skip


@pytest.mark.parametrize('beta', [1, -0.1, 2])
def test_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ObjectiveError, match=f'beta must be 0 or more and below 1, not {beta}'):
        class_balanced_weights(COUNTS, beta)


@pytest.mark.parametrize('counts', [torch.tensor([0.5, 0.5]), torch.tensor([0, 0]), torch.tensor([1, -1])])
def test_weights_of_no_counts_are_refused(counts: Tensor) -> None:
    with pytest.raises(ObjectiveError, match='class_counts'):
        class_balanced_weights(counts)
