"""Where the real data is, and what stands in for measurements, for tests that use them."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# Tests that run side by side share the cores: read by PyTorch, which is not imported yet, here and in what tests start.
if 'PYTEST_XDIST_WORKER_COUNT' in os.environ:
    _cores = (os.cpu_count() or 1) // int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, _cores)))

# Whoever has an account on the Hub, a mirror or a proxy tests against the same stand-in; read when they are imported.
for _name in ('HF_ENDPOINT', 'HF_HUB_OFFLINE', 'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'LTZOO_IMPORTS', 'LTZOO_ORG'):
    os.environ.pop(_name, None)
os.environ['HF_TOKEN_PATH'] = os.devnull
os.environ['NO_PROXY'] = os.environ['no_proxy'] = '127.0.0.1,localhost'

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture(scope='session')
def cifar_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the official CIFAR-10 and CIFAR-100 files in torchvision's layout."""
    for folder in (os.environ.get('LTZOO_DATA'), 'data'):
        if folder and (Path(folder) / 'cifar-100-python' / 'train').exists():
            return Path(folder).resolve()
    unpack = SHARED / 'unpack_cifar.py'
    if not unpack.exists():
        pytest.skip('no CIFAR files: put them in ./data or name their folder in LTZOO_DATA')
    # Of several workers the first one unpacks for all.
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    folder, complete = base / 'cifar', base / 'cifar.complete'
    with FileLock(base / 'cifar.lock'):
        if not complete.exists():
            subprocess.run([sys.executable, str(unpack), str(folder)], check=True)
            complete.touch()
    return folder


@pytest.fixture(scope='session')
def split_lists() -> Path:
    """Folder with the official split lists of ImageNet-LT, Places-LT and iNaturalist 2018."""
    folder = SHARED / 'lists'
    if not folder.is_dir():
        pytest.skip('no official split lists beside the checkout')
    return folder


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int | None], None]]:
    """Return a function that lets no file grow beyond so many bytes, or lifts that: a full disk without filling one."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that has a script take the place of the process that measures, and tells its calls."""
    from ltzoo.evaluation import benchmark

    python, calls = sys.executable, tmp_path / 'calls'
    calls.write_text('')

    def use(body: str) -> Path:
        script, program = tmp_path / 'stub', tmp_path / 'stub.py'
        # Python's own path may hold a space, which a first line does not take.
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} {shlex.quote(str(program))} "$@"\n')
        program.write_text(
            'import json, os, signal, sys\n'
            '_, _, _, model, data, out, *options = sys.argv\n'
            'batch = int(options[options.index("--batch-size") + 1])\n'
            f'open({str(calls)!r}, "a").write(f"{{model}} {{data}} {{batch}}\\n")\n'
            'def done(**row): json.dump({"top1": 50.0, "batch_size": batch, **row}, open(out, "w"))\n'
            f'{body}\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(benchmark.sys, 'executable', str(script))
        return calls

    return use
