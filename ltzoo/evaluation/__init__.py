"""Evaluation: predictions, the scores of long-tailed recognition, and reports of them."""

from ltzoo.evaluation.evaluate import EvaluationError, evaluate_model, resolve_model
from ltzoo.evaluation.metrics import ClassScore, Scores, expected_calibration_error, score, shifted_accuracy
from ltzoo.evaluation.predict import PredictionError, Predictions, predict, predict_files
from ltzoo.evaluation.report import format_scores, per_class_csv, plot_accuracy

__all__ = [
    'ClassScore',
    'EvaluationError',
    'PredictionError',
    'Predictions',
    'Scores',
    'evaluate_model',
    'expected_calibration_error',
    'format_scores',
    'per_class_csv',
    'plot_accuracy',
    'predict',
    'predict_files',
    'resolve_model',
    'score',
    'shifted_accuracy',
]
