"""A step of the training loop around what the optimiser and the method do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import ltzoo
from ltzoo.data.loader import Batch
from ltzoo.gkpgsa import GkpGsa, GkpGsaSettings, KnowledgePreservation
from ltzoo.losses import create_objective
from ltzoo.training.learner import Learner
from ltzoo.training.loop import Step


class Scaled(torch.optim.SGD):
    """An optimiser as Accelerate prepares it for fp16: a step whose gradients overflowed is left out."""

    step_was_skipped = False

    def step(self, closure: None = None) -> None:
        if not self.step_was_skipped:
            super().step()


@pytest.mark.parametrize('skipped', [False, True])
def test_a_step_that_the_loss_scaler_leaves_out_pulls_nothing(skipped: bool) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar', num_classes=2).eval()
    learner = Learner(model, create_objective('ce', model, torch.tensor([3, 1])))
    settings = GkpGsaSettings(group_by='frequency', groups=2, sharpness=None, alpha_start=None, alpha_end=None)
    method = GkpGsa(learner, model, torch.tensor([3, 1]), np.array([0, 0, 0, 1]), 2, settings)
    method.preservation = KnowledgePreservation(strength=10.0)
    for _ in range(2):
        zeros = {name: torch.zeros_like(p) for name, p in method.encoder.items()}
        method.preservation.add(zeros, {name: torch.ones_like(p) for name, p in method.encoder.items()})
    optimizer = Scaled(learner.parameters(), lr=0.1)
    optimizer.step_was_skipped = skipped
    before = {name: p.detach().clone() for name, p in method.encoder.items()}
    step = Step(learner, optimizer, Accelerator(cpu=True), method=method)
    step(Batch((torch.zeros(2, 3, 8, 8),), torch.tensor([0, 1])))
    after = {name: p.detach() for name, p in method.encoder.items()}
    if skipped:
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    else:
        # Learning rate x lambda x (G - 1) x the sum of Fisher is 0.1 x 10 x 1 x 2: a third of the weights is left.
        weight = 'layer1.0.conv1.weight'
        assert after[weight].norm().item() == pytest.approx(before[weight].norm().item() / 3, rel=0.1)
