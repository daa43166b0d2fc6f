"""timm's own tests/test_models.py, of the version that is installed, run on our models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ('cifar_resnet', 'lt_experts', 'lt_zoo')
# Parts of our models' names that none of timm's has.
NAMES = '_cifar or _experts or _imagenetlt_ or _inat18_'


@pytest.mark.slow
def test_all_that_timm_tests(tmp_path: Path) -> None:
    source = f'timm=={version("timm")}'
    download = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', 'timm', '-d', str(tmp_path)]
    done = subprocess.run([*download, source], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'the source of {source}, which holds its tests, cannot be downloaded: {done.stderr[-200:]}')
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter='data')
    (tests,) = tmp_path.glob('timm-*/tests/test_models.py')
    # The tests of intermediate features name the modules that they are for.
    text, count = re.subn(
        r'^FEAT_INTER_FILTERS = \[', f'FEAT_INTER_FILTERS = [*{OURS!r}, ', tests.read_text(), flags=re.M
    )
    assert count == 1
    tests.write_text(text)
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'ltzoo', '-p', 'no:cacheprovider', '-q', '-k', NAMES, str(tests)],
        cwd=tests.parents[1],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r'(\d+) passed', done.stdout)
    assert passed is not None
    assert int(passed[1]) > 200
