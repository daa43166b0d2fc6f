"""`import ltzoo` against `import timm`, and a saved model loaded by ltzoo and by timm."""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.timing import environment, in_turn


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='timm/resnet50', help='which is saved and loaded')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time imports in processes of their own, and loading a saved model in this one."""
    import timm
    import torch

    import ltzoo

    def run(package: str) -> None:
        subprocess.run([sys.executable, '-c', f'import {package}'], check=True)

    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(ltzoo.create_model(args.model), folder, safe_serialization=True)
        name = f'local-dir:{folder}'
        times = in_turn(
            {
                'import timm': functools.partial(run, 'timm'),
                'import ltzoo': functools.partial(run, 'ltzoo'),
                'loaded by timm': functools.partial(timm.create_model, name, pretrained=True),
                'loaded by ltzoo': functools.partial(ltzoo.create_model, name, pretrained=True),
            },
            args.rounds,
            time.perf_counter,
        )
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f'{args.model}, threads: {torch.get_num_threads()}, median of {args.rounds} rounds')
    for key, value in medians.items():
        print(f'  {key:<16}{value:>8.3f} s')
    ratios = {
        'import': medians['import ltzoo'] / medians['import timm'],
        'load': medians['loaded by timm'] / medians['loaded by ltzoo'],
    }
    print(f'  import: {ratios["import"]:.2f} times timm; loading: {ratios["load"]:.1f} times as fast')
    return {**environment(), 'bench': 'load', 'model': args.model, 'seconds': times, 'ratios': ratios}
