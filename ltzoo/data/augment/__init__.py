"""Augmentations, one a file: each on batches of uint8 tensors, and as a torchvision transform of one PIL image."""

from ltzoo.data.augment.horizontal_flip import HorizontalFlip
from ltzoo.data.augment.op import Op, Params, ViewError, apply_where, create_op, list_ops, register_op, take_rows
from ltzoo.data.augment.random_crop import RandomCrop

__all__ = [
    'HorizontalFlip',
    'Op',
    'Params',
    'RandomCrop',
    'ViewError',
    'apply_where',
    'create_op',
    'list_ops',
    'register_op',
    'take_rows',
]
