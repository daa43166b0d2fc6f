"""A model by name on a data set by name."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data import resolve_input_data_config
from torch import nn

from ltzoo.data import (
    Dataset,
    check_thresholds,
    drop_unreadable,
    load_data,
    spelled_plainly,
)
from ltzoo.data.shots import FEW_BELOW, MANY_ABOVE
from ltzoo.errors import one_of
from ltzoo.evaluation.adjust import correct
from ltzoo.evaluation.metrics import score, shifted_accuracy
from ltzoo.evaluation.predict import Predictions, predict
from ltzoo.evaluation.trained_on import EvaluationError, TrainedOn, resolve_model
from ltzoo.models import create_model
from ltzoo.models.entries import entry_of
from ltzoo.models.factory import check_model_name

__all__ = [
    'ClassesError',
    'check_classes',
    'evaluate_model',
    'score_model',
    'usable_device',
]


logger = logging.getLogger(__name__)


class ClassesError(EvaluationError):
    """A model for another number of classes than the data set has."""


def evaluate_model(
    name: str | os.PathLike[str],
    data: str | None = None,
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
    tau: float | None = None,
    tau_norm: float | None = None,
    predictions: bool = False,
) -> dict[str, Any]:
    """Score a model on the test set of a data set, on the hold-out that it was trained without, or on new images.

    Args:
        name: what `create_model` takes, or the folder of a run.
        data, data_dir: as `load_data` takes them; by default what a model of the zoo was trained on.
        split: `holdout` is for a model in a folder that was trained with `evaluation.split=holdout` on the same data;
            `all` scores every image of data that the model knows none of, such as images collected later, by the shots
            of the model's own training.
        device: `cpu`, `cuda`, `mps`; by default `cuda` where there is one, else `cpu`.
        workers: processes that read image files.
        many_above, few_below: the shots' thresholds, in training images. By default those that a model in a folder was
            trained with on this data, else 100 and 20.
        shifted: also score long-tailed test distributions.
        skip_unreadable: leave out images that cannot be decoded, with a warning that names each.
        tau: score with logits that `adjust_logits` has adjusted so strongly; None for the model as it is.
        tau_norm: score with a classifier that `tau_normalize` has normalised so strongly; None for the model as it is.
        predictions: also return what the model says of every image.

    Returns:
        `model`, `data`, `split`, the thresholds and the scores, in percent, with every class. If asked for,
        `predictions` has for each image, in the data set's order, its `path`, the names of its class (`label`) and of
        the one found (`prediction`), and that one's probability (`confidence`), in 0..1.

    Raises:
        EvaluationError: as `adjust_logits` and `tau_normalize`, or if both are asked for; if the classes or the numbers
            of channels differ, the device cannot be used, a hold-out is asked for that the model was not trained
            without, or images it was trained on may be in the test set.
        PredictionError: if the model's outputs are not finite.
        UnreadableImageError: if an image cannot be decoded.
        ShotError: if the thresholds do not fit each other.
        LtzooError: as `create_model` and `load_data`.
        ValueError: if `batch_size` is less than one.
    """
    name = os.fspath(name)
    one_of('split', split, ('test', 'holdout', 'all'), EvaluationError)
    if tau is not None and tau_norm is not None:
        raise EvaluationError('tau and tau_norm are two corrections of one tail: leave one of them out')
    if data is None:
        # Before weights are fetched, and a misspelled name before that.
        check_model_name(resolve_model(name))
        data = _trained_on(name)
    where = usable_device(device)
    model = create_model(resolve_model(name), pretrained=True).to(where)
    training = TrainedOn(name)
    dataset = training.held_out(data, data_dir) if split == 'holdout' else load_data(data, data_dir)
    if split == 'all':
        dataset = training.in_classes(dataset)
    check_classes(model, dataset, name, data)
    if split == 'test':
        training.check_draw(dataset)
        training.warn_of_other_shots(dataset)
    elif split == 'all':
        dataset = training.all_of(dataset)
    own = training.lt if split == 'all' else training.on(dataset)
    thresholds = {
        'many_above': own.get('many_above', MANY_ABOVE) if many_above is None else many_above,
        'few_below': own.get('few_below', FEW_BELOW) if few_below is None else few_below,
    }
    check_thresholds(thresholds['many_above'], thresholds['few_below'])
    if skip_unreadable:
        dataset = replace(dataset, test=drop_unreadable(dataset.test))
    # A run that left out images, or began before others were added, was trained on fewer than there are.
    counts = own.get('class_counts')
    counts = counts if isinstance(counts, list) and len(counts) == dataset.num_classes else None
    correct(model, training, tau=tau, tau_norm=tau_norm, otherwise=dataset.class_counts)
    return {
        'model': name,
        'data': data,
        'split': split,
        **thresholds,
        **({} if tau is None else {'tau': tau}),
        **({} if tau_norm is None else {'tau_norm': tau_norm}),
        **score_model(
            model, dataset, batch_size, where, workers,
            class_counts=counts, shifted=shifted, predictions=predictions, **thresholds,
        ),
    }  # fmt: skip


def _trained_on(name: str) -> str:
    entry = entry_of(name)
    if entry is None:
        raise EvaluationError(
            f'say which data {name} is to be scored on (--data): only names of the zoo say it themselves'
        )
    return entry.tag


def score_model(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    device: str,
    workers: int = 2,
    many_above: int = MANY_ABOVE,
    few_below: int = FEW_BELOW,
    class_counts: Sequence[int] | None = None,
    shifted: bool = False,
    predictions: bool = False,
) -> dict[str, Any]:
    """Return the scores of a model that lies on the device, as `evaluate_model` does.

    Args:
        class_counts: training images of every class that shots go by, shape (C,); by default the data set's.

    Raises:
        EvaluationError: if the model does not take images of three channels.
        PredictionError: if its outputs are not finite.
    """
    config = resolve_input_data_config(model)
    if config['input_size'][0] != 3:
        raise EvaluationError(
            f'the model takes {config["input_size"][0]}-channel images, those of {dataset.name} have 3 channels: take '
            'a model with in_chans=3'
        )
    found = predict(model, dataset.test, config, batch_size=batch_size, device=device, workers=workers)
    scores = score(
        *found,
        dataset.class_counts if class_counts is None else np.array(class_counts, dtype=np.int64),
        dataset.class_names,
        many_above=many_above,
        few_below=few_below,
    )
    return {
        **scores.to_json_dict(),
        **({'shifted': shifted_accuracy(scores)} if shifted else {}),
        **({'predictions': _by_name(found, dataset)} if predictions else {}),
    }


def _by_name(found: Predictions, dataset: Dataset) -> list[dict[str, Any]]:
    names, images = dataset.class_names, dataset.test.images
    return [
        {
            'path': images.name(i),
            'label': names[label],
            'prediction': names[prediction],
            'confidence': float(confidence),
        }
        for i, (label, prediction, confidence) in enumerate(zip(*found, strict=True))
    ]


def check_classes(model: Any, dataset: Dataset, name: str, data: str) -> None:
    """Refuse a model for other classes than the data set has, and warn of one whose classes have other names.

    Raises:
        ClassesError: if their number or their order differs.
    """
    if not model.num_classes:
        raise ClassesError(f'{name} has no classifier: train one on it, or take a model with one')
    if model.num_classes != dataset.num_classes:
        raise ClassesError(
            f'{name} has {model.num_classes} classes, {data} has {dataset.num_classes}: they must be the same classes'
        )
    theirs, ours = (model.pretrained_cfg or {}).get('label_names'), dataset.class_names
    if not isinstance(theirs, (list, tuple)) or tuple(theirs) == ours or len(theirs) != len(ours):
        return
    plain_theirs, plain_ours = ([spelled_plainly(str(known)) for known in names] for names in (theirs, ours))
    moved = _moved(theirs, ours) or _moved(plain_theirs, plain_ours)
    first = next((c for c in range(len(ours)) if plain_theirs[c] != plain_ours[c]), moved[0] if moved else None)
    if first is None:
        return
    difference = f'class {first} of {name} is {theirs[first]}, that of {data} is {ours[first]}'
    if moved:
        raise ClassesError(f'{difference}: the classes are in another order, every score would be wrong')
    logger.warning('%s: if these are not two names of one thing, the scores mean nothing', difference)


def _moved(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Return the classes whose name is that of another class there."""
    # A name may stand for two classes, as in ImageNet's list.
    in_theirs, in_ours = Counter(theirs), Counter(ours)
    return [c for c, name in enumerate(ours) if theirs[c] != name and in_theirs[name] == 1 == in_ours[name]]


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
