"""Recorded steps against steps taken as they are: on an emulation of CUDA graphs, and on a GPU where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import emulated_graphs
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from step_forms import BCL, CE, FORMS, OTHER, has_second_form, recipe_file
from torch import Tensor, nn
from whole_runs import assert_equal_runs, fit_until

from ltzoo import recorded
from ltzoo.data.augment import op
from ltzoo.data.loader import Batch
from ltzoo.gkpgsa import GkpGsa, GkpGsaSettings, SharpnessSettings, sharpness
from ltzoo.losses import create_objective
from ltzoo.models import create_model
from ltzoo.recorded import Recorded, RecordingError
from ltzoo.training import prepare
from ltzoo.training.fit import fit
from ltzoo.training.learner import Learner
from ltzoo.training.loop import Step
from ltzoo.training.recipe import RecipeError, load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[emulated_graphs.Graph]:
    return emulated_graphs.install(monkeypatch)


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute all images and throw away where not wanted; do not cut up a batch by groups; record what can be."""
    monkeypatch.setattr(op, '_only_chosen', lambda images: False)
    monkeypatch.setattr(
        prepare, '_replay', lambda recipe, accelerator: (Recorded if recipe.cuda_graphs else None, 'one_hot')
    )
    monkeypatch.setattr(prepare, 'can_record', lambda recipe, accelerator: recipe.cuda_graphs)
    monkeypatch.setattr(recorded, 'WARM_UP', 1)


AT_ONCE = ('ce', 'retraining', 'gkpgsa')


@pytest.mark.parametrize(
    'changes',
    [pytest.param(form, id=name, marks=() if name in AT_ONCE else pytest.mark.slow) for name, form in FORMS.items()],
)
def test_a_recorded_training_is_the_same_bit_for_bit(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[emulated_graphs.Graph]
) -> None:
    _as_on_a_gpu(monkeypatch)
    path = recipe_file(tmp_path, **changes)
    for name, graphed in (('plain', 'false'), ('recorded', 'true')):
        fit(load_recipe(path, [f'cuda_graphs={graphed}']), tmp_path / name, progress=False)
    # One of the views, and one of each form of the steps.
    assert len(graphs) == 2 + has_second_form(changes)
    plain, replayed = (load_file(tmp_path / name / 'model' / 'model.safetensors') for name in ('plain', 'recorded'))
    assert all(torch.equal(plain[key], replayed[key]) for key in plain)
    logs = [[json.loads(line) for line in (tmp_path / name / 'log.jsonl').open()] for name in ('plain', 'recorded')]
    for one, other in zip(*logs, strict=True):
        assert one['loss'] == other['loss']
        assert one.get('method') == other.get('method')


def test_a_recorded_training_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[emulated_graphs.Graph]
) -> None:
    _as_on_a_gpu(monkeypatch)
    path = recipe_file(tmp_path, **FORMS['gkpgsa'])
    fit(load_recipe(path, ['cuda_graphs=true']), tmp_path / 'whole', progress=False)
    fit_until(4, load_recipe(path, ['cuda_graphs=true']), tmp_path / 'cut')
    before = len(graphs)
    fit(load_recipe(path, ['cuda_graphs=true', 'resume=auto']), tmp_path / 'cut', progress=False)
    assert len(graphs) == before + 2  # of the views and of the perturbed steps
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')


def test_steps_that_differ_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[emulated_graphs.Graph]
) -> None:
    monkeypatch.setattr(op, '_only_chosen', lambda images: False)
    monkeypatch.setattr(prepare, 'can_record', lambda recipe, accelerator: recipe.cuda_graphs)
    method = {'group_by': 'frequency', 'preservation': None, 'sharpness': {'ascent': 2}}
    fit(
        load_recipe(recipe_file(tmp_path, **BCL, method=method), ['cuda_graphs=true']), tmp_path / 'run', progress=False
    )
    assert len(graphs) == 1  # of the views


def test_groups_that_are_not_recorded_leave_no_former_recording(
    monkeypatch: pytest.MonkeyPatch, graphs: list[emulated_graphs.Graph], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorded, 'WARM_UP', 1)
    monkeypatch.setattr(sharpness, 'MOST_AT_ONCE', 4)
    classes = 6
    counts = torch.full((classes,), 20)
    accelerator = Accelerator(cpu=True)
    four, six = torch.arange(classes) % 4, torch.arange(classes)
    settings = GkpGsaSettings(preservation=None, sharpness=SharpnessSettings(scale=0.3))
    weights = []
    for recorded_steps in (False, True):
        torch.manual_seed(0)
        model = create_model('resnet8_cifar', num_classes=classes)
        learner = Learner(model, create_objective('ce', model, counts))
        labels = np.repeat(np.arange(classes), 20)
        method = GkpGsa(learner, model, counts, labels, 9, settings, rows_form='one_hot')
        optimizer = accelerator.prepare_optimizer(torch.optim.SGD(learner.parameters(), lr=0.1), device_placement=False)
        step = Step(learner, optimizer, accelerator, method=method, replayed=Recorded if recorded_steps else None)
        for epoch, groups in enumerate((four, six, four.flip(0))):
            method.has_groups = True
            method.sharpness.set_groups(groups, torch.bincount(groups) * 20)
            method.start_epoch(epoch)
            for _ in range(3):
                views = (torch.randn(12, 3, 8, 8),)
                step(Batch(views, torch.randint(0, classes, (12,))))
        weights.append(nn.utils.parameters_to_vector(learner.parameters()).detach())
    assert len(graphs) == 2
    assert [message.partition(',')[0] for message in caplog.messages] == ['perturbed steps (6 groups']
    assert torch.equal(*weights)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer('seen', torch.zeros(()))

    def gradient(self, x: Tensor) -> Tensor:
        self.seen += 1
        loss = self.fc(x).square().mean()
        loss.backward()
        return loss.detach()


def test_replays_give_gradients_and_change_what_lies_in_tensors(graphs: list[emulated_graphs.Graph]) -> None:
    module = Small()
    replayed = Recorded(module.gradient, list(module.parameters()))
    for call in range(6):
        x = torch.randn(4, 3)
        loss = replayed(x).clone()
        expected = module.fc(x).square().mean()
        torch.testing.assert_close(loss, expected.detach())
        grads = torch.autograd.grad(expected, list(module.fc.parameters()))
        for p, g in zip(module.fc.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, g)
            p.grad = None
        assert module.seen == call + 1
    assert len(graphs) == 1
    replayed.forget()
    for _ in range(recorded.WARM_UP + 1):
        replayed(torch.randn(4, 3))
        module.zero_grad()
    assert len(graphs) == 2


def test_what_cannot_be_recorded_is_refused(
    graphs: list[emulated_graphs.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, 'WARM_UP', 0)
    with pytest.raises(
        RecordingError,
        match=r'recorded, take cuda_graphs=false: .* waits for the device \(.*emulated_graphs\.py, line \d+\)$',
    ):
        Recorded(lambda x: x * x.sum().item())(torch.ones(2))
    for waits in (lambda x: x[x > 0], lambda x: x.unique_consecutive(), lambda x: torch.equal(x, x)):
        with pytest.raises(RecordingError, match='waits for the device'):
            Recorded(waits)(torch.ones(2))

    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.OutOfMemoryError, match='CUDA out of memory'):
        Recorded(full)(torch.ones(2))
    double = Recorded(lambda x: 2 * x)
    double(torch.ones(2))
    with pytest.raises(RecordingError, match=r'recorded for a batch of shape \(2,\) and is now given \(3,\)'):
        double(torch.ones(3))


def test_half_precision_with_a_loss_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    recipe = load_recipe(recipe_file(tmp_path, **BCL), ['cuda_graphs=true', 'precision=fp16'])
    with pytest.raises(RecipeError, match='cuda_graphs=true cannot be combined with precision=fp16'):
        prepare.create_accelerator(recipe)


NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU to record on')


@NEEDS_A_GPU
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('form', FORMS)
def test_a_recorded_training_on_a_gpu(
    form: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('ACCELERATE_USE_CPU')
    made, record = [], Recorded._record

    def noted(self: Recorded, inputs: tuple[Tensor, ...]) -> None:
        made.append(self)
        record(self, inputs)

    monkeypatch.setattr(Recorded, '_record', noted)
    path = recipe_file(tmp_path, **FORMS[form], precision=precision)
    for name, graphed in (('plain', 'false'), ('recorded', 'true')):
        fit(load_recipe(path, [f'cuda_graphs={graphed}']), tmp_path / name, progress=False)
    assert len(made) == 2 + has_second_form(FORMS[form])
    logs = [[json.loads(line) for line in (tmp_path / name / 'log.jsonl').open()] for name in ('plain', 'recorded')]
    # Sums of a GPU are not always in one order, and a training carries the rounding on.
    for one, other in zip(*logs, strict=True):
        assert one['loss'] == pytest.approx(other['loss'], rel=0.05)


@NEEDS_A_GPU
def test_recorded_views_on_a_gpu_are_the_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('ACCELERATE_USE_CPU')
    seen = []
    for graphed in ('false', 'true'):
        path = recipe_file(tmp_path, objective=BCL['objective'], views=[*CE['views'], OTHER, OTHER])
        recipe = load_recipe(path, [f'cuda_graphs={graphed}'])
        loader = prepare.prepare_training(
            recipe, prepare.prepare_data(recipe), prepare.create_accelerator(recipe), tmp_path / 'bank'
        ).loader
        assert isinstance(loader.look, Recorded) == (graphed == 'true')  # type: ignore[attr-defined]
        # Those of the second epoch are replayed.
        batches = (batch for epoch in range(2) for batch in loader.epoch(epoch))
        seen.append([torch.stack([view.clone() for view in batch.views]) for batch in batches])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)
