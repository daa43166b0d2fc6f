"""The long-tailed split against LDAM's published facts, and against a plain statement of its rule."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from ltzoo.data import DataError, load_data, longtail_counts, longtail_indices

SIZES = {
    ('cifar100', 100): 10_847,
    ('cifar100', 50): 12_608,
    ('cifar100', 10): 19_573,
    ('cifar10', 100): 12_406,
    ('cifar10', 50): 13_996,
    ('cifar10', 10): 20_431,
}


@pytest.fixture(scope='module')
def labels(cifar_dir: Path) -> dict[str, np.ndarray]:
    """The training labels in the order of the official files, read without ltzoo."""
    coarse_and_fine = pickle.loads((cifar_dir / 'cifar-100-python' / 'train').read_bytes(), encoding='bytes')
    batches = [
        pickle.loads((cifar_dir / 'cifar-10-batches-py' / f'data_batch_{i}').read_bytes(), encoding='bytes')
        for i in range(1, 6)
    ]
    return {
        'cifar100': np.array(coarse_and_fine[b'fine_labels']),
        'cifar10': np.concatenate([batch[b'labels'] for batch in batches]),
    }


def test_cifar100_r100_is_ldams_split(labels: dict[str, np.ndarray]) -> None:
    indices = longtail_indices(labels['cifar100'], 100)
    assert len(indices) == 10_847
    assert indices[:5].tolist() == [9470, 27272, 30172, 43691, 45171]
    assert hashlib.sha256(indices.astype('<i8').tobytes()).hexdigest().startswith('e0d58a4d2700c460')


@pytest.mark.parametrize(('source', 'ratio'), SIZES)
def test_sizes_of_published_splits(labels: dict[str, np.ndarray], source: str, ratio: int) -> None:
    indices = longtail_indices(labels[source], ratio)
    assert len(indices) == len(set(indices.tolist())) == SIZES[source, ratio]
    counts = np.bincount(labels[source][indices])
    largest = 5000 if source == 'cifar10' else 500
    assert counts[0] == largest
    assert counts[-1] == largest // ratio
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize(('ratio', 'shots'), [(100, (35, 35, 30)), (50, (41, 41, 18)), (10, (69, 31, 0))])
def test_shots_of_cifar100(labels: dict[str, np.ndarray], ratio: int, shots: tuple[int, int, int]) -> None:
    counts = np.bincount(labels['cifar100'][longtail_indices(labels['cifar100'], ratio)])
    many, few = sum(counts > 100), sum(counts < 20)
    assert (many, 100 - many - few, few) == shots


def test_named_set_holds_the_split_and_the_rest(cifar_dir: Path, labels: dict[str, np.ndarray]) -> None:
    whole = load_data('cifar100', cifar_dir)
    longtailed = load_data('cifar100_lt_r100', cifar_dir)
    indices = longtail_indices(labels['cifar100'], 100)
    np.testing.assert_array_equal(longtailed.train.labels, labels['cifar100'][indices])
    assert np.asarray(longtailed.train.images[7]).tobytes() == np.asarray(whole.train.images[indices[7]]).tobytes()
    assert longtailed.spare is not None
    assert len(longtailed.spare) == 50_000 - 10_847
    np.testing.assert_array_equal(np.bincount(longtailed.spare.labels), 500 - longtailed.class_counts)
    assert len(longtailed.test) == 10_000


def test_smaller_head_class_keeps_shape_and_is_part_of_the_whole(
    cifar_dir: Path, labels: dict[str, np.ndarray]
) -> None:
    small = longtail_indices(labels['cifar10'], 100, largest=500)
    assert np.bincount(labels['cifar10'][small]).tolist() == longtail_counts(10, 500, 100).tolist()
    assert set(small) <= set(longtail_indices(labels['cifar10'], 100))
    with pytest.raises(DataError, match=r'_n9{20}: '):
        load_data(f'digits_lt_r10_n{"9" * 20}')
    named = load_data('cifar10_lt_r100_n500', cifar_dir)
    assert named.class_counts.tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert named.spare is not None
    assert len(named.train) + len(named.spare) == 50_000
    step = load_data('cifar10_lt_r100_n500_step', cifar_dir)
    assert step.class_counts.tolist() == [500] * 5 + [5] * 5


def test_draw_follows_the_rule_word_for_word() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(4), 32))
    np.random.seed(3)
    expected = []
    for c, number in enumerate([32, 16, 8, 4]):
        indices = [i for i in range(len(labels)) if labels[i] == c]
        np.random.shuffle(indices)
        expected += indices[:number]
    assert longtail_indices(labels, 8, seed=3).tolist() == expected


def test_step_profile() -> None:
    labels = np.tile(np.arange(5), 40)
    assert longtail_counts(5, 40, 8, 'step').tolist() == [40, 40, 5, 5, 5]
    assert np.bincount(labels[longtail_indices(labels, 8, 'step')]).tolist() == [40, 40, 5, 5, 5]


def test_ratio_one_keeps_everything() -> None:
    labels = np.tile(np.arange(3), 10)
    assert sorted(longtail_indices(labels, 1).tolist()) == list(range(30))


def test_seed_alone_decides() -> None:
    labels = np.tile(np.arange(3), 50)
    np.random.seed(1)
    first = longtail_indices(labels, 10, seed=4)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(longtail_indices(labels, 10, seed=4), first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert longtail_indices(labels, 10, seed=5).tolist() != first.tolist()


@pytest.mark.parametrize(
    ('labels', 'ratio', 'kind', 'message'),
    [
        (np.tile(np.arange(3), 5), 0.5, 'exp', 'at least 1'),
        (np.tile(np.arange(3), 5), float('nan'), 'exp', 'at least 1'),
        (np.tile(np.arange(3), 5), 6, 'exp', 'take one below 5'),
        (np.tile(np.arange(3), 5), 2, 'linear', "'exp' or 'step'"),
        (np.zeros(5, dtype=int), 2, 'exp', 'at least 2 classes'),
        (np.zeros(0, dtype=int), 2, 'exp', 'non-empty'),
        (np.array([0.0, 1.0]), 2, 'exp', 'integer'),
        (np.array([-1, 0, 1]), 2, 'exp', '0 or more'),
        (
            np.array([0] * 2 + [1] * 18),
            2,
            'exp',
            'class 0 has 2 images, but the .* keeps 10: .*unbalanced',
        ),
        (np.array([0] * 10 + [2] * 10), 2, 'exp', 'class 1 has 0 images'),
    ],
)
def test_unfit_input_is_refused(labels: np.ndarray, ratio: float, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        longtail_indices(labels, ratio, kind)  # type: ignore[arg-type]


def test_more_than_the_head_class_has_is_refused() -> None:
    with pytest.raises(DataError, match=r'digits_lt_r50_n9999: class 0 has 134 images, but the .* keeps 9999'):
        load_data('digits_lt_r50_n9999')
    with pytest.raises(DataError, match='take one below 40'):
        load_data('digits_lt_r50_n40')


def test_names() -> None:
    assert load_data('digits_lt_r2_n40').class_counts[[0, -1]].tolist() == [40, 20]
    assert load_data('digits_lt').class_counts.tolist() == load_data('digits_lt_r50').class_counts.tolist()
    assert load_data('digits_lt_r2.5').class_counts[[0, -1]].tolist() == [134, 53]
    assert load_data('digits_lt_r4_step').class_counts.tolist() == [134] * 5 + [33] * 5
    assert load_data('digits_lt_r4_step').name == 'digits_lt_r4_step'
    with pytest.raises(DataError, match=r'did you mean digits\?'):
        load_data('digit')
    with pytest.raises(DataError, match=r"called 'zzz'\. Known: "):
        load_data('zzz')
    with pytest.raises(DataError, match='cifar10_lt_r100'):
        load_data('cifar10_lt')
    with pytest.raises(DataError, match=r'digits_lt_r1000.*take one below 134'):
        load_data('digits_lt_r1000')
