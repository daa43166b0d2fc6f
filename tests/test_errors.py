"""How tools end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltzoo.errors import LtzooError, at_least, command_line, did_you_mean, is_out_of_memory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ('error', 'code', 'told'),
    [
        (LtzooError('there is no x: take y'), 2, 'tool.py: there is no x: take y\n'),
        (KeyboardInterrupt(), 130, '\ntool.py: stopped\n'),
        (ModuleNotFoundError(name='pydantic'), 2, "tool.py: pydantic is missing: pip install 'ltzoo[train]'\n"),
        (PermissionError(13, 'Permission denied', '/x'), 2, 'tool.py: /x cannot be used: Permission denied\n'),
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


@pytest.mark.parametrize('tool', ['recipes/train.py', 'tools/reproduce.py'])
def test_without_the_packages_of_training_a_sentence_says_what_to_install(tool: str, tmp_path: Path) -> None:
    # One that stands in the way is found before the one that is installed.
    (tmp_path / 'omegaconf.py').write_text("raise ModuleNotFoundError(name='omegaconf')")
    words = [sys.executable, ROOT / tool, ROOT / 'recipes' / 'digits_lt' / 'ce.yaml']
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    told = f"{Path(tool).name}: omegaconf is missing: pip install 'ltzoo[train]'\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_a_missing_package_of_another_kind_keeps_its_traceback() -> None:
    @command_line
    def main() -> int:
        raise ModuleNotFoundError(name='elsewhere')

    with pytest.raises(ModuleNotFoundError):
        main()


def test_how_a_sentence_on_an_unknown_name_ends() -> None:
    assert did_you_mean('bass', ['base', 'other']) == '; did you mean base?'
    assert did_you_mean('x', ['base', 'other']) == '.'
    assert did_you_mean('x', ['base', 'other'], otherwise='; it has base, other') == '; it has base, other'
    assert did_you_mean('x', ['base'], cutoff=0, otherwise='') == '; did you mean base?'
    assert did_you_mean('x', [], cutoff=0, otherwise='') == ''


def test_a_number_that_is_too_small() -> None:
    at_least('--jobs', 1, 1)
    with pytest.raises(LtzooError, match=r'^--jobs must be 1 or more, not 0$'):
        at_least('--jobs', 0, 1)


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


def test_parts_of_ones_own_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'my_parts.py').write_text(
        'from ltzoo.losses import CrossEntropy, register_objective\n'
        'register_objective("mine")(type("Mine", (CrossEntropy,), {}))\n'
    )
    command = [sys.executable, 'recipes/train.py', 'recipes/digits_lt/ce.yaml', 'objective={name: mine}', '--dry-run']
    command.append('model.name=resnet8_cifar')

    def ends(modules: str) -> tuple[int, str]:
        monkeypatch.setenv('LTZOO_IMPORTS', modules)
        monkeypatch.setenv('PYTHONPATH', str(tmp_path))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, said = ends('')
    assert code == 2 and "no objective is called 'mine'" in said
    assert ends('my_parts') == (0, '')
    code, said = ends('my_parts, your_parts')
    assert code == 2
    assert "LTZOO_IMPORTS: your_parts cannot be imported (ModuleNotFoundError: No module named 'your_parts')" in said


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError('CUDA out of memory.'), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes'), True),
        (RuntimeError('shapes do not match'), False),
        (OSError('out of memory'), False),
    ],
)
def test_what_less_memory_helps_against(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
