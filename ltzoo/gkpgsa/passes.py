"""Forward and backward passes that give every group its own gradient, at the same weights or each at its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.flat import FlatParameters
from ltzoo.gkpgsa.grouped_weights import GroupedWeights
from ltzoo.gkpgsa.rows import ClassRows, OneHotRows, RowsForm, SampleRows, SortedRows
from ltzoo.processes import averaged

__all__ = ['Losses', 'Passes', 'Views', 'buffers_kept', 'of_each']

Views = tuple[Tensor, ...]
# Takes views and labels of samples, in any order and number; returns their losses, shape (B,), of nothing else.
Losses = Callable[[Views, Tensor], Tensor]


@dataclass
class Passes:
    """The passes of one step; every one returns this process's mean loss, and the gradient's mean over processes.

    Args:
        losses: the objective.
        pieces: views and labels of this process's samples, cut up if the batch does not fit at once.
        layout: the parameters that gradients are taken of, d numbers in all.
        class_groups: group of every class, int64, shape (C,).
        groups: G.
        rows_form: see `GroupedSharpness`.
        autocast: makes the context of the forward passes.
        loss_scale: what the loss is multiplied by for fp16; the gradients keep it.
    """

    losses: Losses
    pieces: Sequence[tuple[Views, Tensor]]
    layout: FlatParameters
    class_groups: Tensor
    groups: int
    rows_form: RowsForm
    autocast: Callable[[], Any]
    loss_scale: Tensor | float
    # Places of the parameters that a loss used, and which groups are in the batch, over all pieces and processes.
    used: set[int] = field(default_factory=set)
    present: Tensor | None = None
    # By the place of a piece: both passes of a step have the same.
    rows: dict[int, tuple[SampleRows, ClassRows] | tuple[OneHotRows, OneHotRows]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(len(labels) for _, labels in self.pieces)

    def shares(self) -> Tensor:
        """Return each group's share of the batch over all processes, shape (G,)."""
        groups = torch.cat([self.class_groups[labels] for _, labels in self.pieces])
        counts = torch.zeros(self.groups, device=groups.device, dtype=self.layout.dtype)
        counts.index_add_(0, groups, torch.ones(len(groups), device=groups.device, dtype=counts.dtype))
        shares = averaged(counts / self.total)
        self.present = shares > 0
        return shares

    def shared(self, theta: Tensor | None, *, first_view: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Same weights for all (those of the module if `theta` is None): mean loss, gradient by group, and the rest.

        The gradients by group are (G, d). The rest, (d,), is what came through no sample: through prototypes of
        classes whose group is not in the batch.
        """
        layout = self.layout
        if self.groups == 1:
            mean, (gradient,) = self.whole(theta, first_view=first_view)
            return mean, gradient[None], torch.zeros_like(gradient)
        values = [p.detach() for p in layout.parameters] if theta is None else layout.unflatten(theta)
        slots = self.groups + 1
        weights = [[v.detach().requires_grad_() for _ in range(slots)] for v in values]
        return self._grouped(weights, shared=True, apart=True, first_view=first_view)

    def per_group(self, theta: Tensor, perturbation: Tensor, *, apart: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Every group at its own weights: gradient by group (G, d), and the rest; or not apart, all of it as one."""
        layout = self.layout
        if self.groups == 1:
            return self.shared(theta + perturbation[0])
        own = [layout.unflatten(theta + epsilon) for epsilon in perturbation]
        rest = [p.detach() for p in layout.parameters]
        weights = [
            [by_group[i].detach().requires_grad_() for by_group in own] + [rest[i].detach().requires_grad_()]
            for i in range(len(rest))
        ]
        return self._grouped(weights, shared=False, apart=apart)

    def whole(
        self, theta: Tensor | None, weightings: Sequence[Tensor | None] = (None,), *, first_view: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Everything at the weights `theta` (those of the module if None).

        Args:
            weightings: what each group's losses count, shape (G,), None for 1.

        Returns:
            The mean loss, unweighted, and the gradient (d,) of each weighting's.
        """
        layout = self.layout
        device = layout.parameters[0].device
        mean = torch.zeros((), device=device)
        gradients = [torch.zeros(sum(layout.sizes), device=device, dtype=layout.dtype) for _ in weightings]
        with nullcontext() if theta is None else layout.holding(theta):
            for views, labels in self.pieces:
                with self.autocast():
                    values = of_each(self.losses(views[:1] if first_view else views, labels), labels)
                groups = self.class_groups[labels]
                for i, (gradient, weights) in enumerate(zip(gradients, weightings, strict=True)):
                    weighted = values if weights is None else values * weights[groups]
                    loss = weighted.sum() / self.total * self.loss_scale
                    last = i + 1 == len(weightings)
                    grads = torch.autograd.grad(loss, layout.parameters, allow_unused=True, retain_graph=not last)
                    self.used.update(i for i, g in enumerate(grads) if g is not None)
                    gradient += layout.flatten(grads)
                mean += values.detach().sum() / self.total
        # Over the processes, as DistributedDataParallel does it.
        return mean, [averaged(gradient) for gradient in gradients]

    def _grouped(
        self, weights: list[list[Tensor]], *, shared: bool, apart: bool, first_view: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        layout, slots = self.layout, self.groups + 1
        mean = torch.zeros((), device=self.class_groups.device)
        gradient: Tensor | None = None
        for piece, (views, labels) in enumerate(self.pieces):
            if piece not in self.rows:
                self.rows[piece] = self._rows_of(labels)
            by_parameter: dict[Tensor, Sequence[Tensor]] = dict(zip(layout.parameters, weights, strict=True))
            with self.autocast(), GroupedWeights(by_parameter, *self.rows[piece], shared=shared) as mode:
                marked = tuple(mode.mark(view) for view in (views[:1] if first_view else views))
                values = of_each(self.losses(marked, labels), labels)
                if id(values) in mode.grouped:
                    raise GkpGsaError(
                        'the losses are not computed from the views that they are given, sample by sample: groups '
                        'cannot be told apart in tensors from outside, NumPy or scripted modules'
                    )
                loss = values.sum() / self.total
            leaves = [leaf for leaf_list in weights for leaf in leaf_list]
            grads = torch.autograd.grad(loss * self.loss_scale, leaves, allow_unused=True)
            self.used.update(i // slots for i, g in enumerate(grads) if g is not None)
            by_slot = torch.stack([layout.flatten(grads[slot::slots]) for slot in range(slots)])
            # A single sum is all that then has to go between processes.
            by_slot = by_slot if apart else by_slot.sum(0, keepdim=True)
            gradient = by_slot if gradient is None else gradient + by_slot
            mean += loss.detach()
        assert gradient is not None
        gradient = averaged(gradient)
        return (mean, gradient[:-1], gradient[-1]) if apart else (mean, gradient, torch.zeros_like(gradient[0]))

    def _rows_of(self, labels: Tensor) -> tuple[SampleRows, ClassRows] | tuple[OneHotRows, OneHotRows]:
        """Return which group samples and classes belong to; a class whose group is not in the batch is in none."""
        assert self.present is not None
        groups, slots = self.class_groups[labels], self.groups + 1
        class_slots = torch.where(self.present[self.class_groups], self.class_groups, self.groups)
        if self.rows_form == 'sorted':
            return SortedRows(groups, self.groups, sizes=_sizes(groups, self.groups)), OneHotRows(class_slots, slots)
        if self.rows_form == 'one_hot':
            return OneHotRows(groups, self.groups), OneHotRows(class_slots, slots)
        # The host waits for the device once.
        sizes = torch.stack([_sizes(part, slots) for part in (groups, class_slots)]).tolist()
        return SampleRows(tuple(sizes[0])), ClassRows(class_slots, sizes[1])


def _sizes(slots: Tensor, number: int) -> Tensor:
    """Return how many there are of each slot; `bincount` would wait for the device."""
    return torch.zeros(number, dtype=torch.int64, device=slots.device).index_add(0, slots, torch.ones_like(slots))


def of_each(values: Tensor, labels: Tensor) -> Tensor:
    """Return losses that are one of each sample.

    Raises:
        GkpGsaError: if they are not.
    """
    if values.shape != labels.shape:
        raise GkpGsaError(
            f'the losses have shape {tuple(values.shape)}, where one of each sample is needed, ({len(labels)},), as '
            "reduction='none' gives them"
        )
    return values


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Run a pass that leaves running statistics as they are."""
    buffers = list(module.buffers())
    copies = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)
