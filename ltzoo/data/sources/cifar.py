"""CIFAR-10 and CIFAR-100 from torchvision's reader and the official files, or from a pack of ours.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from ltzoo.data.dataset import Dataset, MissingDataError, Split, register_source
from ltzoo.data.images import ArrayImages
from ltzoo.data.sources.packed_cifar import pack_file, read_packed
from ltzoo.files import BusyError, alone
from ltzoo.normalisation import CIFAR_MEAN, CIFAR_STD

# Seconds to wait for another process that downloads the same, on however slow a line.
_PATIENCE = 3600.0


def _read(reader: type[CIFAR10], location: Path, download: bool) -> Dataset:
    pack = pack_file(location, reader.__name__.lower())
    if pack.is_file() and not (location / reader.base_folder).is_dir():
        packed_train, packed_test, names = read_packed(pack)
        return Dataset(reader.__name__, packed_train, packed_test, names, CIFAR_MEAN, CIFAR_STD, image_size=32)
    parts = []
    for train in (True, False):
        try:
            part = _part(reader, location, train, download)
        except BusyError as error:
            raise MissingDataError(
                f'another process has been downloading to {location} for an hour: end it, or give another folder'
            ) from error
        except RuntimeError as error:
            wanted = f'{location / reader.base_folder} does not hold the official {reader.__name__} files'
            if download:
                raise MissingDataError(f'{wanted}, and downloading {reader.filename} gave others ({error})') from error
            raise MissingDataError(
                f'{wanted}: unpack {reader.filename} there, or download it: '
                f'python tools/profile_data.py {reader.__name__.lower()} --data-dir {location} --download'
            ) from error
        parts.append((Split(ArrayImages(part.data), np.array(part.targets, dtype=np.int64)), part.classes))
    (train_split, classes), (test_split, _) = parts
    return Dataset(reader.__name__, train_split, test_split, tuple(classes), CIFAR_MEAN, CIFAR_STD, image_size=32)


def _part(reader: type[CIFAR10], location: Path, train: bool, download: bool) -> CIFAR10:
    """Return what torchvision reads; where files are missing, one process after the other may download them."""
    try:
        return reader(str(location), train=train)
    except RuntimeError:
        if not download:
            raise
    location.mkdir(parents=True, exist_ok=True)
    with alone(location, _PATIENCE):
        return reader(str(location), train=train, download=True)


@register_source('cifar10')
def cifar10(location: Path, download: bool) -> Dataset:
    return _read(CIFAR10, location, download)


@register_source('cifar100')
def cifar100(location: Path, download: bool) -> Dataset:
    return _read(CIFAR100, location, download)
