"""The memory bank: for every class the encoder parameters of the epoch in which its features were best.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv:2603.21217), Eq. 1. Classes whose best epoch
is the same share one snapshot, so there are never more snapshots than epochs, however many classes.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ltzoo.errors import LtzooError
from ltzoo.files import write_atomically

__all__ = ['BankError', 'DiskStore', 'HostStore', 'MemoryBank', 'SnapshotStore']


class BankError(LtzooError, RuntimeError):
    """A snapshot or a state that the memory bank cannot store, find or continue from."""


class SnapshotStore(Protocol):
    """Where the memory bank keeps its snapshots, keyed by epoch."""

    def put(self, epoch: int, parameters: Mapping[str, Tensor]) -> None:
        """Store a copy of the parameters."""

    def get(self, epoch: int) -> dict[str, Tensor]:
        """Return a copy of a stored snapshot, float32, on the CPU."""

    def keep_only(self, epochs: Collection[int]) -> None:
        """Free every snapshot but those of `epochs`."""

    def state(self, epochs: Collection[int]) -> dict[int, dict[str, Tensor]]:
        """Return what a checkpoint must hold so that `restore` finds the snapshots of `epochs`."""

    def restore(self, epochs: Collection[int], state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Hold the snapshots of `epochs`, from `state` or from where they were put, and no others."""


class HostStore:
    """Snapshots in host memory; a checkpoint holds them.

    Args:
        dtype: they are stored in: float32, or bfloat16 for half the memory and 8 bits of precision.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = _checked(dtype)
        self._snapshots: dict[int, dict[str, Tensor]] = {}

    def put(self, epoch: int, parameters: Mapping[str, Tensor]) -> None:
        self._snapshots[epoch] = _copy(parameters, self.dtype)

    def get(self, epoch: int) -> dict[str, Tensor]:
        if epoch not in self._snapshots:
            raise BankError(f'there is no snapshot of epoch {epoch} in host memory')
        return _copy(self._snapshots[epoch], torch.float32)

    def keep_only(self, epochs: Collection[int]) -> None:
        self._snapshots = {epoch: snapshot for epoch, snapshot in self._snapshots.items() if epoch in epochs}

    def state(self, epochs: Collection[int]) -> dict[int, dict[str, Tensor]]:
        return {epoch: dict(self._snapshots[epoch]) for epoch in epochs}

    def restore(self, epochs: Collection[int], state: Mapping[int, Mapping[str, Tensor]]) -> None:
        missing = sorted(set(epochs) - set(state))
        if missing:
            raise BankError(
                f'the state does not hold the snapshot of epoch {missing[0]}, as one made with a disk store does not: '
                'load it into a disk store over the same folder'
            )
        self._snapshots = {epoch: _copy(state[epoch], self.dtype) for epoch in epochs}


class DiskStore:
    """Snapshots in a folder, one safetensors file an epoch, each written whole or not at all.

    A checkpoint holds only their epochs. So that the last checkpoint on disk can always be continued from, even if
    training goes on while the next one is being written, a freed file stays as long as one of the last two states names
    it. Files of other epochs, such as an earlier run left behind, are removed at the first update or when a state is
    loaded.

    Several processes may share the folder if all of them update and take states alike: they write the same files.

    Args:
        folder: belongs to this store alone; made when the first snapshot is stored.
        dtype: of the stored parameters: float32, or bfloat16 for half the space and 8 bits of precision.
    """

    def __init__(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        self.folder = Path(folder)
        self.dtype = _checked(dtype)
        self._in_states: deque[frozenset[int]] = deque(maxlen=2)

    def path(self, epoch: int) -> Path:
        """Return where the snapshot of an epoch is stored."""
        return self.folder / f'epoch_{epoch:04d}.safetensors'

    def put(self, epoch: int, parameters: Mapping[str, Tensor]) -> None:
        path = self.path(epoch)
        tensors = _copy(parameters, self.dtype)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(tensors))
        except (OSError, SafetensorError) as error:
            size = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
            raise BankError(
                f'the snapshot {path} ({size:.0f} MiB) cannot be written: {error}; make room or choose another folder'
            ) from error

    def get(self, epoch: int) -> dict[str, Tensor]:
        try:
            return _copy(load_file(self.path(epoch)), torch.float32)
        except FileNotFoundError as error:
            raise BankError(f'the snapshot {self.path(epoch)} of epoch {epoch} is missing') from error
        except (OSError, SafetensorError) as error:
            raise BankError(f'the snapshot {self.path(epoch)} of epoch {epoch} cannot be read: {error}') from error

    def keep_only(self, epochs: Collection[int]) -> None:
        kept = set(epochs).union(*self._in_states)
        for path in self.folder.glob('epoch_*.safetensors'):
            number = re.fullmatch(r'epoch_(\d+)', path.stem)
            if number and int(number[1]) not in kept:
                path.unlink(missing_ok=True)

    def state(self, epochs: Collection[int]) -> dict[int, dict[str, Tensor]]:
        self._in_states.append(frozenset(epochs))
        return {}

    def restore(self, epochs: Collection[int], state: Mapping[int, Mapping[str, Tensor]]) -> None:
        for epoch in sorted(epochs):
            if epoch in state:
                self.put(epoch, state[epoch])
            elif not self.path(epoch).is_file():
                raise BankError(
                    f'the snapshot {self.path(epoch)} of epoch {epoch}, which the state names, is missing: '
                    'put it back or start again'
                )
        self._in_states.clear()
        self._in_states.append(frozenset(epochs))
        self.keep_only(epochs)
        for part in self.folder.glob('.epoch_*.safetensors.*.part'):
            part.unlink(missing_ok=True)


class MemoryBank:
    """Best epoch and best quality of every class, and one snapshot for every epoch that is some class's best.

    Args:
        num_classes: C.
        store: keeps the snapshots; it belongs to this bank alone.

    Attributes:
        best_epoch: int64, shape (C,), on the CPU; -1 where no quality has won yet.
        best_quality: float64, shape (C,), on the CPU; -inf where no quality has won yet.
    """

    def __init__(self, num_classes: int, store: SnapshotStore) -> None:
        self.best_epoch = torch.full((num_classes,), -1, dtype=torch.int64)
        self.best_quality = torch.full((num_classes,), -torch.inf, dtype=torch.float64)
        self._store = store

    @property
    def num_classes(self) -> int:
        """How many classes the bank has, with and without a snapshot."""
        return len(self.best_epoch)

    @property
    def epochs(self) -> list[int]:
        """The E distinct epochs that are some class's best, ascending."""
        return self.best_epoch[self.best_epoch >= 0].unique().tolist()

    @property
    def multiplicity(self) -> Tensor:
        """How many classes each of `epochs` is the best of: int64, shape (E,)."""
        return self.best_epoch[self.best_epoch >= 0].unique(return_counts=True)[1]

    def update(self, epoch: int, quality: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Give every class whose quality is higher than ever this epoch's parameters, Eq. 1.

        Where no class wins, the parameters are not touched; otherwise they are copied, once. A snapshot that no class
        wants any more is freed after the new one is stored. With several processes the quality must be the same in all.

        Args:
            epoch: later than every epoch in the bank.
            quality: of every class, shape (C,); nan never wins.
            parameters: of the encoder, by name.

        Returns:
            Which classes won: bool, shape (C,), on the CPU.

        Raises:
            BankError: if the epoch is not later, or the snapshot cannot be stored.
            ValueError: if the quality has another shape.
        """
        if quality.shape != self.best_quality.shape:
            raise ValueError(f'quality must have shape ({self.num_classes},), not {tuple(quality.shape)}')
        latest = int(self.best_epoch.max())
        if epoch <= latest or epoch < 0:
            raise BankError(f'epoch {epoch} cannot enter a bank that holds epoch {latest}: it must be a later one')
        quality = quality.detach().to('cpu', torch.float64)
        won = quality > self.best_quality
        if won.any():
            self._store.put(epoch, parameters)
            self.best_epoch = self.best_epoch.masked_fill(won, epoch)
            self.best_quality = torch.where(won, quality, self.best_quality)
            self._store.keep_only(self.epochs)
        return won

    def snapshot(self, epoch: int) -> dict[str, Tensor]:
        """Return a copy of the parameters of one of `epochs`, rounded to the store's type: float32, on the CPU.

        Raises:
            BankError: if there is no such snapshot.
        """
        return self._store.get(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in tensors, numbers and dicts: with a host store's snapshots, without a disk store's."""
        return {
            'best_epoch': self.best_epoch.clone(),
            'best_quality': self.best_quality.clone(),
            'snapshots': self._store.state(self.epochs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            BankError: if it is of another number of classes, or a snapshot it names is missing.
        """
        best_epoch = state['best_epoch']
        if best_epoch.shape != self.best_epoch.shape:
            raise BankError(f'the state is of {len(best_epoch)} classes, the bank of {self.num_classes}')
        self._store.restore(best_epoch[best_epoch >= 0].unique().tolist(), state['snapshots'])
        self.best_epoch = best_epoch.to('cpu', torch.int64, copy=True)
        self.best_quality = state['best_quality'].to('cpu', torch.float64, copy=True)


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f'snapshots are stored in float32 or bfloat16, not {dtype}')
    return dtype


def _copy(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # Contiguous, as safetensors stores nothing else and channels-last models have other parameters.
    return {
        name: tensor.detach().to('cpu', dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in parameters.items()
    }
