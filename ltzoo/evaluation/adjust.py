"""Logit adjustment after training."""

from __future__ import annotations

import logging
import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ltzoo.evaluation.trained_on import EvaluationError, TrainedOn
from ltzoo.losses import log_prior
from ltzoo.models.entries import method_of
from ltzoo.models.heads import classifier_of

__all__ = ['adjust_logits', 'adjust_to_training']

logger = logging.getLogger(__name__)

_T = TypeVar('_T', bound=nn.Module)

# Objectives, and further parts of a recipe, that train for equally frequent classes.
_BALANCED = {'logit_adjusted', 'bcl', 'gkpgsa', 'reweighting', 'retraining'}


def adjust_logits(model: _T, class_counts: Tensor, tau: float = 1.0) -> _T:
    """Take tau log prior off a trained model's logits, so that they serve equally frequent classes.

    It is put into the classifier's bias, in place: the model costs what it did, and is saved and exported as before. It
    is for models of plain cross-entropy: balanced softmax, BCL, class weights and cRT train for equally frequent
    classes already.

    Source: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, Sec. 4.

    Args:
        model: its classifier must have a bias of every class; a cosine head has none.
        class_counts: training images per class, shape (C,).
        tau: strength; 1 is right where the model's probabilities are those of its training data, 0 changes nothing.

    Returns:
        The model itself.

    Raises:
        EvaluationError: if the classifier has no such bias, or tau is not finite.
        ObjectiveError: if the class counts are none.
    """
    if not math.isfinite(tau):
        raise EvaluationError(f'tau must be a finite number, not {tau}')
    classifier, kind = classifier_of(model)
    bias = getattr(classifier, 'bias', None)
    if not isinstance(bias, Tensor) or bias.shape[-1:] != (len(class_counts),):
        what = 'no bias' if bias is None else f'a bias of shape {tuple(bias.shape)}'
        raise EvaluationError(
            f'logits are adjusted in the bias of the classifier, one for each of {len(class_counts)} classes; that of '
            f'{type(model).__name__}, {kind}, has {what}'
        )
    with torch.no_grad():
        bias -= tau * log_prior(class_counts).to(bias)
    return model


def adjust_to_training(model: nn.Module, training: TrainedOn, tau: float, otherwise: np.ndarray | None = None) -> None:
    """Adjust a model's logits to the images that it says it was trained on, in place.

    A model that was trained for equally frequent classes is warned of.

    Args:
        training: of this model.
        tau: as for `adjust_logits`.
        otherwise: class counts, int64, shape (C,), for a model that says none, with a warning.

    Raises:
        EvaluationError: if it says none and there are no others, and as `adjust_logits`.
    """
    try:
        trained_with = method_of(training.lt['recipe'])
    except (KeyError, TypeError, AttributeError):
        trained_with = ''
    name = training.name
    if _BALANCED.intersection(trained_with.split(' + ')):
        logger.warning(
            '%s was trained for equally frequent classes (%s): its logits need no adjusting', name, trained_with
        )
    counts = training.lt.get('class_counts')
    if not isinstance(counts, list):
        said = f'{name} does not say what it was trained on'
        if otherwise is None:
            raise EvaluationError(f'{said}: in Python, ltzoo.evaluation.adjust_logits takes the class counts')
        logger.warning('%s: its logits are adjusted to the data named here', said)
        counts = otherwise.tolist()
    adjust_logits(model, torch.tensor(counts), tau)
