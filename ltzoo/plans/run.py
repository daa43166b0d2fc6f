"""Run a plan's trainings, several at once, each in a process of its own that goes on where it was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from ltzoo.errors import LtzooError
from ltzoo.files import BusyError, alone, writing
from ltzoo.plans.plan import Job, Plan, PlanError
from ltzoo.plans.table import write_table

__all__ = ['train']

# Seconds that a training has between being asked to stop and being killed.
_GRACE = 15
# Seconds between two looks whether another process still trains a run.
_PAUSE = 1.0


def train(jobs: Sequence[Job], at_once: int, plan: Plan, deadline: float | None = None) -> list[tuple[Job, int | None]]:
    """Run every training that is not finished and has not diverged; each one's output goes to its log.

    What another process trains, as one does whose call was killed, is waited for.

    Ctrl-C and, in the main thread, SIGTERM end the trainings too and raise KeyboardInterrupt.

    Args:
        jobs: the trainings.
        at_once: how many run at a time.
        plan: that they are of.
        deadline: on the clock of `time.monotonic`: all trainings have ended by then.

    Returns:
        The exit code of each, None for those that the deadline stopped or kept from starting.

    Raises:
        PlanError: if the folder of the runs cannot be made.
        LtzooError: if a recipe names what does not exist, before anything is trained; if a log or the table cannot be
            written.
    """
    # Here, as a table or an archive needs nothing of all that trains.
    from ltzoo.models.factory import ModelFilesError
    from ltzoo.training.prepare import check_names

    # Looked at once: another call of the plan may finish one meanwhile.
    finished = [job for job in jobs if job.finished]
    waiting = [job for job in jobs if job not in finished and not job.diverged]
    for job in waiting:
        # The weights that one starts from may be another's of the plan.
        with suppress(ModelFilesError):
            check_names(job.recipe)
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f'output: {plan.output} cannot be made: {error.strerror}') from error
    # A scheduler may have left this process fewer cores than there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    threads = os.environ.get('OMP_NUM_THREADS', str(max(1, cores // at_once)))
    environment = {**os.environ, 'OMP_NUM_THREADS': threads}
    stopped = threading.Event()
    lock = threading.Lock()
    diverged = len(jobs) - len(waiting) - len(finished)
    said = f', {diverged} diverged' if diverged else ''
    print(f'finished trainings: {len(finished)} of {len(jobs)}{said}', flush=True)
    last_call = None if deadline is None else deadline - min(_GRACE, (deadline - time.monotonic()) / 4)
    running: set[subprocess.Popen[bytes]] = set()

    def end(*_: object) -> None:
        for process in list(running):
            process.terminate()
        raise KeyboardInterrupt

    handlers: dict[int, Any] = {signal.SIGTERM: end}
    if deadline is not None:
        # What runs in the background may ignore Ctrl-C, and what it starts then too; it is how they are stopped.
        handlers[signal.SIGINT] = signal.default_int_handler

    def run_apart(job: Job) -> int | None:
        with writing(job.log):
            # What an earlier attempt said stays.
            log = open(job.log, 'a')  # noqa: SIM115
        with log:
            process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running.add(process)
            if stopped.is_set():
                process.terminate()
            code = _wait(process, last_call, deadline)
            running.discard(process)
        return code

    def run(job: Job) -> int | None:
        while True:
            _wait_for_others(job, stopped, last_call)
            if stopped.is_set():
                return 130
            if last_call is not None and time.monotonic() >= last_call:
                return None
            # By now another process may have brought it to its end, of one kind or the other.
            code = 0 if job.finished else 2 if job.diverged else run_apart(job)
            # It is refused, too, where another process has begun it a moment before.
            if code != 2 or not _is_held(job):
                break
        # Ctrl-C reaches the trainings too, and one may have ended before this process hears of it.
        if code in (130, -signal.SIGINT):
            stopped.set()
        with lock:
            if not stopped.is_set():
                try:
                    write_table(plan)
                except BusyError as error:
                    # The next one makes it.
                    print(f'{job.name}, seed {job.seed}: {error}', file=sys.stderr, flush=True)
                except LtzooError as error:
                    # Those that run go on to their end, hours from now, before it is raised.
                    print(f'nothing more is begun: {error}', file=sys.stderr, flush=True)
                    stopped.set()
                    raise
                ended = 'diverged' if code == 2 and job.diverged else _ending(code) if code else 'finished'
                ending = 'out of time' if code is None else ended
                refused = code == 2 and job.log.exists()
                said = job.log.read_text(encoding='utf-8', errors='replace').splitlines() if refused else []
                # What was refused is said in the last line.
                ending += ''.join(f', {line}' for line in said[-1:])
                print(f'{job.name}, seed {job.seed}: {ending}', flush=True)
        return code

    with _handling(handlers), ThreadPoolExecutor(at_once) as pool:
        try:
            codes = list(pool.map(run, waiting))
        except KeyboardInterrupt:
            stopped.set()
            # Where Ctrl-C did not reach them, they have to be told.
            _end(list(running))
            raise
    if stopped.is_set():
        raise KeyboardInterrupt
    return list(zip(waiting, codes, strict=True))


@contextmanager
def _handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Answer signals so for as long as it lasts; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_others(job: Job, stopped: threading.Event, last_call: float | None) -> None:
    """Wait while another process trains into a run's folder, until `last_call` and for as long as nobody stops it."""
    told = False
    while not stopped.is_set() and _is_held(job):
        left = _PAUSE if last_call is None else last_call - time.monotonic()
        if left <= 0:
            return
        if not told:
            print(f'{job.name}, seed {job.seed}: waits for another process that trains {job.folder}', flush=True)
        told = True
        stopped.wait(min(_PAUSE, left))


def _ending(code: int) -> str:
    if code < 0:
        return f'killed by signal {-code}' + (', often for lack of memory' if -code == signal.SIGKILL else '')
    return f'exit code {code}'


def _is_held(job: Job) -> bool:
    """Return whether a process trains into a run's folder now."""
    if not job.folder.is_dir():
        return False
    try:
        with alone(job.folder):
            return False
    except BusyError:
        return True
    except OSError:
        # The training itself says what is wrong with its folder.
        return False


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], last_call: float | None, deadline: float | None) -> int | None:
    """Return the exit code, or None if the process had to be stopped: by Ctrl-C, by force where that does not help."""
    if last_call is None or deadline is None:
        return process.wait()
    try:
        return process.wait(max(0.0, last_call - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        # It may just have finished.
        return None if process.wait(max(0.0, deadline - time.monotonic())) else 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
