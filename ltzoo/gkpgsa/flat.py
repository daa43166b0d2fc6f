"""A network's trainable parameters as one vector, which perturbations and their lengths are in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ['FlatParameters']


@dataclass
class FlatParameters:
    """The trainable parameters as one flat vector, each in the order in which it lies in memory.

    So the vector's pieces are the parameters' tensors, channels-last or not, without a copy.
    """

    parameters: list[nn.Parameter]
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = [p.numel() for p in self.parameters]

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.parameters[0].dtype, torch.float32)

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return (d,) of one tensor per parameter; None counts as zero."""
        longest = max((n for t, n in zip(tensors, self.sizes, strict=True) if t is None), default=0)
        zeros = torch.zeros(longest, device=self.parameters[0].device, dtype=self.dtype)
        return torch.cat(
            [
                zeros[:n] if t is None else t.permute(_order(p)).reshape(-1).to(self.dtype)
                for t, n, p in zip(tensors, self.sizes, self.parameters, strict=True)
            ]
        )

    @torch.no_grad()
    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Return one tensor per parameter, in the parameter's type and layout, which share the vector's memory."""
        tensors = []
        for piece, p in zip(vector.split(self.sizes), self.parameters, strict=True):
            order = _order(p)
            back = [order.index(dim) for dim in range(p.ndim)]
            tensors.append(piece.view([p.shape[dim] for dim in order]).permute(back).to(p.dtype))
        return tensors

    @contextmanager
    def holding(self, vector: Tensor) -> Iterator[None]:
        """Let the parameters hold what is in the vector for a while; their own values come back from a copy."""
        copies = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, value in zip(self.parameters, self.unflatten(vector), strict=True):
                p.copy_(value)
        # Around all of a step, autocast would go on with the copies in half precision of what the parameters held.
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, copy in zip(self.parameters, copies, strict=True):
                    p.copy_(copy)
            torch.clear_autocast_cache()


def _order(x: Tensor) -> list[int]:
    """Return the dimensions from the one with the widest step in memory to the one with the narrowest."""
    return sorted(range(x.ndim), key=x.stride, reverse=True)
