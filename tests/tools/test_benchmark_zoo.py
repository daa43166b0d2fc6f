"""`benchmark.py zoo` as users run it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import Script
from PIL import Image

Clock = Callable[..., Callable[[], float]]


def test_a_run_on_its_data(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    command = ('tools/benchmark.py', 'zoo', '--models', digits_run, '--data', 'digits_lt', '--output', out)
    assert script(*command, '--threads', 1) == 0
    top1 = json.loads((digits_run / 'results.json').read_text())['top1']
    printed = capsys.readouterr().out
    assert f'[1/1] {digits_run} on digits_lt: {top1:.2f}' in printed
    assert 'leaderboard.html' in printed
    assert json.loads((out / 'results.json').read_text())['rows'][0]['top1'] == pytest.approx(top1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--models', 'resnet23*', '--data', 'digits_lt'], 'published weights; did you mean resnet32_cifar_ce'),
        (['--models', 'timm/resnet5O', '--data', 'digits_lt'], 'the nearest are timm/resnet50'),
        (['--models', 'resnet32*', '--data', 'digits_tl'], 'digits_tl'),
        (['--models', 'resnet32*', '--data', 'digits_lt', '--batch-size', 0], '--batch-size must be 1 or more, not 0'),
    ],
)
def test_bad_input(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], message: str
) -> None:
    assert script('tools/benchmark.py', 'zoo', *options, '--output', tmp_path / 'out') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('benchmark.py: ')
    assert message in line
    assert not (tmp_path / 'out').exists()


def test_options_reach_the_measurement_and_rerun_repeats_it(
    script: Script, stub: Callable[[str], Path], tmp_path: Path
) -> None:
    calls, out = stub('done(reason=" ".join(options))'), tmp_path / 'out'
    for name in ('a', 'b'):
        for number in range(3):
            (tmp_path / 'images' / name).mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8), (number, 99, 200)).save(tmp_path / 'images' / name / f'{number}.png')
    command = ('tools/benchmark.py', 'zoo', '--models', 'timm/resnet18', '--data', 'folder', '--output', out)
    options = ('--data-dir', tmp_path / 'images', '--device', 'cpu', '--batch-size', 4, '--threads', 3)
    for more, measured in (((), 1), ((), 1), (('--rerun',), 2)):
        assert script(*command, *options, *more) == 0
        assert len(calls.read_text().splitlines()) == measured
    (row,) = json.loads((out / 'results.json').read_text())['rows']
    assert row['reason'] == f'--batch-size 4 --data-dir={tmp_path / "images"} --device cpu --threads 3'


def test_how_it_ends(
    script: Script,
    stub: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub('if model == "timm/resnet34": sys.exit("no disk")\ndone()')
    command = ('tools/benchmark.py', 'zoo', '--data', 'digits_lt', '--output', tmp_path / 'out', '--models')
    assert script(*command, 'timm/resnet18', 'timm/resnet34') == 1
    assert '[2/2] timm/resnet34 on digits_lt: failed: no disk' in capsys.readouterr().out

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, 'communicate', interrupt)
    assert script(*command, 'timm/resnet18', 'timm/resnet34') == 130
    assert capsys.readouterr().err == '\nstopped: the same command goes on with what is missing\n'


def test_importing_and_loading(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ran = tmp_path / 'load.json', []
    monkeypatch.setattr(subprocess, 'run', lambda command, **_: ran.append(command[1:]))
    # Two rounds warm up.
    monkeypatch.setattr(time, 'perf_counter', clock(90, 90, 90, 90, 4, 2, 9, 3))
    options = ('--model', 'timm/test_resnet', '--rounds', 1, '--json', file)
    assert script('tools/benchmark.py', 'load', *options) == 0
    measured = json.loads(file.read_text())
    assert measured['seconds'] == {
        **{'import timm': [4], 'import ltzoo': [2], 'loaded by timm': [9], 'loaded by ltzoo': [3]}
    }
    assert ran == 3 * [['-c', 'import timm'], ['-c', 'import ltzoo']]
    assert measured['ratios'] == {'import': 0.5, 'load': 3}
    assert 'import: 0.50 times timm; loading: 3.0 times as fast' in capsys.readouterr().out
