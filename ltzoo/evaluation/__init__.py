"""Evaluation: predictions, the scores of long-tailed recognition, and reports of them."""

from ltzoo.evaluation.adjust import adjust_logits, tau_normalize
from ltzoo.evaluation.evaluate import evaluate_model
from ltzoo.evaluation.metrics import (
    ClassScore,
    ScoreError,
    Scores,
    expected_calibration_error,
    score,
    shifted_accuracy,
)
from ltzoo.evaluation.predict import PredictionError, Predictions, predict, predict_files
from ltzoo.evaluation.report import format_scores, per_class_csv, plot_accuracy, predictions_csv
from ltzoo.evaluation.trained_on import EvaluationError, resolve_model

__all__ = [
    'ClassScore',
    'EvaluationError',
    'PredictionError',
    'Predictions',
    'ScoreError',
    'Scores',
    'adjust_logits',
    'evaluate_model',
    'expected_calibration_error',
    'format_scores',
    'per_class_csv',
    'plot_accuracy',
    'predict',
    'predict_files',
    'predictions_csv',
    'resolve_model',
    'score',
    'shifted_accuracy',
    'tau_normalize',
]
