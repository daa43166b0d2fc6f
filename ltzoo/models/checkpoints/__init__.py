"""Other projects' checkpoints: a file for each family of layouts, found and registered by importing this package."""

import importlib
import pkgutil

from ltzoo.models.checkpoints.families import FAMILIES, Converted, Family, convert
from ltzoo.models.checkpoints.reading import ConversionError, read_checkpoint
from ltzoo.models.checkpoints.weights import LayoutError

__all__ = [
    'FAMILIES',
    'ConversionError',
    'Converted',
    'Family',
    'LayoutError',
    'convert',
    'read_checkpoint',
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
