"""The plan runner: its trainings are those of the recipes, its table is theirs, and it goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from in_process import Script

from ltzoo.data import DataError, load_data, with_holdout
from ltzoo.plans.plan import Job, Plan
from ltzoo.training.checkpoint import load_checkpoint, save_checkpoint
from ltzoo.training.recipe import with_bases

ROOT = Path(__file__).resolve().parents[2]
SMALL = ['model.name=resnet8_cifar', 'batch_size=16', 'evaluation.split=holdout', 'evaluation.train=true']
GOOD = f'output: o\nruns: {{base: {{recipe: {ROOT}/recipes/digits_lt/ce.yaml}}}}'


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
    assert script('tools/reproduce.py', plan, '--only', 'base', '--jobs', 2) == 0
    capsys.readouterr()
    assert script('tools/reproduce.py', plan, '--seeds', 3, '--jobs', 2) == 1
    told = capsys.readouterr()
    assert 'diverged: bad with seed 3' in told.err
    assert 'failed' not in told.err
    assert 'not been finite' in (tmp_path / 'out' / 'bad_seed3.log').read_text()
    assert re.search('^bad, seed 3: diverged, train.py: .*not been finite', told.out, re.MULTILINE)
    base, gkp, bad = json.loads((tmp_path / 'out' / 'table.json').read_text())
    assert (base['name'], base['seeds'], gkp['name'], gkp['seeds']) == ('base', [3, 4], 'gkp', [3])
    assert (bad['name'], bad['seeds'], bad['diverged']) == ('bad', [], [3])
    assert '| bad | 0, 1 diverged | - |' in told.out
    results = results_of(tmp_path, 'base', [3, 4])
    assert [result['seed'] for result in results] == [3, 4]
    for key in ('top1', 'few', 'train_top1'):
        values = [result[key] for result in results]
        assert base[key] == pytest.approx([statistics.mean(values), statistics.stdev(values)])
    assert results[0]['top1'] != results[1]['top1']
    mean, deviation = base['top1']
    assert base['method'] == {}
    log = [json.loads(line) for line in (tmp_path / 'out' / 'gkp_seed3' / 'log.jsonl').open()]
    assert gkp['method']['group_sizes'] == log[-1]['method']['group_sizes']
    assert sum(gkp['method']['group_sizes']) == 10
    pulls = [line['method'].get('penalty_to_loss_gradient') for line in log]
    assert any(pulls)
    expected = statistics.median(pull for pull in pulls if pull is not None)
    assert gkp['method']['penalty_to_loss_gradient'] == pytest.approx(expected)
    assert gkp['method']['perturbation'] is None

    # A table trains nothing: what is there may be of other recipes.
    assert script('tools/reproduce.py', plan, '--table', '--set', 'optimizer.lr=0.3') == 0
    told = capsys.readouterr()
    assert f'| base, hold-out | 2 | {mean:.1f} ± {deviation:.1f} |' in told.out
    assert (tmp_path / 'out' / 'table.md').read_text().strip() in told.out
    assert script('tools/reproduce.py', plan, '--set', 'optimizer.lr=0.3') == 2
    assert 'another recipe' in capsys.readouterr().err

    # A choice is shown alone, and the files keep the rest.
    whole = (tmp_path / 'out' / 'table.md').read_text()
    assert script('tools/reproduce.py', plan, '--table', '--only', 'gkp', '--seeds', 3) == 0
    chosen = capsys.readouterr().out
    assert '| gkp, hold-out | 1 |' in chosen and '| base' not in chosen
    assert (tmp_path / 'out' / 'table.md').read_text() == whole

    # Asked again, it trains only what is missing.
    before = (tmp_path / 'out' / 'base_seed3' / 'results.json').stat().st_mtime_ns
    assert script('tools/reproduce.py', plan, '--only', 'base') == 0
    assert 'finished trainings: 2 of 2' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'base_seed3' / 'results.json').stat().st_mtime_ns == before
    log = tmp_path / 'out' / 'bad_seed3.log'
    said = log.read_text()
    assert script('tools/reproduce.py', plan, '--only', 'bad', '--seeds', 3) == 1
    told = capsys.readouterr()
    assert 'finished trainings: 0 of 1, 1 diverged' in told.out and 'diverged: bad with seed 3' in told.err
    assert log.read_text() == said
    assert script('tools/reproduce.py', plan, '--only', 'base', '--set', 'optimizer.lr=0.002') == 2
    assert 'base_seed3 holds a run of another recipe: optimizer.lr was ' in capsys.readouterr().err
    assert script('tools/reproduce.py', plan, '--table', '--set', 'optimiser.lr=1') == 2
    assert 'there is no key optimiser; did you mean optimizer?' in capsys.readouterr().err
    damaged = tmp_path / 'out' / 'base_seed3' / 'results.json'
    results = json.loads(damaged.read_text())
    fewer = [{**row, 'train_count': row['train_count'] - 1} for row in results['per_class']]
    for other in ({'recipe': {**results['recipe'], 'precision': 'bf16'}}, {'per_class': fewer}):
        damaged.write_text(json.dumps({**results, **other}))
        assert script('tools/reproduce.py', plan, '--table') == 0
        assert '| base, hold-out | 2, recipes or images differ |' in capsys.readouterr().out
    # What an earlier version wrote down as well, and where the images lay, makes no other recipe of it.
    part = {**results['recipe']['evaluation'], 'batch_size': 3}
    damaged.write_text(json.dumps({**results, 'recipe': {**results['recipe'], 'evaluation': part}}))
    assert script('tools/reproduce.py', plan, '--table') == 0
    assert '| base, hold-out | 2 |' in capsys.readouterr().out
    other = tmp_path / 'out' / 'base_seed4' / 'results.json'
    as_it_was = other.read_text()
    for file, place in ((damaged, 'here'), (other, 'there')):
        said = json.loads(as_it_was)
        said['data'], said['recipe']['model']['name'] = f'folder:/{place}/images', f'local-dir:/{place}/start'
        file.write_text(json.dumps(said))
    assert script('tools/reproduce.py', plan, '--table') == 0
    assert '| base, hold-out | 2 |' in capsys.readouterr().out
    other.write_text(as_it_was)
    damaged.write_text(json.dumps({**results, 'split': 'test', 'split_seed': 7}))
    assert script('tools/reproduce.py', plan, '--table', '--only', 'base', '--seeds', 3) == 0
    assert '| base, split seed 7 | 1 |' in capsys.readouterr().out
    for content in ('', '{}', '[]'):
        damaged.write_text(content)
        assert script('tools/reproduce.py', plan, '--table') == 2
        assert f'{damaged} is damaged: ' in capsys.readouterr().err


def test_only_and_seeds_are_trained_in_the_order_given(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, str, int, Path]] = []

    def train(jobs: Sequence[Job], *_: object) -> list[tuple[Job, int]]:
        for job in jobs:
            trained.append((job.name, job.recipe.optimizer.name, job.seed, job.folder))
            job.folder.mkdir(parents=True)
            # What an unfinished run leaves.
            (job.folder / 'recipe.yaml').write_text(job.recipe.to_yaml())
            (job.folder / 'environment.json').touch()
            (job.folder / 'checkpoint.pt').touch()
        return [(job, 0) for job in jobs]

    monkeypatch.setattr('ltzoo.plans.run.train', train)
    plan = write_plan(tmp_path, [3, 4, 5], {name: ['epochs=1'] for name in ('one', 'two', 'three')})
    chosen = ('--only', 'three', 'one', '--seeds', 5, 3)
    assert script('tools/reproduce.py', plan, *chosen) == 0
    order = [(name, seed) for seed in (5, 3) for name in ('three', 'one')]
    assert trained == [(name, 'momentum', seed, tmp_path / 'out' / f'{name}_seed{seed}') for name, seed in order]
    trained.clear()
    one = ('--only', 'one', '--seeds', 3, '--set', 'optimizer.name=sgd')
    assert script('tools/reproduce.py', plan, *one) == 2
    assert 'one_seed3 holds a run of another recipe: optimizer.name was momentum, is sgd' in capsys.readouterr().err
    # What another recipe has been trained to is no matter elsewhere.
    assert script('tools/reproduce.py', plan, *one, '--output', tmp_path / 'elsewhere') == 0
    assert trained == [('one', 'sgd', 3, tmp_path / 'elsewhere' / 'one_seed3')]
    assert script('tools/reproduce.py', plan, *chosen, '--pack', tmp_path / 'pack') == 0
    packed = yaml.safe_load((tmp_path / 'pack' / 'plan.yaml').read_text())
    assert (packed['seeds'], list(packed['runs'])) == ([5, 3], ['three', 'one'])


def test_what_a_budget_leaves_is_told_and_archived_to_go_on_elsewhere(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deadlines: list[float] = []

    def train(jobs: Sequence[Job], at_once: int, plan: Plan, deadline: float) -> list[tuple[Job, None]]:
        deadlines.append(deadline - time.monotonic())
        folder = jobs[0].folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'recipe.yaml').write_text(jobs[0].recipe.to_yaml())
        (folder / 'environment.json').write_text('{}')
        save_checkpoint(folder / 'checkpoint.pt', {'epoch': 7})
        return [(job, None) for job in jobs]

    monkeypatch.setattr('ltzoo.plans.run.train', train)
    plan = write_plan(tmp_path, [0], {'long': ['epochs=9'], 'later': ['epochs=1']})
    command = ('tools/reproduce.py', plan, '--minutes', 3, '--archive', tmp_path / 'part.tar.gz')
    assert script(*command) == 0
    told = capsys.readouterr().out
    assert 'out of time, the same command goes on with: long with seed 0, later with seed 0\n' in told
    assert 'their checkpoints are not in the archive, where they would be with --with-unfinished' in told
    assert script(*command, '--with-unfinished') == 0
    assert 'their checkpoints are not' not in capsys.readouterr().out
    # From when the tool was started.
    assert all(120 < left < 180 for left in deadlines)
    (elsewhere := tmp_path / 'elsewhere').mkdir()
    plan = write_plan(elsewhere, [0], {'long': ['epochs=9'], 'later': ['epochs=1']})
    assert script('tools/reproduce.py', plan, '--collect', *tmp_path.glob('part-*.tar.gz')) == 0
    assert 'long_seed0: unfinished\nno training is finished yet' in capsys.readouterr().out
    assert load_checkpoint(elsewhere / 'out' / 'long_seed0' / 'checkpoint.pt') == {'epoch': 7}


def test_stopped_and_the_same_command_again(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, [0], {'long': ['epochs=12'], 'later': ['epochs=1']})
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
    assert len((checkpoint.parent / 'log.jsonl').read_text().splitlines()) == 12


def test_a_pack_trains_elsewhere_and_its_archive_comes_home(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, [3, 4], {'base': ['epochs=1'], 'other': ['epochs=1', 'optimizer.lr=0.01']})
    pack = tmp_path / 'pack'
    assert script('tools/reproduce.py', plan, '--pack', pack, '--only', 'base') == 0
    assert f'{pack}: 0.' in capsys.readouterr().out
    assert {path.name for path in pack.iterdir()} == {'COMMIT', 'README.md', 'ltzoo', 'plan.yaml', 'recipes', 'tools'}
    assert not (pack / 'ltzoo' / 'models' / 'weights').exists()
    commit = (pack / 'COMMIT').read_text().strip()
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert commit.removesuffix('-dirty') == head
    (command,) = [line for line in (pack / 'README.md').read_text().splitlines() if line.startswith('PYTHONPATH')]
    command = command.replace('python3', shlex.quote(sys.executable)) + ' --archive runs.tar.gz --max-mb 0.7'
    done = subprocess.run(command, shell=True, cwd=pack, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = json.loads((pack / 'runs' / 'out' / 'base_seed3' / 'environment.json').read_text())
    assert environment['commit'] == commit, 'the code that ran is not that of the pack'

    archives = sorted(pack.glob('runs-*.tar.gz'))
    assert len(archives) == 2 and all(file.stat().st_size <= 0.7e6 for file in archives)
    assert script('tools/reproduce.py', plan, '--collect', archives[0], '--set', 'epochs=2') == 2
    assert (
        f'{archives[0]} holds a run base_seed3 of another recipe than the plan has: epochs was 1, is 2; give the'
        in (capsys.readouterr().err)
    )
    assert script('tools/reproduce.py', plan, '--collect', *archives) == 0
    told = capsys.readouterr().out
    assert 'base_seed3: finished\nbase_seed4: finished\n' in told and '| base, hold-out | 2 |' in told
    home = tmp_path / 'out' / 'base_seed3'
    kept = {'recipe.yaml', 'environment.json', 'log.jsonl', 'results.json', 'model', 'curves.png', 'accuracy.png'}
    assert {path.name for path in home.iterdir()} == kept
    assert (tmp_path / 'out' / 'base_seed3.log').read_text().count('top-1')
    assert script('tools/export.py', home, tmp_path / 'out' / 'base_seed4', '--to', tmp_path / 'exported') == 0
    scores = tmp_path / 'scores.json'
    assert script('tools/evaluate.py', home, '--data', 'digits_lt', '--json', scores) == 0
    small = ('--table', '--only', 'base', '--archive', tmp_path / 'small.tar.gz', '--max-mb', '0.1')
    assert script('tools/reproduce.py', plan, *small) == 1
    assert f'not archived: the run {home} is larger than 0.1 MB: give --max-mb 0.' in capsys.readouterr().err
    # What is finished at home stays; what is of another plan is refused.
    (home / 'mine').touch()
    assert script('tools/reproduce.py', plan, '--collect', *archives) == 0
    assert 'base_seed3: the archive has nothing newer' in capsys.readouterr().out and (home / 'mine').exists()
    changed = tmp_path / 'changed'
    changed.mkdir()
    for runs, message in (({'base': ['epochs=2']}, 'of another recipe'), ({'new': []}, 'base_seed3, which is none of')):
        assert script('tools/reproduce.py', write_plan(changed, [3, 4], runs), '--collect', archives[0]) == 2
        assert message in capsys.readouterr().err
        assert not (changed / 'out').exists()
    # Packing into something, or what git does not know, is refused, and nothing is left behind.
    assert script('tools/reproduce.py', plan, '--pack', pack) == 2
    assert 'not an empty folder' in capsys.readouterr().err
    (tmp_path / 'own.yaml').write_text((ROOT / 'recipes' / 'digits_lt' / 'ce.yaml').read_text())
    plan.write_text(f'output: o\nruns: {{base: {{recipe: {tmp_path}/own.yaml}}}}')
    none = tmp_path / 'none'
    assert script('tools/reproduce.py', plan, '--pack', none) == 2
    assert 'only those that git tracks' in capsys.readouterr().err
    place = ('--set', f'data.name=cifar100_lt_r100:{tmp_path}', '--pack', none)
    assert script('tools/reproduce.py', write_plan(changed, [3], {'base': []}), *place) == 2
    assert (
        f'the data cifar100_lt_r100:{tmp_path} cannot be packed: its path is of this machine' in capsys.readouterr().err
    )
    file = ('--set', 'model.checkpoint_path=w.pt', '--pack', none)
    assert script('tools/reproduce.py', write_plan(changed, [3], {'base': []}), *file) == 2
    assert 'the weights that resnet8_cifar starts from cannot be packed' in capsys.readouterr().err
    taught = ('--set', 'objective={name: distilled, teachers: /none/model}', '--pack', none)
    assert script('tools/reproduce.py', write_plan(changed, [3], {'base': []}), *taught) == 2
    assert '/none/model' in capsys.readouterr().err
    weights = ('model.name=resnet32_cifar_bcl.cifar100_lt_r100', 'model.pretrained=true')
    assert script('tools/reproduce.py', write_plan(changed, [3], {'base': []}), '--set', *weights, '--pack', none) == 2
    assert 'the weights that resnet32_cifar_bcl.cifar100_lt_r100 starts from cannot be' in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(('none', '.'))]


def test_what_is_changed_in_all_recipes_travels_with_a_pack(script: Script, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, [3], {'base': ['epochs=1']})
    assert script('tools/reproduce.py', plan, '--set', 'epochs=2', 'batch_size=8', '--pack', tmp_path / 'pack') == 0
    (run,) = yaml.safe_load((tmp_path / 'pack' / 'plan.yaml').read_text())['runs'].values()
    assert run['overrides'] == [*SMALL, 'epochs=1', 'epochs=2', 'batch_size=8']
    assert 'PLAN.yaml --set epochs=2 batch_size=8 --collect FILE' in (tmp_path / 'pack' / 'README.md').read_text()
    elsewhere = ('--output', tmp_path / 'else where', '--pack', tmp_path / 'other')
    assert script('tools/reproduce.py', plan, *elsewhere) == 0
    assert (
        f"PLAN.yaml --output '{tmp_path}/else where' --collect FILE" in (tmp_path / 'other' / 'README.md').read_text()
    )


@pytest.mark.parametrize('python', [None, '3.12'])
def test_wheels_are_fetched_for_the_other_machine(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    python: str | None,
) -> None:
    run, asked = subprocess.run, []

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if 'pip' not in command:
            return run(command, **options)
        asked.append(command)
        wheels = Path(command[command.index('--dest') + 1])
        wheels.mkdir(exist_ok=True)
        (wheels / f'{command[-1]}-2.3.0-py3-none-any.whl').write_bytes(bytes(300_000))
        return subprocess.CompletedProcess(command, 0, '', '')

    def refuse(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        said = 'ERROR: no version of it\nERROR: No matching distribution found for omegaconf\n'
        return subprocess.CompletedProcess(command, 1, '', said) if 'pip' in command else run(command, **options)

    plan = write_plan(tmp_path, [3], {'base': ['epochs=1']})
    wanted = ('--with', 'omegaconf', 'timm>=1', 'pydantic', *(('--python', python) if python else ()))
    monkeypatch.setattr(subprocess, 'run', pip)
    assert script('tools/reproduce.py', plan, '--pack', tmp_path / 'pack', *wanted) == 0
    assert 'wheels 0.6 MB' in capsys.readouterr().out
    wheels = ['pydantic-2.3.0-py3-none-any.whl', 'timm>=1-2.3.0-py3-none-any.whl']
    assert sorted(os.listdir(tmp_path / 'pack' / 'wheels')) == wheels
    # That needs PyTorch, which is gigabytes, and the other machine's own.
    alone, command = asked
    assert alone[-3:] == ['--no-deps', '--', 'timm>=1']
    assert '--no-deps' not in command
    version = python or f'{sys.version_info.major}.{sys.version_info.minor}'
    assert command[:4] == [sys.executable, '-m', 'pip', 'download']
    assert command[command.index('--python-version') + 1] == version
    assert command[command.index('--constraint') + 1] == str(ROOT / 'constraints.txt')
    assert {'--only-binary=:all:', '--platform=manylinux_2_28_x86_64', '--platform=manylinux2014_x86_64'} < {*command}
    assert command[-3:] == ['--', 'omegaconf', 'pydantic']
    told = (tmp_path / 'pack' / 'README.md').read_text()
    install = 'python3 -m pip install --quiet --no-index --no-deps --upgrade --target site wheels/*.whl'
    assert f'\n{install} && PYTHONPATH=.:site python3 tools/reproduce.py plan.yaml --jobs 4\n' in told

    monkeypatch.setattr(subprocess, 'run', refuse)
    assert script('tools/reproduce.py', plan, '--pack', tmp_path / 'none', *wanted) == 2
    told = f'pip has no wheels for Python {version} on Linux: no version of it; No matching distribution found'
    assert capsys.readouterr().err.endswith(f'reproduce.py: --with timm>=1: {told} for omegaconf\n')
    assert sorted(os.listdir(tmp_path)) == ['pack', 'plan.yaml']


def test_recipes_are_followed_to_those_that_they_start_from(tmp_path: Path) -> None:
    (tmp_path / 'b').mkdir()
    for name, base in (('a.yaml', 'base: b/b.yaml'), ('b/b.yaml', 'base: ../c.yaml'), ('c.yaml', 'epochs: 1')):
        (tmp_path / name).write_text(base)
    names = [str(path.relative_to(tmp_path)) for path in with_bases(tmp_path / 'a.yaml')]
    assert names == ['a.yaml', 'b/b.yaml', 'c.yaml']


@pytest.mark.slow
@pytest.mark.parametrize('source', ['cifar10', 'cifar100'])
def test_packed_images_are_the_official_ones(
    script: Script, tmp_path: Path, cifar_dir: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    runs = {}
    for ratio in (100, 50, 10):
        recipe = os.path.relpath(ROOT / 'recipes' / f'{source}_lt_r{ratio}' / 'ce.yaml', tmp_path)
        runs[f'r{ratio}'] = {'recipe': recipe}
        runs[f'r{ratio}_holdout'] = {'recipe': recipe, 'overrides': ['evaluation.split=holdout']}
    plan = tmp_path / 'plan.yaml'
    plan.write_text(yaml.safe_dump({'output': 'runs/all', 'seeds': [0], 'runs': runs}))
    assert script('tools/reproduce.py', plan, '--data-dir', cifar_dir, '--pack', tmp_path / 'pack') == 0
    print(capsys.readouterr().out)
    for ratio in (100, 50, 10):
        official, packed = (
            load_data(f'{source}_lt_r{ratio}', place) for place in (cifar_dir, tmp_path / 'pack' / 'data')
        )
        assert packed.class_names == official.class_names and packed.name == official.name
        assert (packed.mean, packed.std, packed.image_size) == (official.mean, official.std, official.image_size)
        for a, b in ((official, packed), (with_holdout(official), with_holdout(packed))):
            for part in ('train', 'test'):
                x, y = getattr(a, part), getattr(b, part)
                np.testing.assert_array_equal(x.labels, y.labels)
                np.testing.assert_array_equal(x.images.array, y.images.array)
        np.testing.assert_array_equal(packed.spare.labels, official.spare.labels)
        with pytest.raises(DataError, match=f'holds the images of {source}_lt_r10, .* with its hold-out'):
            packed.spare.images.array  # noqa: B018


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
        (
            'output: o\nruns: {a: {recipe: no.yaml, sedes: 1}}',
            [],
            'there is no key runs.a.sedes; it can be recipe, overrides',
        ),
        ('output: o\nruns: {base: {recipe: no.yaml}}', ['--only', 'bass'], 'no run bass; did you mean base?'),
        (GOOD, ['--set', 'epochs=1', 'seed=7'], 'seed=7: a plan says its seeds itself, and --seeds picks some of them'),
        (GOOD, ['--seeds', '2', '7'], '--seeds: the plan has no seed 7; it has 0, 1, 2'),
        ('output: o\nruns: {base: {recipe: no.yaml}}', ['--jobs', '0'], '--jobs must be 1 or more, not 0'),
        (
            GOOD.replace('base', 'a/b'),
            [],
            "plan.yaml: runs: 'a/b' is not a folder name: leave out the slash",
        ),
        (GOOD, ['--minutes', '-1'], '--minutes must be above 0, not -1'),
        (GOOD, ['--archive', 'runs.zip'], '--archive runs.zip: its name must end in .tar.gz'),
        (GOOD, ['--archive', '/no/such/runs.tar.gz'], 'there is no folder /no/such'),
        (GOOD, ['--archive', 'runs.tar.gz', '--max-mb', '0'], '--max-mb must be above 0, not 0'),
        (GOOD, ['--with-unfinished'], 'give --archive'),
        (GOOD, ['--with', 'omegaconf'], 'give --pack DIR too'),
        (GOOD, ['--pack', '{tmp}/p', '--python', '3.12'], 'name them, --with PACKAGE'),
        (GOOD, ['--pack', '{tmp}/p', '--with', 'a', '--python', '2'], '--python must be a version such as 3.12, not 2'),
        (GOOD, ['--pack', '{tmp}/p', '--with', 'timm', 'torchvision>=0.2'], 'torchvision go with the other machine'),
        (GOOD, ['--pack', '{tmp}/p', '--with', 'a', '--python', '3.10'], 'need Python 3.11 or later, not 3.10'),
        (GOOD, ['--pack', '{tmp}/plan.yaml'], 'it is not an empty folder'),
        (GOOD.replace('digits_lt/ce', 'own/bs'), ['--pack', '{tmp}/p'], 'cannot be packed: CIFAR-10 and CIFAR-100 can'),
        (GOOD, ['--collect', '{tmp}/no.tar.gz'], '{tmp}/no.tar.gz cannot be unpacked'),
        (GOOD, ['--collect', '{tmp}/plan.yaml'], '{tmp}/plan.yaml cannot be unpacked'),
        (GOOD.replace('output: ', 'output: /dev/null/'), [], 'output: /dev/null/'),
        ('a: [', [], 'cannot be read as a plan'),
        (GOOD.replace('{base:', '{base: {recipe: a.yaml}, base:'), [], 'found duplicate key base'),
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
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert script('tools/reproduce.py', tmp_path / 'plan.yaml', *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('reproduce.py: ')
    assert message.format(tmp=tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ([] if plan is None else ['plan.yaml'])
