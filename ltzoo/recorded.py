"""Functions of tensors whose GPU work is recorded once and replayed: no Python and no launches one by one.

A small network's step is thousands of short kernels, which a host cannot launch as fast as a GPU runs them. CUDA graphs
launch them all at once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import LtzooError, one_line

__all__ = ['Recorded', 'RecordingError']

# Calls that run as they are before one is recorded: libraries choose their algorithms in the first ones.
WARM_UP = 3


class RecordingError(LtzooError, RuntimeError):
    """A function that cannot be recorded, because it waits for the device or its shapes change."""


class Recorded:
    """A function that does the same work on the device in every call.

    Shapes, branches and numbers in Python must be the same in every call; what changes is in the inputs or in tensors
    that are changed in place. The first calls run as they are, the next is recorded, all others are replays. A replay
    writes its outputs and gradients where the one before had them.

    Args:
        function: of tensors, returns tensors; it may add to the `grad` of parameters that have none before it.
        parameters: those it gives a gradient.
        generators: those on the device that it draws from, besides the default one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Sequence[nn.Parameter] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.function = function
        self.parameters = list(parameters)
        self.generators = list(generators)
        self.stream = torch.cuda.Stream()
        self.forget()

    def forget(self) -> None:
        """Record anew: something in Python has changed."""
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: Any = None
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns; it is overwritten by the next call.

        Raises:
            RecordingError: if the function cannot be recorded, or the inputs' shapes change.
        """
        self.calls += 1
        if self.calls <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self._record(inputs)
        assert self.graph is not None
        for own, new in zip(self.inputs, inputs, strict=True):
            if own.shape != new.shape:
                raise RecordingError(
                    f'a step was recorded for a batch of shape {tuple(own.shape)} and is now given '
                    f'{tuple(new.shape)}: take cuda_graphs=false'
                )
            own.copy_(new)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        # Another training's graph, freed in the midst of a recording, would break it off.
        gc.collect()
        self.inputs = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            # Other threads, such as one that pins memory for a loader, may go on using the device.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
                self.outputs = self.function(*self.inputs)
        except RuntimeError as error:
            # What stopped the recording makes its end fail as well, with an error that says nothing of it.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            *_, place = traceback.extract_tb(first.__traceback__)
            raise RecordingError(
                f'this step cannot be recorded, take cuda_graphs=false: {one_line(first)[:300]} '
                f'({place.filename}, line {place.lineno})'
            ) from first
        self.gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self.graph = graph
