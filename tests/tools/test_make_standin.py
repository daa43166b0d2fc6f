"""The tool that makes stand-ins: what it prints, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from in_process import Script

from ltzoo.data import load_data


def test_it_says_what_it_made_and_what_it_is_worth(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'inat'
    options = ['--classes', 8, '--share', 0.03, '--size', 40, 30]
    assert script('tools/make_standin.py', 'inat18', folder, *options) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'{folder / "iNaturalist18_train.txt"}: 40 images',
        f'{folder / "iNaturalist18_val.txt"}: 8 images',
        'the images are noise: numbers measured on them mean nothing',
        f'use it with data.data_dir={folder}',
    ]
    assert load_data('inat18', folder).train.images[0].size == (40, 30)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['places_lt', '{tmp}/full'], 'make_standin.py: {tmp}/full holds something already'),
        (['places_lt', '{tmp}/new', '--classes', '1000'], 'make_standin.py: classes must be 2 to 365'),
        (['places_lt', '{tmp}/new', '--share', '2'], 'make_standin.py: share must be more than 0 and at most 1'),
        (['places_lt', '{tmp}/full/file/new'], 'make_standin.py: {tmp}/full/file/new cannot be made: '),
        (['imagenet', '{tmp}/new'], "invalid choice: 'imagenet'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('')
    assert script('tools/make_standin.py', *(word.format(tmp=tmp_path) for word in arguments)) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path) == ['full']
    assert os.listdir(tmp_path / 'full') == ['file']
