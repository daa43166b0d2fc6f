"""Which rows of an activation belong to which group of samples or classes.

In three forms. Sliced rows lie sorted by group, or can be sorted, and are worked on a slice at a time. One-hot rows lie
in any order, and which group a row belongs to is known to the device alone. Sorted rows lie sorted by group too, but
where one group ends is known only when the work is done.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

__all__ = [
    'ClassRows',
    'OneHotRows',
    'Rows',
    'RowsForm',
    'SampleRows',
    'SlicedRows',
    'SortedRows',
    'add_scaled_',
    'affine',
]

_R = TypeVar('_R', bound='_BatchRows')

RowsForm = Literal['sliced', 'one_hot', 'sorted']


def affine(x: Tensor, scale: Tensor, shift: Tensor, *, out: Tensor) -> Tensor:
    """Write x times scale plus shift to `out`, and return it.

    Args:
        x: shape (R, C, ...).
        scale, shift: shape (C,), or (R, C) where every row has its own; maybe of a wider type than x.
        out: as x.
    """
    if scale.ndim == 1 and _slow_together(x, scale):
        return out.copy_(_affine_by_batch_norm(x, scale, shift))
    shape = (*scale.shape, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape), out=out)


def add_scaled_(y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Add x times scale, by channel, to `y`, and return it.

    Args:
        y: as x.
        x: shape (R, C, ...).
        scale: shape (C,), maybe of a wider type than x.
    """
    if _slow_together(x, scale):
        return y.add_(_affine_by_batch_norm(x, scale, torch.zeros_like(scale)))
    return y.addcmul_(x, scale.view(-1, *[1] * (x.ndim - 2)))


def _slow_together(x: Tensor, other: Tensor) -> bool:
    """Return whether arithmetic of both copies an activation into a wider type first: two types, on a CPU."""
    return x.device.type == 'cpu' and x.dtype != other.dtype


def _affine_by_batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x times scale plus shift by batch-norm's own arithmetic, which takes two types as they are."""
    return torch.batch_norm(x, scale, shift, torch.zeros_like(scale), torch.ones_like(scale), False, 0.0, 0.0, False)


class _BatchRows(ABC):
    """Rows of shape (repeats, batch, inner), in that order.

    Views concatenated along the batch are repeats of it; what a network cuts every image into, such as windows, is
    inner.
    """

    repeats: int
    inner: int

    @property
    @abstractmethod
    def batch(self) -> int: ...

    def fits(self, x: Tensor) -> bool:
        """Return whether the first dimension of `x` is these rows."""
        return x.ndim > 0 and len(x) == self.repeats * self.batch * self.inner

    def resized(self: _R, before: Tensor, after: Tensor) -> _R:
        """Return the rows of `after`, which was made from `before` by reshaping or selecting."""
        if after.ndim == 0 or self.fits(after):
            return self
        same = before.numel() == after.numel()
        if self.fits(before):
            # Cut up, every row becomes several; joined with others, the rows come several times.
            changed, unit = ('inner', self.batch * self.repeats) if same else ('repeats', self.batch * self.inner)
        elif same and before.ndim > 1 and self.fits(before[0]):
            # Merged with the dimension before them, such as that of stacked views.
            changed, unit = 'repeats', self.batch * self.inner
        else:
            return self
        rows = len(after)
        if rows == 0 or rows % unit:
            return self
        return dataclasses.replace(self, **{changed: rows // unit})  # type: ignore[type-var]


@dataclass(frozen=True)
class SampleRows(_BatchRows):
    """Rows of a batch that is sorted by slot."""

    sizes: tuple[int, ...]
    """Samples of every slot in the batch."""
    repeats: int = 1
    inner: int = 1

    @property
    def batch(self) -> int:
        return sum(self.sizes)

    def parts(self) -> list[tuple[int, int]]:
        """Return (slot, number of rows) pairs in the order of the rows."""
        return [(s, n * self.inner) for _ in range(self.repeats) for s, n in enumerate(self.sizes) if n]

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Return (slot, its rows) pairs; a slot may come more than once."""
        parts = self.parts()
        return list(zip([s for s, _ in parts], x.split([n for _, n in parts]), strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo `split`."""
        return torch.cat(list(parts))

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return x times its slot's scale plus its slot's shift, by channel, in the type of x.

        Args:
            x: shape (R, C, ...).
            scale, shift: shape (S, C).
        """
        out = torch.empty_like(x)
        for (slot, part), (_, target) in zip(self.split(x), self.split(out), strict=True):
            affine(part, scale[slot], shift[slot], out=target)
        return out


class ClassRows:
    """One row per class, each in the slot of its class's group.

    Args:
        slots: int64, shape (C,).
        sizes: classes of every slot.
    """

    def __init__(self, slots: Tensor, sizes: Sequence[int]) -> None:
        self.slots = slots
        self.order = slots.argsort(stable=True)
        self.inverse = self.order.argsort()
        self.sizes = list(sizes)

    def fits(self, x: Tensor) -> bool:
        return x.ndim > 0 and len(x) == len(self.slots)

    def resized(self, before: Tensor, after: Tensor) -> ClassRows:
        return self

    def split(self, x: Tensor) -> list[tuple[int, Tensor]]:
        return [(s, part) for s, part in enumerate(x[self.order].split(self.sizes)) if len(part)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[self.inverse]

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return affine(x, scale[self.slots], shift[self.slots], out=torch.empty_like(x))


@dataclass(frozen=True, eq=False)
class OneHotRows(_BatchRows):
    """Rows of samples or classes in any order.

    Attributes:
        slots: slot of every sample or class, int64, shape (B,), below `count`.
        count: how many slots they can belong to.
    """

    slots: Tensor
    count: int
    repeats: int = 1
    inner: int = 1

    @property
    def batch(self) -> int:
        return len(self.slots)

    @cached_property
    def index(self) -> Tensor:
        """Slot of every row: int64, shape (R,)."""
        return self.slots[None, :, None].expand(self.repeats, -1, self.inner).reshape(-1)

    @cached_property
    def one_hot(self) -> Tensor:
        """Whether a row belongs to a slot: bool, shape (R, count)."""
        return self.index[:, None] == torch.arange(self.count, device=self.slots.device)

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """As that of `SampleRows`."""
        return affine(x, scale[self.index], shift[self.index], out=torch.empty_like(x))

    def choose(self, values: Sequence[Tensor]) -> Tensor:
        """Return each row from its own slot's values, which have shape (R, ...)."""
        chosen = values[0]
        for slot, value in enumerate(values[1 : self.count], 1):
            chosen = torch.where(self.one_hot[:, slot].view(-1, *[1] * (value.ndim - 1)), value, chosen)
        return chosen


@dataclass(frozen=True, eq=False)
class SortedRows(OneHotRows):
    """One-hot rows that lie sorted by slot, so that they can be cut up where the work is done.

    Attributes:
        sizes: samples of every slot, int64, shape (count,).
    """

    sizes: Tensor = field(kw_only=True)


# The rows of one activation, each belonging to one slot: a group, or the last slot, which is no group.
SlicedRows = SampleRows | ClassRows
Rows = SlicedRows | OneHotRows
