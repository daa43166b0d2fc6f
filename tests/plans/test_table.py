"""A plan's table against logs and results that are written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltzoo.files import BusyError, alone
from ltzoo.plans.plan import load_plan
from ltzoo.plans.table import format_table, summarise, write_table
from ltzoo.training.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / 'plan.yaml'
    path.write_text(f'output: {tmp_path}/runs\nseeds: [0, 1]\nruns: {{base: {{recipe: {RECIPE}}}}}')
    return path


def finish(tmp_path: Path, seed: int, results: dict[str, Any], log: list[dict[str, Any]]) -> None:
    run = tmp_path / 'runs' / f'base_seed{seed}'
    run.mkdir(parents=True)
    recipe = load_recipe(RECIPE).decides_result()
    (run / 'results.json').write_text(json.dumps({'recipe': recipe, 'data': 'digits_lt', **results}))
    (run / 'log.jsonl').write_text(''.join(json.dumps({'epoch': e, **line}) + '\n' for e, line in enumerate(log)))


def test_scores_minutes_and_what_the_method_did(plan_file: Path, tmp_path: Path) -> None:
    first = {'perturbation': [0.0, 0.0]}, {'perturbation': [0.1, 0.3], 'group_sizes': [4, 6], 'classes_moved': 10}
    last = {
        **{'perturbation': [0.4, 0.4], 'group_sizes': [5, 5], 'classes_moved': 2},
        **{'penalty_to_loss_gradient': 0.25},
    }
    scores = {'top1': 60.0, 'many': 80.0, 'medium': None, 'few': 20.0, 'ece': 7.0}
    finish(tmp_path, 0, {**scores, 'training_seconds': 120.0}, [{'method': line} for line in (*first, last)])
    finish(tmp_path, 1, {**scores, 'top1': 64.0, 'training_seconds': 240.0}, [{'method': {'perturbation': [0.9]}}, {}])
    (summary,) = summaries = summarise(load_plan(plan_file))
    assert summary == {
        **{'name': 'base', 'seeds': [0, 1], 'diverged': [], 'alike': True, 'measured_on': []},
        **{'top1': [62.0, pytest.approx(8**0.5)], 'many': [80.0, 0.0], 'medium': None, 'few': [20.0, 0.0]},
        **{'balanced_accuracy': None, 'ece': [7.0, 0.0], 'train_top1': None},
        **{'minutes': [3.0, pytest.approx(2**0.5)]},
        'method': {
            'perturbation': pytest.approx(0.4),
            'penalty_to_loss_gradient': 0.25,
            'classes_moved': 2,
            'group_sizes': [5, 5],
        },
    }
    assert format_table(summaries).splitlines()[2::4] == [
        '| base | 2 | 62.0 ± 2.8 | 80.0 ± 0.0 | 20.0 ± 0.0 | 7.0 ± 0.0 | 3.0 |',
        '| base | 0.4 | 0.25 | [5, 5] | 2 |',
    ]


def test_a_table_of_what_has_diverged_alone_is_one(plan_file: Path, tmp_path: Path) -> None:
    run = tmp_path / 'runs' / 'base_seed1'
    run.mkdir(parents=True)
    (run / 'diverged.txt').write_text('the loss is not finite')
    write_table(load_plan(plan_file))
    expected = '| | seeds | minutes |\n|---|---|---|\n| base | 0, 1 diverged | - |\n'
    assert (tmp_path / 'runs' / 'table.md').read_text() == expected


def test_a_seed_that_diverged_with_another_recipe_is_told_from_the_others(plan_file: Path, tmp_path: Path) -> None:
    finish(tmp_path, 0, {'top1': 60.0, 'training_seconds': 120.0}, [])
    run = tmp_path / 'runs' / 'base_seed1'
    run.mkdir(parents=True)
    (run / 'diverged.txt').write_text('the loss is not finite')
    recipe = json.loads((tmp_path / 'runs' / 'base_seed0' / 'results.json').read_text())['recipe']
    for rate, alike in ((recipe['optimizer']['lr'], True), (1e9, False)):
        other = {**recipe, 'seed': 1, 'optimizer': {**recipe['optimizer'], 'lr': rate}}
        (run / 'recipe.yaml').write_text(yaml.safe_dump(other))
        (summary,) = summarise(load_plan(plan_file))
        assert (summary['seeds'], summary['diverged'], summary['alike']) == ([0], [1], alike)


def test_two_calls_of_a_plan_write_its_table_one_after_the_other(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('ltzoo.plans.table._PATIENCE', 0.1)
    plan = load_plan(plan_file)
    write_table(plan)
    assert not (tmp_path / 'runs').exists()
    finish(tmp_path, 0, {'top1': 60.0, 'training_seconds': 120.0}, [])
    with alone(tmp_path / 'runs'), pytest.raises(BusyError, match='runs is being written by another process'):
        write_table(plan)
    assert [path.name for path in (tmp_path / 'runs').iterdir()] == ['base_seed0']
    write_table(plan)
    assert sorted(path.name for path in (tmp_path / 'runs').iterdir()) == ['base_seed0', 'table.json', 'table.md']
