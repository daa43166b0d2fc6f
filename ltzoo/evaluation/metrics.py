"""What is reported: accuracy by shot, balanced accuracy, calibration, every class, and shifted test distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, precision_score, recall_score

from ltzoo.data.shots import FEW_BELOW, MANY_ABOVE, shot_classes
from ltzoo.errors import LtzooError

__all__ = ['SCORES', 'ClassScore', 'ScoreError', 'Scores', 'expected_calibration_error', 'score', 'shifted_accuracy']

# The numbers of `Scores`, of all classes together.
SCORES = ('samples', 'top1', 'many', 'medium', 'few', 'balanced_accuracy', 'ece')


class ScoreError(LtzooError, ValueError):
    """Predictions that cannot be scored."""


@dataclass(frozen=True)
class ClassScore:
    """One class: how many images it has and how many were taken for it.

    `accuracy`, the share of its test images that were taken for it, is None where there are none; `precision`, the
    share of those taken for it that are its own, where none were. Both are in percent.
    """

    label: int
    name: str
    train_count: int
    test_count: int
    accuracy: float | None
    predicted_count: int
    precision: float | None


@dataclass(frozen=True)
class Scores:
    """Accuracies and errors in percent; None for a shot without classes.

    Attributes:
        samples: number of test images.
        top1: share of test images classified correctly.
        many, medium, few: mean accuracy of the shot's classes (Liu et al., CVPR 2019).
        balanced_accuracy: mean accuracy of all classes.
        ece: expected calibration error.
        per_class: every class, in label order.
    """

    samples: int
    top1: float
    many: float | None
    medium: float | None
    few: float | None
    balanced_accuracy: float
    ece: float
    per_class: tuple[ClassScore, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Return the fields in JSON's types; a class's label stands under `class`.

        `format_scores` needs `model` and `data` beside them, `plot_accuracy` also `many_above` and `few_below`.
        """
        values = asdict(self)
        values['per_class'] = [{'class': row.pop('label'), **row} for row in values['per_class']]
        return values


def score(
    labels: ArrayLike,
    predictions: ArrayLike,
    confidences: ArrayLike,
    class_counts: ArrayLike,
    class_names: Sequence[str],
    *,
    many_above: int = MANY_ABOVE,
    few_below: int = FEW_BELOW,
) -> Scores:
    """Score predictions on a test set.

    Args:
        labels, predictions: integers in 0..C-1, shape (N,).
        confidences: probability of the predicted class, in 0..1, shape (N,).
        class_counts: training images per class, integers, shape (C,).
        class_names: C names.
        many_above, few_below: Many has more training images than the one, Few has fewer than the other.

    Returns:
        Scores in percent, of the whole, of the shots and of every class.

    Raises:
        ScoreError: if shapes or values are not these.
        ShotError: if the thresholds contradict each other.
    """
    labels, predictions, confidences, class_counts = map(np.asarray, (labels, predictions, confidences, class_counts))
    num_classes = len(class_names)
    _check_predictions(labels, predictions, confidences, class_counts, num_classes)
    recalls, precisions = (
        100 * rate(labels, predictions, labels=np.arange(num_classes), average=None, zero_division=np.nan)
        for rate in (recall_score, precision_score)
    )
    accuracies, precise = ([None if np.isnan(x) else float(x) for x in rates] for rates in (recalls, precisions))
    shots = {}
    for shot, classes in shot_classes(class_counts, many_above, few_below).items():
        known = [accuracy for accuracy in (accuracies[c] for c in classes) if accuracy is not None]
        shots[shot] = float(np.mean(known)) if known else None
    test_counts, predicted = (np.bincount(of, minlength=num_classes) for of in (labels, predictions))
    return Scores(
        samples=len(labels),
        top1=100 * float(accuracy_score(labels, predictions)),
        **shots,
        balanced_accuracy=float(np.nanmean(recalls)),
        ece=100 * expected_calibration_error(labels == predictions, np.minimum(confidences, 1)),
        per_class=tuple(
            ClassScore(
                label=c,
                name=str(class_names[c]),
                train_count=int(class_counts[c]),
                test_count=int(test_counts[c]),
                accuracy=accuracies[c],
                predicted_count=int(predicted[c]),
                precision=precise[c],
            )
            for c in range(num_classes)
        ),
    )


def _check_predictions(
    labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray, class_counts: np.ndarray, num_classes: int
) -> None:
    if class_counts.shape != (num_classes,):
        raise ScoreError(f'class_counts has shape {class_counts.shape}, for {num_classes} class_names ({num_classes},)')
    if class_counts.dtype.kind not in 'iu' or (class_counts < 0).any():
        raise ScoreError(f'class_counts must be whole numbers, 0 or more, not {class_counts.tolist()}')
    if labels.ndim != 1 or len(labels) == 0:
        raise ScoreError(f'labels have shape {labels.shape}, where (N,) is needed, of at least one image')
    for name, values in (('predictions', predictions), ('confidences', confidences)):
        if values.shape != labels.shape:
            raise ScoreError(
                f'{name} have shape {values.shape}, the labels {labels.shape}: one of each image is needed'
            )
    for name, values in (('labels', labels), ('predictions', predictions)):
        if values.dtype.kind not in 'iu':
            raise ScoreError(f'{name} are {values.dtype}, where integers are needed')
        if (strange := values[(values < 0) | (values >= num_classes)]).size:
            raise ScoreError(f'{name} hold {strange[0]}, of {num_classes} classes they are 0 to {num_classes - 1}')
    # A nan is in no range; rounding may end above 1.
    if (strange := confidences[~((confidences >= 0) & (confidences <= 1 + 1e-6))]).size:
        raise ScoreError(f'confidences hold {strange[0]}, a probability lies in 0 to 1')


def expected_calibration_error(correct: np.ndarray, confidences: np.ndarray, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins, weighted by their samples, in 0..1.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Eq. 3.

    Args:
        correct: bool, shape (N,).
        confidences: in 0..1, shape (N,).
        bins: how many, of equal width.

    Raises:
        ScoreError: if a confidence is not in 0..1, or there is none.
    """
    correct, confidences = np.asarray(correct), np.asarray(confidences)
    if not len(confidences) or not ((confidences >= 0) & (confidences <= 1 + 1e-6)).all():
        raise ScoreError('confidences must be one or more probabilities, in 0 to 1')
    edges = np.linspace(0, 1, bins + 1)
    gap, _ = np.histogram(confidences, edges, weights=correct - confidences)
    return float(np.abs(gap).sum() / len(confidences))


def shifted_accuracy(scores: Scores, ratios: Sequence[float] = (50, 25, 10, 5, 2)) -> dict[str, float]:
    """Return the accuracy, in percent, that the same predictions have under long-tailed test distributions.

    A forward distribution weighs classes as the training set orders them, r^(-c/(C-1)) from the largest class down;
    a backward one turns the order round. Computed by weighting class accuracies instead of drawing images.

    Source: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition
    (SADE), NeurIPS 2022, section 5.

    Args:
        scores: of a test set; classes without test images are left out.
        ratios: imbalance ratios r of the distributions.

    Returns:
        Keys `forward50` ... `forward2`, `uniform`, `backward2` ... `backward50`.
    """
    tested = [row for row in scores.per_class if row.accuracy is not None]
    tested.sort(key=lambda row: -row.train_count)
    accuracies = np.array([row.accuracy for row in tested], dtype=float)
    position = np.linspace(0, 1, len(tested))
    shifted = {}
    for name, exponent, order in (('forward', -1, ratios), ('backward', 1, tuple(reversed(ratios)))):
        if name == 'backward':
            shifted['uniform'] = float(accuracies.mean())
        for ratio in order:
            shifted[f'{name}{ratio:g}'] = float(np.average(accuracies, weights=float(ratio) ** (exponent * position)))
    return shifted
