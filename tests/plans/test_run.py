"""Trainings that run at once, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from timm.models import save_for_hf

import ltzoo
from ltzoo.errors import LtzooError
from ltzoo.files import BusyError, alone
from ltzoo.plans.pack import PackError, pack
from ltzoo.plans.plan import Job, Plan, load_plan, plan_jobs
from ltzoo.plans.run import _wait, train

RECIPE = Path(__file__).parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'


def make_jobs(
    tmp_path: Path, script: str, *changes: str, seeds: Sequence[int] = (0,), data_dir: str | None = None
) -> tuple[Plan, list[Job]]:
    """A plan of one training for each seed, in whose place a script runs that prints."""
    (tmp_path / 'plan.yaml').write_text(
        f'output: {tmp_path}/runs\nseeds: {list(seeds)}\nruns: {{base: {{recipe: {RECIPE}}}}}'
    )
    (tmp_path / 'train.py').write_text(script)
    plan = load_plan(tmp_path / 'plan.yaml')
    return plan, plan_jobs(plan, tmp_path, tmp_path / 'train.py', data_dir=data_dir, changes=changes)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    plan, jobs = make_jobs(tmp_path, '')
    # A write-protected folder does not keep root out.
    jobs[0].log.mkdir(parents=True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LtzooError, match=r'base_seed0\.log cannot be written: .*Is a directory'):
        train(jobs, 1, plan)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_table_that_cannot_be_made_is_told_at_once_and_ends_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, jobs = make_jobs(tmp_path, '', seeds=(0, 1))
    begun = []

    def fail(plan: Plan) -> None:
        begun.append(plan)
        raise LtzooError('the table cannot be written')

    monkeypatch.setattr('ltzoo.plans.run.write_table', fail)
    with pytest.raises(LtzooError, match='the table cannot be written'):
        train(jobs, 1, plan)
    assert len(begun) == 1
    assert capsys.readouterr().err == 'nothing more is begun: the table cannot be written\n'


@pytest.mark.parametrize(
    ('name', 'place'), [('cifar10_lt_r100', '/data'), ('folder:/mine', None), ('csv:/mine/list.csv', '/data')]
)
def test_images_that_say_where_they_are_have_no_other_place(name: str, place: str | None, tmp_path: Path) -> None:
    _, (job,) = make_jobs(tmp_path, '', f'data.name={name}', data_dir='/data')
    assert job.recipe.data.data_dir == place
    assert (f'data.data_dir={place}' in job.command) == (place is not None)


def test_a_table_that_another_call_is_making_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, jobs = make_jobs(tmp_path, '', seeds=(0, 1))

    def busy(plan: Plan) -> None:
        raise BusyError('the table is being written by another process')

    monkeypatch.setattr('ltzoo.plans.run.write_table', busy)
    codes = train(jobs, 1, plan)
    assert [code for _, code in codes] == [0, 0]
    assert 'base, seed 1: the table is being written by another process' in capsys.readouterr().err


def test_what_does_not_stop_is_killed() -> None:
    deaf = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'
    process = subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b'1\n'
    now = time.monotonic()
    assert _wait(process, now + 0.2, now + 0.5) is None
    assert process.returncode == -signal.SIGKILL and time.monotonic() - now < 10


# A training that tells of being asked to stop, as recipes/train.py does.
STOPPED = """
import os, signal, sys, time
print('begun', flush=True)
try:
    {}
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit('stopped')
"""


def test_a_budget_stops_what_is_trained_and_begins_nothing_more(tmp_path: Path) -> None:
    plan, jobs = make_jobs(tmp_path, STOPPED.format(''), seeds=(0, 1))
    # As in the background of a shell, where Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(jobs, 1, plan, time.monotonic() + 8) == [(jobs[0], None), (jobs[1], None)]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert jobs[0].log.read_text() == 'begun\nstopped\n'
    assert not jobs[1].log.exists()


def test_sigterm_ends_what_is_trained_and_begins_nothing_more(tmp_path: Path) -> None:
    plan, jobs = make_jobs(tmp_path, STOPPED.format('os.kill(os.getppid(), signal.SIGTERM)'), seeds=(0, 1))
    now = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(jobs, 1, plan)
    # At once: one that does not hear it is given 15 seconds.
    assert time.monotonic() - now < 12
    assert jobs[0].log.read_text() == 'begun\n'
    assert not jobs[1].log.exists()


@contextmanager
def another_process_at(job: Job, ending: str | None, let_go: threading.Event) -> Iterator[None]:
    """Hold a run's lock, as a training does, until it is to be let go; it may finish or diverge then."""
    held = threading.Event()

    def hold() -> None:
        with alone(folder):
            held.set()
            let_go.wait(30)
            if ending is not None:
                (folder / ending).write_text('{"training_seconds": 60.0}')

    folder = job.folder
    folder.mkdir(parents=True)
    (folder / 'recipe.yaml').write_text(job.recipe.to_yaml())
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        yield
    finally:
        let_go.set()
        holder.join()


@pytest.mark.parametrize('ending', [None, 'results.json', 'diverged.txt'])
def test_a_run_that_another_process_trains_is_waited_for(
    ending: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, (job,) = make_jobs(tmp_path, 'print("begun")')
    told: list[str] = []
    let_go = threading.Event()

    def say(line: str, **options: object) -> None:
        told.append(line)
        if 'waits' in line:
            assert not job.log.exists()
            let_go.set()

    monkeypatch.setattr('ltzoo.plans.run.print', say, raising=False)
    diverged = ending == 'diverged.txt'
    with another_process_at(job, ending, let_go):
        assert train([job], 1, plan) == [(job, 2 if diverged else 0)]
    assert told[1:] == [
        f'base, seed 0: waits for another process that trains {job.folder}',
        f'base, seed 0: {"diverged" if diverged else "finished"}',
    ]
    assert job.log.exists() == (ending is None)
    assert (plan.output / 'table.md').exists() == (ending is not None)


def test_waiting_for_another_process_ends_in_time_and_by_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, (job,) = make_jobs(tmp_path, 'print("begun")')
    with another_process_at(job, None, threading.Event()):
        assert train([job], 1, plan, time.monotonic() + 0.5) == [(job, None)]
        # To the process, as it is the main thread that has to hear of it.
        monkeypatch.setattr(
            'ltzoo.plans.run.print',
            lambda line, **options: 'waits' in line and os.kill(os.getpid(), signal.SIGTERM),
            raising=False,
        )
        with pytest.raises(KeyboardInterrupt):
            train([job], 1, plan)
    assert not job.log.exists()


def test_threads_are_shared_among_the_cores_that_a_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, (job,) = make_jobs(tmp_path, 'import os; print(os.environ["OMP_NUM_THREADS"])')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(1000)), raising=False)
    train([job], 2, plan)
    assert job.log.read_text() == '500\n'


def test_what_is_misspelled_or_cannot_travel_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, jobs = make_jobs(tmp_path, 'print("begun")', 'data.name=digits_lt_r1OO')
    with pytest.raises(LtzooError, match='digits_lt_r1OO'):
        train(jobs, 1, plan)
    with pytest.raises(LtzooError, match='digits_lt_r1OO'):
        make_jobs(tmp_path, '', 'data.name=digits_lt_r1OO', data_dir='/data')
    plan, jobs = make_jobs(tmp_path, 'print("begun")', 'optimizer.name=adamv')
    with pytest.raises(LtzooError, match="timm has no 'adamv'"):
        train(jobs, 1, plan)
    with pytest.raises(LtzooError, match="timm has no 'adamv'"):
        pack(tmp_path / 'pack', RECIPE.parents[2], plan, tmp_path / 'plan.yaml', jobs)
    monkeypatch.setenv('LTZOO_IMPORTS', 'my_parts')
    with pytest.raises(PackError, match=r'LTZOO_IMPORTS=my_parts cannot be packed, .* put the parts under ltzoo/'):
        pack(tmp_path / 'pack', RECIPE.parents[2], plan, tmp_path / 'plan.yaml', jobs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['plan.yaml', 'train.py']


def test_teachers_travel_with_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def packed(*teachers: str) -> Path:
        names = f'objective={{name: distilled, teachers: [{", ".join(teachers)}]}}'
        plan, jobs = make_jobs(tmp_path, '', names)
        pack(tmp_path / 'pack', RECIPE.parents[2], plan, tmp_path / 'plan.yaml', jobs, changes=[names])
        return tmp_path / 'pack'

    with pytest.raises(PackError, match='the teacher local-dir:first/model cannot be packed: it is not there'):
        packed('local-dir:first/model')
    save_for_hf(ltzoo.create_model('resnet8_cifar', num_classes=10), 'first/model', safe_serialization=True)
    for elsewhere in (f'local-dir:{tmp_path}/first/model', 'hf-hub:org/name', 'local-dir:first/../first/model'):
        with pytest.raises(PackError, match=f'the teacher {elsewhere} cannot be packed: one of the zoo'):
            packed(elsewhere)
    there = packed('local-dir:first/model', 'resnet32_cifar_bcl')
    assert (there / 'first' / 'model' / 'model.safetensors').is_file()
    (weights,) = (there / 'ltzoo' / 'models' / 'weights').iterdir()
    assert weights.name == 'resnet32_cifar_bcl.cifar100_lt_r100'
    assert (weights / 'model.safetensors').is_file()
