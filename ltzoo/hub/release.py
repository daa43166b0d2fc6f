"""Release: finished runs of one recipe as a folder that can be published, loaded and checked.

model.safetensors, config.json    the weights of the first run, in timm's layout
results.json                      the scores of all runs, see `ltzoo.get_results`
vectors.safetensors               images and the logits that the weights give for them
log.jsonl, *.png                  the first run's log and plots
README.md, .eval_results          the card
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file

from ltzoo.data import imbalance_ratio, without_folders
from ltzoo.data.shots import FEW_BELOW, MANY_ABOVE
from ltzoo.files import new_folder
from ltzoo.hub.card import METRICS, PLACE, architecture_of, eval_results, licence_of, model_card
from ltzoo.hub.export import ExportError, as_published, check_new_folder
from ltzoo.hub.vectors import check_vectors, make_vectors
from ltzoo.models import create_model
from ltzoo.models.download import file_hash
from ltzoo.models.entries import entry_of, method_of, paper_results
from ltzoo.models.lt_zoo import METHODS, ZooEntry

__all__ = ['over_seeds', 'release', 'summarise', 'write_card']

_PLOTS = ('accuracy.png', 'curves.png')
# What is read of a run's results.json and of its model's config.json.
_RECORD = {
    *METRICS,
    'model',
    'data',
    'seed',
    'split',
    'samples',
    'recipe',
    'environment',
    'training_seconds',
    'per_class',
}
# What is read of the results.json of a folder that is released already.
_RESULTS = {'name', 'data', 'recipe', 'weights_seed', 'sha256', 'runs'}
_TRAINING = {'data', 'class_counts', 'many_above', 'few_below', 'recipe', 'seed', 'split', 'scores'}
# The name of a model in a folder, among others in a list.
_LOCAL = re.compile(r'local-dir:[^\s,\[\]{}"\']+')
# What a command line says that does not decide the result, but for the seed, which is told apart.
_NOT_RECIPE = (
    'output', 'resume', 'seed', 'trackers', 'workers', 'checkpoint_every', 'compile', 'cuda_graphs',
    'data.data_dir', 'data.download', 'evaluation.batch_size', 'model.cache_dir',
)  # fmt: skip


def release(
    runs: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str], *, force: bool = False
) -> dict[str, Any]:
    """Write the folder of one or several finished runs, which differ in their seed alone.

    Args:
        runs: one run folder or several; the weights are the first one's. The first may be a folder that this made, to
            which the others add their seeds; it may be `folder` itself.
        folder: where to; it appears whole or not at all.
        force: replace what is in `folder`.

    Returns:
        The content of its results.json.

    Raises:
        ExportError: if a run is not finished or damaged, the runs are not of one recipe, or the folder holds one of
            them or cannot be written.
        ModelFilesError: if a run's model is damaged.
        VerificationError: if a released folder's model does not give the logits stored with it.
        ValueError: if there are no runs, or they are one folder and no list of folders.
    """
    if isinstance(runs, (str, os.PathLike)):
        raise ValueError(f'runs is {os.fspath(runs)!r}, where a list of folders is needed: give [{os.fspath(runs)!r}]')
    if not runs:
        raise ValueError('runs is empty')
    folder, (first, *others) = Path(folder), map(Path, runs)
    released = _is_released(first)
    model_folder = first if released else first / 'model'
    for run in (first, *others):
        place = (model_folder if run is first else run / 'model').resolve()
        # All that a released folder holds is carried over: it may be replaced itself, what lies around it may not.
        taken = place.parents if released and run is first else (place, *place.parents)
        if folder.resolve() in taken:
            raise ExportError(f'{folder} would replace the run {run}; give a new folder')
    check_new_folder(folder, force)
    records = [(first, record) for record in (_released_records(first) if released else [_record(first)])]
    records += [(run, _record(run)) for run in others]
    _check_one_recipe(records)
    model = create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    vectors = first / 'vectors.safetensors'
    if vectors.is_file():
        check_vectors(model, vectors, str(first))
    try:
        with new_folder(folder) as made:
            for name in ('model.safetensors', 'config.json'):
                shutil.copyfile(model_folder / name, made / name)
            for name in ('log.jsonl', *_PLOTS, vectors.name):
                if (first / name).is_file():
                    shutil.copyfile(first / name, made / name)
            if not vectors.is_file():
                save_file(make_vectors(model), made / vectors.name)
            digest = file_hash(made / 'model.safetensors')
            config = json.loads((made / 'config.json').read_text(encoding='utf-8'))
            licence = licence_of(config['pretrained_cfg'], config['lt'])
            results = summarise([record for _, record in records], digest, licence)
            (made / 'results.json').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
            write_card(made)
    except (OSError, SafetensorError) as error:
        raise ExportError(f'{folder} cannot be written: {getattr(error, "strerror", None) or error}') from error
    return results


def summarise(records: Sequence[Mapping[str, Any]], sha256: str, licence: str) -> dict[str, Any]:
    """Return what a results.json says of several seeds' scores.

    Args:
        records: the results.json of each run; the first one's weights are published.
        sha256: of those weights, hexadecimal.
        licence: of those weights.
    """
    first = records[0]
    method = method_of(first['recipe'])
    entry = entry_of(first['model'])
    usual = (entry.tag, METHODS[entry.method].trained_with, 'test', True) if entry else None
    measured = (first['data'], method, first['split'], _usual_shots(first['recipe'].get('evaluation') or {}))
    # Of all runs, and of what was trained of them before a stop.
    parts = [part for one in records for part in (one['environment'], *(one['environment'].get('earlier') or ()))]
    changed = any(not part.get('commit') or part['commit'].endswith('-dirty') for part in parts)
    if usual != measured or changed or not _is_of_recipe(first['recipe_file'], entry):
        # The zoo's network, but trained on other data, by another method, with other settings or by changed or
        # unknown files, or measured elsewhere or by other shots.
        entry = None
    counts = [row['train_count'] for row in first['per_class']]
    return {
        'name': entry.full_name if entry else first['model'],
        'hub_id': entry.hub_id if entry else None,
        'sha256': sha256,
        'data': first['data'],
        'imbalance_ratio': imbalance_ratio(np.array(counts)),
        'method': entry.method if entry else method,
        'recipe': first['recipe_file'],
        'commit': first['environment']['commit'],
        'license': licence,
        'seeds': [record['seed'] for record in records],
        'weights_seed': first['seed'],
        'scores': over_seeds(records),
        'runs': [
            {
                **{key: record[key] for key in ('seed', 'split', 'samples', *METRICS, 'training_seconds')},
                'environment': {k: v for k, v in record['environment'].items() if k != 'command'},
                'per_class': record['per_class'],
            }
            for record in records
        ],
    }


def _is_of_recipe(recipe_file: str | None, entry: ZooEntry | None) -> bool:
    """Return whether a command, as `_recipe_file` gives it, trained the recipe of the zoo, in whatever precision."""
    file, *changes = shlex.split(recipe_file or '') or ['']
    unchanged = all(word.startswith(('precision=', 'evaluation.train=')) for word in changes)
    return entry is not None and file == entry.recipe and unchanged


def over_seeds(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and values of each score; None for one that a run lacks."""
    scores: dict[str, Any] = {}
    for key in METRICS:
        values = [record[key] for record in records]
        scores[key] = None
        if None not in values:
            std = statistics.stdev(values) if len(values) > 1 else None
            # Not further than scores go, so that the same accuracies, added up otherwise, are shown alike.
            scores[key] = {'mean': round(statistics.fmean(values), 9), 'std': std, 'values': values}
    return scores


def write_card(folder: Path, to: Path | None = None) -> None:
    """Write the card of a model folder, `README.md` and `.eval_results`, from its config.json and results.json.

    Args:
        folder: the model folder.
        to: where to, if not into it, as one of the zoo's cards, which load by name; its plots are copied there.
    """
    target = to or folder
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    results = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
    results['paper'] = paper_results(results['name']) if results.get('hub_id') else None
    plots = [name for name in _PLOTS if (folder / name).is_file()]
    cfg = {**config['pretrained_cfg'], 'architecture': architecture_of(config)}
    place = PLACE if to is None else results['name']
    card = model_card(config['lt'], cfg, results=results, plots=plots, place=place)
    (target / 'README.md').write_text(card, encoding='utf-8')
    scores = eval_results(results, shots=_usual_shots(config['lt']))
    if scores is not None:
        (target / '.eval_results').mkdir(exist_ok=True)
        (target / '.eval_results' / f'{results["data"]}.yaml').write_text(scores, encoding='utf-8')
    if to is not None:
        for name in plots:
            shutil.copyfile(folder / name, to / name)


def _usual_shots(part: Mapping[str, Any]) -> bool:
    """Return whether Many, Medium and Few are told apart as everybody does."""
    usual = (MANY_ABOVE, FEW_BELOW)
    return (part.get('many_above', usual[0]), part.get('few_below', usual[1])) == usual


def _record(run: Path) -> dict[str, Any]:
    if not (run / 'recipe.yaml').is_file():
        raise ExportError(f'{run} holds no run: recipe.yaml is missing')
    if not (run / 'results.json').is_file():
        raise ExportError(
            f'the run {run} is not finished: continue it with resume=auto, or end it with stop_epoch=N too'
        )
    record = _read(run / 'results.json', _RECORD)
    _check_types(run, record)
    record['recipe_file'] = _recipe_file(record['environment'].get('command') or '')
    record['model'] = without_folders(record['model'])
    config = run / 'model' / 'config.json'
    if config.is_file():
        # The exported model's block leaves the folders of the machine out.
        record['data'] = _read(config, _TRAINING, 'lt')['data']
    return record


def _is_released(folder: Path) -> bool:
    """Tell whether a folder is one that `release` made; a run's configuration lies one folder deeper."""
    return (folder / 'config.json').is_file() and (folder / 'results.json').is_file()


def _released_records(folder: Path) -> list[dict[str, Any]]:
    """Return the record of each run that a released folder is made of, as `_record` does, the weights' first."""
    file = folder / 'results.json'
    results = _read(file, _RESULTS)
    recipe = _read(folder / 'config.json', _TRAINING, 'lt')['recipe']
    of_all = {'model': results['name'], 'data': results['data'], 'recipe': recipe, 'recipe_file': results['recipe']}
    try:
        records = [{**of_all, **run} for run in results['runs']]
    except TypeError as error:
        raise ExportError(f'{file} is damaged: its runs are not a list of scores') from error
    for record in records:
        _check_said(file, record, _RECORD)
        _check_types(folder, record)
    if [record['seed'] for record in records[:1]] != [results['weights_seed']]:
        raise ExportError(f'{file} is damaged: its first run is not the one of the weights')
    weights = folder / 'model.safetensors'
    if not weights.is_file():
        raise ExportError(f'{folder} lacks model.safetensors')
    if file_hash(weights) != results['sha256']:
        raise ExportError(f'{weights} holds other weights than {file} is of: the SHA-256 differs')
    return records


def _read(file: Path, wanted: set[str], block: str | None = None) -> dict[str, Any]:
    """Return what a JSON file, or a block of it, says.

    Raises:
        ExportError: if it is damaged or does not say all that is wanted.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        found = dict(content if block is None else content[block])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f'{file} is damaged: {error}') from error
    _check_said(file, found, wanted)
    return found


def _check_types(run: Path, record: Mapping[str, Any]) -> None:
    """Refuse a record whose values cannot be what a training wrote."""
    kinds: dict[str, Any] = {
        'model': str,
        'data': str,
        'recipe': dict,
        'environment': dict,
        'per_class': list,
        'top1': (int, float),
    }
    kinds |= {key: (int, float, NoneType) for key in METRICS if key != 'top1'}
    for key, kind in kinds.items():
        if not isinstance(record[key], kind) or (isinstance(record[key], float) and not math.isfinite(record[key])):
            raise ExportError(f'{run} is damaged: its {key} is {record[key]!r}')
    environment, rows = record['environment'], record['per_class']
    earlier = environment.get('earlier') or []
    known = {'commit', 'until_epoch'}
    parts = isinstance(earlier, list) and all(isinstance(part, dict) and known <= part.keys() for part in earlier)
    if 'commit' not in environment or not parts:
        raise ExportError(f'{run} is damaged: its environment is {str(environment)[:80]}')
    if not rows or not all(isinstance(row, dict) and isinstance(row.get('train_count'), int) for row in rows):
        raise ExportError(f'{run} is damaged: its per_class is {str(rows)[:80]}')


def _check_said(file: Path, found: Mapping[str, Any], wanted: set[str]) -> None:
    missing = sorted(wanted - found.keys())
    if missing:
        raise ExportError(f'{file} is damaged: it does not say {missing[0]}')


def _recipe_file(command: str) -> str | None:
    """Return the recipe that a command trained, with what it changed in it, less folders and the seed.

    Of the place of own data, or of a model or weights to start from, only the last part is kept.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        # With a quotation mark that is not closed it is none that the training wrote.
        return None
    # What another program makes of a recipe, it alone knows.
    if not words or PurePosixPath(words[0]).name != 'train.py':
        return None
    first = next((place for place, word in enumerate(words) if word.endswith(('.yaml', '.yml'))), None)
    if first is None:
        return None
    file = PurePosixPath(os.path.normpath(words[first]))
    changes = []
    for word in words[first + 1 :]:
        word = _LOCAL.sub(lambda name: without_folders(name[0]), word)
        key, equals, value = word.partition('=')
        if key in ('data.name', 'model.name'):
            changes.append(f'{key}{equals}{without_folders(value)}')
        elif key == 'model.checkpoint_path':
            changes.append(f'{key}{equals}{PurePosixPath(value).name}')
        elif equals and not key.startswith('-') and key not in _NOT_RECIPE:
            changes.append(word)
    if 'recipes' in file.parts:
        # Of an absolute path the zoo's own folder is kept.
        file = PurePosixPath(*file.parts[len(file.parts) - 1 - file.parts[::-1].index('recipes') :])
    quoted = [shlex.quote(word) if "'" in word else f"'{word}'" for word in changes]
    return ' '.join([shlex.quote(file.name if file.is_absolute() else str(file)), *quoted])


def _check_one_recipe(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    seeds: dict[int, Path] = {}
    for run, record in records:
        if record['seed'] in seeds:
            raise ExportError(
                f'{run} and {seeds[record["seed"]]} are both of seed {record["seed"]}: give one run for each seed'
            )
        seeds[record['seed']] = run
    if len(records) > 1:
        (first, record), *others = records
        wanted = _what_decides(first, record)
        for run, record in others:
            given = _what_decides(run, record)
            if given != wanted:
                key = _first_difference(wanted, given)
                raise ExportError(f'{run} is of another recipe than {first}: {key} differs, and only the seed may')


def _first_difference(one: Any, other: Any, key: str = '') -> str:
    """Return the whole key, such as data.name, of the first difference between two recipes."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return key
    name = next(name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name])
    return _first_difference(one.get(name), other.get(name), f'{key}.{name}'.removeprefix('.'))


def _what_decides(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's recipe, with today's defaults for what it does not say, and its class counts.

    The seed is left out, and so is where the images lie, which a released folder does not say.
    """
    try:
        # One run alone is exported without training's packages.
        # The one import against the order of the folders: training exports through this package.
        from ltzoo.training.recipe import RecipeError, check_recipe
    except ImportError as error:
        raise ExportError(
            f"recipes are compared by training's packages, {error.name} is missing: pip install 'ltzoo[train]'"
        ) from error
    try:
        recipe = as_published(check_recipe(record['recipe'], f'{run}, recipe').decides_result())
    except RecipeError as error:
        raise ExportError(str(error)) from error
    recipe['data']['name'], recipe['seed'] = record['data'], None
    return {**recipe, 'the number of training images': [row['train_count'] for row in record['per_class']]}
