"""What the documentation shows runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8'), re.DOTALL)


@pytest.mark.parametrize('block', BLOCKS, ids=['loss', 'scores', 'objective'])
def test_the_page_on_own_code_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / 'recipes').symlink_to(ROOT / 'recipes')
    done = subprocess.run([sys.executable, '-c', block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
