"""Functions of tensors that are traced once and compiled: what lies between convolutions becomes one loop each.

A small network's step on a CPU is bound by memory: batch-norm, activations and sums read and write every number again.
PyTorch's compiler makes one pass of many (https://docs.pytorch.org/docs/stable/torch.compiler.html); it is given the
operations that a call has carried out, forward and backward, instead of the Python that called for them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ltzoo.errors import LtzooError, is_out_of_memory, one_line

__all__ = ['CompileError', 'Compiled', 'compiler_errors']

logger = logging.getLogger(__name__)


class CompileError(LtzooError, RuntimeError):
    """A function that cannot be compiled: what is in tensors decides what it does, or there is no C++ compiler."""


class _NothingRead(TorchDispatchMode):
    """Context in which nothing may ask what is in a tensor: a trace would go on with the answer of its own call."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func is torch.ops.aten.index.Tensor:
            # By numbers of rows it always gives as many, by truth values as many as are true.
            reads = {i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)}
        if reads:
            raise RuntimeError(f'{func} depends on what is in a tensor')
        return func(*args, **(kwargs or {}))


class Compiled:
    """A function that does the same work in every call.

    Shapes, branches and numbers in Python, random ones too, must be the same in every call; what changes is in the
    inputs or in tensors that are changed in place. The first call runs as it is, for tensors that are only made then;
    the second is traced; all others run what was compiled.

    Args:
        function: of tensors, returns tensors; it may add to the `grad` of parameters that have none before it.
        parameters: those it gives a gradient.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[nn.Parameter] = ()) -> None:
        self.function = function
        self.parameters = list(parameters)
        self.forget()

    def forget(self) -> None:
        """Trace anew: something in Python has changed."""
        self.calls = 0
        self.shapes: list[torch.Size] = []
        self.compiled: Callable[..., tuple[Any, list[Tensor]]] | None = None
        # Which of the parameters get a gradient.
        self.used: list[nn.Parameter] = []

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns.

        Raises:
            CompileError: if the function cannot be compiled, or the inputs' shapes change.
        """
        self.calls += 1
        if self.calls == 1:
            return self.function(*inputs)
        if self.compiled is None:
            return self._trace(inputs)
        for shape, new in zip(self.shapes, inputs, strict=True):
            if shape != new.shape:
                raise CompileError(
                    f'a step was compiled for a batch of shape {tuple(shape)} and is now given {tuple(new.shape)}: '
                    'take compile=false'
                )
        # What was traced is compiled in the first call of it. The gradient is part of it.
        with compiler_errors(RuntimeError) if self.calls == 3 else nullcontext(), torch.no_grad():
            outputs, gradients = self.compiled(*inputs)
        for parameter, gradient in zip(self.used, gradients, strict=True):
            parameter.grad = gradient
        return outputs

    def _trace(self, inputs: tuple[Tensor, ...]) -> Any:
        """Carry out a call, and keep what it does for the next ones."""
        outputs: Any = None

        def run(*tensors: Tensor) -> tuple[Any, list[Tensor]]:
            nonlocal outputs
            with _NothingRead():
                outputs = self.function(*tensors)
            self.used = [p for p in self.parameters if p.grad is not None]
            return outputs, [p.grad for p in self.used if p.grad is not None]

        with compiler_errors(RuntimeError):
            graph = make_fx(run)(*inputs)
        self.shapes = [x.shape for x in inputs]
        logger.info('the next step is compiled, which takes a minute or two')
        self.compiled = torch.compile(graph, dynamic=False)
        return outputs


@contextmanager
def compiler_errors(kind: type[RuntimeError] = TorchDynamoException) -> Iterator[None]:
    """Say in a sentence why a step cannot be compiled.

    Args:
        kind: the errors that say so, by default those of PyTorch's compiler alone.

    Raises:
        CompileError: with that sentence.
    """
    try:
        yield
    except kind as error:
        if is_out_of_memory(error):
            raise
        # What follows is how to ask PyTorch for more.
        reason = re.split(' Set TORCH(?:DYNAMO_VERBOSE|_LOGS)', one_line(error))[0]
        raise CompileError(f'this step cannot be compiled, take compile=false: {reason[:300]}') from error
