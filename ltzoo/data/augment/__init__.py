"""Augmentations, one a file: each on batches of uint8 tensors, and as a transform of one PIL image."""

from ltzoo.data.augment.auto_augment import AutoAugment
from ltzoo.data.augment.color_jitter import ColorJitter
from ltzoo.data.augment.cutout import Cutout
from ltzoo.data.augment.horizontal_flip import HorizontalFlip
from ltzoo.data.augment.op import (
    Op,
    Params,
    ViewError,
    apply_where,
    create_op,
    join_rows,
    list_ops,
    register_op,
    take_rows,
)
from ltzoo.data.augment.rand_augment import RandAugment
from ltzoo.data.augment.random_crop import RandomCrop
from ltzoo.data.augment.random_grayscale import RandomGrayscale
from ltzoo.data.augment.random_resized_crop import RandomResizedCrop

__all__ = [
    'AutoAugment',
    'ColorJitter',
    'Cutout',
    'HorizontalFlip',
    'Op',
    'Params',
    'RandAugment',
    'RandomCrop',
    'RandomGrayscale',
    'RandomResizedCrop',
    'ViewError',
    'apply_where',
    'create_op',
    'join_rows',
    'list_ops',
    'register_op',
    'take_rows',
]
