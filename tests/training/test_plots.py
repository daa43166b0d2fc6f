"""The plot of a log shows what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltzoo.training.plots import plot_curves


@pytest.mark.parametrize('epochs', [1, 3])
def test_a_log_of_any_length_is_seen(epochs: int, tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    plot_curves([{'epoch': i, 'loss': 1.0 + i, 'lr': 0.1} for i in range(epochs)], tmp_path / 'curves.png')
    pixels = np.asarray(Image.open(tmp_path / 'curves.png').convert('RGB'))
    # Matplotlib's blue: the loss, as a point or as a line.
    assert (pixels == (31, 119, 180)).all(2).sum() > 10


def test_what_the_hold_out_scored_is_drawn_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr('ltzoo.training.plots.save_figure', lambda figure, path: figures.append(figure))
    log: list[dict[str, Any]] = [{'epoch': i, 'loss': 3.0 - i, 'lr': 0.1 / (i + 1)} for i in range(3)]
    for i, top1 in ((0, 20.0), (2, 40.0)):
        log[i]['holdout'] = {'top1': top1, 'balanced_accuracy': top1 / 2, 'many': 50.0, 'medium': None, 'few': 10.0}
    plot_curves(log, tmp_path / 'curves.png')
    loss, accuracy, rate = figures[0].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert drawn == {
        'top1': [[1, 20], [3, 40]],
        'balanced accuracy': [[1, 10], [3, 20]],
        'many': [[1, 50], [3, 50]],
        'few': [[1, 10], [3, 10]],
    }
    assert loss.lines[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert rate.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.05, 0.1 / 3])
