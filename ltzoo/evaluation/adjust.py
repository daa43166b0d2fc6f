"""What makes a trained classifier serve equally frequent classes, without training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ltzoo.evaluation.trained_on import EvaluationError, TrainedOn
from ltzoo.losses import is_balanced, list_objectives, log_prior
from ltzoo.models.entries import method_of
from ltzoo.models.heads import classifier_of

__all__ = ['adjust_logits', 'correct', 'tau_normalize', 'trains_for_equal_classes']

logger = logging.getLogger(__name__)

_T = TypeVar('_T', bound=nn.Module)

# Parts of a recipe that train for equally frequent classes, whatever the objective.
_BALANCED_PARTS = {'reweighting', 'retraining', 'scaling'}


def adjust_logits(model: _T, class_counts: Tensor, tau: float = 1.0) -> _T:
    """Take tau log prior off a trained model's logits, so that they serve equally frequent classes.

    It is put into the classifier's bias, in place: the model costs what it did, and is saved and exported as before. It
    is for models of plain cross-entropy: balanced softmax, BCL, RIDE, class weights, cRT and LWS train for equally
    frequent classes already. Of those a tau of -1 makes models of classes as frequent as in training.

    Source: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, Sec. 4.

    Args:
        model: its classifier must have a bias of every class; a cosine head has none.
        class_counts: training images per class, an integer tensor of shape (C,).
        tau: strength; 1 is right where the model's probabilities are those of its training data, 0 changes nothing, -1
            is right where they are those of equally frequent classes and are to be those of the training data.

    Returns:
        The model itself.

    Raises:
        EvaluationError: if the classifier has no such bias, or tau is not finite.
        ObjectiveError: if the class counts are none.
    """
    _check_tau(tau)
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


def tau_normalize(model: _T, tau: float = 1.0) -> _T:
    """Divide the weights of each class by the tau-th power of their norm, and set the classifier's bias to zero.

    Training on a long tail gives frequent classes longer weights. It is for models of plain cross-entropy, as
    `adjust_logits` is, needs no class counts, and is done in place.

    Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020, Sec. 4.1.

    Args:
        model: its classifier must be a linear layer.
        tau: 1 makes all norms the same, 0 takes away the bias alone. The paper chooses it on a hold-out.

    Returns:
        The model itself.

    Raises:
        EvaluationError: if the classifier is something else or has a class whose weights are all zero, or tau is not
            finite.
    """
    _check_tau(tau)
    classifier, kind = classifier_of(model)
    if not isinstance(classifier, nn.Linear):
        raise EvaluationError(f'tau-normalisation needs a linear classifier; that of {type(model).__name__} is {kind}')
    with torch.no_grad():
        norms = classifier.weight.norm(dim=1, keepdim=True)
        if not norms.all():
            empty = int((norms == 0).nonzero()[0, 0])
            raise EvaluationError(f'the weights of class {empty} are all zero: they have no norm to divide by')
        classifier.weight /= norms**tau
        if classifier.bias is not None:
            classifier.bias.zero_()
    return model


def correct(
    model: nn.Module,
    training: TrainedOn,
    *,
    tau: float | None = None,
    tau_norm: float | None = None,
    otherwise: np.ndarray | None = None,
) -> None:
    """Adjust a model's logits to the images that it says it was trained on, or tau-normalise it, in place.

    A model that a recipe of ltzoo trained for such classes already as the correction is for is warned of.

    Args:
        training: of this model.
        tau: as for `adjust_logits`; None leaves the logits alone.
        tau_norm: as for `tau_normalize`; None leaves the classifier alone.
        otherwise: class counts, int64, shape (C,), for a model that says none, with a warning.

    Raises:
        EvaluationError: if the counts are needed, it says none and there are no others, and as `adjust_logits` and
            `tau_normalize`.
    """
    if tau is None and tau_norm is None:
        return
    _warn_if_needless(training, for_training=tau is not None and tau < 0)
    if tau_norm is not None:
        tau_normalize(model, tau_norm)
    if tau is None:
        return
    name = training.name
    counts = training.lt.get('class_counts')
    if not isinstance(counts, list):
        said = f'{name} does not say what it was trained on'
        if otherwise is None:
            raise EvaluationError(f'{said}: in Python, ltzoo.evaluation.adjust_logits takes the class counts')
        logger.warning('%s: its logits are adjusted by the class counts of the data set given', said)
        counts = otherwise.tolist()
    adjust_logits(model, torch.tensor(counts), tau)


def _check_tau(tau: float) -> None:
    if not math.isfinite(tau):
        raise EvaluationError(f'tau must be a finite number, not {tau}')


def _warn_if_needless(training: TrainedOn, for_training: bool) -> None:
    """Log that a model was trained for what it is to be corrected for: classes as frequent as they were, or equally."""
    try:
        recipe = training.lt['recipe']
        trained_with, balanced = method_of(recipe), trains_for_equal_classes(recipe)
    except (KeyError, TypeError, AttributeError):
        return
    # Of one that is not registered here nothing is known.
    if balanced != for_training and (balanced or recipe['objective']['name'] in list_objectives()):
        classes = 'classes as frequent as in its training' if for_training else 'equally frequent classes'
        logger.warning('%s was trained for %s (%s): it needs no correcting', training.name, classes, trained_with)


def trains_for_equal_classes(recipe: Mapping[str, Any]) -> bool:
    """Return whether a recipe trains for equally frequent classes, by its objective or another part."""
    parts = method_of(recipe).split(' + ')
    return is_balanced(recipe['objective']['name']) or not _BALANCED_PARTS.isdisjoint(parts)
