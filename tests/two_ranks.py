"""What a function gives in each of two processes that compute together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp


def _run(function: Callable[[int], Any], rank: int, file: str, results: Any) -> None:
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    results.put((rank, function(rank)))
    dist.barrier()
    dist.destroy_process_group()


def of_both(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what a function of the rank, which is defined in a module, returns in the first and the second process.

    Tensors go through a queue whose sender may be gone by then: let it return lists.
    """
    context = mp.get_context('spawn')
    results = context.Queue()
    workers = [context.Process(target=_run, args=(function, rank, str(folder / 'store'), results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    return [found[0], found[1]]
