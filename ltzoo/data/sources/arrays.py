"""A user's own images as NumPy arrays: one .npz file, such as MedMNIST's, or a folder of .npy files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, register_source
from ltzoo.data.images import ArrayImages
from ltzoo.data.sources._own import classes_of_integers, from_parts

# Encrypted archives and unknown compressions are RuntimeErrors; a header may ask for any amount of memory.
_READING_ERRORS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
# Images and labels of the training set, the test set and the validation set.
_KEYS = (
    (('x_train', 'y_train'), ('x_test', 'y_test'), ('x_val', 'y_val')),
    (('train_images', 'train_labels'), ('test_images', 'test_labels'), ('val_images', 'val_labels')),
)


@register_source('npz', needs_location=True)
def npz(location: Path, download: bool) -> Dataset:
    """Read an .npz file of arrays x_train, y_train, x_test, y_test, or train_images, train_labels, test_images, ...

    Images are uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3); labels are integers of 0 or more, shape (N,) or
    (N, 1); those that occur are the classes. x_val and y_val (val_images, val_labels) are the validation set, which
    hold-outs are, or the test set if there is none. Without either, 20 % of every class become the test set, always
    the same ones (`ltzoo.data.split_off`). Mean and standard deviation are those of the training set.
    """
    if not location.is_file():
        raise MissingDataError(f'{location} is not a file; npz takes a .npz file')
    try:
        archive = np.load(location, allow_pickle=False)
    except _READING_ERRORS as error:
        raise DataError(f'{location} is not a readable .npz file: {error}') from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f'{location} holds a single array; npz takes a .npz file of several')
    with archive:
        return _dataset(f'npz:{location}', archive.files, archive.__getitem__)


@register_source('npy', needs_location=True)
def npy(location: Path, download: bool) -> Dataset:
    """Read a folder of x_train.npy, y_train.npy, x_test.npy and y_test.npy; everything else is as in `npz`."""
    if not location.is_dir():
        raise MissingDataError(f'{location} is not a folder; npy takes a folder of .npy files')
    files = {file.stem: file for file in location.glob('*.npy')}
    return _dataset(f'npy:{location}', files, lambda key: np.load(files[key], allow_pickle=False))


def _dataset(name: str, available: Collection[str], load: Callable[[str], np.ndarray]) -> Dataset:
    pairs = next((pairs for pairs in _KEYS if pairs[0][0] in available), _KEYS[0])
    used = [pairs[0], *(pair for pair in pairs[1:] if set(pair) & set(available))]
    missing = [key for pair in used for key in pair if key not in available]
    if missing:
        found = ', '.join(sorted(available)) or 'nothing'
        raise DataError(
            f'{name} has no array {missing[0]}; it must hold {" and ".join(pairs[0])}, can hold '
            f'{", ".join(pairs[1] + pairs[2])}, and holds {found}'
        )

    def part(images_key: str, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = []
        for key in (images_key, labels_key):
            try:
                arrays.append(load(key))
                if not isinstance(arrays[-1], np.ndarray):
                    raise ValueError('it holds something else')
            except _READING_ERRORS as error:
                raise DataError(f'{key} of {name} is not a readable array of numbers: {error}') from error
        images = _as_rgb(arrays[0], f'{images_key} of {name}')
        labels = _as_labels(arrays[1], f'{labels_key} of {name}')
        if len(images) != len(labels):
            raise DataError(f'{name} has {len(images)} images in {images_key} but {len(labels)} labels in {labels_key}')
        return images, labels

    parts = [part(*pair) for pair in used]
    class_names, labels = classes_of_integers(np.concatenate([labels for _, labels in parts]), f'the labels of {name}')
    ends = np.cumsum([len(images) for images, _ in parts])[:-1]
    splits = [Split(ArrayImages(images), own) for (images, _), own in zip(parts, np.split(labels, ends), strict=True)]
    shapes = [images.shape[1:3] for images, _ in parts]
    for shape, key in zip(shapes, (pair[0] for pair in used), strict=True):
        if shape != shapes[0]:
            raise DataError(
                f'the images of {name} have {shapes[0][0]} x {shapes[0][1]} pixels in {pairs[0][0]} but {shape[0]} x '
                f'{shape[1]} in {key}: give both parts one size'
            )
    dataset = from_parts(name, splits, class_names, image_size=min(shapes[0]))
    assert isinstance(dataset.train.images, ArrayImages)
    mean, std = _channel_statistics(dataset.train.images.array, name)
    return replace(dataset, mean=mean, std=std)


def _as_rgb(images: np.ndarray, what: str) -> np.ndarray:
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1)
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
        raise DataError(
            f'{what} must be uint8 images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), '
            f'not {images.dtype} {images.shape}'
        )
    return np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=3) if grey else images


def _as_labels(labels: np.ndarray, what: str) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim not in (1, 2) or labels.size != len(labels):
        raise DataError(f'{what} must be one integer for each image, not {labels.dtype} {labels.shape}')
    return labels.reshape(-1).astype(np.int64)


def _channel_statistics(images: np.ndarray, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of images scaled to 0..1.

    They follow exactly from how often each of the 256 values occurs, which is counted a few images at a time: floating
    point copies of the images need never exist.
    """
    block = max(1, 2**22 // images[0].size)
    frequencies = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), block):
        for channel in range(3):
            frequencies[channel] += np.bincount(images[start : start + block, ..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = frequencies @ values / frequencies.sum(axis=1)
    std = np.sqrt((frequencies * (values - mean[:, None]) ** 2).sum(axis=1) / frequencies.sum(axis=1))
    if (std == 0).all():
        raise DataError(f'the training images of {name} all have one and the same value')
    # A channel that nothing is in, such as the blue of a picture of two dyes, stays as it is.
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
