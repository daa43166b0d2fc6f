"""The profile tool as users run it."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Main = Callable[..., int]


@pytest.fixture
def main(script: Callable[..., int]) -> Main:
    return functools.partial(script, 'tools/profile_data.py')


def test_digits(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main('digits_lt', '--json', tmp_path / 'p.json', '--plot', tmp_path / 'tail.png') == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ['Many', '>', '100', '1', '134', '36.1%'] in lines
    assert ['9', '9', '2', '40'] in lines
    assert 'no warnings' in output
    written = json.loads((tmp_path / 'p.json').read_text())
    assert [row['train_count'] for row in written['per_class']][:3] == [134, 86, 56]
    with Image.open(tmp_path / 'tail.png') as image:
        assert image.width > 500
    assert sorted(os.listdir(tmp_path)) == ['p.json', 'tail.png']


def test_thresholds_and_a_shot_without_classes(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main('digits_lt_r2', '--few-below', '5', '--many-above', '200', '--skip-images') == 0
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines()]
    assert ['Many', '>', '200', 'none'] in rows
    assert ['Few', '<', '5', 'none'] in rows
    assert 'images were not checked (--skip-images)' in output


def test_large_sets_show_both_ends(main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = ['path,label,split'] + [f'{c}_{i},{c},train' for c in range(30) for i in range(40 - c)] + ['x,0,test']
    (tmp_path / 'list.csv').write_text('\n'.join(lines))
    assert main(f'csv:{tmp_path / "list.csv"}', '--skip-images') == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [int(row[0]) for row in rows if len(row) == 4 and row[0] == row[1]]
    assert shown == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]
    assert ['...', '20', 'classes', 'between', 'them'] in rows


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['digitz'], 'did you mean digits?'),
        (['folder:{tmp}/empty'], 'one folder of images for each class'),
        (['imagenet_lt', '--data-dir', '{tmp}'], 'ImageNet_LT_train.txt is missing'),
        (['digits_lt', '--plot', '{tmp}/tail.xyz'], 'no plot is made in the format xyz'),
        (['digits_lt', '--json', '{tmp}/no/p.json'], 'there is no folder'),
        (['digits_lt', '--json', '{tmp}/p.svg', '--plot', '{tmp}/p.svg'], 'p.svg is given for --json and for --plot'),
        (['digits_lt', '--many-above', '10'], '--few-below 20 must be at most'),
        (['cifar10', '--data-dir', '/dev/null', '--download'], 'cifar10 cannot be read: '),
        ([], 'required: SOURCE'),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    main: Main,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / 'empty').mkdir()
    assert main(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith('profile_data.py: ')
    assert message in last_line
    assert os.listdir(tmp_path) == ['empty']


def test_names_that_are_no_utf_8(tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b'caf\xe9', b'tea'):
        folder = tmp_path / 'images' / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new('RGB', (8, 8), (number, len(name), 0)).save(folder / f'{number}.png')
    screen = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    monkeypatch.setattr(sys, 'stdout', screen)
    assert main(f'folder:{tmp_path / "images"}', '--plot', tmp_path / 'tail.png') == 0
    assert (tmp_path / 'tail.png').stat().st_size > 0
    assert b'caf\xe9' in screen.buffer.getvalue()  # type: ignore[attr-defined]
