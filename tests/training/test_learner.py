"""Losses weighed by class, and factors of the classes' logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ltzoo
from ltzoo.errors import GkpGsaError
from ltzoo.losses import Objective, create_objective
from ltzoo.training.learner import Learner


def test_losses_are_multiplied_by_the_weights_of_their_classes_from_an_epoch_on() -> None:
    class Given(Objective):
        def forward(
            self,
            model: nn.Module,
            views: tuple[torch.Tensor, ...],
            labels: torch.Tensor,
            shares: torch.Tensor | None = None,
        ) -> torch.Tensor:
            return views[0]

    losses, labels = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2])
    weighted = Learner(nn.Identity(), Given(), torch.tensor([0.5, 1.0, 3.0]), 2)
    place = weighted.weights_now.data_ptr()
    for epoch, expected in ((0, [1, 2, 4]), (1, [1, 2, 4]), (2, [3, 1, 12]), (3, [3, 1, 12]), (1, [1, 2, 4])):
        weighted.start_epoch(epoch)
        assert weighted((losses,), labels).tolist() == expected
    # Mixed images weigh as their classes do, by their shares.
    weighted.start_epoch(2)
    shares = torch.tensor([[0, 0.5, 0.5], [1, 0, 0], [0.5, 0, 0.5]])
    assert weighted((losses,), labels, shares).tolist() == [2, 1, 7]
    # In full precision also where the rest of the step has half.
    third = Learner(nn.Identity(), Given(), torch.tensor([1 / 3, 1.0, 3.0]))
    with torch.autocast('cpu', torch.bfloat16):
        assert third((losses,), labels, torch.eye(3)[labels]).equal(third((losses,), labels))
    assert weighted.weights_now.data_ptr() == place, 'a recorded step would read the former'
    assert not weighted.state_dict()
    # A learner that has not been told yet is in its first epoch.
    assert Learner(nn.Identity(), Given(), torch.tensor([0.5, 1.0, 3.0]))((losses,), labels).tolist() == [3, 1, 12]
    assert Learner(nn.Identity(), Given())((losses,), labels) is losses
    # One of all, which weights would make look as one of each.
    with pytest.raises(GkpGsaError, match=r'the losses have shape \(\), where one of each sample is needed, \(3,\)'):
        weighted((losses.mean(),), labels)


def test_scales_multiply_the_logits_and_go_into_the_classifier() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar', num_classes=10).eval()
    learner = Learner(model, create_objective('ce', model, torch.ones(10)), scaled_classes=10)
    images = torch.randn(3, 3, 8, 8)
    plain, scales = model(images), torch.linspace(-0.5, 2, 10)
    with torch.no_grad():
        learner.class_scales.copy_(scales)
    assert torch.equal(model(images), plain)
    for _ in range(2):
        # However often it is said, once.
        learner.scale_logits()
        torch.testing.assert_close(model(images), plain * scales)
    for _ in range(2):
        learner.fold_scales()
        torch.testing.assert_close(model(images), plain * scales)
        assert learner.class_scales.tolist() == [1] * 10
