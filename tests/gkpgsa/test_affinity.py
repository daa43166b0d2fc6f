"""Distances and affinities of snapshots against NumPy on the flattened vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.affinity import SnapshotDistances, parameter_affinity

SHAPES = {'conv': (8, 3, 3, 3), 'scale': (), 'bias': (5,)}


def trajectory(length: int, step: float = 0.1, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    walk = [{name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}]
    while len(walk) < length:
        walk.append({name: old + step * torch.randn(old.shape, generator=generator) for name, old in walk[-1].items()})
    return walk


def flat(snapshot: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in snapshot.values()])


def gram_of(snapshots: list[dict[str, Tensor]]) -> SnapshotDistances:
    gram = SnapshotDistances()
    gram.update(range(len(snapshots)), snapshots.__getitem__)
    return gram


def expected_distances(snapshots: list[dict[str, Tensor]]) -> np.ndarray:
    points = np.stack([flat(snapshot) for snapshot in snapshots])
    return ((points[:, None] - points) ** 2).sum(-1)


def test_equals_numpy_on_flattened_vectors() -> None:
    snapshots = trajectory(9)
    points = np.stack([flat(snapshot) for snapshot in snapshots])
    norms = np.linalg.norm(points, axis=1)
    gram = gram_of(snapshots)
    np.testing.assert_allclose(gram.distances_squared(), expected_distances(snapshots), rtol=1e-6)
    np.testing.assert_allclose(gram.cosine(), points @ points.T / np.outer(norms, norms), rtol=1e-7)


def test_neighbours_do_not_cancel() -> None:
    """|theta|^2 is 1e11 times the squared distance, more than float32 inner products can resolve."""
    snapshots = trajectory(5, step=1e-5)
    snapshots = [{name: tensor + 3 for name, tensor in snapshot.items()} for snapshot in snapshots]
    distances = gram_of(snapshots).distances_squared()
    np.testing.assert_allclose(distances, expected_distances(snapshots), rtol=1e-6)
    assert distances.max() < 1e-6


def test_adding_and_removing_keeps_the_rows_in_order() -> None:
    snapshots = trajectory(8)
    gram = SnapshotDistances()
    for held in ([5], [1, 5], [5, 7, 1], [7, 2, 5, 1], [1, 2, 5]):
        gram.update(held, snapshots.__getitem__)
    gram.update([2, 0, 6, 5], snapshots.__getitem__)
    kept = [0, 2, 5, 6]
    assert gram.epochs == kept
    np.testing.assert_allclose(gram.distances_squared(), expected_distances([snapshots[e] for e in kept]), rtol=1e-6)
    np.testing.assert_allclose(gram.cosine(), gram_of([snapshots[e] for e in kept]).cosine(), rtol=1e-12)


def test_an_update_reads_only_what_is_new() -> None:
    snapshots, reads = trajectory(7), []

    def read(epoch: int) -> dict[str, Tensor]:
        reads.append(epoch)
        return snapshots[epoch]

    gram = gram_of(snapshots[:6])
    gram.update([0, 2, 4, 5], read)
    assert reads == []
    gram.update([0, 2, 4, 6], read)
    assert sorted(reads) == [0, 2, 4, 6]


def test_a_restored_matrix_goes_on_like_the_old_one() -> None:
    snapshots = trajectory(6)
    gram, restored = gram_of(snapshots[:4]), SnapshotDistances()
    restored.load_state_dict(gram.state_dict())
    for one in (gram, restored):
        one.update([1, 3, 4, 5], snapshots.__getitem__)
    assert restored.epochs == gram.epochs
    assert restored.distances_squared().equal(gram.distances_squared())
    assert restored.cosine().equal(gram.cosine())


def test_gaussian_has_the_median_distance_as_bandwidth() -> None:
    for length in (5, 4, 2):
        snapshots = trajectory(length)
        squared = expected_distances(snapshots)
        median = np.median(np.sqrt(squared[np.triu_indices(length, 1)]))
        affinity = parameter_affinity(gram_of(snapshots))
        np.testing.assert_allclose(affinity, np.exp(-squared / (2 * median**2)), rtol=1e-6)


def test_gaussian_is_scale_free() -> None:
    snapshots = trajectory(6)
    scaled = [{name: 1000 * tensor for name, tensor in snapshot.items()} for snapshot in snapshots]
    one, other = parameter_affinity(gram_of(snapshots)), parameter_affinity(gram_of(scaled))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_snapshots_that_are_the_same() -> None:
    one, other = trajectory(2)
    assert parameter_affinity(gram_of([one] * 4)).equal(torch.ones(4, 4, dtype=torch.float64))
    # Five of six pairs lie at distance 0, d^2 or d: the median is over those apart.
    affinity = parameter_affinity(gram_of([one, one, one, other]))
    assert affinity[:3, :3].equal(torch.ones(3, 3, dtype=torch.float64))
    np.testing.assert_allclose(affinity[3, :3], np.exp(-0.5), rtol=1e-12)
    assert parameter_affinity(gram_of([one])).tolist() == [[1.0]]


def test_cosine_affinity() -> None:
    axes = [{'x': torch.tensor(point)} for point in ([2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.0])]
    affinity = parameter_affinity(gram_of(axes), 'cosine')
    expected = torch.tensor([[1, 0, 0.5, 0.5], [0, 1, 0.5, 0.5], [0.5, 0.5, 1, 0.5], [0.5, 0.5, 0.5, 1]])
    torch.testing.assert_close(affinity, expected.double(), rtol=0, atol=1e-12)


def test_on_a_trajectory_the_gaussian_sees_what_the_cosine_does_not() -> None:
    gram = gram_of(trajectory(10, step=0.01))
    assert parameter_affinity(gram, 'cosine').min() > 0.99
    assert parameter_affinity(gram, 'gaussian').min() < 0.4


def test_bad_input_is_refused() -> None:
    snapshots = trajectory(3)
    gram = gram_of(snapshots)
    for wrong in ({'conv': torch.ones(2)}, snapshots[0] | {'bias': torch.ones(1)}):
        with pytest.raises(GkpGsaError, match='epochs 3 and 0 differ in the names or shapes'):
            gram.update(range(4), [*snapshots, wrong].__getitem__)
    assert gram.epochs == [0, 1, 2]
    with pytest.raises(GkpGsaError, match="no affinity 'linear': choose gaussian or cosine"):
        parameter_affinity(gram, 'linear')
