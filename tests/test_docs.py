"""What the documentation shows runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    block
    for page in ('extending', 'evaluation')
    for block in re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs' / f'{page}.md').read_text(encoding='utf-8'), re.DOTALL
    )
    if 'DIR' not in block
]


@pytest.mark.parametrize('block', BLOCKS, ids=['loss', 'scores', 'objective', 'adjusted logits'])
def test_what_the_pages_on_own_code_and_evaluation_show_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / 'recipes').symlink_to(ROOT / 'recipes')
    done = subprocess.run([sys.executable, '-c', block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
