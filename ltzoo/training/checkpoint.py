"""Checkpoints: all that a training consists of, written whole or not at all, read without unpickling code."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor

from ltzoo.errors import LtzooError
from ltzoo.files import write_atomically
from ltzoo.gkpgsa import GkpGsa
from ltzoo.training.learner import Learner

__all__ = ['CheckpointError', 'Training', 'load_checkpoint', 'save_checkpoint']


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
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise CheckpointError(f'{path} is not a readable checkpoint; remove it to start again') from error


@dataclass
class Training:
    """All that changes in the course of a training.

    Args:
        accelerator: its loss scaler and the processes' random generators are part of it.
        optimizer: prepared by Accelerate.
        class_counts, class_names: of every class its training images and its name, which are not to change.
        drawn_from: what the data's test part was drawn from, see `Dataset`, which is not to change either.
        images: digest of all images, by which a run knows its data where that lies elsewhere by now.
        epoch: epochs that are done.
        seconds: that they took.
    """

    accelerator: Accelerator
    learner: Learner
    optimizer: Any
    ema: ModelEmaV3 | None
    method: GkpGsa | None
    class_counts: list[int]
    class_names: list[str]
    drawn_from: str | None = None
    images: str | None = None
    epoch: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return, after an epoch, what `save_checkpoint` saves; to be called by all processes."""
        scaler = self.accelerator.scaler
        return {
            'class_counts': self.class_counts,
            'class_names': self.class_names,
            'drawn_from': self.drawn_from,
            'images': self.images,
            'epoch': self.epoch,
            'seconds': self.seconds,
            'learner': self.learner.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': None if scaler is None else scaler.state_dict(),
            'ema': None if self.ema is None else self.ema.state_dict(),
            'method': None if self.method is None else self.method.state_dict(),
            'rng': _rng_states(self.accelerator.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same recipe.

        Raises:
            RuntimeError, KeyError, ValueError: if it is of another model, optimiser or method.
        """
        self.learner.load_state_dict(state['learner'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.ema is not None:
            self.ema.load_state_dict(state['ema'])
        # After the last epoch no step follows, and the snapshots of a finished run are gone.
        if self.method is not None and state['epoch'] < self.method.epochs:
            self.method.load_state_dict(state['method'])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        _restore_rng(state['rng'], self.accelerator)
        self.epoch, self.seconds = state['epoch'], state['seconds']


def _rng_states(device: torch.device) -> list[dict[str, Tensor]]:
    """Return the state of the global random generators of every process, in order of rank."""
    states = {'cpu': torch.get_rng_state()}
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return gather_object([states])


def _restore_rng(states: list[dict[str, Tensor]], accelerator: Accelerator) -> None:
    """Undo `_rng_states`; a run continued with more processes seeds the new ones by rank."""
    if accelerator.process_index >= len(states):
        torch.manual_seed(accelerator.process_index)
        return
    own = states[accelerator.process_index]
    torch.set_rng_state(own['cpu'])
    if 'cuda' in own and accelerator.device.type == 'cuda':
        torch.cuda.set_rng_state(own['cuda'], accelerator.device)
