"""Where images come from: an array in memory, or files read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

__all__ = ['ArrayImages', 'FileImages', 'Images', 'UnreadableImageError']


class UnreadableImageError(OSError):
    """An image file that is missing, truncated or not an image; the message names it."""


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


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory.

    Attributes:
        array: uint8, shape (N, H, W, 3).
    """

    array: np.ndarray

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
        return ArrayImages(self.array[indices])

    def name(self, index: int) -> str:
        return f'image {index}'


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
        try:
            with Image.open(path) as image:
                return image.convert('RGB')
        except FileNotFoundError as error:
            raise UnreadableImageError(f'image {path} does not exist') from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f'image {path} cannot be decoded: {error}') from error

    def select(self, indices: np.ndarray) -> FileImages:
        return replace(self, paths=[self.paths[i] for i in indices])

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])
