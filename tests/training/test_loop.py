"""A step of the training loop around what the optimiser and the method do."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from ltzoo.data.loader import Batch
from ltzoo.training.loop import Step


@pytest.mark.parametrize('skipped', [False, True])
def test_a_step_that_the_loss_scaler_leaves_out_pulls_nothing(skipped: bool) -> None:
    optimizer = MagicMock(step_was_skipped=skipped, param_groups=[{'lr': 0.1}])
    method = MagicMock()
    step = Step(nn.Linear(2, 2), optimizer, MagicMock(scaler=None), method=method)
    step(Batch((torch.ones(3, 2),), torch.zeros(3, dtype=torch.int64), torch.arange(3)))
    optimizer.step.assert_called_once()
    assert method.after_step.call_count == (not skipped)
