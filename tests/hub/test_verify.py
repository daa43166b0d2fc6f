"""Verification finds what is not as stated; weights that are not in the package come from the Hub, by their hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file
from test_download import hub as hub

import ltzoo
from ltzoo.hub import VerificationError
from ltzoo.hub import verify as verify_function
from ltzoo.models import lt_zoo
from ltzoo.models.download import DownloadError, file_hash

NAME = 'resnet32_cifar_ce.cifar100_lt_r100'
PACKAGED = lt_zoo.ZOO[NAME].folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a published model's folder, in whose place it is."""
    assert PACKAGED is not None
    shutil.copytree(PACKAGED, tmp_path / 'weights' / NAME)
    monkeypatch.setattr(lt_zoo, '_WEIGHTS', tmp_path / 'weights')
    return tmp_path / 'weights' / NAME


def change_weights(folder: Path) -> None:
    state = load_file(folder / 'model.safetensors')
    state['fc.bias'] += 0.1
    save_file(state, folder / 'model.safetensors')


def change_results(folder: Path, **changes: Any) -> None:
    results = json.loads((folder / 'results.json').read_text())
    (folder / 'results.json').write_text(json.dumps({**results, **changes}))


def test_other_weights(folder: Path) -> None:
    ltzoo.verify(NAME)
    change_weights(folder)
    stated = ltzoo.get_results(NAME)['sha256']
    with pytest.raises(VerificationError, match=rf'the weights of {NAME} have SHA-256 [0-9a-f]+, not {stated}'):
        ltzoo.verify(NAME)
    # With a hash made to fit, the stored logits still tell.
    change_results(folder, sha256=file_hash(folder / 'model.safetensors'))
    with pytest.raises(VerificationError, match='gives other logits than those stored with it'):
        ltzoo.verify(NAME)
    assert verify_function is ltzoo.verify


@pytest.mark.parametrize(('key', 'by', 'right'), [('top1', 0.04, True), ('top1', 0.06, False), ('few', -0.5, False)])
def test_other_scores(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, by: float, right: bool) -> None:
    stated = ltzoo.get_results(NAME)['runs'][0]
    # In this order: what is imported for the first one would keep a patched load_data.
    monkeypatch.setattr('ltzoo.evaluation.evaluate.score_model', lambda *args: {**stated, key: stated[key] + by})
    monkeypatch.setattr('ltzoo.data.load_data', lambda *args: None)
    if right:
        scores = ltzoo.verify(NAME, 'data').scores
        assert scores is not None
        assert scores[key] == stated[key] + by
    else:
        with pytest.raises(VerificationError, match=f'{NAME} scores {key} .* on cifar100_lt_r100, stated'):
            ltzoo.verify(NAME, 'data')


def test_weights_that_are_not_in_the_package(hub: Hub, folder: Path) -> None:
    weights = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').unlink()
    with pytest.raises(DownloadError, match='hf-hub:ltzoo/resnet32_cifar_ce does not exist'):
        ltzoo.create_model(NAME, pretrained=True)
    hub.add('ltzoo/resnet32_cifar_ce', {'model.safetensors': weights})
    ltzoo.verify(NAME)
    model = ltzoo.create_model(NAME, pretrained=True).eval()
    stored = load_file(folder / 'vectors.safetensors')
    with torch.inference_mode():
        torch.testing.assert_close(model(stored['images']), stored['logits'])
    assert [name for name, _ in hub.sent] == ['model.safetensors']
    # Somebody puts other weights there: right by the server's own hash, not by what was published.
    hub.repositories['ltzoo/resnet32_cifar_ce'].commit({'model.safetensors': weights[:-1] + b'x'})
    with pytest.raises(DownloadError, match='was expected'):
        ltzoo.create_model(NAME, pretrained=True)
