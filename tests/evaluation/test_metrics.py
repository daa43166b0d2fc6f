"""Scores against numbers worked out by hand and by plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltzoo.evaluation import (
    ScoreError,
    Scores,
    expected_calibration_error,
    format_scores,
    per_class_csv,
    score,
    shifted_accuracy,
)

COUNTS = np.array([500, 101, 100, 20, 19, 1])
NAMES = [f'class {c}' for c in range(6)]


def make(labels: list[int], predictions: list[int], counts: np.ndarray = COUNTS, **options: int) -> Scores:
    confidences = np.full(len(labels), 0.5, dtype=np.float32)
    return score(np.array(labels), np.array(predictions), confidences, counts, NAMES, **options)


def test_shots_are_means_over_classes_at_the_fields_thresholds() -> None:
    # Class 0: 3 of 4, class 1: 0 of 1, class 2: 1 of 1, class 3: 1 of 2, class 4: 0 of 1, class 5: 2 of 2.
    scores = make([0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 5], [0, 0, 0, 1, 2, 2, 3, 5, 3, 5, 5])
    assert scores.samples == 11
    assert scores.top1 == pytest.approx(100 * 7 / 11)
    assert scores.many == pytest.approx((75 + 0) / 2)
    assert scores.medium == pytest.approx((100 + 50) / 2)
    assert scores.few == pytest.approx((0 + 100) / 2)
    assert scores.balanced_accuracy == pytest.approx((75 + 0 + 100 + 50 + 0 + 100) / 6)
    assert [row.accuracy for row in scores.per_class] == pytest.approx([75, 0, 100, 50, 0, 100])
    assert [row.train_count for row in scores.per_class] == COUNTS.tolist()
    assert [row.test_count for row in scores.per_class] == [4, 1, 1, 2, 1, 2]
    # Class 3 is what one of its own images and the one of class 4 are taken for.
    assert [row.predicted_count for row in scores.per_class] == [3, 1, 2, 2, 0, 3]
    assert [row.precision for row in scores.per_class] == [100, 0, 50, 50, None, pytest.approx(200 / 3)]
    other = make([0, 1, 2], [0, 0, 2], many_above=100, few_below=101)
    assert other.medium is None


def test_a_shot_without_classes_is_none_and_printed_so() -> None:
    counts = np.array([500, 400, 300, 200, 150, 20])
    scores = make([0, 5], [0, 5], counts)
    assert scores.few is None
    text = format_scores({'model': 'm', 'data': 'd', **scores.to_json_dict()})
    assert 'Few            none' in text


def test_a_class_without_test_images_counts_for_nothing() -> None:
    scores = make([0, 1], [0, 5])
    assert scores.per_class[5].accuracy is None
    assert scores.few is None
    assert scores.medium is None
    assert scores.many == 50
    assert scores.balanced_accuracy == 50
    assert per_class_csv({'per_class': scores.to_json_dict()['per_class']}).splitlines()[-1] == '5,class 5,1,0,,1,0.0'


def test_json_keys() -> None:
    values = make([0, 1], [0, 5]).to_json_dict()
    assert list(values) == ['samples', 'top1', 'many', 'medium', 'few', 'balanced_accuracy', 'ece', 'per_class']
    assert values['per_class'][0] == {
        'class': 0, 'name': 'class 0', 'train_count': 500, 'test_count': 1, 'accuracy': 100.0,
        'predicted_count': 1, 'precision': 100.0,
    }  # fmt: skip


def test_calibration_error_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.1, 1, 1000)
    correct = generator.uniform(size=1000) < confidences**2
    total = 0.0
    for low in range(15):
        inside = [i for i in range(1000) if low / 15 <= confidences[i] < (low + 1) / 15]
        if inside:
            gap = np.mean(correct[inside]) - np.mean(confidences[inside])
            total += abs(gap) * len(inside) / 1000
    assert expected_calibration_error(correct, confidences) == pytest.approx(total)
    assert expected_calibration_error(np.array([True, True]), np.array([1.0, 1.0])) == 0


def test_shifted_distributions_weigh_classes() -> None:
    # A model right on the head only is as good as the head's weight.
    scores = make([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0])
    shifted = shifted_accuracy(scores, ratios=(50, 2))
    assert list(shifted) == ['forward50', 'forward2', 'uniform', 'backward2', 'backward50']
    usual = (*(f'forward{r}' for r in (50, 25, 10, 5, 2)), 'uniform', *(f'backward{r}' for r in (2, 5, 10, 25, 50)))
    assert tuple(shifted_accuracy(scores)) == usual
    weights = [50 ** (-c / 5) for c in range(6)]
    assert shifted['forward50'] == pytest.approx(100 * sum(weights[:3]) / sum(weights))
    assert shifted['backward50'] == pytest.approx(100 * sum(weights[3:]) / sum(weights))
    assert shifted['uniform'] == pytest.approx(50)
    reversed_counts = make([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0], COUNTS[::-1].copy())
    assert shifted_accuracy(reversed_counts, ratios=(50, 2))['forward50'] == pytest.approx(shifted['backward50'])


GOOD = {'labels': [0, 1, 2], 'predictions': [0, 2, 2], 'confidences': [0.5, 1, 0], 'class_counts': [9, 5, 1]}


def test_lists_and_tensors_are_scored_as_arrays_are() -> None:
    arrays = {key: np.array(values) for key, values in GOOD.items()}
    expected = score(**arrays, class_names=NAMES[:3])
    assert expected.top1 == pytest.approx(200 / 3)
    assert score(**GOOD, class_names=NAMES[:3]) == expected
    above = {**GOOD, 'confidences': [0.5, 1 + 1e-7, 0]}
    assert score(**above, class_names=NAMES[:3]).ece == expected.ece
    tensors = {key: torch.tensor(values) for key, values in GOOD.items()}
    assert score(**tensors, class_names=NAMES[:3]).per_class == expected.per_class


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'labels': [1, 2, 3]}, 'labels hold 3, of 3 classes they are 0 to 2'),
        ({'predictions': [-1, 0, 0]}, 'predictions hold -1'),
        ({'labels': [0.0, 1.0, 2.0]}, 'labels are float64, where integers are needed'),
        ({'confidences': [50, 100, 0]}, 'confidences hold 50, a probability lies in 0 to 1'),
        ({'confidences': [0.5, np.nan, 1]}, 'confidences hold nan'),
        ({'confidences': [0.5, 1]}, r'confidences have shape \(2,\), the labels \(3,\)'),
        ({'labels': [], 'predictions': [], 'confidences': []}, r'labels have shape \(0,\)'),
        (
            {'class_counts': [0.9, 0.05, 0.05]},
            r'class_counts must be whole numbers, 0 or more, not \[0.9, 0.05, 0.05\]',
        ),
        ({'class_counts': [9, -5, 1]}, r'class_counts must be whole numbers, 0 or more, not \[9, -5, 1\]'),
        ({'class_counts': [9, 5]}, r'class_counts has shape \(2,\), for 3 class_names'),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score(**{**GOOD, **change}, class_names=NAMES[:3])
