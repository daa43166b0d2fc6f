"""Train a recipe.

accelerate launch recipes/train.py RECIPE.yaml [key=value ...] [--dry-run]

Keys are those of the recipe: optimizer.lr=0.1, data.name=cifar100_lt_r50, output=runs/mine, resume=auto.
docs/training.md explains them; --dry-run shows all with their values.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from ltzoo.command_line import command_line
from ltzoo.errors import LtzooError, is_out_of_memory, one_line


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe', type=Path, help='a YAML file under recipes/, or your own')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='what to change in it')
    parser.add_argument('--dry-run', action='store_true', help='print the resolved recipe and the shapes of one batch')
    parser.add_argument('--no-progress', action='store_true', help='no progress bar')
    args = parser.parse_intermixed_args()
    try:
        return run(args)
    except LtzooError as error:
        from ltzoo.data import MissingImageError, UnreadableImageError
        from ltzoo.data.loader import is_killed_worker

        hint, cause = '', error.__cause__
        of_image = isinstance(error, UnreadableImageError)
        # To leave images out helps nobody whose images lie elsewhere.
        if of_image and not isinstance(error, MissingImageError):
            hint = '; data.unreadable=skip leaves such images out'
        elif cause is not None and is_killed_worker(cause):
            hint = '; workers and evaluation.batch_size may be changed where resume=auto goes on'
        rank = int(os.environ.get('RANK', 0))
        # What all processes of a machine find is said once; an image, a disk or a device's memory may be one's own.
        of_one = of_image or hint or isinstance(cause, OSError) or (cause is not None and is_out_of_memory(cause))
        if first_here() or of_one:
            print(f'train.py{f" (process {rank})" if rank else ""}: {error}{hint}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first_here():
            print(
                '\nstopped: continue from the last checkpoint with the same command and resume=auto, and with '
                'stop_epoch=N to end after N epochs',
                file=sys.stderr,
            )
        return 130


def run(args: argparse.Namespace) -> int:
    from accelerate import PartialState

    from ltzoo.data.loader import KILLED_WORKER, is_killed_worker
    from ltzoo.evaluation import format_scores
    from ltzoo.training.fit import fit
    from ltzoo.training.prepare import describe_batch
    from ltzoo.training.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    check_processes()
    if not first_here():
        # What all processes warn of is said once; which images are left out, by the one that read them.
        logging.getLogger('ltzoo').setLevel(logging.ERROR)
        logging.getLogger('ltzoo.data.dataset').setLevel(logging.WARNING)
    output = recipe.output or Path('runs', args.recipe.resolve().parent.name, f'{args.recipe.stem}_seed{recipe.seed}')
    try:
        if args.dry_run:
            told = describe_batch(recipe)
            if PartialState().is_main_process:
                print(f'{recipe.to_yaml()}\n{told}')
            end_processes()
            return 0
        results = fit(recipe, output, progress=not args.no_progress)
    except (OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, LtzooError):
            raise
        if is_out_of_memory(error):
            halved = 'precision=bf16, ' if recipe.precision == 'fp32' else ''
            raise LtzooError(
                f'the run {output} stopped: the device has no memory for a step of batch_size={recipe.batch_size}: '
                f'on GPUs, take more of them and resume=auto; or give {halved}accumulation={2 * recipe.accumulation}, '
                'a smaller batch_size or a smaller model, and another output'
            ) from error
        if not (isinstance(error, OSError) or is_killed_worker(error)):
            raise
        reason = KILLED_WORKER if is_killed_worker(error) else one_line(error)
        raise LtzooError(f'the run {output} stopped: {reason}; once that is put right, use resume=auto') from error
    if PartialState().is_main_process:
        print(format_scores(results))
        print(f'\nrun folder: {output}')
        print(
            f"exported model: {output / 'model'}  (ltzoo.create_model('local-dir:{output / 'model'}', pretrained=True))"
        )
        print(f'plots: {output / "accuracy.png"}, {output / "curves.png"}')
    end_processes()
    return 0


def first_here() -> bool:
    """Return whether this is the first of the machine's processes."""
    return not int(os.environ.get('LOCAL_RANK', os.environ.get('RANK', 0)))


def end_processes() -> None:
    """Give up the group of processes, and what refers to it: its threads must not be left to Python's end."""
    from accelerate import PartialState

    gc.collect()
    PartialState().destroy_process_group()


def check_processes() -> None:
    """Refuse to run when the launcher was asked for more processes than Accelerate sees.

    `accelerate launch --cpu --num_processes 2` starts one process without a word, and plain torchrun on a CPU starts
    two that do not know of each other.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    asked = int(os.environ.get('WORLD_SIZE', 0)) or processes_of_launcher()
    # Accelerate itself looks at this variable too late, when the processes have already been told apart.
    seen = PartialState(cpu=parse_flag_from_env('ACCELERATE_USE_CPU')).num_processes
    if asked != seen:
        raise LtzooError(
            f'{asked} processes were asked for, Accelerate runs {seen}: on a CPU start them with '
            f'ACCELERATE_USE_CPU=1 torchrun --nproc_per_node {asked} recipes/train.py ...; on GPUs with '
            f'accelerate launch --multi_gpu --num_processes {asked} recipes/train.py ...'
        )


def processes_of_launcher() -> int:
    """Return what `accelerate launch --num_processes N` asked for, 1 if that is not our parent or does not say."""
    import psutil

    words: list[str] = []
    # Another user's process may not be looked at.
    with suppress(psutil.Error):
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=''):
        if word.endswith('train.py'):
            break
        if word in ('--num_processes', '--num-processes') and following.isdigit():
            return int(following)
        if word.startswith(('--num_processes=', '--num-processes=')):
            return int(word.partition('=')[2])
    return 1


if __name__ == '__main__':
    sys.exit(main())
