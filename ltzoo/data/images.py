"""Where images come from: an array in memory, or files read one at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ltzoo.errors import LtzooError

__all__ = [
    'ArrayImages',
    'FileImages',
    'Images',
    'JoinedImages',
    'MissingImageError',
    'UnreadableImageError',
    'as_rgb',
    'decoding',
    'examine',
    'join_images',
]

# Formats whose grey images of 16 bits Pillow may open with 32 (mode I), still 0 to 65,535.
_SIXTEEN_BITS = ('PNG', 'PPM')

T = TypeVar('T')


class UnreadableImageError(LtzooError, OSError):
    """An image that is missing, truncated or not an image; the message names it."""


class MissingImageError(UnreadableImageError):
    """An image whose file is not there."""


class Images(Protocol):
    """A sequence of RGB images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image:
        """Return one image as RGB.

        Raises:
            UnreadableImageError: if it cannot be decoded.
        """

    def select(self, indices: np.ndarray) -> Images:
        """Return the images at `indices` (int64, any order) as a new sequence; nothing is read."""

    def name(self, index: int) -> str:
        """Return what identifies the image to a person: its path, or its position."""

    def identity(self) -> bytes:
        """Return what tells these images from others: names in their order, of an array its size."""


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory.

    Attributes:
        array: uint8, shape (N, H, W, 3).
        rows: int64, shape (N,): where each lay in the array that was read, for names; None for the same place.

    Raises:
        ValueError: if the array is another.
    """

    array: np.ndarray
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.array.dtype != np.uint8 or self.array.ndim != 4 or self.array.shape[3] != 3:
            raise ValueError(
                f'images must be a uint8 array of shape (N, H, W, 3), not {self.array.dtype} {self.array.shape}'
            )

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def select(self, indices: np.ndarray) -> ArrayImages:
        return ArrayImages(self.array[indices], indices if self.rows is None else self.rows[indices])

    def name(self, index: int) -> str:
        return f'image {index if self.rows is None else self.rows[index]}'

    def identity(self) -> bytes:
        # Not its pixels: a pack of CIFAR's images does not have all of them.
        return f'array of {len(self)}'.encode()


@dataclass(frozen=True)
class FileImages:
    """Images in files, opened when asked for.

    Attributes:
        root: folder that the paths start from.
        paths: N paths relative to `root` (absolute ones are taken as they are).
    """

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.root / self.paths[index]
        with decoding(f'image {path}'):
            if stat.S_ISFIFO(os.stat(path).st_mode) and not str(path).startswith(('/dev/', '/proc/')):
                # It would be waited for for ever; those of a shell's <(...) have somebody who writes.
                raise ValueError('it is a named pipe')
            with Image.open(path) as image:
                return as_rgb(image)

    def select(self, indices: np.ndarray) -> FileImages:
        return replace(self, paths=[self.paths[i] for i in indices])

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def identity(self) -> bytes:
        # Names that are no UTF-8 have their bytes.
        return '\0'.join(['files', *self.paths]).encode('utf-8', 'surrogateescape')


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn whatever opening and decoding an image ends with into an UnreadableImageError that begins with `what`."""
    try:
        yield
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError(f'{what} does not exist') from error
    # Pillow's plugins answer damaged files with errors of any kind, a TypeError or NotImplementedError among them.
    except Exception as error:
        raise UnreadableImageError(f'{what} cannot be decoded: {error}') from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB of 8 bits; grey of 16 bits is scaled, where Pillow would make all of it white.

    Raises:
        ValueError: if the range of its values is not known.
    """
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in _SIXTEEN_BITS):
        # A TIFF says how many of them it uses, as 12.
        bits = int(image.tag_v2.get(258, (16,))[0]) if isinstance(image, TiffImageFile) else 16
        image = Image.fromarray(np.rint(np.asarray(image) * (255 / (2**bits - 1))).astype(np.uint8))
    elif image.mode in ('I', 'F'):
        raise ValueError(
            f'its values are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16 bits'
        )
    return image.convert('RGB')


@dataclass(frozen=True)
class JoinedImages:
    """Images from two sequences of any kind as one.

    Attributes:
        parts: the two sequences.
        positions: int64, shape (N,), into the first sequence followed by the second.
    """

    parts: tuple[Images, Images]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Image.Image:
        part, position = self._find(index)
        return part[position]

    def select(self, indices: np.ndarray) -> JoinedImages:
        return replace(self, positions=self.positions[indices])

    def name(self, index: int) -> str:
        part, position = self._find(index)
        return part.name(position)

    def identity(self) -> bytes:
        return b''.join(part.identity() for part in self.parts) + self.positions.tobytes()

    def _find(self, index: int) -> tuple[Images, int]:
        first, second = self.parts
        position = int(self.positions[index])
        return (first, position) if position < len(first) else (second, position - len(first))


def join_images(first: Images, second: Images) -> Images:
    """Return the images of `first`, then those of `second`; arrays stay an array."""
    if isinstance(first, ArrayImages) and isinstance(second, ArrayImages):
        rows = None
        if first.rows is not None and second.rows is not None:
            # Both were drawn from one array.
            rows = np.concatenate([first.rows, second.rows])
        return ArrayImages(np.concatenate([first.array, second.array]), rows)
    return JoinedImages((first, second), np.arange(len(first) + len(second)))


def examine(images: Images, look: Callable[[Image.Image], T]) -> Iterator[T | UnreadableImageError]:
    """Decode every image on all cores and yield, in order, what `look` returns for it, or why it cannot be read."""
    block = 256

    def examine_block(start: int) -> list[T | UnreadableImageError]:
        results: list[T | UnreadableImageError] = []
        for index in range(start, min(start + block, len(images))):
            try:
                results.append(look(images[index]))
            except UnreadableImageError as error:
                results.append(error)
        return results

    # Threads, not processes: Pillow's decoders release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(examine_block, range(0, len(images), block)):
            yield from results
