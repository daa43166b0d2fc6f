"""Logit adjustment after training."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ltzoo.evaluation.trained_on import EvaluationError
from ltzoo.losses import log_prior

__all__ = ['adjust_logits']

_T = TypeVar('_T', bound=nn.Module)


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
    classifier: Any = model.get_classifier() if hasattr(model, 'get_classifier') else None  # type: ignore[operator]
    bias = getattr(classifier, 'bias', None)
    if not isinstance(bias, Tensor) or bias.shape[-1:] != (len(class_counts),):
        what = 'no bias' if bias is None else f'a bias of shape {tuple(bias.shape)}'
        raise EvaluationError(
            f'logits are adjusted in the bias of the classifier, one for each of {len(class_counts)} classes; that of '
            f'{type(model).__name__}, {"none" if classifier is None else type(classifier).__name__}, has {what}'
        )
    with torch.no_grad():
        bias -= tau * log_prior(class_counts).to(bias)
    return model
