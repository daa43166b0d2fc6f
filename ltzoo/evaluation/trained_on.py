"""What a model says of its training, and which images it can be scored on by that: it has to know none of them."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltzoo.data import Dataset, Split, load_parts, with_place, without_folders
from ltzoo.data.images import join_images
from ltzoo.errors import LtzooError
from ltzoo.models.entries import entry_of

__all__ = [
    'EvaluationError',
    'all_of',
    'check_draw',
    'held_out',
    'in_classes_of',
    'resolve_model',
    'training_of',
    'training_on',
]

logger = logging.getLogger(__name__)


class EvaluationError(LtzooError, ValueError):
    """A model, data set or device that do not go together."""


def resolve_model(name: str) -> str:
    """Return the name that `create_model` takes; a run's folder stands for the model exported from it.

    Raises:
        EvaluationError: if a folder is neither.
    """
    if not name:
        raise EvaluationError("the model's name is empty: give one of the zoo, a run's folder or local-dir:FOLDER")
    kind, _, place = name.partition(':')
    if kind == 'local-dir' and place.startswith('~'):
        return f'{kind}:{os.path.expanduser(place)}'
    run = Path(os.path.expanduser(name))
    if not (run / 'recipe.yaml').exists():
        if run.is_dir():
            raise EvaluationError(
                f'{name} holds no run (recipe.yaml is missing); for an exported model write local-dir:{name}'
            )
        if '/' in name and ':' not in name and not name.startswith('timm/'):
            raise EvaluationError(f'there is no folder {name} of a run, nor a model of that name')
        return name
    if not (run / 'model').is_dir():
        raise EvaluationError(f'the run {name} is not finished: continue it with resume=auto')
    return f'local-dir:{run / "model"}'


def training_of(name: str) -> dict[str, Any] | None:
    """Return what a model in a folder, or of the zoo, says of its training: the block `lt` of its config.json; None if
    nothing.

    Raises:
        EvaluationError: as `resolve_model`.
    """
    entry = entry_of(name)
    place = (entry and entry.folder) or Path(resolve_model(name).removeprefix('local-dir:'))
    try:
        lt = json.loads((place / 'config.json').read_text(encoding='utf-8'))['lt']
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return lt if isinstance(lt, dict) else None


def training_on(name: str, dataset: Dataset) -> dict[str, Any]:
    """Return what `training_of` says of a model if it was trained on this data set, else nothing."""
    lt = training_of(name)
    return lt if lt is not None and lt.get('data') == without_folders(dataset.name) else {}


def check_draw(
    name: str, dataset: Dataset, lt: dict[str, Any], unknown: str = 'are scored whole by --split all'
) -> None:
    """Refuse a test part that was drawn from other images than when the model was trained: it may know some of it.

    Args:
        lt: what `training_on` returns.
        unknown: what can be done with images that the model knows none of.

    Raises:
        EvaluationError: if so.
    """
    # A run with a hold-out says what that was drawn from; the test set, where it is drawn too, from the same. One whose
    # test part was not drawn says None, and may have been trained on all that is there now.
    if dataset.drawn_from is not None and lt.get('drawn_from', dataset.drawn_from) != dataset.drawn_from:
        raise EvaluationError(
            f'{dataset.name} has other images, or other names for them, than when {name} was trained, and the test '
            'part drawn from them would hold some that it was trained on: put them back, or give the test images their '
            f'own part; images that it knows none of {unknown}'
        )
    if dataset.drawn_from is None and lt.get('split') == 'test' and lt.get('drawn_from') is not None:
        logger.warning(
            '%s has a test part of its own now, where one was drawn when %s was trained: scores are too high if '
            'images that it was trained on are in it',
            dataset.name, name,
        )  # fmt: skip
    other = training_of(name) or {}
    of_own_images = ':' in str(other.get('data')) and other.get('drawn_from') != dataset.drawn_from
    if dataset.drawn_from is not None and not lt and of_own_images:
        logger.warning(
            'the test part of %s is drawn from its images: scores are too high if %s was trained on some of them; '
            'images that it knows none of %s',
            dataset.name, name, unknown,
        )  # fmt: skip


def in_classes_of(name: str, dataset: Dataset) -> Dataset:
    """Return images of some of the classes that a model knows by these names, labelled as it labels them."""
    names = (training_of(name) or {}).get('class_names')
    if not isinstance(names, list) or not set(dataset.class_names) < set(names):
        return dataset
    labels = np.array([names.index(known) for known in dataset.class_names])

    def renumbered(part: Split | None) -> Any:
        return None if part is None else Split(part.images, labels[part.labels])

    parts = {part: renumbered(getattr(dataset, part)) for part in ('train', 'test', 'validation', 'spare')}
    return replace(dataset, class_names=tuple(names), **parts)


def all_of(name: str, dataset: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """Return a data set all of whose images are its test part, and what the model says of its training."""
    lt = training_of(name) or {}
    counts = lt.get('class_counts')
    if not isinstance(counts, list) or len(counts) != dataset.num_classes:
        raise EvaluationError(
            f'{name} does not say how many images of each class it was trained on, which shots go by: --split all '
            "takes a run, an export in a folder, or one of the zoo's models"
        )
    trained_on = str(lt.get('data')).partition(':')[2]
    alike = trained_on and trained_on == without_folders(dataset.name).partition(':')[2]
    drawn = dataset.drawn_from is not None and lt.get('drawn_from') == dataset.drawn_from
    if alike or drawn or counts == dataset.class_counts.tolist() or not dataset.users_own:
        raise EvaluationError(
            f'{name} may have been trained on images of {dataset.name} (it was on {lt.get("data")}): --split all is '
            'for images that it knows none of; if these are, give them a place of another name'
        )
    whole = dataset.test
    for part in (dataset.train, dataset.validation, dataset.spare):
        if part is not None:
            whole = Split(join_images(whole.images, part.images), np.concatenate([whole.labels, part.labels]))
    return replace(dataset, test=whole, drawn_from=None), lt


def held_out(name: str, data: str, data_dir: str | Path | None) -> Dataset:
    """Return the data set as a model's training saw it, with its hold-out in the place of the test part."""
    lt = training_of(name)
    if lt is None:
        raise EvaluationError(f'{name} does not say what it was trained on: score it on the test set')
    if lt.get('split') != 'holdout':
        raise EvaluationError(f'{name} was not trained with evaluation.split=holdout: score it on the test set')
    if lt.get('data') != without_folders(with_place(data, data_dir)):
        raise EvaluationError(f'{name} left out images of {lt.get("data")}, not of {data}')
    try:
        part, measured = lt['recipe']['data'], lt['recipe']['evaluation']
        drawn = {'split_seed': part['split_seed'], 'holdout_per_class': measured['holdout_per_class']}
        unreadable = part['unreadable']
    except (KeyError, TypeError) as error:
        raise EvaluationError(f'{name} does not say how its hold-out was drawn: score it on the test set') from error
    numbers = all(value is None or type(value) is int for value in drawn.values()) and drawn['split_seed'] is not None
    if not numbers or unreadable not in ('stop', 'skip'):
        raise EvaluationError(f'the config.json of {name} is damaged: {drawn}, unreadable {unreadable!r}')
    dataset = load_parts(data, data_dir, split='holdout', unreadable=unreadable, **drawn)
    check_draw(name, dataset, lt)
    found = (dataset.class_counts.tolist(), len(dataset.test))
    if found != (lt.get('class_counts'), lt.get('scores', {}).get('samples')):
        raise EvaluationError(f'{data} is not what {name} was trained on: its classes have other numbers of images')
    return dataset
