"""Groups of classes whose best parameters are alike, and the parameters of each group.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv:2603.21217), Eq. 2 and 3; normalised cuts: Shi
and Malik, Normalized Cuts and Image Segmentation, PAMI 2000. Classes that share a snapshot are identical vertices of
the graph of Eq. 2, so the cut is found on the E distinct snapshots, each as heavy as the classes that share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.bank import MemoryBank

__all__ = ['classes_moved', 'group_anchors', 'group_classes', 'normalized_cut']

_STARTS = 8
# What a cut must gain to count as smaller: well above rounding, so that equal cuts are told apart by order alone.
_GAIN = 1e-10


def normalized_cut(affinity: Tensor, n_groups: int, multiplicity: Tensor | None = None, seed: int = 0) -> Tensor:
    """Partition a graph so that the normalised cut is small.

    Vertex e stands for m_e identical ones, so the contracted graph has the weights m_e w_ee' m_e', self-loops
    m_e^2 w_ee included. Its relaxed problem is solved exactly and rounded by k-means in two scalings from several
    starts; then single vertices are moved while the cut falls, and the smallest cut is taken. If the affinity is
    positive semi-definite, as a Gaussian or cosine one is, no cut of the expanded graph that tears identical vertices
    apart is smaller. If nothing tells cuts apart, as where all affinities are equal, the groups are runs of equal
    volume in the order given.

    Args:
        affinity: symmetric, not negative, shape (E, E).
        n_groups: number of groups; if larger than E, there are E groups.
        multiplicity: m_e >= 1, shape (E,); by default 1.
        seed: of the k-means starts; the same input and seed give the same groups.

    Returns:
        The group of every vertex: int64, shape (E,), numbered in order of first appearance; no group is empty.

    Raises:
        GkpGsaError: if the input is not as described.
    """
    weights = _contracted(affinity, multiplicity)
    if n_groups < 1:
        raise GkpGsaError(f'n_groups must be at least 1, not {n_groups}')
    n_groups = min(n_groups, len(weights))
    if n_groups == 1 or n_groups == len(weights):
        return torch.arange(len(weights)) if n_groups > 1 else torch.zeros(len(weights), dtype=torch.int64)
    best, smallest = None, np.inf
    for start in _starts(weights, n_groups, seed):
        labels = _refine(weights, _fill(weights, start, n_groups), n_groups)
        value = _cut_value(weights, labels)
        if value < smallest - _GAIN:
            best, smallest = labels, value
    assert best is not None
    return torch.from_numpy(_canonical(best))


def group_classes(bank: MemoryBank, affinity: Tensor, n_groups: int, seed: int = 0) -> Tensor:
    """Group the classes by their best parameters, Eq. 2.

    Args:
        bank: says which classes share which snapshot.
        affinity: of the bank's snapshots in the order of `bank.epochs`, shape (E, E).
        n_groups: number of groups; with fewer distinct snapshots there are only as many.
        seed: of `normalized_cut`.

    Returns:
        The group of every class: int64, shape (C,), group 0 having the earliest snapshot. Classes without a snapshot
        belong to the group with the most classes (the first of those, if there are several).

    Raises:
        GkpGsaError: if no class has a snapshot, or the affinity is not one of the bank's snapshots.
    """
    epochs = torch.tensor(bank.epochs, dtype=torch.int64)
    if not len(epochs):
        raise GkpGsaError('no class of the bank has a snapshot yet: update it before grouping')
    if affinity.shape != (len(epochs), len(epochs)):
        raise GkpGsaError(
            f'the bank has {len(epochs)} distinct snapshots, so the affinity must have shape '
            f'({len(epochs)}, {len(epochs)}), not {tuple(affinity.shape)}'
        )
    groups = normalized_cut(affinity, n_groups, bank.multiplicity, seed)
    stored = bank.best_epoch >= 0
    of_stored = groups[torch.searchsorted(epochs, bank.best_epoch[stored])]
    class_groups = torch.full_like(bank.best_epoch, int(of_stored.bincount().argmax()))
    class_groups[stored] = of_stored
    return class_groups


def group_anchors(bank: MemoryBank, class_groups: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield the mean, over the classes of every group, of their best parameters: theta*_g of Eq. 3.

    Classes without a snapshot have no say. One snapshot, one float64 sum and one result are in memory at a time.

    Args:
        bank: holds the snapshots; one is read at a time, for every group that has classes of it.
        class_groups: group of every class, 0 to G - 1, int64, shape (C,).

    Yields:
        One dict of float32 tensors on the CPU for each group, in their order.

    Raises:
        GkpGsaError: if the shape is another, or a group has no class with a snapshot.
    """
    if class_groups.shape != (bank.num_classes,):
        raise GkpGsaError(f'class_groups must have shape ({bank.num_classes},), not {tuple(class_groups.shape)}')
    class_groups = class_groups.cpu()
    for group in range(int(class_groups.max()) + 1):
        best = bank.best_epoch[(class_groups == group) & (bank.best_epoch >= 0)]
        epochs, counts = best.unique(return_counts=True)
        if not len(epochs):
            raise GkpGsaError(f'no class of group {group} has a snapshot, so the group has no parameters')
        mean: dict[str, Tensor] = {}
        for epoch, count in zip(epochs.tolist(), counts.tolist(), strict=True):
            for name, tensor in bank.snapshot(epoch).items():
                mean.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64)).add_(
                    tensor, alpha=count / len(best)
                )
        yield {name: mean.pop(name).float() for name in list(mean)}


def classes_moved(before: Tensor, after: Tensor) -> int:
    """Return how many classes changed group, when groups are matched with each other so that the fewest did.

    Groups are numbered anew at every grouping, so that a number says nothing of which group of before it was.

    Args:
        before, after: group of every class, from 0, int64, shape (C,).
    """
    shared = torch.zeros(int(before.max()) + 1, int(after.max()) + 1, dtype=torch.int64)
    shared.index_put_((before, after), torch.ones_like(before), accumulate=True)
    return len(before) - int(shared[linear_sum_assignment(shared, maximize=True)].sum())


def _contracted(affinity: Tensor, multiplicity: Tensor | None) -> np.ndarray:
    """Return the weights of the contracted graph, in float64."""
    weights = affinity.detach().cpu().double().numpy()
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not len(weights):
        raise GkpGsaError(f'the affinity must be a square matrix, not of shape {weights.shape}')
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise GkpGsaError('the affinity has entries that are negative or not finite: every one must be at least 0')
    if not np.allclose(weights, weights.T, rtol=1e-6, atol=1e-12):
        raise GkpGsaError('the affinity is not symmetric: entry (i, j) must equal entry (j, i)')
    if multiplicity is None:
        return weights
    if multiplicity.shape != (len(weights),) or not bool((multiplicity > 0).all()):
        raise GkpGsaError(f'multiplicity must be {len(weights)} positive numbers, one for each vertex')
    masses = multiplicity.cpu().double().numpy()
    return masses[:, None] * weights * masses


def _starts(weights: np.ndarray, n_groups: int, seed: int) -> Iterator[np.ndarray]:
    """Give partitions to improve, each with at most `n_groups` groups."""
    degrees = weights.sum(1)
    # Snapshots come in their order on the trajectory, so runs are a good start, and the one kept if all cuts are equal.
    shares = degrees / degrees.sum() if degrees.any() else np.full(len(degrees), 1 / len(degrees))
    yield np.minimum(((shares.cumsum() - shares / 2) * n_groups).astype(np.int64), n_groups - 1)
    if not degrees.any():
        return

    scale = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    vectors = np.linalg.eigh(scale[:, None] * weights * scale)[1][:, -n_groups:]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Weighted by the degrees, k-means of the first is the rounding nearest to the cut; the second is blind to them.
    by_cut = (vectors * scale[:, None], degrees)
    by_angle = (np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), np.ones_like(degrees))
    for points, masses in (by_cut, by_angle):
        for start in range(_STARTS):
            means = KMeans(n_groups, n_init=1, random_state=(seed * _STARTS + start) % 2**32)
            with warnings.catch_warnings():
                # Fewer distinct points than groups are no fault: the empty groups are filled afterwards.
                warnings.simplefilter('ignore')
                yield means.fit_predict(points, sample_weight=masses).astype(np.int64)


def _fill(weights: np.ndarray, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """Give every empty group the vertex whose leaving its group costs the cut the least."""
    for group in range(n_groups):
        if not (labels == group).any():
            gains = _gains(weights, labels, n_groups)[:, group]
            labels = labels.copy()
            labels[gains.argmax()] = group
    return labels


def _refine(weights: np.ndarray, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """Move single vertices, the most profitable first, while that lowers the cut."""
    labels = labels.copy()
    while True:
        gains = _gains(weights, labels, n_groups)
        vertex, group = np.unravel_index(gains.argmax(), gains.shape)
        if gains[vertex, group] <= _GAIN:
            return labels
        labels[vertex] = group


def _gains(weights: np.ndarray, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """Return by how much the cut falls if a vertex moves to a group, -inf if it would leave none behind: (E, G)."""
    every = np.arange(len(labels))
    members = np.zeros((len(labels), n_groups))
    members[every, labels] = 1
    links, degrees, loops = weights @ members, weights.sum(1), weights.diagonal()
    inside, volumes = (members * links).sum(0), degrees @ members
    now = _cohesion(inside, volumes)
    left = _cohesion(
        (inside - 2 * links + loops[:, None])[every, labels],
        (volumes - degrees[:, None])[every, labels],
    )
    joined = _cohesion(inside + 2 * links + loops[:, None], volumes + degrees[:, None])
    gains = (left - now[labels])[:, None] + joined - now
    gains[members.sum(0)[labels] == 1] = -np.inf
    gains[every, labels] = -np.inf
    return gains


def _cut_value(weights: np.ndarray, labels: np.ndarray) -> float:
    members = (labels[:, None] == np.unique(labels)).astype(np.float64)
    inside, volumes = ((weights @ members) * members).sum(0), weights.sum(1) @ members
    return float((1 - _cohesion(inside, volumes)).sum())


def _cohesion(inside: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return 1 - cut(g, rest) / vol(g); nothing is cut from a group without edges."""
    return np.divide(inside, volumes, out=np.ones_like(volumes), where=volumes > 0)


def _canonical(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[first.argsort()] = np.arange(len(first))
    return rank[inverse].astype(np.int64)
