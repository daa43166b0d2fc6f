"""The schedule of alpha against Eq. 20 by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ltzoo.errors import LtzooError
from ltzoo.gkpgsa.schedule import ScheduleError, alpha_schedule


def test_values_of_the_paper() -> None:
    assert alpha_schedule(0, 200) == pytest.approx(0.95, abs=1e-15)
    assert alpha_schedule(100, 200) == pytest.approx(0.775, abs=1e-15)
    assert alpha_schedule(200, 200) == pytest.approx(0.6, abs=1e-15)
    # cos(pi / 3) = 1 / 2 and cos(3 pi / 4) = -sqrt(1 / 2).
    assert alpha_schedule(30, 90) == pytest.approx(0.6 + 0.35 * 0.75, abs=1e-15)
    assert alpha_schedule(75, 100) == pytest.approx(0.6 + 0.35 * (1 - math.sqrt(0.5)) / 2, abs=1e-15)


def test_the_last_epoch_is_just_short_of_the_end() -> None:
    alphas = [alpha_schedule(epoch, 90) for epoch in range(90)]
    assert alphas == sorted(alphas, reverse=True) and len(set(alphas)) == 90
    assert 0.6 < alphas[-1] < 0.6002


def test_it_can_rise_or_stay() -> None:
    assert alpha_schedule(1, 4, start=0.0, end=1.0) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert alpha_schedule(3, 7, start=0.5, end=0.5) == 0.5
    assert alpha_schedule(0.5, 1, start=1.0, end=0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ({'epoch': -1, 'epochs': 10}, 'epoch '),
        ({'epoch': 11, 'epochs': 10}, 'epoch '),
        ({'epoch': math.nan, 'epochs': 10}, 'epoch '),
        ({'epoch': 0, 'epochs': 0}, 'epochs '),
        ({'epoch': 0, 'epochs': math.inf}, 'epochs '),
        ({'epoch': 0, 'epochs': 10, 'start': 1.2}, 'start '),
        ({'epoch': 0, 'epochs': 10, 'end': -0.1}, 'end '),
        ({'epoch': 0, 'epochs': 10, 'end': math.nan}, 'end '),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ScheduleError, match=f'^{named}') as caught:
        alpha_schedule(**arguments)
    assert isinstance(caught.value, LtzooError) and isinstance(caught.value, ValueError)
