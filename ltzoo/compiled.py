"""Functions of tensors that are traced once and compiled: what lies between convolutions becomes one loop each.

A small network's step on a CPU is bound by memory: batch-norm, activations and sums read and write every number again.
PyTorch's compiler makes one pass of many (https://docs.pytorch.org/docs/stable/torch.compiler.html); it is given the
operations that a call has carried out, forward and backward, instead of the Python that called for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ltzoo.errors import LtzooError, one_line

__all__ = ['CompileError', 'Compiled']

logger = logging.getLogger(__name__)


class CompileError(LtzooError, RuntimeError):
    """A function that cannot be compiled: its work depends on what is in tensors, or there is no C++ compiler."""


class Compiled:
    """A function that does the same work in every call.

    Shapes, branches and numbers in Python must be the same in every call; what changes is in the inputs or in tensors
    that are changed in place. The first call runs as it is, for tensors that are only made then; the second is traced;
    all others run what was compiled.

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
        try:
            # The gradient is part of what was traced.
            with torch.no_grad():
                outputs, gradients = self.compiled(*inputs)
        except RuntimeError as error:
            raise _refusal(error) from error
        for parameter, gradient in zip(self.used, gradients, strict=True):
            parameter.grad = gradient
        return outputs

    def _trace(self, inputs: tuple[Tensor, ...]) -> Any:
        """Carry out a call, and keep what it does for the next ones."""
        outputs: Any = None

        def run(*tensors: Tensor) -> tuple[Any, list[Tensor]]:
            nonlocal outputs
            outputs = self.function(*tensors)
            self.used = [p for p in self.parameters if p.grad is not None]
            return outputs, [p.grad for p in self.used if p.grad is not None]

        try:
            graph = make_fx(run)(*inputs)
        except RuntimeError as error:
            raise _refusal(error) from error
        self.shapes = [x.shape for x in inputs]
        logger.info('the next step is compiled, which takes a minute or two')
        self.compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        return outputs


def _refusal(error: RuntimeError) -> CompileError:
    # What follows is how to ask PyTorch for more.
    reason = one_line(error).partition(' Set TORCHDYNAMO_VERBOSE')[0]
    return CompileError(f'this step cannot be compiled, take compile=false: {reason[:300]}')
