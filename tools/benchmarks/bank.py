"""Disk, memory and seconds of a memory bank in which every epoch is some class's best."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import environment, peak_memory, seconds_of
from ltzoo.command_line import file_name
from ltzoo.errors import LtzooError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='timm/resnet50', help='whose parameters are stored')
    parser.add_argument('--classes', type=int, default=8142, help='classes in the bank (default: 8142)')
    parser.add_argument('--epochs', type=int, default=100, help='epochs to store (default: 100)')
    parser.add_argument('--groups', type=int, default=4, help='groups to form (default: 4)')
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32', help='of the stored snapshots')
    parser.add_argument(
        '--folder', type=file_name, help="where they are stored for the time being (default: the system's)"
    )


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Fill a bank on disk so that every epoch stays some class's best, and group it after the last."""
    import torch

    import ltzoo
    from ltzoo.gkpgsa import DiskStore, MemoryBank, SnapshotDistances, group_anchors, group_classes, parameter_affinity

    if args.folder is not None and not args.folder.is_dir():
        raise LtzooError(f'there is no folder {args.folder}: --folder takes one that is there')
    encoder = {name: p.detach() for name, p in ltzoo.create_model(args.model, num_classes=0).named_parameters()}
    size = sum(p.numel() for p in encoder.values())
    seconds: dict[str, list[float]] = {'bank': [], 'distances': [], 'groups': [], 'anchors': []}
    disk = 0
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == 'bf16' else torch.float32
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, peak_memory() as peak:
        bank, gram = MemoryBank(args.classes, DiskStore(folder, dtype)), SnapshotDistances()
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
        # One after the other, as they are made and used.
        seconds['anchors'].append(seconds_of(lambda: [None for _ in group_anchors(bank, groups)]))
    print(
        f'{args.model}, {size / 1e6:.1f} M encoder parameters in {args.dtype}, {args.classes} classes, '
        f'{args.epochs} epochs, threads: {torch.get_num_threads()}'
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
