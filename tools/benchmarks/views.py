"""Samples per CPU-second of a recipe's views, batched tensors against torchvision on PIL images."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from benchmarks.timing import environment, in_turn
from ltzoo.errors import LtzooError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data', default='cifar100_lt_r100', help='a data set held in memory')
    parser.add_argument('--views', default='cifar_bcl', help='a preset of ltzoo.data.views')
    parser.add_argument('--data-dir', help='where the files of the data set are')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each, taken in turn')
    parser.set_defaults(threads=1)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Time a batch of 256 as tensors, and its images one at a time as pictures, in one thread."""
    import torch

    from ltzoo.data import ArrayImages, load_data
    from ltzoo.data.views import FileViews, TensorViews, parse_views

    dataset = load_data(args.data, args.data_dir)
    if not isinstance(dataset.train.images, ArrayImages):
        raise LtzooError(f'{args.data} is read from files: take a data set held in memory, such as cifar100_lt_r100')
    batch = 256
    chosen = dataset.train.images.select(torch.randperm(len(dataset.train))[:batch].numpy())
    views = parse_views(args.views)
    tensor_views = TensorViews(views, dataset.mean, dataset.std)
    file_views = FileViews(views, dataset.mean, dataset.std)
    images = torch.from_numpy(chosen.array).permute(0, 3, 1, 2).contiguous()
    pictures = [chosen[i] for i in range(len(chosen))]
    generator = torch.Generator().manual_seed(0)

    def batched() -> None:
        for _ in range(4):
            params = tensor_views.sample(len(images), images.shape[2], images.shape[3], generator)
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
    print(f'{args.views} on {args.data}, threads: {torch.get_num_threads()}, median of {args.rounds} rounds')
    for name, value in medians.items():
        print(f'  {name:<18}{value:>8.0f} samples of {len(views)} views per CPU-second')
    print(f'  ratio             {ratio:>8.1f}')
    return {**environment(), 'bench': 'views', 'data': args.data, 'views': args.views, 'rates': rates, 'ratio': ratio}
