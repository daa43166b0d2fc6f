"""How alike snapshots of the parameters are: the edge weights of the graph of Eq. 2.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv:2603.21217), Sec. 4.2.1, which leaves the
similarity open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ltzoo.errors import GkpGsaError

__all__ = ['SnapshotDistances', 'parameter_affinity']


class SnapshotDistances:
    """Squared distances and norms of flattened snapshots, kept up to date as snapshots come and go.

    Distances are accumulated from the differences, not from inner products: neighbours on a training trajectory are so
    close that the latter would cancel. Differences are rounded once, to float32, and summed in float64.

    Attributes:
        epochs: of the snapshots, in the order of the matrices' rows: ascending.
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self._distances_squared = torch.zeros(0, 0, dtype=torch.float64)
        self._norms_squared = torch.zeros(0, dtype=torch.float64)

    def update(self, epochs: Iterable[int], snapshot: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Add and remove what it takes to hold just `epochs`; at most two snapshots are in memory at a time.

        Every new snapshot costs one reading of all others, so do it every epoch rather than all at the end.

        Args:
            epochs: such as `MemoryBank.epochs`; an epoch that is already here still means the same parameters.
            snapshot: returns the parameters of an epoch, by name, such as `MemoryBank.snapshot`.

        Raises:
            GkpGsaError: if the snapshots' names or shapes differ.
        """
        wanted = set(epochs)
        self._keep([epoch for epoch in self.epochs if epoch in wanted])
        for epoch in sorted(wanted - set(self.epochs)):
            self._add(epoch, snapshot)

    def _add(self, epoch: int, snapshot: Callable[[int], Mapping[str, Tensor]]) -> None:
        parameters = snapshot(epoch)
        row = [_distance_squared(parameters, snapshot(other), epoch, other) for other in self.epochs]
        distances = torch.zeros(len(row) + 1, len(row) + 1, dtype=torch.float64)
        distances[:-1, :-1] = self._distances_squared
        distances[-1, :-1] = distances[:-1, -1] = torch.tensor(row, dtype=torch.float64)
        own = _sum_of_squares(tensor.float() for tensor in parameters.values())
        self._norms_squared = torch.cat([self._norms_squared, torch.tensor([own], dtype=torch.float64)])
        self.epochs, self._distances_squared = [*self.epochs, epoch], distances
        self._keep(sorted(self.epochs))

    def _keep(self, epochs: list[int]) -> None:
        rows = torch.tensor([self.epochs.index(epoch) for epoch in epochs], dtype=torch.int64)
        self._distances_squared, self._norms_squared = self._distances_squared[rows][:, rows], self._norms_squared[rows]
        self.epochs = epochs

    def distances_squared(self) -> Tensor:
        """Return the squared Euclidean distances: float64, shape (E, E)."""
        return self._distances_squared.clone()

    def cosine(self) -> Tensor:
        """Return the cosines of the angles between snapshots: float64, shape (E, E); 0 with a snapshot of zeros."""
        squares = self._norms_squared
        inner = (squares[:, None] + squares - self._distances_squared) / 2
        norms = squares.sqrt()
        cosine = inner / (norms[:, None] * norms).clamp_min(torch.finfo(torch.float64).tiny)
        return cosine.clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state: two tensors and a list of numbers."""
        return {
            'epochs': list(self.epochs),
            'distances_squared': self._distances_squared.clone(),
            'norms_squared': self._norms_squared.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, on whatever device its tensors lie."""
        self.epochs = list(state['epochs'])
        self._distances_squared, self._norms_squared = state['distances_squared'].cpu(), state['norms_squared'].cpu()


def parameter_affinity(gram: SnapshotDistances, kind: str = 'gaussian') -> Tensor:
    """Return the affinity of snapshots: symmetric, between 0 and 1, ones on the diagonal.

    Args:
        gram: of the E snapshots.
        kind: `gaussian`, exp(-d^2 / (2 s^2)), where s is the median of the distances d > 0 over the pairs e < e' (the
            mean of the two middle ones if their number is even), so that scaling all parameters, or all distances,
            changes nothing; where all snapshots are the same, all affinities are 1.
            `cosine`, (1 + cos) / 2, is what the authors released; on one training trajectory it is almost uniform.

    Returns:
        Float64, shape (E, E), on the CPU.

    Raises:
        GkpGsaError: if the kind is neither.
    """
    if kind == 'cosine':
        affinity = (1 + gram.cosine()) / 2
    elif kind == 'gaussian':
        squared = gram.distances_squared()
        distances = squared[torch.ones_like(squared).triu(1) > 0].sqrt()
        apart = distances[distances > 0]
        scale = apart.quantile(0.5) if len(apart) else torch.ones((), dtype=torch.float64)
        affinity = (-squared / (2 * scale**2)).exp()
    else:
        raise GkpGsaError(f'there is no affinity {kind!r}: choose gaussian or cosine')
    return affinity.fill_diagonal_(1)


def _distance_squared(one: Mapping[str, Tensor], other: Mapping[str, Tensor], epoch: int, of_other: int) -> float:
    shapes = [{name: tensor.shape for name, tensor in parameters.items()} for parameters in (one, other)]
    if shapes[0] != shapes[1]:
        raise GkpGsaError(f'the snapshots of epochs {epoch} and {of_other} differ in the names or shapes of parameters')
    return _sum_of_squares(tensor.float() - other[name].float() for name, tensor in one.items())


def _sum_of_squares(tensors: Iterable[Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2 for tensor in tensors)
