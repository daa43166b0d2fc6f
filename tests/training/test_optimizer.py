"""Optimisers are timm's, and the learning rate follows the schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from ltzoo.losses import Objective
from ltzoo.training.learner import Learner
from ltzoo.training.optimizer import create_optimizer, learning_rate, learning_rate_factor
from ltzoo.training.recipe import OptimizerPart, Recipe, SchedulePart


def test_multistep_warms_up_and_falls_at_its_milestones() -> None:
    part = SchedulePart(name='multistep', warmup_epochs=5, milestones=(160, 180), gamma=0.1)
    factors = [learning_rate_factor(part, epoch, 200) for epoch in range(200)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[5:160]) == {1.0}
    assert factors[160:180] == pytest.approx([0.1] * 20)
    assert factors[180:] == pytest.approx([0.01] * 20)


def test_cosine_is_torchs() -> None:
    part = SchedulePart(name='cosine')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    for epoch in range(90):
        assert learning_rate_factor(part, epoch, 90) == pytest.approx(optimizer.param_groups[0]['lr'], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_the_cosine_runs_over_the_warm_up_too_and_constant_stays() -> None:
    def factors(name: str) -> list[float]:
        part = SchedulePart(name=name, warmup_epochs=2)
        return [learning_rate_factor(part, epoch, 6) for epoch in range(6)]

    assert factors('cosine') == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0.0669873])
    assert factors('constant') == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_a_second_stage_has_a_rate_of_its_own(make_recipe: Callable[..., Recipe]) -> None:
    def rates(*options: str) -> list[float]:
        recipe = make_recipe('optimizer.lr=0.4', 'epochs=6', *options)
        return [learning_rate(recipe, epoch) for epoch in range(6)]

    steps = 'schedule={name: multistep, milestones: [2], gamma: 0.5}'
    assert rates(steps, 'retraining.start_epoch=4') == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.4, 0.2])
    assert rates(steps, 'retraining={start_epoch: 3, lr: 0.1}') == pytest.approx([0.4, 0.4, 0.2, 0.1, 0.075, 0.025])
    # The schedule ends where the second stage begins.
    cosine = rates('schedule={name: cosine, warmup_epochs: 0}', 'retraining.start_epoch=4')
    assert cosine[:4] == pytest.approx([0.4, 0.3414214, 0.2, 0.0585786])
    assert rates(steps, 'retraining.start_epoch=9') == rates(steps)


@pytest.mark.parametrize('everything', [True, False])
def test_weight_decay_reaches_what_the_recipe_says(everything: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    part = OptimizerPart(lr=0.1, weight_decay=0.01, decay_norm_and_bias=everything)
    optimizer = create_optimizer(Learner(model, Objective()), part)
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] > 0 for p in group['params']}
    expected = list(model.parameters()) if everything else [model[0].weight]
    assert decayed == {id(p) for p in expected}
    assert sum(len(group['params']) for group in optimizer.param_groups) == 4


def test_what_a_transformer_keeps_from_weight_decay_is_kept_from_it() -> None:
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1)
    part = OptimizerPart(lr=0.1, weight_decay=0.01, decay_norm_and_bias=False)
    optimizer = create_optimizer(Learner(model, Objective()), part)
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] > 0 for p in group['params']}
    kept = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert {'pos_embed', 'cls_token'} <= kept
    assert 'blocks.0.attn.qkv.weight' not in kept
