"""Labels for images: of files and folders, with names and probabilities, and what cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from in_process import Script
from timm.models import save_for_hf

import ltzoo
from ltzoo.data import load_data
from ltzoo.evaluation import predict_files, tau_normalize


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Digits as files, in a folder and its sub-folder, beside what is no image."""
    images = load_data('digits_lt').test.images
    (tmp_path / 'inbox' / 'deep').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'b.PNG', 'deep/c.png')):
        images[i * 45].save(tmp_path / 'inbox' / name)
    (tmp_path / 'inbox' / 'notes.txt').write_text('no image')
    (tmp_path / 'inbox' / '.thumbnails').mkdir()
    images[0].save(tmp_path / 'inbox' / '.thumbnails' / 'a.png')
    return tmp_path / 'inbox'


def test_a_folder_gets_names_and_probabilities(
    script: Script, digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = shutil.copytree(digits_run / 'model', tmp_path / 'named')
    config = json.loads((named / 'config.json').read_text())
    (named / 'config.json').write_text(json.dumps({**config, 'label_names': [f'digit {c}' for c in range(10)]}))
    assert script('tools/predict.py', f'local-dir:{named}', pictures, '--top', 3) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Path(row['path']).name for row in rows] == ['a.png', 'b.PNG', 'c.png']
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True).eval()
    _, _, transform = ltzoo.create_model_and_transforms(f'local-dir:{digits_run / "model"}', pretrained=True)
    for i, row in enumerate(rows):
        logits = model(transform(load_data('digits_lt').test.images[i * 45])[None])[0]
        values, classes = logits.softmax(0).topk(3)
        assert [row[key] for key in ('class', 'class_2', 'class_3')] == [f'digit {c}' for c in classes.tolist()]
        shown = [float(row[key]) for key in ('probability', 'probability_2', 'probability_3')]
        assert shown == pytest.approx(values.tolist(), abs=2e-4)
    one = ('--csv', tmp_path / 'out.csv', '--batch-size', 1, '--workers', 0)
    assert script('tools/predict.py', digits_run, pictures / 'a.png', *one) == 0
    assert (tmp_path / 'out.csv').read_text().splitlines()[0] == 'path,class,probability'
    assert not capsys.readouterr().out


def test_adjusted_logits_are_those_of_equally_frequent_classes(
    script: Script, digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script('tools/predict.py', digits_run, pictures, '--top', 10, '--adjust-logits', 0.5) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True)
    classes, known = predict_files(model, [pictures / name for name in ('a.png', 'b.PNG', 'deep/c.png')], top=10)
    counts = torch.tensor([134, 86, 56, 36, 23, 15, 9, 6, 4, 2])
    for row, found, sure in zip(rows, classes, known, strict=True):
        expected = torch.from_numpy(sure) / counts[torch.from_numpy(found)] ** 0.5
        expected = dict(zip(found.tolist(), (expected / expected.sum()).tolist(), strict=True))
        ranks = ['', *(f'_{rank}' for rank in range(2, 11))]
        shown = {int(row[f'class{rank}']): float(row[f'probability{rank}']) for rank in ranks}
        assert shown == pytest.approx(expected, abs=2e-4)
    # Nothing says what this one was trained on.
    save_for_hf(model, str(tmp_path / 'alone'), safe_serialization=True)
    alone = f'local-dir:{tmp_path / "alone"}'
    assert script('tools/predict.py', alone, pictures, '--adjust-logits', 1) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f'predict.py: {alone} does not say what it was trained on: in Python, ltzoo.evaluation')


def test_a_normalised_classifier_predicts_as_its_weights_say(
    script: Script, digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script('tools/predict.py', digits_run, pictures / 'a.png', '--tau-normalize', 0.5) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True)
    _, plain = predict_files(model, [pictures / 'a.png'])
    _, normalised = predict_files(tau_normalize(model, 0.5), [pictures / 'a.png'])
    assert float(row['probability']) == pytest.approx(normalised[0, 0], abs=2e-4)
    assert normalised[0, 0] != pytest.approx(plain[0, 0], abs=2e-4)


def test_more_classes_than_there_are(pictures: Path) -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    classes, probabilities = predict_files(model, [pictures / 'a.png'], top=9)
    assert sorted(classes[0]) == [0, 1, 2, 3]
    assert probabilities.sum() == pytest.approx(1)


def test_names_that_are_no_utf_8(
    script: Script, digits_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsencode(pictures) + b'/caf\xe9.png'
    os.rename(pictures / 'a.png', name)
    screen = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    monkeypatch.setattr(sys, 'stdout', screen)
    assert script('tools/predict.py', digits_run, os.fsdecode(name), '--workers', 0) == 0
    assert script('tools/predict.py', digits_run, os.fsdecode(name), '--csv', tmp_path / 'out.csv') == 0
    assert screen.buffer.getvalue() == (tmp_path / 'out.csv').read_bytes()  # type: ignore[attr-defined]
    assert name in (tmp_path / 'out.csv').read_bytes()


@pytest.mark.parametrize('where', ['torch.nn.Module.to', 'ltzoo.models.cifar_resnet.CifarResNet.forward_features'])
@pytest.mark.parametrize('tool', ['predict', 'evaluate'])
def test_no_memory_is_one_sentence(
    script: Script,
    digits_run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    where: str,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(where, fail)
    images = [pictures] if tool == 'predict' else ['--data', 'digits_lt']
    assert script(f'tools/{tool}.py', digits_run, *images, '--batch-size', 8) == 2
    said = capsys.readouterr().err
    less = 'there is not enough memory for the model with --batch-size 8: take a smaller one or, on a GPU, --device cpu'
    assert said.endswith(f'{tool}.py: {less}\n')


def test_what_cannot_be_read(
    script: Script,
    digits_run: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*arguments: object) -> str:
        assert script('tools/predict.py', digits_run, *arguments) == 2
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    (tmp_path / 'empty').mkdir()
    assert f'there is no image or folder {tmp_path / "none"}' in refused(tmp_path / 'none')
    assert f'{tmp_path / "empty"} holds no images: their names end in .jpg' in refused(tmp_path / 'empty')
    assert f'files left out below {pictures}: ' not in caplog.text
    assert '--top must be 1 or more, not 0' in refused(pictures, '--top', 0)
    assert 'there is no folder' in refused(pictures, '--csv', tmp_path / 'nowhere' / 'out.csv')
    (pictures / 'b.PNG').write_bytes(b'')
    said = refused(pictures)
    assert 'b.PNG' in said and '--skip-unreadable leaves such images out' in said
    assert f'files left out below {pictures}: 1, as images end in' in caplog.text and '.txt (1)' in caplog.text
    # What is misspelled is said before all images are read.
    assert script('tools/predict.py', f'{digits_run}_', pictures, '--skip-unreadable') == 2
    assert 'left out: ' not in capsys.readouterr().err + caplog.text
    assert script('tools/predict.py', digits_run, pictures, '--skip-unreadable') == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert 'left out: ' in caplog.text and 'b.PNG' in caplog.text
    assert 'no image can be decoded (1 in all, the first is ' in refused(pictures / 'b.PNG', '--skip-unreadable')
