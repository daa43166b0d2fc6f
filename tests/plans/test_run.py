"""Trainings that run at once, each in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from ltzoo.plans.run import _wait


def test_what_does_not_stop_is_killed() -> None:
    deaf = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'
    process = subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b'1\n'
    now = time.monotonic()
    assert _wait(process, now + 0.2, now + 0.5) is None
    assert process.returncode == -signal.SIGKILL and time.monotonic() - now < 10
