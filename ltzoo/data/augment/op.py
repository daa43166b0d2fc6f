"""What an augmentation is, and the registry of augmentations."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ltzoo.errors import LtzooError, did_you_mean

__all__ = ['Op', 'Params', 'ViewError', 'apply_where', 'create_op', 'join_rows', 'list_ops', 'register_op', 'take_rows']

# What was drawn for each of n images: tensors whose first dimension is n.
Params = dict[str, Tensor]


class ViewError(LtzooError, ValueError):
    """A view that cannot be made; the message names the operation or parameter and the nearest valid one."""


class Op(ABC):
    """A random operation on images, as a frozen dataclass of its settings.

    It comes in two forms with the same distribution: `sample` and `apply` on a batch of uint8 tensors, each image
    with its own random parameters, and `on_picture()` on one PIL image, which draws from PyTorch's global generator.
    """

    # Whether training sees parts of an image enlarged, so that tests should, too.
    enlarges: ClassVar[bool] = False

    @abstractmethod
    def sample(self, n: int, height: int, width: int, generator: torch.Generator) -> Params:
        """Draw the parameters of n images on the generator's device, without waiting for it."""

    @abstractmethod
    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Return the changed images: uint8, (n, 3, H, W)."""

    @abstractmethod
    def on_picture(self) -> Callable[[Any], Any]:
        """Return the transform of one PIL image."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that images of this size will have."""
        return height, width


_OPS: dict[str, Callable[..., Op]] = {}
_T = TypeVar('_T')


def register_op(name: str) -> Callable[[_T], _T]:
    """Register an operation class under the name that recipes use.

    Raises:
        ViewError: if the name is one of ltzoo's, or the class is no dataclass, whose fields are the settings.
    """

    def decorate(cls: _T) -> _T:
        # One's own may be made again, by a notebook's cell.
        if name in _OPS and _OPS[name].__module__.startswith('ltzoo.'):
            raise ViewError(f'{name} is an operation of ltzoo: choose another name')
        if not dataclasses.is_dataclass(cls):
            raise ViewError(f'the operation {name} must be a dataclass: put @dataclass(frozen=True) below @register_op')
        _OPS[name] = cls  # type: ignore[assignment]
        return cls

    return decorate


def list_ops() -> list[str]:
    """Return the names of all operations."""
    return sorted(_OPS)


def create_op(name: str, /, **settings: Any) -> Op:
    """Create an operation by name.

    Raises:
        ViewError: if the name or a setting is unknown, or a setting of the wrong type or out of range.
    """
    if name not in _OPS:
        raise ViewError(
            f'no view operation is called {name!r}{did_you_mean(name, _OPS)} Known: {", ".join(list_ops())}'
        )
    cls: Any = _OPS[name]
    known = [field.name for field in dataclasses.fields(cls)]
    types = get_type_hints(cls)
    for key, value in settings.items():
        if key not in known:
            raise ViewError(f'{name} has no setting {key!r}; it has {", ".join(known) or "none"}')
        # A list is how YAML writes a pair.
        settings[key] = tuple(value) if isinstance(value, list) else value
        if not _is_of(settings[key], types[key]):
            raise ViewError(f'{name}: {key} must be {_in_words(types[key])}, not {value!r}')
    return cls(**settings)


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a setting is of the type that its operation declares; a whole number is a number, true is not."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in kinds)
    if origin in (Union, UnionType):
        return any(_is_of(value, option) for option in kinds)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, origin or kind)


def _in_words(kind: Any) -> str:
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is tuple:
        if kinds == (float, float):
            return 'a pair of numbers such as [0.2, 1.0]'
        return f'{len(kinds)} values in brackets: {", ".join(map(_in_words, kinds))}'
    if origin is Literal:
        return ' or '.join(map(repr, kinds))
    if origin in (Union, UnionType):
        return ' or '.join(map(_in_words, kinds))
    words = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a word', NoneType: 'null'}
    return words.get(kind, kind.__name__ if isinstance(kind, type) else str(kind))


def take_rows(params: Params, rows: Any) -> Params:
    """Return the parameters of some of the images: `rows` is a slice or an index tensor."""
    return {key: value[rows] for key, value in params.items()}


def join_rows(parts: Sequence[Params]) -> Params:
    """Return the parameters of the images of all parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def apply_where(mask: Tensor, images: Tensor, change: Callable[..., Tensor], *amounts: Tensor) -> Tensor:
    """Change the images that `mask` (bool, (n,)) selects by `change(images, *amounts)`; each amount is (n,).

    On a CPU only those are computed; elsewhere all are and the others thrown away, because to count them the host
    would have to wait for the device.
    """
    if not _only_chosen(images):
        return torch.where(mask.view(-1, 1, 1, 1), change(images, *amounts), images)
    rows = mask.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    changed = change(images.index_select(0, rows), *(amount[rows] for amount in amounts))
    # Selecting whole images from old and new together copies them in one piece each; writing into rows does not.
    source = torch.arange(len(images)).index_copy_(0, rows, torch.arange(len(rows)) + len(images))
    return torch.cat([images, changed]).index_select(0, source)


def _only_chosen(images: Tensor) -> bool:
    return images.device.type == 'cpu'
