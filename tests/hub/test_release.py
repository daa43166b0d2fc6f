"""A release: what it says of several seeds, that it loads, and that what does not belong together is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

import ltzoo
from ltzoo.errors import LtzooError
from ltzoo.hub import ExportError, VerificationError, export_model, release
from ltzoo.hub.export import as_published
from ltzoo.hub.release import _NOT_RECIPE, _recipe_file, write_card
from ltzoo.hub.vectors import check_vectors
from ltzoo.training.recipe import Recipe, load_recipe

Train = Callable[..., nn.Module]
KEYS = ('top1', 'many', 'medium', 'few', 'balanced_accuracy', 'ece')
COMMAND = "recipes/train.py /secret/own.yaml 'data.name=folder:/secret/my photos' epochs=3"


def trained(tag: str, *changes: str) -> dict[str, Any]:
    """Return what the zoo's recipe of cross-entropy records of its environment."""
    command = f'recipes/train.py recipes/{tag}/ce.yaml precision=bf16 seed=0 {" ".join(changes)}'
    return {'commit': 'abc', 'torch': '2.99', 'command': command}


def as_of_benchmark(run: Path, data: str) -> None:
    """Let a run say that it was of these data, by the usual shots."""
    config = json.loads((run / 'model' / 'config.json').read_text())
    config['lt'].update(data=data, many_above=100, few_below=20)
    (run / 'model' / 'config.json').write_text(json.dumps(config))


@pytest.fixture
def make_run(train: Train, lt: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes what a finished training leaves behind."""

    def make(seed: int, top1: float, **changes: Any) -> Path:
        run = tmp_path / f'run{len(os.listdir(tmp_path))}'
        scores = {**lt['scores'], 'top1': top1, 'many': top1 / 3, **changes.pop('scores', {})}
        block = {**lt, 'seed': seed, 'scores': scores}
        model = train('resnet20_cifar')
        with torch.no_grad():
            model.fc.bias.add_(seed)
        export_model(model, run / 'model', block, input_size=(3, 16, 16), mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3))
        (run / 'recipe.yaml').write_text('epochs: 37\n')
        (run / 'log.jsonl').write_text(json.dumps({'epoch': 0, 'seed': seed}) + '\n')
        (run / 'curves.png').write_bytes(b'curves')
        record = {
            'model': 'resnet20_cifar',
            **scores,
            'data': '/secret/place/pets_lt',
            'split': 'test',
            'seed': seed,
            'training_seconds': 12.5,
            'environment': {'commit': 'abc', 'torch': '2.99', 'command': COMMAND},
            'recipe': {**lt['recipe'], 'seed': seed},
            'per_class': [{'class': c, 'train_count': n, 'accuracy': 50.0} for c, n in enumerate(lt['class_counts'])],
        }
        (run / 'results.json').write_text(json.dumps({**record, **changes}))
        return run

    return make


def test_scores_of_three_seeds(make_run: Callable[..., Path], tmp_path: Path) -> None:
    top1 = [41.25, 39.5, 43.0]
    runs = [str(make_run(seed, value)) for seed, value in zip((7, 3, 5), top1, strict=True)]
    with pytest.raises(ValueError, match=re.escape(f"runs is '{runs[0]}', where a list of folders is needed")):
        release(runs[0], tmp_path / 'out')
    with pytest.raises(ValueError, match='runs is empty'):
        release([], tmp_path / 'out')
    results = release(runs, str(tmp_path / 'out'))
    assert results == json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert (results['seeds'], results['weights_seed']) == ([7, 3, 5], 7)
    assert results['scores']['top1']['values'] == top1
    assert results['scores']['top1']['mean'] == pytest.approx(np.mean(top1))
    assert results['scores']['top1']['std'] == pytest.approx(np.std(top1, ddof=1))
    assert results['scores']['many']['std'] == pytest.approx(np.std(top1, ddof=1) / 3)
    assert results['scores']['medium'] is None
    assert results['imbalance_ratio'] == pytest.approx(1234 / 5)
    assert [run['top1'] for run in results['runs']] == top1
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert '| | ltzoo, 3 seeds | these weights, seed 7 |' in card.text
    assert f'| Top-1 | {np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f} | {top1[0]:.2f} |' in card.text
    assert 'mean and sample standard deviation of seeds 3, 5, 7' in card.text
    assert re.search(r'accelerate launch --num_processes 1 recipes/train.py .* seed=7`, at commit abc:', card.text)
    # What the Hub shows of a model is what its weights score.
    assert card.data.eval_results[0].metric_value == pytest.approx(top1[0], abs=0.005)


def test_the_card_says_where_seeds_were_trained_by_other_numbers_of_processes(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    environment = {'commit': 'abc', 'torch': '2.99', 'command': COMMAND, 'processes': 1}
    earlier = [{'commit': 'abc', 'processes': 4, 'until_epoch': 3}]
    runs = [make_run(3, 40.0), make_run(5, 41.0, environment={**environment, 'earlier': earlier}), make_run(7, 42.0)]
    release(runs, tmp_path / 'out')
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'standard deviation of seeds 3, 5, 7, trained by 1, 4 then 1, 1 processes' in card


def test_the_card_says_where_the_weights_were_trained_otherwise_before(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    environment = {'commit': 'abc', 'torch': '2.99', 'command': COMMAND, 'processes': 4}
    # Other threads change nothing that decides.
    earlier = [
        {'commit': 'old', 'processes': 8, 'until_epoch': 3},
        {'commit': 'abc', 'processes': 8, 'until_epoch': 5},
        {'commit': 'abc', 'processes': 4, 'threads': 1, 'until_epoch': 9},
    ]
    release([make_run(7, 50.0, environment={**environment, 'earlier': earlier})], tmp_path / 'out')
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'accelerate launch --multi_gpu --num_processes 4 recipes/train.py' in card
    told = ', at commit abc, until epoch 3 old with 8 processes, until epoch 5 abc with 8 processes:\n'
    assert told in card


def test_scores_that_differ_by_rounding_alone_are_shown_alike(make_run: Callable[..., Path], tmp_path: Path) -> None:
    # The mean of the second pair, added up in floating point, is 39.724999999999994.
    runs = [
        make_run(seed, top1, balanced_accuracy=b)
        for seed, top1, b in ((0, 39.800000000000004, 39.8), (1, 39.65, 39.65))
    ]
    release(runs, tmp_path / 'out')
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert '| Top-1 | 39.73 ± 0.11 |' in card
    assert '| Balanced accuracy | 39.73 ± 0.11 |' in card


def test_the_weights_are_the_first_run_s_and_the_vectors_are_theirs(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = make_run(1, 50.0), make_run(2, 60.0)
    out = tmp_path / 'out'
    results = release([first, second], out)
    weights = (out / 'model.safetensors').read_bytes()
    assert weights == (first / 'model' / 'model.safetensors').read_bytes()
    assert weights != (second / 'model' / 'model.safetensors').read_bytes()
    assert results['sha256'] == hashlib.sha256(weights).hexdigest()
    vectors = load_file(out / 'vectors.safetensors')
    model = ltzoo.create_model(f'local-dir:{out}', pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(model(vectors['images']), vectors['logits'])
    # Pixels of 0 and 1 are the ends of the normalised range, and the noise comes near to both.
    low, high = (torch.tensor(ends) for ends in ([-3.0, -2.0, -5 / 3], [7.0, 3.0, 5 / 3]))
    torch.testing.assert_close(vectors['images'].amin((0, 2, 3)), low, atol=0.1, rtol=0)
    torch.testing.assert_close(vectors['images'].amax((0, 2, 3)), high, atol=0.1, rtol=0)
    assert json.loads((out / 'log.jsonl').read_text())['seed'] == 1
    assert check_vectors(model, out / 'vectors.safetensors', 'it') == 0
    with pytest.raises(VerificationError, match='it gives other logits than those stored with it: off by'):
        check_vectors(
            ltzoo.create_model(f'local-dir:{second / "model"}', pretrained=True).eval(),
            out / 'vectors.safetensors',
            'it',
        )
    save_file({**vectors, 'logits': vectors['logits'] * float('nan')}, out / 'vectors.safetensors')
    with pytest.raises(VerificationError):
        check_vectors(model, out / 'vectors.safetensors', 'it')


def test_what_does_not_decide_a_result_is_not_told_of_its_recipe() -> None:
    recipe = load_recipe(Path(__file__).resolve().parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml')
    decides = recipe.decides_result()
    free = {key for key in Recipe.model_fields if key not in decides}
    for part in ('data', 'evaluation'):
        free |= {f'{part}.{key}' for key in type(getattr(recipe, part)).model_fields if key not in decides[part]}
    assert free | {'seed', 'model.cache_dir'} == set(_NOT_RECIPE)


@pytest.mark.parametrize(
    ('method', 'called'),
    [
        ({'preservation': {'strength': 1}, 'sharpness': {'scale': 0.01}}, 'gkpgsa'),
        ({'preservation': None, 'sharpness': {'radius': 0.05}}, 'bcl + sharpness'),
        (None, 'bcl'),
    ],
)
def test_what_it_was_trained_with(
    make_run: Callable[..., Path], lt: dict[str, Any], tmp_path: Path, method: dict[str, Any] | None, called: str
) -> None:
    recipe = {**lt['recipe'], 'model': {'name': 'local-dir:/secret/start'}, 'method': method}
    run = make_run(0, 50.0, recipe=recipe, model='local-dir:/secret/start')
    results = release([run], tmp_path / 'out')
    assert (results['method'], results['name']) == (called, 'local-dir:start')


def test_the_licence_is_that_of_the_weights(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(0, 50.0)
    config = json.loads((run / 'model' / 'config.json').read_text())
    config['pretrained_cfg']['license'] = 'cc-by-nc-4.0'
    (run / 'model' / 'config.json').write_text(json.dumps(config))
    assert release([run], tmp_path / 'out')['license'] == 'cc-by-nc-4.0'
    assert ModelCard.load(tmp_path / 'out' / 'README.md').data.license == 'cc-by-nc-4.0'


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        *(('environment', None), ('per_class', 3), ('many', 'x'), ('recipe', []), ('top1', math.nan)),
        *(
            ('environment', {}),
            ('environment', {'commit': 'a', 'earlier': [1]}),
            ('environment', {'commit': 'a', 'earlier': [{}]}),
            ('per_class', []),
            ('per_class', [{}]),
        ),
    ],
)
def test_a_run_whose_results_are_of_another_kind_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, key: str, value: Any
) -> None:
    run = make_run(0, 50.0)
    change_results(run, **{key: value})
    with pytest.raises(ExportError, match=re.escape(f'{run} is damaged: its {key} is {value!r}')):
        release([run], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_run_without_a_score_is_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r'is damaged: its top1 is None$'):
        release([make_run(0, 50.0, scores={'top1': None})], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_networks_of_a_recipe_are_published_without_folders() -> None:
    model = {
        'name': 'local-dir:/secret/first',
        'checkpoint_path': '/secret/stage1.pth',
        'cache_dir': '/secret',
        'head': 'x',
    }
    teachers = ['local-dir:/secret/runs/bcl/model', 'resnet32_cifar_bs']
    recipe = {'model': model, 'objective': {'name': 'distilled', 'teachers': teachers}, 'epochs': 3}
    assert as_published(recipe) == {
        'model': {'name': 'local-dir:first', 'checkpoint_path': 'stage1.pth', 'head': 'x'},
        'objective': {'name': 'distilled', 'teachers': ['local-dir:bcl/model', 'resnet32_cifar_bs']},
        'epochs': 3,
    }
    with pytest.raises(LtzooError, match='teachers must be names of trained models, not None'):
        as_published({**recipe, 'objective': {'name': 'distilled'}})
    command = (
        "train.py own.yaml 'objective={name: distilled, teachers: [local-dir:/secret/runs/bcl/model, local-dir:/a]}'"
    )
    assert (
        _recipe_file(command) == "own.yaml 'objective={name: distilled, teachers: [local-dir:bcl/model, local-dir:a]}'"
    )
    command = 'recipes/train.py own.yaml model.checkpoint_path=/secret/stage1.pth model.cache_dir=/secret'
    assert _recipe_file(command) == "own.yaml 'model.checkpoint_path=stage1.pth'"
    for place in ('', '/secret/ltzoo/', '../recipes/'):
        assert _recipe_file(f'train.py {place}recipes/own/bs.yaml') == 'recipes/own/bs.yaml'
    # As it is printed, it can be run.
    assert shlex.split(_recipe_file('train.py "tom\'s own.yaml" epochs=3') or '') == ["tom's own.yaml", 'epochs=3']
    # What a program of somebody's own changed in the recipe is not known.
    assert _recipe_file('recipes/cifar100_lt_r100/ce.yaml') is None


def test_scores_by_other_thresholds_are_no_results_of_the_benchmark(
    make_run: Callable[..., Path], lt: dict[str, Any], tmp_path: Path
) -> None:
    tag = 'cifar100_lt_r100'
    for many_above, ours in ((100, True), (200, False)):
        thresholds = {'many_above': many_above, 'few_below': 20}
        recipe = {**lt['recipe'], 'objective': {'name': 'ce'}, 'evaluation': thresholds}
        run = make_run(0, 50.0, model=f'resnet32_cifar_ce.{tag}', recipe=recipe, environment=trained(tag))
        config = json.loads((run / 'model' / 'config.json').read_text())
        config['lt'].update(data=tag, **thresholds)
        config['lt']['recipe']['model']['name'] = f'resnet32_cifar_ce.{tag}'
        (run / 'model' / 'config.json').write_text(json.dumps(config))
        out = tmp_path / f'out{many_above}'
        results = release([run], out)
        assert (results['hub_id'] is not None) == ours
        card = (out / 'README.md').read_text()
        # The zoo's name, and what a paper reports of it, are for its recipes alone.
        assert ('\n| | ltzoo | paper |\n' in card) == (f'\n# resnet32_cifar_ce.{tag}\n' in card) == ours
        assert (f'\n# resnet32_cifar on {tag}\n' in card) != ours
        entries = {e['dataset']['task_id'] for e in yaml.safe_load((out / '.eval_results' / f'{tag}.yaml').read_text())}
        assert f'{tag}_top1' in entries and (f'{tag}_many' in entries) == ours


def test_a_run_of_changed_files_is_no_result_of_the_zoo(
    make_run: Callable[..., Path], lt: dict[str, Any], tmp_path: Path
) -> None:
    tag = 'cifar100_lt_r100'
    recipe = {**lt['recipe'], 'objective': {'name': 'ce'}}
    for commit, ours in (('abc', True), ('abc-dirty', False)):
        environment = {**trained(tag), 'commit': commit}
        run = make_run(0, 50.0, model=f'resnet32_cifar_ce.{tag}', recipe=recipe, environment=environment)
        as_of_benchmark(run, tag)
        assert (release([run], tmp_path / commit)['hub_id'] is not None) == ours
    # Nor is one that was trained so before a stop, or beside a seed that was.
    run = make_run(
        0, 50.0, model=f'resnet32_cifar_ce.{tag}', recipe=recipe, environment={**trained(tag), 'commit': 'abc'}
    )
    as_of_benchmark(run, tag)
    changed = {**trained(tag), 'commit': 'abc-dirty'}
    stopped = {**trained(tag), 'commit': 'abc', 'earlier': [{'commit': 'abc-dirty', 'until_epoch': 150}]}
    for seed, environment in ((1, changed), (2, stopped)):
        other = make_run(seed, 50.0, model=f'resnet32_cifar_ce.{tag}', recipe=recipe, environment=environment)
        as_of_benchmark(other, tag)
        assert release([run, other], tmp_path / f'both{seed}')['hub_id'] is None
        assert release([other], tmp_path / f'alone{seed}')['hub_id'] is None


def test_nothing_of_the_machine_is_released(make_run: Callable[..., Path], tmp_path: Path) -> None:
    results = release([make_run(0, 50.0)], tmp_path / 'out')
    assert results['recipe'] == "own.yaml 'data.name=folder:my photos' 'epochs=3'"
    assert results['data'] == 'pets_lt'
    for file in (tmp_path / 'out').rglob('*'):
        assert not file.is_file() or b'secret' not in file.read_bytes(), file


@pytest.mark.parametrize(
    ('model', 'objective', 'data', 'changes', 'name', 'hub_id'),
    [
        (
            'resnet32_cifar_ce.cifar100_lt_r100',
            'ce',
            'cifar100_lt_r100',
            [],
            'resnet32_cifar_ce.cifar100_lt_r100',
            'ltzoo/resnet32_cifar_ce',
        ),
        (
            'resnet32_cifar_ce.cifar10_lt_r50',
            'ce',
            'cifar10_lt_r50',
            [],
            'resnet32_cifar_ce.cifar10_lt_r50',
            'ltzoo/resnet32_cifar_ce.cifar10_lt_r50',
        ),
        # The zoo's network trained on other data, in another way or with other settings, is no model of the zoo.
        ('resnet32_cifar_ce', 'ce', 'mine', [], 'resnet32_cifar_ce', None),
        ('resnet32_cifar_ce', 'bcl', 'cifar100_lt_r100', [], 'resnet32_cifar_ce', None),
        ('resnet32_cifar_ce', 'ce', 'cifar100_lt_r100', ['epochs=5'], 'resnet32_cifar_ce', None),
    ],
)
def test_what_it_is_called(
    make_run: Callable[..., Path],
    lt: dict[str, Any],
    tmp_path: Path,
    model: str,
    objective: str,
    data: str,
    changes: list[str],
    name: str,
    hub_id: str | None,
) -> None:
    recipe = {**lt['recipe'], 'objective': {'name': objective}}
    run = make_run(0, 50.0, model=model, recipe=recipe, environment=trained(data, *changes))
    as_of_benchmark(run, data)
    results = release([run], tmp_path / 'out')
    assert (results['name'], results['hub_id']) == (name, hub_id)
    assert results['method'] == objective
    usage = re.search(r"transforms\('(.*?)', pretrained=True\)", (tmp_path / 'out' / 'README.md').read_text())
    assert usage is not None
    # The zoo's own weights may be others than these.
    assert usage[1] == 'local-dir:FOLDER'
    write_card(tmp_path / 'out', tmp_path)
    assert f"transforms('{name}', pretrained=True)" in (tmp_path / 'README.md').read_text()
    scores = tmp_path / 'out' / '.eval_results' / f'{data}.yaml'
    assert scores.is_file() == (data != 'mine')
    if scores.is_file():
        # No Medium-shot classes, so no such entry.
        entries = {entry['dataset']['task_id']: entry['value'] for entry in yaml.safe_load(scores.read_text())}
        assert set(entries) == {f'{data}_{key}' for key in KEYS if key != 'medium'}
        assert entries[f'{data}_top1'] == results['scores']['top1']['values'][0]


def test_scores_of_a_hold_out_are_no_results_of_the_benchmark(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(0, 50.0, model='resnet32_cifar_bcl.cifar100_lt_r100')
    for file, part in (('results.json', None), ('model/config.json', 'lt')):
        record = json.loads((run / file).read_text())
        (record if part is None else record[part]).update(split='holdout', data='cifar100_lt_r100')
        (run / file).write_text(json.dumps(record))
    results = release([run], tmp_path / 'out')
    assert results['hub_id'] is None
    assert not (tmp_path / 'out' / '.eval_results').exists()
    assert 'a hold-out, not the test set' in (tmp_path / 'out' / 'README.md').read_text()


def test_what_does_not_belong_together_is_refused(
    make_run: Callable[..., Path], lt: dict[str, Any], tmp_path: Path
) -> None:
    first, same, other = make_run(0, 50.0), make_run(0, 51.0), make_run(1, 52.0)
    record = json.loads((other / 'results.json').read_text())
    changed = copy.deepcopy(record)
    changed['recipe']['epochs'] = 38
    (other / 'results.json').write_text(json.dumps(changed))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExportError, match=f'{same} and {first} are both of seed 0: give one run for each seed'):
        release([first, same], tmp_path / 'out')
    with pytest.raises(ExportError, match=r'is of another recipe than .*: epochs differs, and only the seed may'):
        release([first, other], tmp_path / 'out')
    assert sorted(os.listdir(tmp_path)) == before
    (other / 'results.json').write_text(json.dumps(record))
    release([first, other], tmp_path / 'out')
    with pytest.raises(ExportError, match='out is not empty; give a new folder, or --force'):
        release([first], tmp_path / 'out')
    assert release([first], tmp_path / 'out', force=True)['seeds'] == [0]


def test_only_to_compare_runs_are_trainings_packages_needed(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_run(0, 50.0), make_run(1, 52.0)
    monkeypatch.delitem(sys.modules, 'ltzoo.training.recipe')
    monkeypatch.setitem(sys.modules, 'pydantic', None)
    release([first], tmp_path / 'one')
    with pytest.raises(ExportError, match=r"packages, pydantic is missing: pip install 'ltzoo\[train\]'"):
        release([first, second], tmp_path / 'two')


def test_seeds_are_added_to_what_is_released(make_run: Callable[..., Path], tmp_path: Path) -> None:
    top1 = {7: 41.25, 3: 39.5, 5: 43.0}
    first, *others = (make_run(seed, value) for seed, value in top1.items())
    release([first, *others], tmp_path / 'at_once')
    release([first], tmp_path / 'out')
    release([tmp_path / 'out', others[0]], tmp_path / 'out', force=True)
    release([tmp_path / 'out', others[1]], tmp_path / 'elsewhere')
    for file in (tmp_path / 'at_once').iterdir():
        assert (tmp_path / 'elsewhere' / file.name).read_bytes() == file.read_bytes(), file
    assert {p.name for p in (tmp_path / 'elsewhere').iterdir()} == {p.name for p in (tmp_path / 'at_once').iterdir()}
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['seeds'] == [7, 3]


def test_the_stored_logits_stay_when_seeds_are_added(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_run(0, 50.0), make_run(1, 51.0)
    release([first], tmp_path / 'out')
    stored = load_file(tmp_path / 'out' / 'vectors.safetensors')
    # As another machine rounds them.
    stored['logits'] *= 1 + 1e-6
    save_file(stored, tmp_path / 'out' / 'vectors.safetensors')
    release([tmp_path / 'out', second], tmp_path / 'out', force=True)
    assert torch.equal(load_file(tmp_path / 'out' / 'vectors.safetensors')['logits'], stored['logits'])


def test_a_key_that_is_null_and_one_that_is_not_there_are_two(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first, other = make_run(0, 50.0), make_run(1, 51.0)
    record = json.loads((other / 'results.json').read_text())
    record['recipe']['model']['drop_rate'] = None
    (other / 'results.json').write_text(json.dumps(record))
    with pytest.raises(ExportError, match=r'model\.drop_rate differs, and only the seed may'):
        release([first, other], tmp_path / 'out')


def test_a_released_recipe_of_an_older_version_has_today_s_defaults(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    old, new, other = make_run(0, 50.0), make_run(1, 51.0), make_run(2, 52.0)
    for run, key, value in ((new, 'sync_batchnorm', False), (other, 'sync_batchnorm', True)):
        record = json.loads((run / 'results.json').read_text())
        record['recipe'][key] = value
        (run / 'results.json').write_text(json.dumps(record))
    release([old], tmp_path / 'out')
    assert release([tmp_path / 'out', new], tmp_path / 'both')['seeds'] == [0, 1]
    with pytest.raises(
        ExportError, match=r'run\d is of another recipe than .*out: sync_batchnorm differs, and only the seed may'
    ):
        release([tmp_path / 'out', other], tmp_path / 'all')


def change_results(folder: Path, **changes: Any) -> None:
    results = json.loads((folder / 'results.json').read_text())
    (folder / 'results.json').write_text(json.dumps({**results, **changes}))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda out: change_results(out, weights_seed=4), 'out/results.json is damaged: its first run is not the one'),
        (lambda out: change_results(out, runs=[]), 'out/results.json is damaged: its first run is not the one'),
        (lambda out: change_results(out, runs=[{'seed': 0}]), 'out/results.json is damaged: it does not say balanced_'),
        (lambda out: change_results(out, runs=None), 'out/results.json is damaged: its runs are not a list of scores'),
        (lambda out: change_results(out, sha256='0' * 64), 'out/model.safetensors holds other weights than'),
        (lambda out: change_results(out, name=3), 'out is damaged: its model is 3'),
        (lambda out: (out / 'vectors.safetensors').write_bytes(b'x'), 'out/vectors.safetensors is damaged, or not of '),
        (lambda out: (out / 'results.json').write_text('{}'), 'out/results.json is damaged: it does not say data'),
        (lambda out: (out / 'model.safetensors').unlink(), 'out lacks model.safetensors'),
    ],
)
def test_to_what_is_damaged_no_seeds_are_added(
    make_run: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    first, second = make_run(0, 50.0), make_run(1, 51.0)
    out = tmp_path / 'out'
    release([first], out)
    damage(out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(LtzooError, match=re.escape(message)):
        release([out, second], out, force=True)
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_of_runs_that_were_put_together_no_seed_is_there_twice_and_no_other_data(
    make_run: Callable[..., Path], lt: dict[str, Any], tmp_path: Path
) -> None:
    first, same, other = make_run(0, 50.0), make_run(0, 51.0), make_run(1, 52.0)
    out = tmp_path / 'out'
    release([first], out)
    with pytest.raises(ExportError, match=f'{same} and {out} are both of seed 0'):
        release([out, same], out, force=True)
    record = json.loads((other / 'results.json').read_text())
    record['per_class'][0]['train_count'] += 1
    (other / 'results.json').write_text(json.dumps(record))
    with pytest.raises(ExportError, match='is of another recipe than'):
        release([out, other], out, force=True)
    record['recipe']['colour'] = 'red'
    (other / 'results.json').write_text(json.dumps(record))
    with pytest.raises(ExportError, match=f'{other}, recipe: there is no key colour'):
        release([out, other], out, force=True)
    assert json.loads((out / 'results.json').read_text())['seeds'] == [0]


def test_what_lies_around_a_released_folder_is_not_replaced(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_run(0, 50.0), make_run(1, 51.0)
    mine = tmp_path / 'place' / 'mine.txt'
    release([first], mine.parent / 'out')
    mine.write_text('mine')
    with pytest.raises(ExportError, match='place would replace the run'):
        release([mine.parent / 'out', second], mine.parent, force=True)
    assert mine.read_text() == 'mine'
