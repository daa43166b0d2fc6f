"""A step of the training loop around what the optimiser and the method do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import ltzoo
from ltzoo.data.loader import Batch, TrainLoader
from ltzoo.gkpgsa import GkpGsa, GkpGsaSettings, KnowledgePreservation
from ltzoo.losses import create_objective
from ltzoo.training.learner import Learner
from ltzoo.training.loop import Step, train_one_epoch


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


class OneBatch(TrainLoader):
    steps_per_epoch = 1

    def epoch(self, epoch: int) -> Iterator[Batch]:
        yield Batch((torch.zeros(2, 3, 8, 8),), torch.tensor([0, 1]))


@pytest.mark.parametrize(('seconds', 'told'), [(None, 'epoch 3/6:'), (2460.0, 'epoch 3/6, 2:44:00 to go:')])
def test_the_bar_says_how_long_the_run_still_takes(
    capsys: pytest.CaptureFixture[str], seconds: float | None, told: str
) -> None:
    train_one_epoch(
        lambda batch: torch.ones(()),
        OneBatch(),
        Accelerator(cpu=True),
        epoch=2,
        epochs=6,
        batch_size=2,
        learning_rate=0.1,
        seconds_an_epoch=seconds,
    )
    assert told in capsys.readouterr().err
