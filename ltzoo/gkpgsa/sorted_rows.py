"""Functions of rows sorted by slot, a slice at a time, whose sizes are looked at only when the work is done.

No shape depends on the groups in the batch, as with `ltzoo.gkpgsa.one_hot`, and convolutions and matrix products waste
no arithmetic, as with `.sliced`: what a CPU needs to compile a step once for all batches. The functions take what those
take, and give the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltzoo.gkpgsa import one_hot, sliced
from ltzoo.gkpgsa.rows import Rows, SortedRows

__all__ = ['BatchNorm', 'Conv2d', 'Linear']


class Conv2d(torch.autograd.Function):
    """Convolution; with shared weights in one piece but for the gradient of the weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: SortedRows, shared: bool, conf: tuple[Any, ...], count: int, *tensors: Tensor
    ) -> Tensor:
        weight, bias = _kept(ctx, x, rows, shared, count, tensors)
        ctx.conf = ([list(pair) for pair in conf[:3]], conf[3])
        if shared:
            return torch.conv2d(x, weight[0], None if bias is None else bias[0], *conf)
        pairs, groups = ctx.conf
        return _convolve(x, weight, bias, rows.sizes, rows.repeats, rows.inner, *pairs, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        rows, (pairs, groups), needs_x = ctx.rows, ctx.conf, ctx.needs_input_grad[0]
        grad_x, grad_w, grad_b = _convolve_backward(
            grad,
            x,
            weight,
            rows.sizes,
            rows.repeats,
            rows.inner,
            *pairs,
            groups,
            needs_x and not ctx.shared,
            ctx.biased,
        )
        if needs_x and ctx.shared:
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight[0], None, *pairs, False, [0, 0], groups, [True, False, False]
            )[0]
        return (grad_x if needs_x else None, None, None, None, None, *_by_slot(ctx, grad_w, grad_b))


class Linear(torch.autograd.Function):
    """Matrix product; with shared weights in one piece but for the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: SortedRows, shared: bool, count: int, *tensors: Tensor) -> Tensor:
        weight, bias = _kept(ctx, x, rows, shared, count, tensors)
        if shared:
            return F.linear(x, weight[0], None if bias is None else bias[0])
        return _multiply(x, weight, bias, rows.sizes, rows.repeats, rows.inner)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        rows, needs_x = ctx.rows, ctx.needs_input_grad[0]
        grad_x, grad_w, grad_b = _multiply_backward(
            grad, x, weight, rows.sizes, rows.repeats, rows.inner, needs_x and not ctx.shared, ctx.biased
        )
        if needs_x and ctx.shared:
            grad_x = grad @ weight[0]
        return (grad_x if needs_x else None, None, None, None, *_by_slot(ctx, grad_w, grad_b))


class BatchNorm(one_hot.BatchNorm):
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
        # It changes running statistics without declaring it, which once compiled could come in another order: it gets
        # others, whose type makes it compute in that.
        others = torch.zeros_like(weights[0])
        mean, variance = torch.batch_norm_update_stats(x, others, others.clone(), momentum)
        if running_mean is not None:
            pixels = x.numel() // x.shape[1]
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (pixels / max(pixels - 1, 1))).to(running_var.dtype), momentum)
        y, rstd = sliced.normalised(x, rows, mean, variance, eps, weights, biases)
        ctx.save_for_backward(x, mean, rstd, *weights)
        ctx.rows, ctx.shared, ctx.eps = rows, shared, eps
        return y


def _kept(
    ctx: Any, x: Tensor, rows: SortedRows, shared: bool, count: int, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None]:
    """Keep what the derivative needs, and return weights and biases by slot as one tensor each, in the type of x."""
    weights, biases = tensors[:count], tensors[count:]
    weight = torch.stack(weights[: rows.count]).to(x.dtype)
    ctx.save_for_backward(x, weight)
    ctx.rows, ctx.shared, ctx.count, ctx.biased = rows, shared, count, len(biases) > 0
    ctx.dtype = weights[0].dtype
    return weight, torch.stack(biases[: rows.count]).to(x.dtype) if biases else None


def _by_slot(ctx: Any, grad_w: Tensor, grad_b: Tensor) -> list[Tensor | None]:
    """Return gradients one by one, in the type of the weights, with nothing for slots that have no rows."""
    spare = [None] * (ctx.count - ctx.rows.count)
    biases = [*grad_b.to(ctx.dtype), *spare] if ctx.biased else []
    return [*grad_w.to(ctx.dtype), *spare, *biases]


# The functions from here on are taken as they are by what compiles a step. Their first arguments are x, of shape
# (R, ...), sorted as `SortedRows` says; weight and bias by slot, (S, ...); and samples of every slot, int64, (S,).


@torch.library.custom_op('ltzoo::conv2d_by_slot', mutates_args=())
def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor, repeats: int, inner: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    y = _empty_convolved(x, weight, bias, sizes, repeats, inner, stride, padding, dilation, groups)
    for slot, rows in _slices(sizes, repeats, inner):
        b = None if bias is None else bias[slot]
        y[rows] = torch.conv2d(x[rows], weight[slot], b, stride, padding, dilation, groups)
    return y


@_convolve.register_fake
def _empty_convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor, repeats: int, inner: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    steps = zip(x.shape[2:], weight.shape[3:], stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps]
    return torch.empty(
        (len(x), weight.shape[1], *size), dtype=x.dtype, device=x.device, memory_format=_layout(x, weight)
    )


@torch.library.custom_op('ltzoo::conv2d_by_slot_backward', mutates_args=())
def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Tensor, repeats: int, inner: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, needs_x: bool, biased: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of weight and bias; empty for x if it is not needed, and for no bias."""
    grad_x, grad_w, grad_b = _empty_convolution_gradients(
        grad, x, weight, sizes, repeats, inner, stride, padding, dilation, groups, needs_x, biased
    )
    grad_w.zero_()
    grad_b.zero_()
    for slot, rows in _slices(sizes, repeats, inner):
        gx, gw, gb = torch.ops.aten.convolution_backward(
            grad[rows], x[rows], weight[slot], [weight.shape[1]], stride, padding, dilation, False, [0, 0], groups,
            [needs_x, True, biased],
        )  # fmt: skip
        if needs_x:
            grad_x[rows] = gx
        grad_w[slot] += gw
        if biased:
            grad_b[slot] += gb
    return grad_x, grad_w, grad_b


@_convolve_backward.register_fake
def _empty_convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Tensor, repeats: int, inner: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int, needs_x: bool, biased: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(x, memory_format=_layout(x, weight)) if needs_x else x.new_empty(0)
    return grad_x, torch.empty_like(weight), weight.new_empty(weight.shape[:2] if biased else 0)


@torch.library.custom_op('ltzoo::linear_by_slot', mutates_args=())
def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor, repeats: int, inner: int) -> Tensor:
    y = _empty_product(x, weight, bias, sizes, repeats, inner)
    for slot, rows in _slices(sizes, repeats, inner):
        y[rows] = F.linear(x[rows], weight[slot], None if bias is None else bias[slot])
    return y


@_multiply.register_fake
def _empty_product(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor, repeats: int, inner: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


@torch.library.custom_op('ltzoo::linear_by_slot_backward', mutates_args=())
def _multiply_backward(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Tensor, repeats: int, inner: int, needs_x: bool, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and of weight and bias; empty for x if it is not needed, and for no bias."""
    grad_x, grad_w, grad_b = _empty_product_gradients(grad, x, weight, sizes, repeats, inner, needs_x, biased)
    grad_w.zero_()
    grad_b.zero_()
    for slot, rows in _slices(sizes, repeats, inner):
        g, part = (t[rows].reshape(-1, t.shape[-1]) for t in (grad, x))
        if needs_x:
            grad_x[rows] = grad[rows] @ weight[slot]
        grad_w[slot] += g.T @ part
        if biased:
            grad_b[slot] += g.sum(0)
    return grad_x, grad_w, grad_b


@_multiply_backward.register_fake
def _empty_product_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Tensor, repeats: int, inner: int, needs_x: bool, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs_x else 0),
        torch.empty_like(weight),
        weight.new_empty(weight.shape[:2] if biased else 0),
    )


def _slices(sizes: Tensor, repeats: int, inner: int) -> Iterator[tuple[int, slice]]:
    """Return (slot, its rows) pairs; a slot may come more than once."""
    samples, start = sizes.tolist(), 0
    for _ in range(repeats):
        for slot, count in enumerate(samples):
            if count:
                yield slot, slice(start, start + count * inner)
                start += count * inner


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return how PyTorch lays out what a convolution gives: channels-last if one of both is."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight[0]))
    return torch.channels_last if last else torch.contiguous_format
