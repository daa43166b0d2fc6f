"""Runs on two processes: as one process has them, stopped and gone on with, with batch-norm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from two_processes import ALIKE, DIGITS, PLAIN
from whole_runs import assert_equal_runs, fit_until, weights

import ltzoo
from ltzoo.evaluation import evaluate_model
from ltzoo.training.checkpoint import load_checkpoint
from ltzoo.training.fit import fit
from ltzoo.training.recipe import Recipe

TRAIN = DIGITS.parents[1] / 'train.py'
MakeRecipe = Callable[..., Recipe]
# Gives the folder of a run by its name.
Runs = Callable[[str], Path]


def launch(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    return subprocess.run(
        [*torchrun, str(script), *map(str, arguments)],
        env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def runs(small_recipe: Path, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Give the folders of the runs of `two_processes.py`, which is launched once."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    folder, said = base / 'two_processes', base / 'two_processes.txt'
    # Of several tests, and of several workers, the first one launches for all.
    with FileLock(base / 'two_processes.lock'):
        if not said.exists():
            # An earlier test may have failed here.
            shutil.rmtree(folder, ignore_errors=True)
            fit_until(2, make_recipe(*PLAIN), folder / 'joined')
            done = launch(Path(__file__).with_name('two_processes.py'), folder, small_recipe)
            said.write_text(f'exit code {done.returncode}\n{done.stderr}')

    def finished(name: str) -> Path:
        assert (folder / name / 'results.json').exists(), said.read_text()
        return folder / name

    # All runs may be there, and the end of the processes not be a good one.
    assert said.read_text().startswith('exit code 0\n'), said.read_text()

    return finished


def states(run: Path) -> list[dict[str, Any]]:
    """Return what each of the two processes had in the last checkpoint."""
    return [load_checkpoint(run.with_name(f'{run.name}_{rank}.pt')) for rank in range(2)]


def test_two_processes_score_the_model_that_is_exported(tmp_path: Path) -> None:
    # Batch-norm's running statistics, and their average, are other ones in every process.
    run = tmp_path / 'two'
    done = launch(TRAIN, DIGITS, 'model.name=resnet8_cifar', 'epochs=2', 'ema_decay=0.9', f'output={run}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('run folder:') == 1
    assert json.loads((run / 'environment.json').read_text())['processes'] == 2
    told, again = json.loads((run / 'results.json').read_text()), evaluate_model(str(run), 'digits_lt', workers=0)
    assert {key: told[key] for key in ('top1', 'many', 'ece')} == pytest.approx(
        {key: again[key] for key in ('top1', 'many', 'ece')}, abs=1e-3
    )


@pytest.mark.parametrize('name', ALIKE)
def test_two_processes_give_the_model_of_one(name: str, make_recipe: MakeRecipe, tmp_path: Path, runs: Runs) -> None:
    run = runs(name)
    fit(make_recipe(*ALIKE[name]), tmp_path / 'one', progress=False)
    assert json.loads((run / 'environment.json').read_text())['processes'] == 2
    one, two = weights(tmp_path / 'one'), weights(run)
    torch.manual_seed(2)
    start = ltzoo.create_model(
        'timm/vit_tiny_patch16_224', num_classes=10, img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2
    ).state_dict()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    assert max((one[key] - start[key]).abs().max() for key in one) > 1e-2
    scores = [json.loads((folder / 'results.json').read_text()) for folder in (tmp_path / 'one', run)]
    assert scores[0]['samples'] == scores[1]['samples'] == 400
    assert scores[0]['top1'] == pytest.approx(scores[1]['top1'], abs=0.5)
    logs = [[json.loads(line) for line in (folder / 'log.jsonl').open()] for folder in (tmp_path / 'one', run)]
    for alone, both in zip(*logs, strict=True):
        assert both['loss'] == pytest.approx(alone['loss'], rel=1e-3)
        told, told_by_both = (line.get('method', {}).get('perturbed_loss') for line in (alone, both))
        assert told_by_both == (told and pytest.approx(told, rel=1e-3))
    assert any('perturbed_loss' in line.get('method', {}) for line in logs[1]) == (name == 'gkpgsa')


@pytest.mark.parametrize('name', ['dropout', 'snapshots'])
def test_two_processes_resumed_equal_uninterrupted_bit_for_bit(name: str, runs: Runs) -> None:
    whole, cut = runs(name), runs(f'{name}_cut')
    assert_equal_runs(whole, cut)
    logs = [[json.loads(line) for line in (run / 'log.jsonl').open()] for run in (whole, cut)]
    assert [line['epoch'] for line in logs[1]] == [0, 1, 2, 3]
    assert [line['loss'] for line in logs[0]] == [line['loss'] for line in logs[1]]


def test_a_run_of_one_process_goes_on_with_two(runs: Runs) -> None:
    joined = runs('joined')
    environment = json.loads((joined / 'environment.json').read_text())
    assert environment['processes'] == 2
    assert [(part['processes'], part['until_epoch']) for part in environment['earlier']] == [(1, 2)]
    alone, together = weights(runs('plain')), weights(joined)
    for key in alone:
        torch.testing.assert_close(alone[key], together[key], rtol=1e-4, atol=1e-5)
    # The second process has no state to go on from, and is not seeded by the run's seed, 2; nothing here draws from it.
    torch.manual_seed(1)
    for state in states(joined):
        assert torch.equal(state['rng'][1]['cpu'], torch.get_rng_state())


def test_two_processes_have_the_same_groups_anchors_and_statistics(runs: Runs) -> None:
    # Batch-norm's running statistics go into anchors and Fisher, which each process computes for itself.
    one, other = states(runs('snapshots'))
    assert one['method']['bank']['snapshots'] == {}
    assert len(one['method']['class_groups'].unique()) == 2
    assert any(key.endswith('running_var') for key in one['learner'])
    parts = [{'learner': state['learner'], **state['method']} for state in (one, other)]
    for key in ('learner', 'bank', 'gram', 'class_groups', 'preservation'):
        torch.testing.assert_close(parts[0][key], parts[1][key], rtol=0, atol=0)


@pytest.mark.parametrize('part', ['classifier', 'scales'])
def test_two_processes_keep_one_encoder_in_the_second_stage(part: str, runs: Runs) -> None:
    # Batch-norm's running statistics are those that the first stage ended with.
    first, both = weights(runs('first_stage')), weights(runs(part))
    assert {key for key in both if not torch.equal(first[key], both[key])} == {'fc.weight', 'fc.bias'}
    told = json.loads((runs(part) / 'results.json').read_text())
    assert told['top1'] == pytest.approx(evaluate_model(str(runs(part)), 'digits_lt')['top1'], abs=1e-3)
