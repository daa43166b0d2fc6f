"""Scores, size and speed of many models on many data sets, with a leaderboard; goes on where it was stopped."""

from __future__ import annotations

import argparse
import functools
import sys

from ltzoo.command_line import file_name


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--models', nargs='+', required=True, metavar='MODEL', help='names or wildcards, with weights')
    parser.add_argument('--data', nargs='+', required=True, metavar='DATA', help='names of data sets')
    parser.add_argument('--output', type=file_name, required=True, metavar='DIR', help='new, or of an earlier call')
    parser.add_argument('--batch-size', type=int, default=256, help='halved where memory runs out')
    parser.add_argument('--device', help='cpu, cuda, mps (default: cuda where there is one, else cpu)')
    parser.add_argument('--rerun', action='store_true', help='also measure what is done')
    parser.add_argument('--data-dir', help='where the files of the data sets are')


def bench(args: argparse.Namespace) -> int:
    """Measure many models; the exit code is 1 if one failed."""
    from ltzoo.evaluation.benchmark import benchmark_models, choose_models

    try:
        rows = benchmark_models(
            choose_models(args.models),
            args.data,
            args.output,
            data_dir=args.data_dir,
            batch_size=args.batch_size,
            device=args.device,
            threads=args.threads,
            rerun=args.rerun,
            say=functools.partial(print, flush=True),
        )
    except KeyboardInterrupt:
        print('\nstopped: the same command goes on with what is missing', file=sys.stderr)
        return 130
    print(f'{args.output / "leaderboard.html"}, results.csv and results.json')
    return int(any(row['status'] == 'failed' for row in rows))
