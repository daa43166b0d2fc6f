"""What a run says of where its code comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ltzoo.training.run import commit_of


def test_the_commit_says_whether_files_were_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ('-c', 'user.name=somebody', '-c', 'user.email=somebody@example.org')
        return subprocess.run(
            ['git', '-C', str(tmp_path), *identity, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert commit_of(tmp_path) is None
    git('init')
    (tmp_path / 'inside').mkdir()
    for name in ('code.py', 'inside/code.py'):
        (tmp_path / name).write_text('1')
    git('add', '.')
    git('commit', '--message', 'first')
    head = git('rev-parse', 'HEAD')
    (tmp_path / 'notes.txt').write_text('not of the code')
    assert commit_of(tmp_path) == head
    (tmp_path / 'code.py').write_text('2')
    assert commit_of(tmp_path) == f'{head}-dirty'
    # Installed into a folder of somebody else's checkout, it is none of that one's.
    assert commit_of(tmp_path / 'inside') is None
    (tmp_path / 'inside' / 'COMMIT').write_text('abc\n')
    assert commit_of(tmp_path / 'inside') == 'abc'
