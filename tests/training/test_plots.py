"""The plot of a log shows what is in it."""

from __future__ import annotations

from pathlib import Path

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
