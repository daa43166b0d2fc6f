"""What a model says about every image of a split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from ltzoo.data.dataset import Split
from ltzoo.data.images import ArrayImages, FileImages
from ltzoo.data.loader import ImageLoader
from ltzoo.data.views import normalise
from ltzoo.errors import LtzooError
from ltzoo.models.mode import evaluating, full_precision
from ltzoo.processes import rank_and_number

__all__ = ['PredictionError', 'Predictions', 'image_batches', 'predict', 'predict_files']


class PredictionError(LtzooError, ArithmeticError):
    """A model that gives something else than numbers."""


class Predictions(NamedTuple):
    """Of N images, in the split's order; `score` takes them in the order of the fields.

    Attributes:
        labels, predictions: int64, shape (N,).
        confidences: softmax probability of the prediction, float32, shape (N,).
    """

    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray


def predict(
    model: nn.Module,
    split: Split,
    config: Mapping[str, Any],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> Predictions:
    """Classify every image of a split.

    In full float32: by default a GPU's convolutions have ten bits, and a score would depend on the device. Where
    torch.distributed runs, each process takes its share and all get the whole, no image counted twice.

    Args:
        model: returns logits (B, C); it is run in evaluation mode and left in the mode it was in.
        split: N images.
        config: how the model wants its images, as timm's `resolve_input_data_config` returns it.
        device: where the model lies; by default where its parameters do, the CPU for one without any.
        workers: processes that read files.

    Raises:
        UnreadableImageError: if a file cannot be decoded.
        PredictionError: if the outputs for an image are not finite.
        ValueError: if `batch_size` is less than one.
    """
    device = _device_of(model) if device is None else torch.device(device)
    rank, processes = rank_and_number()
    share = np.arange(rank, len(split), processes)
    predictions = torch.zeros(len(split), dtype=torch.int64, device=device)
    confidences = torch.zeros(len(split), dtype=torch.float32, device=device)
    start = 0
    for probabilities in _probabilities(model, split.select(share), config, batch_size, device, workers):
        rows = torch.from_numpy(share[start : start + len(probabilities)]).to(device)
        confidences[rows], predictions[rows] = probabilities.max(1)
        start += len(probabilities)
    if processes > 1:
        dist.all_reduce(predictions)
        dist.all_reduce(confidences)
    _check_finite(confidences)
    return Predictions(split.labels, predictions.cpu().numpy(), confidences.cpu().numpy())


def predict_files(
    model: nn.Module,
    files: Iterable[str | os.PathLike[str]],
    *,
    top: int = 1,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Say of image files what they show.

    Args:
        model: made by `ltzoo.create_model`; the names of its classes, where it knows them, are
            `model.pretrained_cfg['label_names']`.
        files: N images.
        top: one or more: how many classes of each, at most as many as there are.
        batch_size, device, workers: as for `predict`.

    Returns:
        The likeliest classes, int64, and their softmax probabilities, float32, of shape (N, top), the likeliest first.

    Raises:
        UnreadableImageError: if a file cannot be decoded.
        PredictionError: if the outputs for an image are not finite, or the model does not take three channels or has no
            classifier.
        ValueError: if there are no files, they are one name and no list of names, or `top` or `batch_size` is less than
            one.
    """
    if isinstance(files, (str, os.PathLike)):
        raise ValueError(f'files is {files!r}, where a list of files is needed: give [{os.fspath(files)!r}]')
    names = [os.fspath(file) for file in files]
    if not names:
        raise ValueError('files is empty')
    if top < 1:
        raise ValueError(f'top must be 1 or more, not {top}')
    if getattr(model, 'num_classes', None) == 0:
        raise PredictionError('the model has no classifier (num_classes is 0): what it gives are features')
    config = resolve_input_data_config(model)
    if config['input_size'][0] != 3:
        raise PredictionError(
            f'the model takes {config["input_size"][0]}-channel images, image files are read with 3 channels: take a '
            'model with in_chans=3'
        )
    images = Split(FileImages(Path(), names), np.zeros(len(names), dtype=np.int64))
    device = _device_of(model) if device is None else torch.device(device)
    batches = _probabilities(model, images, config, batch_size, device, workers)
    found = [probabilities.topk(min(top, probabilities.shape[1])) for probabilities in batches]
    confidences = torch.cat([part.values for part in found])
    _check_finite(confidences[:, 0])
    return torch.cat([part.indices for part in found]).cpu().numpy(), confidences.cpu().numpy()


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device('cpu'))


def _probabilities(
    model: nn.Module, split: Split, config: Mapping[str, Any], batch_size: int, device: torch.device, workers: int
) -> Iterator[Tensor]:
    with evaluating(model), torch.inference_mode(), full_precision():
        for batch in image_batches(split, config, batch_size, device, workers):
            yield model(batch).float().softmax(1)


def _check_finite(confidences: Tensor) -> None:
    strange = int((~confidences.isfinite()).sum())
    if strange:
        raise PredictionError(
            f'the outputs of the model are not finite for {strange} of {len(confidences)} images: its weights are '
            'damaged, or its training has diverged'
        )


def image_batches(
    split: Split, config: Mapping[str, Any], batch_size: int, device: torch.device, workers: int
) -> Iterator[Tensor]:
    """Yield a split's images in order, as models see them in evaluation: (B, 3, H, W); arguments as for `predict`.

    They go through timm's transform of the model, which leaves arrays that have its size, and are not to be cropped,
    as they are: those are made whole batches at a time.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be 1 or more, not {batch_size}')
    images, mean, std, size = split.images, config['mean'], config['std'], tuple(config['input_size'][1:])
    if isinstance(images, ArrayImages) and images.array.shape[1:3] == size and config['crop_pct'] == 1:
        for start in range(0, len(split), batch_size):
            pixels = torch.from_numpy(images.array[start : start + batch_size]).to(device)
            yield normalise(pixels.permute(0, 3, 1, 2), mean, std)
        return
    samples = _Samples(split, create_transform(**config))
    for batch in ImageLoader(samples, batch_size=batch_size, num_workers=workers, pin_memory=device.type == 'cuda'):
        yield batch.to(device, non_blocking=True)


class _Samples(TorchDataset[Tensor]):
    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.split.images[index])
