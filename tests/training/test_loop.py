"""A step of the training loop around what the optimiser and the method do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

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


@pytest.mark.parametrize('grouped', [False, True])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_the_gradient_of_a_step_is_clipped_as_a_whole(grouped: bool, accumulation: int) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar', num_classes=2).eval()
    learner = Learner(model, create_objective('ce', model, torch.tensor([3, 1])))
    settings = GkpGsaSettings(group_by='frequency', groups=2, preservation=None)
    labels = np.array([0, 0, 0, 1])
    method = GkpGsa(learner, model, torch.tensor([3, 1]), labels, 2, settings) if grouped else None
    before = [p.detach().clone() for p in learner.parameters()]
    step = Step(
        learner,
        Scaled(learner.parameters(), lr=1.0),
        Accelerator(cpu=True),
        method=method,
        accumulation=accumulation,
        clip_grad_norm=1e-3,
    )
    step(Batch((torch.randn(4, 3, 8, 8),), torch.from_numpy(labels)))
    moved = [p.detach() - was for p, was in zip(learner.parameters(), before, strict=True)]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(1e-3, rel=1e-2)


class OneBatch(TrainLoader):
    def __init__(self, steps: int = 1) -> None:
        self.steps_per_epoch = steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for _ in range(self.steps_per_epoch):
            yield Batch((torch.zeros(2, 3, 8, 8),), torch.tensor([0, 1]))


def test_an_epoch_says_its_mean_loss_and_how_fast_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr('ltzoo.training.loop.time', SimpleNamespace(perf_counter=itertools.count(7.0, 4.0).__next__))
    log = train_one_epoch(
        lambda batch: torch.tensor(next(losses)),
        OneBatch(3),
        Accelerator(cpu=True),
        epoch=0,
        epochs=1,
        batch_size=2,
        learning_rate=0.1,
        progress=False,
    )
    assert (log.loss, log.seconds, log.samples_per_second) == (3.0, 4.0, 1.5)


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
