"""Feature quality of every class, from statistics that stream.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv:2603.21217), Eq. 17-19. It is measured on
training samples only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ltzoo.processes import rank_and_number

__all__ = ['ClassQuality', 'FeatureQuality', 'QualityForm']

_VARIANCE_FLOOR = 1e-12
# Entries of the block of distances in memory at a time: 64 MiB.
_BLOCK = 2**23

QualityForm = Literal['difference', 'ratio']


class ClassQuality(NamedTuple):
    """Quality, Dis(c) (Eq. 17) and Var(c) (Eq. 18) of every class: shape (C,) each, float64."""

    quality: Tensor
    distance: Tensor
    variance: Tensor


class FeatureQuality:
    """Accumulates class counts, sums of features and sums of squared norms, in float64: O(C x dim) memory.

    Args:
        num_classes: C.
        dim: of the features.
        beta: weight of the log variance in Eq. 19; the paper's is 0.5.
        device: where the sums are kept; where the features are, an update never waits for the device.
        class_counts: samples that every class has, shape (C,); None for those that are seen.
        form: `difference`, Dis(c) - beta log Var(c), Eq. 19, in which the scale of the features counts; `ratio`,
            log Dis(c) - beta log Var(c), which with beta 0.5 is the logarithm of the distance in standard deviations,
            whatever the scale.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        beta: float = 0.5,
        device: torch.device | str | None = None,
        class_counts: Tensor | None = None,
        form: QualityForm = 'difference',
    ) -> None:
        self.beta, self.form = beta, form
        self.several = None if class_counts is None else (class_counts > 1).to(device or 'cpu')
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros(num_classes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: features of shape (N, dim), labels int64 of shape (N,), between 0 and C - 1.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if features.ndim != 2 or features.shape[1] != self.sums.shape[1] or labels.shape != features.shape[:1]:
            raise ValueError(
                f'features must have shape (N, {self.sums.shape[1]}) and labels (N,), not {tuple(features.shape)} '
                f'and {tuple(labels.shape)}'
            )
        features, labels = features.to(self.sums), labels.to(self.sums.device)
        self.counts.index_add_(0, labels, torch.ones_like(features[:, 0]))
        self.sums.index_add_(0, labels, features)
        self.squares.index_add_(0, labels, features.square().sum(1))

    def all_reduce(self) -> None:
        """Add up what all processes saw, once, before `compute`; with one process nothing happens.

        The sums must be where the process group's backend can reduce them: with NCCL, on a GPU.
        """
        if rank_and_number()[1] > 1:
            for sums in (self.counts, self.sums, self.squares):
                dist.all_reduce(sums)

    def reset(self) -> None:
        """Forget every sample."""
        for sums in (self.counts, self.sums, self.squares):
            sums.zero_()

    @torch.no_grad()
    def compute(self) -> ClassQuality:
        """Return the quality of every class and what it is made of.

        Dis(c) is the distance to the nearest centroid of another class that was seen (Eq. 17), Var(c) the mean squared
        distance to the own centroid (Eq. 18). Var is at least 1e-12 for a class of one sample, whose Var is 0, and at
        least 1e-12 (1 + mean |a|^2) for any other, below which it would be rounding; in the form `ratio` at least 1e-12
        mean |a|^2 for all, as the scale must not count. The floor does no harm, as a class is only ever compared with
        itself. With centroids that coincide the ratio is -inf, which never wins.

        All three are nan, and the class nobody's neighbour, where a class was never seen or has a feature that is not
        finite. If only one class is left, Dis is not defined and they are nan too. They are also nan where only one of
        a class's several samples was seen: the floor would outdo every epoch in which more were.
        """
        found = ClassQuality(*(torch.full_like(self.counts, torch.nan) for _ in ClassQuality._fields))
        seen = ((self.counts > 0) & self.squares.isfinite()).nonzero()[:, 0]
        if len(seen) < 2:
            return found
        counts = self.counts[seen]
        centroids = self.sums[seen].div_(counts[:, None])
        mean_squares = self.squares[seen] / counts
        several = counts > 1
        variance = torch.where(several, mean_squares - centroids.square().sum(1), 0)
        # A single sample has no variance; its norm, not a constant, leaves the ratio free of the features' scale.
        floor = mean_squares if self.form == 'ratio' else 1 + torch.where(several, mean_squares, 0)
        variance = variance.maximum(_VARIANCE_FLOOR * floor.clamp_min(_VARIANCE_FLOOR))
        distance = _nearest(centroids)
        separation = distance if self.form == 'difference' else distance.log()
        for whole, part in zip(found, (separation - self.beta * variance.log(), distance, variance), strict=True):
            whole[seen] = part
            if self.several is not None:
                whole[self.several & (self.counts == 1)] = torch.nan
        return found


def _nearest(centroids: Tensor) -> Tensor:
    """Return the distance of every centroid (P, dim) to the nearest other one; changes `centroids`."""
    centroids -= centroids.mean(0)
    squares = centroids.square().sum(1)
    nearest = torch.empty_like(squares, dtype=torch.int64)
    rows = max(1, _BLOCK // len(centroids))
    for first in range(0, len(centroids), rows):
        block = torch.addmm(squares, centroids[first : first + rows], centroids.T, alpha=-2)
        block.diagonal(first).fill_(torch.inf)
        nearest[first : first + rows] = block.argmin(1)
    # The product finds the neighbour; the distance itself, free of its cancellation, is taken anew.
    distances = torch.empty_like(squares)
    for own, other, out in zip(centroids.split(rows), nearest.split(rows), distances.split(rows), strict=True):
        torch.linalg.vector_norm(own - centroids[other], dim=1, out=out)
    return distances
