"""Measure what the docs claim of speed.

python tools/benchmark.py views [--data cifar100_lt_r100] [--data-dir DIR] [--json FILE]
python tools/benchmark.py step  [--recipe recipes/cifar100_lt_r100/bcl.yaml] [--json FILE]

`views`: samples per CPU-second of a recipe's views, batched tensors against torchvision on PIL images.
`step`:  seconds of one optimiser step, plain, channels-last and compiled, in turn in one process; with --method, of
         GKP/GSA and SAM against the recipe's own step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
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
    step.add_argument('--batch-size', type=int, help="samples of a step, if not the recipe's")
    for command in (views, step):
        command.add_argument('--data-dir', help='where the files of the data set are')
        command.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')
        command.add_argument('--threads', type=int, help="CPU threads (default: views 1, step PyTorch's)")
        command.add_argument('--json', type=Path, help='write all figures to this file')
    args = parser.parse_args()
    try:
        if args.rounds < 1:
            raise LtzooError(f'--rounds must be 1 or more, not {args.rounds}')
        if args.threads is not None and args.threads < 1:
            raise LtzooError(f'--threads must be 1 or more, not {args.threads}')
        if args.json:
            check_target(args.json)
        results = {'views': bench_views, 'step': bench_step}[args.command](args)
        if args.json:
            with writing(args.json):
                write_atomically(args.json, json.dumps(results, indent=2) + '\n')
    except LtzooError as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 2
    return 0


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

    from ltzoo.training.fit import create_accelerator, create_learner, create_loader, create_method, prepare_data
    from ltzoo.training.learner import create_optimizer
    from ltzoo.training.loop import grouped_step, train_step
    from ltzoo.training.recipe import load_recipe

    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = [f'data.name={args.data}'] if args.data else []
    overrides += [f'data.data_dir={args.data_dir}'] if args.data_dir else []
    overrides += [f'batch_size={args.batch_size}'] if args.batch_size else []
    recipe = load_recipe(args.recipe, overrides)
    accelerator = create_accelerator(recipe)
    dataset = prepare_data(recipe)

    def make(channels_last: bool, compiled: bool, method: str | None) -> Callable[[], None]:
        learner = create_learner(recipe, dataset).to(accelerator.device)
        batch = next(create_loader(recipe, dataset, learner, accelerator).epoch(0))
        if channels_last:
            learner.to(memory_format=torch.channels_last)
        if compiled:
            learner.compile()
        optimizer = create_optimizer(learner, recipe.optimizer)
        state = None
        if method is not None:
            with_method = load_recipe(args.recipe, [*overrides, *method.split()])
            state = create_method(with_method, dataset, learner, accelerator, Path('bank'))

        def run() -> None:
            if state is None:
                train_step(learner, optimizer, batch, accelerator)
            else:
                grouped_step(state, learner, optimizer, batch, accelerator)
            if accelerator.device.type == 'cuda':
                torch.cuda.synchronize()

        return run

    def bare() -> Callable[[], None]:
        learner = create_learner(recipe, dataset).to(accelerator.device)
        batch = next(create_loader(recipe, dataset, learner, accelerator).epoch(0))
        return convolutions(learner.model, torch.cat(batch.views))

    if args.method:
        layout = recipe.channels_last
        forms = {name: make(layout, False, method) for name, method in METHODS.items()}
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
        f'{args.recipe}: batch {recipe.batch_size}, {recipe.objective.name}, {accelerator.device}, '
        f'{torch.get_num_threads()} threads, {args.rounds} rounds'
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
        'seconds': times,
    }


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
