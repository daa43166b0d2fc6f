"""Train the runs of a plan, several at once, and make the table of their scores; here, or on another machine.

python tools/reproduce.py PLAN.yaml [--jobs 2] [--data-dir DIR] [--only NAME ...] [--seeds S ...] [--minutes M]
python tools/reproduce.py PLAN.yaml --pack DIR [--python 3.12 --with PACKAGE ...]     for a machine without a network
python tools/reproduce.py PLAN.yaml --archive FILE.tar.gz                             there: what is worth bringing home
python tools/reproduce.py PLAN.yaml --collect FILE.tar.gz ...                         at home: put it in its place

The same command goes on where it was stopped. A plan names recipes (paths relative to it), what to change in each, and
the seeds that all of them are trained with; seeds come one after the other, so that an early table compares everything:

    output: runs/cifar10_study
    seeds: [0, 1, 2]
    runs:
      base: {recipe: ../study/cifar10_bs.yaml}
      both: {recipe: ../study/cifar10_bs.yaml, overrides: ['method.groups=4']}

Every run has its folder OUTPUT/NAME_seedS; OUTPUT/table.md and OUTPUT/table.json, of all that is finished of the plan,
are made anew after each.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ltzoo.errors import LtzooError

if TYPE_CHECKING:
    from ltzoo.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SCORES = {'top1': 'top-1', 'many': 'Many', 'medium': 'Medium', 'few': 'Few', 'train_top1': 'training images'}
# Seconds that a training has between being asked to stop and being killed.
GRACE = 15


class PlanError(LtzooError, ValueError):
    """A plan that cannot be used; the message names the key and what would be right."""


class PlannedRun(BaseModel):
    """One row of the table: a recipe and what is changed in it."""

    model_config = ConfigDict(extra='forbid', frozen=True)
    recipe: Path
    overrides: tuple[str, ...] = ()


class Plan(BaseModel):
    """Which recipes are trained with which seeds."""

    model_config = ConfigDict(extra='forbid', frozen=True)
    output: Path
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    runs: dict[str, PlannedRun] = Field(min_length=1)

    @field_validator('output')
    @classmethod
    def _at_home(cls, output: Path) -> Path:
        return output.expanduser()

    @field_validator('runs')
    @classmethod
    def _names_of_folders(cls, runs: dict[str, PlannedRun]) -> dict[str, PlannedRun]:
        for name in runs:
            if name != Path(name).name:
                raise ValueError(f'{name!r} is to be the name of a folder: leave out the slash')
        return runs

    def folder(self, name: str, seed: int) -> Path:
        return self.output / f'{name}_seed{seed}'


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    seed: int
    command: list[str]
    folder: Path
    recipe: Recipe

    @property
    def finished(self) -> bool:
        return (self.folder / 'results.json').exists()


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=Path)
    parser.add_argument('--jobs', type=int, default=1, help='trainings at once, on the one device (default: 1)')
    parser.add_argument('--data-dir', help='where the data lies (default: as the recipes say)')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these runs of the plan, in this order')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='S', help='only these seeds of the plan, in this order')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in all recipes')
    parser.add_argument('--minutes', type=float, metavar='M', help='stop after this time, to be continued')
    parser.add_argument('--archive', type=Path, metavar='FILE', help='at the end, put the runs into FILE-1.tar.gz, ...')
    parser.add_argument('--max-mb', type=float, default=15, help='size of one file of the archive (default: 15)')
    parser.add_argument('--with-unfinished', action='store_true', help='archive checkpoints of unfinished runs too')
    parser.add_argument('--python', metavar='VERSION', help="--with: the other machine's Python (default: as here)")
    parser.add_argument(
        '--with', dest='packages', nargs='+', default=(), metavar='PACKAGE', help='--pack: wheels to bring along'
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--table', action='store_true', help='train nothing, make the table of what is finished')
    instead.add_argument('--pack', type=Path, metavar='DIR', help='train nothing, pack what another machine needs')
    instead.add_argument('--collect', nargs='+', type=Path, metavar='FILE', help='train nothing, bring runs home')
    args = parser.parse_args()
    try:
        check_options(args)
        plan = load_plan(args.plan)
        jobs = plan_jobs(plan, args.plan.parent, args.only, args.data_dir, args.set, args.seeds)
        if args.pack:
            print(pack_plan(plan, args.plan, jobs, args.pack, args.packages, args.python))
            return 0
        if args.collect:
            bring_home(jobs, plan.output, args.collect)
        # Training makes it anew after each run; what it refuses is refused before hours of that.
        write_table(plan)
        stopped = []
        if not (args.table or args.collect):
            stopped = train(jobs, args.jobs, plan, None if args.minutes is None else started + 60 * args.minutes)
        print(format_table(summarise_all(finished(plan, args.only, args.seeds))))
        if args.archive:
            archive(jobs, args.archive, args.max_mb, args.with_unfinished)
    except LtzooError as error:
        print(f'reproduce.py: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nstopped: the same command goes on from the last checkpoints', file=sys.stderr)
        return 130
    failed = [job for job, code in stopped if code not in (0, None)]
    unfinished = [f'{job.name} with seed {job.seed}' for job, code in stopped if code is None]
    if unfinished:
        print(f'out of time, the same command goes on with: {", ".join(unfinished)}')
    for job in failed:
        print(f'failed: {job.name} with seed {job.seed}, see {log_of(job)}', file=sys.stderr)
    return 1 if failed else 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing, before anything is done."""
    if args.jobs < 1:
        raise PlanError(f'--jobs must be 1 or more, not {args.jobs}')
    if args.minutes is not None and not args.minutes > 0:
        raise PlanError(f'--minutes must be above 0, not {args.minutes:g}')
    if (args.packages or args.python) and not args.pack:
        raise PlanError('--with and --python say what to pack: give --pack DIR too')
    if args.python and not args.packages:
        raise PlanError('--python says which wheels to bring along: name them, --with PACKAGE')
    if args.archive:
        from ltzoo.training.archive import check_archive

        if args.pack:
            raise PlanError('--archive brings runs back, --pack trains none: give one of them')
        check_archive(args.archive, args.max_mb)
    elif args.with_unfinished:
        raise PlanError('--with-unfinished says what to archive: give --archive FILE.tar.gz too')


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: if it is missing, not YAML, or a key is unknown, missing or of the wrong type.
    """
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f'{path} cannot be read as a plan: {" ".join(str(error).split())}') from error
    except ValidationError as error:
        first = error.errors()[0]
        key = '.'.join(map(str, first['loc'])) or 'the file'
        raise PlanError(f'{path}: {key}: {first["msg"]}') from error


def plan_jobs(
    plan: Plan,
    folder: Path,
    only: Sequence[str] | None,
    data_dir: str | None,
    changes: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> list[Job]:
    """Return the plan's trainings, those of the first seed first; every recipe is read before anything is trained.

    Args:
        plan: what to train.
        folder: that the plan's recipes are relative to.
        only: names of runs, in the order to train them in; None for all.
        data_dir: where the data lies, if not where the recipes say.
        changes: `key=value`, what is changed in all recipes.
        seeds: those to train, in order; None for all of the plan.

    Raises:
        PlanError: if `only` names a run, or `seeds` a seed, that the plan does not have.
        RecipeError: if a recipe or an override cannot be used.
        CheckpointError: if a run's folder holds something else.
    """
    from ltzoo.training.recipe import load_recipe
    from ltzoo.training.run import RunFolder

    for name in only or ():
        if name not in plan.runs:
            near = difflib.get_close_matches(name, plan.runs, n=1)
            hint = f'did you mean {near[0]}?' if near else f'it has {", ".join(plan.runs)}'
            raise PlanError(f'--only: the plan has no run {name}; {hint}')
    for seed in seeds or ():
        if seed not in plan.seeds:
            raise PlanError(f'--seeds: the plan has no seed {seed}; it has {", ".join(map(str, plan.seeds))}')
    jobs = []
    for seed in dict.fromkeys(seeds or plan.seeds):
        for name in dict.fromkeys(only or plan.runs):
            run = plan.runs[name]
            output = plan.folder(name, seed)
            overrides = [*run.overrides, *changes, f'seed={seed}', f'output={output}', 'resume=auto']
            if data_dir is not None:
                overrides.append(f'data.data_dir={data_dir}')
            recipe = load_recipe(folder / run.recipe, overrides)
            RunFolder(output).check(recipe)
            command = [sys.executable, str(ROOT / 'recipes/train.py'), str(folder / run.recipe), *overrides]
            jobs.append(Job(name, seed, [*command, '--no-progress'], output, recipe))
    return jobs


def train(jobs: list[Job], at_once: int, plan: Plan, deadline: float | None = None) -> list[tuple[Job, int | None]]:
    """Run every training that is not finished; each one's output goes to its log.

    Args:
        jobs: the trainings.
        at_once: how many run at a time.
        plan: that they are of.
        deadline: on the clock of `time.monotonic`: all trainings have ended by then.

    Returns:
        The exit code of each, None for those that the deadline stopped or kept from starting.
    """
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f'output: {plan.output} cannot be made: {error.strerror}') from error
    threads = os.environ.get('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // at_once)))
    environment = {**os.environ, 'OMP_NUM_THREADS': threads}
    stopped = threading.Event()
    lock = threading.Lock()
    waiting = [job for job in jobs if not job.finished]
    print(f'{len(jobs) - len(waiting)} of {len(jobs)} trainings are finished', flush=True)
    last_call = None if deadline is None else deadline - min(GRACE, (deadline - time.monotonic()) / 4)
    if deadline is not None and threading.current_thread() is threading.main_thread():
        # What runs in the background may ignore Ctrl-C, and what it starts then does too; it is how they are stopped.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(job: Job) -> int | None:
        if stopped.is_set():
            return 130
        if last_call is not None and time.monotonic() >= last_call:
            return None
        with open(log_of(job), 'w') as log:
            process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            code = wait(process, last_call, deadline)
        # Ctrl-C reaches the trainings too, and one may have ended before this process hears of it.
        if code in (130, -signal.SIGINT):
            stopped.set()
        with lock:
            if not stopped.is_set():
                write_table(plan)
                ending = 'out of time' if code is None else f'exit code {code}' if code else 'finished'
                print(f'{job.name}, seed {job.seed}: {ending}', flush=True)
        return code

    with ThreadPoolExecutor(at_once) as pool:
        try:
            codes = list(pool.map(run, waiting))
        except KeyboardInterrupt:
            stopped.set()
            raise
    if stopped.is_set():
        raise KeyboardInterrupt
    return list(zip(waiting, codes, strict=True))


def wait(process: subprocess.Popen[bytes], last_call: float | None, deadline: float | None) -> int | None:
    """Return the exit code, or None if the process had to be stopped: by Ctrl-C, by force where that does not help."""
    if last_call is None or deadline is None:
        return process.wait()
    try:
        return process.wait(max(0.0, last_call - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        # It may just have finished.
        return None if process.wait(max(0.0, deadline - time.monotonic())) else 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def pack_plan(
    plan: Plan, path: Path, jobs: list[Job], folder: Path, packages: Sequence[str], python: str | None
) -> str:
    """Pack the plan's chosen runs and return what takes how much."""
    from ltzoo.training.pack import check_recipe_files, pack, untracked

    names = list(dict.fromkeys(job.name for job in jobs))
    recipes = check_recipe_files(ROOT, [path.parent / plan.runs[name].recipe for name in names])
    runs = {
        name: {'recipe': str(recipe), 'overrides': list(plan.runs[name].overrides)}
        for name, recipe in zip(names, recipes, strict=True)
    }
    there = {
        'output': str(Path('runs', plan.output.name)),
        'seeds': list(dict.fromkeys(job.seed for job in jobs)),
        'runs': runs,
    }
    text = yaml.safe_dump(there, sort_keys=False, width=120)
    for name in untracked(ROOT):
        print(f'not packed, as git does not track it: {name}', file=sys.stderr)
    sizes = pack(
        folder, ROOT, text, [job.recipe for job in jobs], title=f'Packed: {path.stem}', packages=packages, python=python
    )
    told = ', '.join(f'{part} {size / 1e6:.1f} MB' for part, size in sizes.items() if size)
    return f'{folder}: {sum(sizes.values()) / 1e6:.1f} MB ({told}); its README.md has the command to run there'


def bring_home(jobs: list[Job], output: Path, archives: Sequence[Path]) -> None:
    """Unpack archives into the plan's output."""
    from ltzoo.training.archive import collect

    for name, what in collect(archives, output, {job.folder.name: job.recipe for job in jobs}).items():
        print(f'{name}: {what}')


def archive(jobs: list[Job], file: Path, megabytes: float, to_continue: bool) -> None:
    """Write what is worth bringing home."""
    from ltzoo.training.archive import write_archive

    for part in write_archive(file, [job.folder for job in jobs], megabytes=megabytes, to_continue=to_continue):
        print(f'{part}: {part.stat().st_size / 1e6:.1f} MB')


def log_of(job: Job) -> Path:
    return job.folder.with_name(f'{job.folder.name}.log')


def finished(
    plan: Plan, only: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, dict[int, Path]]:
    """Return the folders of the plan's finished trainings by name and seed, in order; `only` and `seeds` choose."""
    rows = {}
    for name in only or plan.runs:
        folders = {seed: plan.folder(name, seed) for seed in seeds or plan.seeds}
        rows[name] = {seed: folder for seed, folder in folders.items() if (folder / 'results.json').exists()}
    return {name: folders for name, folders in rows.items() if folders}


def write_table(plan: Plan) -> None:
    """Write the table of all that is finished of a plan.

    Raises:
        LtzooError: if it cannot be written, or results are damaged.
    """
    from ltzoo.files import write_atomically, writing

    summaries = summarise_all(finished(plan))
    if summaries:
        with writing(plan.output / 'table.md'):
            write_atomically(plan.output / 'table.md', format_table(summaries) + '\n')
            write_atomically(plan.output / 'table.json', json.dumps(summaries, indent=2) + '\n')


def format_table(summaries: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: mean and standard deviation over seeds."""
    if not summaries:
        return 'no training is finished yet'
    columns = [key for key in SCORES if any(summary[key] is not None for summary in summaries)]
    lines = ['| | seeds | ' + ' | '.join(SCORES[key] for key in columns) + ' | minutes |']
    lines.append('|---' * (len(columns) + 3) + '|')
    for summary in summaries:
        seeds = f'{len(summary["seeds"])}{"" if summary["alike"] else ", recipes differ"}'
        cells = [summary['name'], seeds, *(format_mean(summary[key]) for key in columns)]
        lines.append(f'| {" | ".join(cells)} | {format_mean(summary["minutes"], deviation=False)} |')
    of_method = [summary for summary in summaries if summary['method']]
    if of_method:
        lines += ['', '| | length of the perturbation | penalty to loss gradient | sizes of groups | classes moved |']
        lines.append('|---|---|---|---|---|')
        for summary in of_method:
            said = summary['method']
            lines.append(
                f'| {summary["name"]} | {format_number(said["perturbation"])} | '
                f'{format_number(said["penalty_to_loss_gradient"])} | {said["group_sizes"] or "-"} | '
                f'{format_number(said["classes_moved"])} |'
            )
    return '\n'.join(lines)


def summarise_all(rows: dict[str, dict[int, Path]]) -> list[dict[str, Any]]:
    return [summarise(name, folders) for name, folders in rows.items()]


def summarise(name: str, folders: dict[int, Path]) -> dict[str, Any]:
    """Return mean and deviation of every score over a run's finished seeds, and what its log says of the method.

    `alike` says whether the seed is all that they differ in: they may have been trained with other `--set`.
    """
    from ltzoo.training.run import RunFolder

    runs = [RunFolder(folder) for folder in folders.values()]
    results = [read_results(run.results) for run in runs]
    recipes = [{**result.get('recipe', {}), 'seed': None} for result in results]
    summary: dict[str, Any] = {
        'name': name,
        'seeds': list(folders),
        'alike': all(recipe == recipes[0] for recipe in recipes),
    }
    for key in SCORES:
        summary[key] = mean_and_deviation([result.get(key) for result in results])
    summary['minutes'] = mean_and_deviation([result['training_seconds'] / 60 for result in results])
    logs = [[line['method'] for line in run.read_log() if 'method' in line] for run in runs]
    summary['method'] = summarise_method(logs)
    return summary


def read_results(file: Path) -> dict[str, Any]:
    """Return a run's results.

    Raises:
        PlanError: if they are damaged.
    """
    try:
        results = json.loads(file.read_text())
        float(results['training_seconds'])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PlanError(f'{file} is damaged: remove its folder, to train the run again') from error
    return results


def summarise_method(logs: list[list[dict[str, Any]]]) -> dict[str, Any]:
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


def mean_and_deviation(values: list[float | None]) -> list[float] | None:
    """Return [mean, sample standard deviation], only the mean of a single value, None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return [statistics.mean(known), *([statistics.stdev(known)] if len(known) > 1 else [])]


def format_mean(value: list[float] | None, *, deviation: bool = True) -> str:
    if value is None:
        return '-'
    return f'{value[0]:.1f}' + (f' ± {value[1]:.1f}' if deviation and len(value) > 1 else '')


def format_number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2g}'


if __name__ == '__main__':
    sys.exit(main())
