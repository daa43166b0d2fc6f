"""Which rows of an activation belong to which group of samples or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ['ClassRows', 'Rows', 'SampleRows']


class Rows(Protocol):
    """The rows of one activation, each belonging to one slot: a group, or the last slot, which is no group."""

    def fits(self, x: Tensor) -> bool:
        """Return whether the first dimension of `x` is these rows."""

    def resized(self, before: Tensor, after: Tensor) -> Rows:
        """Return the rows of `after`, which was made from `before` by reshaping or selecting."""

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Return (slot, its rows) pairs; a slot may come more than once."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo `split`."""

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return x times its slot's scale plus its slot's shift, by channel.

        Args:
            x: shape (R, C, ...).
            scale, shift: shape (S, C).
        """


@dataclass(frozen=True)
class SampleRows:
    """Rows of a batch sorted by slot, of shape (repeats, batch, inner) in that order.

    Views concatenated along the batch are repeats of it; what a network cuts every image into, such as windows, is
    inner.
    """

    sizes: tuple[int, ...]
    """Samples of every slot in the batch."""
    repeats: int = 1
    inner: int = 1

    @property
    def batch(self) -> int:
        return sum(self.sizes)

    def fits(self, x: Tensor) -> bool:
        return x.ndim > 0 and len(x) == self.repeats * self.batch * self.inner

    def resized(self, before: Tensor, after: Tensor) -> SampleRows:
        if after.ndim == 0 or self.fits(after):
            return self
        rows = len(after)
        if before.numel() == after.numel():
            unit = self.repeats * self.batch
            return SampleRows(self.sizes, self.repeats, rows // unit) if rows % unit == 0 and rows else self
        unit = self.batch * self.inner
        return SampleRows(self.sizes, rows // unit, self.inner) if rows % unit == 0 and rows else self

    def parts(self) -> list[tuple[int, int]]:
        """Return (slot, number of rows) pairs in the order of the rows."""
        return [(s, n * self.inner) for _ in range(self.repeats) for s, n in enumerate(self.sizes) if n]

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        parts = self.parts()
        return list(zip([s for s, _ in parts], x.split([n for _, n in parts]), strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, scale.dtype))
        for (slot, part), (_, target) in zip(self.split(x), self.split(out), strict=True):
            torch.addcmul(shift[slot].view(shape), part, scale[slot].view(shape), out=target)
        return out


class ClassRows:
    """One row per class, each in the slot of its class's group.

    Args:
        slots: int64, shape (C,).
        count: number of slots.
    """

    def __init__(self, slots: Tensor, count: int) -> None:
        self.slots = slots
        self.order = slots.argsort(stable=True)
        self.inverse = self.order.argsort()
        self.sizes = torch.bincount(slots, minlength=count).tolist()

    def fits(self, x: Tensor) -> bool:
        return x.ndim > 0 and len(x) == len(self.slots)

    def resized(self, before: Tensor, after: Tensor) -> ClassRows:
        return self

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        return [(s, part) for s, part in enumerate(x[self.order].split(self.sizes)) if len(part)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[self.inverse]

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        shape = (*x.shape[:2], *[1] * (x.ndim - 2))
        return torch.addcmul(shift[self.slots].view(shape), x, scale[self.slots].view(shape))
