"""Packs of CIFAR: what is in them comes back bit for bit, what is not is missed aloud."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ltzoo.data import ArrayImages, DataError, Dataset, MissingDataError, Split, load_data, with_holdout
from ltzoo.data.sources.packed_cifar import pack_file, write_packed
from ltzoo.training.prepare import prepare_data
from ltzoo.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
HELD = 'cifar10_lt_r10'


def noise(number: int, seed: int) -> Split:
    generator = np.random.RandomState(seed)
    images = generator.randint(0, 256, (number, 32, 32, 3)).astype(np.uint8)
    images[: number // 2] //= 64
    return Split(ArrayImages(images), generator.permutation(np.arange(number) % 10).astype(np.int64))


@pytest.fixture(scope='module')
def whole() -> Dataset:
    """As the official files would give it, with fewer images; more than one strip of them."""
    return Dataset('CIFAR10', noise(1000, 0), noise(30, 1), tuple('abcdefghij'), image_size=32)


@pytest.fixture(scope='module')
def held(whole: Dataset) -> np.ndarray:
    """The images of `cifar10_lt_r10` and of its hold-out."""
    longtailed = with_holdout(whole.longtailed(10), per_class=5)
    needed = {image.tobytes() for part in (longtailed.train, longtailed.test) for image in part.images}
    indices = np.flatnonzero([image.tobytes() in needed for image in whole.train.images])
    assert 256 < len(indices) < 1000
    return indices


def pack(folder: Path, whole: Dataset, train: np.ndarray, test: int = 30) -> Path:
    file = pack_file(folder, 'cifar10')
    write_packed(file, whole, np.random.RandomState(0).permutation(train), np.arange(test), HELD)
    return file


def assert_equal(a: Split, b: Split) -> None:
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.images.array, b.images.array)  # type: ignore[attr-defined]


@pytest.mark.parametrize('ratio', [10, 20])
def test_a_split_comes_back_bit_for_bit(tmp_path: Path, whole: Dataset, held: np.ndarray, ratio: int) -> None:
    pack(tmp_path, whole, held)
    assert [path.name for path in tmp_path.iterdir()] == ['cifar10_pack.zip']
    packed, official = load_data(f'cifar10_lt_r{ratio}', tmp_path), whole.longtailed(ratio)
    assert packed.class_names == whole.class_names
    assert_equal(packed.train, official.train)
    assert_equal(packed.test, whole.test)
    assert packed.spare is not None and official.spare is not None
    np.testing.assert_array_equal(packed.spare.labels, official.spare.labels)
    if ratio == 10:
        assert_equal(with_holdout(packed, per_class=5).test, with_holdout(official, per_class=5).test)
        assert_equal(with_holdout(packed, per_class=5).train, with_holdout(official, per_class=5).train)


def test_a_missing_image_is_never_black(tmp_path: Path, whole: Dataset, held: np.ndarray) -> None:
    pack(tmp_path, whole, held, test=0)
    message = rf'pack of CIFAR10 holds the images of {HELD} \({len(held)} training and 0 test images\)'
    packed = load_data('cifar10', tmp_path)
    missing = int(np.setdiff1d(np.arange(1000), held)[0])
    assert packed.train.images[int(held[7])].tobytes() == whole.train.images[int(held[7])].tobytes()
    for ask in (
        lambda: packed.train.images.array,  # type: ignore[attr-defined]
        lambda: packed.train.images[missing],
        lambda: packed.train.select(np.array([held[0], missing])).images.array,  # type: ignore[attr-defined]
        lambda: packed.train.select(np.array([held[0], missing])).select(np.array([1])).images[0],
        lambda: packed.test.images.array,  # type: ignore[attr-defined]
        lambda: packed.test.images[0],
        lambda: with_holdout(load_data(HELD, tmp_path), per_class=12),
    ):
        with pytest.raises(DataError, match=message):
            ask()


def test_missing_test_images_are_missed_before_training(tmp_path: Path, whole: Dataset, held: np.ndarray) -> None:
    pack(tmp_path, whole, held, test=0)
    recipe = load_recipe(RECIPES / 'cifar10_lt_r10' / 'ce.yaml', [f'data.data_dir={tmp_path}'])
    with pytest.raises(DataError, match='and 0 test images'):
        prepare_data(recipe)


def test_everything_held_is_a_plain_array(tmp_path: Path, whole: Dataset) -> None:
    pack(tmp_path, whole, np.arange(1000))
    packed = load_data('cifar10', tmp_path)
    assert type(packed.train.images) is ArrayImages
    assert_equal(packed.train, whole.train)


def test_official_files_go_before_a_pack(tmp_path: Path, whole: Dataset) -> None:
    pack(tmp_path, whole, np.arange(10))
    (tmp_path / 'cifar-10-batches-py').mkdir()
    with pytest.raises(MissingDataError):
        load_data('cifar10', tmp_path)


def test_damaged_packs_are_named(tmp_path: Path, whole: Dataset) -> None:
    file = pack(tmp_path, whole, np.arange(300))
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    with zipfile.ZipFile(file) as good:
        start = good.getinfo('index.json').header_offset + 60
    blank = content[:start] + bytes(40) + content[start + 40 :]
    for damaged in (b'', b'no zip', content[:-100], bytes(flipped), blank):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf'{file} is not a readable pack .*: make it again'):
            load_data('cifar10', tmp_path)
    file.write_bytes(content)
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(tmp_path / 'less.zip', 'w') as less:
        for name in good.namelist():
            if name != 'train_001.webp':
                less.writestr(name, good.read(name))
    (tmp_path / 'less.zip').rename(file)
    with pytest.raises(DataError, match='not a readable pack'):
        load_data('cifar10', tmp_path)
