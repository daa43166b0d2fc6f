"""The plan runner: its trainings are those of the recipes, its table is theirs, and it goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., int]
SMALL = ['model.name=resnet8_cifar', 'batch_size=16', 'evaluation.split=holdout', 'evaluation.train=true']


def write_plan(folder: Path, seeds: list[int], runs: dict[str, list[str]]) -> Path:
    recipe = os.path.relpath(ROOT / 'recipes' / 'digits_lt' / 'bs.yaml', folder)
    plan = {
        'output': str(folder / 'out'),
        'seeds': seeds,
        'runs': {name: {'recipe': recipe, 'overrides': [*SMALL, *overrides]} for name, overrides in runs.items()},
    }
    (folder / 'plan.yaml').write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder / 'plan.yaml'


def results_of(folder: Path, name: str, seeds: list[int]) -> list[dict[str, Any]]:
    return [json.loads((folder / 'out' / f'{name}_seed{seed}' / 'results.json').read_text()) for seed in seeds]


def test_a_plan_becomes_a_table(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = 'method={groups: 2, first_grouping: 1, regroup_every: 1, sharpness: null}'
    plan = write_plan(
        tmp_path, [3, 4], {'base': ['epochs=3'], 'gkp': ['epochs=4', method], 'bad': ['optimizer.lr=1e9']}
    )
    assert script('tools/reproduce.py', plan, '--jobs', 2) == 1
    told = capsys.readouterr()
    assert 'failed: bad with seed 3' in told.err and 'failed: bad with seed 4' in told.err
    assert 'not finite' in (tmp_path / 'out' / 'bad_seed3.log').read_text()
    base, gkp = json.loads((tmp_path / 'out' / 'table.json').read_text())
    assert (base['name'], base['seeds'], gkp['name']) == ('base', [3, 4], 'gkp')
    for summary in (base, gkp):
        results = results_of(tmp_path, summary['name'], [3, 4])
        assert [result['seed'] for result in results] == [3, 4]
        for key in ('top1', 'few', 'train_top1'):
            values = [result[key] for result in results]
            assert summary[key] == pytest.approx([statistics.mean(values), statistics.stdev(values)])
    assert results_of(tmp_path, 'base', [3])[0]['top1'] != results_of(tmp_path, 'base', [4])[0]['top1']
    mean, deviation = base['top1']
    assert f'| base | 2 | {mean:.1f} ± {deviation:.1f} |' in told.out
    assert (tmp_path / 'out' / 'table.md').read_text().strip() in told.out
    assert base['method'] == {}
    logs = [[json.loads(line) for line in (tmp_path / 'out' / f'gkp_seed{s}' / 'log.jsonl').open()] for s in (3, 4)]
    assert gkp['method']['group_sizes'] == logs[0][-1]['method']['group_sizes']
    assert sum(gkp['method']['group_sizes']) == 10
    pulls = [line['method'].get('penalty_to_loss_gradient') for log in logs for line in log]
    assert any(pulls)
    expected = statistics.median(pull for pull in pulls if pull is not None)
    assert gkp['method']['penalty_to_loss_gradient'] == pytest.approx(expected)
    assert gkp['method']['perturbation'] is None

    # Asked again, it trains only what is missing.
    before = (tmp_path / 'out' / 'base_seed3' / 'results.json').stat().st_mtime_ns
    assert script('tools/reproduce.py', plan, '--only', 'base') == 0
    assert '2 of 2 trainings are finished' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'base_seed3' / 'results.json').stat().st_mtime_ns == before


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, [0], {'long': ['epochs=60'], 'later': ['epochs=1']})
    command = [sys.executable, 'tools/reproduce.py', str(plan)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    first = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and so it would be by what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )  # fmt: skip
    checkpoint = tmp_path / 'out' / 'long_seed0' / 'checkpoint.pt'
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 130
    assert told.strip() == 'stopped: the same command goes on from the last checkpoints'
    assert not (tmp_path / 'out' / 'later_seed0').exists()
    assert not (checkpoint.parent / 'results.json').exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'long, seed 0: finished' in done.stdout
    assert len((checkpoint.parent / 'log.jsonl').read_text().splitlines()) == 60


@pytest.mark.parametrize('plan', sorted((ROOT / 'recipes' / 'plans').iterdir()), ids=lambda path: path.stem)
def test_the_plans_that_come_along_name_recipes_and_keys_that_exist(
    script: Script, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script('tools/reproduce.py', plan, '--table') == 0
    assert capsys.readouterr().out == 'no training is finished yet\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('plan', 'arguments', 'message'),
    [
        ('runs: {}', [], 'plan.yaml: output: Field required'),
        ('output: o\nruns: {}', [], 'plan.yaml: runs: '),
        ('output: o\nruns: {a: {recipe: no.yaml}}', [], 'there is no recipe file {tmp}/no.yaml'),
        ('output: o\nruns: {a: {recipe: no.yaml, sedes: 1}}', [], 'runs.a.sedes: '),
        ('output: o\nruns: {base: {recipe: no.yaml}}', ['--only', 'bass'], 'no run bass; did you mean base?'),
        ('output: o\nruns: {base: {recipe: no.yaml}}', ['--jobs', '0'], '--jobs must be 1 or more, not 0'),
        ('a: [', [], 'cannot be read as a plan'),
        (None, [], 'cannot be read as a plan'),
    ],
)
def test_bad_plans_are_one_sentence_and_exit_code_2(
    script: Script,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plan: str | None,
    arguments: list[str],
    message: str,
) -> None:
    if plan is not None:
        (tmp_path / 'plan.yaml').write_text(plan)
    assert script('tools/reproduce.py', tmp_path / 'plan.yaml', *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('reproduce.py: ')
    assert message.format(tmp=tmp_path) in line
    assert not (tmp_path / 'o').exists()
