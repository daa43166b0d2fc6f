"""What an objective is, and the registry of objectives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ltzoo.errors import LtzooError, did_you_mean

__all__ = [
    'Objective',
    'ObjectiveError',
    'check_objective',
    'create_objective',
    'is_balanced',
    'list_objectives',
    'register_objective',
]


class ObjectiveError(LtzooError, ValueError):
    """An objective that does not exist, or options and a model that do not suit it."""


class Objective(nn.Module):
    """What training minimises; a subclass is made from (model, class_counts, **options).

    Args:
        logit_adjustment: what it adds to the logits before cross-entropy, shape (C,); None for nothing.

    Attributes:
        num_views: how many views of every image it takes.
        takes_shares: whether the images of the first view may be mixed ones; `forward` then takes a fourth argument.
        balanced: whether it makes up for the classes' numbers by itself; where it adds to the logits, it does.
    """

    num_views: int = 1
    takes_shares: bool = False
    balanced: bool = False
    logit_adjustment: Tensor | None

    def __init__(self, logit_adjustment: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer('logit_adjustment', logit_adjustment, persistent=False)
        if logit_adjustment is not None:
            self.balanced = True

    def start_epoch(self, epoch: int) -> None:
        """Be told which epoch begins, counted from 0; what changes by it is a buffer that is changed in place."""

    def forward(self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Return the loss of every sample, shape (B,), of views (B, 3, H, W) and labels (B,).

        One that `takes_shares` has the argument `shares`, by default None: the shares of the classes in the images of
        the first view where these are mixed, float32, shape (B, C).
        """
        raise NotImplementedError


_OBJECTIVES: dict[str, Callable[..., Objective]] = {}
_T = TypeVar('_T', bound=type[Objective])


def register_objective(name: str) -> Callable[[_T], _T]:
    """Register an objective class under the name that recipes use.

    Raises:
        ObjectiveError: if it is no `Objective`, or the name is one of ltzoo's.
    """

    def decorate(cls: _T) -> _T:
        if not (isinstance(cls, type) and issubclass(cls, Objective)):
            raise ObjectiveError(f'objective {name} must be a subclass of ltzoo.losses.Objective, {cls!r} is none')
        # One's own may be made again, by a notebook's cell.
        if name in _OBJECTIVES and _OBJECTIVES[name].__module__.startswith('ltzoo.'):
            raise ObjectiveError(f'{name} is an objective of ltzoo: choose another name')
        _OBJECTIVES[name] = cls
        return cls

    return decorate


def list_objectives() -> list[str]:
    """Return the names of all objectives."""
    return sorted(_OBJECTIVES)


def is_balanced(name: str) -> bool:
    """Return whether the class of an objective says that it is `balanced`; of a name that is not registered, False."""
    return bool(getattr(_OBJECTIVES.get(name), 'balanced', False))


def create_objective(name: str, model: nn.Module, class_counts: Tensor, **options: Any) -> Objective:
    """Create an objective.

    Args:
        name: one of `list_objectives()`.
        model: the network that it will train.
        class_counts: training images per class, int64, shape (C,).
        **options: what the objective's constructor takes.

    Raises:
        ObjectiveError: as `check_objective` and the objective's constructor, or if the class counts are not those of
            the model's classes.
    """
    check_objective(name, options)
    classes = getattr(model, 'num_classes', None)
    if classes and len(class_counts) != classes:
        raise ObjectiveError(f'class_counts has {len(class_counts)} entries, the model {classes} classes')
    return _OBJECTIVES[name](model, class_counts, **options)


def check_objective(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an objective that does not exist, an option that it does not take, or the want of one that it needs.

    Raises:
        ObjectiveError: if so, with the nearest valid name.
    """
    if name not in _OBJECTIVES:
        hint = did_you_mean(name, _OBJECTIVES)
        raise ObjectiveError(f'no objective is called {name!r}{hint} Known: {", ".join(list_objectives())}')
    parameters = inspect.signature(_OBJECTIVES[name]).parameters
    # The model and the class counts come first.
    own = list(parameters.values())[2:]
    known = [option.name for option in own if option.kind is not option.VAR_KEYWORD]
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in options:
            raise ObjectiveError(f'objective {name} needs the option {key!r}: write objective.{key}=...')
    for key in options:
        if key not in known:
            if len(known) < len(own):
                continue
            hint = did_you_mean(key, known, otherwise=f'; it takes {", ".join(known) or "none"}')
            raise ObjectiveError(f'objective {name} has no option {key!r}{hint}')
        is_number = isinstance(options[key], (int, float)) and not isinstance(options[key], bool)
        wants_number = type(parameters[key].default) in (int, float)
        if wants_number and not (is_number and math.isfinite(options[key])):
            raise ObjectiveError(f'objective {name}: {key} must be a finite number, not {options[key]!r}')
