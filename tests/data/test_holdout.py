"""Hold-outs are balanced or stratified, and share no image with the training or the test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltzoo.data import (
    ArrayImages,
    DataError,
    Dataset,
    FileImages,
    MissingDataError,
    Split,
    load_data,
    load_parts,
    split_off,
    with_holdout,
)
from ltzoo.data.sources._own import from_parts


def numbered(labels: list[int] | np.ndarray, first: int = 0) -> Split:
    """Samples whose image says its number in its pixels."""
    numbers = np.arange(first, first + len(labels))
    pixels = np.stack([numbers // 256, numbers % 256, 0 * numbers], axis=1).astype(np.uint8)
    return Split(ArrayImages(pixels.reshape(-1, 1, 1, 3)), np.array(labels, dtype=np.int64))


def numbers_of(split: Split) -> list[int]:
    pixels = [split.images[i].getpixel((0, 0)) for i in range(len(split))]
    return [256 * p[0] + p[1] for p in pixels]


def dataset_of(train: Split, spare: Split | None = None, classes: int = 3) -> Dataset:
    return Dataset('numbered', train, numbered(range(classes), 60_000), tuple('abcdef'[:classes]), spare=spare)


@pytest.fixture(scope='module')
def longtailed() -> Dataset:
    """200 images of 10 classes, 200 to 2 of each kept."""
    return dataset_of(numbered(np.tile(np.arange(6), 200)), classes=6).longtailed(100)


def test_balanced_and_disjoint(longtailed: Dataset) -> None:
    held = with_holdout(longtailed)
    assert np.bincount(held.test.labels).tolist() == [50] * 6
    labels = dict(zip(numbers_of(longtailed.train), longtailed.train.labels.tolist(), strict=True))
    assert longtailed.spare is not None and held.spare is not None
    labels |= dict(zip(numbers_of(longtailed.spare), longtailed.spare.labels.tolist(), strict=True))
    parts = [held.train, held.test, held.spare]
    seen = [number for part in parts for number in numbers_of(part)]
    assert sorted(seen) == sorted(labels) == list(range(1200))
    assert [labels[number] for number in seen] == np.concatenate([part.labels for part in parts]).tolist()
    assert held.test is not longtailed.test


def test_a_validation_part_is_the_hold_out_and_training_keeps_all() -> None:
    dataset = replace(dataset_of(numbered([0, 1, 2] * 5)), validation=numbered([2, 0], 500))
    held = with_holdout(dataset)
    assert (numbers_of(held.test), held.test.labels.tolist()) == ([500, 501], [2, 0])
    assert numbers_of(held.train) == numbers_of(dataset.train)
    assert held.drawn_from is None
    with pytest.raises(DataError, match='the validation set of numbered has label 3'):
        replace(dataset, validation=numbered([3]))


def test_of_an_own_profile_no_official_list_is_missing() -> None:
    dataset = replace(dataset_of(numbered(np.tile(np.arange(6), 200)), classes=6), missing_spare=Path('list.txt'))
    with pytest.raises(MissingDataError, match=r'list\.txt is missing'):
        with_holdout(dataset)
    assert with_holdout(dataset.longtailed(4)).num_classes == 6


def test_only_classes_without_spares_give_up_training_images(longtailed: Dataset) -> None:
    # 200 images in each class, of which the profile keeps these.
    assert longtailed.class_counts.tolist() == [200, 79, 31, 12, 5, 2]
    assert with_holdout(longtailed).class_counts.tolist() == [150, 79, 31, 12, 5, 2]
    # Class 1 has 121 spares, class 0 none: 150 would leave class 0 with less than half of its 200.
    assert with_holdout(longtailed, per_class=100).class_counts.tolist() == [100, 79, 31, 12, 5, 2]
    with pytest.raises(DataError, match='class a of numbered: give at most 100'):
        with_holdout(longtailed, per_class=101)


def test_default_size_spares_classes_below_the_average() -> None:
    """An official validation list of 20 images a class, as ImageNet-LT's, is the hold-out; nobody gives anything up."""
    train = numbered([0] * 90 + [1] * 12 + [2] * 5)
    spare = numbered(np.repeat(np.arange(3), 20), first=1000)
    held = with_holdout(dataset_of(train, spare))
    assert held.class_counts.tolist() == [90, 12, 5]
    assert sorted(numbers_of(held.test)) == list(range(1000, 1060))
    assert held.spare is None


def test_order_of_training_part_is_kept(longtailed: Dataset) -> None:
    before, after = numbers_of(longtailed.train), numbers_of(with_holdout(longtailed).train)
    assert after == [number for number in before if number in set(after)]


@pytest.mark.parametrize('options', [{}, {'per_class': 7}])
def test_seed_alone_decides(longtailed: Dataset, options: dict[str, int]) -> None:
    np.random.seed(1)
    first = numbers_of(with_holdout(longtailed, **options, seed=3).test)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert numbers_of(with_holdout(longtailed, **options, seed=3).test) == first
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert numbers_of(with_holdout(longtailed, **options, seed=4).test) != first


def test_stratified_where_nothing_was_left_out() -> None:
    whole = dataset_of(numbered([0] * 50 + [1] * 10 + [2] * 3 + [3] * 2 + [4]), classes=5)
    held = with_holdout(whole)
    assert np.bincount(held.test.labels, minlength=5).tolist() == [10, 2, 1, 1, 0]
    assert held.class_counts.tolist() == [40, 8, 2, 1, 1]
    assert sorted(numbers_of(held.train) + numbers_of(held.test)) == list(range(66))


def test_stratified_where_too_little_was_left_out(longtailed: Dataset) -> None:
    little = replace(longtailed, spare=numbered([0, 1], first=5000))
    held, expected = with_holdout(little), with_holdout(replace(little, spare=None))
    assert numbers_of(held.test) == numbers_of(expected.test)
    assert held.class_counts.tolist() == expected.class_counts.tolist()


def test_cifar100_keeps_its_tail(cifar_dir: Path) -> None:
    longtailed = load_data('cifar100_lt_r100', cifar_dir)
    held = with_holdout(longtailed)
    assert np.bincount(held.test.labels).tolist() == [50] * 100
    # The profile keeps 500, 477, 455, 434 of 500: the first three classes leave out fewer than 50.
    assert (longtailed.class_counts - held.class_counts).tolist() == [50, 27, 5] + [0] * 97


def test_files_stay_files(tmp_path: Path) -> None:
    train = Split(FileImages(tmp_path, [f'{i}.png' for i in range(90)]), np.repeat(np.arange(3), 30))
    longtailed = dataset_of(train).longtailed(10)
    held = with_holdout(longtailed, per_class=4)
    names = [split.images.name(i) for split in (held.train, held.test) for i in range(len(split))]
    assert len(set(names)) == len(longtailed.train) + 12 - 4
    chosen = held.test.select(np.array([11, 0]))
    assert [chosen.images.name(0), chosen.images.name(1)] == [held.test.images.name(11), held.test.images.name(0)]
    assert chosen.select(np.array([1])).images.name(0) == held.test.images.name(0)
    last = int(held.test.images.name(11).split('/')[-1].removesuffix('.png'))
    assert train.labels[last] == held.test.labels[11]


def test_split_off_one_image_a_class_stays() -> None:
    rest, part = split_off(numbered([0, 1, 2]))
    assert (len(rest), len(part)) == (3, 0)


def test_a_set_with_one_image_a_class_has_no_test_part_to_be_drawn() -> None:
    with pytest.raises(DataError, match='no class of folder:mine has two images, so that no test set can be drawn'):
        from_parts('folder:mine', [numbered([0, 1, 2])], ('a', 'b', 'c'))


def test_labels_of_any_integers_and_names_in_a_list() -> None:
    part = Split(ArrayImages(np.zeros((3, 1, 1, 3), dtype=np.uint8)), [0, 1, 1])  # type: ignore[arg-type]
    assert part.labels.dtype == np.int64
    assert Split(part.images, np.array([0, 1, 1], dtype=np.uint8)).digest() == part.digest()
    assert Dataset('own', part, part, ['a', 'b']).class_names == ('a', 'b')  # type: ignore[arg-type]
    for labels in (np.array([0.0, 1.0, 1.0]), np.array(['a', 'b', 'b']), np.array([[0], [1], [1]])):
        with pytest.raises(DataError, match=r'where integers of shape \(N,\) are needed'):
            Split(part.images, labels)
    with pytest.raises(DataError, match='own has 1 class, a; a classifier needs at least 2'):
        Dataset('own', part, part, ('a',))


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="split is 'val': it can be test, holdout"):
        load_parts('digits_lt', split='val')  # type: ignore[arg-type]
    with pytest.raises(DataError, match="unreadable is 'Skip'; did you mean skip"):
        load_parts('digits_lt', unreadable='Skip')  # type: ignore[arg-type]


def test_unfit_input_is_refused(longtailed: Dataset) -> None:
    with pytest.raises(DataError, match='at least 1'):
        with_holdout(longtailed, per_class=0)
