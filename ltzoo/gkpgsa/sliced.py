"""Functions of rows sorted by group, a slice at a time: no arithmetic is wasted, but shapes follow the group sizes.

The functions take what `ltzoo.gkpgsa.one_hot` takes, and give the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltzoo.gkpgsa.rows import Rows, SlicedRows, add_scaled_

__all__ = ['BatchNorm', 'Conv2d', 'Linear']


class Conv2d(torch.autograd.Function):
    """Convolution; with shared weights in one piece but for the gradient of the weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: SlicedRows, shared: bool, conf: tuple[Any, ...], count: int, *tensors: Tensor
    ) -> Tensor:
        weights, biases = tensors[:count], tensors[count:]
        ctx.save_for_backward(x, *weights)
        ctx.rows, ctx.shared, ctx.conf, ctx.biased = rows, shared, conf, len(biases) > 0
        if shared:
            return torch.conv2d(x, weights[0], biases[0] if biases else None, *conf)
        return rows.join(
            [torch.conv2d(part, weights[s], biases[s] if biases else None, *conf) for s, part in rows.split(x)]
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.conf
        needs_x = ctx.needs_input_grad[0]

        def backward(g: Tensor, part: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
            sizes = [len(weight)] if ctx.biased else None
            return torch.ops.aten.convolution_backward(
                g, part, weight, sizes, stride, padding, dilation, False, [0, 0], groups, mask
            )

        grad_x = backward(grad, x, weights[0], [True, False, False])[0] if ctx.shared and needs_x else None
        sums: dict[int, tuple[Tensor, Tensor | None]] = {}
        parts_x = []
        mask = [needs_x and not ctx.shared, True, ctx.biased]
        for (slot, part), (_, g) in zip(ctx.rows.split(x), ctx.rows.split(grad), strict=True):
            gx, gw, gb = backward(g, part, weights[slot], mask)
            parts_x.append(gx)
            _add(sums, slot, gw, gb)
        if needs_x and not ctx.shared:
            grad_x = ctx.rows.join(parts_x)
        return (grad_x, None, None, None, None, *_by_slot(sums, len(weights), ctx.biased))


class Linear(torch.autograd.Function):
    """Matrix product with every slot's weight; with shared weights in one piece but for their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: SlicedRows, shared: bool, count: int, *tensors: Tensor) -> Tensor:
        weights, biases = tensors[:count], tensors[count:]
        ctx.save_for_backward(x, *weights)
        ctx.rows, ctx.shared, ctx.biased = rows, shared, len(biases) > 0
        if shared:
            return F.linear(x, weights[0], biases[0] if biases else None)
        return rows.join([F.linear(part, weights[s], biases[s] if biases else None) for s, part in rows.split(x)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        grad_x = grad @ weights[0] if ctx.shared and needs_x else None
        sums: dict[int, tuple[Tensor, Tensor | None]] = {}
        parts_x = []
        for (slot, part), (_, g) in zip(ctx.rows.split(x), ctx.rows.split(grad), strict=True):
            flat = g.reshape(-1, g.shape[-1])
            gw = flat.T @ part.reshape(-1, part.shape[-1])
            gb = flat.sum(0) if ctx.biased else None
            if needs_x and not ctx.shared:
                parts_x.append(g @ weights[slot])
            _add(sums, slot, gw, gb)
        if needs_x and not ctx.shared:
            grad_x = ctx.rows.join(parts_x)
        return (grad_x, None, None, None, *_by_slot(sums, len(weights), ctx.biased))


class BatchNorm(torch.autograd.Function):
    """Batch-norm in training: joint statistics, every slot's own scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Rows,
        shared: bool,
        conf: tuple[Any, ...],
        count: int,
        *tensors: Tensor,
    ) -> Tensor:
        running_mean, running_var, momentum, eps = conf
        weights, biases = tensors[:count], tensors[count:]
        if shared:
            y, mean, rstd = torch.ops.aten.native_batch_norm(
                x, weights[0], biases[0], running_mean, running_var, True, momentum, eps
            )
        else:
            mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
            y, rstd = normalised(x, rows, mean, variance, eps, weights, biases)
        ctx.save_for_backward(x, mean, rstd, *weights)
        ctx.rows, ctx.shared, ctx.eps = rows, shared, eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, *weights = ctx.saved_tensors
        sums: dict[int, tuple[Tensor, Tensor | None]] = {}
        for (slot, part), (_, g) in zip(ctx.rows.split(x), ctx.rows.split(grad), strict=True):
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                g, part, weights[slot], None, None, mean, rstd, True, ctx.eps, [False, True, True]
            )
            _add(sums, slot, grad_weight, grad_bias)
        by_slot = _by_slot(sums, len(weights), biased=True)
        through_variance, through_mean = (
            torch.stack([weights[s] * grads[s] for s in sums]).sum(0)
            for grads in (by_slot[: len(weights)], by_slot[len(weights) :])
        )
        grad_x = batch_norm_input_gradient(
            grad, x, ctx.rows, torch.stack(weights), mean, rstd, through_variance, through_mean
        )
        return (grad_x, None, None, None, None, *by_slot)


def normalised(
    x: Tensor,
    rows: Rows,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Return x, (R, C, ...), by batch-norm with each slot's own scale and shift, and 1 / the deviation, (C,)."""
    rstd = (variance + eps).rsqrt()
    scale = torch.stack(weights) * rstd
    return rows.affine(x, scale, torch.stack(biases) - mean * scale), rstd


def batch_norm_input_gradient(
    grad: Tensor,
    x: Tensor,
    rows: Rows,
    weights: Tensor,
    mean: Tensor,
    rstd: Tensor,
    through_variance: Tensor,
    through_mean: Tensor,
) -> Tensor:
    """Return the gradient of batch-norm's input: each slot's scale times grad, and what goes by the joint statistics.

    Args:
        grad: of the output, as x: (R, C, ...).
        weights: scale by slot, (S, C).
        mean, rstd: of x over all rows, (C,).
        through_variance, through_mean: gradients of scale and of shift, each times its slot's scale, summed over
            slots, (C,).
    """
    # The derivative through the joint mean and variance is slope x + offset.
    count = x.numel() // x.shape[1]
    slope = -rstd.square() * through_variance / count
    offset = -rstd * through_mean / count - slope * mean
    return add_scaled_(rows.affine(grad, weights * rstd, offset.expand_as(weights)), x, slope)


def _add(sums: dict[int, tuple[Tensor, Tensor | None]], slot: int, weight: Tensor, bias: Tensor | None) -> None:
    if slot in sums:
        weight, before = sums[slot][0] + weight, sums[slot][1]
        bias = bias if before is None or bias is None else before + bias
    sums[slot] = (weight, bias)


def _by_slot(sums: Mapping[int, tuple[Tensor, Tensor | None]], slots: int, biased: bool) -> list[Tensor | None]:
    weights = [sums[s][0] if s in sums else None for s in range(slots)]
    biases = [sums[s][1] if s in sums else None for s in range(slots)] if biased else []
    return [*weights, *biases]
