"""Training batches: from an array on the device, or from files through worker processes.

The order of samples and every random parameter follow from (seed, epoch, position) alone. So a batch is the same
whatever the number of processes and workers, and a run that is resumed sees what an uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from ltzoo.data.augment import ViewError
from ltzoo.data.dataset import DataError, Split
from ltzoo.data.images import ArrayImages, UnreadableImageError
from ltzoo.data.views import FileViews, TensorViews, View, normalise
from ltzoo.errors import LtzooError
from ltzoo.recorded import Recorded

__all__ = [
    'KILLED_WORKER',
    'ArrayLoader',
    'Batch',
    'FileLoader',
    'ImageLoader',
    'TrainLoader',
    'is_killed_worker',
    'seed_of',
    'train_loader',
]


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch.

    Attributes:
        views: one float32 tensor (B, 3, H, W) for each view, normalised.
        labels: int64, shape (B,).
        shares: where the images of the first view are mixed, those of the classes in each: float32, shape (B, C).
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    shares: Tensor | None = None


class TrainLoader(Protocol):
    """Gives the batches of an epoch."""

    steps_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[Batch]: ...


def train_loader(
    split: Split,
    views: list[View],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    recorded: bool = False,
    balanced_from: int | None = None,
) -> TrainLoader:
    """Return the loader that suits the images: on the device for arrays, worker processes for files.

    Args:
        split: the training set, N samples. The last N mod batch_size samples of an epoch's order are dropped.
        views: what `parse_views` returned.
        mean, std: per channel, of images scaled to 0..1.
        batch_size: samples of one step over all processes; a multiple of `world_size`.
        recorded: replay the making of views on a GPU as a CUDA graph; a batch is then overwritten by the next one.
        balanced_from: from this epoch on, counted from 0, every class is drawn equally often, with replacement, in as
            many batches as before; None for never.

    Raises:
        DataError: if there are fewer samples than one batch, or the batch cannot be shared out.
        ViewError: if a view would leave files at the size that each of them has.
    """
    if batch_size % world_size:
        raise DataError(f'batch_size {batch_size} must be a multiple of the number of processes, {world_size}')
    if len(split) < batch_size:
        raise DataError(f'batch_size {batch_size} is larger than the training set: give {len(split)} or less')
    order = _Order(split.labels, batch_size, seed, rank, world_size, balanced_from)
    if isinstance(split.images, ArrayImages):
        return ArrayLoader(split.images, split.labels, TensorViews(views, mean, std), order, device, recorded)
    for number, view in enumerate(views, 1):
        if view.output_size(1, 1) != view.output_size(2, 3):
            raise ViewError(
                f'view {number} leaves image files at the size that each of them has: let it begin with '
                '{random_resized_crop: {size: 224}} or {random_crop: {size: 224}}, of whatever size the model takes'
            )
    return FileLoader(split, FileViews(views, mean, std), order, device, workers)


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed of these numbers; a 0 at the end makes no difference."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class _Order:
    """Which samples make which batch, and which rows of it are this process's."""

    labels: np.ndarray
    batch_size: int
    seed: int
    rank: int
    world_size: int
    balanced_from: int | None = None

    @property
    def steps(self) -> int:
        return len(self.labels) // self.batch_size

    @property
    def rows(self) -> slice:
        share = self.batch_size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def batches(self, epoch: int) -> Tensor:
        """Return the indices of an epoch's whole batches: int64, shape (steps, batch_size)."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        wanted = self.steps * self.batch_size
        if self.balanced(epoch):
            shares = torch.from_numpy(1 / np.bincount(self.labels)[self.labels])
            drawn = torch.multinomial(shares, wanted, replacement=True, generator=generator)
        else:
            drawn = torch.randperm(len(self.labels), generator=generator)[:wanted]
        return drawn.view(self.steps, self.batch_size)

    def balanced(self, epoch: int) -> bool:
        """Return whether every class is drawn equally often."""
        return self.balanced_from is not None and epoch >= self.balanced_from


class ArrayLoader:
    """All images as one uint8 tensor on the device; the views are made there, a batch at a time."""

    def __init__(
        self,
        images: ArrayImages,
        labels: np.ndarray,
        views: TensorViews,
        order: _Order,
        device: torch.device,
        recorded: bool = False,
    ) -> None:
        self.images = torch.from_numpy(images.array).permute(0, 3, 1, 2).contiguous().to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.views = views
        self.order = order
        self.device = device
        self.steps_per_epoch = order.steps
        self.generator = torch.Generator(device)
        self.look = Recorded(self._look, generators=[self.generator]) if recorded else self._look

    def epoch(self, epoch: int) -> Iterator[Batch]:
        batches = self.order.batches(epoch)[:, self.order.rows].to(self.device)
        for step, indices in enumerate(batches):
            self.generator.manual_seed(seed_of(self.order.seed, epoch, step))
            yield Batch(*self.look(indices))

    def _look(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return views and labels; the generator's state decides the views."""
        height, width = self.images.shape[2:]
        params = self.views.sample(self.order.batch_size, height, width, self.generator)
        return self.views(self.images[indices], self.views.rows(params, self.order.rows)), self.labels[indices]


class FileLoader:
    """Images read and augmented one at a time in worker processes, normalised in batches on the device."""

    def __init__(self, split: Split, views: FileViews, order: _Order, device: torch.device, workers: int) -> None:
        self.views = views
        self.sampler = _EpochSampler(order)
        self.device = device
        self.steps_per_epoch = order.steps
        self.loader = ImageLoader(
            _ViewedSamples(split, views, order.seed),
            batch_sampler=self.sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == 'cuda',
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.sampler.epoch = epoch
        for views, labels in self.loader:
            yield Batch(
                tuple(normalise(v.to(self.device, non_blocking=True), self.views.mean, self.views.std) for v in views),
                labels.to(self.device, non_blocking=True),
            )


KILLED_WORKER = (
    'a process that reads images was killed, most often for want of memory or, in a container, of shared memory '
    '(--shm-size): take fewer workers, or 0, or smaller batches'
)


def is_killed_worker(error: BaseException) -> bool:
    """Return whether PyTorch says that a worker has died, or found no shared memory.

    It says the former wherever the main thread happens to be.
    """
    return isinstance(error, RuntimeError) and (
        str(error).startswith('DataLoader worker (pid') or 'unable to allocate shared memory' in str(error)
    )


class ImageLoader(DataLoader[Any]):
    """A DataLoader that raises an UnreadableImageError of its samples as it is, not as a worker's whole traceback.

    Raises:
        LtzooError: if a worker is killed.
    """

    def __init__(self, samples: TorchDataset[Any], **options: Any) -> None:
        super().__init__(
            _SamplesOrErrors(samples),
            collate_fn=_batch_or_error,
            # Every pass draws a seed for the workers; without a generator of its own it takes it from the global one.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Any:
        try:
            for batch in super().__iter__():
                if isinstance(batch, UnreadableImageError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if not is_killed_worker(error):
                raise
            raise LtzooError(KILLED_WORKER) from error


class _SamplesOrErrors(TorchDataset[Any]):
    def __init__(self, samples: TorchDataset[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.samples[key]
        except UnreadableImageError as error:
            return error


def _batch_or_error(samples: list[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, UnreadableImageError):
            return sample
    return default_collate(samples)


class _EpochSampler(Sampler[list[tuple[int, int, int]]]):
    """Yields (epoch, index, place): the worker needs them to seed the sample's views.

    The place in the epoch tells a sample that is drawn again from what it was before; where none is, it is 0.
    """

    def __init__(self, order: _Order) -> None:
        self.order = order
        self.epoch = 0

    def __len__(self) -> int:
        return self.order.steps

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        batches = self.order.batches(self.epoch)
        places = torch.arange(1, batches.numel() + 1).view_as(batches) * self.order.balanced(self.epoch)
        rows = self.order.rows
        for indices, at in zip(batches[:, rows].tolist(), places[:, rows].tolist(), strict=True):
            yield [(self.epoch, index, place) for index, place in zip(indices, at, strict=True)]


class _ViewedSamples(TorchDataset[tuple[tuple[Tensor, ...], int]]):
    def __init__(self, split: Split, views: FileViews, seed: int) -> None:
        self.split = split
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[tuple[Tensor, ...], int]:
        epoch, index, place = key
        image = self.split.images[index]
        with torch.random.fork_rng(devices=()):
            # That of the CPU alone: a GPU's belongs to the training.
            torch.default_generator.manual_seed(seed_of(self.seed, epoch, index, place))
            return self.views.pixels(image), int(self.split.labels[index])
