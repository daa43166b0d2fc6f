"""Many models on many data sets, one process for each pair, and the tables of what came out.

rows/*.json         one for each pair that is done; a later call leaves it out
results.csv, results.json, leaderboard.html
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ltzoo.data import ArrayImages, Dataset, load_data, takes_data_dir
from ltzoo.data.sources.hf import HubImages
from ltzoo.errors import LtzooError, did_you_mean
from ltzoo.evaluation.benchmark_one import FAILED, OUT_OF_MEMORY, UNFIT
from ltzoo.evaluation.evaluate import usable_device
from ltzoo.evaluation.leaderboard import leaderboard
from ltzoo.evaluation.metrics import SCORES
from ltzoo.evaluation.trained_on import EvaluationError, TrainedOn, resolve_model
from ltzoo.files import LOCK, alone, write_atomically, writing
from ltzoo.models import get_pretrained_cfg, list_pretrained
from ltzoo.models.download import DownloadError, file_hash
from ltzoo.models.entries import entry_of, get_results, method_of
from ltzoo.models.lt_zoo import METHODS, ZOO
from ltzoo.models.paper_results import PAPER_RESULTS

__all__ = ['COLUMNS', 'BenchmarkError', 'benchmark_models', 'choose_models']

COLUMNS = (
    *('model', 'data', 'method', 'status', *SCORES),
    *('parameters', 'gmacs', 'images_per_second', 'memory_mb', 'batch_size', 'device', 'threads', 'torch', 'reason'),
)


_STATUS = {0: 'ok', UNFIT: 'skipped', FAILED: 'failed'}


class BenchmarkError(LtzooError, ValueError):
    """A list of models or a folder that cannot be used."""


def choose_models(patterns: Sequence[str]) -> list[str]:
    """Return the models that patterns stand for, each once, in order.

    Args:
        patterns: wildcards of the zoo's names with published weights (`resnet32*`), or single models: zoo names,
            `timm/NAME`, `hf-hub:ORG/NAME`, `local-dir:PATH`, folders of runs.

    Raises:
        BenchmarkError: if one stands for nothing; the message gives the nearest name.
        UnknownModelError: if timm has no such model.
        EvaluationError: if a folder is no finished run.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        if pattern.startswith('timm/'):
            get_pretrained_cfg(pattern)
            found = [pattern]
        elif ':' in pattern or '/' in pattern or os.path.isdir(pattern):
            _check_place(pattern)
            found = [pattern]
        else:
            # A name without its tag stands for the default one.
            entry = entry_of(pattern)
            found = list_pretrained(entry.full_name if entry else pattern)
        if not found:
            hint = did_you_mean(pattern, list_pretrained(), cutoff=0, otherwise='')
            raise BenchmarkError(f'{pattern} matches no model with published weights{hint}')
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _check_place(name: str) -> None:
    """Raise an error where a folder is no run and no model, or a name has none of the forms that models come in."""
    kind, _, place = resolve_model(name).partition(':')
    if kind == 'local-dir':
        # A typing error in one of many is said before hours of measuring.
        if not os.path.isfile(os.path.join(place, 'config.json')):
            raise BenchmarkError(f'{place} holds no exported model: config.json is missing')
    elif kind != 'hf-hub' or not re.fullmatch(r'[\w.-]+/[\w.-]+(@.+)?', place):
        raise BenchmarkError(f'{name} is neither a folder, nor local-dir:PATH, nor hf-hub:ORG/NAME[@REVISION]')


def benchmark_models(
    models: Sequence[str],
    data: Sequence[str],
    output: Path,
    *,
    data_dir: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
    threads: int | None = None,
    rerun: bool = False,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure every model on every data set, and write the tables anew after each.

    The tables also have the pairs that earlier calls measured into the same folder; with other weights in a model's
    folder, other images, another `data_dir`, `batch_size`, `device` or `threads`, a pair is measured anew. A pair that
    runs out of memory is tried again with half the batch; one that fails is recorded with the reason and tried again by
    the next call.

    Shots have their usual thresholds, whatever a model was trained with, so that all are measured alike. What a
    measurement warns of goes to stderr, each line once.

    Args:
        output: a folder, new or of an earlier call.
        rerun: also measure what is done.
        say: takes a line for each pair.

    Returns:
        The rows of these pairs, with the keys of `COLUMNS`; `status` is `ok`, `skipped` (the model is not for this
        data) or `failed`.

    Raises:
        BenchmarkError: if the folder holds something else, or cannot be made or written.
        BusyError: if another process is at it, such as the measurement of a call that was killed.
        LtzooError: if a data set cannot be loaded, or the device cannot be used.
    """
    if device:
        usable_device(device)
    # What no model can be measured on is said before anything is.
    data = list(dict.fromkeys(data))
    # One that names its own place has no other.
    places = {name: data_dir if takes_data_dir(name) else None for name in data}
    images = {name: _images_of(load_data(name, places[name])) for name in data}
    rows_folder = output / 'rows'
    if output.exists() and not output.is_dir():
        raise BenchmarkError(f'{output} is a file; give a folder')
    if output.is_dir() and not rows_folder.is_dir() and any(path.name != LOCK for path in output.iterdir()):
        raise BenchmarkError(f'{output} is not empty and holds no benchmark; give another folder')
    options = ['--device', device] if device else []
    options += ['--threads', str(threads)] if threads else []
    asked_of_all = {
        'data_dir': data_dir and os.path.abspath(data_dir),
        'batch_size': batch_size,
        'device': device,
        'threads': threads,
    }
    rows: list[dict[str, Any]] = []
    told: set[str] = set()
    lock: list[int] = []
    pairs = [(model, name) for name in data for model in models]
    with ExitStack() as held:
        try:
            rows_folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(output, on_acquired=lock.append))
        except OSError as error:
            raise BenchmarkError(f'{output} cannot be written: {error.strerror}; give another folder') from error
        done = _read_rows(rows_folder)
        others = [_listed(row) for pair, row in done.items() if pair not in pairs]
        weights = {model: _weights_of(model) for model in models}
        for number, (model, name) in enumerate(pairs, start=1):
            file = rows_folder / f'{_slug(model, name)}.json'
            asked = {**asked_of_all, 'images': images[name], 'weights': weights[model]}
            row, earlier = None if rerun else done.get((model, name)), ' (measured earlier)'
            if row is None or row['status'] == 'failed' or row.get('asked') != asked:
                entry, earlier = entry_of(model), ''
                row = {'model': model, 'data': name, 'method': entry.method if entry else _method_of(model)}
                place = [f'--data-dir={places[name]}'] if places[name] else []
                part = file.with_suffix('.part')
                measured = _measure_apart(model, name, part, batch_size, [*place, *options], told, lock)
                row.update(measured, asked=asked)
                with writing(file):
                    write_atomically(file, json.dumps(row, indent=1) + '\n')
            rows.append(_listed(row))
            result = f'{row["top1"]:.2f}' if row['status'] == 'ok' else f'{row["status"]}: {row["reason"]}'
            say(f'[{number}/{len(pairs)}] {model} on {name}: {result}{earlier}')
            # Those of this call that are still to come, too: it may be stopped before.
            later = [_listed(done[pair]) for pair in pairs[number:] if pair in done]
            with writing(output):
                _write_tables([*rows, *later, *others], output)
    return rows


def _read_rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what earlier calls measured, by model and data; what is damaged counts as not measured."""
    rows = {}
    for file in sorted(folder.glob('*.json')):
        try:
            row = json.loads(file.read_text(encoding='utf-8'))
            if row['status'] in _STATUS.values():
                rows[row['model'], row['data']] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in COLUMNS}


def _measure_apart(
    model: str, data: str, out: Path, batch_size: int, options: Sequence[str], told: set[str], lock: Sequence[int]
) -> dict[str, Any]:
    """Return what a process of its own measures, and say what it warns of that is not told yet.

    It inherits the descriptors of `lock`: where this process is killed, nothing is timed beside it.
    """
    out.unlink(missing_ok=True)
    while True:
        command = [sys.executable, '-m', 'ltzoo.evaluation.benchmark_one', model, data, str(out.resolve())]
        child = subprocess.Popen(
            [*command, '--batch-size', str(batch_size), *options], stderr=subprocess.PIPE, text=True, pass_fds=lock
        )
        try:
            _, errors = child.communicate()
        except BaseException:
            child.kill()
            child.wait()
            out.unlink(missing_ok=True)
            raise
        code = child.returncode
        if code in _STATUS and out.exists():
            row: dict[str, Any] = json.loads(out.read_text(encoding='utf-8'))
            out.unlink()
            if code == 0:
                for line in errors.splitlines():
                    if line not in told:
                        print(line, file=sys.stderr, flush=True)
                        told.add(line)
            return {'status': _STATUS[code], **row}
        # The kernel kills what takes too much.
        if code in (OUT_OF_MEMORY, -signal.SIGKILL) and batch_size > 1:
            batch_size //= 2
            continue
        last = (errors.strip().splitlines() or [f'it ended with code {code}'])[-1]
        reason = 'out of memory with one image a batch' if code in (OUT_OF_MEMORY, -signal.SIGKILL) else last
        return {'status': 'failed', 'reason': reason}


def _method_of(model: str) -> str | None:
    """Return the method that a saved model was trained with, by the zoo's name if it has one; None if nothing says."""
    try:
        recipe = TrainedOn(model).lt['recipe']
        trained_with, of_zoo = method_of(recipe), entry_of(recipe['model']['name'])
    except (KeyError, TypeError, AttributeError, EvaluationError, DownloadError):
        return None
    if of_zoo and METHODS[of_zoo.method].trained_with == trained_with:
        return of_zoo.method
    # Sharpness and preservation have settings, which a name of the zoo would promise.
    plain = {METHODS[name].trained_with: name for name in ('ce', 'focal', 'bs', 'bcl')}
    return plain.get(trained_with, trained_with)


def _weights_of(model: str) -> str | None:
    """Return the SHA-256 of weights that may have been made anew: the zoo's, or those in a folder; else None."""
    entry = entry_of(model)
    if entry is not None:
        return str(get_results(model)['sha256']) if entry.folder else None
    kind, _, place = resolve_model(model).partition(':')
    weights = Path(place, 'model.safetensors')
    return file_hash(weights) if kind == 'local-dir' and weights.is_file() else None


def _images_of(dataset: Dataset) -> str:
    """Return what tells the test images, and the class counts that shots go by, from others of the same name."""
    digest = hashlib.sha256(dataset.test.digest().encode() + dataset.class_counts.tobytes())
    if isinstance(dataset.test.images, ArrayImages):
        # Arrays have no names, and a file of them can be written anew.
        digest.update(dataset.test.images.array.tobytes())
    else:
        digest.update(repr([_written(dataset.test.images.name(i)) for i in range(len(dataset.test))]).encode())
    if isinstance(dataset.test.images, HubImages):
        # What the library itself tells contents by; its images are in no files of their own.
        digest.update(str(getattr(dataset.test.images.table, '_fingerprint', None)).encode())
    return digest.hexdigest()


def _written(name: str) -> tuple[int, int] | None:
    """Return size and time of a file, which may be written anew under its name; of what is no file, None."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _slug(model: str, data: str) -> str:
    readable = re.sub(r'[^\w.-]+', '-', f'{model}--{data}').strip('-')[-80:]
    return f'{readable}-{hashlib.sha256(os.fsencode(f"{model}|{data}")).hexdigest()[:8]}'


def _write_tables(rows: list[dict[str, Any]], output: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    shown = {row['data'] for row in rows}
    papers = [
        {'model': name, 'data': ZOO[name].tag, 'method': ZOO[name].method, **result}
        for name, result in PAPER_RESULTS.items()
        if ZOO[name].tag in shown
    ]
    write_atomically(output / 'results.csv', text.getvalue())
    write_atomically(output / 'results.json', json.dumps({'rows': rows, 'papers': papers}, indent=1) + '\n')
    write_atomically(output / 'leaderboard.html', leaderboard(rows, papers))
