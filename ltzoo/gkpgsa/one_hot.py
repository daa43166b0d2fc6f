"""Functions of all rows with every group's weights, of which each row keeps its own group's: shapes never change.

A weight has one block of outputs for every slot, so a convolution does the arithmetic of all slots in one call. That is
wasted on a CPU, where `ltzoo.gkpgsa.sliced` is faster; a GPU has it to spare, is spared many small calls, and never has
to tell the host how large the groups are, so that a step can be recorded once and replayed.

Every function takes (input, rows, whether all slots share one weight, settings if any, number of slots, weights by
slot, biases by slot); there may be more slots than rows belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltzoo.gkpgsa import sliced
from ltzoo.gkpgsa.rows import OneHotRows

__all__ = ['BatchNorm', 'Conv2d', 'Linear']


class Conv2d(torch.autograd.Function):
    """Convolution; with shared weights only the gradient of the weights has a block for every slot."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: OneHotRows, shared: bool, conf: tuple[Any, ...], count: int, *tensors: Tensor
    ) -> Tensor:
        weights, biases = tensors[:count], tensors[count:]
        groups = conf[-1]
        weight, stacked = weights[0].to(x.dtype), _stack(weights[: rows.count], groups).to(x.dtype)
        ctx.save_for_backward(x, weight, stacked)
        ctx.rows, ctx.shared, ctx.conf, ctx.count, ctx.biased = rows, shared, conf, count, len(biases) > 0
        ctx.dtype = weights[0].dtype
        if shared:
            return torch.conv2d(x, weight, biases[0].to(x.dtype) if biases else None, *conf)
        bias = _stack(biases[: rows.count], groups).to(x.dtype) if biases else None
        return _no_view(_select(torch.conv2d(x, stacked, bias, *conf), rows, groups))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, stacked = ctx.saved_tensors
        rows, groups = ctx.rows, ctx.conf[-1]
        needs_x = ctx.needs_input_grad[0]

        def backward(g: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
            sizes = [len(weight)] if ctx.biased else None
            stride, padding, dilation, _ = ctx.conf
            return torch.ops.aten.convolution_backward(
                g, x, weight, sizes, stride, padding, dilation, False, [0, 0], groups, mask
            )

        wide = _spread(grad, rows, groups)
        grad_x, grad_w, grad_b = backward(wide, stacked, [needs_x and not ctx.shared, True, ctx.biased])
        if needs_x and ctx.shared:
            grad_x = backward(grad, weight, [True, False, False])[0]
        weights = _unstack(grad_w.to(ctx.dtype), rows, groups, ctx.count)
        biases = _unstack(grad_b.to(ctx.dtype), rows, groups, ctx.count) if ctx.biased else []
        return (grad_x if needs_x else None, None, None, None, None, *weights, *biases)


class Linear(torch.autograd.Function):
    """Matrix product; with shared weights only the gradient of the weights has a block for every slot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: OneHotRows, shared: bool, count: int, *tensors: Tensor) -> Tensor:
        weights, biases = tensors[:count], tensors[count:]
        weight, stacked = weights[0].to(x.dtype), _stack(weights[: rows.count]).to(x.dtype)
        ctx.save_for_backward(x, weight, stacked)
        ctx.rows, ctx.shared, ctx.count, ctx.biased = rows, shared, count, len(biases) > 0
        ctx.dtype = weights[0].dtype
        if shared:
            return F.linear(x, weight, biases[0].to(x.dtype) if biases else None)
        wide = F.linear(x, stacked, _stack(biases[: rows.count]).to(x.dtype) if biases else None)
        return _no_view(_select(wide.movedim(-1, 1), rows).movedim(1, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, stacked = ctx.saved_tensors
        wide = _spread(grad.movedim(-1, 1), ctx.rows).movedim(1, -1)
        flat = wide.reshape(-1, wide.shape[-1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight if ctx.shared else wide @ stacked
        weights = _unstack((flat.T @ x.reshape(-1, x.shape[-1])).to(ctx.dtype), ctx.rows, 1, ctx.count)
        biases = _unstack(flat.sum(0, dtype=ctx.dtype), ctx.rows, 1, ctx.count) if ctx.biased else []
        return (grad_x, None, None, None, *weights, *biases)


class BatchNorm(sliced.BatchNorm):
    """Batch-norm in training: joint statistics, every slot's own scale and shift."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, *by_slot = ctx.saved_tensors
        weights, spare = torch.stack(by_slot[: ctx.rows.count]), [None] * (len(by_slot) - ctx.rows.count)
        pixels = tuple(range(2, x.ndim))
        # Summed in the wider type, without a copy of the activation in it; fp16 has not the range for the product.
        product = (grad.to(mean.dtype) if grad.dtype == torch.float16 else grad) * x
        by_row, by_row_x = (
            t.sum(pixels, dtype=mean.dtype) if pixels else t.to(mean.dtype) for t in (grad, product)
        )  # fmt: skip
        belongs = ctx.rows.one_hot.T.to(mean.dtype)
        grad_bias = belongs @ by_row
        grad_weight = (belongs @ by_row_x - mean * grad_bias) * rstd
        if ctx.shared:
            grad_x = torch.ops.aten.native_batch_norm_backward(
                grad, x, weights[0], None, None, mean, rstd, True, ctx.eps, [True, False, False]
            )[0]
        else:
            through_variance, through_mean = ((weights * g).sum(0) for g in (grad_weight, grad_bias))
            grad_x = sliced.batch_norm_input_gradient(
                grad, x, ctx.rows, weights, mean, rstd, through_variance, through_mean
            )
        return (grad_x, None, None, None, None, *grad_weight, *spare, *grad_bias, *spare)


def _stack(tensors: Sequence[Tensor], groups: int = 1) -> Tensor:
    """Return one tensor with, in each of a convolution's groups, the outputs of all slots one after the other.

    It lies in memory as they do: what a channels-last network computes stays channels-last.
    """
    last = _channels(tensors[0])[1] > 1
    by_slot = [(t.movedim(1, -1) if last else t).unflatten(0, (groups, -1)) for t in tensors]
    stacked = torch.stack(by_slot, 1).flatten(0, 2)
    return stacked.movedim(-1, 1) if last else stacked


def _unstack(stacked: Tensor, rows: OneHotRows, groups: int, count: int) -> list[Tensor | None]:
    """Undo `_stack`, with nothing for slots that have no rows."""
    by_slot = stacked.unflatten(0, (groups, rows.count, -1)).unbind(1)
    return [*(t.flatten(0, 1) for t in by_slot), *[None] * (count - rows.count)]


def _select(wide: Tensor, rows: OneHotRows, groups: int = 1) -> Tensor:
    """Return of (R, groups x slots x C, ...) each row's own slot: (R, groups x C, ...)."""
    wide, dim = _channels(wide)
    by_slot = _packed(wide.unflatten(dim, (groups, rows.count, -1)))
    index = rows.index.view(-1, *[1] * (by_slot.ndim - 1)).expand(
        *by_slot.shape[: dim + 1], 1, *by_slot.shape[dim + 2 :]
    )
    own = by_slot.gather(dim + 1, index).view(wide.dtype).flatten(dim, dim + 2)
    return own if dim == 1 else own.movedim(-1, 1)


def _spread(x: Tensor, rows: OneHotRows, groups: int = 1) -> Tensor:
    """Undo `_select` with zeros in the other slots."""
    x, dim = _channels(x)
    by_slot = _packed(x.unflatten(dim, (groups, 1, -1)))
    shape = [1] * by_slot.ndim
    shape[0], shape[dim + 1] = len(rows.index), rows.count
    wide = torch.where(rows.one_hot.view(shape), by_slot, 0).view(x.dtype).flatten(dim, dim + 2)
    return wide if dim == 1 else wide.movedim(-1, 1)


def _packed(x: Tensor) -> Tensor:
    """Return the same memory as numbers of 8 bytes, where it can be cut so: a quarter of the half-precision numbers.

    What only moves them is bound by their count on a GPU. A packed zero is as many zeros.
    """
    size = 8 // x.element_size()
    steps = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    return x.view(torch.int64) if x.stride(-1) == 1 and all(step % size == 0 for step in steps) else x


def _no_view(x: Tensor) -> Tensor:
    """Return the same memory as a tensor of its own: autograd lets no activation change a function's view in place."""
    return x.data


def _channels(x: Tensor) -> tuple[Tensor, int]:
    """Return the tensor with its channels where they lie in memory, and which dimension that is."""
    last = x.ndim > 2 and x.stride(1) == 1 and not x.is_contiguous()
    return (x.movedim(1, -1), x.ndim - 1) if last else (x, 1)
