"""Grouped sharpness-aware training, GSA: Eq. 10 to 15; and with other settings SAM and its descendants.

A step asks for the gradient of the loss at perturbed weights. Nothing of a perturbation stays behind: weights are
restored from a copy, never by subtraction, and the network's buffers are those of one ordinary pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.direction import group_direction, group_radius
from ltzoo.gkpgsa.flat import FlatParameters
from ltzoo.gkpgsa.passes import Losses, Passes, Views, buffers_kept
from ltzoo.gkpgsa.rows import RowsForm
from ltzoo.gkpgsa.settings import SharpnessSettings

__all__ = ['GroupedSharpness', 'StepReport']

# As many as the paper tries (Figures 5 and 7). The arithmetic grows with their number, which that of slices does not.
MOST_AT_ONCE = 10


@dataclass(frozen=True)
class StepReport:
    """What a step leaves to be logged, on the device.

    Attributes:
        loss: mean loss of this process's samples in the pass at the weights themselves; where there is none, or not
            of all views, in the perturbed pass.
        perturbed_loss: their mean loss at the perturbed weights.
        length: of the perturbation that each group's samples saw, shape (G,).
        grad_norm: norm of the gradient that the optimiser gets.
        regulariser: value of the second term of Eq. 15, summed over the groups that are perturbed in this batch
            (without its coefficient).
    """

    loss: Tensor
    perturbed_loss: Tensor
    length: Tensor
    grad_norm: Tensor
    regulariser: Tensor


class GroupedSharpness:
    """The gradient at weights perturbed group by group.

    Args:
        module: whose trainable parameters are perturbed and get the gradient.
        class_groups: group of every class, int64, shape (C,).
        group_samples: training samples of every group, |G_g|, shape (G,).
        settings: see `SharpnessSettings`.
        rows_form: how samples of different groups are told apart (`ltzoo.gkpgsa.rows`). With `one_hot` and `sorted` no
            shape depends on the groups' samples in the batch. With `one_hot` the host never waits for the device to
            learn them, so that a step can be recorded; it costs the arithmetic of as many passes as there are groups.
            With `sorted` a step can be compiled. Both hold for up to 10 groups (mode `focal`: any number), and not
            where directions are refreshed now and then (`ascent` a number): there rows are `sliced`.

    Raises:
        GkpGsaError: if nothing of the module is trained, there is no group, or `radius_by_group` has another number of
            them.
    """

    def __init__(
        self,
        module: nn.Module,
        class_groups: Tensor,
        group_samples: Tensor,
        settings: SharpnessSettings | None = None,
        *,
        rows_form: RowsForm = 'sliced',
    ) -> None:
        self.module = module
        self.rows_form = rows_form
        self.settings = settings or SharpnessSettings()
        self.layout = FlatParameters([p for p in module.parameters() if p.requires_grad])
        if not self.layout.parameters:
            raise GkpGsaError('nothing of the module is trained: there is nothing to perturb')
        self.steps = 0
        self.groups = 0
        self.class_groups: Tensor
        self.group_samples: Tensor
        self.global_average: Tensor | None = None
        self.group_averages: Tensor | None = None
        # What the groups' averages have of 1 by now, as they start at zero; the last is the global one's.
        self.seen: Tensor | None = None
        # The perturbation of each group when it was last in a batch with a first pass, and its length as in Eq. 13.
        self.kept: tuple[Tensor, Tensor] | None = None
        self.set_groups(class_groups, group_samples)

    def set_groups(self, class_groups: Tensor, group_samples: Tensor) -> None:
        """Change the groups; what was kept of the former groups' directions is dropped.

        As many groups as before take the former ones' place in memory, so that a replayed step goes on.

        Raises:
            GkpGsaError: if there is no group, or `radius_by_group` has another number of them.
        """
        factors = self.settings.radius_by_group
        if len(group_samples) < 1:
            raise GkpGsaError('there must be at least one group')
        if factors is not None and len(factors) != len(group_samples):
            raise GkpGsaError(f'radius_by_group has {len(factors)} entries, there are {len(group_samples)} groups')
        if len(group_samples) == self.groups:
            self.class_groups.copy_(class_groups)
            self.group_samples.copy_(group_samples)
            if self.group_averages is not None and self.seen is not None:
                self.group_averages.zero_()
                self.seen[:-1] = 0
            self.kept = None
            return
        device = self.layout.parameters[0].device
        self.class_groups = class_groups.to(device, copy=True)
        self.group_samples = group_samples.to(device, copy=True)
        self.groups = len(group_samples)
        self.factors = torch.ones(self.groups, device=device) if factors is None else torch.tensor(factors).to(device)
        self.group_averages = self.seen = None
        self.kept = None

    def step(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        *,
        perturbed: bool = True,
        loss_scale: Tensor | float = 1.0,
        autocast: Callable[[], Any] = nullcontext,
    ) -> StepReport:
        """Put the gradient of Eq. 14 to 16 into the parameters' `grad`, as an ordinary backward pass would.

        Args:
            losses: the objective; its forward pass runs on `module`. With `ascent_views='first'` it is also called
                with the first view alone.
            pieces: views and labels of this process's samples, cut up if the batch does not fit at once.
            perturbed: False for the gradient at the weights themselves.
            loss_scale: what the loss is multiplied by for fp16; the gradient keeps it.
            autocast: makes the context of the forward passes.

        Returns:
            What there is to log, on the device.

        Raises:
            GkpGsaError: if the losses are not one of each sample, shape (B,), or the network brings weights to
                activations whose first dimension is not the samples.
        """
        form: RowsForm = self.rows_form if self.static else 'sliced'
        if perturbed and form != 'one_hot':
            pieces = [self._sorted(views, labels) for views, labels in pieces]
        run = Passes(losses, pieces, self.layout, self.class_groups, self.groups, form, autocast, loss_scale)
        if not perturbed:
            return self._ordinary(run)
        theta = self.layout.flatten([p.detach() for p in self.layout.parameters])
        return self._focal(run, theta) if self.settings.mode == 'focal' else self._grouped(run, theta)

    def _grouped(self, run: Passes, theta: Tensor) -> StepReport:
        first_only, loss_scale = self.settings.ascent_views == 'first', run.loss_scale
        shares = run.shares()

        fresh = self.settings.ascent == 'fresh' or (
            isinstance(self.settings.ascent, int) and (self.kept is None or self.steps % self.settings.ascent == 0)
        )
        loss = None
        if fresh:
            with buffers_kept(self.module) if first_only else nullcontext():
                loss, by_group, rest = run.shared(None, first_view=first_only)
            if first_only:
                loss = None
            perturbation, length = self._perturbation(theta, by_group / loss_scale, rest / loss_scale, shares)
            if isinstance(self.settings.ascent, int):
                self._keep(perturbation, length, shares)
        elif self.settings.ascent == 'ema':
            perturbation, length = self._from_averages(theta, shares)
        else:
            assert self.kept is not None
            there = shares > 0
            perturbation, length = torch.where(there[:, None], self.kept[0], 0), torch.where(there, self.kept[1], 0)
        lengths, regulariser = perturbation.norm(dim=1), self._regulariser(theta.norm(), length)

        with buffers_kept(self.module) if loss is not None else nullcontext():
            if self.settings.mode == 'per_group':
                perturbed_loss, by_group, rest = run.per_group(theta, perturbation, apart=self.settings.ascent == 'ema')
            else:
                combined = shares @ perturbation
                lengths = combined.norm().expand(self.groups)
                if self.settings.ascent == 'ema':
                    perturbed_loss, by_group, rest = run.shared(theta + combined)
                else:
                    perturbed_loss, (gradient,) = run.whole(theta + combined)
                    by_group, rest = gradient[None], torch.zeros_like(gradient)
        if self.settings.ascent == 'ema':
            self._average(by_group / loss_scale, rest / loss_scale, shares)
        gradient = by_group.sum(0) + rest
        if self.settings.regulariser:
            gradient = gradient + self.settings.regulariser * regulariser * loss_scale * theta / theta.square().sum()
        self._set_grad(gradient, run.used)
        self.steps += 1
        loss = perturbed_loss if loss is None else loss
        return StepReport(loss, perturbed_loss, lengths, gradient.norm() / loss_scale, regulariser)

    def _ordinary(self, run: Passes) -> StepReport:
        loss, (gradient,) = run.whole(None)
        self._set_grad(gradient, run.used)
        nothing = torch.zeros(self.groups, device=gradient.device)
        return StepReport(loss, loss, nothing, gradient.norm() / run.loss_scale, nothing.sum())

    def _focal(self, run: Passes, theta: Tensor) -> StepReport:
        """Focal-SAM (arXiv:2505.01660): two forward and three backward passes, however many groups."""
        settings = self.settings
        assert settings.radius is not None
        focus = (1 - self.group_samples / self.group_samples.sum()) ** settings.focal_power
        loss, (gradient, focused) = run.whole(None, (None, focus))
        norm = focused.norm()
        # Where nothing rises, or half precision overflowed, nothing is perturbed.
        reaches = (norm > 0) & norm.isfinite()
        perturbation = torch.where(reaches, focused * (settings.radius / torch.where(reaches, norm, 1)), 0)
        with buffers_kept(self.module):
            perturbed_loss, (perturbed,) = run.whole(theta + perturbation, (focus,))
        gradient = gradient + settings.focal_weight * (perturbed - focused)
        self._set_grad(gradient, run.used)
        self.steps += 1
        lengths = perturbation.norm().expand(self.groups)
        return StepReport(loss, perturbed_loss, lengths, gradient.norm() / run.loss_scale, torch.zeros_like(norm))

    def state_dict(self) -> dict[str, Any]:
        return {
            'steps': self.steps,
            'global_average': self.global_average,
            'group_averages': self.group_averages,
            'seen': self.seen,
            'kept_perturbation': self.kept,
            'class_groups': self.class_groups,
            'group_samples': self.group_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_groups(state['class_groups'], state['group_samples'])
        device = self.class_groups.device
        self.steps = state['steps']
        for name in ('global_average', 'group_averages', 'seen'):
            # A copy: averages are updated in place.
            setattr(self, name, None if state[name] is None else state[name].to(device, copy=True))
        if (kept := state['kept_perturbation']) is not None:
            self.kept = (kept[0].to(device), kept[1].to(device))

    @property
    def static(self) -> bool:
        """Whether all perturbed steps do the same work, in tensors of the same shapes, see `rows_form`."""
        alike = self.settings.ascent in ('fresh', 'ema')
        return self.rows_form != 'sliced' and alike and (self.settings.mode == 'focal' or self.groups <= MOST_AT_ONCE)

    def _set_grad(self, gradient: Tensor, used: set[int]) -> None:
        """Put the gradient into `grad`; what the loss does not use has none, so that weight decay passes it by."""
        for i, (p, g) in enumerate(zip(self.layout.parameters, self.layout.unflatten(gradient), strict=True)):
            if i in used:
                p.grad = g if p.grad is None else p.grad + g

    def _sorted(self, views: Views, labels: Tensor) -> tuple[Views, Tensor]:
        order = self.class_groups[labels].argsort(stable=True)
        return tuple(view[order] for view in views), labels[order]

    def _perturbation(self, theta: Tensor, by_group: Tensor, rest: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return (G, d), and its length as in Eq. 13, of the groups' shares of the gradient."""
        batch_gradient = by_group.sum(0) + rest
        reference = self._global_gradient(batch_gradient)
        means = _group_means(by_group, rest, shares)
        return self._bounded(theta, means, reference, shares)

    def _keep(self, perturbation: Tensor, length: Tensor, shares: Tensor) -> None:
        """Keep the perturbations of this batch's groups; a group that is not in it keeps its former one."""
        if self.kept is not None:
            there = shares > 0
            perturbation = torch.where(there[:, None], perturbation, self.kept[0])
            length = torch.where(there, length, self.kept[1])
        self.kept = perturbation, length

    def _from_averages(self, theta: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        if self.group_averages is None or self.global_average is None or self.seen is None:
            nothing = torch.zeros(self.groups, len(theta), device=theta.device, dtype=theta.dtype)
            return nothing, nothing[:, 0]
        # A group that was in no batch yet has no direction.
        known = torch.where(self.seen[:-1] > 0, shares, 0)
        seen = torch.where(self.seen > 0, self.seen, 1)
        return self._bounded(theta, self.group_averages / seen[:-1, None], self.global_average / seen[-1], known)

    def _bounded(self, theta: Tensor, means: Tensor, reference: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        direction = group_direction(means, reference, settings.direction)
        direction = torch.where((shares > 0)[:, None], direction, 0)
        # ASAM: the perturbation is rho T^2 v / |T v| with T = |theta|; T v takes the place of v in the radius too.
        stretch = theta.abs() ** settings.adaptive if settings.adaptive else None
        if stretch is not None:
            direction = direction * stretch
        norm = direction.norm(dim=1)
        if settings.radius is not None:
            length = torch.where(norm > 0, settings.radius, 0.0).to(norm.dtype)
        else:
            radius = group_radius(theta.norm(), norm, len(theta), self.group_samples, settings.scale)
            length = len(theta) ** 0.5 * radius
        if settings.clamp is not None:
            length = torch.where(norm > 0, length.clamp(*settings.clamp), 0)
        length = length * self.factors
        if stretch is not None:
            direction = direction * stretch
        perturbation = direction * (length / torch.where(norm > 0, norm, 1))[:, None]
        # An overflow in half precision must not reach the weights; the loss scaler skips the step.
        perturbation = torch.where(perturbation.isfinite().all(1, keepdim=True), perturbation, 0)
        return perturbation, length

    def _regulariser(self, theta_norm: Tensor, length: Tensor) -> Tensor:
        """Return the second term of Eq. 15, summed over groups; one not perturbed has no radius to divide by."""
        rho = length / sum(self.layout.sizes) ** 0.5
        by_group = theta_norm / (2 * (self.group_samples.clamp(min=2) - 1).sqrt() * torch.where(rho > 0, rho, 1))
        return torch.where(rho > 0, by_group, 0).sum()

    def _global_gradient(self, batch_gradient: Tensor) -> Tensor:
        if self.settings.direction == 'full':
            # Which nothing is taken away from.
            return batch_gradient
        if self.settings.global_gradient == 'batch' and self.groups > 1:
            # The average that a single group falls back on would be an old one when it is alone again.
            self.global_average = None
            return batch_gradient
        if self.global_average is None:
            self.global_average = torch.zeros_like(batch_gradient)
        self._follow(self.global_average, batch_gradient, batch_gradient.isfinite().all(), self.settings.ema_decay)
        return self.global_average

    @staticmethod
    def _follow(average: Tensor, new: Tensor, where: Tensor, decay: float) -> None:
        """Update an exponential average, in place, so that a replayed step finds it again."""
        average.copy_(torch.where(where, decay * average + (1 - decay) * new, average))

    def _average(self, by_group: Tensor, rest: Tensor, shares: Tensor) -> None:
        """Update the averages of a run without first passes; a group that is not in the batch keeps its own."""
        whole = by_group.sum(0) + rest
        means = _group_means(by_group, rest, shares)
        if self.group_averages is None or self.global_average is None or self.seen is None:
            self.group_averages, self.global_average = torch.zeros_like(means), torch.zeros_like(whole)
            self.seen = torch.zeros(self.groups + 1, device=means.device, dtype=means.dtype)
        good = torch.cat([(shares > 0) & means.isfinite().all(1), whole.isfinite().all()[None]])
        # The average of the only group is the global one, which leaves nothing of it: its last gradient is kept.
        alone = self.groups == 1 and self.settings.direction in ('residual', 'subtract')
        decay = 0.0 if alone else self.settings.ema_decay
        self._follow(self.group_averages, means, good[:-1, None], decay)
        self._follow(self.global_average, whole, good[-1], self.settings.ema_decay)
        self._follow(self.seen[:-1], torch.ones_like(self.seen[:-1]), good[:-1], decay)
        self._follow(self.seen[-1], torch.ones_like(self.seen[-1]), good[-1], self.settings.ema_decay)


def _group_means(by_group: Tensor, rest: Tensor, shares: Tensor) -> Tensor:
    """Return the gradient of each group's mean loss, (G, d).

    Its share of the batch's gradient is divided by its share of the samples; the rest is every group's.
    """
    return by_group / torch.where(shares > 0, shares, 1)[:, None] + rest
