"""The training script as users run it: what it prints and leaves, what it refuses, how it is stopped and continued."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate import PartialState
from in_process import contents, imported, run
from PIL import Image

import ltzoo
from ltzoo.data import MissingImageError, UnreadableImageError
from ltzoo.training.checkpoint import load_checkpoint
from ltzoo.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'recipes' / 'train.py'
CE = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml'
BCL = ROOT / 'recipes' / 'digits_lt' / 'bcl.yaml'
QUICK = ('model.name=resnet20_cifar', 'optimizer.lr=0.05', 'schedule.warmup_epochs=0')


def train(*arguments: object) -> int:
    return run('recipes/train.py', *arguments)


@pytest.fixture(autouse=True)
def _levels_of_logging() -> Iterator[None]:
    """Undo what the script tells loggers, by what empties their caches too."""
    yield
    for name in ('ltzoo', 'ltzoo.data.dataset'):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a run was started from, without saying where its output goes, and what it printed."""
    place = tmp_path_factory.mktemp('place')
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        assert train(CE, *QUICK, 'epochs=1', 'batch_size=16', 'seed=3', '--no-progress') == 0
    return place, printed.getvalue()


def test_at_the_end_the_table_and_where_everything_is(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, printed = finished
    monkeypatch.chdir(place)
    run = Path('runs', 'digits_lt', 'ce_seed3')
    results = json.loads((run / 'results.json').read_text())
    assert (results['seed'], results['epochs'], results['data']) == (3, 1, 'digits_lt')
    shown = {words[0]: words[1] for words in map(str.split, printed.splitlines()[1:7])}
    keys = {'top-1': 'top1', 'Many': 'many', 'Medium': 'medium', 'Few': 'few', 'balanced': 'balanced_accuracy'}
    assert shown == {name: f'{results[key]:.2f}' for name, key in (keys | {'ECE': 'ece'}).items()}
    assert f'run folder: {run}' in printed
    for path in (run / 'accuracy.png', run / 'curves.png'):
        assert str(path) in printed
        with Image.open(path) as image:
            assert image.format == 'PNG'
    (call,) = re.findall(r'ltzoo\.create_model\(.*?\)', printed)
    model = eval(call, {'ltzoo': ltzoo})
    trained = load_checkpoint(run / 'checkpoint.pt')['learner']
    assert all(torch.equal(value, trained[f'model.{key}']) for key, value in model.state_dict().items())
    assert os.listdir(place) == ['runs']


def test_a_finished_run_is_shown_when_continued_and_refused_otherwise(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, printed = finished
    monkeypatch.chdir(place)
    before = contents(place)
    options = [CE, *QUICK, 'epochs=1', 'batch_size=16', 'seed=3']
    assert train(*options, 'resume=auto') == 0
    assert capsys.readouterr().out == printed
    assert train(*options) == 2
    assert 'holds a run already: continue it with resume=auto' in capsys.readouterr().err
    assert train(*options, 'resume=auto', 'optimizer.lr=0.04') == 2
    assert 'optimizer.lr was 0.05, is 0.04' in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.parametrize(('file', 'views', 'size'), [(CE, 1, 64), (BCL, 3, 96)])
def test_a_dry_run_prints_recipe_and_shapes_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: Path,
    views: int,
    size: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [f'batch_size={size}', 'epochs=7', f'output={tmp_path / "run"}', 'trackers=[tensorboard]']
    assert train(file, *overrides, '--dry-run') == 0
    printed, shapes = re.split(r'^(?=data: .)', capsys.readouterr().out, flags=re.MULTILINE)
    assert Recipe.model_validate(yaml.safe_load(printed)) == load_recipe(file, overrides)
    head = 'linear' if views == 1 else 'cosine'
    parameters = sum(p.numel() for p in ltzoo.create_model('resnet32_cifar', num_classes=10, head=head).parameters())
    assert 'data: digits_lt, 371 training images in 10 classes, 400 to measure on (test)' in shapes
    assert f'model: resnet32_cifar, {parameters:,} parameters' in shapes
    steps = {64: 5, 96: 3}[size]
    assert f'steps: {steps} an epoch, {7 * steps} in all' in shapes
    shape = f'({size}, 3, 8, 8) torch.float32'
    assert re.findall(r'^view (\d): (.*)$', shapes, re.MULTILINE) == [(str(v + 1), shape) for v in range(views)]
    assert f'labels: ({size},); losses: ({size},)' in shapes
    assert not os.listdir(tmp_path)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders that cannot be trained on."""
    place = tmp_path_factory.mktemp('pictures')
    (place / 'empty').mkdir()
    (place / 'bare' / 'dog').mkdir(parents=True)
    for path in ('one/cat', 'bare/cat'):
        (place / path).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((40, 40, 3), 60 * number, np.uint8)
            Image.fromarray(pixels).save(place / path / f'{number}.png')
    (place / 'file').write_text('mine')
    return place


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['epoch=3'], 'there is no key epoch; did you mean epochs?'),
        (['optimizer.lrr=1'], 'there is no key optimizer.lrr; did you mean optimizer.lr?'),
        (['evaluation.splitt=test'], 'there is no key evaluation.splitt; did you mean evaluation.split?'),
        (['epochs=many'], "epochs is 'many': input should be a valid integer"),
        (['optimizer.lr=-1'], 'optimizer.lr is -1: input should be greater than 0'),
        (['data=digits_lt'], 'data is a group of keys and no word: write data.name=digits_lt'),
        (['resume=always'], "resume is 'always': input should be 'auto' or 'never'"),
        (['epochs'], "'epochs' is not of the form key=value"),
        (['evaluation.every_epochs=1'], 'the test set is touched once'),
        (['model.name=resnet32_cifr'], 'the nearest are resnet32_cifar'),
        (['model.name=timm/resnet118'], 'the nearest are timm/resnet18'),
        (['model.pretrained=true'], 'resnet32_cifar is an architecture without published weights'),
        (['model.pretraind=true'], 'there is no key model.pretraind; did you mean pretrained?'),
        (['model.head=cosin'], "no head is called 'cosin'"),
        (['data.name=digitz_lt'], "no data set is called 'digitz_lt'; did you mean digits_lt?"),
        (['views=digit_plain'], "no views are called 'digit_plain'; did you mean digits_plain?"),
        (['views=digits_bcl'], 'needs 1 view, and views has 3: presets with 1 are cifar_plain'),
        (['objective.name=bc'], "no objective is called 'bc'"),
        (['objective.name=logit_adjusted', 'objective.ta=1'], "has no option 'ta'; did you mean tau?"),
        (['optimizer.name=sgdd'], "timm has no 'sgdd'"),
        (['data.name=folder:{pictures}/nowhere'], '{pictures}/nowhere is not a folder'),
        (['data.name=folder:{pictures}/empty'], '{pictures}/empty has no folders'),
        (['data.name=folder:{pictures}/bare'], 'class folder {pictures}/bare/dog has no images'),
        (['data.name=folder:{pictures}/one'], 'has 1 class, cat; a classifier needs at least 2'),
        (['output={pictures}/file'], 'output={pictures}/file is a file, not a folder'),
        (['output={pictures}/one'], 'output={pictures}/one is not empty and holds no run'),
        (['output={pictures}/file/run'], 'output={pictures}/file/run cannot be made: Not a directory'),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(pictures)
    assert train(CE, *(argument.format(pictures=pictures) for argument in arguments), '--no-progress') == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith('train.py: ')
    assert message.format(pictures=pictures) in line
    assert not captured.out
    assert not os.listdir(tmp_path)
    assert contents(pictures) == before


def test_a_misspelt_recipe_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(CE.with_name('cee.yaml')) == 2
    assert f'there is no recipe file {CE.with_name("cee.yaml")}; did you mean {CE}?' in capsys.readouterr().err
    (tmp_path / 'bad.yaml').write_text('epochs: [')
    assert train(tmp_path / 'bad.yaml') == 2
    assert f'{tmp_path / "bad.yaml"} is not a YAML file' in capsys.readouterr().err
    assert train() == 2
    assert 'required: recipe' in capsys.readouterr().err


def test_more_processes_than_accelerate_starts_are_refused(tmp_path: Path) -> None:
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2']
    done = subprocess.run(
        [*launch, str(TRAIN), str(CE), 'epochs=1', f'output={tmp_path / "run"}'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith('train.py: '))
    assert line.startswith('train.py: 2 processes were asked for, Accelerate runs 1: on a CPU start them with ')
    assert 'ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 recipes/train.py' in line
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_finds_what_a_tracker_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(CE, 'trackers=[trackio]', '--dry-run') == 2
    assert 'trackio needs its package: pip install trackio' in capsys.readouterr().err
    assert train(CE, 'trackers=[tensorboard]', '--dry-run') == 0
    assert 'trackers:\n- tensorboard\n' in capsys.readouterr().out
    assert not os.listdir(tmp_path)


def test_processes_that_do_not_know_of_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PartialState().num_processes == 1
    # As plain torchrun leaves it on a CPU.
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert train(CE, f'output={tmp_path / "run"}') == 2
    said = capsys.readouterr().err
    assert said.startswith('train.py: 2 processes were asked for, Accelerate runs 1: on a CPU start them with ')
    assert said.count('\n') == 1 and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('command', 'asked'),
    [
        ('accelerate launch --num_processes 2 recipes/train.py RECIPE', 2),
        ('accelerate launch --num-processes 3 --cpu recipes/train.py RECIPE', 3),
        ('accelerate launch --num_processes=4 recipes/train.py RECIPE', 4),
        ('accelerate launch --cpu --num-processes=5 recipes/train.py RECIPE', 5),
        ('accelerate launch recipes/train.py RECIPE', 1),
        # What is behind the script is not for the launcher.
        ('bash recipes/train.py --num_processes 6', 1),
        ('bash --num_processes', 1),
        # As the first process of a container, or whose parent may not be looked at.
        (None, 1),
        ('', 1),
    ],
)
def test_what_the_launcher_was_asked_for(command: str | None, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = None if command is None else SimpleNamespace(cmdline=command.split)
    monkeypatch.setattr(psutil, 'Process', lambda: SimpleNamespace(parent=lambda: parent))
    with imported('recipes/train.py') as script:
        assert script.processes_of_launcher() == asked


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], subprocess.CompletedProcess[str]]:
    """A run stopped by Ctrl-C in its second epoch or later: its folder, its overrides, what its process said."""
    run = tmp_path_factory.mktemp('interrupted') / 'run'
    overrides = [*QUICK, 'epochs=8', f'output={run}']
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), str(CE), *overrides],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a shell has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600
    while not (run / 'checkpoint.pt').exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=600)
    return run, overrides, subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_ctrl_c(interrupted: tuple[Path, list[str], subprocess.CompletedProcess[str]]) -> None:
    run, _, process = interrupted
    assert process.returncode == 130, process.stderr
    # Not always the last line: a progress bar that is interrupted while it is made complains when it is taken away.
    told = (
        'stopped: continue from the last checkpoint with the same command and resume=auto, and with stop_epoch=N to '
        'end after N epochs'
    )
    assert told in process.stderr.splitlines()
    assert 'Traceback' not in process.stderr
    assert not process.stdout
    assert 1 <= load_checkpoint(run / 'checkpoint.pt')['epoch'] < 8
    assert set(os.listdir(run)) == {'checkpoint.pt', 'environment.json', 'log.jsonl', 'recipe.yaml'}


def test_a_full_disk_spares_the_last_checkpoint_and_the_run_goes_on_later(
    interrupted: tuple[Path, list[str], subprocess.CompletedProcess[str]],
    tmp_path: Path,
    file_size_limit: Callable[[int | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(interrupted[0], tmp_path / 'run')
    command: list[Any] = [CE, *interrupted[1], f'output={run}', 'resume=auto', '--no-progress']
    checkpoint = run / 'checkpoint.pt'
    before = checkpoint.read_bytes()
    file_size_limit(len(before) // 2)
    assert train(*command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'train.py: the checkpoint {checkpoint} (')
    assert line.endswith('the one before it is intact: make room, then continue with resume=auto')
    assert checkpoint.read_bytes() == before
    assert set(os.listdir(run)) == set(os.listdir(interrupted[0]))

    file_size_limit(None)
    assert train(*command) == 0
    epochs = [json.loads(text)['epoch'] for text in (run / 'log.jsonl').read_text().splitlines()]
    assert epochs == list(range(8))
    assert load_checkpoint(checkpoint)['epoch'] == 8
    assert json.loads((run / 'results.json').read_text())['epochs'] == 8


@pytest.mark.parametrize(
    ('share', 'message'),
    [
        (0.5, 'model cannot be written: .*File too large'),
        # Not even for the first file.
        (0.0, 'the run .* stopped: .*File too large'),
    ],
)
def test_a_full_disk_at_the_end_leaves_no_results_until_it_is_finished(
    finished: tuple[Path, str],
    tmp_path: Path,
    file_size_limit: Callable[[int | None], None],
    capsys: pytest.CaptureFixture[str],
    share: float,
    message: str,
) -> None:
    run = shutil.copytree(finished[0] / 'runs' / 'digits_lt' / 'ce_seed3', tmp_path / 'run')
    results = json.loads((run / 'results.json').read_text())
    weights = (run / 'model' / 'model.safetensors').stat().st_size
    (run / 'results.json').unlink()
    shutil.rmtree(run / 'model')
    overrides = [*QUICK, 'epochs=1', 'batch_size=16', 'seed=3', f'output={run}', 'resume=auto', '--no-progress']
    file_size_limit(int(share * weights))
    assert train(CE, *overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (run / 'results.json').exists()
    assert not (run / 'model').exists()

    file_size_limit(None)
    assert train(CE, *overrides) == 0
    again = json.loads((run / 'results.json').read_text())
    assert again['per_class'] == results['per_class']


@pytest.mark.parametrize(('rank', 'said'), [('0', 'train.py: '), ('3', 'train.py (process 3): ')])
@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (
            UnreadableImageError('image x.jpg cannot be decoded'),
            'image x.jpg cannot be decoded; data.unreadable=skip leaves such images out',
        ),
        (MissingImageError('image x.jpg does not exist'), 'image x.jpg does not exist'),
        (
            RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'),
            'the run {run} stopped: a process that reads images was killed, most often for want of memory or, in a '
            'container, of shared memory (--shm-size): take fewer workers, or 0, or smaller batches; once that is put '
            'right, use resume=auto; workers and evaluation.batch_size may be changed where resume=auto goes on',
        ),
    ],
    ids=['undecodable', 'missing', 'killed worker'],
)
def test_what_one_process_alone_meets_is_told_with_what_helps(
    error: Exception,
    message: str,
    rank: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr('ltzoo.training.fit.fit', fail)
    monkeypatch.setenv('RANK', rank)
    assert train(CE, f'output={tmp_path / "run"}') == 2
    assert capsys.readouterr().err.endswith(f'{said}{message.format(run=tmp_path / "run")}\n')
    # What all of them find is said once on each machine.
    for local in (rank, '0'):
        monkeypatch.setenv('LOCAL_RANK', local)
        assert train(CE, 'epochs=none') == 2
        assert ('train.py' in capsys.readouterr().err) == (local == '0')


@pytest.mark.parametrize('rank', [0, 1])
def test_what_all_processes_warn_of_is_said_once(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: Any, **__: Any) -> None:
        for name in ('ltzoo.training.prepare', 'ltzoo.data.dataset'):
            logging.getLogger(name).warning(name)
        raise KeyboardInterrupt

    monkeypatch.setattr('ltzoo.training.fit.fit', stop)
    monkeypatch.setenv('RANK', str(rank))
    assert train(CE, f'output={tmp_path / "run"}') == 130
    # Each process has read images of its own.
    assert caplog.messages == ['ltzoo.training.prepare', 'ltzoo.data.dataset'][rank:]
    assert ('resume=auto' in capsys.readouterr().err) == (rank == 0)


@pytest.mark.parametrize(
    'error', [torch.OutOfMemoryError('CUDA out of memory'), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_for_a_step_is_one_sentence_that_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr('ltzoo.training.fit.fit', fail)
    monkeypatch.setattr('ltzoo.training.prepare.describe_batch', fail)
    assert train(CE, '--dry-run') == 2
    assert 'stopped: the device has no memory' in capsys.readouterr().err
    monkeypatch.setenv('RANK', '3')
    assert train(CE, f'output={tmp_path / "run"}', 'accumulation=2') == 2
    said = capsys.readouterr().err
    assert said.startswith(f'train.py (process 3): the run {tmp_path / "run"} stopped: the device has no memory')
    assert 'or give precision=bf16, accumulation=4, a smaller batch_size' in said and said.count('\n') == 1
    assert train(CE, f'output={tmp_path / "run"}', 'precision=bf16') == 2
    assert 'or give accumulation=2, a smaller batch_size' in capsys.readouterr().err
