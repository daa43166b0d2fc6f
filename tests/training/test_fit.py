"""Whole runs: resumed, killed, diverging, refused."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models.vision_transformer import VisionTransformer
from whole_runs import GKPGSA, Pulled, assert_equal_runs, fit_until, weights

import ltzoo
from ltzoo.data import DataError, UnreadableImageError
from ltzoo.data.augment import ViewError
from ltzoo.data.loader import Batch
from ltzoo.errors import LtzooError
from ltzoo.evaluation import EvaluationError, evaluate_model
from ltzoo.files import BusyError
from ltzoo.gkpgsa import GkpGsa
from ltzoo.losses import CrossEntropy
from ltzoo.models.factory import ModelArgumentError, ModelFilesError
from ltzoo.training import fit as fit_module
from ltzoo.training import prepare as prepare_module
from ltzoo.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ltzoo.training.fit import fit
from ltzoo.training.loop import DivergedError, Step
from ltzoo.training.prepare import (
    create_accelerator,
    create_learner,
    describe_batch,
    prepare_data,
    prepare_training,
    warn_of_what_never_comes,
)
from ltzoo.training.recipe import Recipe, RecipeError, load_recipe
from ltzoo.training.run import RunFolder, describe_environment
from ltzoo.training.training import Training

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'recipes' / 'train.py'
MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize(
    'options',
    [
        (),
        ('ema_decay=0.9', 'accumulation=2', 'optimizer.name=adamw', 'reweighting.start_epoch=1'),
        ('retraining.start_epoch=2', 'objective.name=ce'),
        ('retraining.start_epoch=1', 'objective.name=ce', 'accumulation=2', 'optimizer.name=lamb'),
        ('retraining={start_epoch: 1, part: scales}', 'objective.name=ce'),
        ('mixing={mixup: 0.4, cutmix: 1.0}', 'accumulation=2', 'reweighting.start_epoch=1'),
        (f'views=[{",".join(["[horizontal_flip]"] * 3)}]', 'objective.name=bcl', 'mixing.cutmix=1', 'accumulation=2'),
        (*GKPGSA, 'accumulation=2'),
        (*GKPGSA, 'method.snapshots=disk', 'method.sharpness.global_gradient=ema', 'method.sharpness.mode=combined'),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, options: tuple[str, ...]
) -> None:
    fit(make_recipe(*options), tmp_path / 'whole', progress=False)
    fit_until(2, make_recipe(*options), tmp_path / 'cut')
    assert not (tmp_path / 'cut' / 'results.json').exists()
    fit(make_recipe(*options, 'resume=auto'), tmp_path / 'cut', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    logs = [[json.loads(line) for line in (tmp_path / run / 'log.jsonl').open()] for run in ('whole', 'cut')]
    assert [line['epoch'] for line in logs[1]] == [0, 1, 2, 3]
    assert [line['loss'] for line in logs[0]] == [line['loss'] for line in logs[1]]
    # A finished run without its results is measured again; snapshots on a disk are gone by then.
    results = tmp_path / 'cut' / 'results.json'
    before = json.loads(results.read_text())
    results.unlink()
    fit(make_recipe(*options, 'resume=auto'), tmp_path / 'cut', progress=False)
    assert json.loads(results.read_text()) == before


@pytest.mark.parametrize('options', [(), (*GKPGSA, 'method.snapshots=disk')])
def test_a_run_can_be_ended_early(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    cut = tmp_path / 'cut'
    fit_until(2, make_recipe(*options), cut)
    with pytest.raises(
        CheckpointError, match='trained for 2 epochs, which is more than stop_epoch=1: give 2 to end it'
    ):
        fit(make_recipe(*options, 'resume=auto', 'stop_epoch=1'), cut, progress=False)
    for epochs in (2, 3):
        ended = make_recipe(*options, 'resume=auto', f'stop_epoch={epochs}')
        monkeypatch.setattr(sys, 'argv', ['python', f'ended={epochs}'])
        results = fit(ended, cut, progress=False)
        assert results['epochs'] == results['recipe']['stop_epoch'] == epochs
        assert results['environment']['command'] == f'ended={epochs}'
        card = (cut / 'model' / 'README.md').read_text()
        assert f'{epochs} of 4 epochs' in card and f'after epoch {epochs}, at which training was ended' in card
        fit(make_recipe(*options, f'stop_epoch={epochs}'), tmp_path / str(epochs), progress=False)
        assert_equal_runs(tmp_path / str(epochs), cut)
        # It is finished, and is gone on with only where its results are taken away, and its snapshots are still there.
        with pytest.raises(CheckpointError, match=f'another recipe: stop_epoch was {epochs}, is None'):
            fit(make_recipe(*options, 'resume=auto'), cut, progress=False)
        (cut / 'results.json').unlink()
        assert fit(ended, cut, progress=False) == results
        if options:
            return
        (cut / 'results.json').unlink()


def test_random_numbers_of_python_and_numpy_go_on_too(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    take = Step.__call__

    def draws(step: Step, batch: Batch) -> torch.Tensor:
        # As mixup in an objective of one's own.
        drawn.append((random.random(), np.random.beta(1, 1)))
        return take(step, batch)

    monkeypatch.setattr(Step, '__call__', draws)
    fit(make_recipe(), tmp_path / 'whole', progress=False)
    whole = list(drawn)
    drawn.clear()
    fit_until(2, make_recipe(), tmp_path / 'cut')
    fit(make_recipe('resume=auto'), tmp_path / 'cut', progress=False)
    assert drawn == whole and len(set(whole)) == len(whole)


def test_the_average_of_the_weights_is_what_is_exported(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    take = Step.__call__

    def watched(step: Step, batch: Batch) -> torch.Tensor:
        if not seen:
            seen.append({name: p.detach().clone() for name, p in step.learner.named_parameters()})
        loss = take(step, batch)
        seen.append({name: p.detach().clone() for name, p in step.learner.named_parameters()})
        return loss

    monkeypatch.setattr(Step, '__call__', watched)
    fit(make_recipe('ema_decay=0.6', 'epochs=2'), tmp_path / 'run', progress=False)
    exported = weights(tmp_path / 'run')
    for name, average in seen[0].items():
        for state in seen[1:]:
            average = 0.6 * average + 0.4 * state[name]
        torch.testing.assert_close(exported[name.removeprefix('model.')], average)
    assert len(seen) > 3 and not torch.allclose(exported['head.weight'], seen[-1]['model.head.weight'], atol=1e-4)


def test_the_log_says_what_rate_every_parameter_was_trained_with(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[set[float]] = []
    take = Step.__call__

    def watched(step: Step, batch: Batch) -> torch.Tensor:
        rates.append({group['lr'] for group in step.optimizer.param_groups})
        assert len(step.optimizer.param_groups) == 2
        return take(step, batch)

    monkeypatch.setattr(Step, '__call__', watched)
    options = ('optimizer.decay_norm_and_bias=false', 'schedule={name: multistep, warmup_epochs: 2, milestones: [3]}')
    fit(make_recipe(*options), tmp_path / 'run', progress=False)
    said = [json.loads(line)['lr'] for line in (tmp_path / 'run' / 'log.jsonl').open()]
    assert said == pytest.approx([0.025, 0.05, 0.05, 0.005])
    steps = len(rates) // 4
    assert [rates[epoch * steps + step] for epoch in range(4) for step in range(steps)] == [
        {said[epoch]} for epoch in range(4) for _ in range(steps)
    ]


def test_bcl_with_batchnorm_resumes_too(tmp_path: Path) -> None:
    recipe = ROOT / 'recipes' / 'digits_lt' / 'bcl.yaml'
    options = ('model.name=resnet8_cifar', 'epochs=2', 'batch_size=180')
    fit(load_recipe(recipe, options), tmp_path / 'whole', progress=False)
    fit_until(1, load_recipe(recipe, options), tmp_path / 'cut')
    fit(load_recipe(recipe, [*options, 'resume=auto']), tmp_path / 'cut', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')


def test_experts_resume_in_and_out_of_their_late_part(tmp_path: Path) -> None:
    recipe = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml'
    experts = ('model.name=resnet32_cifar_experts', 'model.layers=[1, 1, 1]', 'model.num_experts=2')
    options = (*experts, 'objective={name: ride, reweighting_epoch: 2}', 'epochs=4', 'batch_size=180')
    fit(load_recipe(recipe, options), tmp_path / 'whole', progress=False)
    for done in (1, 3):
        fit_until(done, load_recipe(recipe, [*options, 'resume=auto']), tmp_path / 'cut')
    fit(load_recipe(recipe, [*options, 'resume=auto']), tmp_path / 'cut', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    fit(load_recipe(recipe, [*options, 'objective.reweighting_epoch=4']), tmp_path / 'never', progress=False)
    with pytest.raises(RecipeError, match='objective ride makes up for their numbers once more'):
        fit(load_recipe(recipe, [*options, 'retraining.start_epoch=2']), tmp_path / 'again', progress=False)
    late, never = weights(tmp_path / 'whole'), weights(tmp_path / 'never')
    assert any(not torch.equal(late[key], never[key]) for key in late)


@pytest.mark.parametrize('sharpness', ['null', '{mode: combined}', '{mode: per_group}'])
def test_experts_train_with_the_method(sharpness: str, tmp_path: Path) -> None:
    experts = ('model.name=resnet32_cifar_experts', 'model.layers=[1, 1, 1]', 'model.num_experts=2')
    method = f'{{groups: 2, first_grouping: 1, preservation: {{samples_per_group: 8}}, sharpness: {sharpness}}}'
    options = (*experts, 'objective={name: ride, reweighting_epoch: 2}', f'method={method}', 'epochs=2')
    results = fit(load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', options), tmp_path / 'run', progress=False)
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').open()]
    assert 'group_sizes' in log[0]['method']
    seconds = sum(line['seconds'] + line['end_seconds'] for line in log)
    assert results['training_seconds'] == pytest.approx(seconds, abs=0.06)


def test_classes_are_not_weighed_twice(make_recipe: MakeRecipe) -> None:
    experts = ('model.name=resnet32_cifar_experts', 'model.layers=[1, 1, 1]', 'objective.name=ride')
    options = (*experts, 'objective.reweighting_epoch=2', 'reweighting.start_epoch=2')
    with pytest.raises(RecipeError, match='objective ride weighs the classes itself'):
        describe_batch(load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', options))


def test_a_killed_run_continues(small_recipe: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    command = [sys.executable, str(TRAIN), str(small_recipe), 'epochs=40', f'output={tmp_path / "killed"}']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / 'killed' / 'checkpoint.pt'
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= load_checkpoint(checkpoint)['epoch'] < 40
    fit(make_recipe('epochs=40', 'resume=auto'), tmp_path / 'killed', progress=False)
    fit(make_recipe('epochs=40'), tmp_path / 'whole', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'killed')


def test_pieces_of_a_batch_give_the_step_of_the_whole(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    options = ('model.proj_drop_rate=0', 'epochs=2')
    fit(make_recipe(*options), tmp_path / 'whole', progress=False)
    fit(make_recipe(*options, 'accumulation=4'), tmp_path / 'pieces', progress=False)
    one, other = weights(tmp_path / 'whole'), weights(tmp_path / 'pieces')
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, 'learning_rate', lambda recipe, epoch: 1e30 if epoch else 0.1)
    with pytest.raises(DivergedError, match=r'not been finite since step \d+ of epoch 2 .* try a lower optimizer\.lr'):
        fit(make_recipe('epochs=3', 'checkpoint_every=1'), tmp_path / 'bad', progress=False)
    state = load_checkpoint(tmp_path / 'bad' / 'checkpoint.pt')
    assert state['epoch'] == 1
    assert all(value.isfinite().all() for value in state['learner'].values())
    assert len((tmp_path / 'bad' / 'log.jsonl').read_text().splitlines()) == 1
    assert not (tmp_path / 'bad' / 'results.json').exists()
    assert (tmp_path / 'bad' / 'diverged.txt').read_text().startswith('the loss has not been finite since step')
    monkeypatch.undo()
    fit(make_recipe('epochs=3', 'checkpoint_every=1', 'resume=auto'), tmp_path / 'bad', progress=False)
    assert not (tmp_path / 'bad' / 'diverged.txt').exists()


def test_a_penalty_that_diverges_names_the_form_that_does_not(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    strong = (*GKPGSA, 'epochs=4', 'method.preservation.strength=1e30')
    with pytest.raises(DivergedError, match=r'try method\.preservation\.form=proximal, .* or a lower optimizer\.lr;'):
        fit(make_recipe(*strong, 'method.preservation.form=gradient'), tmp_path / 'gradient', progress=False)
    fit(make_recipe(*strong), tmp_path / 'proximal', progress=False)


def test_weights_that_the_last_step_of_an_epoch_breaks_are_not_kept(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_after_the_second(accelerator: object, learner: torch.nn.Module, ema: object) -> None:
        if (tmp_path / 'bad' / 'checkpoint.pt').exists():
            torch.nn.init.constant_(next(learner.parameters()), torch.inf)

    monkeypatch.setattr(fit_module, '_equalise', break_after_the_second)
    with pytest.raises(DivergedError, match='the weights are not finite after epoch 2: try a lower'):
        fit(make_recipe('epochs=2', 'checkpoint_every=1'), tmp_path / 'bad', progress=False)
    assert load_checkpoint(tmp_path / 'bad' / 'checkpoint.pt')['epoch'] == 1


def test_what_a_run_leaves_behind(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    results = fit(make_recipe(), tmp_path / 'run', progress=False)
    names = {path.name for path in (tmp_path / 'run').iterdir()}
    assert names == {
        'recipe.yaml', 'environment.json', 'log.jsonl', 'checkpoint.pt', 'results.json', 'model', 'curves.png',
        'accuracy.png',
    }  # fmt: skip
    assert results == json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['samples'] == 400
    assert len(results['per_class']) == 10
    # Asked again with resume=auto, a finished run is shown, not trained.
    assert fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False) == results
    (tmp_path / 'run' / 'bank').mkdir()
    fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run' / 'bank').exists()
    (tmp_path / 'run' / 'results.json').write_text('{"top1": ')
    with pytest.raises(CheckpointError, match=r'results\.json is damaged: .*; remove it to go on from the checkpoint'):
        fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False)
    # Brought home, a run has no checkpoint.
    (tmp_path / 'run' / 'checkpoint.pt').rename(tmp_path / 'checkpoint.pt')
    with pytest.raises(CheckpointError, match=r'results\.json is damaged: .*; copy the run here again'):
        fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False)
    (tmp_path / 'run' / 'results.json').unlink()
    with pytest.raises(
        CheckpointError, match=r'a model without results\.json and checkpoint\.pt, and training would start over'
    ):
        fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False)
    (tmp_path / 'checkpoint.pt').rename(tmp_path / 'run' / 'checkpoint.pt')
    again = fit(make_recipe('resume=auto'), tmp_path / 'run', progress=False)
    assert (again['top1'], again['per_class']) == (results['top1'], results['per_class'])
    start = f'model={{name: "local-dir:{tmp_path / "run" / "model"}", pretrained: true}}'
    small = yaml.safe_dump({**yaml.safe_load((tmp_path / 'small.yaml').read_text()), 'model': {}})
    (tmp_path / 'next.yaml').write_text(small)
    fit(load_recipe(tmp_path / 'next.yaml', [start, 'epochs=1']), tmp_path / 'next', progress=False)
    # Where it lies is not told to others.
    for name in ('config.json', 'README.md'):
        text = (tmp_path / 'next' / 'model' / name).read_text()
        assert 'local-dir:run/model' in text
        assert str(tmp_path) not in text


def test_the_hold_out_is_measured_during_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    overrides = (
        'evaluation.split=holdout',
        'evaluation.every_epochs=2',
        'batch_size=100',
        'data.split_seed=5',
        'seed=2',
    )
    results = fit(make_recipe(*overrides), tmp_path / 'run', progress=False)
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').open()]
    assert [line['epoch'] for line in lines if 'holdout' in line] == [1, 3]
    assert (results['split_seed'], results['seed']) == (5, 2)
    assert results['parameters'] == sum(value.numel() for value in weights(tmp_path / 'run').values())
    assert results['split'] == 'holdout'
    assert lines[-1]['holdout']['top1'] == results['top1']


@pytest.mark.parametrize(
    ('options', 'mixed'),
    [
        ((), [True] * 4),
        (('mixing.end_epoch=3',), [True, True, True, False]),
        (('retraining.start_epoch=1',), [True, False, False, False]),
        (('retraining.start_epoch=1', 'mixing.end_epoch=3'), [True, False, False, False]),
        (('retraining.start_epoch=3', 'mixing.end_epoch=1'), [True, False, False, False]),
    ],
)
def test_images_are_mixed_until_an_epoch_and_never_in_a_second_stage(
    make_recipe: MakeRecipe, tmp_path: Path, options: tuple[str, ...], mixed: list[bool]
) -> None:
    recipe = make_recipe('objective.name=ce', 'mixing.mixup=1', *options)
    loader = prepare_training(recipe, prepare_data(recipe), create_accelerator(recipe), tmp_path).loader
    shares = [[batch.shares for batch in loader.epoch(epoch)] for epoch in range(recipe.epochs)]
    assert [any((part.amax(1) < 1).any() for part in of_epoch) for of_epoch in shares] == mixed  # type: ignore[union-attr]


def test_the_seed_reaches_the_weights_the_order_and_the_method(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Watched(GkpGsa):
        def __init__(self, *args: Any, seed: int, **options: Any) -> None:
            made.append(seed)
            super().__init__(*args, seed=seed, **options)

    monkeypatch.setattr(prepare_module, 'GkpGsa', Watched)

    def begin(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        recipe = make_recipe(f'seed={seed}', *GKPGSA)
        training = prepare_training(recipe, prepare_data(recipe), create_accelerator(recipe), tmp_path)
        first = next(training.learner.parameters()).detach().clone()
        return first, torch.cat([batch.labels for batch in training.loader.epoch(0)])

    (weight, order), (other_weight, other_order), again = begin(0), begin(3), begin(0)
    assert made == [0, 3, 0]
    assert not torch.equal(weight, other_weight) and not torch.equal(order, other_order)
    assert torch.equal(weight, again[0]) and torch.equal(order, again[1])


def test_the_method_gets_the_prior_and_the_images_that_it_asks_for(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(*GKPGSA)
    training = prepare_training(recipe, prepare_data(recipe), create_accelerator(recipe), tmp_path)
    assert training.method is not None
    torch.testing.assert_close(training.method.log_prior, training.learner.objective.logit_adjustment)
    train, indices = training.dataset.train, np.array([200, 3, 5, 7])
    ((images, labels),) = training.samples(indices)
    assert labels.tolist() == train.labels[indices].tolist()
    pixels = np.stack([np.asarray(train.images[int(i)]) for i in indices]) / 255
    expected = ((pixels - training.dataset.mean) / training.dataset.std).transpose(0, 3, 1, 2)
    torch.testing.assert_close(images, torch.from_numpy(expected).float())


def test_a_run_with_few_checkpoints_goes_on_from_the_last(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*GKPGSA, 'method.snapshots=disk', 'epochs=5', 'checkpoint_every=2')
    saved: list[int] = []
    save, take = fit_module._save, fit_module.train_one_epoch

    def save_and_tell(folder: RunFolder, training: Training) -> None:
        saved.append(training.epoch)
        save(folder, training)

    def stop(*args: Any, epoch: int, **options: Any) -> Any:
        if epoch == 3:
            raise Pulled
        return take(*args, epoch=epoch, **options)

    monkeypatch.setattr(fit_module, '_save', save_and_tell)
    fit(make_recipe(*options), tmp_path / 'whole', progress=False)
    assert saved == [2, 4, 5]
    with monkeypatch.context() as patch, pytest.raises(Pulled):
        patch.setattr(fit_module, 'train_one_epoch', stop)
        fit(make_recipe(*options), tmp_path / 'cut', progress=False)
    fit(make_recipe(*options, 'resume=auto'), tmp_path / 'cut', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    assert [json.loads(line)['epoch'] for line in (tmp_path / 'cut' / 'log.jsonl').open()] == list(range(5))


def test_two_processes_cannot_train_into_one_folder(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    with RunFolder(run).alone(), pytest.raises(BusyError, match='run is being written by another process'):
        fit(make_recipe('resume=auto', 'epochs=1'), run, progress=False)
    # A folder in which nothing came to be is gone, and free.
    assert not run.exists()
    fit(make_recipe('resume=auto', 'epochs=1'), run, progress=False)
    assert not (run / '.lock').exists()


def test_hold_out_size_and_the_training_images(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    overrides = (
        'evaluation.split=holdout',
        'evaluation.holdout_per_class=1',
        'evaluation.train=true',
        'objective.name=ce',
    )
    recipe = make_recipe(*overrides)
    results = fit(recipe, tmp_path / 'run', progress=False)
    assert results['samples'] == 10
    model = ltzoo.create_model(f'local-dir:{tmp_path / "run" / "model"}', pretrained=True).eval()
    dataset = prepare_data(recipe)
    train, mean, std = dataset.train, dataset.mean, dataset.std
    images = np.stack([np.asarray(train.images[i]) for i in range(len(train))]) / 255.0
    logits = model(torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2)).float())
    right = (logits.argmax(1).numpy() == train.labels).mean()
    assert results['train_top1'] == pytest.approx(100 * right)
    assert 10 < results['train_top1'] < 100


def test_a_recipe_may_have_its_images_fetched(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        'ltzoo.training.prepare.load_parts', lambda name, place, *, download, **_: asked.append(download)
    )
    prepare_data(make_recipe())
    prepare_data(make_recipe('data.download=true'))
    assert asked == [False, True]


def test_folders_that_cannot_be_used(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    fit(make_recipe('epochs=1'), run, progress=False)
    with pytest.raises(CheckpointError, match='holds a run already'):
        fit(make_recipe('epochs=1'), run)
    with pytest.raises(CheckpointError, match=r'another recipe: optimizer\.lr was 0\.05, is 0\.1'):
        fit(make_recipe('epochs=1', 'resume=auto', 'optimizer.lr=0.1'), run)
    # A finished run that was brought home has no checkpoint.
    (run / 'checkpoint.pt').unlink()
    with pytest.raises(CheckpointError, match='holds a run already'):
        fit(make_recipe('epochs=1'), run)
    with pytest.raises(CheckpointError, match=r'another recipe: optimizer\.lr was 0\.05, is 0\.1'):
        fit(make_recipe('epochs=1', 'resume=auto', 'optimizer.lr=0.1'), run)
    torch.save({'weights': 1}, run / 'checkpoint.pt')
    (run / 'results.json').unlink()
    with pytest.raises(CheckpointError, match='is no checkpoint of a run; give another'):
        fit(make_recipe('epochs=1', 'resume=auto'), run, progress=False)
    (run / '.checkpoint.pt.1.part').touch()
    (run / 'checkpoint.pt').unlink()
    shutil.rmtree(run / 'model')
    (run / '.model.killed' / 'new').mkdir(parents=True)
    fit(make_recipe('epochs=1', 'resume=auto'), run, progress=False)
    assert not (run / '.checkpoint.pt.1.part').exists() and not (run / '.model.killed').exists()
    # One that was killed when it made its first file is begun anew.
    (tmp_path / 'young').mkdir()
    (tmp_path / 'young' / '.recipe.yaml.1.part').touch()
    fit(make_recipe('epochs=1'), tmp_path / 'young', progress=False)
    assert not (tmp_path / 'young' / '.recipe.yaml.1.part').exists()
    shutil.rmtree(tmp_path / 'young' / 'model')
    (tmp_path / 'young' / 'checkpoint.pt').unlink()
    with pytest.raises(CheckpointError, match='holds a finished run without its model and checkpoint'):
        fit(make_recipe('epochs=1', 'resume=auto'), tmp_path / 'young')
    assert (tmp_path / 'young' / 'results.json').exists()
    (run / 'recipe.yaml').write_text('epochs: [')
    with pytest.raises(CheckpointError, match=r'recipe\.yaml is damaged, or of another version of ltzoo'):
        fit(make_recipe('epochs=1', 'resume=auto'), run)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'thesis.txt').write_text('mine')
    with pytest.raises(CheckpointError, match='is not empty and holds no run'):
        fit(make_recipe(), tmp_path / 'other')
    # A recipe of one's own makes no run of a folder; that of a run which was killed at once does.
    (tmp_path / 'other' / 'recipe.yaml').write_text('base: ce.yaml  # mine')
    (tmp_path / 'other' / 'model').mkdir()
    with pytest.raises(CheckpointError, match='is not empty and holds no run'):
        fit(make_recipe('resume=auto'), tmp_path / 'other')
    assert (tmp_path / 'other' / 'model').is_dir()
    (tmp_path / 'killed').mkdir()
    (tmp_path / 'killed' / 'recipe.yaml').write_text(make_recipe('epochs=1').to_yaml())
    fit(make_recipe('epochs=1'), tmp_path / 'killed', progress=False)
    with pytest.raises(CheckpointError, match='is a file'):
        fit(make_recipe(), tmp_path / 'other' / 'thesis.txt')
    assert (tmp_path / 'other' / 'thesis.txt').read_text() == 'mine'


def test_a_checkpoint_of_another_model_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    fit(make_recipe('epochs=1'), run, progress=False)
    state = load_checkpoint(run / 'checkpoint.pt')
    state['learner'] = {'model.conv1.weight': torch.zeros(1)}
    save_checkpoint(run / 'checkpoint.pt', state)
    (run / 'results.json').unlink()
    # What is refused stays as it is, with what the log says of epochs since the checkpoint.
    with open(run / 'log.jsonl', 'a') as log:
        log.write('{"epoch": 1}\n')
    (run / 'environment.json').write_text('{"commit": "former"}')
    (run / 'diverged.txt').write_text('the loss is not finite')
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    with pytest.raises(CheckpointError, match='is not of this model and optimiser'):
        fit(make_recipe('epochs=1', 'resume=auto'), run)
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('model.num_classes=12', 'num_classes=12, but digits_lt has 10 classes: leave it out'),
        ('trackers=[trackio]', 'trackio needs its package: pip install trackio'),
        ('views=digits_bcl', 'needs 1 view, and views has 3: presets with 1 are cifar_plain, '),
        ('batch_size=121', 'batch_size 121 must be a multiple of 2'),
        ('precision=fp16', 'needs a GPU'),
        ('sync_batchnorm=true', 'needs GPUs'),
        ('optimizer.name=sgdd', 'optimizer.name'),
        ('optimizer.name=adahessian', 'adahessian needs second derivatives'),
        ('model.img_size=16', r'no step can be taken with model .* on images of 8 x 8 pixels, 2 at once: Input height'),
        ('model.in_chans=1', 'no step can be taken with model .* channels'),
        ('retraining={start_epoch: 1, lr: 0}', r'retraining\.lr is 0: input should be greater than 0'),
    ],
)
def test_recipes_that_cannot_run_here(make_recipe: MakeRecipe, tmp_path: Path, override: str, message: str) -> None:
    if torch.cuda.is_available() and 'GPU' in message:
        pytest.skip('this machine has the GPU that the refusal is about')
    with pytest.raises(RecipeError, match=message):
        fit(make_recipe(override, 'accumulation=2'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_tracker_gets_the_numbers(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe('trackers=[tensorboard]', 'epochs=2', 'method.group_by=frequency', 'method.preservation=null')
    results = fit(recipe, tmp_path / 'run', progress=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Accelerate writes the configuration to a file of its own.
    files = [EventAccumulator(str(path)).Reload() for path in (tmp_path / 'run').rglob('events.out.*')]
    (told,) = [file for file in files if 'loss' in file.Tags()['scalars']]
    assert [event.step for event in told.Scalars('loss')] == [0, 1]
    assert [event.step for event in told.Scalars('method/perturbed_loss')] == [0, 1]
    (top1,) = told.Scalars('test/top1')
    assert (top1.step, top1.value) == (2, pytest.approx(results['top1'], rel=1e-6))


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('model.drop_rate=much', "drop_rate must lie between 0 and 1, not 'much'"),
        ('optimizer.name=sgdd', r"optimizer\.name: timm has no 'sgdd'; did you mean sgd\w*\?"),
        ('model.img_size=16', 'no step can be taken'),
        ('optimizer.name=sgd\0optimizer.momentum=0', r'optimizer\.name=sgd, optimizer\.momentum=0: Nesterov'),
    ],
)
def test_a_dry_run_finds_what_training_would(make_recipe: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises((RecipeError, ModelArgumentError), match=message):
        describe_batch(make_recipe(*override.split('\0')))


@pytest.mark.parametrize('split', ['test', 'holdout'])
def test_a_drawn_test_part_is_not_one_of_other_images(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    pictures: Path,
    split: Literal['test', 'holdout'],
) -> None:
    images, run = pictures / 'train', tmp_path / 'run'
    options = (*of_pictures(images), 'epochs=2', 'resume=auto', f'evaluation.split={split}')
    fit_until(1, make_recipe(*options), run)

    def rename(old: str, new: str) -> None:
        (images / 'light' / old).rename(images / 'light' / new)

    rename('0.png', 'zzz.png')
    with pytest.raises(CheckpointError, match='was trained on other images of folder:'):
        fit(make_recipe(*options), run, progress=False)
    rename('zzz.png', '0.png')
    results = fit(make_recipe(*options), run, progress=False)
    assert evaluate_model(str(run), f'folder:{images}', split=split)['top1'] == results['top1']
    rename('0.png', 'zzz.png')
    with pytest.raises(
        EvaluationError, match=r'has other images, or other names for them, than when .*run was trained'
    ):
        evaluate_model(str(run), f'folder:{images}', split=split)
    # A test set of its own holds none of them.
    apart = tmp_path / 'train'
    apart.symlink_to(pictures)
    assert evaluate_model(str(run), f'folder:{apart}')['samples'] == 8


def test_a_run_goes_on_without_the_weights_that_it_began_with(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    start = tmp_path / 'start.pt'
    recipe = make_recipe()
    torch.save(create_learner(recipe, prepare_data(recipe)).model.state_dict(), start)
    words = (f'model.checkpoint_path={start}', 'epochs=2', 'resume=auto')
    whole = fit(make_recipe(*words), tmp_path / 'whole', progress=False)
    fit_until(1, make_recipe(*words), tmp_path / 'run')
    start.unlink()
    assert fit(make_recipe(*words), tmp_path / 'run', progress=False)['top1'] == whole['top1']
    assert_equal_runs(tmp_path / 'run', tmp_path / 'whole')
    with pytest.raises(ModelFilesError, match='there is no file'):
        fit(make_recipe(*words), tmp_path / 'new', progress=False)


def test_a_run_goes_on_where_its_images_lie_elsewhere(make_recipe: MakeRecipe, tmp_path: Path, pictures: Path) -> None:
    run, moved = tmp_path / 'run', tmp_path / 'other machine' / 'train'
    options = ('epochs=2', 'resume=auto', 'evaluation.batch_size=3')
    fit_until(1, make_recipe(*of_pictures(pictures / 'train'), *options), run)
    shutil.copytree(pictures / 'train', moved)
    shutil.rmtree(pictures / 'train')
    # Nor does how many images are tested at once make another run of it.
    results = fit(make_recipe(*of_pictures(moved), *options[:2], 'evaluation.batch_size=5'), run, progress=False)
    assert results['samples'] == 4
    with pytest.raises(CheckpointError, match=r'another recipe: data\.name was .*machine/train, is .*/pictures'):
        fit(make_recipe(*of_pictures(tmp_path / 'pictures'), *options), run, progress=False)
    # Finished, it is no run of images that are elsewhere: nobody looks at those any more.
    with pytest.raises(CheckpointError, match=r'another recipe: data\.name was .*machine/train, is .*/train'):
        fit(make_recipe(*of_pictures(pictures / 'train'), *options), run, progress=False)


def test_a_run_does_not_go_on_with_other_images_of_a_folder_of_that_name(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    run, other = tmp_path / 'run', tmp_path / 'other' / pictures.name
    options = ('epochs=2', 'resume=auto')
    fit_until(1, make_recipe(*of_pictures(pictures), *options), run)
    shutil.copytree(pictures, other)
    (other / 'train' / 'light' / '0.png').rename(other / 'train' / 'light' / 'zzz.png')
    with pytest.raises(CheckpointError, match='has other images, or other names for them: put them back'):
        fit(make_recipe(*of_pictures(other), *options), run, progress=False)
    (other / 'train' / 'light' / 'zzz.png').rename(other / 'train' / 'light' / '0.png')
    assert fit(make_recipe(*of_pictures(other), *options), run, progress=False)['samples'] == 8


def test_new_images_are_scored_whole_by_the_shots_of_the_training(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thresholds = ('evaluation.many_above=10', 'evaluation.few_below=5')
    run = str(tmp_path / 'run')
    fit(make_recipe(*of_pictures(pictures / 'train'), *thresholds), tmp_path / 'run', progress=False)
    new = tmp_path / 'collected later'
    shutil.copytree(pictures / 'test', new)
    scores = evaluate_model(run, f'folder:{new}', split='all')
    assert (scores['samples'], scores['split'], scores['few']) == (8, 'all', None)
    assert [row['train_count'] for row in scores['per_class']] == [10, 10]
    assert not caplog.records
    # Without it a fifth is scored, which may be of images that the model knows.
    assert evaluate_model(run, f'folder:{new}')['samples'] == 2
    assert f'the test set of folder:{new} is drawn from its images: scores are too high if' in caplog.text
    # The validation set is of them, too.
    (new / 'dark').rename(tmp_path / 'dark')
    for part in ('train', 'test', 'val'):
        for name in ('dark', 'light'):
            (tmp_path / 'three' / part / name).mkdir(parents=True)
            shutil.copy(tmp_path / 'dark' / '0.png', tmp_path / 'three' / part / name)
    assert evaluate_model(run, f'folder:{tmp_path / "three"}', split='all')['samples'] == 6
    config = tmp_path / 'run' / 'model' / 'config.json'
    copied = shutil.copytree(config.parent, tmp_path / 'silent')
    read = json.loads(config.read_text())
    del read['lt']
    (copied / 'config.json').write_text(json.dumps(read))
    with pytest.raises(EvaluationError, match='does not say how many images of each class it was trained on'):
        evaluate_model(f'local-dir:{copied}', f'folder:{tmp_path / "three"}', split='all')
    remedies = {
        pictures / 'train': 'if these are, rename their folder$',
        # Of the same name or not, there are as many of every class.
        tmp_path / 'renamed': 'these are as many of every class; if they are others, add one or leave one out$',
    }
    for known, remedy in remedies.items():
        if not known.exists():
            shutil.copytree(pictures / 'train', known)
        with pytest.raises(EvaluationError, match=f'may have been trained on images of .*{remedy}'):
            evaluate_model(run, f'folder:{known}', split='all')


def test_new_images_of_some_classes_are_scored_by_the_names_of_all(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    for part in ('train', 'test'):
        (pictures / part / 'dark').rename(pictures / part / 'middle')
        shutil.copytree(pictures / part / 'middle', pictures / part / 'a third')
    fit(make_recipe(*of_pictures(pictures)), tmp_path / 'run', progress=False)
    new = tmp_path / 'later'
    for name in ('middle', 'light'):
        shutil.copytree(pictures / 'test' / name, new / name)
    scores = evaluate_model(str(tmp_path / 'run'), f'folder:{new}', split='all')
    assert [(row['name'], row['test_count']) for row in scores['per_class']] == [
        ('a third', 0), ('light', 4), ('middle', 4),
    ]  # fmt: skip
    whole = evaluate_model(str(tmp_path / 'run'), f'folder:{pictures}')
    assert scores['per_class'][1]['accuracy'] == whole['per_class'][1]['accuracy']
    with pytest.raises(EvaluationError, match=r'has 3 classes, .* has 2'):
        evaluate_model(str(tmp_path / 'run'), f'folder:{new}')


def test_a_test_part_of_its_own_that_was_drawn_before_is_told(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / 'images'
    shutil.copytree(pictures / 'train', images)
    fit(make_recipe(*of_pictures(images)), tmp_path / 'run', progress=False)
    shutil.rmtree(images)
    shutil.copytree(pictures, images)
    assert evaluate_model(str(tmp_path / 'run'), f'folder:{images}')['samples'] == 8
    assert 'has a test set of its own now, where one was drawn when' in caplog.text


def test_a_run_does_not_start_from_weights_that_know_its_test_part(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures / 'train'
    fit(make_recipe(*of_pictures(images)), tmp_path / 'first', progress=False)
    start = ('model=null', f'model={{name: "local-dir:{tmp_path / "first" / "model"}", pretrained: true}}')
    fit(make_recipe(*of_pictures(images), *start), tmp_path / 'second', progress=False)
    assert not caplog.records
    describe_batch(make_recipe(*of_pictures(images), *start, 'evaluation.split=holdout'))
    told = 'was trained on images of the hold-out: scores there will be too high'
    assert told in caplog.text
    small = ('evaluation.split=holdout', 'evaluation.holdout_per_class=1')
    fit(make_recipe(*of_pictures(images), *small), tmp_path / 'left out', progress=False)
    start_small = ('model=null', f'model={{name: "local-dir:{tmp_path / "left out" / "model"}", pretrained: true}}')
    caplog.clear()
    describe_batch(make_recipe(*of_pictures(images), *start_small, *small))
    assert not caplog.records
    describe_batch(make_recipe(*of_pictures(images), *start_small, small[0], 'evaluation.holdout_per_class=2'))
    assert told in caplog.text
    shutil.copy(images / 'light' / '0.png', images / 'light' / 'new.png')
    with pytest.raises(EvaluationError, match='the test set drawn from them would hold some that it was trained on'):
        fit(make_recipe(*of_pictures(images), *start), tmp_path / 'third', progress=False)
    assert not (tmp_path / 'third').exists()


def test_images_that_a_run_with_a_hold_out_knows_are_not_new(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    fit(make_recipe(*of_pictures(pictures), 'evaluation.split=holdout'), tmp_path / 'run', progress=False)
    with pytest.raises(EvaluationError, match='--split all is for images that it was not trained on'):
        evaluate_model(str(tmp_path / 'run'), f'folder:{pictures}', split='all')


def test_own_images_are_fed_as_the_pretrained_model_has_seen_its_own(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    options = (*of_pictures(pictures), 'epochs=1')
    fit(make_recipe(*options), tmp_path / 'first', progress=False)
    config = tmp_path / 'first' / 'model' / 'config.json'
    read = json.loads(config.read_text())
    assert tuple(read['pretrained_cfg']['mean']) == pytest.approx(IMAGENET_DEFAULT_MEAN)
    read['pretrained_cfg'].update(mean=mean, std=std)
    config.write_text(json.dumps(read))
    start = ('model=null', f'model={{name: "local-dir:{config.parent}", pretrained: true}}')
    views: list[torch.Tensor] = []

    def look(step: object, loader: Any, *rest: object, **options: object) -> None:
        views.extend(next(loader.epoch(0)).views)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, 'train_one_epoch', look)
        with pytest.raises(AttributeError):
            fit(make_recipe(*options, *start), tmp_path / 'looked at', progress=False)
    # Pixels are 60 and 190, give or take noise.
    for c in range(3):
        shown = (views[0][:, c] * std[c] + mean[c]) * 255
        assert shown.min() >= 0 and shown.max() <= 255 and abs(shown.mean() - 125) < 40
    fit(make_recipe(*options, *start), tmp_path / 'second', progress=False)
    cfg = json.loads((tmp_path / 'second' / 'model' / 'config.json').read_text())['pretrained_cfg']
    assert (tuple(cfg['mean']), tuple(cfg['std'])) == (mean, std)


@pytest.mark.parametrize(
    'error', [torch.OutOfMemoryError('CUDA out of memory'), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_to_test_with_is_one_sentence(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr('ltzoo.training.training.predict', full)
        with pytest.raises(LtzooError, match=r'evaluation\.batch_size=128: go on with a smaller one and resume=auto'):
            fit(make_recipe('epochs=1'), tmp_path / 'run', progress=False)
    results = fit(make_recipe('epochs=1', 'resume=auto', 'evaluation.batch_size=7'), tmp_path / 'run', progress=False)
    assert results['samples'] == 400


def test_thresholds_are_those_that_a_run_was_trained_with(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    thresholds = ('evaluation.many_above=10', 'evaluation.few_below=5')
    results = fit(make_recipe(*of_pictures(pictures), *thresholds), tmp_path / 'run', progress=False)
    assert results['many'] is not None
    scores = evaluate_model(str(tmp_path / 'run'), f'folder:{pictures}')
    assert (scores['many'], scores['many_above'], scores['few_below']) == (results['many'], 10, 5)
    asked = evaluate_model(str(tmp_path / 'run'), f'folder:{pictures}', many_above=100, few_below=20)
    assert (asked['many'], asked['few']) == (None, results['many'])


def test_a_method_that_comes_too_late_is_told(
    make_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    describe_batch(make_recipe('epochs=4', 'method.first_grouping=3'))
    assert not caplog.records
    describe_batch(make_recipe('epochs=4', 'method.first_grouping=4'))
    said = 'method.first_grouping=4: a run of 4 epochs has no'
    assert caplog.messages == [f'{said} anchors before its end', f'{said} groups before its end']
    caplog.clear()
    # Groups that need no bank are there from the start.
    describe_batch(make_recipe('epochs=4', 'method.first_grouping=4', 'method.group_by=frequency'))
    assert caplog.messages == [f'{said} anchors before its end']
    caplog.clear()
    describe_batch(make_recipe('epochs=4', 'method.first_grouping=1', 'method.sharpness.start_epoch=3'))
    assert not caplog.records
    describe_batch(make_recipe('epochs=4', 'method.first_grouping=1', 'method.sharpness.start_epoch=4'))
    assert caplog.messages == ['method.sharpness.start_epoch=4: a run of 4 epochs ends before any step is perturbed']


def test_a_schedule_that_comes_too_late_is_told(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    steps = 'schedule={name: multistep, warmup_epochs: 4, milestones: [3, 4, 9]}'
    describe_batch(make_recipe('epochs=10', 'method=null', steps))
    assert not caplog.records
    describe_batch(make_recipe('epochs=4', 'method=null', steps))
    assert caplog.messages == ['schedule.milestones: a run of 4 epochs ends before the rate falls at 4, 9']
    describe_batch(make_recipe('epochs=3', 'method=null', steps))
    assert 'schedule.warmup_epochs=4: a run of 3 epochs ends before the full rate' in caplog.text


def test_class_weights_are_in_the_methods_steps_too(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # Without a perturbation and a penalty its step is the ordinary one.
    method = 'method={group_by: frequency, groups: 3, preservation: null, sharpness: {scale: 0.0}}'
    options = ('reweighting.start_epoch=1', 'model.proj_drop_rate=0')
    fit(make_recipe(*options), tmp_path / 'plain', progress=False)
    fit(make_recipe(*options, method), tmp_path / 'grouped', progress=False)
    fit(make_recipe('model.proj_drop_rate=0'), tmp_path / 'unweighted', progress=False)
    plain, grouped, unweighted = (weights(tmp_path / run) for run in ('plain', 'grouped', 'unweighted'))
    for key in plain:
        torch.testing.assert_close(plain[key], grouped[key], rtol=1e-4, atol=1e-5)
    assert max((plain[key] - unweighted[key]).abs().max() for key in plain) > 1e-2


def test_the_second_stage_draws_classes_equally_often(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    whole = Step.__call__

    def look(step: Step, batch: Batch) -> torch.Tensor:
        seen.append(batch.labels)
        return whole(step, batch)

    monkeypatch.setattr(Step, '__call__', look)
    options = ('objective.name=ce', 'epochs=6', 'retraining.start_epoch=3', 'batch_size=120')
    fit(make_recipe(*options), tmp_path / 'run', progress=False)
    first, second = (
        torch.cat(part).bincount(minlength=10) for part in (seen[: len(seen) // 2], seen[len(seen) // 2 :])
    )
    assert first.sum() == second.sum() == 3 * 3 * 120
    # Of 371 images 134 are of class 0 and 2 of class 9.
    assert first[0] > 350 and first[9] <= 6
    assert second.min() > 70 and second.max() < 150


def test_the_second_stage_trains_the_classifier_anew_and_nothing_else(tmp_path: Path) -> None:
    options = ['model.name=resnet8_cifar', 'epochs=5', 'retraining.start_epoch=3']
    recipe = load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', options)
    fit_until(3, recipe, tmp_path / 'run')
    first = load_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['learner']
    first = {key.removeprefix('model.'): value for key, value in first.items()}
    fit(recipe.model_copy(update={'resume': 'auto'}), tmp_path / 'run', progress=False)
    last = weights(tmp_path / 'run')
    assert first.keys() == last.keys() and any('running_mean' in key for key in last)
    changed = {key for key in last if not torch.equal(first[key], last[key])}
    assert changed == {'fc.weight', 'fc.bias'}


def test_scales_of_the_classes_train_and_nothing_else(tmp_path: Path) -> None:
    options = ['model.name=resnet8_cifar', 'epochs=5', 'retraining={start_epoch: 3, part: scales, lr: 0.03}']
    measured = ['evaluation.split=holdout', 'evaluation.holdout_per_class=1', 'evaluation.every_epochs=1']
    recipe = load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', [*options, *measured])
    fit_until(3, recipe, tmp_path / 'run')
    state = load_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['learner']
    assert state.pop('class_scales').tolist() == [1] * 10
    results = fit(recipe.model_copy(update={'resume': 'auto'}), tmp_path / 'run', progress=False)
    first, last = {key.removeprefix('model.'): value for key, value in state.items()}, weights(tmp_path / 'run')
    assert first.keys() == last.keys()
    assert {key for key in last if not torch.equal(first[key], last[key])} == {'fc.weight', 'fc.bias'}
    scales = last['fc.weight'] / first['fc.weight']
    torch.testing.assert_close(scales, scales[:, :1].expand(-1, scales.shape[1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(last['fc.bias'], first['fc.bias'] * scales[:, 0])
    assert ((scales[:, 0] - 1).abs() > 1e-4).all()
    # What a run measures between its epochs has the scales, too.
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').open()]
    assert all(log[-1]['holdout'][key] == results[key] for key in ('top1', 'many', 'medium', 'few'))
    assert log[4]['loss'] < log[3]['loss']


def test_the_new_classifier_owes_nothing_to_the_old_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    remembered = []
    before = Training.retrain_classifier

    def look(training: Training, *, anew: bool) -> None:
        before(training, anew=anew)
        remembered.append((anew, [p in training.optimizer.state for p in training.model.get_classifier().parameters()]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, 'retrain_classifier', look)
        # So small a rate leaves what was drawn.
        second = 'retraining={start_epoch: 2, lr: 1.0e-12}'
        fit(make_recipe(second, 'objective.name=ce', 'seed=7'), tmp_path / 'run', progress=False)
    assert remembered == [(True, [False, False]), (False, [True, True])]
    torch.manual_seed(7)
    drawn = torch.nn.Linear(24, 10)
    found = weights(tmp_path / 'run')
    torch.testing.assert_close(found['head.weight'], drawn.weight.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found['head.bias'], drawn.bias.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['method.first_grouping=1'], 'retraining trains the classifier alone and cannot be combined with a method'),
        (['ema_decay=0.5'], 'retraining trains the classifier alone and cannot be combined with ema_decay=0.5'),
        ([], 'objective logit_adjusted makes up for their numbers once more: leave it out, or take objective.name=ce'),
        (['objective.name=ce', 'reweighting.beta=0.9'], 'and reweighting makes up for their numbers once more'),
        (['objective.name=ce', 'retraining.start_epoch=0'], 'features that nothing has trained: take model.pretrained'),
    ],
)
def test_what_a_second_stage_does_not_go_with(make_recipe: MakeRecipe, options: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        describe_batch(make_recipe('retraining.start_epoch=2', *options))


def test_scales_of_a_cosine_head_are_refused(make_recipe: MakeRecipe) -> None:
    options = ('objective.name=ce', 'model.head=cosine', 'retraining={start_epoch: 2, part: scales}')
    with pytest.raises(
        RecipeError, match=r'a linear classifier; that of model timm/vit.* is CosineLinear: take model\.head=linear, or'
    ):
        describe_batch(make_recipe(*options))


def test_scales_of_a_classifier_that_nothing_has_trained_are_refused() -> None:
    options = ('model.name=resnet32_cifar_ce', 'model.pretrained=true', 'retraining={start_epoch: 0, part: scales}')
    told = 'resnet32_cifar_ce comes with one of 100 classes for the 10 here: take retraining.part=classifier'
    with pytest.raises(RecipeError, match=told):
        describe_batch(load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', options))


def test_scales_that_the_losses_pass_by_are_refused(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(objective: CrossEntropy, model: Any, views: Any, labels: torch.Tensor) -> torch.Tensor:
        features = model.forward_head(model.forward_features(views[0]), pre_logits=True)
        return F.cross_entropy(F.linear(features, model.head.weight), labels, reduction='none')

    monkeypatch.setattr(CrossEntropy, 'forward', losses)
    with pytest.raises(RecipeError, match=r'whose logits retraining\.part=scales multiplies'):
        describe_batch(make_recipe('objective.name=ce', 'retraining={start_epoch: 2, part: scales}'))


@pytest.mark.parametrize(('classifier', 'told'), [(None, 'none'), (torch.nn.Sequential(), 'Sequential')])
def test_a_classifier_that_cannot_be_drawn_anew_is_refused(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, classifier: Any, told: str
) -> None:
    monkeypatch.setattr(VisionTransformer, 'get_classifier', lambda model: classifier)
    with pytest.raises(RecipeError, match=f'trains a classifier of one layer; that of model timm/vit.* is {told}$'):
        describe_batch(make_recipe('retraining.start_epoch=2', 'objective.name=ce'))


def test_a_second_stage_that_comes_too_late_is_told(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    def describe(*options: str) -> list[str]:
        caplog.clear()
        steps = 'schedule={name: multistep, warmup_epochs: 1, milestones: [2, 3]}'
        warn_of_what_never_comes(make_recipe(steps, *options))
        return caplog.messages

    assert describe('epochs=5', 'retraining.start_epoch=4') == []
    assert describe('epochs=5', 'retraining.start_epoch=3') == [
        'schedule.milestones: a first stage of 3 epochs ends before the rate falls at 3'
    ]
    # Weights that are trained already have no first stage.
    assert describe('epochs=5', 'retraining.start_epoch=0') == []
    assert describe('epochs=4', 'retraining.start_epoch=4') == [
        'retraining.start_epoch=4: a run of 4 epochs ends before the classifier is trained alone'
    ]
    assert describe('schedule.name=cosine') == [
        'schedule.milestones is ignored: it is for schedule.name=multistep, not cosine'
    ]
    weighed = (
        'epochs=4',
        'schedule.milestones=[]',
        'schedule.name=cosine',
        'objective={name: ride, reweighting_epoch: 4}',
    )
    assert describe(*weighed) == ['objective.reweighting_epoch=4: a run of 4 epochs ends before any class is weighed']
    assert describe(*weighed, 'objective.reweighting_epoch=3') == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (GKPGSA, 'mixing cannot be combined with a method, which tells images by their class: leave it out'),
        (
            ['objective.name=focal'],
            'objective focal does not take mixed images, which have shares of classes for labels: leave mixing out, or',
        ),
    ],
)
def test_what_mixed_images_do_not_go_with(make_recipe: MakeRecipe, options: Sequence[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        describe_batch(make_recipe('mixing.mixup=0.4', *options))


def test_an_objective_of_ones_own_that_takes_no_shares_after_all(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossEntropy, 'forward', lambda _, model, views, labels: model(views[0])[range(2), labels])
    with pytest.raises(RecipeError, match='no step can be taken with model'):
        describe_batch(make_recipe('objective.name=ce', 'mixing.cutmix=1'))


def test_a_model_cut_up_among_processes_is_refused(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, 'distributed_type', DistributedType.FSDP)
    with pytest.raises(RecipeError, match='accelerate is configured for FSDP, which cuts the model up'):
        create_accelerator(make_recipe())


def test_processes_with_other_checkpoints_are_refused(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(main_process_first=nullcontext, is_main_process=False, num_processes=2)
    training = SimpleNamespace(recipe=make_recipe(), accelerator=here)
    monkeypatch.setattr(fit_module, 'gather_object', lambda found: [2, *found])
    with pytest.raises(CheckpointError, match='the processes find different checkpoints in output='):
        fit_module._restore(RunFolder(tmp_path / 'run'), training)


def test_processes_that_found_other_images_are_refused(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepare_data(make_recipe())
    one = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(fit_module, 'gather_object', lambda found: [*found, *found])
    fit_module._require_alike(one, dataset)
    less = {**dataset.identity, 'class_counts': [1, 2]}
    monkeypatch.setattr(fit_module, 'gather_object', lambda found: [*found, less])
    with pytest.raises(DataError, match=r'process 1 found other images in digits_lt than process 0 \(3 and 371 for'):
        fit_module._require_alike(one, dataset)


def test_class_weights_are_at_work_from_their_epoch_on(
    make_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = {}
    for start in (None, 0, 2):
        options = () if start is None else (f'reweighting.start_epoch={start}',)
        fit(make_recipe(*options), tmp_path / str(start), progress=False)
        losses[start] = [json.loads(line)['loss'] for line in (tmp_path / str(start) / 'log.jsonl').open()]
    assert losses[2][:2] == losses[None][:2]
    assert losses[2][2] != losses[None][2] and losses[0][0] != losses[None][0]
    assert not caplog.records
    describe_batch(make_recipe('epochs=4', 'reweighting.start_epoch=4'))
    assert caplog.messages == ['reweighting.start_epoch=4: a run of 4 epochs ends before any class is weighed']


def test_an_average_that_the_run_is_too_short_for_is_told(
    make_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(make_recipe('epochs=1', 'ema_decay=0.3'), tmp_path / 'short', progress=False)
    assert not caplog.records
    fit(make_recipe('epochs=1', 'ema_decay=0.9999'), tmp_path / 'long', progress=False)
    assert 'ema_decay=0.9999: at the end of so short a run the average is still 100 %' in caplog.text


@pytest.mark.parametrize(
    ('capability', 'has_bf16', 'precision', 'told'),
    [
        ('AVX512', True, 'bf16', 0), ('AVX512', False, 'bf16', 1), ('AVX512', False, 'fp32', 0),
        ('AVX2', False, 'bf16', 1), ('SVE256', False, 'bf16', 0),
    ],
)  # fmt: skip
def test_bf16_on_a_cpu_that_computes_it_slowly_is_told(
    capability: str,
    has_bf16: bool,
    precision: str,
    told: int,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(AcceleratorState, '_shared_state', {})
    monkeypatch.setattr('torch.backends.cpu.get_cpu_capability', lambda: capability)
    monkeypatch.setattr('torch.cpu._is_avx512_bf16_supported', lambda: has_bf16)
    create_accelerator(make_recipe(f'precision={precision}'))
    assert caplog.text.count('precision=bf16: this CPU has no AVX512-BF16') == told


def test_pieces_of_a_batch_are_another_loss_for_bcl(caplog: pytest.LogCaptureFixture) -> None:
    for name, told in (('ce', 0), ('bcl', 1)):
        describe_batch(load_recipe(ROOT / 'recipes' / 'digits_lt' / f'{name}.yaml', ['accumulation=2']))
        assert caplog.text.count(f'accumulation=2: objective {name} contrasts each piece of a batch') == told


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of files, one dark and one light, to train and to test on."""
    noise = np.random.default_rng(0)
    for part, count in (('train', 12), ('test', 4)):
        for name, value in (('dark', 60), ('light', 190)):
            (tmp_path / 'pictures' / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (value + noise.integers(0, 9, (20, 26, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / 'pictures' / part / name / f'{i}.png')
    return tmp_path / 'pictures'


def of_pictures(place: Path) -> tuple[str, ...]:
    views = 'views=[[{random_crop: {size: 8, padding: 0}}]]'
    return (f'data.name=folder:{place}', views, 'batch_size=8', 'workers=0', 'epochs=1')


def test_a_run_does_not_become_a_class_of_its_images(make_recipe: MakeRecipe, tmp_path: Path, pictures: Path) -> None:
    for place, classes in ((pictures / 'train', 'train/run'), (pictures, 'train/run')):
        with pytest.raises(CheckpointError, match='would be taken for a class: give one outside of them'):
            fit(make_recipe(*of_pictures(place)), pictures / classes, progress=False)
    assert not (pictures / 'train' / 'run').exists()
    # Beside training and test set it is none.
    fit(make_recipe(*of_pictures(pictures)), pictures / 'run', progress=False)


def test_more_images_are_other_images_also_where_unreadable_ones_are_skipped(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    skip = (*of_pictures(pictures), 'data.unreadable=skip', 'epochs=2')
    fit_until(1, make_recipe(*skip), tmp_path / 'run')
    shutil.copy(pictures / 'train' / 'light' / '2.png', pictures / 'train' / 'light' / 'new.png')
    with pytest.raises(CheckpointError, match='put them back, or give another output'):
        fit(make_recipe(*skip, 'resume=auto'), tmp_path / 'run', progress=False)


def test_more_test_images_are_another_test_also_where_unreadable_ones_are_skipped(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    skip = (*of_pictures(pictures), 'data.unreadable=skip', 'epochs=2')
    fit_until(1, make_recipe(*skip), tmp_path / 'run')
    added = shutil.copy(pictures / 'test' / 'light' / '2.png', pictures / 'test' / 'light' / 'new.png')
    with pytest.raises(CheckpointError, match=r'was begun with 8 images to test on, folder:.* now has 9, or more of'):
        fit(make_recipe(*skip, 'resume=auto'), tmp_path / 'run', progress=False)
    added.unlink()
    (pictures / 'test' / 'light' / '2.png').unlink()
    assert fit(make_recipe(*skip, 'resume=auto'), tmp_path / 'run', progress=False)['samples'] == 7


def test_the_plot_that_is_published_names_no_folder(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr('ltzoo.training.fit.plot_accuracy', lambda results, path: drawn.append(results))
    fit(make_recipe(*of_pictures(pictures), 'epochs=1'), tmp_path / 'run', progress=False)
    assert drawn[0]['data'] == f'folder:{pictures.name}' and drawn[0]['top1'] is not None


def test_an_unreadable_test_image_is_met_before_training(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    (pictures / 'test' / 'light' / '2.png').write_bytes(b'no image')
    with pytest.raises(UnreadableImageError, match=r'light/2\.png'):
        fit(make_recipe(*of_pictures(pictures)), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()
    again = make_recipe(*of_pictures(pictures), 'data.unreadable=skip')
    assert fit(again, tmp_path / 'run', progress=False)['samples'] == 7


def test_a_run_that_an_unreadable_image_stopped_goes_on_without_it(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    options = (*of_pictures(pictures), 'epochs=2')
    fit_until(1, make_recipe(*options), tmp_path / 'run')
    (pictures / 'train' / 'light' / '0.png').write_bytes(b'no image')
    fit(make_recipe(*options, 'resume=auto', 'data.unreadable=skip'), tmp_path / 'run', progress=False)
    recipe = yaml.safe_load((tmp_path / 'run' / 'recipe.yaml').read_text())
    assert recipe['data']['unreadable'] == 'skip'


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('model.features_only=true', 'no step can be taken with model timm/resnet18, objective ce'),
        ('batch_size=1', 'on images of 8 x 8 pixels, 1 at once: Expected more than 1 value per channel'),
    ],
)
def test_networks_that_cannot_be_trained_so(tmp_path: Path, override: str, message: str) -> None:
    recipe = load_recipe(ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', ['model.name=timm/resnet18', override])
    with pytest.raises(RecipeError, match=message):
        fit(recipe, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_files_that_a_view_leaves_at_their_own_size_are_refused(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    with pytest.raises(ViewError, match=r'view 1 leaves image files at the size that each of them has'):
        fit(make_recipe(*of_pictures(pictures), 'views=[[horizontal_flip]]'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_is_not_continued_on_other_images(make_recipe: MakeRecipe, tmp_path: Path, pictures: Path) -> None:
    options = (*of_pictures(pictures), 'epochs=2', 'resume=auto')
    fit_until(1, make_recipe(*options), tmp_path / 'run')
    moved = pictures / 'train' / 'light' / '0.png'
    moved.rename(tmp_path / '0.png')
    before = (tmp_path / 'run' / 'environment.json').stat().st_mtime_ns
    with pytest.raises(CheckpointError, match=r'was trained on 24 images in 2 classes, folder:.* now has 23 in 2'):
        fit(make_recipe(*options), tmp_path / 'run', progress=False)
    assert (tmp_path / 'run' / 'environment.json').stat().st_mtime_ns == before
    renamed = moved.with_name('zzz.png')
    (tmp_path / '0.png').rename(renamed)
    with pytest.raises(CheckpointError, match='has other images, or other names for them: put them back'):
        fit(make_recipe(*options), tmp_path / 'run', progress=False)
    renamed.rename(moved)
    assert fit(make_recipe(*options), tmp_path / 'run', progress=False)['epochs'] == 2


def test_a_run_is_not_continued_on_classes_of_other_names(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path
) -> None:
    options = (*of_pictures(pictures), 'epochs=2', 'data.unreadable=skip')
    fit_until(1, make_recipe(*options), tmp_path / 'run')
    for part in ('train', 'test'):
        (pictures / part / 'dark').rename(pictures / part / 'night')
    with pytest.raises(CheckpointError, match='was trained on classes of other names, or in another order'):
        fit(make_recipe(*options, 'resume=auto'), tmp_path / 'run', progress=False)


@pytest.mark.parametrize(
    ('options', 'crop_pct'),
    [
        (('views=[[{random_crop: {size: 8, padding: 0}}]]',), 1.0),
        (('views=[[{random_resized_crop: {size: 8}}, horizontal_flip]]',), 0.875),
        (('views=[[{random_resized_crop: {size: 8}}, horizontal_flip]]', 'evaluation.crop_pct=0.75'), 0.75),
    ],
)
def test_the_test_crop_suits_the_views(
    make_recipe: MakeRecipe, tmp_path: Path, pictures: Path, options: tuple[str, ...], crop_pct: float
) -> None:
    fit(make_recipe(*of_pictures(pictures), *options), tmp_path / 'run', progress=False)
    fed = json.loads((tmp_path / 'run' / 'model' / 'config.json').read_text())['pretrained_cfg']
    assert (fed['input_size'], fed['crop_pct']) == ([3, 8, 8], crop_pct)


def test_own_files_train_even_smaller_than_the_crop_and_their_place_is_not_published(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, count in (('many', 24), ('few', 4)):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / 'images' / name / f'{i}.png')
    place = f'data.name=folder:{tmp_path / "images"}'
    views = 'views=[[{random_crop: {size: 8, padding: 0}}]]'
    results = fit(make_recipe(place, views, 'batch_size=8', 'workers=0', 'epochs=1'), tmp_path / 'run', progress=False)
    assert results['samples'] == 6
    for name in ('config.json', 'README.md'):
        text = (tmp_path / 'run' / 'model' / name).read_text()
        assert 'folder:images' in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize(
    'override', ['views=cifar_plan', 'optimizer.name=adm', 'objective={name: bcee}', 'model.name=timm/resnet118']
)
def test_what_is_misspelled_is_refused_before_any_image_is_read(
    override: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, 'prepare_data', lambda recipe: pytest.fail('images are read'))
    with pytest.raises(LtzooError):
        fit(make_recipe(override), tmp_path / 'run', progress=False)


def test_the_command_that_a_run_records_can_be_given_to_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ['/some/recipes/train.py', 'recipes/own/bs.yaml', 'data.name=folder:/my images']
    monkeypatch.setattr('sys.argv', words)
    assert shlex.split(describe_environment('cpu', 1)['command']) == ['recipes/train.py', *words[1:]]


def test_the_environments_that_a_run_was_trained_in_are_all_kept(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder, recipe = RunFolder(tmp_path / 'run'), make_recipe('epochs=9')
    one, other = ({'commit': commit, 'threads': 2, 'command': commit} for commit in 'ab')
    folder.start(recipe, one, None)
    folder.start(recipe, {**one, 'command': 'c'}, {'epoch': 2})
    assert json.loads(folder.environment.read_text()) == {**one, 'command': 'c'}
    folder.start(recipe, other, {'epoch': 3})
    folder.start(recipe, one, {'epoch': 5})
    earlier = [{'commit': 'a', 'threads': 2, 'until_epoch': 3}, {'commit': 'b', 'threads': 2, 'until_epoch': 5}]
    assert json.loads(folder.environment.read_text()) == {**one, 'earlier': earlier}
    folder.start(recipe, other, {'epoch': 9})
    assert json.loads(folder.environment.read_text()) == {**one, 'command': 'b', 'earlier': earlier}


def test_two_trainings_in_a_process_have_each_its_own_precision(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for precision in ('fp32', 'bf16', 'fp32'):
        made = create_accelerator(make_recipe(f'precision={precision}'), tmp_path)
        with made.autocast():
            dtype = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        assert dtype == (torch.bfloat16 if precision == 'bf16' else torch.float32)
