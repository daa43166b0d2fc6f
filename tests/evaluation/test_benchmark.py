"""Many models on many data sets: what is measured, what a failure leaves, and where it goes on."""

from __future__ import annotations

import csv
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import ltzoo
from ltzoo.data import DataError, MissingDataError, load_data
from ltzoo.evaluation import EvaluationError, benchmark, benchmark_one
from ltzoo.evaluation.benchmark import (
    COLUMNS,
    BenchmarkError,
    _images_of,
    _weights_of,
    benchmark_models,
    choose_models,
)
from ltzoo.evaluation.benchmark_one import FAILED, OUT_OF_MEMORY, UNFIT, macs, main, measure
from ltzoo.evaluation.metrics import SCORES
from ltzoo.files import BusyError
from ltzoo.hub import export_model

PUBLISHED = ltzoo.list_pretrained()
# Digits have ten classes.
HUNDRED = 'resnet32_cifar_bs.cifar100_lt_r100'
PYTHON = sys.executable


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """An untrained model of 8-pixel digits."""
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar', num_classes=10)
    lt = {
        **{'data': 'digits_lt', 'class_counts': [134, 2], 'many_above': 50, 'few_below': 3, 'seed': 0},
        **{
            'recipe': {
                'model': {'name': 'resnet8_cifar'},
                'objective': {'name': 'logit_adjusted'},
                'epochs': 1,
                'batch_size': 8,
            }
        },
        **{'split': 'test'},
        'scores': dict.fromkeys(('samples', 'top1', 'many', 'medium', 'few', 'balanced_accuracy', 'ece'), 1),
    }
    export_model(model, tmp_path / 'saved', lt, input_size=(3, 8, 8), mean=(0.3,) * 3, std=(0.3,) * 3)
    return f'local-dir:{tmp_path / "saved"}'


def quiet(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return benchmark_models(*args, say=lambda line: None, **kwargs)


def test_what_is_measured(saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first batch warms up. Between two batches lies a second.
    seconds = (90, 16, 1, 4, 2, 8)
    readings = itertools.accumulate(gap for taken in seconds for gap in (1.0, taken))
    clock = SimpleNamespace(perf_counter=readings.__next__)
    with monkeypatch.context() as patch:
        patch.setattr(benchmark_one, 'time', clock)
        row = measure(saved, 'digits_lt', batch_size=32, device='cpu')
    # By the usual thresholds, whatever a model was trained with.
    usual = {'many_above': 100, 'few_below': 20}
    scores = json.loads(json.dumps(ltzoo.evaluation.evaluate_model(saved, 'digits_lt', device='cpu', **usual)))
    known = {key: scores[key] for key in SCORES}
    # Of a batch of another size a confidence may differ in its last bit.
    assert {key: row[key] for key in known} == {**known, 'ece': pytest.approx(known['ece'], abs=1e-4)}
    assert row['parameters'] == sum(p.numel() for p in ltzoo.create_model('resnet8_cifar').parameters())
    # 32 in the median of the five, 4 seconds; of all six it is 6, and the mean of the five 6.2.
    assert row['images_per_second'] == 8
    model = ltzoo.create_model('resnet8_cifar', num_classes=10).eval()
    assert row['gmacs'] == macs(model, (3, 8, 8)) / 1e9
    assert 50 < row['memory_mb'] < 20_000
    assert (row['batch_size'], row['device']) == (32, 'cpu')


def test_multiply_adds_of_a_resnet32() -> None:
    model = ltzoo.create_model('resnet32_cifar', num_classes=100).eval()
    expected = 0
    handles = []

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal expected
        # Each output value is a sum over one filter, or one row of the matrix.
        expected += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(count))
    model(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    assert macs(model, (3, 32, 32)) == expected
    # He et al. 2016 do not give it; later tables have 69 million.
    assert round(expected / 1e6) == 69


def test_the_papers_rows_have_the_methods_of_the_zoo(tmp_path: Path) -> None:
    row = {**dict.fromkeys(COLUMNS), 'model': 'mine', 'data': 'cifar100_lt_r100'}
    benchmark._write_tables([row], tmp_path)
    papers = json.loads((tmp_path / 'results.json').read_text())['papers']
    methods = {paper['model'].partition('.')[0].removeprefix('resnet32_cifar_'): paper['method'] for paper in papers}
    assert methods and all(name == method for name, method in methods.items())
    assert 'bcl_sam' in methods


@pytest.mark.parametrize(
    ('name', 'method', 'told'),
    [
        ('resnet32_cifar_gkpgsa_paper.cifar100_lt_r100', {}, 'gkpgsa_paper'),
        ('resnet32_cifar_gkpgsa.cifar100_lt_r100', {}, 'gkpgsa'),
        ('resnet32_cifar', {}, 'gkpgsa'),
        ('resnet32_cifar_bcl_sam.cifar100_lt_r100', {'preservation': None}, 'bcl_sam'),
        # An ablation such as ASAM.
        ('resnet32_cifar', {'preservation': None}, 'bcl + sharpness'),
        ('resnet32_cifar_bcl.cifar100_lt_r100', {'preservation': None, 'sharpness': None}, 'bcl'),
        ('resnet32_cifar', {'preservation': None, 'sharpness': None}, 'bcl'),
    ],
)
def test_a_saved_model_has_a_method_of_the_zoo_only_where_it_is_sure(
    tmp_path: Path, name: str, method: dict[str, Any], told: str
) -> None:
    recipe = {'objective': {'name': 'bcl'}, 'model': {'name': name}}
    recipe['method'] = {'preservation': {'strength': 1}, 'sharpness': {'scale': 1}, **method}
    (tmp_path / 'config.json').write_text(json.dumps({'lt': {'recipe': recipe}}))
    assert benchmark._method_of(f'local-dir:{tmp_path}') == told


@pytest.mark.parametrize(
    ('name', 'objective', 'reweighting', 'told'),
    [
        ('resnet32_cifar', 'focal', None, 'focal'),
        ('resnet32_cifar_ldam_drw.cifar100_lt_r100', 'ldam', {'start_epoch': 160}, 'ldam_drw'),
        # Deferred to which epoch, if at all, is a setting.
        ('resnet32_cifar', 'ldam', {'start_epoch': 160}, 'ldam + reweighting'),
        ('resnet32_cifar_ldam_drw.cifar100_lt_r100', 'ldam', None, 'ldam'),
        # It ended before.
        ('resnet32_cifar_ldam_drw.cifar100_lt_r100', 'ldam', {'start_epoch': 200}, 'ldam'),
        ('resnet32_cifar_ce.cifar100_lt_r100', 'ce', {'start_epoch': 0}, 'ce + reweighting'),
    ],
)
def test_class_weights_belong_to_the_method_of_a_saved_model(
    tmp_path: Path, name: str, objective: str, reweighting: dict[str, int] | None, told: str
) -> None:
    recipe = {'objective': {'name': objective}, 'reweighting': reweighting, 'model': {'name': name}, 'epochs': 200}
    (tmp_path / 'config.json').write_text(json.dumps({'lt': {'recipe': recipe}}))
    assert benchmark._method_of(f'local-dir:{tmp_path}') == told


def test_mixed_images_belong_to_the_method_of_a_saved_model(tmp_path: Path) -> None:
    recipe = {'objective': {'name': 'ce'}, 'mixing': {'mixup': 0.2}, 'model': {'name': 'resnet32_cifar'}, 'epochs': 9}
    (tmp_path / 'config.json').write_text(json.dumps({'lt': {'recipe': recipe}}))
    assert benchmark._method_of(f'local-dir:{tmp_path}') == 'ce + mixing'


def test_attention_is_counted_whether_it_is_fused_or_not() -> None:
    model = ltzoo.create_model('timm/vit_tiny_patch16_224', num_classes=10).eval()
    fused = macs(model, (3, 224, 224))
    for block in model.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    assert macs(model, (3, 224, 224)) == fused


def test_arrays_are_told_apart_by_their_pixels(tmp_path: Path) -> None:
    def images(seed: int) -> str:
        labels = np.arange(4).repeat(3)
        part = np.random.default_rng(seed).integers(0, 256, (12, 8, 8, 3), np.uint8)
        np.savez(tmp_path / 'mine.npz', x_train=part, y_train=labels, x_test=part, y_test=labels)
        return _images_of(load_data(f'npz:{tmp_path}/mine.npz'))

    assert images(1) == images(1) != images(2)


def test_image_files_written_anew_are_told_apart(tmp_path: Path) -> None:
    for part in ('train', 'test'):
        for name in ('a', 'b'):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / part / name / '0.png')
    before = _images_of(load_data(f'folder:{tmp_path}'))
    Image.new('RGB', (9, 9)).save(tmp_path / 'train' / 'a' / '0.png')
    assert _images_of(load_data(f'folder:{tmp_path}')) == before
    Image.new('RGB', (9, 9)).save(tmp_path / 'test' / 'a' / '0.png')
    assert _images_of(load_data(f'folder:{tmp_path}')) != before


def test_pairs_apart_tables_and_going_on(
    saved: str, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / 'out'
    said: list[str] = []
    stub(
        f'if model == {HUNDRED!r}: json.dump({{"reason": "has 100 classes"}}, open(out, "w")); sys.exit({UNFIT})\n'
        'done(top1=12.5)'
    )
    rows = benchmark_models([saved, HUNDRED], ['digits_lt'], output, batch_size=64, threads=1, say=said.append)
    assert [row['status'] for row in rows] == ['ok', 'skipped']
    assert (rows[0]['top1'], rows[0]['method'], rows[1]['reason']) == (12.5, 'bs', 'has 100 classes')
    assert [line.partition(']')[0] for line in said] == ['[1/2', '[2/2']
    with open(output / 'results.csv') as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(COLUMNS)
    assert float(table[0]['top1']) == rows[0]['top1']
    assert json.loads((output / 'results.json').read_text())['rows'] == rows
    assert rows[1]['reason'] in (output / 'leaderboard.html').read_text()
    assert sorted(path.name for path in output.iterdir()) == ['leaderboard.html', 'results.csv', 'results.json', 'rows']
    # What is done is not measured again.
    monkeypatch.setattr(benchmark.sys, 'executable', '/bin/false')
    same = {'batch_size': 64, 'threads': 1}
    assert quiet([saved, HUNDRED], ['digits_lt'], output, **same) == rows
    # With other threads its speed is another, too.
    for changed in ({**same, 'rerun': True}, {**same, 'threads': 2}, {**same, 'batch_size': 32}):
        (again,) = quiet([saved], ['digits_lt'], output, **changed)
        assert again['status'] == 'failed'


def test_device_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match='--device cuda:99 cannot be used'):
        quiet([HUNDRED], ['digits_lt'], tmp_path / 'out', device='cuda:99')
    assert not (tmp_path / 'out').exists()


def test_what_is_wrong_with_the_call_is_a_failure_and_another_number_of_classes_is_not(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / 'row.json')
    for model, device, code in ((saved, 'cuda:99', FAILED), (HUNDRED, 'cpu', UNFIT)):
        monkeypatch.setattr(sys, 'argv', ['measure', model, 'digits_lt', out, '--device', device])
        assert main() == code
    assert (
        json.loads(Path(out).read_text())['reason']
        == f'{HUNDRED} has 100 classes, digits_lt has 10: they must be the same classes'
    )


def test_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    held = torch.ones(2**28)  # 1 GiB
    command = 'from ltzoo.evaluation import benchmark_one; print(benchmark_one._peak_memory())'
    child = subprocess.run([PYTHON, '-c', command], stdout=subprocess.PIPE, check=True)
    assert int(child.stdout) < held.nbytes


@pytest.mark.parametrize('ending', [f'sys.exit({OUT_OF_MEMORY})', 'os.kill(os.getpid(), signal.SIGKILL)'])
def test_half_the_batch_where_memory_runs_out(stub: Any, tmp_path: Path, ending: str) -> None:
    calls = stub(f'if batch > 20: {ending}\ndone()')
    (row,) = quiet([HUNDRED], ['digits_lt'], tmp_path / 'out', batch_size=100)
    assert (row['status'], row['batch_size']) == ('ok', 12)
    assert [line.split()[-1] for line in calls.read_text().splitlines()] == ['100', '50', '25', '12']
    stub(ending)
    (row,) = quiet([HUNDRED], ['digits_lt'], tmp_path / 'other', batch_size=4)
    assert (row['status'], row['reason']) == ('failed', 'out of memory with one image a batch')


def test_a_failure_is_recorded_and_tried_again(stub: Any, tmp_path: Path) -> None:
    fault = tmp_path / 'fault'
    fault.write_text('')
    calls = stub(
        f'if model == "timm/b" and os.path.exists({str(fault)!r}): sys.exit("boom\\nOSError: no disk")\ndone()'
    )
    output = tmp_path / 'out'
    rows = quiet(['timm/a', 'timm/b', 'timm/c'], ['digits_lt'], output)
    assert [row['status'] for row in rows] == ['ok', 'failed', 'ok']
    assert rows[1]['reason'] == 'OSError: no disk'
    fault.unlink()
    assert [row['status'] for row in quiet(['timm/a', 'timm/b', 'timm/c'], ['digits_lt'], output)] == ['ok'] * 3
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ['timm/a', 'timm/b', 'timm/c', 'timm/b']


def test_what_a_measurement_warns_of_is_said_once(
    stub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(
        f'print("of", model, batch, file=sys.stderr)\nif batch > 4: sys.exit({OUT_OF_MEMORY})\n'
        'print("of all", file=sys.stderr)\nprint("of all", file=sys.stderr)\n'
        f'done(reason="none")\nif model == "timm/c": sys.exit({UNFIT})'
    )
    quiet(['timm/a', 'timm/b', 'timm/c'], ['digits_lt'], tmp_path / 'out', batch_size=8)
    assert capsys.readouterr().err == 'of timm/a 4\nof all\nof timm/b 4\n'


def test_a_later_call_adds_to_the_tables_and_measures_what_is_damaged(stub: Any, tmp_path: Path) -> None:
    calls, output = stub('done()'), tmp_path / 'out'
    quiet(['timm/a', 'timm/b'], ['digits_lt'], output)
    assert [row['model'] for row in quiet(['timm/b', 'timm/c'], ['digits_lt'], output)] == ['timm/b', 'timm/c']
    tables = [json.loads((output / 'results.json').read_text())['rows']]
    tables.append(list(csv.DictReader((output / 'results.csv').read_text().splitlines())))
    for table in tables:
        assert [row['model'] for row in table] == ['timm/b', 'timm/c', 'timm/a']
    for file, content in zip(sorted((output / 'rows').iterdir()), (b'', b'[3]', b'{"model": "timm/c"}'), strict=True):
        file.write_bytes(content)
    models = ['timm/a', 'timm/b', 'timm/c']
    assert [row['status'] for row in quiet(models, ['digits_lt'], output)] == ['ok'] * 3
    assert [line.split()[0] for line in calls.read_text().splitlines()] == models * 2


def test_other_weights_and_other_images_are_measured_anew(stub: Any, saved: str, tmp_path: Path) -> None:
    calls, output = stub('done()'), tmp_path / 'out'
    for _ in range(2):
        quiet([saved], ['digits_lt'], output)
    assert len(calls.read_text().splitlines()) == 1
    file = Path(saved.removeprefix('local-dir:')) / 'model.safetensors'
    state = load_file(file)
    save_file({name: tensor + 1 for name, tensor in state.items()}, file)
    for _ in range(2):
        quiet([saved], ['digits_lt'], output)
    assert len(calls.read_text().splitlines()) == 2
    for _ in range(2):
        quiet([saved], ['digits_lt'], output, data_dir=str(tmp_path))
    assert len(calls.read_text().splitlines()) == 3
    for _ in range(2):
        quiet([saved], ['digits_lt'], output, data_dir=str(tmp_path), device='cpu')
    assert len(calls.read_text().splitlines()) == 4
    images, labels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8), np.arange(4)
    for number, test in enumerate((images, images[::-1]), start=5):
        np.savez(tmp_path / 'mine.npz', x_train=images, y_train=labels, x_test=test, y_test=labels)
        for _ in range(2):
            quiet([saved], [f'npz:{tmp_path}/mine.npz'], output)
        assert len(calls.read_text().splitlines()) == number


def test_other_images_of_a_saved_table_are_measured_anew(stub: Any, saved: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip('datasets')
    calls, output = stub('done()'), tmp_path / 'out'
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['a', 'b'])})
    for number, shade in enumerate((0, 200), start=1):
        images = [Image.new('L', (8, 8), shade + i) for i in range(10)]
        table = datasets.Dataset.from_dict({'image': images, 'label': [0, 1] * 5}, features=features)
        shutil.rmtree(tmp_path / 'mine', ignore_errors=True)
        table.save_to_disk(tmp_path / 'mine')
        for _ in range(2):
            quiet([saved], [f'hf:{tmp_path / "mine"}'], output)
        assert len(calls.read_text().splitlines()) == number


def test_ctrl_c_ends_the_child_and_keeps_what_is_done(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub('done()')
    output = tmp_path / 'out'
    quiet(['timm/a'], ['digits_lt'], output)
    stub('open(out, "w").write("{half")\nsignal.pause()')
    started = []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        while not any((output / 'rows').glob('*.part')):
            assert self.poll() is None
        started.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark.subprocess.Popen, 'communicate', interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(['timm/a', 'timm/b'], ['digits_lt'], output)
    assert started[0].poll() is not None, 'the child goes on'
    assert sorted(path.suffix for path in (output / 'rows').iterdir()) == ['.json']
    assert not (output / '.lock').exists()
    assert [row['model'] for row in json.loads((output / 'results.json').read_text())['rows']] == ['timm/a']


def test_nothing_is_timed_beside_a_measurement_whose_call_was_killed(stub: Any, tmp_path: Path) -> None:
    orphan, output = tmp_path / 'orphan', tmp_path / 'out'
    stub(
        f'if not os.path.exists({str(orphan)!r}):\n'
        f'    open({str(orphan)!r}, "w").write(str(os.getpid()))\n'
        '    os.kill(os.getppid(), signal.SIGKILL)\n'
        '    signal.pause()\n'
        'done()'
    )
    call = (
        'from pathlib import Path; from ltzoo.evaluation import benchmark\n'
        f'benchmark.sys.executable = {benchmark.sys.executable!r}\n'
        f'benchmark.benchmark_models(["timm/a"], ["digits_lt"], Path({str(output)!r}))'
    )
    assert subprocess.run([PYTHON, '-c', call]).returncode == -signal.SIGKILL
    try:
        with pytest.raises(BusyError, match='out is being written by another process'):
            quiet(['timm/a'], ['digits_lt'], output)
    finally:
        os.kill(int(orphan.read_text()), signal.SIGKILL)
    with open(output / '.lock') as lock:
        # Until the kernel has ended it.
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert quiet(['timm/a'], ['digits_lt'], output)[0]['status'] == 'ok'


def test_a_call_that_is_stopped_keeps_what_it_had_not_reached_in_the_tables(stub: Any, tmp_path: Path) -> None:
    stub('done()')
    output, models = tmp_path / 'out', ['timm/a', 'timm/b', 'timm/c']
    quiet(models, ['digits_lt'], output)

    def stop(line: str) -> None:
        if line.startswith('[2/3]'):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark_models(models, ['digits_lt'], output, rerun=True, say=stop)
    assert [row['model'] for row in json.loads((output / 'results.json').read_text())['rows']] == models


def test_models_by_pattern(saved: str) -> None:
    assert choose_models(['resnet32*', HUNDRED]) == PUBLISHED
    assert choose_models([HUNDRED.partition('.')[0]]) == [HUNDRED]
    assert choose_models([saved, 'timm/resnet18', saved]) == [saved, 'timm/resnet18']
    assert choose_models(['hf-hub:org/name@main']) == ['hf-hub:org/name@main']
    for wrong, message in (
        (
            'resnet23_ce*',
            'resnet23_ce* matches no model with published weights; did you mean resnet32_cifar_ce.cifar10_lt_r100?',
        ),
        ('timm/resnet5O', "no model is called 'timm/resnet5O': the nearest are timm/resnet50"),
        (f'{saved}s', f'{saved.removeprefix("local-dir:")}s holds no exported model: config.json is missing'),
        ('some/place', 'there is no folder some/place; models are hf-hub:some/place on the Hub'),
        ('hf-hub:name', 'hf-hub:name is neither a folder'),
    ):
        with pytest.raises(ltzoo.LtzooError, match=re.escape(message)):
            choose_models([HUNDRED, wrong])
    with pytest.raises(ltzoo.LtzooError, match='holds no run'):
        choose_models([saved.removeprefix('local-dir:')])


def refuse(*args: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_what_cannot_be_begun(stub: Any, tmp_path: Path) -> None:
    calls = stub('done()')
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used' / 'thesis.txt').write_text('mine')
    with pytest.raises(BenchmarkError, match='used is not empty and holds no benchmark'):
        quiet(['timm/a'], ['digits_lt'], tmp_path / 'used')
    with pytest.raises(BenchmarkError, match=r'thesis\.txt is a file; give a folder'):
        quiet(['timm/a'], ['digits_lt'], tmp_path / 'used' / 'thesis.txt')
    with pytest.raises(DataError):
        quiet(['timm/a'], ['digits_lt', 'cifra100'], tmp_path / 'out')
    with pytest.raises(MissingDataError):
        quiet(['timm/a'], ['cifar100'], tmp_path / 'out', data_dir=str(tmp_path))
    with pytest.raises(BenchmarkError, match='cannot be written: Not a directory; give another folder'):
        quiet(['timm/a'], ['digits_lt'], tmp_path / 'used' / 'thesis.txt' / 'out')
    assert sorted(os.listdir(tmp_path / 'used')) == ['thesis.txt']
    assert not (tmp_path / 'out').exists()
    quiet(['timm/a'], ['digits_lt'], tmp_path / 'out')
    with pytest.MonkeyPatch.context() as patch:
        # As in a folder that is write-protected, which does not keep root out.
        patch.setattr(FileLock, 'acquire', refuse)
        with pytest.raises(BenchmarkError, match='out cannot be written: Permission denied; give another folder'):
            quiet(['timm/b'], ['digits_lt'], tmp_path / 'out')
    with (
        FileLock(tmp_path / 'out' / '.lock'),
        pytest.raises(BusyError, match='out is being written by another process'),
    ):
        quiet(['timm/b'], ['digits_lt'], tmp_path / 'out')
    assert len(calls.read_text().splitlines()) == 1


def test_weights_of_the_zoo_that_were_made_anew_are_measured_anew(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stub('done()')
    for sha256, measured in (('a', 1), ('a', 1), ('b', 2)):
        monkeypatch.setattr(benchmark, 'get_results', lambda name, sha256=sha256: {'sha256': sha256})
        quiet([HUNDRED], ['digits_lt'], tmp_path / 'out')
        assert len(calls.read_text().splitlines()) == measured
    assert _weights_of('resnet50_inat18_gkpgsa') is None
