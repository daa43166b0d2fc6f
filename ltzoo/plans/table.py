"""The table of a plan's finished trainings: mean and standard deviation over seeds, and what the method did."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from ltzoo.data import with_place, without_folders
from ltzoo.errors import LtzooError
from ltzoo.files import alone, write_atomically, writing
from ltzoo.hub.export import as_published
from ltzoo.plans.plan import Plan
from ltzoo.training.recipe import Recipe
from ltzoo.training.run import RunFolder

__all__ = ['format_table', 'summarise', 'write_table']

_SCORES = {
    **{'top1': 'top-1', 'many': 'Many', 'medium': 'Medium', 'few': 'Few'},
    **{'balanced_accuracy': 'balanced', 'ece': 'ECE', 'train_top1': 'training images'},
}
# Seconds to wait for another call of the same plan, which writes the table in less than one.
_PATIENCE = 60.0


def summarise(
    plan: Plan, only: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return, for every run of a plan of which a training has ended, its scores over seeds and what its log says.

    Args:
        plan: of which trainings.
        only: names of runs, in order; None for all.
        seeds: those to look at; None for all of the plan.

    Returns:
        For each: `name`, `seeds` (those that are finished), `diverged` (those that have diverged: they have no scores),
        `alike` (whether the seed is all that they differ in: they may have been trained with other `--set`),
        `measured_on` (what the scores are of, where that is not the test set of split seed 0),
        [mean, sample standard deviation] of every score and of the minutes, and `method`.

    Raises:
        CheckpointError: if results are damaged.
    """
    summaries = []
    for name in dict.fromkeys(only or plan.runs):
        runs = {seed: RunFolder(plan.folder(name, seed)) for seed in seeds or plan.seeds}
        finished = {seed: run for seed, run in runs.items() if run.finished}
        diverged = {seed: run for seed, run in runs.items() if run.divergence.exists()}
        if finished or diverged:
            summaries.append(_summarise(name, finished, diverged))
    return summaries


def write_table(plan: Plan) -> None:
    """Write the table of all that has ended of a plan, if anything has.

    Raises:
        BusyError: if another process has been writing it for a minute.
        LtzooError: if it cannot be written, or results are damaged.
    """
    runs = [RunFolder(plan.folder(name, seed)) for name in plan.runs for seed in plan.seeds]
    if not any(run.finished or run.divergence.exists() for run in runs):
        return
    # Of two calls, as for two GPUs, one would else put a table in place that lacks what the other has finished since.
    with writing(plan.output / 'table.md'), alone(plan.output, _PATIENCE):
        summaries = summarise(plan)
        write_atomically(plan.output / 'table.md', format_table(summaries) + '\n')
        write_atomically(plan.output / 'table.json', json.dumps(summaries, indent=2) + '\n')


def format_table(summaries: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: mean and standard deviation over seeds."""
    if not summaries:
        return 'no training is finished yet'
    columns = [key for key in _SCORES if any(summary[key] is not None for summary in summaries)]
    heads = ['seeds', *(_SCORES[key] for key in columns), 'minutes']
    lines = [f'| | {" | ".join(heads)} |', '|---' * (len(heads) + 1) + '|']
    for summary in summaries:
        seeds = f'{len(summary["seeds"])}{"" if summary["alike"] else ", recipes or images differ"}'
        seeds += f', {len(summary["diverged"])} diverged' if summary['diverged'] else ''
        name = ', '.join([summary['name'], *summary['measured_on']])
        cells = [name, seeds, *(_format_mean(summary[key]) for key in columns)]
        lines.append(f'| {" | ".join(cells)} | {_format_mean(summary["minutes"], deviation=False)} |')
    of_method = [summary for summary in summaries if summary['method']]
    if of_method:
        lines += ['', '| | length of the perturbation | penalty to loss gradient | sizes of groups | classes moved |']
        lines.append('|---|---|---|---|---|')
        for summary in of_method:
            said = summary['method']
            lines.append(
                f'| {summary["name"]} | {_format_number(said["perturbation"])} | '
                f'{_format_number(said["penalty_to_loss_gradient"])} | {said["group_sizes"] or "-"} | '
                f'{_format_number(said["classes_moved"])} |'
            )
    return '\n'.join(lines)


def _summarise(name: str, folders: dict[int, RunFolder], diverged: dict[int, RunFolder]) -> dict[str, Any]:
    runs = list(folders.values())
    results = [run.read_results() for run in runs]
    # What they were trained with, and on how many images of each class.
    recipes = [_decisive(result) for result in results]
    counts = [[row.get('train_count') for row in result.get('per_class', ())] for result in results]
    for run in diverged.values():
        with suppress(LtzooError):
            recipes.append(_decisive({'recipe': run.read_recipe().model_dump()}))
    summary: dict[str, Any] = {
        'name': name,
        'seeds': list(folders),
        'diverged': list(diverged),
        'alike': all(of_run == of_runs[0] for of_runs in (recipes, counts) for of_run in of_runs),
        'measured_on': _measured_on(results),
    }
    for key in _SCORES:
        summary[key] = _mean_and_deviation([result.get(key) for result in results])
    summary['minutes'] = _mean_and_deviation([result['training_seconds'] / 60 for result in results])
    logs = [[line['method'] for line in run.read_log() if 'method' in line] for run in runs]
    summary['method'] = _summarise_method(logs)
    return summary


def _decisive(result: dict[str, Any]) -> Any:
    """Return the part of a run's recipe that seeds of a row share, whatever version of ltzoo wrote it, and wherever."""
    try:
        checked = Recipe.model_validate(result.get('recipe'))
    except ValidationError:
        return result.get('recipe')
    decides = as_published(checked.decides_result())
    # Of one that has diverged the recipe alone tells where its images lie.
    place = result.get('data') or with_place(checked.data.name, checked.data.data_dir)
    data = {**decides['data'], 'name': without_folders(place)}
    return {**decides, 'data': data, 'seed': None}


def _measured_on(results: list[dict[str, Any]]) -> list[str]:
    """Return what is not as the protocol has it, which is the test set of the fixed split."""
    said = ['hold-out'] if any(result.get('split') == 'holdout' for result in results) else []
    seeds = sorted({result.get('split_seed', 0) for result in results} - {0})
    return said + [f'split seed {seed}' for seed in seeds]


def _summarise_method(logs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the epochs of all seeds, so that an inert or a dominating term is seen."""
    lines = [line for log in logs for line in log]
    if not lines:
        return {}
    lengths = [statistics.mean(line['perturbation']) for line in lines if any(line.get('perturbation', ()))]
    pulls = [line['penalty_to_loss_gradient'] for line in lines if 'penalty_to_loss_gradient' in line]
    # The first grouping moves every class: it says nothing of how stable groups are.
    moved = [m for log in logs for m in [line['classes_moved'] for line in log if 'classes_moved' in line][1:]]
    sizes = [line['group_sizes'] for line in logs[0] if 'group_sizes' in line]
    return {
        'perturbation': statistics.median(lengths) if lengths else None,
        'penalty_to_loss_gradient': statistics.median(pulls) if pulls else None,
        'classes_moved': statistics.mean(moved) if moved else None,
        'group_sizes': sizes[-1] if sizes else None,
    }


def _mean_and_deviation(values: list[float | None]) -> list[float] | None:
    """Return [mean, sample standard deviation], only the mean of a single value, None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return [statistics.mean(known), *([statistics.stdev(known)] if len(known) > 1 else [])]


def _format_mean(value: list[float] | None, *, deviation: bool = True) -> str:
    if value is None:
        return '-'
    return f'{value[0]:.1f}' + (f' ± {value[1]:.1f}' if deviation and len(value) > 1 else '')


def _format_number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2g}'
