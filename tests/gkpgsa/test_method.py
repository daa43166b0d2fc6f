"""The method as a whole, on a small network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ltzoo
from ltzoo.gkpgsa.method import GkpGsa, GkpGsaError, GkpGsaSettings, PreservationSettings
from ltzoo.gkpgsa.quality import feature_quality
from ltzoo.gkpgsa.sharpness import SharpnessSettings
from ltzoo.losses import create_objective
from ltzoo.training.learner import Learner

CLASSES = 4
COUNTS = torch.tensor([24, 8, 4, 2])
LABELS = torch.repeat_interleave(torch.arange(CLASSES), COUNTS)


class Run:
    """Trains a small ViT on random images; every epoch is one batch of them all."""

    def __init__(self, epochs: int = 4, **settings: Any) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(len(LABELS), 3, 8, 8) + LABELS[:, None, None, None]
        model = ltzoo.create_model(
            'timm/vit_tiny_patch16_224', num_classes=CLASSES, img_size=8, patch_size=4, embed_dim=12, depth=1,
            num_heads=2,
        )  # fmt: skip
        self.learner = Learner(model, create_objective('logit_adjusted', model, COUNTS)).train()
        self.optimizer = torch.optim.SGD(self.learner.parameters(), lr=0.1, momentum=0.9)
        options: dict[str, Any] = {'groups': 2, 'first_grouping': 1, 'regroup_every': 1}
        self.method = GkpGsa(
            self.learner, model, COUNTS, LABELS.numpy(), epochs, GkpGsaSettings(**{**options, **settings}),
            log_prior=self.learner.objective.logit_adjustment,
        )  # fmt: skip

    def samples(self, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.from_numpy(indices)
        yield self.images[rows], LABELS[rows]

    def epoch(self, epoch: int) -> dict[str, Any]:
        self.method.start_epoch(epoch)
        order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(19):
            self.method.step(self.learner.forward, [((self.images[rows],), LABELS[rows])])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.method.after_step(0.1)
        return self.method.end_epoch(epoch, self.samples)

    @property
    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.learner.parameters()).detach()


def test_without_radius_strength_and_weighting_it_is_the_base_method() -> None:
    run = Run(
        sharpness=SharpnessSettings(scale=0.0), preservation=PreservationSettings(strength=0.0),
        alpha_start=None, alpha_end=None,
    )  # fmt: skip
    base = Run()
    for epoch in range(3):
        run.epoch(epoch)
        for rows in torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(epoch)).split(19):
            base.learner((base.images[rows],), LABELS[rows]).mean().backward()
            base.optimizer.step()
            base.optimizer.zero_grad()
    torch.testing.assert_close(run.weights, base.weights, rtol=1e-4, atol=1e-5)


def test_a_strong_penalty_holds_the_encoder_at_its_anchors() -> None:
    run = Run(sharpness=None, preservation=PreservationSettings(strength=1e6))
    run.epoch(0)
    run.epoch(1)
    penalty = run.method.preservation
    assert penalty is not None
    centre = penalty.state_dict()['centre']
    least = penalty.penalty(centre).item()
    before = penalty.penalty(run.method.encoder).item() - least
    run.method.start_epoch(2)
    run.method.step(run.learner.forward, [((run.images,), LABELS)])
    run.optimizer.step()
    run.method.after_step(0.1)
    assert penalty.penalty(run.method.encoder).item() - least < 1e-3 * before
    assert run.weights.isfinite().all()


def test_the_gradient_form_adds_the_gradient_of_the_penalty() -> None:
    run = Run(sharpness=None, preservation=PreservationSettings(strength=50.0, form='gradient'))
    run.epoch(0)
    run.epoch(1)
    run.method.start_epoch(2)
    alpha = run.method.alpha
    assert 0.6 < alpha < 0.95
    names = dict(run.learner.model.named_parameters())
    loss = run.learner((run.images,), LABELS).mean()
    assert run.method.preservation is not None
    whole = alpha * loss + run.method.preservation.penalty(names, alpha)
    expected = torch.autograd.grad(whole, list(names.values()))
    run.method.step(run.learner.forward, [((run.images,), LABELS)])
    for p, e in zip(names.values(), expected, strict=True):
        torch.testing.assert_close(p.grad, e, rtol=1e-3, atol=1e-5)
    before = run.weights
    run.method.after_step(0.1)
    assert torch.equal(run.weights, before)


def test_the_log_shows_whether_terms_are_inert() -> None:
    run = Run()
    run.epoch(0)
    assert run.method.sharp
    log = run.epoch(1)
    assert sum(log['group_sizes']) == CLASSES
    assert len(log['perturbation']) >= 1
    log = run.epoch(2)
    assert log['penalty_to_loss_gradient'] > 0
    assert min(log['perturbation']) > 0


def test_quality_is_that_of_the_features_of_the_first_pass() -> None:
    run = Run(sharpness=None, preservation=None)
    run.method.start_epoch(0)
    model = run.learner.model
    features = model.forward_head(model.forward_features(run.images), pre_logits=True)
    run.method.step(run.learner.forward, [((run.images,), LABELS)])
    assert run.method.quality is not None
    torch.testing.assert_close(
        run.method.quality.compute(), feature_quality(features, LABELS, CLASSES), rtol=1e-5, atol=1e-6
    )


def test_state_goes_on_bit_for_bit() -> None:
    whole = Run()
    for epoch in range(4):
        whole.epoch(epoch)
    cut = Run()
    for epoch in range(2):
        cut.epoch(epoch)
    again = Run()
    for name in ('learner', 'optimizer', 'method'):
        getattr(again, name).load_state_dict(copy.deepcopy(getattr(cut, name).state_dict()))
    for epoch in range(2, 4):
        again.epoch(epoch)
    assert torch.equal(whole.weights, again.weights)
    assert torch.equal(whole.method.class_groups, again.method.class_groups)


@pytest.mark.parametrize(
    ('group_by', 'groups'), [('none', [0, 0, 0, 0]), ('class', [0, 1, 2, 3]), ('frequency', [0, 0, 1, 1])]
)
def test_groups_that_need_no_bank(group_by: str, groups: list[int]) -> None:
    run = Run(group_by=group_by, preservation=None)
    assert run.method.class_groups.tolist() == groups
    assert run.method.sharp
    run.epoch(0)
    assert not run.method.bank.epochs


def test_without_groups_all_are_held_to_one_anchor() -> None:
    run = Run(group_by='none', sharpness=None, preservation=PreservationSettings(grouped=False))
    run.epoch(0)
    assert run.method.preservation is not None
    assert run.method.preservation.groups == 1
    moved = {name: p + 0.1 for name, p in run.method.encoder.items()}
    assert run.method.preservation.penalty(moved) > 0


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(GkpGsaError, match="group_by: 'size' does not exist"):
        GkpGsaSettings(group_by='size')  # type: ignore[arg-type]
    with pytest.raises(GkpGsaError, match='radius_by_group needs groups that stay'):
        GkpGsaSettings(sharpness=SharpnessSettings(radius_by_group=(0.0, 1.0)))
    with pytest.raises(GkpGsaError, match='given both or not at all'):
        GkpGsaSettings(alpha_end=None)
    with pytest.raises(GkpGsaError, match='snapshots=disk needs a folder'):
        Run(snapshots='disk')
