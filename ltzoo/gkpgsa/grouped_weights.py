"""One forward and backward pass in which every group of samples has weights of its own.

Wherever a network brings weights and activations together, each group's rows meet that group's weights; batch-norm
still sees the joint statistics. The gradient of the loss with respect to a group's weights is then that group's share
of the gradient, and the shares add up to the gradient of the whole. With the same weights for all (the first pass of
GSA, Eq. 11) only the gradient of the weights is cut up.

Either a batch is sorted by group and worked on slice by slice, so that a pass costs what an ordinary one costs, however
many groups there are (`ltzoo.gkpgsa.sliced`, or `.sorted_rows` where a step is compiled); or all rows meet all weights
and each keeps its own (`.one_hot`).

It works on any network made of torch functions whose samples are the first dimension where weights meet them:
functions are caught as they are called, so that no module has to be written for it. Other networks are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa import one_hot, sliced, sorted_rows
from ltzoo.gkpgsa.rows import ClassRows, OneHotRows, Rows, SampleRows, SortedRows

__all__ = ['GroupedWeights']


class GroupedWeights(TorchFunctionMode):
    """Context in which parameters stand for one tensor per slot.

    Slots are the groups and, last, one for classes whose group is not in the batch. A parameter that is used as data,
    such as class vectors that become prototypes, is read class by class from the slot of the class's group.

    Args:
        weights: for every parameter, its tensors by slot; leaves that require grad.
        samples: rows of the batch.
        classes: one row for each class.
        shared: promise that all slots hold the same values; functions then run once for all rows.
    """

    def __init__(
        self,
        weights: Mapping[Tensor, Sequence[Tensor]],
        samples: SampleRows | OneHotRows,
        classes: ClassRows | OneHotRows,
        *,
        shared: bool,
    ) -> None:
        super().__init__()
        self.slots = len(next(iter(weights.values())))
        self.shared = shared
        self.samples = samples
        self.classes = classes
        # What was expanded from a parameter to as many rows as there are, such as a class token.
        self.expanded: set[int] = set()
        # By identity; the key itself is held so that its identity cannot be taken over by another tensor.
        self.grouped: dict[int, tuple[Tensor, Sequence[Tensor]]] = {id(p): (p, ws) for p, ws in weights.items()}

    def mark(self, x: Tensor) -> Tensor:
        """Return the same data, known as rows of the batch: for what goes into the network."""
        return _tag(x.view_as(x), self.samples)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        if any(id(t) in self.grouped for t in tensors):
            return self.call_grouped(func, args, kwargs, tensors)
        result = func(*args, **kwargs)
        if any(hasattr(t, '_rows') for t in tensors):
            self.pass_on(func, tensors, result)
        return result

    def pass_on(self, func: Callable[..., Any], tensors: list[Tensor], result: Any) -> None:
        """Note the rows of what was made of rows."""
        largest = max((t for t in tensors if hasattr(t, '_rows')), key=Tensor.numel)
        for out in _tensors((result,)):
            if hasattr(out, '_rows'):
                continue
            rows: Rows = largest._rows  # type: ignore[attr-defined]
            if func in _REPEATS and rows.fits(largest) and len(out) != len(largest):
                if len(tensors) > 1:
                    raise GkpGsaError('repeat_interleave repeats rows as a tensor says, which groups cannot follow')
                # Every row several times, one after the other, as if it were cut up.
                rows = rows.resized(out.view(len(largest), -1), out)
            elif func not in _MOVES:
                rows = rows.resized(largest, out)
            _tag(out, rows)

    def call_grouped(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        if func is F.multi_head_attention_forward:
            raise GkpGsaError(
                'nn.MultiheadAttention lays samples along the second dimension, where groups cannot be told apart: use '
                "attention made of linear layers, such as timm's"
            )
        if func is F.linear and 'input' in kwargs:
            args, kwargs = (kwargs['input'],), {key: value for key, value in kwargs.items() if key != 'input'}
        if func is F.linear and isinstance(args[0], nn.Parameter):
            if id(args[0]) in self.grouped:
                args = (self.read_by_class(args[0]), *args[1:])
            elif self.classes.fits(args[0]):
                # Frozen: the same in every slot, but its rows are classes all the same.
                args = (_tag(args[0].view_as(args[0]), self.classes), *args[1:])
            tensors = list(_tensors((*args, *kwargs.values())))
        rows = next((t._rows for t in tensors if hasattr(t, '_rows') and t._rows.fits(t)), None)  # type: ignore[attr-defined]
        if rows is None:
            return self.derive(func, args, kwargs)
        special: Callable[..., Any] | None = _SPECIAL.get(func)
        if getattr(func, '__name__', '') in _RECURRENT:
            special = functools.partial(_recurrent, func)
        result = None if special is None else special(self, rows, *args, **kwargs)
        if result is None:
            result = self.call_by_slot(func, args, kwargs, rows)
        for out in _tensors((result,)):
            _tag(out, rows)
        return result

    def weights_of(self, x: Tensor | None) -> Sequence[Tensor] | None:
        """Return a tensor by slot; what is not grouped is the same in every slot."""
        if x is None:
            return None
        found = self.grouped.get(id(x))
        return found[1] if found is not None else (x,) * self.slots

    def read_by_class(self, parameter: Tensor) -> Tensor:
        """Return a parameter with one row per class, each from its class's slot."""
        if not self.classes.fits(parameter):
            raise GkpGsaError(
                f'a parameter of shape {tuple(parameter.shape)} is used as data; groups can only tell apart '
                f'parameters with one row for each of the {len(self.classes.slots)} classes'
            )
        weights = self.grouped[id(parameter)][1]
        if isinstance(self.classes, OneHotRows):
            return _tag(self.classes.choose(weights), self.classes)
        rows_of = self.classes.order.split(self.classes.sizes)
        parts = [weights[s][rows] for s, rows in enumerate(rows_of) if len(rows)]
        return _tag(self.classes.join(parts), self.classes)

    def derive(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute something of parameters and constants once for every slot, such as a normalised weight."""
        if any(hasattr(x, '_rows') and x.ndim > 0 for x in _tensors((*args, *kwargs.values()))):
            raise GkpGsaError(
                f'{getattr(func, "__name__", func)} brings weights to an activation whose first dimension is not the '
                'samples, so that groups cannot be told apart'
            )
        results = [func(*self.replace(args, 0), **self.replace(kwargs, 0))]
        if not _is_tensors(results[0]):
            return results[0]
        results += [func(*self.replace(args, slot), **self.replace(kwargs, slot)) for slot in range(1, self.slots)]
        tensors = list(_tensors((*args, *kwargs.values())))
        # A constant with as many rows as the batch, such as positions made for every image, gives such rows too.
        expands = func in _EXPANDS or any(
            id(x) in self.expanded or (id(x) not in self.grouped and self.samples.fits(x)) for x in tensors
        )
        for same in zip(*(_tensors((result,)) for result in results), strict=True):
            self.grouped[id(same[0])] = (same[0], same)
            if expands:
                self.expanded.add(id(same[0]))
        return results[0]

    def at(self, x: Tensor, slot: int) -> Tensor:
        found = self.grouped.get(id(x))
        return x if found is None else found[1][slot]

    def replace(self, tree: Any, slot: int) -> Any:
        return _map(tree, lambda x: self.at(x, slot))

    def call_by_slot(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], rows: Rows) -> Any:
        """Call a function of single rows with every slot's rows and weights."""
        name = getattr(func, '__name__', '')
        if name.startswith('__i') or (name.endswith('_') and not name.endswith('__')):
            plain = getattr(Tensor, f'__{name[3:]}' if name.startswith('__i') else name[:-1], None)
            if plain is None or getattr(args[0], '_rows', None) is not rows:
                raise GkpGsaError(f'{name} changes an activation in place by a parameter, which groups cannot share')
            # What the derivative needs of it is kept, as PyTorch's own function in place does.
            before = _tag(args[0].clone(), rows)
            return args[0].copy_(self.call_by_slot(plain, (before, *args[1:]), kwargs, rows))
        if isinstance(rows, OneHotRows):
            by_slot = [func(*self.replace(args, slot), **self.replace(kwargs, slot)) for slot in range(rows.count)]
            if isinstance(by_slot[0], Tensor):
                return rows.choose(by_slot)
            return type(by_slot[0])(rows.choose(parts) for parts in zip(*by_slot, strict=True))
        tensors = list(_tensors((*args, *kwargs.values())))
        example = next(t for t in tensors if getattr(t, '_rows', None) is rows)

        def cut(x: Tensor) -> list[Tensor] | None:
            """Return the parts of whatever has these rows, also of something expanded from a grouped parameter."""
            found = self.grouped.get(id(x))
            if found is not None:
                if id(x) not in self.expanded or x.ndim == 0 or len(x) != len(example):
                    return None
                parts = [rows.split(w) for w in found[1]]
                return [parts[slot][i][1] for i, (slot, _) in enumerate(parts[0])]
            known = getattr(x, '_rows', None)
            return [part for _, part in rows.split(x)] if known is not None and rows.fits(x) else None

        cuts = {id(x): parts for x in tensors if (parts := cut(x)) is not None}
        results = []
        for i, (slot, _) in enumerate(rows.split(example)):

            def one(x: Tensor, i: int = i, slot: int = slot) -> Tensor:
                return cuts[id(x)][i] if id(x) in cuts else self.at(x, slot)

            results.append(func(*_map(args, one), **_map(kwargs, one)))
        if isinstance(results[0], Tensor):
            return rows.join(results)
        return type(results[0])(rows.join(parts) for parts in zip(*results, strict=True))


def _conv2d(
    mode: GroupedWeights, rows: Rows, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor | None:  # fmt: skip
    if isinstance(padding, str) or not rows.fits(input) or id(weight) not in mode.grouped:
        return None
    pairs = [(v, v) if isinstance(v, int) else tuple(v) for v in (stride, padding, dilation)]
    x, weights, biases = _cast(rows, input, mode.weights_of(weight), mode.weights_of(bias))
    return _of(rows).Conv2d.apply(x, rows, mode.shared, (*pairs, groups), len(weights), *weights, *biases)


def _linear(
    mode: GroupedWeights, rows: Rows, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if not rows.fits(input) or id(weight) not in mode.grouped:
        return None
    x, weights, biases = _cast(rows, input, mode.weights_of(weight), mode.weights_of(bias))
    return _of(rows).Linear.apply(x, rows, mode.shared, len(weights), *weights, *biases)


def _batch_norm(
    mode: GroupedWeights, rows: Rows, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    weights, biases = mode.weights_of(weight), mode.weights_of(bias)
    if not training or not rows.fits(input) or weights is None or biases is None:
        return None
    conf = (running_mean, running_var, momentum, eps)
    # Rows of classes have the form of the samples': a step that is compiled is so throughout.
    return _of(mode.samples).BatchNorm.apply(input, rows, mode.shared, conf, len(weights), *weights, *biases)


def _recurrent(
    func: Callable[..., tuple[Tensor, ...]], mode: GroupedWeights, rows: Rows,
    input: Tensor, hidden: Any, weights: Any, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Call an LSTM, GRU or RNN, whose states have samples in their second dimension, by slot."""
    states = (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
    if not rows.fits(input) or any(state.ndim != 3 or not rows.fits(state[0]) for state in states):
        raise GkpGsaError(f'{func.__name__} takes packed sequences, whose samples groups cannot tell apart')
    first = [state.transpose(0, 1) for state in states]

    def call(slot: int, part: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        begin = tuple(state.transpose(0, 1).contiguous() for state in parts)
        own = [mode.at(weight, slot) for weight in weights]
        output, *last = func(part, begin[0] if isinstance(hidden, Tensor) else begin, own, *rest)
        return output, *(state.transpose(0, 1) for state in last)

    if isinstance(rows, OneHotRows):
        joined = [rows.choose(same) for same in zip(*(call(s, input, first) for s in range(rows.count)), strict=True)]
    else:
        cut = zip(*(rows.split(x) for x in (input, *first)), strict=True)
        results = [call(whole[0][0], whole[0][1], [part for _, part in whole[1:]]) for whole in cut]
        joined = [rows.join(same) for same in zip(*results, strict=True)]
    output, *last = joined
    return output, *(state.transpose(0, 1) for state in last)


_RECURRENT = ('lstm', 'gru', 'rnn_tanh', 'rnn_relu')

# What is faster, or joint over the rows, and so cannot be called slot by slot.
_SPECIAL: dict[Any, Callable[..., Tensor | None]] = {
    F.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
}

_EXPANDS = (Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to)

_REPEATS = (Tensor.repeat_interleave, torch.repeat_interleave)

# They carry the rows to another dimension, from which they come back unchanged.
_MOVES = (Tensor.permute, torch.permute, Tensor.transpose, torch.transpose, Tensor.movedim, torch.movedim, Tensor.T)


def _of(rows: Rows) -> Any:
    if isinstance(rows, SortedRows):
        return sorted_rows
    return one_hot if isinstance(rows, OneHotRows) else sliced


def _cast(
    rows: Rows, x: Tensor, weights: Sequence[Tensor] | None, biases: Sequence[Tensor] | None
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Do what autocast does to a convolution or a matrix product: it does not look into our functions.

    Dense functions cast the weights of all slots at once themselves.
    """
    weights, biases = weights or (), biases or ()
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x = x.to(dtype)
        if not isinstance(rows, OneHotRows):
            weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    return x, weights, biases


def _tag(x: Tensor, rows: Rows) -> Tensor:
    x._rows = rows  # type: ignore[attr-defined]
    return x


def _tensors(tree: Any) -> Iterable[Tensor]:
    for x in tree:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def _is_tensors(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, (list, tuple)) and len(x) > 0 and all(map(_is_tensors, x)))


def _map(tree: Any, one: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return one(tree)
    if isinstance(tree, (list, tuple)) and not hasattr(tree, '_fields') and not isinstance(tree, torch.Size):
        return type(tree)(_map(x, one) for x in tree)
    if isinstance(tree, dict):
        return {key: _map(x, one) for key, x in tree.items()}
    return tree
