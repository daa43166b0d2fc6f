"""Measure what the docs claim of speed.

python tools/benchmark.py views [--data cifar100_lt_r100] [--data-dir DIR] [--json FILE]
python tools/benchmark.py step  [--recipe recipes/cifar100_lt_r100/bcl.yaml] [--json FILE]
python tools/benchmark.py epoch [--recipe recipes/cifar100_lt_r100/bcl.yaml] [--json FILE]
python tools/benchmark.py recipe recipes/imagenet_lt/gkpgsa_resnet50.yaml [--steps 200] [--gpus 1 4 8] [--json FILE]
python tools/benchmark.py bank  [--model resnet50] [--classes 8142] [--epochs 100] [--json FILE]
python tools/benchmark.py load  [--model timm/resnet50] [--json FILE]
python tools/benchmark.py zoo   --models 'resnet32*' local-dir:DIR ... --data cifar100_lt_r100 ... --output DIR

`views`: samples per CPU-second of a recipe's views, batched tensors against torchvision on PIL images.
`step`:  seconds of one optimiser step, plain, channels-last and compiled, in turn in one process; with --method, of
         GKP/GSA and SAM against the recipe's own step.
`epoch`: what knowledge preservation adds to a step, and what the end of an epoch (quality, bank, groups, Fisher) takes.
`recipe`: what a large recipe costs: step, memory, loader, hours on some GPUs; on a stand-in unless --data-dir is given.
`bank`:  disk, memory and seconds of a memory bank in which every epoch is some class's best.
`load`:  `import ltzoo` against `import timm`, and a saved model loaded by ltzoo and by timm.
`zoo`:   scores, size and speed of many models on many data sets, with a leaderboard; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltzoo.errors import LtzooError
from ltzoo.files import check_target, write_atomically, writing

_FIXED = 'method.group_by=frequency method.preservation=null'
# Groups by frequency: a step costs the same whatever the groups are, and these need no bank.
METHODS: dict[str, str | None] = {
    'base': None,
    'SAM': 'method.group_by=none method.preservation=null method.sharpness.mode=combined '
    'method.sharpness.direction=full method.sharpness.radius=0.05',
    'combined, first view, G 4': f'{_FIXED} method.groups=4 method.sharpness.mode=combined '
    'method.sharpness.ascent_views=first method.sharpness.global_gradient=ema',
    'combined, ema, G 4': f'{_FIXED} method.groups=4 method.sharpness.mode=combined method.sharpness.ascent=ema',
    **{f'per group, G {g}': f'{_FIXED} method.groups={g}' for g in (1, 2, 4, 8, 16)},
    'per group, ema, G 4': f'{_FIXED} method.groups=4 method.sharpness.ascent=ema',
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    views = commands.add_parser('views', help='data augmentation')
    views.add_argument('--data', default='cifar100_lt_r100', help='a data set held in memory')
    views.add_argument('--views', default='cifar_bcl', help='a preset of ltzoo.data.views')
    step = commands.add_parser('step', help='training step')
    step.add_argument('--recipe', type=Path, default=Path('recipes/cifar100_lt_r100/bcl.yaml'))
    step.add_argument('--data', help="data set, if not the recipe's")
    step.add_argument('--method', action='store_true', help="forms of GKP/GSA instead, as ratios to the recipe's step")
    step.add_argument('--only', nargs='+', metavar='FORM', help='with --method: these forms alone, beside the base')
    step.add_argument('--batch-size', type=int, help="samples of a step, if not the recipe's")
    step.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in the recipe')
    epoch = commands.add_parser('epoch', help='knowledge preservation in a step and at the end of an epoch')
    epoch.add_argument('--recipe', type=Path, default=Path('recipes/cifar100_lt_r100/bcl.yaml'))
    epoch.add_argument('--groups', type=int, nargs='+', default=[2, 4, 8, 16])
    recipe = commands.add_parser('recipe', help='a large recipe: images/s, memory, loader, hours')
    recipe.add_argument('recipe', type=Path, metavar='RECIPE', help='a YAML file')
    recipe.add_argument(
        '--against', type=Path, metavar='RECIPE', help='whose step is the unit (default: bcl beside it)'
    )
    recipe.add_argument('--steps', type=int, default=200, help='of each that are timed, in five blocks')
    recipe.add_argument('--gpus', type=int, nargs='+', default=[1, 4, 8], help='numbers to predict hours for')
    recipe.add_argument('--loader-seconds', type=int, default=20, help='for which the loader is watched')
    recipe.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in the recipes')
    recipe.add_argument('--data-dir', help='where the images are, or a stand-in made before')
    bank = commands.add_parser('bank', help='memory bank')
    bank.add_argument('--model', default='timm/resnet50', help='whose parameters are stored')
    bank.add_argument('--classes', type=int, default=8142)
    bank.add_argument('--epochs', type=int, default=100)
    bank.add_argument('--groups', type=int, default=4)
    bank.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32', help='of the stored snapshots')
    bank.add_argument('--folder', type=Path, help="where they are stored for the time being (default: the system's)")
    load = commands.add_parser('load', help='importing and loading')
    load.add_argument('--model', default='timm/resnet50', help='which is saved and loaded')
    zoo = commands.add_parser('zoo', help='many models on many data sets')
    zoo.add_argument('--models', nargs='+', required=True, metavar='MODEL', help='names or wildcards, with weights')
    zoo.add_argument('--data', nargs='+', required=True, metavar='DATA')
    zoo.add_argument('--output', type=Path, required=True, metavar='DIR', help='new, or of an earlier call')
    zoo.add_argument('--batch-size', type=int, default=256, help='halved where memory runs out')
    zoo.add_argument('--device', help='cpu, cuda, mps (default: cuda where there is one, else cpu)')
    zoo.add_argument('--rerun', action='store_true', help='also measure what is done')
    zoo.add_argument('--data-dir', help='where the files of the data sets are')
    for command in (views, step, epoch):
        command.add_argument('--data-dir', help='where the files of the data set are')
        command.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')
    load.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')
    for command in (views, step, epoch, recipe, bank, load, zoo):
        command.add_argument('--threads', type=int, help="CPU threads (default: views 1, else PyTorch's)")
        if command is not zoo:
            command.add_argument('--json', type=Path, help='write all figures to this file')
    args = parser.parse_args()
    try:
        for name in ('rounds', 'threads', 'classes', 'epochs', 'batch_size', 'steps', 'loader_seconds', 'gpus'):
            value = getattr(args, name, None)
            value = min(value) if isinstance(value, list) else value
            if name in ('gpus', 'steps') and args.command != 'recipe':
                continue
            if value is not None and value < 1:
                raise LtzooError(f'--{name.replace("_", "-")} must be 1 or more, not {value}')
        if args.command == 'zoo':
            return bench_zoo(args)
        if args.json:
            check_target(args.json)
        benches = {
            'views': bench_views,
            'step': bench_step,
            'epoch': bench_epoch,
            'recipe': bench_recipe,
            'bank': bench_bank,
            'load': bench_load,
        }
        results = benches[args.command](args)
        if args.json:
            with writing(args.json):
                write_atomically(args.json, json.dumps(results, indent=2) + '\n')
    except LtzooError as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 2
    return 0


def bench_zoo(args: argparse.Namespace) -> int:
    """Measure many models; the exit code is 1 if one failed."""
    from ltzoo.evaluation.many import choose_models, evaluate_many

    try:
        rows = evaluate_many(
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


def bench_load(args: argparse.Namespace) -> dict[str, Any]:
    """Time imports in processes of their own, and loading a saved model in this one."""
    import subprocess
    import tempfile

    import timm
    import torch

    import ltzoo

    if args.threads:
        torch.set_num_threads(args.threads)

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
    print(f'{args.model}, {torch.get_num_threads()} threads, median of {args.rounds} rounds')
    for key, value in medians.items():
        print(f'  {key:<16}{value:>8.3f} s')
    ratios = {
        'import': medians['import ltzoo'] / medians['import timm'],
        'load': medians['loaded by timm'] / medians['loaded by ltzoo'],
    }
    print(f'  import: {ratios["import"]:.2f} times timm; loading: {ratios["load"]:.1f} times as fast')
    return {**environment(), 'bench': 'load', 'model': args.model, 'seconds': times, 'ratios': ratios}


def bench_views(args: argparse.Namespace) -> dict[str, Any]:
    """Time a batch of 256 as tensors, and its images one at a time as pictures, in one thread."""
    import torch

    from ltzoo.data import ArrayImages, load_data
    from ltzoo.data.views import FileViews, TensorViews, parse_views

    torch.set_num_threads(args.threads or 1)
    dataset = load_data(args.data, args.data_dir)
    if not isinstance(dataset.train.images, ArrayImages):
        raise LtzooError(f'{args.data} is read from files; this measures data held in memory')
    batch = 256
    chosen = dataset.train.images.select(torch.randperm(len(dataset.train))[:batch].numpy())
    views = parse_views(args.views)
    tensor_views, file_views = (kind(views, dataset.mean, dataset.std) for kind in (TensorViews, FileViews))
    images = torch.from_numpy(chosen.array).permute(0, 3, 1, 2).contiguous()
    pictures = [chosen[i] for i in range(len(chosen))]
    generator = torch.Generator().manual_seed(0)

    def batched() -> None:
        for _ in range(4):
            params = tensor_views.sample(len(images), *images.shape[2:], generator)
            tensor_views(images, params)

    def one_by_one() -> None:
        for picture in pictures:
            file_views(picture)

    rates = {
        name: [count / seconds for seconds in times]
        for (name, times), count in zip(
            in_turn(
                {'batched tensors': batched, 'torchvision, PIL': one_by_one}, args.rounds, time.process_time
            ).items(),
            (4 * len(images), len(pictures)),
            strict=True,
        )
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians['batched tensors'] / medians['torchvision, PIL']
    print(f'{args.views} on {args.data}, {torch.get_num_threads()} thread, median of {args.rounds} rounds')
    for name, value in medians.items():
        print(f'  {name:<18}{value:>8.0f} samples of {len(views)} views per CPU-second')
    print(f'  ratio             {ratio:>8.1f}')
    return {**environment(), 'bench': 'views', 'data': args.data, 'views': args.views, 'rates': rates, 'ratio': ratio}


def bench_step(args: argparse.Namespace) -> dict[str, Any]:
    """Time forward, backward and update on one batch that lies ready, so that the views do not count."""
    import torch

    from ltzoo.recorded import WARM_UP
    from ltzoo.training.fit import (
        can_record,
        create_accelerator,
        create_learner,
        create_loader,
        create_method,
        prepare_data,
    )
    from ltzoo.training.learner import create_optimizer
    from ltzoo.training.loop import Step
    from ltzoo.training.recipe import load_recipe

    for name in args.only or ():
        if not args.method or name not in METHODS:
            raise LtzooError(f'--only {name!r}: with --method, the forms are {", ".join(map(repr, METHODS))}')
    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = [f'data.name={args.data}'] if args.data else []
    overrides += [f'data.data_dir={args.data_dir}'] if args.data_dir else []
    overrides += [f'batch_size={args.batch_size}'] if args.batch_size else []
    overrides += args.set
    recipe = load_recipe(args.recipe, overrides)
    accelerator = create_accelerator(recipe)
    dataset = prepare_data(recipe)
    recorded = can_record(recipe, accelerator)

    def make(channels_last: bool, compiled: bool, method: str | None) -> Callable[[], None]:
        learner = create_learner(recipe, dataset).to(accelerator.device)
        batch = next(create_loader(recipe, dataset, learner, accelerator).epoch(0))
        if channels_last:
            learner.to(memory_format=torch.channels_last)
        if compiled:
            learner.compile()
        optimizer = accelerator.prepare_optimizer(create_optimizer(learner, recipe.optimizer))
        state = None
        if method is not None:
            with_method = load_recipe(args.recipe, [*overrides, *method.split()])
            state = create_method(with_method, dataset, learner, accelerator, Path('bank'))
        step = Step(learner, optimizer, accelerator, method=state, recorded=recorded)

        def run() -> None:
            step(batch)
            if accelerator.device.type == 'cuda':
                torch.cuda.synchronize()

        for _ in range(WARM_UP + 1 if recorded else 0):
            run()
        return run

    def bare() -> Callable[[], None]:
        learner = create_learner(recipe, dataset).to(accelerator.device)
        batch = next(create_loader(recipe, dataset, learner, accelerator).epoch(0))
        return convolutions(learner.model, torch.cat(batch.views))

    if args.method:
        layout = recipe.channels_last
        forms = {
            name: make(layout, False, method)
            for name, method in METHODS.items()
            if method is None or not args.only or name in args.only
        }
    else:
        forms = {
            'plain': make(False, False, None),
            'channels-last': make(True, False, None),
            'compiled': make(False, True, None),
            'channels-last, compiled': make(True, True, None),
            'its convolutions alone': bare(),
        }
    times = in_turn(forms, args.rounds, time.perf_counter)
    print(
        f'{args.recipe}: batch {recipe.batch_size}, {recipe.objective.name}, {accelerator.device}, {recipe.precision}, '
        f'{"CUDA graphs, " if recorded else ""}{torch.get_num_threads()} threads, {args.rounds} rounds'
    )
    print(f'  {"":<30}{"median s":>10}{"least s":>10}{"samples/s":>12}{"ratio":>8}')
    base = next(iter(times.values()))
    for name, values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f'  {name:<30}{median:>10.3f}{min(values):>10.3f}{recipe.batch_size / median:>12.1f}{ratio:>8.2f}')
    return {
        **environment(),
        'bench': 'step',
        'recipe': str(args.recipe),
        'batch_size': recipe.batch_size,
        'device': str(accelerator.device),
        'precision': recipe.precision,
        'cuda_graphs': recorded,
        'seconds': times,
    }


def bench_epoch(args: argparse.Namespace) -> dict[str, Any]:
    """Time a recipe's own step, and beside it, with GKP alone, what follows each step and each epoch."""
    import torch

    from ltzoo.training.fit import (
        create_accelerator,
        create_learner,
        create_loader,
        create_method,
        prepare_data,
        training_samples,
    )
    from ltzoo.training.learner import create_optimizer
    from ltzoo.training.loop import Step
    from ltzoo.training.recipe import load_recipe

    if args.threads:
        torch.set_num_threads(args.threads)
    where = [f'data.data_dir={args.data_dir}'] if args.data_dir else []
    base = load_recipe(args.recipe, where)
    accelerator = create_accelerator(base)
    dataset = prepare_data(base)
    results: dict[str, Any] = {'bench': 'epoch', 'recipe': str(args.recipe), 'groups': {}}
    for groups in args.groups:
        wanted = [f'method.groups={groups}', 'method.sharpness=null', f'method.first_grouping={groups}']
        recipe = load_recipe(args.recipe, [*where, *wanted])
        assert recipe.method is not None
        period = recipe.method.regroup_every
        epochs = groups + period * args.rounds
        recipe = recipe.model_copy(update={'epochs': max(epochs, recipe.epochs)})
        learner = create_learner(recipe, dataset).to(accelerator.device)
        loader = create_loader(recipe, dataset, learner, accelerator)
        if recipe.channels_last:
            learner.to(memory_format=torch.channels_last)
        optimizer = accelerator.prepare_optimizer(create_optimizer(learner, recipe.optimizer))
        method = create_method(recipe, dataset, learner, accelerator, Path('bank'))
        assert method is not None
        batch = next(loader.epoch(0))
        step = Step(learner, optimizer, accelerator, method=method)
        times: dict[str, list[float]] = {name: [] for name in ('step', 'pull', 'epoch end', 'epoch end, regrouping')}

        samples = functools.partial(training_samples, dataset, recipe=recipe, accelerator=accelerator)

        for epoch in range(epochs):
            # One step makes the epochs' weights differ, and gives every class features to be measured on.
            method.start_epoch(epoch)
            step(batch)
            if epoch < args.rounds:
                times['step'].append(seconds_of(Step(learner, optimizer, accelerator), batch))
            if method.preservation is not None:
                times['pull'].append(seconds_of(method.after_step, recipe.optimizer.lr))
            since = epoch + 1 - groups
            name = 'epoch end, regrouping' if since >= 0 and since % period == 0 else 'epoch end'
            times[name].append(seconds_of(method.end_epoch, epoch, samples))
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


def bench_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Time steps of a recipe and of another in the same process, the end of an epoch, and the loader by itself."""
    import math
    import tempfile

    import torch

    from ltzoo.data.sources._lists import STANDIN
    from ltzoo.data.standin import STANDINS, make_standin
    from ltzoo.training.fit import create_accelerator, prepare_data
    from ltzoo.training.recipe import load_recipe

    if args.threads:
        torch.set_num_threads(args.threads)
    # bcl_resnet50.yaml for gkpgsa_resnet50.yaml, bcl.yaml for gkpgsa.yaml.
    _, underscore, network = args.recipe.stem.partition('_')
    against = args.against or args.recipe.with_name(f'bcl{underscore}{network}.yaml')
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
        standin = Path(recipe.data.data_dir or '', STANDIN).exists()
        dataset = prepare_data(recipe)
        of_loader = loader_rate(recipe, dataset, accelerator, args.loader_seconds)
        forms = {str(against): time_steps(base, dataset, accelerator, args.steps, Path(folder, 'bank'))}
        if against.resolve() != args.recipe.resolve():
            forms[str(args.recipe)] = time_steps(recipe, dataset, accelerator, args.steps, Path(folder, 'bank'))
    own, unit = forms[str(args.recipe)], forms[str(against)]
    step = statistics.median(own['step_seconds'])
    ratio = step / statistics.median(unit['step_seconds'])
    steps = recipe.epochs * (len(dataset.train) // recipe.batch_size)
    groupings = 0
    if recipe.method is not None and recipe.epochs >= recipe.method.first_grouping:
        groupings = 1 + (recipe.epochs - recipe.method.first_grouping) // recipe.method.regroup_every
    needed = recipe.batch_size / step
    of_core = of_loader / min(recipe.workers or 1, os.cpu_count() or 1)
    predictions = {
        gpus: {
            'hours': (steps * step / gpus + groupings * own['epoch_end_seconds']) / 3600,
            'loader_images_per_second': gpus * needed,
            'loader_cores': math.ceil(gpus * needed / of_core),
        }
        for gpus in args.gpus
    }
    cuda = accelerator.device.type == 'cuda'
    device = torch.cuda.get_device_name() if cuda else 'cpu'
    bottleneck = of_loader < needed
    print(
        f'{args.recipe}: {recipe.model.name}, batch {recipe.batch_size}, {recipe.precision}, {device}, '
        f'{torch.get_num_threads()} threads\n'
        f'{recipe.data.name}{" (a stand-in)" if standin else ""}: {len(dataset.train):,} training images, '
        f'{dataset.num_classes:,} classes; {recipe.epochs} epochs, {steps:,} steps; '
        f'{args.steps} steps of each timed'
    )
    print(f'  {"":<44}{"step s":>10}{"images/s":>10}{"ratio":>8}{"memory GB":>11}')
    for name, said in forms.items():
        median = statistics.median(said['step_seconds'])
        print(
            f'  {name[-43:]:<44}{median:>10.3f}{said["batch_size"] / median:>10.1f}'
            f'{median / statistics.median(unit["step_seconds"]):>8.2f}{said["peak_bytes"] / 1e9:>11.2f}'
        )
    if own['epoch_end_seconds']:
        print(
            f'  end of an epoch with grouping and Fisher: {own["epoch_end_seconds"]:.1f} s, '
            f'{own["epoch_end_peak_bytes"] / 1e9:.2f} GB; {groupings} of them'
        )
    print(
        f'  loader: {of_loader:.1f} images/s with {recipe.workers} workers on {os.cpu_count()} cores; one GPU takes '
        f'{needed:.1f}: {"the loader" if bottleneck else "the step"} is the bottleneck'
    )
    print(f'  {"GPUs":>6}{"hours":>10}{"images/s to load":>18}{"cores that load":>17}')
    for gpus, said in predictions.items():
        print(f'  {gpus:>6}{said["hours"]:>10.1f}{said["loader_images_per_second"]:>18.0f}{said["loader_cores"]:>17}')
    print('  hours: linear scaling assumed, loader keeping up; without checkpoints and the test at the end')
    return {
        **environment(),
        'bench': 'recipe',
        'recipe': str(args.recipe),
        'against': str(against),
        'changed': args.set,
        'standin': standin,
        'device': device,
        'precision': recipe.precision,
        'batch_size': recipe.batch_size,
        'steps': steps,
        'groupings': groupings,
        'forms': forms,
        'ratio': ratio,
        'loader': {
            'workers': recipe.workers,
            'cores': os.cpu_count(),
            'images_per_second': of_loader,
            'bottleneck': bottleneck,
        },
        'gpus': predictions,
    }


def time_steps(recipe: Any, dataset: Any, accelerator: Any, steps: int, folder: Path) -> dict[str, Any]:
    """Time a recipe's steps on one batch that lies ready; those of GKP/GSA with groups, anchors and Fisher in place.

    Returns:
        Mean seconds of a step in each of five blocks; peak memory in bytes of the steps, and of the end of an epoch
        with grouping, if there is one; its seconds.
    """
    import gc

    import torch

    from ltzoo.recorded import WARM_UP
    from ltzoo.training.fit import create_learner, create_loader, create_method, create_step, training_samples
    from ltzoo.training.learner import create_optimizer

    gc.collect()
    said: dict[str, Any] = {'batch_size': recipe.batch_size, 'epoch_end_seconds': 0.0, 'epoch_end_peak_bytes': 0}
    device = accelerator.device
    learner = create_learner(recipe, dataset)
    if recipe.channels_last:
        learner.to(memory_format=torch.channels_last)
    learner.to(device).train()
    batch = next(create_loader(recipe.model_copy(update={'workers': 0}), dataset, learner, accelerator).epoch(0))
    optimizer = create_optimizer(learner, recipe.optimizer)
    if recipe.compile:
        learner.compile()
    method = create_method(recipe, dataset, learner, accelerator, folder)
    prepared, optimizer = accelerator.prepare(learner, optimizer)
    step = create_step(recipe, learner, prepared, optimizer, accelerator, method)
    if method is not None:
        method.start_epoch(0)
    for _ in range(WARM_UP + 2 if device.type == 'cuda' else 1):
        step(batch)
    if method is not None and method.needs_bank:
        # One step has not shown every class to the bank, whose groups need a snapshot each.
        method.bank.update(0, torch.zeros(dataset.num_classes, dtype=torch.float64), method.encoder)
        samples = functools.partial(training_samples, dataset, recipe=recipe, accelerator=accelerator)
        due = recipe.method.first_grouping - 1 + recipe.method.regroup_every
        with peak_of(device) as peak_end:
            said['epoch_end_seconds'] = seconds_of(method.end_epoch, due, samples)
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

    from ltzoo.training.fit import create_learner, create_loader

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


@contextmanager
def peak_of(device: Any) -> Iterator[list[int]]:
    """Watch memory, in bytes: of a GPU, the most that was allocated; else the most that this process had."""
    import psutil
    import torch

    if device.type != 'cuda':
        before = psutil.Process().memory_info().rss
        with peak_memory() as most:
            yield most
        most[0] += before
        return
    most = [0]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield most
    torch.cuda.synchronize()
    most[0] = torch.cuda.max_memory_allocated()


def bench_bank(args: argparse.Namespace) -> dict[str, Any]:
    """Fill a bank on disk so that every epoch stays some class's best, and group it after the last."""
    import tempfile

    import torch

    import ltzoo
    from ltzoo.gkpgsa import DiskStore, GramMatrix, MemoryBank, group_anchors, group_classes, parameter_affinity

    if args.threads:
        torch.set_num_threads(args.threads)
    encoder = {name: p.detach() for name, p in ltzoo.create_model(args.model, num_classes=0).named_parameters()}
    size = sum(p.numel() for p in encoder.values())
    seconds: dict[str, list[float]] = {'bank': [], 'distances': [], 'groups': [], 'anchors': []}
    disk = 0
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == 'bf16' else torch.float32
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, peak_memory() as peak:
        bank, gram = MemoryBank(args.classes, DiskStore(folder, dtype)), GramMatrix()
        for epoch in range(args.epochs):
            for p in encoder.values():
                p += 1e-3 * torch.randn(p.shape, generator=generator)
            # Independent qualities: each epoch is as likely as any other to be a class's best.
            quality = torch.rand(args.classes, generator=generator, dtype=torch.float64)
            seconds['bank'].append(seconds_of(bank.update, epoch, quality, encoder))
            seconds['distances'].append(seconds_of(gram.update, bank.epochs, bank.snapshot))
            disk = max(disk, sum(file.stat().st_size for file in Path(folder).iterdir()))
        started = time.perf_counter()
        groups = group_classes(bank, parameter_affinity(gram), args.groups)
        seconds['groups'].append(time.perf_counter() - started)
        seconds['anchors'].append(seconds_of(group_anchors, bank, groups))
    print(
        f'{args.model}, {size / 1e6:.1f} M encoder parameters in {args.dtype}, {args.classes} classes, '
        f'{args.epochs} epochs, {torch.get_num_threads()} threads'
    )
    print(f'  snapshots in use at the end  {len(bank.epochs)}, in {int(groups.max()) + 1} groups')
    print(f'  largest on disk              {disk / 1e9:.2f} GB')
    print(f'  most memory beyond the start {peak[0] / 1e9:.2f} GB (a snapshot has {4 * size / 1e9:.2f} GB)')
    for name, values in seconds.items():
        print(f'  {name:<29}{statistics.median(values):.3f} s, at most {max(values):.3f} s')
    return {
        **environment(),
        'bench': 'bank',
        **{key: getattr(args, key) for key in ('model', 'classes', 'epochs', 'groups', 'dtype')},
        'parameters': size,
        'snapshots': len(bank.epochs),
        'disk_bytes': disk,
        'memory_bytes': peak[0],
        'seconds': seconds,
    }


def seconds_of(run: Callable[..., Any], *arguments: Any) -> float:
    """Time one call, from when the device is free until it has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch this process's memory: the list's one entry is the most beyond what it had at the start, in bytes."""
    import psutil

    process, ended = psutil.Process(), threading.Event()
    before, most = process.memory_info().rss, [0]

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def convolutions(model: Any, images: Any) -> Callable[[], None]:
    """Return a run of nothing but a step's convolutions, forward and backward, channels-last: what cannot be saved."""
    import torch
    from torch import Tensor, nn

    layers: list[tuple[Any, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: layers.append((module, inputs[0].detach())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        model(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    grads = [torch.ones_like(layer(x)).detach() for layer, x in layers]

    def run() -> None:
        for number, ((layer, x), grad) in enumerate(zip(layers, grads, strict=True)):
            # The images themselves need no gradient.
            x = x.requires_grad_(number > 0)
            wanted = (x, layer.weight) if number > 0 else (layer.weight,)
            torch.autograd.grad(layer(x), wanted, grad)
        if images.is_cuda:
            torch.cuda.synchronize()

    return run


def in_turn(runs: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Time each run once a round, after two that do not count: what slows the machine down then meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            started = clock()
            run()
            if number >= 2:
                times[name].append(clock() - started)
    return times


def environment() -> dict[str, Any]:
    import torch
    import torchvision

    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'threads': torch.get_num_threads(),
        'cpu': torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == '__main__':
    sys.exit(main())
