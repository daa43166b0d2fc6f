"""Train the runs of a plan, several at once, and make the table of their scores; here, or on another machine.

python tools/reproduce.py PLAN.yaml [--jobs 2] [--data-dir DIR] [--only NAME ...] [--seeds S ...] [--minutes M]
python tools/reproduce.py PLAN.yaml --pack DIR [--python 3.12 --with PACKAGE ...]  for a machine without a network
python tools/reproduce.py PLAN.yaml --archive FILE.tar.gz                          there: pack the runs to copy back
python tools/reproduce.py PLAN.yaml --collect FILE.tar.gz ...                      here: unpack them into its output

The same command goes on where it was stopped. A plan names recipes (paths relative to it), what to change in each, and
the seeds that all of them are trained with; seeds come one after the other, so that an early table compares everything:

    output: runs/cifar10_study
    seeds: [0, 1, 2]
    runs:
      base: {recipe: ../study/cifar10_bs.yaml}
      both: {recipe: ../study/cifar10_bs.yaml, overrides: ['method.groups=4']}

Every run has its folder OUTPUT/NAME_seedS; OUTPUT/table.md and OUTPUT/table.json, of all that is finished of the plan,
are rewritten after each. A run that has diverged is not begun again, until its folder is removed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# What follows may take a minute on a busy machine.
STARTED = time.monotonic()

from ltzoo.command_line import at_least, command_line, file_name  # noqa: E402

if TYPE_CHECKING:
    from ltzoo.plans.plan import Job, Plan

ROOT = Path(__file__).resolve().parents[1]


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', type=file_name, help='YAML file of the plan')
    parser.add_argument('--jobs', type=int, default=1, help='trainings at once, on the one device (default: 1)')
    parser.add_argument('--data-dir', help='where the data lies (default: as the recipes say)')
    parser.add_argument('--output', type=file_name, metavar='DIR', help="where the runs go (default: the plan's)")
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these runs of the plan, in this order')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='S', help='only these seeds of the plan, in this order')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in all recipes')
    parser.add_argument('--minutes', type=float, metavar='M', help='stop after this time, to be continued')
    parser.add_argument(
        '--archive', type=file_name, metavar='FILE', help='at the end, put the runs into FILE-1.tar.gz, ...'
    )
    parser.add_argument(
        '--max-mb', type=float, default=15, help='largest size of one archive file, in MB (default: 15)'
    )
    parser.add_argument('--with-unfinished', action='store_true', help='archive checkpoints of unfinished runs too')
    parser.add_argument(
        '--python',
        metavar='VERSION',
        help="with --with: Python version of the other machine, such as 3.12 (default: this one's)",
    )
    parser.add_argument(
        '--with',
        dest='packages',
        nargs='+',
        default=(),
        metavar='PACKAGE',
        help='with --pack: packages whose wheels to include',
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--table', action='store_true', help='train nothing, make the table of what is finished')
    instead.add_argument('--pack', type=file_name, metavar='DIR', help='train nothing, pack what another machine needs')
    instead.add_argument(
        '--collect', nargs='+', type=file_name, metavar='FILE', help='train nothing, unpack archived runs'
    )
    args = parser.parse_args()
    try:
        return run(args)
    except KeyboardInterrupt:
        print('\nstopped: the same command goes on from the last checkpoints', file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    # Here, so that what is missing of training's packages is told in a sentence.
    from ltzoo.plans.archive import collect, write_archive
    from ltzoo.plans.plan import load_plan, plan_jobs
    from ltzoo.plans.run import train
    from ltzoo.plans.table import format_table, summarise, write_table

    check_options(args)
    plan = load_plan(args.plan, args.output)
    jobs = plan_jobs(
        plan,
        args.plan.parent,
        ROOT / 'recipes/train.py',
        args.only,
        args.data_dir,
        args.set,
        args.seeds,
        into_folders=not args.table,
    )
    if args.pack:
        write_pack(args, plan, jobs)
        return 0
    if args.collect:
        for name, what in collect(args.collect, plan.output, {job.folder.name: job.recipe for job in jobs}).items():
            print(f'{name}: {what}')
    # Training makes it anew after each run; what it refuses is refused before hours of that.
    write_table(plan)
    stopped: Sequence[tuple[Job, int | None]] = ()
    if not (args.table or args.collect):
        stopped = train(jobs, args.jobs, plan, None if args.minutes is None else STARTED + 60 * args.minutes)
    print(format_table(summarise(plan, args.only, args.seeds)))
    left_out: list[str] = []
    if args.archive:
        folders = [job.folder for job in jobs]
        files, left_out = write_archive(args.archive, folders, megabytes=args.max_mb, to_continue=args.with_unfinished)
        for file in files:
            print(f'{file}: {file.stat().st_size / 1e6:.1f} MB')
    diverged = [] if args.table or args.collect else [job for job in jobs if job.diverged]
    failed = [job for job, code in stopped if code not in (0, None) and job not in diverged]
    unfinished = [f'{job.name} with seed {job.seed}' for job, code in stopped if code is None]
    if unfinished:
        print(f'out of time, the same command goes on with: {", ".join(unfinished)}')
        if args.archive and not args.with_unfinished:
            print('their checkpoints are not in the archive, where they would be with --with-unfinished')
    for sentence in left_out:
        print(f'not archived: {sentence}', file=sys.stderr)
    for job in diverged:
        print(
            f'diverged: {job.name} with seed {job.seed}, see {job.log}; not begun again unless you remove {job.folder}',
            file=sys.stderr,
        )
    for job in failed:
        print(f'failed: {job.name} with seed {job.seed}, see {job.log}', file=sys.stderr)
    return 1 if diverged or failed or left_out else 0


def write_pack(args: argparse.Namespace, plan: Plan, jobs: Sequence[Job]) -> None:
    """Pack what another machine needs, and say how large its parts are."""
    from ltzoo.plans.pack import pack, untracked

    for name in untracked(ROOT):
        print(f'not packed, as git does not track it: {name}', file=sys.stderr)
    sizes = pack(args.pack, ROOT, plan, args.plan, jobs, changes=args.set, packages=args.packages, python=args.python)
    told = ', '.join(f'{part} {size / 1e6:.1f} MB' for part, size in sizes.items() if size)
    whole = sum(sizes.values()) / 1e6
    print(f'{args.pack}: {whole:.1f} MB ({told}); its README.md has the command to run there')


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing, before anything is done."""
    from ltzoo.plans.archive import check_archive
    from ltzoo.plans.plan import PlanError

    at_least('--jobs', args.jobs, 1)
    if args.minutes is not None and not args.minutes > 0:
        raise PlanError(f'--minutes must be above 0, not {args.minutes:g}')
    if (args.packages or args.python) and not args.pack:
        raise PlanError('--with and --python say what to pack: give --pack DIR too')
    if args.python and not args.packages:
        raise PlanError('--python says which wheels to bring along: name them, --with PACKAGE')
    if args.archive:
        if args.pack:
            raise PlanError('--archive brings runs back, --pack trains none: give one of them')
        check_archive(args.archive, args.max_mb)
    elif args.with_unfinished:
        raise PlanError('--with-unfinished says what to archive: give --archive FILE.tar.gz too')


if __name__ == '__main__':
    sys.exit(main())
