"""CUDA graphs on a CPU: what a recorded function may do, and what a replay does to memory.

While a graph records, every operation is noted and run; what it changed in place is put back, as a real recording runs
nothing. A replay runs the noted operations again on the same memory. Waiting for the device, and data that come from
the host, are refused as CUDA refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# What a function's result or its shape depends on lies in a tensor, which the host then waits for.
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Graph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor], set[int]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.generators = {torch.default_generator: torch.default_generator.get_state()}

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators[generator] = generator.get_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        waits = bool(READS & {*func.tags})
        if func.overloadpacket in BY_INDEX:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if waits:
            raise RuntimeError(f'{func} waits for the device')
        if func.overloadpacket is aten.lift_fresh:
            raise RuntimeError('data come from the host')
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {x.untyped_storage().data_ptr() for x in inputs}
        named = {**{a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}, **kwargs}
        for argument in func._schema.arguments:
            if torch.Tag.inplace_view in func.tags:
                break
            written = argument.alias_info is not None and argument.alias_info.is_write
            # Batch-norm changes them without saying so.
            if written or argument.name in ('running_mean', 'running_var'):
                self.remember(named.get(argument.name))
        as_now = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (args, kwargs))
        out = func(*args, **kwargs)
        # What changes a tensor's shape alone, in place, does nothing on the device.
        if torch.Tag.inplace_view not in func.tags:
            self.noted.append((func, *as_now, [x.detach() for x in tree_leaves(out) if isinstance(x, Tensor)], places))
        return out

    def remember(self, value: Any) -> None:
        for x in tree_leaves(value):
            if isinstance(x, Tensor) and id(x) not in self.before:
                self.before[id(x)] = (x, x.detach().clone())

    def put_back(self) -> None:
        """Undo what recording changed in memory that was there before it; the rest is written anew by a replay."""
        for x, value in reversed(self.before.values()):
            x.detach().copy_(value)
        for generator, state in self.generators.items():
            generator.set_state(state)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outs, places in self.noted:
                new = func(*args, **kwargs)
                for out, value in zip(outs, [x for x in tree_leaves(new) if isinstance(x, Tensor)], strict=True):
                    if out.untyped_storage().data_ptr() not in places and out.numel():
                        out.copy_(value)


@contextmanager
def record(graph: Graph, **_: Any) -> Iterator[None]:
    with graph:
        try:
            yield
        except RuntimeError:
            # CUDA's answer to the end of a recording that something stopped, whatever it was.
            raise RuntimeError('operation failed due to a previous error during capture')  # noqa: B904
    graph.put_back()


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


def install(patch: pytest.MonkeyPatch) -> list[Graph]:
    """Put the emulation in the place of `torch.cuda`'s; return the list that every graph is added to."""
    made: list[Graph] = []

    def new() -> Graph:
        made.append(Graph())
        return made[-1]

    patch.setattr(torch.cuda, 'CUDAGraph', new)
    patch.setattr(torch.cuda, 'graph', record)
    patch.setattr(torch.cuda, 'Stream', Stream)
    patch.setattr(torch.cuda, 'stream', lambda stream: nullcontext())
    patch.setattr(torch.cuda, 'current_stream', Stream)
    return made
