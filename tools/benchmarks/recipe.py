"""What a large recipe costs: step, memory, loader, hours on some GPUs; on a stand-in unless --data-dir is given."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import environment, peak_of, seconds_of
from ltzoo.command_line import file_name
from ltzoo.errors import LtzooError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', type=file_name, metavar='RECIPE', help='a YAML file')
    parser.add_argument(
        '--against', type=file_name, metavar='RECIPE', help='recipe to compare with (default: the bcl recipe beside it)'
    )
    parser.add_argument('--steps', type=int, default=200, help='steps of each to time, in five blocks (default: 200)')
    parser.add_argument(
        '--gpus', type=int, nargs='+', default=[1, 4, 8], help='numbers of GPUs to predict hours for (default: 1 4 8)'
    )
    parser.add_argument('--loader-seconds', type=int, default=20, help='seconds to time the loader alone (default: 20)')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in the recipes')
    parser.add_argument('--data-dir', help='where the images are, or a stand-in made before')


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time steps of a recipe and of another in the same process, the end of an epoch, and the loader by itself."""
    import torch

    from ltzoo.data import FileImages
    from ltzoo.data.standin import STANDIN, STANDINS, make_standin
    from ltzoo.training.prepare import create_accelerator, prepare_data
    from ltzoo.training.recipe import load_recipe

    # bcl_resnet50.yaml for gkpgsa_resnet50.yaml, bcl.yaml for gkpgsa.yaml.
    _, underscore, network = args.recipe.stem.partition('_')
    against = args.against or args.recipe.with_name(f'bcl{underscore}{network}.yaml')
    if args.against is None and args.recipe.is_file() and not against.is_file():
        raise LtzooError(f'there is no {against} to compare {args.recipe} with: give --against RECIPE')
    if against.resolve() == args.recipe.resolve():
        # Under one name, however it was written.
        against = args.recipe
    of_both = [*args.set, *([f'data.data_dir={args.data_dir}'] if args.data_dir else [])]
    recipe = load_recipe(args.recipe, of_both)
    if recipe.method is not None and recipe.method.group_by == 'bank':
        # As many groups as there will be later, at once; a step costs the same whatever classes are in which.
        recipe = load_recipe(args.recipe, [*of_both, 'method.group_by=frequency'])
    base = load_recipe(against, [item for item in of_both if not item.startswith('method.')])
    same = {'data': recipe.data, 'precision': recipe.precision}
    base = base.model_copy(update=same)
    accelerator = create_accelerator(recipe)
    with tempfile.TemporaryDirectory() as folder:
        if recipe.data.data_dir is None and recipe.data.name in STANDINS:
            place = Path(folder, 'standin')
            make_standin(recipe.data.name, place)
            recipe = recipe.model_copy(update={'data': recipe.data.model_copy(update={'data_dir': str(place)})})
        dataset = prepare_data(recipe)
        images = dataset.train.images
        standin = isinstance(images, FileImages) and (images.root / STANDIN).exists()
        of_loader = loader_rate(recipe, dataset, accelerator, args.loader_seconds)
        forms = {str(against): time_steps(base, dataset, accelerator, args.steps, Path(folder, 'bank'))}
        if against != args.recipe:
            forms[str(args.recipe)] = time_steps(recipe, dataset, accelerator, args.steps, Path(folder, 'bank'))
    own, unit = forms[str(args.recipe)], forms[str(against)]
    step = statistics.median(own['step_seconds'])
    steps = recipe.epochs * (len(dataset.train) // recipe.batch_size)
    groupings = 0
    if recipe.method is not None and recipe.epochs > recipe.method.first_grouping:
        # After the last epoch there are no anchors.
        groupings = 1 + (recipe.epochs - 1 - recipe.method.first_grouping) // recipe.method.regroup_every
    needed = recipe.batch_size / step
    of_core = of_loader / min(recipe.workers or 1, os.cpu_count() or 1)
    said = {
        **environment(),
        'bench': 'recipe',
        'recipe': str(args.recipe),
        'against': str(against),
        'changed': args.set,
        'standin': standin,
        'device': torch.cuda.get_device_name() if accelerator.device.type == 'cuda' else 'cpu',
        'precision': recipe.precision,
        'batch_size': recipe.batch_size,
        'steps': steps,
        'groupings': groupings,
        'forms': forms,
        'ratio': step / statistics.median(unit['step_seconds']),
        'loader': {
            'workers': recipe.workers,
            'cores': os.cpu_count(),
            'images_per_second': of_loader,
            'bottleneck': of_loader < needed,
        },
        'gpus': {
            gpus: {
                'hours': (steps * step / gpus + groupings * own['epoch_end_seconds']) / 3600,
                'loader_images_per_second': gpus * needed,
                'loader_cores': math.ceil(gpus * needed / of_core),
            }
            for gpus in args.gpus
        },
    }
    print(
        f'{args.recipe}: {recipe.model.name}, batch {recipe.batch_size}, {recipe.precision}, {said["device"]}, '
        f'{torch.get_num_threads()} threads\n'
        f'{recipe.data.name}{" (a stand-in)" if standin else ""}: {len(dataset.train):,} training images, '
        f'{dataset.num_classes:,} classes; {recipe.epochs} epochs, {steps:,} steps; '
        f'{args.steps} steps of each timed'
    )
    print_costs(said)
    return said


def print_costs(said: dict[str, Any]) -> None:
    """Print the tables of what `bench` returns."""
    forms, loader = said['forms'], said['loader']
    own, unit = forms[said['recipe']], forms[said['against']]
    print(f'  {"":<44}{"step s":>10}{"images/s":>10}{"ratio":>8}{"memory GB":>11}')
    for name, form in forms.items():
        median = statistics.median(form['step_seconds'])
        print(
            f'  {name[-43:]:<44}{median:>10.3f}{form["batch_size"] / median:>10.1f}'
            f'{median / statistics.median(unit["step_seconds"]):>8.2f}{form["peak_bytes"] / 1e9:>11.2f}'
        )
    if own['epoch_end_seconds']:
        print(
            f'  end of an epoch with grouping and Fisher: {own["epoch_end_seconds"]:.1f} s, '
            f'{own["epoch_end_peak_bytes"] / 1e9:.2f} GB; {said["groupings"]} of them'
        )
    needed = said['batch_size'] / statistics.median(own['step_seconds'])
    print(
        f'  loader: {loader["images_per_second"]:.1f} images/s with {loader["workers"]} workers on {loader["cores"]} '
        f'cores; one GPU takes {needed:.1f}: {"the loader" if loader["bottleneck"] else "the step"} is the bottleneck'
    )
    print(f'  {"GPUs":>6}{"hours":>10}{"images/s to load":>18}{"cores that load":>17}')
    for gpus, of in said['gpus'].items():
        print(f'  {gpus:>6}{of["hours"]:>10.1f}{of["loader_images_per_second"]:>18.0f}{of["loader_cores"]:>17}')
    print('  hours: linear scaling assumed, loader keeping up; without checkpoints and the test at the end')


def time_steps(recipe: Any, dataset: Any, accelerator: Any, steps: int, folder: Path) -> dict[str, Any]:
    """Time a recipe's steps on one batch that lies ready; those of GKP/GSA with groups, anchors and Fisher in place.

    Returns:
        Mean seconds of a step in each of five blocks; peak memory in bytes of the steps, and of the end of an epoch
        with grouping, if there is one; its seconds.
    """
    import gc

    import torch

    from ltzoo.recorded import WARM_UP
    from ltzoo.training.prepare import prepare_training

    gc.collect()
    said: dict[str, Any] = {'batch_size': recipe.batch_size, 'epoch_end_seconds': 0.0, 'epoch_end_peak_bytes': 0}
    device = accelerator.device
    made = prepare_training(recipe.model_copy(update={'workers': 0}), dataset, accelerator, folder)
    made.learner.train()
    batch = next(made.loader.epoch(0))
    method, step = made.method, made.step
    if method is not None:
        method.start_epoch(0)
    for _ in range(WARM_UP + 2 if device.type == 'cuda' else 1):
        step(batch)
    if method is not None and method.needs_bank:
        # One step has not shown every class to the bank, whose groups need a snapshot each.
        known = {**method.encoder, **method.statistics}
        method.bank.update(0, torch.zeros(dataset.num_classes, dtype=torch.float64), known)
        due = recipe.method.first_grouping - 1 + recipe.method.regroup_every
        with peak_of(device) as peak_end:
            said['epoch_end_seconds'] = seconds_of(method.end_epoch, due, made.samples)
        said['epoch_end_peak_bytes'] = peak_end[0]
        method.start_epoch(min(due + 1, recipe.epochs - 1))
    with peak_of(device) as peak:
        for _ in range(WARM_UP + 2 if device.type == 'cuda' else 1):
            step(batch)

        def run(number: int) -> None:
            for _ in range(number):
                step(batch)

        blocks = [len(block) for block in torch.arange(steps).tensor_split(min(5, steps))]
        said['step_seconds'] = [seconds_of(run, number) / number for number in blocks]
    said['peak_bytes'] = peak[0]
    accelerator.free_memory()
    return said


def loader_rate(recipe: Any, dataset: Any, accelerator: Any, seconds: int) -> float:
    """Return how many training images a second the recipe's loader makes views of, where nothing else is done."""
    import torch

    from ltzoo.training.prepare import create_learner, create_loader

    # Small batches show the rate sooner, and it hardly depends on their size.
    recipe = recipe.model_copy(update={'batch_size': min(recipe.batch_size, 32), 'cuda_graphs': False})
    loader = create_loader(recipe, dataset, create_learner(recipe, dataset), accelerator)
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
    # What workers have prepared while they were started is not counted.
    for _ in range(2 * recipe.workers + 1):
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += len(next(batches).labels)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    rate = images / (time.perf_counter() - started)
    batches.close()
    return rate
