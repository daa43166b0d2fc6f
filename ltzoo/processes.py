"""Several processes that share out a batch, or a set of images."""

import torch.distributed as dist
from torch import Tensor

__all__ = ['averaged', 'rank_and_number']


def averaged(x: Tensor) -> Tensor:
    """Return the mean of `x` over all processes, which need it at the same time, in its place."""
    _, processes = rank_and_number()
    if processes > 1:
        dist.all_reduce(x)
        x /= processes
    return x


def rank_and_number() -> tuple[int, int]:
    """Return this process's rank and how many processes there are: (0, 1) where it is alone."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
