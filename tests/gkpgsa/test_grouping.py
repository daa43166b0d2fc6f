"""Normalised cuts against every partition of small graphs, the uncontracted graph and scikit-learn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa import grouping
from ltzoo.gkpgsa.affinity import SnapshotDistances, parameter_affinity
from ltzoo.gkpgsa.bank import HostStore, MemoryBank
from ltzoo.gkpgsa.grouping import (
    classes_moved,
    group_anchors,
    group_classes,
    normalized_cut,
)


def cut_by_definition(affinity: np.ndarray, labels: np.ndarray) -> float:
    """Shi and Malik: sum over groups of cut(A, V - A) / assoc(A, V), edge by edge."""
    total = 0.0
    for group in set(labels.tolist()):
        cut = volume = 0.0
        for i in range(len(labels)):
            for j in range(len(labels)):
                if labels[i] == group:
                    volume += affinity[i, j]
                    cut += affinity[i, j] if labels[j] != group else 0.0
        total += cut / volume if volume else 0.0
    return total


def partitions(size: int, groups: int) -> Iterator[np.ndarray]:
    def grow(prefix: list[int], used: int) -> Iterator[np.ndarray]:
        if len(prefix) == size:
            if used == groups:
                yield np.array(prefix)
            return
        for group in range(min(used + 1, groups)):
            yield from grow([*prefix, group], max(used, group + 1))

    return grow([], 0)


def gaussian(points: np.ndarray) -> np.ndarray:
    squared = ((points[:, None] - points) ** 2).sum(-1)
    return np.exp(-squared / (2 * np.median(squared[np.triu_indices(len(points), 1)])))


def blobs(sizes: list[int], spread: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = 3 * generator.normal(size=(len(sizes), 6))
    return np.concatenate([c + spread * generator.normal(size=(n, 6)) for c, n in zip(centres, sizes, strict=True)])


def expand(affinity: np.ndarray, multiplicity: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(affinity, multiplicity, 0), multiplicity, 1)


def spectral(affinity: np.ndarray, groups: int) -> np.ndarray:
    """The textbook solution: (D - W) y = t D y for the smallest t, then k-means of the rows."""
    degrees = np.diag(affinity.sum(1))
    vectors = scipy.linalg.eigh(degrees - affinity, degrees, subset_by_index=[0, groups - 1])[1]
    return KMeans(groups, n_init=30, random_state=1).fit_predict(vectors)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('kind', ['blobs', 'walk', 'noise'])
def test_is_the_smallest_cut_of_all(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(4, 9))
    groups = int(generator.integers(2, min(size, 5)))
    if kind == 'blobs':
        points = blobs(
            [1 + (size - groups) // groups + (g < (size - groups) % groups) for g in range(groups)], 0.5, seed
        )
    elif kind == 'walk':
        points = (generator.normal(size=(size, 6)) * np.linspace(2, 0.2, size)[:, None]).cumsum(0)
    else:
        points = generator.normal(size=(size, 6))
    affinity = gaussian(points)
    multiplicity = generator.integers(1, 60, size)
    weights = multiplicity[:, None] * affinity * multiplicity
    smallest = min(cut_by_definition(weights, labels) for labels in partitions(size, groups))
    labels = normalized_cut(torch.from_numpy(affinity), groups, torch.from_numpy(multiplicity))
    assert labels.unique().tolist() == list(range(groups))
    assert cut_by_definition(weights, labels.numpy()) == pytest.approx(smallest, abs=1e-9)


def test_tearing_identical_vertices_apart_never_pays() -> None:
    """The smallest cut over all partitions of the expanded graph is the one found on the contracted graph."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        affinity, multiplicity = gaussian(generator.normal(size=(4, 3))), np.array([3, 1, 2, 2])
        whole = expand(affinity, multiplicity)
        smallest = min(cut_by_definition(whole, p) for p in partitions(8, 3))
        labels = normalized_cut(torch.from_numpy(affinity), 3, torch.from_numpy(multiplicity)).numpy()
        assert cut_by_definition(whole, labels.repeat(multiplicity)) == pytest.approx(smallest, abs=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_contraction_changes_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    affinity = gaussian(blobs([5, 4, 6, 3], 0.8, seed))
    multiplicity = generator.integers(1, 12, len(affinity))
    whole = expand(affinity, multiplicity)
    masses = torch.from_numpy(multiplicity)
    labels = normalized_cut(torch.from_numpy(affinity), 4, masses)
    expanded = labels.repeat_interleave(masses).numpy()

    assert np.array_equal(expanded, normalized_cut(torch.from_numpy(whole), 4).numpy())
    assert adjusted_rand_score(expanded, spectral(whole, 4)) == 1
    assert (
        adjusted_rand_score(expanded, np.repeat(np.arange(4), [m.sum() for m in np.split(multiplicity, [5, 9, 15])]))
        == 1
    )


def test_multiplicities_and_self_loops_decide() -> None:
    """On the chain a - b - c, where b goes depends on how heavy the vertices are."""
    affinity = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])
    found_all = set()
    for masses in ([50, 5, 1], [1, 5, 50], [9, 1, 3]):
        weights = np.array(masses)[:, None] * affinity.numpy() * np.array(masses)
        values = {tuple(p.tolist()): cut_by_definition(weights, p) for p in partitions(3, 2)}
        found = normalized_cut(affinity, 2, torch.tensor(masses))
        assert tuple(found.tolist()) == min(values, key=lambda p: values[p])
        found_all.add(tuple(found.tolist()))
    assert len(found_all) > 1


@pytest.mark.parametrize('seed', range(4))
def test_agrees_with_scikit_learn_where_the_structure_is_clear(seed: int) -> None:
    affinity = gaussian(blobs([10, 20, 15], 0.5, seed))
    theirs = SpectralClustering(3, affinity='precomputed', random_state=0).fit_predict(affinity)
    assert adjusted_rand_score(theirs, normalized_cut(torch.from_numpy(affinity), 3).numpy()) == 1


def test_disconnected_graphs_are_cut_for_free() -> None:
    affinity = torch.block_diag(torch.ones(3, 3), torch.ones(1, 1), torch.ones(4, 4)).double()
    order = torch.tensor([4, 0, 3, 5, 1, 6, 2, 7])
    affinity = affinity[order][:, order]
    masses = torch.tensor([3, 1, 100, 2, 1, 1, 7, 5])
    labels = normalized_cut(affinity, 3, masses)
    assert labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 0]
    weights = (masses[:, None] * affinity * masses).numpy()
    assert cut_by_definition(weights, labels.numpy()) == 0
    # Two groups join two of the three parts; four tear one part.
    assert cut_by_definition(weights, normalized_cut(affinity, 2, masses).numpy()) == 0
    assert normalized_cut(affinity, 4, masses).unique().tolist() == [0, 1, 2, 3]
    # Vertices without any edge, not even a loop.
    alone = torch.zeros(4, 4)
    alone[:2, :2] = 1
    assert normalized_cut(alone, 3).unique().tolist() == [0, 1, 2]
    assert normalized_cut(torch.zeros(5, 5), 2).unique().tolist() == [0, 1]


def test_where_all_cuts_are_equal_groups_are_runs_of_equal_volume() -> None:
    assert normalized_cut(torch.ones(8, 8), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert normalized_cut(torch.ones(6, 6), 2, torch.tensor([4, 1, 1, 1, 1, 2])).tolist() == [0, 0, 1, 1, 1, 1]
    labels = normalized_cut(torch.ones(5, 5), 3, torch.tensor([1, 1, 1, 1, 1000]))
    assert labels.unique().tolist() == [0, 1, 2]


def test_identical_snapshots_stay_together() -> None:
    points = np.repeat(blobs([2, 2, 2], 0.3, 0), 2, 0)
    labels = normalized_cut(torch.from_numpy(gaussian(points)), 3)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_numbers_of_groups_at_the_ends() -> None:
    affinity = torch.from_numpy(gaussian(blobs([2, 3], 0.5, 0)))
    assert normalized_cut(affinity, 1).tolist() == [0] * 5
    for groups in (5, 6, 100):
        assert normalized_cut(affinity, groups).tolist() == [0, 1, 2, 3, 4]
    assert normalized_cut(torch.ones(1, 1), 4).tolist() == [0]


def test_numbering_and_repetition() -> None:
    affinity = gaussian(blobs([7, 5, 6, 9], 0.7, 3))
    order = np.random.default_rng(0).permutation(len(affinity))
    shuffled = torch.from_numpy(affinity[order][:, order])
    labels = normalized_cut(shuffled, 4)
    assert labels.dtype == torch.int64
    firsts = [labels.tolist().index(group) for group in range(4)]
    assert firsts == sorted(firsts)
    torch.manual_seed(5)
    np.random.seed(5)
    assert normalized_cut(shuffled, 4).equal(labels)
    plain = normalized_cut(torch.from_numpy(affinity), 4).numpy()
    assert adjusted_rand_score(plain[order], labels.numpy()) == 1


def test_any_seed_will_do() -> None:
    affinity = torch.from_numpy(gaussian(np.random.default_rng(0).normal(size=(8, 2))))
    assert len(normalized_cut(affinity, 4, seed=2**32 - 1).unique()) == 4


def test_bad_graphs_are_refused() -> None:
    square = torch.ones(3, 3)
    for affinity, message in (
        (torch.ones(3, 2), 'square matrix'),
        (torch.ones(0, 0), 'square matrix'),
        (square - 2, 'negative or not finite'),
        (square * torch.nan, 'negative or not finite'),
        (torch.arange(9.0).view(3, 3), 'not symmetric'),
    ):
        with pytest.raises(GkpGsaError, match=message):
            normalized_cut(affinity, 2)
    with pytest.raises(GkpGsaError, match='n_groups must be at least 1, not 0'):
        normalized_cut(square, 0)
    for masses in (torch.ones(2), torch.tensor([1, 0, 1])):
        with pytest.raises(GkpGsaError, match='3 positive numbers'):
            normalized_cut(square, 2, masses)


def snapshot(epoch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    drift = 10.0 * (epoch >= 3) + 20.0 * (epoch >= 6)
    return {name: drift + torch.randn(shape, generator=generator) for name, shape in (('w', (5, 4)), ('b', (3,)))}


def filled_bank(best: list[int], dtype: torch.dtype = torch.float32) -> MemoryBank:
    """A bank in which class c was best at epoch best[c], never if -1."""
    bank = MemoryBank(len(best), HostStore(dtype))
    for epoch in range(max(best) + 1):
        quality = torch.tensor([float(epoch == b) if b >= 0 else torch.nan for b in best])
        bank.update(epoch, torch.where(quality > 0, quality, torch.nan), snapshot(epoch))
    return bank


def affinity_of(bank: MemoryBank) -> Tensor:
    gram = SnapshotDistances()
    gram.update(bank.epochs, bank.snapshot)
    return parameter_affinity(gram)


def test_classes_are_grouped_by_their_snapshots() -> None:
    best = [7, 0, 4, 0, -1, 2, 6, 3, 2, 0, -1, 7, 5]
    groups = group_classes(filled_bank(best), affinity_of(filled_bank(best)), 3)
    # Epochs 0-2, 3-5 and 6-8 lie apart; the classes never stored join the largest group.
    assert groups.tolist() == [0 if b < 3 else 1 if b < 6 else 2 for b in best]
    assert group_classes(filled_bank(best), affinity_of(filled_bank(best)), 1).tolist() == [0] * len(best)
    late = [0, 7, 7, -1, 8, 4]
    assert group_classes(filled_bank(late), affinity_of(filled_bank(late)), 3).tolist() == [0, 2, 2, 2, 2, 1]


def test_fewer_snapshots_than_groups() -> None:
    bank = filled_bank([2, 0, 2, -1])
    assert group_classes(bank, affinity_of(bank), 4).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_anchors_are_means_over_classes(dtype: torch.dtype) -> None:
    best = [7, 0, 4, 0, -1, 2, 6, 3, 2, 0, 7, 5]
    bank = filled_bank(best, dtype)
    # Groups that cut across snapshots, as groups by class frequency do.
    class_groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1])
    anchors = list(group_anchors(bank, class_groups))
    assert len(anchors) == 3
    for group, anchor in enumerate(anchors):
        members = [best[c] for c in range(12) if class_groups[c] == group and best[c] >= 0]
        for name, tensor in anchor.items():
            copies = np.stack([snapshot(epoch)[name].to(dtype).double().numpy() for epoch in members])
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor.numpy(), copies.mean(0), rtol=1e-6, atol=1e-7)


def test_anchors_read_every_snapshot_of_a_grouping_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = filled_bank([7, 0, 4, 0, -1, 2, 6, 3])
    class_groups = group_classes(bank, affinity_of(bank), 3)
    read, plain = [], bank.snapshot
    monkeypatch.setattr(bank, 'snapshot', lambda epoch: (read.append(epoch), plain(epoch))[1])
    # One after the other, so that only one is in memory.
    assert isinstance(group_anchors(bank, class_groups), Iterator)
    list(group_anchors(bank, class_groups))
    assert sorted(read) == bank.epochs


def test_a_group_that_got_another_number_has_not_moved() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        before, after = generator.integers(0, 4, 12), generator.integers(0, 3, 12)
        # By brute force: every way to call the new groups by the old ones' numbers, two of five of which are new.
        least = min(int((np.array(names)[after] != before).sum()) for names in itertools.permutations(range(5), 3))
        assert classes_moved(torch.from_numpy(before), torch.from_numpy(after)) == least
    groups = torch.tensor([0, 0, 1, 2, 2])
    assert classes_moved(groups, torch.tensor([1, 1, 2, 0, 0])) == 0
    assert classes_moved(torch.zeros_like(groups), groups) == 3


def test_banks_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(GkpGsaError, match='no class of the bank has a snapshot yet'):
        group_classes(MemoryBank(3, HostStore()), torch.ones(0, 0), 2)
    bank = filled_bank([0, 1, -1])
    with pytest.raises(GkpGsaError, match=r'2 distinct snapshots, so the affinity must have shape \(2, 2\)'):
        group_classes(bank, torch.ones(3, 3), 2)
    with pytest.raises(GkpGsaError, match='no class of group 1 has a snapshot'):
        list(group_anchors(bank, torch.tensor([0, 0, 1])))
    with pytest.raises(GkpGsaError, match=r'class_groups must have shape \(3,\)'):
        list(group_anchors(bank, torch.zeros(4, dtype=torch.int64)))


def test_a_hundred_thousand_classes_are_cut_as_their_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    bank = MemoryBank(100_000, HostStore())
    walk = generator.normal(size=(100, 20)).cumsum(0)
    best = torch.from_numpy(generator.integers(0, 100, 100_000))
    for epoch in range(100):
        quality = torch.where(best == epoch, 1.0, torch.nan)
        bank.update(epoch, quality, {'w': torch.from_numpy(walk[epoch]).float()})
    affinity = affinity_of(bank)
    # Nothing with a side of that many classes is made.
    shapes: list[tuple[int, ...]] = []
    own = grouping.normalized_cut

    def recording(affinity: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(affinity.shape))
        return own(affinity, *rest)

    monkeypatch.setattr(grouping, 'normalized_cut', recording)
    groups = group_classes(bank, affinity, 4)
    assert shapes == [(100, 100)]
    masses = best.bincount()
    weights = (masses[:, None] * affinity * masses).numpy()
    value = cut_by_definition(weights, groups[[int((best == e).nonzero()[0]) for e in range(100)]].numpy())
    # No worse than what the textbook solution of the expanded graph, thinned to one in 200, gives.
    thinned = (masses // 200).clamp_min(1).numpy()
    theirs = spectral(expand(affinity.numpy(), thinned), 4)[np.cumsum(thinned) - 1]
    assert value <= cut_by_definition(weights, theirs) + 1e-9
