"""Trainings that run at once, each in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltzoo.errors import LtzooError
from ltzoo.plans.plan import Plan, load_plan, plan_jobs
from ltzoo.plans.run import _wait, train

RECIPE = Path(__file__).parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'plan.yaml').write_text(f'output: {tmp_path}/runs\nseeds: [0]\nruns: {{base: {{recipe: {RECIPE}}}}}')
    plan = load_plan(tmp_path / 'plan.yaml')
    jobs = plan_jobs(plan, tmp_path, tmp_path / 'train.py')
    # A write-protected folder does not keep root out.
    jobs[0].log.mkdir(parents=True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LtzooError, match=r'base_seed0\.log cannot be written: .*Is a directory'):
        train(jobs, 1, plan)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_table_that_cannot_be_made_is_told_at_once_and_ends_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'plan.yaml').write_text(f'output: {tmp_path}/runs\nseeds: [0, 1]\nruns: {{base: {{recipe: {RECIPE}}}}}')
    (tmp_path / 'train.py').write_text('')
    plan = load_plan(tmp_path / 'plan.yaml')
    begun = []

    def fail(plan: Plan) -> None:
        begun.append(plan)
        raise LtzooError('the table cannot be written')

    monkeypatch.setattr('ltzoo.plans.run.write_table', fail)
    with pytest.raises(LtzooError, match='the table cannot be written'):
        train(plan_jobs(plan, tmp_path, tmp_path / 'train.py'), 1, plan)
    assert len(begun) == 1
    assert capsys.readouterr().err == 'nothing more is begun: the table cannot be written\n'


def test_what_does_not_stop_is_killed() -> None:
    deaf = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'
    process = subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b'1\n'
    now = time.monotonic()
    assert _wait(process, now + 0.2, now + 0.5) is None
    assert process.returncode == -signal.SIGKILL and time.monotonic() - now < 10
