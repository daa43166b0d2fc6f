"""The benchmark tool: what it writes, with a clock that the test winds, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from in_process import Script
from torch import nn

from ltzoo.gkpgsa import group_anchors

Clock = Callable[..., Callable[[], float]]

ENVIRONMENT = {'python', 'torch', 'torchvision', 'threads', 'cpu'}
RECIPE: dict[str, Any] = {
    'data': {'name': 'digits_lt'},
    'model': {'name': 'resnet8_cifar'},
    'objective': {'name': 'ce'},
    'views': 'digits_plain',
    'optimizer': {'lr': 0.1},
    'epochs': 1,
    'batch_size': 16,
}


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    """Undo what the tool sets for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_views(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two rounds warm up.
    monkeypatch.setattr(time, 'process_time', clock(90, 90, 4, 8, 1, 4, 8, 2))
    options = ['--data', 'digits_lt', '--views', 'digits_bcl', '--rounds', 3, '--json', tmp_path / 'views.json']
    assert script('tools/benchmark.py', 'views', *options) == 0
    results = json.loads((tmp_path / 'views.json').read_text())
    assert results.keys() == ENVIRONMENT | {'bench', 'data', 'views', 'rates', 'ratio'}
    assert (results['bench'], results['data'], results['views']) == ('views', 'digits_lt', 'digits_bcl')
    assert (results['torch'], results['threads']) == (torch.__version__, 1)
    # Four batches of 256 in 4, 1 and 8 seconds, and 256 pictures in 8, 4 and 2.
    assert results['rates'] == {'batched tensors': [256, 1024, 128], 'torchvision, PIL': [32, 64, 128]}
    # Of the medians, 256 and 64; the rounds' own ratios have the median 8.
    assert results['ratio'] == 4
    printed = capsys.readouterr().out
    assert 'digits_bcl on digits_lt, threads: 1, median of 3 rounds' in printed
    assert '256 samples of 3 views per CPU-second' in printed


def test_step(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[nn.Module] = []
    # Compiling takes a minute, and what it does to the speed is not what is tested.
    monkeypatch.setattr(nn.Module, 'compile', lambda module: compiled.append(module))
    # Five forms, of which two rounds warm up.
    rounds = [(90, 90, 90, 90, 90), (4, 2, 2, 2, 2), (1, 4, 2, 2, 2), (2, 16, 2, 2, 2)]
    monkeypatch.setattr(time, 'perf_counter', clock(*itertools.chain(*rounds)))
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(RECIPE))
    options = ['--recipe', tmp_path / 'small.yaml', '--rounds', 3, '--threads', 1, '--json', tmp_path / 'step.json']
    assert script('tools/benchmark.py', 'step', *options) == 0
    results = json.loads((tmp_path / 'step.json').read_text())
    assert results.keys() == ENVIRONMENT | {
        'bench', 'recipe', 'batch_size', 'device', 'precision', 'cuda_graphs', 'compile', 'seconds'
    }  # fmt: skip
    assert (results['bench'], results['batch_size']) == ('step', 16)
    assert results['recipe'] == str(tmp_path / 'small.yaml')
    forms = ['plain', 'channels-last', 'compiled', 'channels-last, compiled', 'its convolutions alone']
    assert list(results['seconds']) == forms
    assert list(results['seconds'].values()) == [[4, 1, 2], [2, 4, 16], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    lasting = [module.model.conv1.weight.is_contiguous(memory_format=torch.channels_last) for module in compiled]
    assert lasting == [False, True]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Median, least, 16 samples in the median, and the median of the rounds' ratios to the first form.
    assert ['plain', '2000.00', '1000.00', '8.0', '1.00'] in rows
    assert ['channels-last', '4000.00', '2000.00', '4.0', '4.00'] in rows


def test_steps_of_the_method_are_compared_with_the_recipes_own(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, 'perf_counter', clock())
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(RECIPE))
    options = ['--recipe', tmp_path / 'small.yaml', '--method', '--rounds', 1, '--json', tmp_path / 'step.json']
    assert script('tools/benchmark.py', 'step', *options, '--only', 'SAM') == 0
    assert list(json.loads((tmp_path / 'step.json').read_text())['seconds']) == ['base', 'SAM']
    assert script('tools/benchmark.py', 'step', *options, '--batch-size', 8) == 0
    results = json.loads((tmp_path / 'step.json').read_text())
    assert results['batch_size'] == 8
    assert list(results['seconds'])[:2] == ['base', 'SAM']
    assert {'per group, G 1', 'per group, G 16', 'combined, ema, G 4'} <= results['seconds'].keys()


def test_steps_of_the_method_are_compiled_before_they_are_timed(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, 'compile', lambda module: None)
    compiled = []

    def compile_graph(graph: Any, **options: Any) -> Any:
        compiled.append(0)
        which = len(compiled) - 1

        def run(*inputs: Any) -> Any:
            compiled[which] += 1
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch, 'compile', compile_graph)
    monkeypatch.setattr(time, 'perf_counter', clock())
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(RECIPE))
    options = ['--recipe', tmp_path / 'small.yaml', '--method', '--rounds', 2, '--set', 'compile=true']
    assert script('tools/benchmark.py', 'step', *options, '--only', 'SAM', 'per group, ema, G 4') == 0
    # Of each form, the compiled step once before the rounds, two of which do not count. What is tried is traced alone.
    assert [calls for calls in compiled if calls] == [1 + 2 + 2] * 2


def test_epoch_ends_are_compared_with_an_epoch(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the first epoch, its step and its end; the second ends with groups; of those behind it, the pull and the end.
    epochs = [(4, 3), (10,), (8, 1), (1, 12), (2, 1), (16, 8), (1, 20)]
    monkeypatch.setattr(time, 'perf_counter', clock(*itertools.chain(*epochs)))
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(RECIPE))
    options = ['--recipe', tmp_path / 'small.yaml', '--rounds', 1, '--groups', 2, '--json', tmp_path / 'epoch.json']
    assert script('tools/benchmark.py', 'epoch', *options) == 0
    of_two = json.loads((tmp_path / 'epoch.json').read_text())['groups']['2']
    # Grouped after the second epoch and five later; after the first grouping, every step is followed by a pull.
    assert of_two['seconds'] == {
        'step': [4], 'pull': [8, 1, 2, 16, 1], 'epoch end': [3, 1, 12, 1, 8], 'epoch end, regrouping': [10, 20],
    }  # fmt: skip
    # Medians of 2, 3 and 15 seconds; 23 steps an epoch, of whose ends every fifth regroups.
    assert of_two['pull_share'] == 2 / 4
    assert of_two['epoch_end_share'] == pytest.approx((4 * 3 + 15) / 5 / (23 * 4))
    assert 'cpu' in capsys.readouterr().out


def test_a_bank_holds_every_epoch_and_no_more(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, torch.Tensor]] = []

    def noted(*arguments: Any) -> Iterator[dict[str, torch.Tensor]]:
        for anchor in group_anchors(*arguments):
            made.append(anchor)
            yield anchor

    monkeypatch.setattr('ltzoo.gkpgsa.group_anchors', noted)
    options = ['--model', 'resnet8_cifar', '--classes', 500, '--epochs', 6, '--groups', 2, '--folder', tmp_path]
    sizes = {}
    for dtype in ('fp32', 'bf16'):
        assert script('tools/benchmark.py', 'bank', *options, '--dtype', dtype, '--json', tmp_path / 'bank.json') == 0
        results = json.loads((tmp_path / 'bank.json').read_text())
        assert (results['classes'], results['snapshots']) == (500, 6)
        assert {name: len(values) for name, values in results['seconds'].items()} == {
            'bank': 6, 'distances': 6, 'groups': 1, 'anchors': 1,
        }  # fmt: skip
        assert results['memory_bytes'] >= 0
        # Anchors are made, and not only promised.
        assert (len(made), results['parameters']) == (2, sum(p.numel() for p in made[0].values()))
        made.clear()
        sizes[dtype] = results['disk_bytes']
    # Files of that many numbers, and their headers.
    assert 6 * 4 * results['parameters'] < sizes['fp32'] < 6 * (4 * results['parameters'] + 10_000)
    assert 6 * 2 * results['parameters'] < sizes['bf16'] < 6 * (2 * results['parameters'] + 10_000)
    assert os.listdir(tmp_path) == ['bank.json']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['views', '--rounds', '0'], '--rounds must be 1 or more, not 0'),
        (['views', '--threads', '0'], '--threads must be 1 or more, not 0'),
        (['views', '--json', '{tmp}/no/v.json'], 'there is no folder {tmp}/no'),
        (['views', '--data', 'digitz_lt'], 'did you mean digits_lt?'),
        (['views', '--data', 'digits_lt', '--views', 'cifr_bcl'], 'did you mean cifar_bcl?'),
        (['step', '--recipe', '{tmp}/nothing.yaml'], 'there is no recipe file {tmp}/nothing.yaml'),
        (['step', '--method', '--only', 'SMA'], "--only 'SMA': the forms are 'base', 'SAM'"),
        (['step', '--only', 'SAM'], '--only picks forms of GKP/GSA: give --method too'),
        (['epoch', '--recipe', '{tmp}/nothing.yaml'], 'there is no recipe file {tmp}/nothing.yaml'),
        (['bank', '--folder', '{tmp}/no'], 'there is no folder {tmp}/no'),
        (['bank', '--classes', '0'], '--classes must be 1 or more, not 0'),
        (['bank', '--model', 'resnet32_cifr'], "no model is called 'resnet32_cifr'"),
        (['step', '--recipe', '{tmp}/bad.yaml'], 'the key data is missing'),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / 'bad.yaml').write_text('epochs: 1')
    output = [] if '--json' in arguments else ['--json', '{tmp}/out.json']
    words = [word.format(tmp=tmp_path) for word in arguments + output]
    assert script('tools/benchmark.py', *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('benchmark.py: ')
    assert message.format(tmp=tmp_path) in line
    assert os.listdir(tmp_path) == ['bad.yaml']


def test_the_defaults_go_together(script: Script, cifar_dir: Path, tmp_path: Path) -> None:
    options = ['--data-dir', cifar_dir, '--rounds', 1, '--json', tmp_path / 'views.json']
    assert script('tools/benchmark.py', 'views', *options) == 0
    results = json.loads((tmp_path / 'views.json').read_text())
    assert (results['data'], results['views']) == ('cifar100_lt_r100', 'cifar_bcl')
    assert results['rates'].keys() == {'batched tensors', 'torchvision, PIL'}
