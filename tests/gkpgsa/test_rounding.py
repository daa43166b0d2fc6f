"""What rounding to bf16 leaves of a perturbation that is shorter than the rounding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ltzoo
from ltzoo.gkpgsa.settings import SharpnessSettings
from ltzoo.gkpgsa.sharpness import GroupedSharpness


@pytest.mark.parametrize('scale', [1e-2, 3e-3])
def test_a_short_perturbation_still_raises_the_loss_in_bf16(scale: float) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(48, 3, 32, 32), torch.arange(48) % 4

    def rise(autocast: Callable[[], Any]) -> tuple[float, float]:
        model = ltzoo.create_model('resnet32_cifar_bcl', pretrained=True).train()
        classes = torch.arange(100) % 4
        engine = GroupedSharpness(model, classes, torch.full((4,), 2000), SharpnessSettings(scale=scale))

        def losses(views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
            return F.cross_entropy(model(views[0]).float(), labels, reduction='none')

        report = engine.step(losses, [((images,), labels)], autocast=autocast)
        lost = [(p.detach().bfloat16().float() - p.detach()).norm() for p in model.parameters() if p.ndim > 1]
        rounding = torch.stack(lost).norm()
        assert report.length.max() < rounding
        return float(report.perturbed_loss - report.loss), float(report.length.mean())

    whole, length = rise(nullcontext)
    rounded, same = rise(partial(torch.autocast, 'cpu', torch.bfloat16))
    assert whole > 0
    assert rounded == pytest.approx(whole, rel=0.05)
    assert same == pytest.approx(length, rel=0.05)
