"""Which of several processes this one is, where images are shared out among them."""

import torch.distributed as dist

__all__ = ['rank_and_number']


def rank_and_number() -> tuple[int, int]:
    """Return this process's rank and how many processes there are: (0, 1) where it is alone."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
