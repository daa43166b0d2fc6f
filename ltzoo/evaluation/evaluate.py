"""A model by name on a data set by name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ltzoo.data import (
    Dataset,
    Split,
    check_thresholds,
    drop_unreadable,
    load_data,
    load_parts,
    with_place,
    without_folders,
)
from ltzoo.data.images import join_images
from ltzoo.errors import LtzooError
from ltzoo.evaluation.metrics import Scores, score, shifted_accuracy
from ltzoo.evaluation.predict import predict
from ltzoo.models import create_model
from ltzoo.models.entries import entry_of
from ltzoo.models.input_config import input_config

__all__ = [
    'ClassesError',
    'EvaluationError',
    'check_classes',
    'check_draw',
    'evaluate_model',
    'resolve_model',
    'score_images',
    'score_model',
    'training_of',
    'training_on',
    'usable_device',
]


logger = logging.getLogger(__name__)


class EvaluationError(LtzooError, ValueError):
    """A model, data set or device that do not go together."""


class ClassesError(EvaluationError):
    """A model for another number of classes than the data set has."""


def evaluate_model(
    name: str,
    data: str,
    *,
    data_dir: str | Path | None = None,
    split: Literal['test', 'holdout', 'all'] = 'test',
    batch_size: int = 256,
    device: str | None = None,
    workers: int = 2,
    many_above: int | None = None,
    few_below: int | None = None,
    shifted: bool = False,
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """Score a model on the test set of a data set, on the hold-out that it was trained without, or on new images.

    Args:
        name: what `create_model` takes, or the folder of a run.
        data, data_dir: as `load_data` takes them.
        split: `holdout` is for a model in a folder that was trained with `evaluation.split=holdout` on the same data;
            `all` scores every image of data that the model knows none of, such as images collected later, by the shots
            of the model's own training.
        device: `cpu`, `cuda`, `mps`; by default `cuda` where there is one, else `cpu`.
        workers: processes that read image files.
        many_above, few_below: the shots' thresholds, in training images. By default those that a model in a folder was
            trained with on this data, else 100 and 20.
        shifted: also score long-tailed test distributions.
        skip_unreadable: leave out images that cannot be decoded, with a warning that names each.

    Returns:
        `model`, `data`, `split`, the thresholds and the scores, in percent, with every class.

    Raises:
        EvaluationError: if the classes or the numbers of channels differ, the device cannot be used, a hold-out is
            asked for that the model was not trained without, or images it was trained on may be in the test part.
        PredictionError: if the model's outputs are not finite.
        UnreadableImageError: if an image cannot be decoded.
        LtzooError: as `create_model` and `load_data`.
    """
    where = usable_device(device)
    model = create_model(resolve_model(name), pretrained=True).to(where)
    dataset = _held_out(name, data, data_dir) if split == 'holdout' else load_data(data, data_dir)
    check_classes(model, dataset, name, data)
    own = training_on(name, dataset)
    if split == 'test':
        check_draw(name, dataset, own)
    elif split == 'all':
        dataset, own = _all_of(name, dataset)
    thresholds = {
        'many_above': own.get('many_above', 100) if many_above is None else many_above,
        'few_below': own.get('few_below', 20) if few_below is None else few_below,
    }
    check_thresholds(thresholds['many_above'], thresholds['few_below'])
    if skip_unreadable:
        dataset = replace(dataset, test=drop_unreadable(dataset.test))
    # A run that left out images, or began before others were added, was trained on fewer than there are.
    counts = own.get('class_counts') if split in (own.get('split'), 'all') else None
    counts = counts if isinstance(counts, list) and len(counts) == dataset.num_classes else None
    return {
        'model': name,
        'data': data,
        'split': split,
        **thresholds,
        **score_model(model, dataset, batch_size, where, workers, class_counts=counts, shifted=shifted, **thresholds),
    }


def score_model(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    device: str,
    workers: int = 2,
    many_above: int = 100,
    few_below: int = 20,
    class_counts: Sequence[int] | None = None,
    shifted: bool = False,
) -> dict[str, Any]:
    """Return the scores of a model that lies on the device, as `evaluate_model` does.

    Args:
        class_counts: training images of every class that shots go by, shape (C,); by default the data set's.

    Raises:
        EvaluationError: if the model does not take images of three channels.
        PredictionError: if its outputs are not finite.
    """
    config = input_config(model)
    if config['input_size'][0] != 3:
        raise EvaluationError(f'the model takes images of shape {config["input_size"]}, {dataset.name} has 3 channels')
    scores = score_images(
        model,
        dataset.test,
        dataset,
        config,
        batch_size=batch_size,
        device=device,
        workers=workers,
        many_above=many_above,
        few_below=few_below,
        class_counts=class_counts,
    )
    return {**scores.to_json_dict(), **({'shifted': shifted_accuracy(scores)} if shifted else {})}


def score_images(
    model: nn.Module,
    images: Split,
    dataset: Dataset,
    config: Mapping[str, Any],
    *,
    batch_size: int,
    device: torch.device | str,
    workers: int,
    many_above: int,
    few_below: int,
    class_counts: Sequence[int] | None = None,
) -> Scores:
    """Score a model on some images of a data set, by whose training part shots go if `class_counts` does not say.

    Args:
        images: what to score it on.
        config: how they are fed, see `predict`, as are the others.

    Raises:
        PredictionError: if the model's outputs are not finite.
    """
    predictions = predict(model, images, config, batch_size=batch_size, device=device, workers=workers)
    return score(
        predictions.labels,
        predictions.predictions,
        predictions.confidences,
        dataset.class_counts if class_counts is None else np.array(class_counts, dtype=np.int64),
        dataset.class_names,
        many_above=many_above,
        few_below=few_below,
    )


def check_classes(model: Any, dataset: Dataset, name: str, data: str) -> None:
    """Refuse a model for other classes than the data set has, and warn of one whose classes have other names.

    Raises:
        ClassesError: if their number or their order differs.
    """
    if model.num_classes != dataset.num_classes:
        raise ClassesError(f'{name} has {model.num_classes} classes, {data} has {dataset.num_classes}')
    theirs, ours = (model.pretrained_cfg or {}).get('label_names'), dataset.class_names
    if not isinstance(theirs, (list, tuple)) or tuple(theirs) == ours or len(theirs) != len(ours):
        return
    first = next(c for c in range(len(ours)) if theirs[c] != ours[c])
    difference = f'class {first} of {name} is {theirs[first]}, that of {data} is {ours[first]}'
    if set(theirs) == set(ours):
        raise ClassesError(f'{difference}: the classes are in another order, every score would be wrong')
    logger.warning('%s: if these are not two names of one thing, the scores mean nothing', difference)


def usable_device(device: str | None) -> str:
    """Return the device asked for; by default `cuda` where there is one, else `cpu`.

    Raises:
        EvaluationError: if it cannot be used.
    """
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        # A number comes back: from the device meta none does.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise EvaluationError(f'--device {device} cannot be used: {str(error).splitlines()[0]}') from error
    return device


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


def check_draw(name: str, dataset: Dataset, lt: dict[str, Any]) -> None:
    """Refuse a test part that was drawn from other images than when the model was trained: it may know some of it.

    Args:
        lt: what `training_on` returns.

    Raises:
        EvaluationError: if so.
    """
    # A run with a hold-out says what that was drawn from; the test set, where it is drawn too, from the same. One whose
    # test part was not drawn says None, and may have been trained on all that is there now.
    if dataset.drawn_from is not None and lt.get('drawn_from', dataset.drawn_from) != dataset.drawn_from:
        raise EvaluationError(
            f'{dataset.name} has other images, or other names for them, than when {name} was trained, and the test '
            'part drawn from them would hold some that it was trained on: put them back, or give the test images their '
            'own part; images that it knows none of are scored whole by --split all'
        )
    other = training_of(name) or {}
    of_own_images = ':' in str(other.get('data')) and other.get('drawn_from') != dataset.drawn_from
    if dataset.drawn_from is not None and not lt and of_own_images:
        logger.warning(
            'the test part of %s is drawn from its images: scores are too high if %s was trained on some of them; if '
            'on none, --split all scores them all',
            dataset.name, name,
        )  # fmt: skip


def _all_of(name: str, dataset: Dataset) -> tuple[Dataset, dict[str, Any]]:
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


def _held_out(name: str, data: str, data_dir: str | Path | None) -> Dataset:
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
