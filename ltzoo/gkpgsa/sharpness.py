"""Grouped sharpness-aware training, GSA: Eq. 10 to 15; and with other settings SAM and its descendants.

A step asks for the gradient of the loss at perturbed weights. Nothing of a perturbation stays behind: weights are
restored from a copy, never by subtraction, and the network's buffers are those of one ordinary pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltzoo.gkpgsa.direction import Direction, SharpnessError, group_direction, group_radius
from ltzoo.gkpgsa.grouped_weights import GroupedWeights
from ltzoo.gkpgsa.rows import ClassRows, OneHotRows, SampleRows

__all__ = ['GroupedSharpness', 'SharpnessSettings', 'StepReport']

Views = tuple[Tensor, ...]
# Takes views and labels of samples; returns their losses, shape (B,).
Losses = Callable[[Views, Tensor], Tensor]
# Sums a tensor over all processes, in place.
Reduce = Callable[[Tensor], None]
# So many groups share a GPU's arithmetic at once before slices are cheaper there too.
MOST_AT_ONCE = 8


@dataclass(frozen=True)
class SharpnessSettings:
    """What decides a perturbation.

    Args:
        mode: `per_group`, every group's samples see their own perturbed weights (Eq. 14 to 16); `combined`, all see the
            mean of the groups' perturbations, weighted by their share of the batch (the authors' code); `focal`,
            Focal-SAM (Li et al., ICML 2025), where groups have shares of the sharpness and not directions: with
            w_g = (1 - |G_g|/N)^focal_power, one perturbation along the gradient of sum_g w_g L_g, and what that sum
            rises by is added to the loss, focal_weight times.
        direction: see `group_direction`.
        subtract_strength: of direction `subtract`.
        global_gradient: what Eq. 12 projects on: the gradient of the batch, or an exponential moving average of it
            (Friendly-SAM). With one group only the average leaves anything, and it is taken.
        ema_decay: of the averages. They start at zero; those that a direction is taken from without a first pass
            (`ascent: ema`) are divided by what that leaves out.
        scale: Z, the radius as a share of Eq. 13.
        radius: a fixed length of the perturbation in place of Eq. 13, as in SAM.
        radius_by_group: what each group's length is multiplied by, shape (G,); ImbSAM has 0 for head classes.
        clamp: least and greatest length of a perturbation.
        adaptive: power of |theta| that every weight's share is scaled by: 0, or 1 for ASAM (Kwon et al., ICML 2021).
        ascent_views: `first` takes the direction from the first view only, at a third of the cost for BCL.
        ascent: `fresh`, a pass at the weights themselves in every step; a number k, only in every k-th, the
            perturbation being kept in between; `ema`, never: the direction comes from an average of earlier steps.
        regulariser: coefficient of the second term of Eq. 15.
        focal_power, focal_weight: gamma and lambda of mode `focal`; the defaults are its authors' for CIFAR-100-LT.

    Raises:
        SharpnessError: if a setting does not exist or is out of range.
    """

    mode: Literal['per_group', 'combined', 'focal'] = 'per_group'
    direction: Direction = 'residual'
    subtract_strength: float = 1.0
    global_gradient: Literal['batch', 'ema'] = 'batch'
    ema_decay: float = 0.9
    scale: float = 3e-3
    radius: float | None = None
    radius_by_group: tuple[float, ...] | None = None
    clamp: tuple[float, float] | None = None
    adaptive: float = 0.0
    ascent_views: Literal['all', 'first'] = 'all'
    ascent: Literal['fresh', 'ema'] | int = 'fresh'
    regulariser: float = 0.0
    focal_power: float = 3.2
    focal_weight: float = 0.8

    def __post_init__(self) -> None:
        for name, valid in (
            ('mode', ('per_group', 'combined', 'focal')),
            ('direction', ('residual', 'projection', 'full', 'subtract')),
            ('global_gradient', ('batch', 'ema')),
            ('ascent_views', ('all', 'first')),
        ):
            if getattr(self, name) not in valid:
                raise SharpnessError(f'{name}: {getattr(self, name)!r} does not exist; known: {", ".join(valid)}')
        if self.ascent not in ('fresh', 'ema') and not (isinstance(self.ascent, int) and self.ascent >= 1):
            raise SharpnessError(f"ascent: 'fresh', 'ema' or a number of steps, not {self.ascent!r}")
        for name in ('scale', 'radius', 'regulariser', 'adaptive', 'focal_power', 'focal_weight'):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float('inf'):
                raise SharpnessError(f'{name} must be 0 or more, not {value}')
        if not 0 <= self.ema_decay < 1:
            raise SharpnessError(f'ema_decay must be 0 or more and below 1, not {self.ema_decay}')
        if self.mode == 'focal' and self.radius is None:
            raise SharpnessError('mode focal needs radius, the length of its perturbation')
        if self.mode == 'focal' and self.regulariser:
            raise SharpnessError('mode focal has no radius of Eq. 13 to regularise: leave regulariser out')
        if self.mode == 'focal' and (self.ascent != 'fresh' or self.ascent_views != 'all'):
            raise SharpnessError(
                'mode focal takes its direction afresh from all views: leave ascent and ascent_views out'
            )
        if self.clamp is not None and not 0 <= self.clamp[0] <= self.clamp[1]:
            raise SharpnessError(f'clamp must be (least, greatest), not {self.clamp}')


@dataclass(frozen=True)
class StepReport:
    """What a step leaves to be logged, on the device.

    Attributes:
        loss: mean loss of this process's samples in the pass at the weights themselves; where there is none, or not
            of all views, in the perturbed pass.
        perturbed_loss: their mean loss at the perturbed weights.
        length: of the perturbation that each group's samples saw, shape (G,).
        grad_norm: norm of the gradient that the optimiser gets.
        regulariser: value of the second term of Eq. 15, summed over groups (without its coefficient).
    """

    loss: Tensor
    perturbed_loss: Tensor
    length: Tensor
    grad_norm: Tensor
    regulariser: Tensor


@dataclass
class _Layout:
    """The trainable parameters as one flat vector, each in the order in which it lies in memory.

    So the vector's pieces are the parameters' tensors, channels-last or not, without a copy.
    """

    parameters: list[nn.Parameter]
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = [p.numel() for p in self.parameters]

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.parameters[0].dtype, torch.float32)

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return (d,) of one tensor per parameter; None counts as zero."""
        longest = max((n for t, n in zip(tensors, self.sizes, strict=True) if t is None), default=0)
        zeros = torch.zeros(longest, device=self.parameters[0].device, dtype=self.dtype)
        return torch.cat(
            [
                zeros[:n] if t is None else t.permute(_order(p)).reshape(-1).to(self.dtype)
                for t, n, p in zip(tensors, self.sizes, self.parameters, strict=True)
            ]
        )

    @torch.no_grad()
    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Return one tensor per parameter, in the parameter's type and layout, which share the vector's memory."""
        tensors = []
        for piece, p in zip(vector.split(self.sizes), self.parameters, strict=True):
            order = _order(p)
            back = [order.index(dim) for dim in range(p.ndim)]
            tensors.append(piece.view([p.shape[dim] for dim in order]).permute(back).to(p.dtype))
        return tensors


def _order(x: Tensor) -> list[int]:
    """Return the dimensions from the one with the widest step in memory to the one with the narrowest."""
    return sorted(range(x.ndim), key=x.stride, reverse=True)


class GroupedSharpness:
    """The gradient at weights perturbed group by group.

    Args:
        module: whose trainable parameters are perturbed and get the gradient.
        class_groups: group of every class, int64, shape (C,).
        group_samples: training samples of every group, |G_g|, shape (G,).
        settings: see `SharpnessSettings`.
        reduce: sums a tensor over all processes, in place; None with one process.
        processes: how many there are.
        static_shapes: whether every tensor of a step has a shape that does not depend on the groups' samples in the
            batch, and the host never waits for the device to learn them; see `ltzoo.gkpgsa.grouped_weights`. By default
            on GPUs, with up to 8 groups.

    Raises:
        SharpnessError: if the settings do not suit the groups.
    """

    def __init__(
        self,
        module: nn.Module,
        class_groups: Tensor,
        group_samples: Tensor,
        settings: SharpnessSettings | None = None,
        *,
        reduce: Reduce | None = None,
        processes: int = 1,
        static_shapes: bool | None = None,
    ) -> None:
        self.module = module
        self.static_shapes = static_shapes
        self.settings = settings or SharpnessSettings()
        self.layout = _Layout([p for p in module.parameters() if p.requires_grad])
        self.reduce = reduce
        self.processes = processes
        self.steps = 0
        self.groups = 0
        self.class_groups: Tensor
        self.group_samples: Tensor
        self.global_average: Tensor | None = None
        self.group_averages: Tensor | None = None
        # What the groups' averages have of 1 by now, as they start at zero; the last is the global one's.
        self.seen: Tensor | None = None
        self.kept: Tensor | None = None
        self.set_groups(class_groups, group_samples)

    def set_groups(self, class_groups: Tensor, group_samples: Tensor) -> None:
        """Change the groups; what was kept of the former groups' directions is dropped.

        As many groups as before take the former ones' place in memory, so that a recorded step goes on.

        Raises:
            SharpnessError: if there is no group, or `radius_by_group` has another number of them.
        """
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
        factors = self.settings.radius_by_group
        if self.groups < 1 or (factors is not None and len(factors) != self.groups):
            raise SharpnessError(f'radius_by_group has {len(factors or ())} entries, there are {self.groups} groups')
        self.factors = torch.ones(self.groups, device=device) if factors is None else torch.tensor(factors).to(device)
        self.group_averages = self.seen = None
        self.kept = None

    def step(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        *,
        loss_scale: Tensor | float = 1.0,
        autocast: Callable[[], Any] | None = None,
    ) -> StepReport:
        """Put the gradient of Eq. 14 to 16 into the parameters' `grad`, as an ordinary backward pass would.

        Args:
            losses: the objective; its forward pass runs on `module`. With `ascent_views='first'` it is also called
                with the first view alone.
            pieces: views and labels of this process's samples, cut up if the batch does not fit at once.
            loss_scale: what the loss is multiplied by for fp16; the gradient keeps it.
            autocast: makes the context of the forward passes.
        """
        first_only = self.settings.ascent_views == 'first'
        total = sum(len(labels) for _, labels in pieces)
        if not self.static:
            pieces = [self._sorted(views, labels) for views, labels in pieces]
        run = _Run(self, autocast, loss_scale, total)
        theta = self.layout.flatten([p.detach() for p in self.layout.parameters])
        if self.settings.mode == 'focal':
            return self._focal_step(run, losses, pieces, theta)
        shares = run.shares([labels for _, labels in pieces])

        fresh = self.settings.ascent == 'fresh' or (
            isinstance(self.settings.ascent, int) and (self.kept is None or self.steps % self.settings.ascent == 0)
        )
        loss = None
        if fresh:
            used = [((views[0],), labels) if first_only else (views, labels) for views, labels in pieces]
            with _buffers_kept(self.module) if first_only else _as_is():
                loss, by_group, rest = run.shared(losses, used, None)
            if first_only:
                loss = None
            perturbation, report = self._perturbation(theta, by_group / loss_scale, rest / loss_scale, shares)
            self.kept = perturbation if isinstance(self.settings.ascent, int) else None
        elif self.settings.ascent == 'ema':
            perturbation, report = self._from_averages(theta, shares)
        else:
            assert self.kept is not None
            lengths = self.kept.norm(dim=1)
            perturbation, report = self.kept, (lengths, self._regulariser(theta.norm(), lengths))

        with _buffers_kept(self.module) if loss is not None else _as_is():
            if self.settings.mode == 'per_group':
                perturbed_loss, by_group, rest = run.per_group(losses, pieces, theta, perturbation)
            else:
                combined = shares @ perturbation
                report = (combined.norm().expand(self.groups), report[1])
                if self.settings.ascent == 'ema':
                    perturbed_loss, by_group, rest = run.shared(losses, pieces, theta + combined)
                else:
                    perturbed_loss, (gradient,) = run.whole(losses, pieces, theta + combined)
                    by_group, rest = gradient[None], torch.zeros_like(gradient)
        if self.settings.ascent == 'ema':
            self._average(by_group / loss_scale, rest / loss_scale, shares)
        gradient = by_group.sum(0) + rest
        lengths, regulariser = report
        if self.settings.regulariser:
            gradient = gradient + self.settings.regulariser * regulariser * loss_scale * theta / theta.square().sum()
        self._set_grad(gradient, run.used)
        self.steps += 1
        loss = perturbed_loss if loss is None else loss
        return StepReport(loss, perturbed_loss, lengths, gradient.norm() / loss_scale, regulariser)

    def ordinary_step(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        *,
        loss_scale: Tensor | float = 1.0,
        autocast: Callable[[], Any] | None = None,
    ) -> StepReport:
        """Put the gradient at the weights themselves into `grad`; arguments as for `step`."""
        run = _Run(self, autocast, loss_scale, sum(len(labels) for _, labels in pieces))
        loss, (gradient,) = run.whole(losses, pieces, None)
        self._set_grad(gradient, run.used)
        nothing = torch.zeros(self.groups, device=gradient.device)
        return StepReport(loss, loss, nothing, gradient.norm() / loss_scale, nothing.sum())

    def _focal_step(
        self, run: _Run, losses: Losses, pieces: Sequence[tuple[Views, Tensor]], theta: Tensor
    ) -> StepReport:
        """Focal-SAM (arXiv:2505.01660): two forward and three backward passes, however many groups."""
        settings = self.settings
        assert settings.radius is not None
        focus = (1 - self.group_samples / self.group_samples.sum()) ** settings.focal_power
        loss, (gradient, focused) = run.whole(losses, pieces, None, (None, focus))
        norm = focused.norm()
        # Where nothing rises, or half precision overflowed, nothing is perturbed.
        reaches = (norm > 0) & norm.isfinite()
        perturbation = torch.where(reaches, focused * (settings.radius / torch.where(reaches, norm, 1)), 0)
        with _buffers_kept(self.module):
            perturbed_loss, (perturbed,) = run.whole(losses, pieces, theta + perturbation, (focus,))
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
            'kept': self.kept,
            'class_groups': self.class_groups,
            'group_samples': self.group_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_groups(state['class_groups'], state['group_samples'])
        device = self.class_groups.device
        self.steps = state['steps']
        for name in ('global_average', 'group_averages', 'seen', 'kept'):
            # A copy: averages are updated in place.
            setattr(self, name, None if state[name] is None else state[name].to(device, copy=True))

    @property
    def static(self) -> bool:
        """Whether a step's shapes are static, see `static_shapes`."""
        if self.static_shapes is not None:
            return self.static_shapes
        return self.class_groups.device.type != 'cpu' and self.groups <= MOST_AT_ONCE

    def _set_grad(self, gradient: Tensor, used: set[int]) -> None:
        """Put the gradient into `grad`; what the loss does not use has none, so that weight decay passes it by."""
        for i, (p, g) in enumerate(zip(self.layout.parameters, self.layout.unflatten(gradient), strict=True)):
            if i in used:
                p.grad = g if p.grad is None else p.grad + g

    def _sorted(self, views: Views, labels: Tensor) -> tuple[Views, Tensor]:
        order = self.class_groups[labels].argsort(stable=True)
        return tuple(view[order] for view in views), labels[order]

    def _perturbation(
        self, theta: Tensor, by_group: Tensor, rest: Tensor, shares: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (G, d), and what is reported, of the groups' shares of the gradient."""
        batch_gradient = by_group.sum(0) + rest
        reference = self._global_gradient(batch_gradient)
        means = _group_means(by_group, rest, shares)
        return self._bounded(theta, means, reference, shares)

    def _from_averages(self, theta: Tensor, shares: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.group_averages is None or self.global_average is None or self.seen is None:
            nothing = torch.zeros(self.groups, len(theta), device=theta.device, dtype=theta.dtype)
            return nothing, (nothing[:, 0], nothing[0, 0])
        # A group that was in no batch yet has no direction.
        known = torch.where(self.seen[:-1] > 0, shares, 0)
        seen = torch.where(self.seen > 0, self.seen, 1)
        return self._bounded(theta, self.group_averages / seen[:-1, None], self.global_average / seen[-1], known)

    def _bounded(
        self, theta: Tensor, means: Tensor, reference: Tensor, shares: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        settings = self.settings
        direction = group_direction(means, reference, settings.direction, settings.subtract_strength)
        direction = torch.where((shares > 0)[:, None], direction, 0)
        # ASAM: the perturbation is rho T^2 v / |T v| with T = |theta|; T v takes the place of v in the radius too.
        stretch = theta.abs() ** settings.adaptive if settings.adaptive else None
        if stretch is not None:
            direction = direction * stretch
        norm = direction.norm(dim=1)
        theta_norm = theta.norm()
        if settings.radius is not None:
            length = torch.where(norm > 0, settings.radius, 0.0).to(norm.dtype)
        else:
            radius = group_radius(theta_norm, norm, len(theta), self.group_samples, settings.scale)
            length = len(theta) ** 0.5 * radius
        if settings.clamp is not None:
            length = torch.where(norm > 0, length.clamp(*settings.clamp), 0)
        length = length * self.factors
        regulariser = self._regulariser(theta_norm, length)
        if stretch is not None:
            direction = direction * stretch
        perturbation = direction * (length / torch.where(norm > 0, norm, 1))[:, None]
        # An overflow in half precision must not reach the weights; the loss scaler skips the step.
        perturbation = torch.where(perturbation.isfinite().all(1, keepdim=True), perturbation, 0)
        return perturbation, (perturbation.norm(dim=1), regulariser)

    def _regulariser(self, theta_norm: Tensor, length: Tensor) -> Tensor:
        """Return the second term of Eq. 15, summed over groups; one not perturbed has no radius to divide by."""
        rho = length / sum(self.layout.sizes) ** 0.5
        by_group = theta_norm / (2 * (self.group_samples.clamp(min=2) - 1).sqrt() * torch.where(rho > 0, rho, 1))
        return torch.where(rho > 0, by_group, 0).sum()

    def _global_gradient(self, batch_gradient: Tensor) -> Tensor:
        if self.settings.global_gradient == 'batch' and self.groups > 1:
            return batch_gradient
        if self.global_average is None:
            self.global_average = torch.zeros_like(batch_gradient)
        self._follow(self.global_average, batch_gradient, batch_gradient.isfinite().all())
        return self.global_average

    def _follow(self, average: Tensor, new: Tensor, where: Tensor) -> None:
        """Update an exponential average, in place, so that a recorded step finds it again."""
        decay = self.settings.ema_decay
        average.copy_(torch.where(where, decay * average + (1 - decay) * new, average))

    def _average(self, by_group: Tensor, rest: Tensor, shares: Tensor) -> None:
        """Update the averages of a run without first passes; a group that is not in the batch keeps its own."""
        whole = by_group.sum(0) + rest
        means = _group_means(by_group, rest, shares)
        if self.group_averages is None or self.global_average is None or self.seen is None:
            self.group_averages, self.global_average = torch.zeros_like(means), torch.zeros_like(whole)
            self.seen = torch.zeros(self.groups + 1, device=means.device, dtype=means.dtype)
        good = torch.cat([(shares > 0) & means.isfinite().all(1), whole.isfinite().all()[None]])
        self._follow(self.group_averages, means, good[:-1, None])
        self._follow(self.global_average, whole, good[-1])
        self._follow(self.seen, torch.ones_like(self.seen), good)


def _group_means(by_group: Tensor, rest: Tensor, shares: Tensor) -> Tensor:
    """Return each group's own mean gradient (G, d) of its part of the batch's; for a group not in it, the rest."""
    return by_group / torch.where(shares > 0, shares, 1)[:, None] + rest


@dataclass
class _Run:
    """The passes of one step; every one returns the mean loss and its gradient, summed over processes."""

    of: GroupedSharpness
    autocast: Callable[[], Any] | None
    loss_scale: Tensor | float
    total: int
    # Places of the parameters that a loss used, and which groups are in the batch, over all pieces and processes.
    used: set[int] = field(default_factory=set)
    present: Tensor | None = None

    def shares(self, labels: list[Tensor]) -> Tensor:
        """Return each group's share of the batch over all processes, shape (G,)."""
        groups = torch.cat([self.of.class_groups[part] for part in labels])
        counts = torch.zeros(self.of.groups, device=groups.device, dtype=self.of.layout.dtype)
        counts.index_add_(0, groups, torch.ones(len(groups), device=groups.device, dtype=counts.dtype))
        shares = self.reduced(counts / self.total)
        self.present = shares > 0
        return shares

    def shared(
        self, losses: Losses, pieces: Sequence[tuple[Views, Tensor]], theta: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Same weights for all (those of the module if `theta` is None): gradient by group (G, d), and the rest."""
        layout = self.of.layout
        if self.of.groups == 1:
            mean, (gradient,) = self.whole(losses, pieces, theta)
            return mean, gradient[None], torch.zeros_like(gradient)
        values = [p.detach() for p in layout.parameters] if theta is None else layout.unflatten(theta)
        slots = self.of.groups + 1
        weights = [[v.detach().requires_grad_() for _ in range(slots)] for v in values]
        return self._grouped(losses, pieces, weights, shared=True)

    def per_group(
        self, losses: Losses, pieces: Sequence[tuple[Views, Tensor]], theta: Tensor, perturbation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every group at its own weights: gradient by group (G, d), and the rest."""
        layout = self.of.layout
        if self.of.groups == 1:
            return self.shared(losses, pieces, theta + perturbation[0])
        own = [layout.unflatten(theta + epsilon) for epsilon in perturbation]
        rest = [p.detach() for p in layout.parameters]
        weights = [
            [by_group[i].detach().requires_grad_() for by_group in own] + [rest[i].detach().requires_grad_()]
            for i in range(len(rest))
        ]
        return self._grouped(losses, pieces, weights, shared=False)

    def whole(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        theta: Tensor | None,
        weightings: Sequence[Tensor | None] = (None,),
    ) -> tuple[Tensor, list[Tensor]]:
        """Everything at the weights `theta` (those of the module if None).

        Args:
            weightings: what each group's losses count, shape (G,), None for 1.

        Returns:
            The mean loss, unweighted, and the gradient (d,) of each weighting's.
        """
        layout = self.of.layout
        device = layout.parameters[0].device
        mean = torch.zeros((), device=device)
        gradients = [torch.zeros(sum(layout.sizes), device=device, dtype=layout.dtype) for _ in weightings]
        with _as_is() if theta is None else _weights(layout, theta):
            for views, labels in pieces:
                with self.context():
                    values = losses(views, labels)
                groups = self.of.class_groups[labels]
                for i, (gradient, weights) in enumerate(zip(gradients, weightings, strict=True)):
                    weighted = values if weights is None else values * weights[groups]
                    loss = weighted.sum() / self.total * self.loss_scale
                    last = i + 1 == len(weightings)
                    grads = torch.autograd.grad(loss, layout.parameters, allow_unused=True, retain_graph=not last)
                    self.used.update(i for i, g in enumerate(grads) if g is not None)
                    gradient += layout.flatten(grads)
                mean += values.detach().sum() / self.total
        return mean, [self.reduced(gradient) for gradient in gradients]

    def _grouped(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        weights: list[list[Tensor]],
        shared: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of, layout = self.of, self.of.layout
        slots = of.groups + 1
        mean = torch.zeros((), device=of.class_groups.device)
        gradient: Tensor | None = None
        for views, labels in pieces:
            by_parameter: dict[Tensor, Sequence[Tensor]] = dict(zip(layout.parameters, weights, strict=True))
            with self.context(), GroupedWeights(by_parameter, *self.rows(labels), shared=shared) as mode:
                values = losses(tuple(mode.mark(view) for view in views), labels)
                loss = values.sum() / self.total
            leaves = [leaf for leaf_list in weights for leaf in leaf_list]
            grads = torch.autograd.grad(loss * self.loss_scale, leaves, allow_unused=True)
            self.used.update(i // slots for i, g in enumerate(grads) if g is not None)
            rows = torch.stack([layout.flatten(grads[slot::slots]) for slot in range(slots)])
            gradient = rows if gradient is None else gradient + rows
            mean += loss.detach()
        assert gradient is not None
        gradient = self.reduced(gradient)
        return mean, gradient[:-1], gradient[-1]

    def rows(self, labels: Tensor) -> tuple[SampleRows, ClassRows] | tuple[OneHotRows, OneHotRows]:
        """Return which group samples and classes belong to; a class whose group is not in the batch is in none."""
        assert self.present is not None
        of, slots = self.of, self.of.groups + 1
        groups = of.class_groups[labels]
        class_slots = torch.where(self.present[of.class_groups], of.class_groups, of.groups)
        if of.static:
            return OneHotRows(groups, of.groups), OneHotRows(class_slots, slots)
        samples = torch.bincount(groups, minlength=of.groups)
        return SampleRows((*samples.tolist(), 0)), ClassRows(class_slots, slots)

    def reduced(self, x: Tensor) -> Tensor:
        """Return the mean over processes, as DistributedDataParallel gives it."""
        if self.of.reduce is not None:
            self.of.reduce(x)
            x /= self.of.processes
        return x

    def context(self) -> Any:
        return _as_is() if self.autocast is None else self.autocast()


@contextmanager
def _as_is() -> Iterator[None]:
    yield


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Run a pass that leaves running statistics as they are."""
    buffers = list(module.buffers())
    copies = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)


@contextmanager
def _weights(layout: _Layout, theta: Tensor) -> Iterator[None]:
    """Run a pass at other weights; the module's own come back from a copy."""
    copies = [p.detach().clone() for p in layout.parameters]
    with torch.no_grad():
        for p, value in zip(layout.parameters, layout.unflatten(theta), strict=True):
            p.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, copy in zip(layout.parameters, copies, strict=True):
                p.copy_(copy)
