"""What a large recipe is said to cost, with a clock that the test winds: the sums are checked, not the machine."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Script

from ltzoo.data.standin import make_standin

ROOT = Path(__file__).resolve().parents[2]
GKPGSA = ROOT / 'recipes' / 'inat18' / 'gkpgsa_resnet50.yaml'
BCL = ROOT / 'recipes' / 'inat18' / 'bcl_resnet50.yaml'
VIEW = '[{random_resized_crop: {size: 16}}]'
SMALL = [
    'model.name=resnet8_cifar', f'views=[{VIEW}, {VIEW}, {VIEW}]', 'batch_size=8', 'workers=0', 'precision=fp32',
    'objective.hidden_dim=16', 'objective.out_dim=8',
]  # fmt: skip
METHOD = ['method.preservation.samples_per_group=2', 'method.groups=2']

Clock = Callable[..., Callable[[], float]]


@pytest.fixture(scope='module')
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('standin') / 'inat18'
    make_standin('inat18', folder, classes=8, share=0.03, size=(32, 24))
    return folder


def bench(script: Script, recipe: Path, standin: Path, output: Path, *words: object) -> dict[str, Any]:
    assert script('tools/benchmark.py', 'recipe', recipe, '--data-dir', standin, '--json', output, *words) == 0
    return json.loads(output.read_text())


def test_the_method_against_its_base(
    script: Script,
    standin: Path,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Five blocks of two steps of the base, the end of an epoch, five blocks of the method.
    taken = [(2, 16, 4, 8, 1), (30,), (8, 64, 12, 16, 10)]
    # The loader's clock is read before, at each look whether its 5 seconds are over, of which two are not, and after.
    wound = clock(*itertools.chain(*taken), before=(0, 2, 2, 6, 6))
    monkeypatch.setattr(time, 'perf_counter', wound)
    words = ['--steps', 10, '--gpus', 1, 4, '--loader-seconds', 5, '--set', *SMALL, *METHOD]
    results = bench(script, GKPGSA, standin, tmp_path / 'recipe.json', *words)
    assert list(results['forms']) == [str(BCL), str(GKPGSA)]
    base, own = results['forms'].values()
    assert base['step_seconds'] == [1, 8, 2, 4, 0.5]
    assert own['step_seconds'] == [4, 32, 6, 8, 5]
    assert (base['epoch_end_seconds'], own['epoch_end_seconds']) == (0, 30)
    assert min(base['peak_bytes'], own['peak_bytes'], own['epoch_end_peak_bytes']) > 1e8
    # Of the medians, 6 and 2; the blocks' own ratios have the median 4.
    assert results['ratio'] == 3
    assert results['standin'] is True
    # 40 images are 5 steps an epoch, of 100; groups come after the fifth and every five, each 30 s.
    assert (results['steps'], results['groupings']) == (500, 19)
    assert results['gpus']['1']['hours'] == pytest.approx((500 * 6 + 19 * 30) / 3600)
    # Grouping is not shared out.
    assert results['gpus']['4']['hours'] == pytest.approx((500 * 1.5 + 19 * 30) / 3600)
    # Two batches of 8, 16 images in 16 seconds.
    assert results['loader']['images_per_second'] == pytest.approx(1)
    # Steps take 8 images in 6 seconds, the loader's one core gives one a second.
    assert results['gpus']['1']['loader_images_per_second'] == pytest.approx(8 / 6)
    assert results['loader']['bottleneck'] is True
    assert [results['gpus'][n]['loader_cores'] for n in ('1', '4')] == [2, 6]
    printed = capsys.readouterr().out
    (row,) = (line.split() for line in printed.splitlines() if line.split()[1:4] == ['6.000', '1.3', '3.00'])
    assert str(GKPGSA).endswith(row[0])
    assert 'inat18 (a stand-in): 40 training images, 8 classes' in printed
    assert 'the loader is the bottleneck' in printed
    assert 'linear scaling assumed' in printed


def test_the_base_alone_on_a_stand_in_of_its_own(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make_small(name: str, folder: Path) -> dict[str, int]:
        made.append(name)
        return make_standin(name, folder, classes=8, share=0.03, size=(32, 24))

    monkeypatch.setattr('ltzoo.data.standin.make_standin', make_small)
    output = tmp_path / 'recipe.json'
    words = ['--steps', 1, '--loader-seconds', 1, '--json', output, '--set', *SMALL, 'workers=1']
    # The same file, by another spelling.
    against = BCL.parent / '..' / 'inat18' / BCL.name
    assert script('tools/benchmark.py', 'recipe', BCL, '--against', against, *words) == 0
    results = json.loads(output.read_text())
    assert (made, list(results['forms']), results['ratio'], results['groupings']) == (['inat18'], [str(BCL)], 1, 0)
    assert results['loader']['workers'] == 1
    assert results['loader']['images_per_second'] > 1
    assert os.listdir(tmp_path) == ['recipe.json']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([GKPGSA, '--steps', 0], '--steps must be 1 or more, not 0'),
        ([GKPGSA, '--gpus', 1, 0], '--gpus must be 1 or more, not 0'),
        ([GKPGSA, '--loader-seconds', 0], '--loader-seconds must be 1 or more, not 0'),
        ([GKPGSA.with_name('gkpgsa_resnet51.yaml')], 'there is no recipe file'),
        ([GKPGSA, '--against', 'nothing.yaml'], 'there is no recipe file nothing.yaml'),
        ([GKPGSA, '--set', 'batchsize=8'], 'there is no key batchsize; did you mean batch_size?'),
        (
            [GKPGSA, '--set', 'precision=fp32', '--data-dir', '/nowhere'],
            '/nowhere/iNat18/iNaturalist18_train.txt is missing',
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    script: Script, capsys: pytest.CaptureFixture[str], words: list[object], message: str
) -> None:
    threads = torch.get_num_threads()
    assert script('tools/benchmark.py', 'recipe', *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('benchmark.py: ')
    assert message in line
    assert torch.get_num_threads() == threads


def test_what_to_compare_with_is_asked_for(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / 'alone.yaml'
    alone.touch()
    assert script('tools/benchmark.py', 'recipe', alone) == 2
    wanted = f'there is no {tmp_path / "bcl.yaml"} to compare {alone} with: give --against RECIPE'
    assert capsys.readouterr().err == f'benchmark.py: {wanted}\n'
