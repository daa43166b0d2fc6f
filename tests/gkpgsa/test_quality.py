"""Feature quality against a plain loop over classes, alone and on two processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from two_ranks import of_both

from ltzoo.gkpgsa import quality as module
from ltzoo.gkpgsa.quality import ClassQuality, FeatureQuality, QualityForm


def class_quality(
    features: Tensor, labels: Tensor, num_classes: int, beta: float = 0.5, form: QualityForm = 'difference'
) -> ClassQuality:
    quality = FeatureQuality(num_classes, features.shape[1], beta, form=form)
    quality.update(features, labels)
    return quality.compute()


def feature_quality(features: Tensor, labels: Tensor, num_classes: int, beta: float = 0.5) -> Tensor:
    return class_quality(features, labels, num_classes, beta).quality


def reference(features: Tensor, labels: Tensor, num_classes: int, beta: float) -> np.ndarray:
    """Eq. 17-19, written out with two passes over the data."""
    samples, classes = features.double().numpy(), labels.numpy()
    groups = {c: samples[classes == c] for c in range(num_classes) if (classes == c).any()}
    centroids = {c: group.mean(0) for c, group in groups.items()}
    quality = np.full(num_classes, np.nan)
    for c, group in groups.items():
        others = [math.dist(centroids[c], centroids[other]) for other in groups if other != c]
        if others:
            variance = np.mean([math.dist(a, centroids[c]) ** 2 for a in group])
            quality[c] = min(others) - beta * math.log(max(variance, 1e-12))
    return quality


def long_tailed(num_classes: int, dim: int, seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((max(1, 40 // (c + 1)),), c) for c in range(num_classes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.randn(num_classes, dim, generator=generator)
    return means[labels] + 0.3 * torch.randn(len(labels), dim, generator=generator) + offset, labels


@pytest.mark.parametrize('beta', [0.5, 0.0, 2.0])
def test_equals_a_loop_over_classes(beta: float) -> None:
    features, labels = long_tailed(60, 8)
    expected = reference(features, labels, 60, beta)
    got = feature_quality(features, labels, 60, beta)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('beta', [0.5, 1.5])
def test_the_ratio_is_the_distance_in_standard_deviations_whatever_the_scale(beta: float) -> None:
    features, labels = long_tailed(25, 8)
    once, scaled = (class_quality(scale * features, labels, 25, beta, 'ratio') for scale in (1.0, 4.0))
    assert labels.bincount().min() == 1
    expected = (once.distance / once.variance**beta).log()
    torch.testing.assert_close(once.quality, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(scaled.distance, 4 * once.distance)
    torch.testing.assert_close(scaled.variance, 16 * once.variance)
    torch.testing.assert_close(scaled.quality, once.quality + (1 - 2 * beta) * math.log(4), rtol=0, atol=1e-6)
    # Eq. 19 prefers one scale to another, each class its own.
    difference = [feature_quality(scale * features, labels, 25, beta) for scale in (1.0, 4.0)]
    assert (difference[1] - difference[0]).std() > 0.1


def test_streaming_equals_the_whole() -> None:
    features, labels = long_tailed(30, 8)
    whole = feature_quality(features, labels, 30)
    stream = FeatureQuality(30, 8)
    stream.update(features + 1, labels)
    stream.reset()
    for batch in torch.randperm(len(labels)).split(7):
        stream.update(features[batch], labels[batch])
    torch.testing.assert_close(stream.compute().quality, whole, rtol=0, atol=1e-10)
    # Looking does not disturb the sums.
    torch.testing.assert_close(stream.compute().quality, whole, rtol=0, atol=1e-10)


def test_blocks_of_distances_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = long_tailed(53, 4)
    whole = feature_quality(features, labels, 53)
    for entries in (1, 53 * 7, 53 * 52):
        monkeypatch.setattr(module, '_BLOCK', entries)
        assert feature_quality(features, labels, 53).equal(whole)


def test_far_from_the_origin() -> None:
    """|a|^2 is about 1e8 times the variance here: float32 sums would be noise."""
    features, labels = long_tailed(20, 6)
    features = features.double() + 1e4
    np.testing.assert_allclose(
        feature_quality(features, labels, 20).numpy(), reference(features, labels, 20, 0.5), rtol=0, atol=1e-6
    )


def test_centroids_that_nearly_coincide_are_told_apart() -> None:
    """Their squared distance, 1e-14, drowns in the rounding of inner products of size 1e8."""
    features = torch.full((6, 16), 2.5e3, dtype=torch.float64)
    features[2:4, 0] += 1e-7
    features[4:, 1] += 1.0
    features[1::2, 2] += 1.0
    quality = feature_quality(features, torch.tensor([0, 0, 1, 1, 2, 2]), 3, beta=0.0)
    np.testing.assert_allclose(quality[:2], 1e-7, rtol=1e-4)
    np.testing.assert_allclose(quality[2], 1.0, rtol=1e-6)


def test_the_nearest_of_many_is_found_far_from_the_origin() -> None:
    """Gaps of 1e-3 at a distance of 4e5: as inner products of uncentred centroids they are below rounding."""
    gaps = 1e-3 * torch.randperm(40, generator=torch.Generator().manual_seed(0)).double().add(1)
    features = torch.full((41, 16), 1e5, dtype=torch.float64)
    features[1:, 3] += gaps.cumsum(0)
    quality = feature_quality(features, torch.arange(41), 41, beta=0.0)
    expected = torch.cat([gaps[:1], gaps[:-1].minimum(gaps[1:]), gaps[-1:]])
    torch.testing.assert_close(quality, expected, rtol=1e-6, atol=0)


def test_half_precision_features_are_summed_in_float64() -> None:
    features, labels = long_tailed(5, 6)
    half = features.bfloat16()
    assert feature_quality(half, labels, 5).equal(feature_quality(half.double(), labels, 5))


def test_unseen_classes_are_nan_and_nobodys_neighbour() -> None:
    # Class 1 and 3 would lie at the origin, nearer than anything else.
    features = torch.tensor([[5.0, 0.0], [5.0, 2.0], [5.0, 5.0], [6.0, 5.0]])
    quality = feature_quality(features, torch.tensor([0, 0, 2, 2]), 4)
    distance = math.dist((5, 1), (5.5, 5))
    assert quality[0].item() == pytest.approx(distance - 0.5 * math.log(1.0))
    assert quality[2].item() == pytest.approx(distance - 0.5 * math.log(0.25))
    assert quality[[1, 3]].isnan().all()


def test_a_single_sample_has_a_finite_quality_that_follows_the_distance() -> None:
    labels = torch.tensor([0, 0, 1])
    rest = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    qualities = [
        feature_quality(torch.cat([rest, torch.tensor([[x, 1.0]])]), labels, 2)[1].item() for x in (3.1, 300.7, 4e4)
    ]
    expected = [x - 0.5 * math.log(1e-12) for x in (3.1, 300.7, 4e4)]
    assert qualities == pytest.approx(expected, rel=1e-6)


def test_equal_samples_do_not_take_the_logarithm_of_rounding() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 64).repeat_interleave(7, 0) * 1000
    quality = feature_quality(features, torch.arange(2).repeat_interleave(7), 2)
    distance = (features[0].double() - features[7].double()).norm()
    floor = 1e-12 * (1 + features[[0, 7]].double().square().sum(1))
    torch.testing.assert_close(quality, distance - 0.5 * floor.log(), rtol=0, atol=1e-9)


def test_features_that_are_not_finite_spoil_their_class_alone() -> None:
    features, labels = long_tailed(6, 4)
    without = feature_quality(features[labels != 2], labels[labels != 2], 6)
    for value in (torch.nan, torch.inf):
        spoilt = features.clone()
        spoilt[(labels == 2).nonzero()[0], 0] = value
        quality = feature_quality(spoilt, labels, 6)
        assert quality[2].isnan()
        torch.testing.assert_close(quality, without, rtol=0, atol=1e-12, equal_nan=True)


def test_one_seen_class_has_no_neighbour() -> None:
    assert feature_quality(torch.randn(4, 3), torch.full((4,), 1), 3).isnan().all()
    assert all(part.isnan().all() for part in FeatureQuality(3, 3).compute())


def test_shapes_that_do_not_fit_are_refused() -> None:
    stream = FeatureQuality(3, 4)
    for features, labels in ((torch.ones(2, 5), 2), (torch.ones(2, 4), 3), (torch.ones(4), 4)):
        with pytest.raises(ValueError, match=r'must have shape \(N, 4\)'):
            stream.update(features, torch.zeros(labels, dtype=torch.int64))


def _share(rank: int) -> list[float]:
    features, labels = long_tailed(12, 5)
    stream = FeatureQuality(12, 5)
    # Unequal shares, and classes that only one process sees.
    mine = labels < 4 if rank == 0 else labels >= 4
    stream.update(features[mine], labels[mine])
    stream.all_reduce()
    return stream.compute().quality.tolist()


def test_two_processes_have_the_quality_of_one(tmp_path: Path) -> None:
    expected = feature_quality(*long_tailed(12, 5), 12)
    for share in of_both(_share, tmp_path):
        torch.testing.assert_close(torch.tensor(share, dtype=torch.float64), expected, rtol=0, atol=1e-10)


def test_one_of_several_samples_says_nothing_of_a_class() -> None:
    features = torch.tensor([[0.0, 1.0], [0.0, 3.0], [5.0, 5.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    told = FeatureQuality(3, 2, class_counts=torch.tensor([2, 2, 1]))
    told.update(features, labels)
    found = told.compute()
    for part in found:
        assert part.isnan().tolist() == [False, True, False]
    quality = found.quality
    # As a neighbour the class counts as it is.
    torch.testing.assert_close(quality[[0, 2]], feature_quality(features, labels, 3)[[0, 2]])
