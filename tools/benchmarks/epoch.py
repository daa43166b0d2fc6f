"""What knowledge preservation adds to a step, and what the end of an epoch takes: quality, bank, groups, Fisher."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import environment, seconds_of
from ltzoo.command_line import file_name


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--recipe',
        type=file_name,
        default=Path('recipes/cifar100_lt_r100/bcl.yaml'),
        help='recipe to time (default: %(default)s)',
    )
    parser.add_argument('--groups', type=int, nargs='+', default=[2, 4, 8, 16])
    parser.add_argument('--data-dir', help='where the files of the data set are')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time a recipe's own step, and beside it, with GKP alone, what follows each step and each epoch."""
    import torch

    from ltzoo.training.loop import Step
    from ltzoo.training.prepare import create_accelerator, prepare_data, prepare_training
    from ltzoo.training.recipe import load_recipe

    where = [f'data.data_dir={args.data_dir}'] if args.data_dir else []
    base = load_recipe(args.recipe, where)
    accelerator = create_accelerator(base)
    dataset = prepare_data(base)
    results: dict[str, Any] = {'bench': 'epoch', 'recipe': str(args.recipe), 'groups': {}}
    with tempfile.TemporaryDirectory() as bank:
        for groups in args.groups:
            wanted = [f'method.groups={groups}', 'method.sharpness=null', f'method.first_grouping={groups}']
            recipe = load_recipe(args.recipe, [*where, *wanted])
            assert recipe.method is not None
            period = recipe.method.regroup_every
            epochs = groups + period * args.rounds
            recipe = recipe.model_copy(update={'epochs': max(epochs + 1, recipe.epochs)})
            made = prepare_training(recipe, dataset, accelerator, Path(bank))
            loader, method = made.loader, made.method
            assert method is not None
            batch = next(loader.epoch(0))
            plain = Step(made.learner, made.optimizer, accelerator)
            times: dict[str, list[float]] = {
                name: [] for name in ('step', 'pull', 'epoch end', 'epoch end, regrouping')
            }

            for epoch in range(epochs):
                # One step makes the epochs' weights differ, and gives every class features to be measured on.
                method.start_epoch(epoch)
                made.step(batch)
                if epoch < args.rounds:
                    times['step'].append(seconds_of(plain, batch))
                if method.preservation is not None:
                    times['pull'].append(seconds_of(method.after_step, recipe.optimizer.lr))
                since = epoch + 1 - groups
                name = 'epoch end, regrouping' if since >= 0 and since % period == 0 else 'epoch end'
                times[name].append(seconds_of(method.end_epoch, epoch, made.samples))
            of_epoch = statistics.median(times['step']) * loader.steps_per_epoch
            often, seldom = statistics.median(times['epoch end']), statistics.median(times['epoch end, regrouping'])
            results['groups'][groups] = {
                'seconds': times,
                'pull_share': statistics.median(times['pull']) / statistics.median(times['step']),
                'epoch_end_share': (often * (period - 1) + seldom) / period / of_epoch,
            }
    print(
        f'{args.recipe}: {loader.steps_per_epoch} steps of {recipe.batch_size} an epoch, groups every {period} epochs, '
        f'{accelerator.device}, {torch.get_num_threads()} threads, medians of {args.rounds} rounds'
    )
    print(f'  groups{"step s":>9}{"pull ms":>9}{"of a step":>11}{"end s":>8}{"regrouping s":>14}{"of an epoch":>13}')
    for groups, said in results['groups'].items():
        step, pull, often, seldom = (statistics.median(values) for values in said['seconds'].values())
        print(
            f'  {groups:>6}{step:>9.3f}{1e3 * pull:>9.2f}{said["pull_share"]:>11.2%}{often:>8.2f}{seldom:>14.2f}'
            f'{said["epoch_end_share"]:>13.2%}'
        )
    return {**environment(), **results}
