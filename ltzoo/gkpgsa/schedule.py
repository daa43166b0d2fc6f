"""How the weight moves from acquiring knowledge to preserving it.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv 2603.21217), Eq. 20.
"""

from __future__ import annotations

import math

from ltzoo.errors import LtzooError

__all__ = ['ScheduleError', 'alpha_schedule']


class ScheduleError(LtzooError, ValueError):
    """A point or an end of the schedule that lies outside its range."""


def alpha_schedule(epoch: float, epochs: int, start: float = 0.95, end: float = 0.6) -> float:
    """Return alpha of Eq. 16, the weight of the sharpness objective; preservation has 1 - alpha.

    It falls from `start` along half a cosine: end + (start - end) (1 + cos(pi epoch / epochs)) / 2, Eq. 20.

    Args:
        epoch: counted from 0, whole or fractional. The last epoch, epochs - 1, is just short of `end`, which
            epoch = epochs would have.
        epochs: length of the training, T.
        start, end: alpha at epoch 0 and at epoch T, within 0 and 1.

    Raises:
        ScheduleError: if an argument is out of range.
    """
    if not 1 <= epochs < math.inf:
        raise ScheduleError(f'epochs must be at least 1, not {epochs}')
    if not 0 <= epoch <= epochs:
        raise ScheduleError(f'epoch must lie between 0 and epochs = {epochs}, not {epoch}')
    for name, value in (('start', start), ('end', end)):
        if not 0 <= value <= 1:
            raise ScheduleError(f'{name} of alpha must lie between 0 and 1, not {value}')
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2
