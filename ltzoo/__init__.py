"""ltzoo: a model zoo for long-tailed image recognition.

Importing it registers its models with timm, so `timm.create_model('resnet32_cifar_bcl')` works from then on.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ltzoo.errors import LtzooError
from ltzoo.models import (
    create_model,
    create_model_and_transforms,
    get_pretrained_cfg,
    get_results,
    list_models,
    list_pretrained,
)

__all__ = [
    'LtzooError',
    'create_model',
    'create_model_and_transforms',
    'get_pretrained_cfg',
    'get_results',
    'list_models',
    'list_pretrained',
    'verify',
]

try:
    __version__ = version('ltzoo')
except PackageNotFoundError:
    # A checkout that is on the path without being installed.
    __version__ = '0+unknown'

_SUBPACKAGES = ('data', 'evaluation', 'gkpgsa', 'hub', 'losses', 'plans', 'training')


def __getattr__(name: str) -> Any:
    if name == 'verify':
        # It needs the data and evaluation packages, which importing ltzoo does not load.
        return importlib.import_module('ltzoo.hub.verify').verify
    if name in _SUBPACKAGES:
        return importlib.import_module(f'ltzoo.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), 'verify', *_SUBPACKAGES])
