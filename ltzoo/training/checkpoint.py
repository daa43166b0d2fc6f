"""Checkpoints: files that are written whole or not at all, and read without unpickling code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ltzoo.errors import LtzooError, is_out_of_memory
from ltzoo.files import write_atomically

__all__ = ['CheckpointError', 'load_checkpoint', 'save_checkpoint']


class CheckpointError(LtzooError, RuntimeError):
    """A checkpoint that cannot be written, read, or continued from."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of them.

    Raises:
        CheckpointError: if the disk refuses; the checkpoint that was there stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        before = 'the one before it is intact: make room, then continue with resume=auto'
        raise CheckpointError(
            f'the checkpoint {path} ({buffer.tell() / 2**20:.0f} MiB) cannot be written: {error.strerror}; '
            + (before if path.exists() else 'it would have been the first: make room, then start again')
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, onto the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f'there is no checkpoint {path}') from error
    except OSError as error:
        raise CheckpointError(f'the checkpoint {path} cannot be read: {error.strerror or error}') from error
    except Exception as error:  # A damaged pickle can end in anything.
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f'{path} is not a readable checkpoint; give another output') from error
