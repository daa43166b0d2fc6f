"""Clocks, memory, and what a reader of the figures needs to know of the machine."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def seconds_of(run: Callable[..., Any], *arguments: Any) -> float:
    """Time one call, from when the device is free until it has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time each run once a round, after two that do not count: what slows the machine down then meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            started = clock()
            run()
            if number >= 2:
                times[name].append(clock() - started)
    return times


@contextmanager
def peak_of(device: Any) -> Iterator[list[int]]:
    """Watch memory, in bytes: of a GPU, the most that was allocated; else the most that this process had."""
    import psutil
    import torch

    if device.type != 'cuda':
        before = psutil.Process().memory_info().rss
        with peak_memory() as most:
            yield most
        most[0] += before
        return
    most = [0]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield most
    torch.cuda.synchronize()
    most[0] = torch.cuda.max_memory_allocated()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch this process's memory: the list's one entry is the most beyond what it had at the start, in bytes."""
    import psutil

    process, ended = psutil.Process(), threading.Event()
    before, most = process.memory_info().rss, [0]

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def environment() -> dict[str, Any]:
    import torch
    import torchvision

    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'threads': torch.get_num_threads(),
        'cpu': torch.backends.cpu.get_cpu_capability(),
    }
