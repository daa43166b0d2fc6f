"""Numbers of the profile against independent formulas; planted faults are found and named."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from ltzoo.data import (
    ArrayImages,
    DataError,
    Dataset,
    Split,
    UnreadableImageError,
    drop_unreadable,
    gini_coefficient,
    imbalance_ratio,
    load_data,
    plot_profile,
    profile_data,
    require_readable,
    shot_classes,
)


def write_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write_tree(root: Path, train: list[int], test: list[int]) -> None:
    """Class folders a, b, ... of JPEG files 0.jpg, 1.jpg, ..., no two alike."""
    seed = itertools.count()
    for part, numbers in (('train', train), ('test', test)):
        for c, number in enumerate(numbers):
            for i in range(number):
                write_noise(root / part / 'abcdef'[c] / f'{i}.jpg', next(seed))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    'counts', [[5, 5, 5], [500, 100, 20, 4], [0, 0, 7], [3, 1, 4, 1, 5, 9, 2, 6], [1000] + [1] * 99]
)
def test_gini_is_half_the_relative_mean_absolute_difference(counts: list[int]) -> None:
    differences = [abs(a - b) for a in counts for b in counts]
    expected = np.mean(differences) / np.mean(counts) / 2
    assert gini_coefficient(np.array(counts)) == pytest.approx(expected, abs=1e-12)


def test_imbalance_ratio() -> None:
    assert imbalance_ratio(np.array([7, 21, 3])) == 7.0
    assert imbalance_ratio(np.array([0, 21, 3])) == 7.0
    with pytest.raises(ValueError, match='no class has an image'):
        imbalance_ratio(np.zeros(3, dtype=int))


@pytest.mark.parametrize('thresholds', [(100, 20), (50, 51), (3, 0)])
def test_shots_by_the_definition(thresholds: tuple[int, int]) -> None:
    counts = np.array([101, 100, 20, 19, 0, 500, 51, 50])
    shots = shot_classes(counts, *thresholds)
    assert list(shots) == ['many', 'medium', 'few']
    for c, count in enumerate(counts):
        shot = 'many' if count > thresholds[0] else 'few' if count < thresholds[1] else 'medium'
        assert [name for name, classes in shots.items() if c in classes] == [shot]
    assert all(classes.dtype == np.int64 and (np.diff(classes) > 0).all() for classes in shots.values())


def test_shots_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match=r'few_below 22 must be at most .* 21'):
        shot_classes(np.array([1, 2]), many_above=20, few_below=22)


def test_counts_and_shots_of_a_set(tmp_path: Path) -> None:
    write_tree(tmp_path, [12, 6, 1], [2, 0, 1])
    profile = profile_data(load_data('folder', tmp_path), many_above=10, few_below=3)
    assert profile.train_counts.tolist() == [12, 6, 1]
    assert profile.test_counts.tolist() == [2, 0, 1]
    assert {shot: classes.tolist() for shot, classes in profile.shots.items()} == {
        'many': [0],
        'medium': [1],
        'few': [2],
    }
    assert profile.imbalance_ratio == 12
    assert profile.check is not None and profile.check.duplicates == []
    assert profile.warnings == ('1 class has only one training image: c', '1 class has no test image: b')
    written = json.loads(json.dumps(profile.to_json()))
    assert written['shots']['medium'] == {'classes': 1, 'train_images': 6}
    assert written['per_class'][2] == {'class': 2, 'name': 'c', 'train_count': 1, 'test_count': 1}
    assert (written['train_images'], written['test_images']) == (19, 3)


def test_empty_classes_are_named() -> None:
    split = Split(ArrayImages(np.zeros((3, 1, 1, 3), np.uint8)), np.array([0, 0, 4]))
    dataset = Dataset('gaps', split, split, tuple('abcdef'))
    warnings = profile_data(dataset, check_images=False).warnings
    assert warnings[0] == '4 classes have no training image: b, c, d, f'
    assert profile_data(dataset, check_images=False).check is None


def test_one_name_in_several_spellings_is_named() -> None:
    split = Split(ArrayImages(np.zeros((4, 1, 1, 3), np.uint8)), np.arange(4))
    names = ('Apfel', '\N{LATIN CAPITAL LETTER A WITH DIAERESIS}pfel', 'A\N{COMBINING DIAERESIS}pfel', 'apfel')
    warnings = profile_data(Dataset('fruit', split, split, names), check_images=False).warnings
    assert f'{names[0]} = {names[3]}, {names[1]} = {names[2]}' in warnings[-1]
    assert warnings[-1].startswith('2 class names are there in spellings that differ in case or accents alone: ')


def test_planted_faults_are_found(tmp_path: Path) -> None:
    write_tree(tmp_path, [5, 5], [3, 3])
    train, test = tmp_path / 'train', tmp_path / 'test'
    truncate(train / 'a' / '1.jpg')
    (test / 'b' / '2.jpg').write_bytes(b'')
    # The same pixels in another file format, another class, and another part.
    Image.open(train / 'b' / '0.jpg').save(train / 'a' / '7.png')
    Image.open(train / 'b' / '3.jpg').save(test / 'b' / '8.bmp')
    # The same bytes in another shape are another image.
    Image.fromarray(np.zeros((2, 8, 3), np.uint8)).save(test / 'a' / 'wide.png')
    Image.fromarray(np.zeros((8, 2, 3), np.uint8)).save(test / 'a' / 'tall.png')
    dataset = load_data('folder', tmp_path)
    profile = profile_data(dataset)
    assert profile.check is not None
    assert len(profile.check.unreadable['training']) == len(profile.check.unreadable['test']) == 1
    assert str(train / 'a' / '1.jpg') in profile.check.unreadable['training'][0]
    groups = [{dataset.parts[part].images.name(i) for part, i in group} for group in profile.check.duplicates]
    pairs = [(train / 'a' / '7.png', train / 'b' / '0.jpg'), (train / 'b' / '3.jpg', test / 'b' / '8.bmp')]
    assert sorted(map(sorted, groups)) == sorted(sorted(map(str, pair)) for pair in pairs)
    kinds = [warning.split(':')[0] for warning in profile.warnings]
    assert kinds == [
        '1 training image cannot be read',
        '1 test image cannot be read',
        '1 test image is also a training image',
        '1 training image is a copy of another',
        '1 group of equal images has different labels',
    ]


def test_what_a_validation_part_shares_with_the_others_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, [5, 5], [3, 3])
    for part in ('train', 'test'):
        (tmp_path / 'val' / 'a').mkdir(parents=True, exist_ok=True)
        Image.open(tmp_path / part / 'a' / '0.jpg').save(tmp_path / 'val' / 'a' / f'{part}.png')
    (tmp_path / 'val' / 'a' / 'empty.png').write_bytes(b'')
    profile = profile_data(load_data('folder', tmp_path))
    assert [warning.split(':')[0] for warning in profile.warnings] == [
        '1 validation image cannot be read',
        '1 validation image is also a training image',
        '1 validation image is also a test image',
    ]


def test_unreadable_images_are_dropped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path, [300, 3], [1, 1])
    for name in ('a/17.jpg', 'a/299.jpg', 'b/1.jpg'):
        truncate(tmp_path / 'train' / name)
    (tmp_path / 'train' / 'b' / '2.jpg').unlink()
    (tmp_path / 'train' / 'b' / '2.jpg').symlink_to(tmp_path / 'gone.jpg')
    split = load_data('folder', tmp_path).train
    kept = drop_unreadable(split)
    dropped = ['a/17.jpg', 'a/299.jpg', 'b/1.jpg', 'b/2.jpg']
    for name, message in zip(dropped, caplog.messages, strict=True):
        assert message.startswith(f'left out: image {tmp_path / "train" / name} ')
    assert np.bincount(kept.labels).tolist() == [298, 1]
    names = [str(tmp_path / 'train' / name) for name in dropped]
    assert all(kept.images.name(i) not in names and kept.images[i] for i in range(len(kept)))
    with pytest.raises(UnreadableImageError, match=r'a/17\.jpg'):
        require_readable(split)
    require_readable(kept)


def test_processes_share_the_reading_and_leave_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, [4, 3], [1, 1])
    for name in ('a/1.jpg', 'b/2.jpg'):
        truncate(tmp_path / 'train' / name)
    split = load_data('folder', tmp_path).train
    found: dict[int, dict[int, str]] = {0: {}, 1: {}}
    kept = {}

    def gather(of_all: list[dict[int, str]], own: dict[int, str]) -> None:
        found[process] = own
        of_all[:] = [found[0], found[1]]

    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'get_rank', lambda: process)
    monkeypatch.setattr(dist, 'all_gather_object', gather)
    # The first in the second round knows what the other has found in the first.
    for process in (0, 1, 0):
        kept[process] = drop_unreadable(split)
    assert [sorted(bad) for bad in found.values()] == [[6], [1]]
    for part in kept.values():
        names = [part.images.name(i).rpartition('train/')[2] for i in range(len(part))]
        assert names == ['a/0.jpg', 'a/2.jpg', 'a/3.jpg', 'b/0.jpg', 'b/1.jpg']
    # Each tells of its own.
    told = {0: r'b/2\.jpg', 1: r'a/1\.jpg'}
    for process in told:
        with pytest.raises(UnreadableImageError, match=told[process]):
            require_readable(split)


def test_nothing_to_drop(tmp_path: Path) -> None:
    write_tree(tmp_path, [2, 2], [1, 1])
    dataset = load_data('folder', tmp_path)
    assert drop_unreadable(dataset.train) is dataset.train
    for file in tmp_path.glob('train/*/*.jpg'):
        truncate(file)
    with pytest.raises(DataError, match=r'no image can be decoded \(4 in all, the first is '):
        drop_unreadable(dataset.train)


def test_cifar100_has_ten_test_images_in_its_training_part(cifar_dir: Path) -> None:
    """Ten, found as well by comparing the raw bytes; fourteen training images are copies of another."""
    dataset = load_data('cifar100', cifar_dir)
    assert isinstance(dataset.train.images, ArrayImages) and isinstance(dataset.test.images, ArrayImages)
    known = {image.tobytes() for image in dataset.train.images.array}
    assert sum(image.tobytes() in known for image in dataset.test.images.array) == 10
    assert len(dataset.train) - len(known) == 14
    warnings = profile_data(dataset).warnings
    assert any(warning.startswith('10 test images are also training images: ') for warning in warnings)
    assert any(warning.startswith('14 training images are copies of another: ') for warning in warnings)


def test_many_equal_images_make_no_endless_warning(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        for part in ('train', 'test'):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(50):
                Image.new('RGB', (4, 4)).save(tmp_path / part / name / f'{i}.png')
    warnings = profile_data(load_data('folder', tmp_path)).warnings
    assert any(warning.startswith('1 group of equal images has different labels') for warning in warnings)
    assert all(warning.count('.png') <= 8 for warning in warnings)


def test_dollars_in_class_names_are_no_formulas(tmp_path: Path) -> None:
    dataset = replace(load_data('digits_lt'), class_names=tuple(f'${c}_{{$' for c in range(10)), name='$x_{$')
    plot_profile(profile_data(dataset, check_images=False), str(tmp_path / 'tail.png'))


@pytest.mark.parametrize('suffix', ['.png', '.svg'])
def test_plot(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip('matplotlib')
    plot_profile(profile_data(load_data('digits_lt'), check_images=False), tmp_path / f'tail{suffix}')
    if suffix == '.png':
        image = Image.open(tmp_path / 'tail.png').convert('RGB')
        colours = {colour for _, colour in image.getcolors(2**20) or []}
        assert {(31, 119, 180), (255, 127, 14), (214, 39, 40)} <= colours
    else:
        assert '<svg' in (tmp_path / 'tail.svg').read_text()
