"""The evaluation tool as users run it, against scores recomputed from the model's logits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Script
from PIL import Image
from sklearn.datasets import load_digits
from timm.models import save_for_hf

import ltzoo
from ltzoo.data import ArrayImages, Dataset, Split, load_data
from ltzoo.evaluation import EvaluationError, evaluate_model, resolve_model, tau_normalize
from ltzoo.evaluation.benchmark_one import measure
from ltzoo.evaluation.evaluate import ClassesError, check_classes
from ltzoo.evaluation.trained_on import TrainedOn

ROOT = Path(__file__).resolve().parents[2]
# Of digits_lt: its profile with an imbalance ratio of 50.
COUNTS = [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]


@pytest.fixture(scope='module')
def evaluated(script: Script, digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the tool printed about the exported model, and the folder of the files it wrote."""
    out = tmp_path_factory.mktemp('evaluated')
    files = ['--json', out / 'scores.json', '--csv', out / 'classes.csv', '--plot', out / 'plot.png']
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert script('tools/evaluate.py', f'local-dir:{digits_run / "model"}', '--data', 'digits_lt', *files) == 0
    return printed.getvalue(), out


@pytest.fixture(scope='module')
def probabilities(digits_run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of every test image, from the model itself: probabilities in float64, shape (400, 10), and labels."""
    test = load_data('digits_lt').test
    config = json.loads((digits_run / 'model' / 'config.json').read_text())['pretrained_cfg']
    images = np.stack([np.asarray(test.images[i]) for i in range(len(test))]) / 255.0
    images = ((images - config['mean']) / config['std']).transpose(0, 3, 1, 2)
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True).eval().double()
    with torch.inference_mode():
        logits = model(torch.from_numpy(images)).numpy()
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True), test.labels


def scores_of(out: Path) -> dict[str, Any]:
    return json.loads((out / 'scores.json').read_text())


def test_the_scores_are_those_of_the_logits(
    digits_run: Path, evaluated: tuple[str, Path], probabilities: tuple[np.ndarray, np.ndarray]
) -> None:
    results = scores_of(evaluated[1])
    assert list(results) == [
        'model', 'data', 'split', 'many_above', 'few_below', 'samples', 'top1', 'many', 'medium', 'few',
        'balanced_accuracy', 'ece', 'per_class',
    ]  # fmt: skip
    assert [results[key] for key in ('model', 'data', 'split')] == [
        f'local-dir:{digits_run / "model"}',
        'digits_lt',
        'test',
    ]
    probability, labels = probabilities
    predicted, confidence = probability.argmax(1), probability.max(1)
    correct = predicted == labels
    accuracy = np.array([100 * correct[labels == c].mean() for c in range(10)])
    assert 15 < 100 * correct.mean() < 95, 'too poor or too good a model to tell a wrong score'
    assert results['samples'] == len(labels) == 400
    assert results['top1'] == pytest.approx(100 * correct.mean())
    assert results['many'] == pytest.approx(accuracy[0])
    assert results['medium'] == pytest.approx(accuracy[1:5].mean())
    assert results['few'] == pytest.approx(accuracy[5:].mean())
    assert results['balanced_accuracy'] == pytest.approx(accuracy.mean())
    gaps = [
        abs((correct[inside] - confidence[inside]).sum())
        for low in range(15)
        if (inside := (confidence > low / 15) & (confidence <= (low + 1) / 15)).any()
    ]
    assert results['ece'] == pytest.approx(100 * sum(gaps) / 400, abs=1e-3)
    assert results['per_class'] == [
        {
            'class': c,
            'name': str(c),
            'train_count': COUNTS[c],
            'test_count': 40,
            'accuracy': pytest.approx(accuracy[c]),
            'predicted_count': (predicted == c).sum(),
            'precision': pytest.approx(100 * correct[predicted == c].mean()) if (predicted == c).any() else None,
        }
        for c in range(10)
    ]


def test_every_image_has_a_line_that_says_what_it_was_taken_for(
    script: Script, digits_run: Path, probabilities: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    def lines(*options: object) -> list[list[str]]:
        files = ('--predictions', tmp_path / 'p.csv', '--json', tmp_path / 'scores.json', '--csv', tmp_path / 'c.csv')
        assert script('tools/evaluate.py', digits_run, *options, *files) == 0
        header, *rows = csv.reader((tmp_path / 'p.csv').open(newline=''))
        assert header == ['path', 'label', 'prediction', 'confidence']
        assert 'predictions' not in scores_of(tmp_path)
        return rows

    probability, labels = probabilities
    rows = lines('--data', 'digits_lt', '--batch-size', 7)
    # Of an array, where the image lies in it.
    places = [int(row[0].removeprefix('image ')) for row in rows]
    assert len(set(places)) == 400 and load_digits().target[places].tolist() == labels.tolist()
    assert [row[1:3] for row in rows] == [[str(y), str(p)] for y, p in zip(labels, probability.argmax(1), strict=True)]
    np.testing.assert_allclose([float(row[3]) for row in rows], probability.max(1), atol=2e-4)
    # Of files their paths, with the names of classes; what is left out has no line.
    folder = write_digits(tmp_path / 'digits', [f'the {c}' for c in range(10)])
    files = sorted((folder / 'test').rglob('*.png'))
    files[5].write_bytes(b'')
    rows = lines('--data', f'folder:{folder}', '--skip-unreadable')
    assert [row[:2] for row in rows] == [[str(file), file.parent.name] for file in files if file is not files[5]]
    assert {row[2] for row in rows} <= {f'the {c}' for c in range(10)}


def test_an_image_that_is_not_there_is_not_to_be_skipped(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f'{part}/{c}.png,{c},{part}' for part in ('train', 'test') for c in range(10)]
    (tmp_path / 'list.csv').write_text('\n'.join(['path,label,split', *rows]))
    data = ('--data', f'csv:{tmp_path / "list.csv"}', '--workers', 1)
    assert script('tools/evaluate.py', digits_run, *data) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f'evaluate.py: image {tmp_path}/test/0.png does not exist'
    images = load_data('digits_lt').test.images
    (tmp_path / 'elsewhere' / 'test').mkdir(parents=True)
    for c in range(10):
        images[c].save(tmp_path / 'elsewhere' / 'test' / f'{c}.png')
    assert script('tools/evaluate.py', digits_run, *data, '--data-dir', tmp_path / 'elsewhere') == 0
    assert '10 images' in capsys.readouterr().out


def test_a_drawn_test_part_that_a_silent_model_may_know_is_told(
    digits_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_digits(tmp_path / 'digits', [str(c) for c in range(10)])
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True)
    save_for_hf(model, str(tmp_path / 'silent'), safe_serialization=True)
    name = f'local-dir:{tmp_path / "silent"}'
    evaluate_model(name, f'folder:{folder}')
    assert not caplog.messages
    shutil.rmtree(folder / 'test')
    evaluate_model(name, f'folder:{folder}')
    told = f'and whether {name} was trained on some of them is not known'
    remedy = 'give images that it was not trained on as a test set of their own'
    assert caplog.messages == [f'the test set of folder:{folder} is drawn from its images, {told}: {remedy}']
    caplog.clear()
    TrainedOn('timm/resnet18').check_draw(load_data(f'folder:{folder}'))
    assert not caplog.messages


def test_adjusted_logits_are_those_of_equally_frequent_classes(
    script: Script,
    digits_run: Path,
    evaluated: tuple[str, Path],
    probabilities: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probability, labels = probabilities
    options = ['--data', 'digits_lt', '--adjust-logits', '0.7', '--json', tmp_path / 'scores.json']
    assert script('tools/evaluate.py', digits_run, *options) == 0
    adjusted = scores_of(tmp_path)
    assert capsys.readouterr().out.startswith(f'{digits_run} on digits_lt, logits adjusted with tau = 0.7\n')
    predicted = (probability / np.array(COUNTS) ** 0.7).argmax(1)
    assert adjusted['tau'] == 0.7
    assert adjusted['top1'] == pytest.approx(100 * (predicted == labels).mean())
    assert adjusted['top1'] != scores_of(evaluated[1])['top1']
    # The model in the folder is as it was.
    assert evaluate_model(str(digits_run), 'digits_lt')['top1'] == scores_of(evaluated[1])['top1']


def test_a_normalised_classifier_scores_as_its_weights_say(
    script: Script, digits_run: Path, evaluated: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['--data', 'digits_lt', '--json', tmp_path / 'scores.json']
    assert script('tools/evaluate.py', digits_run, *options, '--tau-normalize', '1') == 0
    assert capsys.readouterr().out.startswith(f'{digits_run} on digits_lt, classifier normalised with tau = 1\n')
    found = scores_of(tmp_path)
    model = ltzoo.create_model(f'local-dir:{digits_run / "model"}', pretrained=True)
    save_for_hf(tau_normalize(model), str(tmp_path / 'normalised'), safe_serialization=True)
    expected = evaluate_model(f'local-dir:{tmp_path / "normalised"}', 'digits_lt')
    assert found['tau_norm'] == 1
    assert [found[key] for key in ('top1', 'ece', 'per_class')] == [
        expected[key] for key in ('top1', 'ece', 'per_class')
    ]
    assert found['ece'] != scores_of(evaluated[1])['ece']


def test_two_corrections_of_one_tail_are_refused(script: Script, digits_run: Path) -> None:
    both = ('--adjust-logits', 1, '--tau-normalize', 1)
    assert script('tools/evaluate.py', digits_run, '--data', 'digits_lt', *both) == 2
    with pytest.raises(EvaluationError, match='tau and tau_norm are two corrections'):
        evaluate_model(str(digits_run), 'digits_lt', tau=1, tau_norm=1)


def test_the_prior_is_that_of_the_networks_own_training(
    script: Script, digits_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, alike = write_digits(tmp_path / 'digits', [str(c) for c in range(10)]), tmp_path / 'alike'
    shutil.copytree(digits_run / 'model', alike)
    config = json.loads((alike / 'config.json').read_text())
    tops = []
    for counts in (COUNTS, [1] * 10, None):
        config['lt']['class_counts'] = counts
        (alike / 'config.json').write_text(json.dumps(config))
        tops.append(evaluate_model(f'local-dir:{alike}', f'folder:{folder}', tau=1.0)['per_class'])
    plain = evaluate_model(f'local-dir:{alike}', f'folder:{folder}')['per_class']
    assert tops[1] == plain != tops[0] != tops[2]
    assert caplog.messages == [
        f'local-dir:{alike} does not say what it was trained on: its logits are adjusted by the class counts of the '
        'data set given'
    ]


def test_a_network_that_needs_no_adjusting_is_told(
    script: Script, digits_run: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = shutil.copytree(digits_run, tmp_path / 'run')
    config = json.loads((run / 'model' / 'config.json').read_text())
    config['lt']['recipe']['objective']['name'] = 'logit_adjusted'
    (run / 'model' / 'config.json').write_text(json.dumps(config))
    for option in ('--adjust-logits', '--tau-normalize'):
        caplog.clear()
        assert script('tools/evaluate.py', run, '--data', 'digits_lt', option, '1') == 0
        assert caplog.messages == [
            f'{run} was trained for equally frequent classes (logit_adjusted): it needs no correcting'
        ]


def test_table_csv_and_plot_say_what_the_json_says(evaluated: tuple[str, Path]) -> None:
    printed, out = evaluated
    results = scores_of(out)
    shown = {line.split()[0]: line.split()[1] for line in printed.splitlines()[1:]}
    keys = {'top-1': 'top1', 'Many': 'many', 'Medium': 'medium', 'Few': 'few', 'balanced': 'balanced_accuracy'}
    assert shown == {name: f'{results[key]:.2f}' for name, key in (keys | {'ECE': 'ece'}).items()}
    rows = list(csv.DictReader((out / 'classes.csv').open(newline='')))
    shown = [{key: '' if value is None else str(value) for key, value in row.items()} for row in results['per_class']]
    assert rows == shown
    with Image.open(out / 'plot.png') as image:
        assert image.format == 'PNG'
    assert sorted(os.listdir(out)) == ['classes.csv', 'plot.png', 'scores.json']


def test_a_run_its_exported_model_and_its_results_agree(
    script: Script, digits_run: Path, evaluated: tuple[str, Path], tmp_path: Path
) -> None:
    assert script('tools/evaluate.py', digits_run, '--data', 'digits_lt', '--json', tmp_path / 'scores.json') == 0
    of_run, of_export = scores_of(tmp_path), scores_of(evaluated[1])
    written = json.loads((digits_run / 'results.json').read_text())
    assert (of_run.pop('model'), of_export.pop('model')) == (str(digits_run), f'local-dir:{digits_run / "model"}')
    assert of_run == of_export
    for key, value in of_run.items():
        # A confidence may differ in its last bit with the size of the batches.
        assert written[key] == (pytest.approx(value, abs=1e-4) if key == 'ece' else value)


def test_a_name_of_the_zoo_says_its_data(
    script: Script, cifar_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str, data_dir: object) -> Dataset:
        asked.append(name)
        dataset = load_data(name, data_dir)  # type: ignore[arg-type]
        return replace(dataset, test=dataset.test.select(np.arange(8)))

    monkeypatch.setattr('ltzoo.evaluation.evaluate.load_data', load)
    place = ('--data-dir', cifar_dir, '--json', tmp_path / 'scores.json')
    assert script('tools/evaluate.py', 'resnet32_cifar_ce.cifar10_lt_r100', *place) == 0
    assert asked == ['cifar10_lt_r100'] and scores_of(tmp_path)['data'] == 'cifar10_lt_r100'


@pytest.mark.parametrize('per_class', [None, 1])
def test_a_run_beside_a_hold_out_scores_on_it_as_it_did(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], per_class: int | None
) -> None:
    options = ['model.name=resnet8_cifar', 'epochs=1', 'evaluation.split=holdout', 'data.split_seed=1']
    options += [] if per_class is None else [f'evaluation.holdout_per_class={per_class}']
    recipe, run = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', tmp_path / 'run'
    assert script('recipes/train.py', recipe, *options, f'output={run}', '--no-progress') == 0
    written = json.loads((run / 'results.json').read_text())
    for model in (run, f'local-dir:{run / "model"}'):
        capsys.readouterr()
        files = ('--split', 'holdout', '--json', tmp_path / 'scores.json')
        assert script('tools/evaluate.py', model, '--data', 'digits_lt', *files) == 0
        assert f'{written["samples"]} images of a hold-out' in capsys.readouterr().out
        for key, value in scores_of(tmp_path).items():
            if key != 'model':
                assert written[key] == (pytest.approx(value, abs=1e-4) if key == 'ece' else value)
    assert script('tools/evaluate.py', run, '--data', 'cifar10_lt_r100', '--split', 'holdout') == 2
    assert 'left out images of digits_lt, not of cifar10_lt_r100' in capsys.readouterr().err


def test_a_hold_out_of_own_images_must_be_the_one_left_out(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_digits(tmp_path / 'digits', [str(c) for c in range(10)])
    recipe, run = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', tmp_path / 'run'
    options = [f'data.name=folder:{folder}', 'evaluation.split=holdout', 'model.name=resnet8_cifar', 'batch_size=2']
    assert script('recipes/train.py', recipe, *options, 'epochs=1', f'output={run}', '--no-progress') == 0
    capsys.readouterr()
    # A folder that was moved is the same folder.
    moved = (tmp_path / 'elsewhere' / 'digits').resolve()
    shutil.copytree(folder, moved)
    held_out = ('--split', 'holdout', '--json', tmp_path / 'scores.json')
    assert script('tools/evaluate.py', run, '--data', f'folder:{moved}', *held_out) == 0
    assert scores_of(tmp_path)['samples'] == 10
    counts = [row['train_count'] for row in scores_of(tmp_path)['per_class']]
    # On the test set, too, its shots go by what it was trained on.
    assert script('tools/evaluate.py', run, '--data', f'folder:{moved}', '--json', tmp_path / 'scores.json') == 0
    of_test = scores_of(tmp_path)
    assert [row['train_count'] for row in of_test['per_class']] == counts
    assert sum(counts) + 10 == sum(len(list(place.iterdir())) for place in (moved / 'train').iterdir())
    (tmp_path / 'scores.json').unlink()
    next((moved / 'train' / '3').iterdir()).unlink()
    assert script('tools/evaluate.py', run, '--data', f'folder:{moved}', *held_out) == 2
    assert 'has other images, or other names for them, than when' in capsys.readouterr().err
    assert not (tmp_path / 'scores.json').exists()


def test_thresholds_move_classes_and_an_empty_shot_is_none(
    script: Script, digits_run: Path, evaluated: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['--many-above', 500, '--few-below', 10, '--json', tmp_path / 'scores.json']
    assert script('tools/evaluate.py', digits_run, '--data', 'digits_lt', *options) == 0
    printed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ['Many', 'none'] in printed
    results = scores_of(tmp_path)
    accuracy = [row['accuracy'] for row in scores_of(evaluated[1])['per_class']]
    assert results['many'] is None
    assert results['medium'] == pytest.approx(np.mean(accuracy[:6]))
    assert results['few'] == pytest.approx(np.mean(accuracy[6:]))


def test_shifted_test_distributions(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['--shifted', '--batch-size', 7, '--json', tmp_path / 'scores.json']
    assert script('tools/evaluate.py', digits_run, '--data', 'digits_lt', *options) == 0
    results = scores_of(tmp_path)
    shifted = results['shifted']
    accuracy = np.array([row['accuracy'] for row in results['per_class']])
    assert shifted['uniform'] == pytest.approx(accuracy.mean())
    weights = np.array([50 ** (-c / 9) for c in range(10)])
    assert shifted['forward50'] == pytest.approx((weights * accuracy).sum() / weights.sum())
    assert shifted['backward50'] == pytest.approx((weights[::-1] * accuracy).sum() / weights.sum())
    printed = capsys.readouterr().out
    assert all(f'{name} ' in printed and f'{value:.2f}' in printed for name, value in shifted.items())


@pytest.fixture(scope='module')
def broken(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that hold no usable model."""
    place = tmp_path_factory.mktemp('broken')
    for name in ('truncated', 'overwritten', 'of_another', 'unfinished'):
        shutil.copytree(digits_run, place / name)
    for name, content in (('truncated', None), ('overwritten', b'\xff' * 1000)):
        weights = place / name / 'model' / 'model.safetensors'
        weights.write_bytes(weights.read_bytes()[:-1000] if content is None else content)
    config = place / 'of_another' / 'model' / 'config.json'
    config.write_text(config.read_text().replace('resnet20_cifar', 'resnet32_cifar'))
    shutil.rmtree(place / 'unfinished' / 'model')
    (place / 'no_model').mkdir()
    grey = ltzoo.create_model('resnet8_cifar', in_chans=1)
    save_for_hf(grey, str(place / 'grey'), safe_serialization=True, data_config={'input_size': (1, 8, 8)})
    diverged = ltzoo.create_model('resnet8_cifar')
    torch.nn.init.constant_(diverged.fc.bias, torch.inf)
    save_for_hf(diverged, str(place / 'diverged'), safe_serialization=True)
    return place


@pytest.mark.parametrize(
    ('model', 'options', 'message'),
    [
        ('', ['--data', 'digits_lt'], "the model's name is empty: give one of the zoo, a run's folder or local-dir:"),
        ('{run}', ['--data', 'digitz_lt'], "no data set is called 'digitz_lt'; did you mean digits_lt?"),
        ('{run}', ['--data', 'cifar10_tl_r100'], 'did you mean cifar10_lt_r100?'),
        ('{run}', ['--data', 'imagnet_lt'], 'did you mean imagenet_lt?'),
        ('{run}', ['--data', 'digits_lt_r'], "no data set is called 'digits_lt_r'"),
        ('{run}', ['--data', 'folder:{tmp}/nowhere'], '{tmp}/nowhere is not a folder'),
        ('resnet32_cifr', ['--data', 'digits_lt'], 'the nearest are resnet32_cifar'),
        ('resnet18', ['--data', 'digits_lt'], "timm's is timm/resnet18"),
        ('resnet32_cifar_gkpgsa_paper', ['--data', 'digits_lt'], 'recipes/cifar100_lt_r100/gkpgsa_paper.yaml'),
        ('local-dir:{tmp}/nowhere', ['--data', 'digits_lt'], 'there is no folder {tmp}/nowhere'),
        ('local-dir:{broken}/no_model', ['--data', 'digits_lt'], 'config.json is missing'),
        ('{broken}/no_model', ['--data', 'digits_lt'], 'recipe.yaml is missing'),
        ('{broken}/unfinished', ['--data', 'digits_lt'], 'is not finished: continue it with resume=auto'),
        ('{broken}/truncated', ['--data', 'digits_lt'], '{broken}/truncated/model are damaged'),
        ('{broken}/overwritten', ['--data', 'digits_lt'], '{broken}/overwritten/model are damaged'),
        ('{broken}/of_another', ['--data', 'digits_lt'], 'damaged or of another model'),
        ('{run}', ['--data', 'npz:{tmp}/three.npz'], 'has 10 classes, npz:{tmp}/three.npz has 3: they must'),
        ('{run}', ['--data', 'digits_lt', '--many-above', '10'], 'few_below 20 must be at most'),
        ('{run}', ['--data', 'digits_lt', '--split', 'holdout'], 'was not trained with evaluation.split=holdout'),
        (
            'local-dir:{broken}/grey',
            ['--data', 'digits_lt', '--split', 'holdout'],
            'not say what it was trained on',
        ),
        ('{run}', ['--data', 'digits_lt', '--batch-size', '0'], '--batch-size must be 1 or more, not 0'),
        ('{run}', ['--data', 'digits_lt', '--workers', '-1'], '--workers must be 0 or more, not -1'),
        ('{run}', ['--data', 'digits_lt', '--device', 'quantum'], '--device quantum cannot be used'),
        ('{run}', ['--data', 'digits_lt', '--device', 'meta'], '--device meta cannot be used'),
        (
            '{run}',
            ['--data', 'digits_lt', '--csv', '{tmp}/s.json'],
            '{tmp}/s.json is given for --json and for --csv: each',
        ),
        (
            '{run}',
            ['--data', 'digits_lt', '--predictions', '{tmp}/s.json'],
            '{tmp}/s.json is given for --json and for --predictions: each',
        ),
        ('{run}', ['--data', 'digits_lt', '--plot', ''], '--plot: the path is empty'),
        (
            'local-dir:{broken}/grey',
            ['--data', 'digits_lt'],
            'takes 1-channel images, those of digits_lt have 3 channels: take a model with in_chans=3',
        ),
        ('local-dir:{broken}/diverged', ['--data', 'digits_lt'], 'not finite for 400 of 400 images'),
        ('{run}', ['--data', 'digits_lt', '--csv', '{tmp}/no/c.csv'], 'there is no folder {tmp}/no'),
        ('{run}', ['--data', 'digits_lt', '--csv', '{broken}'], '{broken} cannot be written: it is a folder'),
        ('{run}', ['--data', 'digits_lt', '--plot', '{tmp}/p.xyz'], 'no plot is made in the format xyz, take .png'),
        # Before data and model are looked for.
        ('local-dir:nowhere', ['--data', 'nothing', '--plot', '{tmp}/p.xyz'], 'no plot is made in the format xyz'),
        ('runs/nowhere', ['--data', 'digits_lt'], 'there is no folder runs/nowhere; models are hf-hub:runs/nowhere on'),
        ('{run}', [], 'is to be scored on (--data): only names of the zoo say it'),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_no_file(
    script: Script,
    digits_run: Path,
    broken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    options: list[str],
    message: str,
) -> None:
    images, labels = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), np.array([0, 0, 0, 1, 1, 2])
    np.savez(tmp_path / 'three.npz', x_train=images, y_train=labels, x_test=images, y_test=labels)
    before = sorted(os.listdir(tmp_path))
    places = {'run': digits_run, 'tmp': tmp_path, 'broken': broken}
    model, *options = (text.format(**places) for text in (model, *options))
    files = ['--json', tmp_path / 's.json'] + ([] if '--csv' in options else ['--csv', tmp_path / 'c.csv'])
    assert script('tools/evaluate.py', model, *options, *files) == 2
    captured = capsys.readouterr()
    *usage, last = captured.err.splitlines()
    assert last.startswith('evaluate.py: ')
    assert message.format(**places) in last
    assert not usage or usage[0].startswith('usage: ')
    assert sorted(os.listdir(tmp_path)) == before


def write_digits(folder: Path, names: list[str]) -> Path:
    """The digits as class folders of these names, two images to train and two to test of each."""
    dataset = load_data('digits_lt')
    for part in ('train', 'test'):
        split = getattr(dataset, part)
        for label, name in enumerate(names):
            (folder / part / name).mkdir(parents=True)
            for i in np.flatnonzero(split.labels == label)[:2]:
                split.images[int(i)].save(folder / part / name / f'{i}.png')
    return folder


def test_classes_with_other_names(
    script: Script,
    digits_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    digits = [str(c) for c in range(10)]
    same = write_digits(tmp_path / 'same', digits)
    assert script('tools/evaluate.py', digits_run, '--data', f'folder:{same}') == 0
    assert not caplog.messages
    renamed = write_digits(tmp_path / 'renamed', [f'digit {name}' for name in digits])
    assert script('tools/evaluate.py', digits_run, '--data', f'folder:{renamed}') == 0
    (message,) = caplog.messages
    assert message.startswith(f'class 0 of {digits_run} is 0, that of folder:{renamed} is digit 0: ')
    capsys.readouterr()
    # A list may name its classes in any order; folders are sorted.
    model = json.loads((digits_run / 'model' / 'config.json').read_text())
    shutil.copytree(digits_run / 'model', tmp_path / 'turned')
    # Or lack one of them and have another, so that all behind it have moved.
    for names in (digits[::-1], ['9', *digits[:8], 'ten']):
        model['label_names'] = names
        (tmp_path / 'turned' / 'config.json').write_text(json.dumps(model))
        assert script('tools/evaluate.py', f'local-dir:{tmp_path / "turned"}', '--data', f'folder:{same}') == 2
        assert 'is 9, that of ' in (said := capsys.readouterr().err) and 'are in another order' in said


@pytest.mark.parametrize(
    ('theirs', 'ours', 'moved'),
    [
        (('ant', 'cat_big', 'catfish'), ('ANT', 'CAT_BIG', 'CATFISH'), False),
        # Sorted, as folders are.
        (('ant', 'cat_big', 'catfish'), ('ANT', 'CATFISH', 'CAT_BIG'), True),
        (('a', 'A'), ('A', 'a'), True),
    ],
)
def test_class_names_in_another_spelling(
    theirs: tuple[str, ...], ours: tuple[str, ...], moved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(ArrayImages(np.zeros((1, 1, 1, 3), np.uint8)), np.zeros(1, np.int64))
    model = SimpleNamespace(num_classes=len(theirs), pretrained_cfg={'label_names': theirs})
    dataset = Dataset('mine', split, split, ours)
    with pytest.raises(ClassesError, match='in another order') if moved else contextlib.nullcontext():
        check_classes(model, dataset, 'run', 'mine')
    assert not caplog.messages


@pytest.mark.parametrize(
    ('key', 'value'),
    [('class_counts', ['a'] * 10), ('many_above', '100'), ('scores', None), ('class_names', [['a']]), ('recipe', 3)],
)
def test_what_a_damaged_model_says_of_its_training_is_refused(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    model = shutil.copytree(digits_run / 'model', tmp_path / 'model')
    config = json.loads((model / 'config.json').read_text())
    config['lt'][key] = value
    (model / 'config.json').write_text(json.dumps(config))
    assert script('tools/evaluate.py', f'local-dir:{model}', '--data', 'digits_lt') == 2
    told = f'the config.json of local-dir:{model} is damaged: {key} in its block lt is {value}'
    assert capsys.readouterr().err == f'evaluate.py: {told}\n'


def test_a_name_that_is_too_long_is_told_as_any_other(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    names = 'local-dir:my_model ' * 30
    for command in (
        ('tools/evaluate.py', names, '--data', 'digits_lt'),
        ('tools/predict.py', 'resnet32_cifar_ce', names),
    ):
        assert script(*command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert names.strip()[:40] in line


def test_a_model_on_the_hub_says_what_it_was_trained_on(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, *, files: tuple[str, ...], cache_dir: str | None) -> Path:
        asked.append((name, files, cache_dir))
        return digits_run / 'model'

    monkeypatch.setattr('ltzoo.evaluation.trained_on.fetch_named', fetch)
    training = TrainedOn('hf-hub:me/digits@v1', 'cache')
    assert asked == [('hf-hub:me/digits@v1', ('config.json',), 'cache')]
    assert training.lt['class_counts'] == COUNTS


def test_new_images_of_some_classes_by_their_numbers(digits_run: Path, tmp_path: Path) -> None:
    test = load_data('digits_lt').test
    some = np.isin(test.labels, (1, 4, 9))
    images = np.stack([np.asarray(test.images[i])[..., 0] for i in np.flatnonzero(some)])
    np.savez(tmp_path / 'later.npz', x_train=images, y_train=test.labels[some])
    scores = evaluate_model(digits_run, f'npz:{tmp_path / "later.npz"}', split='all')
    whole = evaluate_model(digits_run, 'digits_lt')
    for row, known in zip(scores['per_class'], whole['per_class'], strict=True):
        assert row['accuracy'] == (known['accuracy'] if row['class'] in (1, 4, 9) else None)


def test_shots_of_another_form_of_a_benchmark_are_told(digits_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate_model(digits_run, 'digits_lt')
    assert not caplog.messages
    evaluate_model(digits_run, 'digits_lt_r10')
    told = f'{digits_run} was trained on digits_lt: Many, Medium and Few go by the training images of digits_lt_r10'
    assert caplog.messages == [told]


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_images_are_named_or_left_out(
    script: Script, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    folder = write_digits(tmp_path / 'digits', [str(c) for c in range(10)])
    bad = next((folder / 'test' / '3').iterdir())
    bad.write_bytes(b'no image')
    options = ('--data', f'folder:{folder}', '--workers', workers, '--json', tmp_path / 'scores.json')
    assert script('tools/evaluate.py', digits_run, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'evaluate.py: image {bad} cannot be decoded: ')
    assert line.endswith('; --skip-unreadable leaves such images out')
    assert script('tools/evaluate.py', digits_run, *options, '--skip-unreadable') == 0
    assert scores_of(tmp_path)['samples'] == 19


@pytest.mark.parametrize('own_test', [True, False])
def test_a_test_part_that_the_model_may_know_is_refused(own_test: bool, script: Script, tmp_path: Path) -> None:
    """By any spelling of its place, and by the benchmark as well."""
    folder = write_digits(tmp_path / 'digits', [str(c) for c in range(10)])
    if not own_test:
        shutil.rmtree(folder / 'test')
    recipe, run = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', tmp_path / 'run'
    options = ['data.name=folder', f'data.data_dir={folder}', 'model.name=resnet8_cifar', 'batch_size=2', 'epochs=1']
    assert script('recipes/train.py', recipe, *options, f'output={run}', '--no-progress') == 0
    ways: tuple[tuple[str, Path | None], ...] = (('folder', folder), (f'folder:{folder}', None))
    for data, data_dir in ways:
        assert evaluate_model(str(run), data, data_dir=data_dir)['samples'] == (20 if own_test else 10)
    if own_test:
        shutil.rmtree(folder / 'test')
    else:
        next((folder / 'train' / '3').iterdir()).unlink()
    for data, data_dir in ways:
        with pytest.raises(EvaluationError, match=r'would hold some that it was trained on'):
            evaluate_model(str(run), data, data_dir=data_dir)
        with pytest.raises(EvaluationError, match=r'would hold some that it was trained on'):
            measure(str(run), data, data_dir=None if data_dir is None else str(data_dir))


def test_shots_go_by_the_images_that_a_run_was_trained_on(script: Script, tmp_path: Path) -> None:
    folder = write_digits(tmp_path / 'digits', [str(c) for c in range(10)])
    first, *_ = sorted((folder / 'train' / '3').iterdir())
    first.write_bytes(b'no image')
    recipe, run = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml', tmp_path / 'run'
    number = len(list((folder / 'train' / '3').iterdir()))
    options = [f'data.name=folder:{folder}', 'data.unreadable=skip', 'model.name=resnet8_cifar', 'batch_size=2']
    shots = [f'evaluation.many_above={number + 9}', f'evaluation.few_below={number}']
    assert script('recipes/train.py', recipe, *options, *shots, 'epochs=1', f'output={run}', '--no-progress') == 0
    scores, written = evaluate_model(str(run), f'folder:{folder}'), json.loads((run / 'results.json').read_text())
    assert scores['per_class'] == written['per_class']
    assert scores['per_class'][3]['train_count'] == number - 1
    assert (scores['medium'], scores['few']) == (written['medium'], written['few'])
    for file in (folder / 'train' / '3').iterdir():
        file.write_bytes(b'no image')
    assert script('recipes/train.py', recipe, *options, f'output={tmp_path / "other"}', '--no-progress') == 2


def test_a_model_for_larger_images_gets_larger_images(script: Script, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('timm/test_vit', num_classes=10).eval()
    save_for_hf(model, str(tmp_path / 'vit'), safe_serialization=True)
    name, test = f'local-dir:{tmp_path / "vit"}', load_data('digits_lt').test
    assert script('tools/evaluate.py', name, '--data', 'digits_lt', '--json', tmp_path / 'scores.json') == 0
    _, _, transform = ltzoo.create_model_and_transforms(name, pretrained=True)
    with torch.inference_mode():
        logits = model(torch.stack([transform(test.images[i]) for i in range(len(test))]))
    top1 = 100 * (logits.argmax(1).numpy() == test.labels).mean()
    assert scores_of(tmp_path)['top1'] == pytest.approx(top1)


def test_a_model_that_the_hub_client_cannot_get(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    assert script('tools/evaluate.py', 'hf-hub:nobody/nothing', '--data', 'digits_lt', '--json', tmp_path / 's') == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('evaluate.py: hf-hub:nobody/nothing cannot be loaded: ')
    assert not (tmp_path / 's').exists()


def test_an_existing_file_survives_a_failed_evaluation(script: Script, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / 's.json').write_text('earlier')
    files = ['--json', tmp_path / 's.json', '--plot', tmp_path / 'p.xyz']
    assert script('tools/evaluate.py', digits_run, '--data', 'digits_lt', *files) == 2
    assert (tmp_path / 's.json').read_text() == 'earlier'


def test_the_name_of_a_run_folder_may_hold_a_colon(tmp_path: Path) -> None:
    run = tmp_path / 'run 12:30'
    (run / 'model').mkdir(parents=True)
    with pytest.raises(EvaluationError, match=r'holds no run \(recipe.yaml is missing\)'):
        resolve_model(str(run))
    (run / 'recipe.yaml').touch()
    assert resolve_model(str(run)) == f'local-dir:{run / "model"}'


def test_a_split_that_does_not_exist_is_refused(digits_run: Path) -> None:
    with pytest.raises(EvaluationError, match="split is 'hold-out'; did you mean holdout"):
        evaluate_model(str(digits_run), 'digits_lt', split='hold-out')  # type: ignore[arg-type]
