"""Part of CIFAR-10 or CIFAR-100 in one small file, without loss, for machines without a network.

A pack is a zip of `index.json` and of strips, 256 images under each other as one lossless WebP image. The index has the
labels of all images, in official order, and says which images are held. Bytes an image, of CIFAR-100's first 10,240
training images: strips 1,651, mosaics 16 images wide 1,659, single WebP images 1,812, PNG 2,220, xz over the raw array
2,334; WebP's slowest setting saves another 0.3 % in five times the time.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ltzoo.data.dataset import DataError, Dataset, Split
from ltzoo.data.images import ArrayImages
from ltzoo.files import write_atomically

__all__ = ['PartialImages', 'pack_file', 'read_packed', 'write_packed']

# A WebP image is at most 16,383 pixels high.
_STRIP = 256
_SIDE = 32


class PartialImages(ArrayImages):
    """Images of which only some are at hand; asking for the pixels of another one is an error, never a black image."""

    def __init__(self, held: np.ndarray, positions: np.ndarray, missing: str) -> None:
        """Hold some of N images.

        Args:
            held: uint8, shape (M, H, W, 3).
            positions: int64, shape (N,): where each image lies in `held`, -1 where it is not at hand.
            missing: what to tell whoever asks for one that is not.
        """
        self.held, self.positions, self.missing = held, positions, missing

    @property
    def array(self) -> np.ndarray:  # type: ignore[override]
        """All N images.

        Raises:
            DataError: if one is not at hand.
        """
        if (self.positions < 0).any():
            raise DataError(self.missing)
        return self.held[self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.select(np.array([index])).array[0])

    def select(self, indices: np.ndarray) -> ArrayImages:
        """Return the images at `indices`; only when their pixels are asked for do missing ones matter."""
        chosen = PartialImages(self.held, self.positions[indices], self.missing)
        return chosen if (chosen.positions < 0).any() else ArrayImages(chosen.array)


def pack_file(location: Path, source: str) -> Path:
    """Return where the pack of a source, `cifar10` or `cifar100`, is looked for."""
    return location / f'{source}_pack.zip'


def write_packed(file: Path, whole: Dataset, train: np.ndarray, test: np.ndarray, holds: str) -> None:
    """Write a pack.

    Args:
        file: where to.
        whole: the set as its official files give it.
        train: int64, the training images to hold; their order does not matter.
        test: int64, the test images to hold.
        holds: what that is, for whoever misses an image: `cifar100_lt_r10`.

    Raises:
        OSError: if it cannot be written; no partial file stays behind.
    """
    content = io.BytesIO()
    index: dict[str, object] = {'name': whole.name, 'class_names': whole.class_names, 'holds': holds}
    with zipfile.ZipFile(content, 'w') as pack:
        for part, split, indices in (('train', whole.train, np.unique(train)), ('test', whole.test, np.unique(test))):
            index[part] = {'labels': split.labels.tolist(), 'held': indices.tolist()}
            for number, strip in enumerate(_encode(split.select(indices).images.array)):  # type: ignore[attr-defined]
                pack.writestr(f'{part}_{number:03}.webp', strip)
        pack.writestr('index.json', json.dumps(index), zipfile.ZIP_DEFLATED)
    write_atomically(file, content.getvalue())


def read_packed(file: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Return training set, test set and class names: what the official files give, but for the images left out.

    Raises:
        DataError: if the file is not such a pack, or damaged.
    """
    try:
        with zipfile.ZipFile(file) as pack:
            index = json.loads(pack.read('index.json'))
            train, test = (_decode(pack, part, index, file) for part in ('train', 'test'))
            return train, test, tuple(index['class_names'])
    # What zipfile, json, Pillow and NumPy raise on damaged content.
    except (
        OSError,
        SyntaxError,
        ValueError,
        zipfile.BadZipFile,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        OverflowError,
        RuntimeError,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f'{file} is not a readable pack of CIFAR ({error}): make it again') from error


def _encode(images: np.ndarray) -> list[bytes]:
    def encode(start: int) -> bytes:
        strip = io.BytesIO()
        pixels = images[start : start + _STRIP].reshape(-1, _SIDE, 3)
        Image.fromarray(pixels).save(strip, 'WEBP', lossless=True, quality=75, method=6)
        return strip.getvalue()

    # Threads, not processes: Pillow's encoders release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(encode, range(0, len(images), _STRIP)))


def _decode(pack: zipfile.ZipFile, part: str, index: dict, file: Path) -> Split:
    labels, held = (np.array(index[part][key], dtype=np.int64) for key in ('labels', 'held'))
    strips = []
    for number in range(-(-len(held) // _STRIP)):
        with Image.open(io.BytesIO(pack.read(f'{part}_{number:03}.webp'))) as strip:
            strips.append(np.asarray(strip.convert('RGB')).reshape(-1, _SIDE, _SIDE, 3))
    images = np.concatenate([np.zeros((0, _SIDE, _SIDE, 3), np.uint8), *strips])
    if len(images) != len(held):
        raise ValueError(f'{len(images)} images of {len(held)} in its {part} set')
    positions = np.full(len(labels), -1, dtype=np.int64)
    positions[held] = np.arange(len(held))
    missing = (
        f'this pack of {index["name"]} holds the images of {index["holds"]} ({len(index["train"]["held"])} training '
        f'and {len(index["test"]["held"])} test images), others were asked for: '
        f'put the official files into {file.parent}, or make a pack with them'
    )
    return Split(PartialImages(images, positions, missing).select(np.arange(len(labels))), labels)
