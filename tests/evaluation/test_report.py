"""Tables, CSV and plot of scores."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltzoo.evaluation import format_scores, per_class_csv, plot_accuracy, score, shifted_accuracy

SHOTS = {'many_above': 100, 'few_below': 20}
NAMES = ('cat', 'dog, small', 'a "quoted" one', 'never tested')
COUNTS = np.array([200, 60, 30, 25])


@pytest.fixture
def results() -> dict[str, Any]:
    """Four classes without a Few-shot one, the last without test images: 3 of 4, 1 of 2 and 2 of 2 are right."""
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predictions = np.array([0, 0, 0, 1, 1, 0, 2, 2])
    scores = score(labels, predictions, np.full(8, 0.75), COUNTS, NAMES)
    return {'model': 'net', 'data': 'pets', **SHOTS, **scores.to_json_dict(), 'shifted': shifted_accuracy(scores)}


def test_the_table_shows_every_score_and_none_for_an_empty_shot(results: dict[str, Any]) -> None:
    title, *lines = format_scores(results).splitlines()
    assert title == 'net on pets'
    shown = {line.split()[0]: line.split()[1] for line in lines}
    assert shown.pop('top-1') == '75.00'
    assert shown.pop('Many') == '75.00'
    assert shown.pop('Medium') == '75.00'
    assert shown.pop('Few') == 'none'
    assert shown.pop('balanced') == '75.00'
    # Every confidence is 0.75, and so is the accuracy.
    assert shown.pop('ECE') == '0.00'
    assert shown == {name: f'{value:.2f}' for name, value in results['shifted'].items()}
    assert '8 images' in lines[0]


def test_the_csv_reads_back_as_it_was(results: dict[str, Any]) -> None:
    rows = list(csv.DictReader(per_class_csv(results).splitlines()))
    read = [
        {
            'class': int(row['class']),
            'name': row['name'],
            'train_count': int(row['train_count']),
            'test_count': int(row['test_count']),
            'accuracy': float(row['accuracy']) if row['accuracy'] else None,
            'predicted_count': int(row['predicted_count']),
            'precision': float(row['precision']) if row['precision'] else None,
        }
        for row in rows
    ]
    assert read == results['per_class']
    assert [row['accuracy'] for row in read] == [75.0, 50.0, 100.0, None]


def test_results_of_before_have_a_table_too(results: dict[str, Any]) -> None:
    for row in results['per_class']:
        del row['predicted_count'], row['precision']
    assert per_class_csv(results).splitlines()[1:] == [
        '0,cat,200,4,75.0,,',
        '1,"dog, small",60,2,50.0,,',
        '2,"a ""quoted"" one",30,2,100.0,,',
        '3,never tested,25,0,,,',
    ]


@pytest.mark.parametrize('counts', [COUNTS, np.array([0, 5, 3, 1])], ids=['no few', 'only few, one untrained'])
def test_the_plot_has_a_point_for_every_tested_class(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: np.ndarray
) -> None:
    figure_module = pytest.importorskip('matplotlib.figure')
    drawn: list[Any] = []
    savefig = figure_module.Figure.savefig

    def keep_and_save(figure: Any, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(figure_module.Figure, 'savefig', keep_and_save)
    scores = score(np.array([0, 1, 1, 2]), np.array([0, 1, 0, 2]), np.full(4, 0.5), counts, NAMES)
    plot_accuracy({'model': 'net', 'data': 'pets', **SHOTS, **scores.to_json_dict()}, str(tmp_path / 'plot.png'))
    with Image.open(tmp_path / 'plot.png') as image:
        assert image.format == 'PNG'
        assert image.width > 500
        assert len(set(image.convert('L').resize((90, 60)).tobytes())) > 2
    (axes,) = drawn[0].axes
    points = {tuple(point) for group in axes.collections for point in getattr(group, 'get_offsets', list)()}
    assert {(counts[0], 100.0), (counts[1], 50.0), (counts[2], 100.0)} <= points
    assert axes.get_xlim()[0] <= min(counts[:3]), 'a class is drawn outside the axes'


def test_a_plot_that_cannot_be_written_leaves_the_earlier_one(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('matplotlib')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    (tmp_path / 'plot.png').write_bytes(b'earlier')
    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(os, 'fsync', full)
        plot_accuracy(results, tmp_path / 'plot.png')
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        plot_accuracy(results, tmp_path / 'plot.xyz')
    assert (tmp_path / 'plot.png').read_bytes() == b'earlier'
    assert os.listdir(tmp_path) == ['plot.png']
