"""The export tool as users run it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch
from in_process import Script, contents
from safetensors.torch import load_file

import ltzoo

ROOT = Path(__file__).resolve().parents[2]

# Name of a run, which of its files is damaged, and what that holds.
DAMAGES = [
    ('cut', 'results.json', '{"model":'),
    ('shortened', 'results.json', '{"model": "resnet20_cifar"}'),
    ('listed', 'results.json', '[]'),
    ('misconfigured', 'model/config.json', '{"lt": {"data": "digits_lt"}}'),
]


def test_a_run_becomes_a_folder_that_loads(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_before = contents(digits_run)
    out = tmp_path / 'new' / 'out'
    assert script('tools/export.py', digits_run, '--to', out) == 0
    assert set(contents(out)) == {
        *('config.json', 'model.safetensors', 'vectors.safetensors', 'results.json', 'log.jsonl', 'README.md'),
        *('accuracy.png', 'curves.png'),
    }
    model = ltzoo.create_model(f'local-dir:{out}', pretrained=True)
    # The checkpoint of the last epoch is an independent record of the weights that were trained.
    trained = torch.load(digits_run / 'checkpoint.pt', weights_only=True)['learner']
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[f'model.{key}']), key
    printed = capsys.readouterr().out
    assert f"ltzoo.create_model('local-dir:{out}', pretrained=True)" in printed
    assert contents(digits_run) == run_before
    results = json.loads((digits_run / 'results.json').read_text())
    block = json.loads((out / 'config.json').read_text())['lt']
    assert block['class_counts'] == [row['train_count'] for row in results['per_class']]
    assert block['recipe'] == results['recipe']
    assert block['scores'].items() <= results.items()
    assert f': seed 0, top-1 {results["top1"]:.2f} %\n' in printed
    assert (out / 'log.jsonl').read_bytes() == (digits_run / 'log.jsonl').read_bytes()


@pytest.mark.parametrize('option', ['--adjust-logits', '--tau-normalize'])
def test_a_file_has_the_correction(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = contents(digits_run)
    assert script('tools/export.py', digits_run, '--to', tmp_path / 'a.pt2', option, 0.5) == 0
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True).eval()
    images = torch.randn(3, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, weight = model.forward_head(model.forward_features(images), pre_logits=True), model.fc.weight
        if option == '--tau-normalize':
            expected = features @ (weight / weight.square().sum(1, keepdim=True) ** 0.25).T
        else:
            counts = torch.tensor(json.loads((digits_run / 'model' / 'config.json').read_text())['lt']['class_counts'])
            expected = model(images) - 0.5 * (counts / counts.sum()).log()
        found = torch.export.load(tmp_path / 'a.pt2').module()(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert script('tools/export.py', digits_run, '--to', tmp_path / 'out', option, 0.5) == 2
    said = 'which those of a corrected classifier are not: give FILE.onnx or FILE.pt2'
    assert capsys.readouterr().err.endswith(f'{said}\n')
    assert os.listdir(tmp_path) == ['a.pt2'] and contents(digits_run) == before


def test_a_name_becomes_a_file_and_one_that_is_there_is_replaced_only_by_force(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / 'model.onnx'
    file.write_text('mine')
    for models, message in (
        (('resnet32_cifar_ce',), f'{file} exists already; give another name, or --force'),
        (('resnet32_cifar_ce', 'resnet32_cifar_bs'), f'{file} takes one model, not 2'),
    ):
        assert script('tools/export.py', *models, '--to', file) == 2
        assert capsys.readouterr().err == f'export.py: {message}\n'
        assert file.read_text() == 'mine'
    assert script('tools/export.py', 'resnet32_cifar_ce', '--to', file, '--force') == 0
    assert capsys.readouterr().out.startswith(f"{file}: logits equal the model's, to ")
    weights = ROOT / 'ltzoo' / 'models' / 'weights' / 'resnet32_cifar_ce.cifar100_lt_r100'
    vectors = load_file(weights / 'vectors.safetensors')
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    (logits,) = session.run(None, {session.get_inputs()[0].name: vectors['images'].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), vectors['logits'], rtol=1e-4, atol=1e-3)


def test_a_later_seed_is_added(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, later = tmp_path / 'out', tmp_path / 'later'
    shutil.copytree(digits_run, later)
    results = json.loads((later / 'results.json').read_text())
    results['recipe']['seed'] = results['seed'] = 1
    (later / 'results.json').write_text(json.dumps({**results, 'top1': results['top1'] - 2}))
    assert script('tools/export.py', digits_run, '--to', out) == 0
    before = contents(out)
    assert script('tools/export.py', out, later, '--to', out) == 2
    assert f'{out} is not empty; give a new folder, or --force' in capsys.readouterr().err
    assert contents(out) == before
    assert script('tools/export.py', out, later, '--to', out, '--force') == 0
    assert f'{out}: seeds 0, 1, top-1 {results["top1"] - 1:.2f} ± 1.41 %\n' in capsys.readouterr().out
    changed = {name for name, content in contents(out).items() if content != before[name]}
    assert changed == {'README.md', 'results.json'}


@pytest.fixture(scope='module')
def runs(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that cannot be exported, and one that is in use."""
    place = tmp_path_factory.mktemp('refused')
    for name in ('unfinished', 'damaged', 'emptied'):
        shutil.copytree(digits_run, place / name)
    (place / 'unfinished' / 'results.json').unlink()
    weights = place / 'damaged' / 'model' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(place / 'emptied' / 'model')
    for name, file, text in DAMAGES:
        shutil.copytree(digits_run, place / name)
        (place / name / file).write_text(text)
    (place / 'in_use').mkdir()
    (place / 'in_use' / 'thesis.txt').write_text('mine')
    return place


@pytest.mark.parametrize(
    ('run', 'to', 'message'),
    [
        ('{runs}/unfinished', '{runs}/out', 'unfinished is not finished: continue it with resume=auto'),
        ('{runs}/in_use', '{runs}/out', 'in_use holds no run: recipe.yaml is missing'),
        ('{runs}/nowhere', '{runs}/out', 'there is no run folder {runs}/nowhere;'),
        ('resnet32_cifar_ce', '{runs}/a.tflite', 'its name becomes FILE.onnx or FILE.pt2, not {runs}/a.tflite'),
        ('{run}', '{runs}/a.onnxx', 'a.onnxx ends in .onnxx: take .onnx or .pt2, or the name of a folder'),
        ('{run}', '{runs}/a.PT2', 'a.PT2 ends in .PT2: take .onnx or .pt2, or the name of a folder'),
        ('{run}/model', '{runs}/out', 'model holds no run: recipe.yaml is missing'),
        ('{runs}/damaged', '{runs}/out', 'damaged/model are damaged or of another model'),
        ('{runs}/emptied', '{runs}/out', 'there is no folder {runs}/emptied/model'),
        ('{runs}/cut', '{runs}/out', 'cut/results.json is damaged: Expecting value'),
        ('{runs}/shortened', '{runs}/out', 'shortened/results.json is damaged: it does not say balanced_accuracy'),
        ('{runs}/listed', '{runs}/out', 'listed/results.json is damaged: '),
        ('{runs}/misconfigured', '{runs}/out', 'misconfigured/model/config.json is damaged: it does not say class_c'),
        ('{run}', '{runs}/in_use', 'in_use is not empty, and holds no model that could be replaced; give a new folder'),
        ('{run}', '{runs}/in_use/thesis.txt', 'thesis.txt is a file; an export needs a folder'),
        ('{run}', '{runs}/in_use/thesis.txt/out', 'thesis.txt/out cannot be written'),
    ],
)
def test_what_cannot_be_exported_is_refused_and_left_alone(
    script: Script,
    digits_run: Path,
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    to: str,
    message: str,
) -> None:
    before = contents(runs)
    arguments = (run.format(run=digits_run, runs=runs), '--to', to.format(runs=runs))
    assert script('tools/export.py', *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('export.py: ')
    assert message.format(runs=runs) in line
    assert contents(runs) == before
    assert sorted(os.listdir(runs)) == sorted(['damaged', 'emptied', 'in_use', 'unfinished', *(d[0] for d in DAMAGES)])


@pytest.mark.parametrize('to', ['run', 'run/model', '.', 'link'])
def test_force_does_not_replace_the_run_itself(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    run = tmp_path / 'run'
    shutil.copytree(digits_run, run)
    (tmp_path / 'link').symlink_to(run)
    before = contents(tmp_path)
    assert script('tools/export.py', run, '--to', tmp_path / to, '--force') == 2
    assert f'{tmp_path / to} would replace the run {run}; give a new folder' in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert script('tools/export.py', run, '--to', run / 'release') == 0


@pytest.mark.parametrize(
    ('to', 'module', 'last_step'), [('out', 'ltzoo.hub.release', 'write_card'), ('model.pt2', 'torch.export', 'load')]
)
def test_an_interrupt_at_the_last_step_leaves_nothing(
    script: Script,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    module: str,
    last_step: str,
) -> None:
    def interrupt(place: Path) -> None:
        assert list(tmp_path.rglob('*.safetensors' if to == 'out' else '*.pt2')), 'too early to leave anything'
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), last_step, interrupt)
    assert script('tools/export.py', digits_run, '--to', tmp_path / to) == 130
    assert os.listdir(tmp_path) == []
