"""The publishing tool as users run it, up to where a Hub would be needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from in_process import Script

import ltzoo.hub
from ltzoo.hub.publish import Publication


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def test_a_released_run_is_checked_before_the_hub_is_asked(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    assert script('tools/export.py', digits_run, '--to', out) == 0
    assert script('tools/publish.py', out, '--to', 'me/digits') == 2
    # All of it is right, so that it comes to the Hub.
    assert 'cannot be reached: HF_HUB_OFFLINE is set' in capsys.readouterr().err
    (out / 'results.json').unlink()
    assert script('tools/publish.py', out, '--to', 'me/digits') == 2
    assert 'lacks results.json: tools/export.py makes a whole folder of finished runs' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('folder', 'to', 'message'),
    [
        ('missing', 'me/digits', 'there is no folder'),
        ('.', 'me/digits', 'lacks model.safetensors'),
        ('.', 'digits', "'digits' names no repository: write ORG/NAME"),
        ('.', 'me/', "'me/' names no repository"),
    ],
)
def test_what_cannot_be_published(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, to: str, message: str
) -> None:
    assert script('tools/publish.py', tmp_path / folder, '--to', to) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('publish.py: ')
    assert message in line


def test_its_options_reach_what_publishes(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def take(folder: Path, to: str, **options: Any) -> Publication:
        asked.update(options)
        return Publication(f'hf-hub:{to}', ('config.json',), (), None)

    monkeypatch.setattr(ltzoo.hub, 'publish', take)
    words = ('--private', '--force', '--dry-run', '--revision', 'branch')
    assert script('tools/publish.py', tmp_path, '--to', 'me/digits', *words) == 0
    assert asked == {'private': True, 'force': True, 'dry_run': True, 'revision': 'branch'}
    assert capsys.readouterr().out == 'would be committed to me/digits: config.json\n'
    assert script('tools/publish.py', tmp_path, '--to', 'me/digits') == 0
    assert asked == {'private': False, 'force': False, 'dry_run': False, 'revision': 'main'}
    capsys.readouterr()
    # Of a branch, which may have been made.
    there = Publication('hf-hub:me/digits@v2', (), (), None)
    monkeypatch.setattr(ltzoo.hub, 'publish', lambda *_, **__: there)
    assert script('tools/publish.py', tmp_path, '--to', 'me/digits', '--revision', 'v2') == 0
    assert capsys.readouterr().out == 'hf-hub:me/digits@v2 holds all of it already; nothing was committed\n'
