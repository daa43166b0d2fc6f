"""One small trained run for all tools, and how they are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from in_process import ROOT, Script, run


@pytest.fixture(scope='session')
def script() -> Script:
    return run


@pytest.fixture
def clock() -> Callable[..., Callable[[], float]]:
    """Return a function that winds a clock: read before and after each measurement, it has them take `seconds`.

    Between two of them it goes on by 100; `before` is how far it goes on at each reading that comes before them. Where
    they end, it goes on by 2 whenever it is read.
    """

    def wind(*seconds: float, before: Sequence[float] = ()) -> Callable[[], float]:
        measured = (gap for taken in seconds for gap in (100.0, taken))
        return itertools.accumulate(itertools.chain(before, measured, itertools.repeat(2.0))).__next__

    return wind


@pytest.fixture(scope='session')
def digits_run(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that is better than chance and worse than perfect."""
    run = tmp_path_factory.mktemp('runs') / 'digits'
    recipe = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml'
    options = ['model.name=resnet20_cifar', 'batch_size=8', 'optimizer.lr=0.05', 'schedule.warmup_epochs=0']
    assert script('recipes/train.py', recipe, *options, 'epochs=1', f'output={run}', '--no-progress') == 0
    return run
