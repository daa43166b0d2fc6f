"""The recipes of ImageNet-LT and iNaturalist 2018 from end to end, on stand-ins of their data."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data import resolve_input_data_config

import ltzoo
from ltzoo.data import load_data, loader
from ltzoo.data.standin import STANDINS, make_standin
from ltzoo.evaluation import predict
from ltzoo.training import fit

ROOT = Path(__file__).resolve().parents[2]
FILES = [file for data in ('imagenet_lt', 'inat18') for file in sorted((ROOT / 'recipes' / data).glob('*.yaml'))]
NAMES = [f'{file.parent.name}/{file.stem}' for file in FILES]
# Of every kind, and of both data sets.
FEW = [
    'imagenet_lt/ce_resnext50',
    'imagenet_lt/gkpgsa_resnet50',
    'inat18/crt_resnet50',
    'inat18/gkpgsa_resnet50',
    'inat18/ride_resnet50',
]


def train(*arguments: object) -> int:
    """Run the training script in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, 'argv', ['train.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'recipes' / 'train.py'), run_name='__main__')
    return int(str(end.value.code))


@pytest.fixture(scope='module')
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stand-ins of eight classes, long-tailed, in small pictures."""
    folder = tmp_path_factory.mktemp('standins')
    for name in ('imagenet_lt', 'inat18'):
        make_standin(name, folder / name, classes=8, share=0.03, size=(64, 48))
    return {name: folder / name for name in ('imagenet_lt', 'inat18')}


def overrides(file: Path, data: Path, run: Path, *, epochs: int, batch_size: int) -> list[str]:
    """Shorten a recipe: an epoch takes a few steps, groups and Fisher come after the first."""
    words = [
        f'data.data_dir={data}', f'output={run}', f'epochs={epochs}', f'batch_size={batch_size}', 'precision=fp32',
        'workers=0', 'optimizer.lr=0.01', 'evaluation.many_above=5', 'evaluation.few_below=2',
    ]  # fmt: skip
    if file.stem.startswith('gkpgsa'):
        words += ['method.first_grouping=2', 'method.regroup_every=1', 'method.preservation.samples_per_group=2']
    if file.stem.startswith(('crt', 'lws')):
        words += [f'retraining.start_epoch={epochs - 1}']
    return [*words, '--no-progress']


def small(file: Path) -> list[str]:
    """Put a small network and small views in the place of the recipe's."""
    one = '[{random_resized_crop: {size: 16}}, horizontal_flip]'
    if file.stem.startswith('ride'):
        return ['model={name: resnet32_cifar_experts, layers: [1, 1, 1]}', f'views=[{one}]']
    if not file.stem.startswith(('bcl', 'gkpgsa')):
        return ['model.name=resnet8_cifar', f'views=[{one}]']
    heads = ['objective.hidden_dim=16', 'objective.out_dim=8']
    return ['model.name=resnet8_cifar', f'views=[{one}, {one}, {one}]', *heads]


def check(run: Path, file: Path, data: Path, epochs: int) -> None:
    """The run is whole, and its exported model, loaded again, says what was measured."""
    results = json.loads((run / 'results.json').read_text())
    log = [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in log] == list(range(epochs))
    assert all(np.isfinite(line['loss']) for line in log)
    if file.stem.startswith('gkpgsa'):
        assert all('group_sizes' in line['method'] for line in log[1:])
        assert sum(log[-1]['method']['group_sizes']) == len(results['per_class'])
        # A step of few images may have shown the bank one class only; a single group is not pulled anywhere.
        pulled = len(log[-2]['method']['group_sizes']) > 1
        assert (log[-1]['method']['penalty_to_loss_gradient'] > 0) == pulled
        assert not (run / 'bank').exists()
    dataset = load_data(file.parent.name, data)
    assert {key for key in ('many', 'medium', 'few') if results[key] is not None} == {'many', 'medium', 'few'}
    model, _, _ = ltzoo.create_model_and_transforms(f'local-dir:{run / "model"}', pretrained=True)
    assert model.num_classes == dataset.num_classes
    again = predict(model, dataset.test, resolve_input_data_config(model), batch_size=8)
    assert 100 * np.mean(again.predictions == dataset.test.labels) == pytest.approx(results['top1'])


@pytest.mark.parametrize('file', [f for f, name in zip(FILES, NAMES, strict=True) if name in FEW], ids=FEW)
def test_a_small_network(standins: dict[str, Path], tmp_path: Path, file: Path) -> None:
    data, run = standins[file.parent.name], tmp_path / 'run'
    words = overrides(file, data, run, epochs=3, batch_size=16)
    assert train(file, *words, *small(file)) == 0
    check(run, file, data, 3)


@pytest.mark.slow
@pytest.mark.parametrize('file', FILES, ids=NAMES)
def test_its_own_network_at_224_pixels(
    standins: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setattr(loader._Order, 'steps', property(lambda order: 1))
    data, run = standins[file.parent.name], tmp_path / 'run'
    epochs = {'gkpgsa': 3, 'crt': 2, 'lws': 2}.get(file.stem.partition('_')[0], 1)
    assert train(file, *overrides(file, data, run, epochs=epochs, batch_size=6)) == 0
    check(run, file, data, epochs)
    assert json.loads((run / 'model' / 'config.json').read_text())['pretrained_cfg']['input_size'] == [3, 224, 224]


@pytest.mark.slow
def test_a_killed_run_goes_on(standins: dict[str, Path], tmp_path: Path) -> None:
    """With snapshots on disk: what a process killed in the third epoch or later leaves is enough to go on from."""
    file = ROOT / 'recipes' / 'imagenet_lt' / 'gkpgsa_resnet50.yaml'
    data = standins['imagenet_lt']

    def command(run: Path) -> list[str]:
        words = overrides(file, data, run, epochs=8, batch_size=8)
        return [sys.executable, str(ROOT / 'recipes' / 'train.py'), str(file), *words, *small(file), 'resume=auto']

    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    process = subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL)
    log = killed / 'log.jsonl'
    while process.poll() is None and (not log.exists() or log.read_text().count('\n') < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / 'checkpoint.pt').exists() and not (killed / 'results.json').exists()
    assert list((killed / 'bank').glob('*.safetensors'))
    for run in (killed, whole):
        subprocess.run(command(run), env=environment, check=True, stdout=subprocess.DEVNULL)
        check(run, file, data, 8)
    losses = [
        [json.loads(line)['loss'] for line in (r / 'log.jsonl').read_text().splitlines()] for r in (killed, whole)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['imagenet_lt', 'inat18'])
def test_all_classes_and_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Class counts, bank, groups and Fisher of the whole data set; two steps an epoch, stopped and continued."""
    data = tmp_path / 'data'
    make_standin(name, data, size=(40, 30))
    standin = STANDINS[name]
    # One test image a class is enough, and the list has one class after the other.
    tests = data / standin.lists[1]
    tests.write_text(''.join(tests.read_text().splitlines(keepends=True)[:: standin.test]))
    file = ROOT / 'recipes' / name / 'gkpgsa_resnet50.yaml'
    monkeypatch.setattr(loader._Order, 'steps', property(lambda order: 2))
    seen: list[int] = []

    def end_in(epoch: int | None) -> None:
        def train_one_epoch(*args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs['epoch'])
            if kwargs['epoch'] == epoch:
                raise KeyboardInterrupt
            return ordinary(*args, **kwargs)

        monkeypatch.setattr(fit, 'train_one_epoch', train_one_epoch)

    ordinary = fit.train_one_epoch
    losses = {}
    for run in ('stopped', 'whole'):
        words = overrides(file, data, tmp_path / run, epochs=4, batch_size=512)
        words = [*words, *small(file), 'evaluation.many_above=100', 'evaluation.few_below=20', 'resume=auto']
        if run == 'stopped':
            end_in(3)
            assert train(file, *words) == 130
        end_in(None)
        assert train(file, *words) == 0
        check(tmp_path / run, file, data, 4)
        log = [json.loads(line) for line in (tmp_path / run / 'log.jsonl').read_text().splitlines()]
        losses[run] = [line['loss'] for line in log]
    assert seen == [0, 1, 2, 3, 3, 0, 1, 2, 3]
    assert losses['stopped'] == losses['whole']
    assert len(log[-1]['method']['group_sizes']) > 1
    results = json.loads((tmp_path / 'whole' / 'results.json').read_text())
    counts = [row['train_count'] for row in results['per_class']]
    assert (len(counts), sum(counts), max(counts), min(counts)) == (
        standin.classes, standin.images, standin.largest, standin.smallest
    )  # fmt: skip
