"""The step before a run: what it finds, and that it changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import ltzoo
from ltzoo.gkpgsa import estimated_statistics
from ltzoo.losses import Objective, create_objective
from ltzoo.training import trial
from ltzoo.training.compiled import Compiled
from ltzoo.training.learner import Learner
from ltzoo.training.recipe import Recipe, RecipeError
from ltzoo.training.trial import try_step

MakeRecipe = Callable[..., Recipe]


class OtherwiseInTests(nn.Module):
    """Logits of 3 classes in training; when it is tested, those of 2, or in a tuple."""

    num_classes = 3

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 3)
        self.as_tuple = as_tuple

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor]:
        logits = self.layer(images.flatten(1))
        if self.training:
            return logits
        return (logits,) if self.as_tuple else logits[:, :2]


@pytest.mark.parametrize(('as_tuple', 'given'), [(True, 'tuple'), (False, r'\(2, 2\)')])
def test_outputs_that_cannot_be_scored_are_refused(make_recipe: MakeRecipe, as_tuple: bool, given: str) -> None:
    model = OtherwiseInTests(as_tuple)
    learner = Learner(model, create_objective('ce', model, torch.tensor([5, 3, 1])))
    with pytest.raises(RecipeError, match=rf'returns {given} for 2 images, where logits of shape \(2, 3\)'):
        try_step(learner, [(8, 8)], torch.tensor([5, 3, 1]), make_recipe(), Accelerator(cpu=True))


def test_it_leaves_no_trace(make_recipe: MakeRecipe) -> None:
    model = ltzoo.create_model('resnet20_cifar', num_classes=3, head='cosine')
    learner = Learner(model, create_objective('bcl', model, torch.tensor([5, 3, 1])))
    before, drawn = copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    try_step(learner, [(8, 8)] * 3, torch.tensor([5, 3, 1]), make_recipe(), Accelerator(cpu=True))
    after = learner.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_mean_in_the_place_of_the_losses_is_refused(make_recipe: MakeRecipe) -> None:
    class OfTheBatch(Objective):
        def forward(self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(views[0]), labels)

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    with pytest.raises(RecipeError, match=r'the losses have shape \(\), where one of each sample is needed, \(2,\)'):
        try_step(Learner(model, OfTheBatch()), [(8, 8)], torch.tensor([5, 3, 1]), make_recipe(), Accelerator(cpu=True))


class Unfit(nn.Module):
    """A network that trains, but not by groups, or has no gradients of single samples."""

    num_classes = 3

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mix, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(1, 2)
        if self.kind == 'attention':
            tokens = self.mix(tokens, tokens, tokens)[0]
        elif self.training is False and float(tokens.mean()) > 1e9:
            tokens = tokens * 2
        return self.head(tokens.mean(1))


def test_what_is_tried_is_the_form_that_will_be_recorded(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without what takes a step by slices.
    monkeypatch.setattr('ltzoo.gkpgsa.grouped_weights.sliced', None)
    counts = torch.tensor([5, 3, 1])
    model = ltzoo.create_model('resnet8_cifar', num_classes=3)
    learner = Learner(model, create_objective('ce', model, counts))
    arguments = (learner, [(8, 8)], counts, make_recipe('method={groups: 2}'), Accelerator(cpu=True))
    with pytest.raises(RecipeError, match=r"no step can be taken with .*'NoneType' object has no attribute"):
        try_step(*arguments)
    try_step(*arguments, rows_form='one_hot')
    try_step(*arguments, rows_form='sorted')


@pytest.mark.parametrize(
    ('kind', 'settings', 'message'),
    [
        ('attention', 'method={}', 'no step can be taken with .*: nn.MultiheadAttention lays samples'),
        ('branch', 'method={sharpness: null}', 'no step can be taken with .*vmap'),
    ],
)
def test_what_the_method_cannot_train_is_refused_before_the_first_epoch(
    make_recipe: MakeRecipe, kind: str, settings: str, message: str
) -> None:
    model = Unfit(kind)
    counts = torch.tensor([5, 3, 1])
    learner = Learner(model, create_objective('ce', model, counts))
    try_step(learner, [(8, 8)], counts, make_recipe(), Accelerator(cpu=True))
    with pytest.raises(RecipeError, match=message):
        try_step(learner, [(8, 8)], counts, make_recipe(settings), Accelerator(cpu=True))


def test_statistics_are_estimated_of_two_images_also_where_a_piece_of_a_batch_has_one(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=3)
    counts = torch.tensor([5, 3, 1])
    learner = Learner(model, create_objective('ce', model, counts))
    found = []
    monkeypatch.setattr(trial, 'estimated_statistics', lambda *a: found.append(estimated_statistics(*a)))
    recipe = make_recipe('method={preservation: {statistics: estimated}}', 'batch_size=4', 'accumulation=4')
    try_step(learner, [(8, 8)], counts, recipe, Accelerator(cpu=True))
    assert len(found) == 1 and all(buffer.isfinite().all() for buffer in found[0].values())
    try_step(learner, [(8, 8)], counts, make_recipe('method={}'), Accelerator(cpu=True))
    assert len(found) == 1


def test_what_would_not_be_compiled_is_not_traced(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []

    class Watched(Compiled):
        def _trace(self, inputs: tuple[Tensor, ...]) -> Any:
            traced.append(part)
            return super()._trace(inputs)

    monkeypatch.setattr('ltzoo.training.trial.Compiled', Watched)
    counts = torch.full((12,), 5)
    model = ltzoo.create_model('resnet8_cifar', num_classes=12)
    learner = Learner(model, create_objective('ce', model, counts))
    two = 'groups: 2, sharpness: {scale: 0.1}'
    for part in ('group_by: class, sharpness: {scale: 0.1}', 'groups: 2, sharpness: {ascent: 2}', two):
        recipe = make_recipe(f'method={{preservation: null, {part}}}')
        try_step(learner, [(8, 8)], counts, recipe, Accelerator(cpu=True), rows_form='sorted')
    assert traced == [two]
