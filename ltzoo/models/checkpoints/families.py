"""The families of checkpoints, by name, and the conversion of a file of one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltzoo.errors import LtzooError, is_out_of_memory, one_line
from ltzoo.models.checkpoints.networks import Network, place
from ltzoo.models.checkpoints.reading import ConversionError, read_checkpoint
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError
from ltzoo.models.papers import PAPERS, Paper

__all__ = ['FAMILIES', 'Converted', 'Family', 'Options', 'convert', 'family']


@dataclass(frozen=True)
class Options:
    """What a file cannot say: `arch`, the name of a timm model; `tau`, the exponent of tau-normalisation."""

    arch: str | None = None
    tau: float | None = None


Layout = Callable[[Checkpoint, Options], Network]


@dataclass(frozen=True)
class Family:
    """Code that writes checkpoints of one layout: its name, its paper, its repository on GitHub."""

    name: str
    layout: Layout
    paper: Paper | None = None
    repository: str | None = None


@dataclass(frozen=True)
class Converted:
    """A checkpoint as a model of ours, and what became of everything in the file.

    `placed`: how many tensors the model took over; `dropped`: names of tensors by the rule that dropped them;
    `unused`: entries of the file that are no weights; `added`: counters that the file does not have; `options`: tau,
    where it was given.
    """

    model: nn.Module
    network: Network
    family: Family
    file: Path
    placed: int
    dropped: dict[str, list[str]]
    unused: list[str]
    added: list[str]
    options: dict[str, float]


FAMILIES: dict[str, Family] = {}


def family(name: str, *, paper: str | None = None, repository: str | None = None) -> Callable[[Layout], Layout]:
    """Register a function that makes a `Network` of a `Checkpoint` under the name of its family.

    Args:
        name: what `--from` takes.
        paper: a key of `PAPERS`.
        repository: on GitHub.
    """

    def register(layout: Layout) -> Layout:
        FAMILIES[name] = Family(name, layout, PAPERS[paper] if paper else None, repository)
        return layout

    return register


def convert(
    file: str | os.PathLike[str],
    name: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    tau: float | None = None,
    class_counts: Sequence[int] | None = None,
    unsafe_pickle: bool = False,
) -> Converted:
    """Read another project's checkpoint as a model of ours.

    Args:
        file: a .safetensors file, or one that `torch.save` wrote.
        name: family, one of `FAMILIES`.
        arch: name of the architecture, with or without `timm/`; needed by the family timm, checked by the others.
        num_classes: checked against the file.
        tau: exponent of tau-normalisation, for the family tau_norm.
        class_counts: training images of each class, checked against the file; needed where the file numbers the
            classes by them (mislas but on CIFAR).
        unsafe_pickle: see `read_checkpoint`.

    Raises:
        ConversionError: if there is no such family, the file cannot be read, or an option does not fit.
        LayoutError: if the file's tensors are not those of the family; the message names the family that
            they fit.
        UnknownModelError: if there is no such architecture.
    """
    file = Path(file)
    if name not in FAMILIES:
        raise ConversionError(f'no family is called {name!r}: it can be {", ".join(sorted(FAMILIES))}')
    if tau is not None and name != 'tau_norm':
        raise ConversionError(f'--tau goes with the family tau_norm, not with {name}')
    chosen, options = FAMILIES[name], Options(arch, tau)
    content = read_checkpoint(file, unsafe_pickle)
    try:
        network, model, unused, added = _fit(chosen, content, options)
    except LayoutError as error:
        fitting = [other.name for other in FAMILIES.values() if other is not chosen and _fits(other, content, options)]
        hint = f'; its layout is that of --from {" or ".join(sorted(fitting))}' if fitting else ''
        raise LayoutError(f'{file} is no checkpoint of {name}: {error}{hint}') from error
    found = network.model.removeprefix('timm/')
    if arch is not None and arch.removeprefix('timm/') != found:
        raise ConversionError(f'{file} is of a {found}, not of a {arch}')
    if num_classes is not None and num_classes != model.num_classes:
        raise ConversionError(f'{file} has {model.num_classes} classes, not {num_classes}')
    if class_counts is not None and len(class_counts) != model.num_classes:
        raise ConversionError(f'{file} has {model.num_classes} classes, the data set has {len(class_counts)}')
    if network.by_frequency:
        _number_as_data(model, class_counts, file)
    placed = len(network.weights.tensors)
    given = {} if tau is None else {'tau': tau}
    return Converted(model, network, chosen, file, placed, network.weights.dropped, unused, added, given)


def _fit(chosen: Family, content: Any, options: Options) -> tuple[Network, nn.Module, list[str], list[str]]:
    try:
        checkpoint = Checkpoint(content)
        network = chosen.layout(checkpoint, options)
        unused = checkpoint.unused()
        model, added = place(network)
    except LtzooError:
        raise
    # Whatever shapes that no file of the family has end with.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = f'{type(error).__name__}: {one_line(error)}'
        raise LayoutError(f'its tensors are not those of the family ({said})') from error
    return network, model, unused, added


def _number_as_data(model: Any, class_counts: Sequence[int] | None, file: Path) -> None:
    """Move the classifier's rows from the order of frequency to that of the data set."""
    if class_counts is None:
        raise ConversionError(
            f'{file} numbers its classes from the most frequent to the rarest, and only the data set says which those '
            f'are: give --data NAME and --data-dir DIR'
        )
    # Equal counts stand as the unstable sort of NumPy before 1.25 left them. Later ones sort integers with vector
    # instructions, in an order that depends on the processor; only for long doubles the algorithm is still the old one.
    order = np.argsort(-np.asarray(class_counts, dtype=np.longdouble))
    rows = torch.from_numpy(np.argsort(order))
    with torch.no_grad():
        for parameter in model.get_classifier().parameters():
            parameter.copy_(parameter[rows])


def _fits(chosen: Family, content: Any, options: Options) -> bool:
    try:
        _fit(chosen, content, options)
    except LtzooError:
        return False
    return True
