"""Seconds of one optimiser step: plain, channels-last and compiled, in turn in one process.

With --method, of GKP/GSA and SAM against the recipe's own step; with --set compile=true those compiled that can be.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import environment, in_turn
from ltzoo.command_line import file_name
from ltzoo.errors import LtzooError

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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--recipe',
        type=file_name,
        default=Path('recipes/cifar100_lt_r100/bcl.yaml'),
        help='recipe to time (default: %(default)s)',
    )
    parser.add_argument('--data', help="data set, if not the recipe's")
    parser.add_argument(
        '--method', action='store_true', help="forms of GKP/GSA instead, as ratios to the recipe's step"
    )
    parser.add_argument('--only', nargs='+', metavar='FORM', help='with --method: these forms alone, beside the base')
    parser.add_argument('--batch-size', type=int, help="samples of a step, if not the recipe's")
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='what to change in the recipe')
    parser.add_argument('--data-dir', help='where the files of the data set are')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time forward, backward and update on one batch that lies ready, so that the views do not count."""
    import torch

    from ltzoo.recorded import WARM_UP
    from ltzoo.training.prepare import can_record, create_accelerator, prepare_data, prepare_training
    from ltzoo.training.recipe import load_recipe

    if args.only and not args.method:
        raise LtzooError('--only picks forms of GKP/GSA: give --method too')
    for name in args.only or ():
        if name not in METHODS:
            raise LtzooError(f'--only {name!r}: the forms are {", ".join(map(repr, METHODS))}')
    overrides = [f'data.name={args.data}'] if args.data else []
    overrides += [f'data.data_dir={args.data_dir}'] if args.data_dir else []
    overrides += [f'batch_size={args.batch_size}'] if args.batch_size else []
    overrides += args.set
    recipe = load_recipe(args.recipe, overrides)
    accelerator = create_accelerator(recipe)
    dataset = prepare_data(recipe)
    recorded = can_record(recipe, accelerator)
    # With groups by frequency nothing is put there.
    bank = Path(tempfile.gettempdir(), 'bank')

    def make(channels_last: bool, compiled: bool, method: str | None) -> Callable[[], None]:
        form = load_recipe(args.recipe, [*overrides, *(method or '').split()])
        form = form.model_copy(update={'channels_last': channels_last, 'compile': compiled})
        if method is None:
            form = form.model_copy(update={'method': None})
        made = prepare_training(form, dataset, accelerator, bank)
        batch = next(made.loader.epoch(0))

        def run() -> None:
            made.step(batch)
            if accelerator.device.type == 'cuda':
                torch.cuda.synchronize()

        # Before it is replayed a step is taken as it is, recorded or traced, and compiled.
        for _ in range(WARM_UP + 1 if recorded else 3 if compiled else 0):
            run()
        return run

    def bare() -> Callable[[], None]:
        made = prepare_training(recipe, dataset, accelerator, bank)
        return convolutions(made.learner.model, torch.cat(next(made.loader.epoch(0)).views))

    if args.method:
        layout = recipe.channels_last
        forms = {
            name: make(layout, recipe.compile, method)
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
        f'{"CUDA graphs, " if recorded else ""}{"compiled, " if args.method and recipe.compile else ""}'
        f'{torch.get_num_threads()} threads, {args.rounds} rounds'
    )
    print(f'  {"":<30}{"median ms":>11}{"least ms":>11}{"samples/s":>12}{"ratio":>8}')
    base = next(iter(times.values()))
    for name, values in times.items():
        median, least = statistics.median(values), min(values)
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        speed = recipe.batch_size / median
        print(f'  {name:<30}{1e3 * median:>11.2f}{1e3 * least:>11.2f}{speed:>12.1f}{ratio:>8.2f}')
    return {
        **environment(),
        'bench': 'step',
        'recipe': str(args.recipe),
        'batch_size': recipe.batch_size,
        'device': str(accelerator.device),
        'precision': recipe.precision,
        'cuda_graphs': recorded,
        'compile': recipe.compile,
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
