"""How tools end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltzoo.errors import LtzooError, command_line

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ('error', 'code', 'told'),
    [
        (LtzooError('there is no x: take y'), 2, 'tool.py: there is no x: take y\n'),
        (KeyboardInterrupt(), 130, '\ntool.py: stopped\n'),
    ],
)
def test_what_a_tool_ends_with(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'argv', ['/some/where/tool.py', 'x'])

    @command_line
    def main() -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == told


def test_a_reader_that_has_gone() -> None:
    program = (
        'import sys; from ltzoo.errors import command_line; sys.stdin.readline(); '
        'sys.exit(command_line(lambda: print("word") or 0)())'
    )
    tool = subprocess.Popen(
        [sys.executable, '-c', program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tool.stdin is not None and tool.stdout is not None and tool.stderr is not None
    tool.stdout.close()
    tool.stdin.write(b'go\n')
    tool.stdin.close()
    assert (tool.wait(60), tool.stderr.read()) == (141, b'')
    tool.stderr.close()
