"""What a checkpoint holds, seen by a family: the parts with weights, and their tensors, placed or dropped by rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import first_of
from ltzoo.models.checkpoints.reading import ConversionError

__all__ = ['Checkpoint', 'LayoutError', 'Weights']

# What training scripts save beside the weights.
_TRAINING = re.compile(
    r'(optim|sched|lr|scaler|amp|epoch|iter|step|best|acc|its_ece|metric|monitor|loss|criterion|centroids|rng|'
    r'args|config|arch|version|seed|logger|history)',
    re.IGNORECASE,
)


class LayoutError(ConversionError):
    """A checkpoint whose tensors are not those of the family."""


@dataclass
class Weights:
    """The tensors that are still to be placed, by name, and those dropped, by the reason why.

    A family renames, drops and changes them until the names are those of a model of ours; `place` is strict about what
    is then left.
    """

    tensors: dict[str, Tensor]
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def drop(self, pattern: str, why: str) -> None:
        """Leave out the tensors whose names match from the start."""
        names = [name for name in self.tensors if re.match(pattern, name)]
        for name in names:
            del self.tensors[name]
        if names:
            self.dropped.setdefault(why, []).extend(names)

    def rename(self, pattern: str, to: str) -> None:
        """Exchange what matches at the start of names; `to` may refer to groups."""
        renamed = [re.sub(rf'^(?:{pattern})', to, name) for name in self.tensors]
        twice = (
            sorted({name for name in renamed if renamed.count(name) > 1}) if len(set(renamed)) < len(renamed) else []
        )
        if twice:
            raise LayoutError(f'two tensors would both be {first_of(twice)}')
        self.tensors = dict(zip(renamed, self.tensors.values(), strict=True))

    def take(self, name: str) -> Tensor:
        """Remove a tensor and return it.

        Raises:
            LayoutError: if it is missing.
        """
        if name not in self.tensors:
            raise LayoutError(f'{name} is missing')
        return self.tensors.pop(name)

    def put(self, name: str, tensor: Tensor) -> None:
        """Add a tensor."""
        self.tensors[name] = tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            LayoutError: if it is missing.
        """
        if name not in self.tensors:
            raise LayoutError(f'{name} is missing')
        return tuple(self.tensors[name].shape)

    def count(self, pattern: str) -> int:
        """Return how many different numbers the group of `pattern` has, matched at the start of names."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})


class Checkpoint:
    """A file's content; it notes which of its entries were asked for."""

    def __init__(self, content: Any) -> None:
        if isinstance(content, nn.Module):
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise LayoutError(f'it holds a {type(content).__name__}, not a dictionary of tensors')
        if not content:
            raise LayoutError('it is empty')
        self.content = content
        self.used: set[str] = set()

    def entry(self, *keys: str) -> Mapping[str, Any]:
        """Return the first of the entries that is there and a dictionary, or all if the file is one of tensors alone.

        Raises:
            LayoutError: if there is none.
        """
        for key in keys:
            if isinstance(self.content.get(key), Mapping):
                self.used.add(key)
                return self.content[key]
        if all(isinstance(value, Tensor) for value in self.content.values()):
            self.used.update(self.content)
            return self.content
        raise LayoutError(f'it has no {" or ".join(keys)} (it has {first_of(map(str, self.content), most=8)})')

    def weights(self, *keys: str) -> Weights:
        """Return the tensors of the first entry that is there, without `module.` of parallel training."""
        return Weights(tensors_of(self.entry(*keys)))

    def parts(self, holder: Mapping[str, Any], optional: Iterable[str] = (), **entries: str) -> Weights:
        """Return the tensors of several entries of `holder`, each under the prefix that is its keyword.

        Raises:
            LayoutError: if one is missing that is not `optional` (prefixes).
        """
        tensors: dict[str, Tensor] = {}
        for prefix, key in entries.items():
            if not isinstance(holder.get(key), Mapping):
                if prefix in optional:
                    continue
                raise LayoutError(f'it has no {key} (it has {first_of(map(str, holder), most=8)})')
            self.used.add(key)
            tensors |= {f'{prefix}.{name}': value for name, value in tensors_of(holder[key]).items()}
        return Weights(tensors)

    def unused(self) -> list[str]:
        """Return the names of the other entries.

        Raises:
            LayoutError: if one of them holds tensors and does not look like part of training.
        """
        rest = {str(key): value for key, value in self.content.items() if key not in self.used}
        strange = [key for key, value in rest.items() if _has_tensors(value) and not _is_of_training(key, value)]
        if strange:
            raise LayoutError(f'unexpected: {first_of(strange)}')
        return list(rest)


def _is_of_training(key: str, value: Any) -> bool:
    # A best score is a number; the weights that had it are others than those that are taken.
    best_weights = key.lower().startswith('best') and isinstance(value, Mapping)
    return _TRAINING.match(key) is not None and not best_weights


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict's tensors without `module.` of parallel training.

    Raises:
        LayoutError: if something in it is no tensor or has no name or less than its shape says, or it is empty.
    """
    if not state:
        raise LayoutError('it holds no tensors')
    for name, value in state.items():
        if not isinstance(name, str):
            raise LayoutError(f'{name!r} is no name of a tensor')
        if not isinstance(value, Tensor):
            raise LayoutError(f'{name} is a {type(value).__name__}, not a tensor')
        if value.layout == torch.strided and value.nbytes > value.untyped_storage().nbytes():
            raise LayoutError(f'{name} has more numbers than the file holds')
    if all(name.startswith('module.') for name in state):
        return {name.removeprefix('module.'): value.detach() for name, value in state.items()}
    return {name: value.detach() for name, value in state.items()}


def _has_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensors, value))
    return isinstance(value, Tensor)
