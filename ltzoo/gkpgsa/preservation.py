"""Grouped knowledge preservation: every group's important parameters are held near that group's anchor.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv 2603.21217), Eq. 4 (elastic weight
consolidation), 5 and 6 (its grouped form), and their sum over groups in Eq. 16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ltzoo.errors import GkpGsaError

__all__ = ['KnowledgePreservation', 'Normalisation']

Normalisation = Literal['none', 'mean', 'max']


class KnowledgePreservation:
    """The penalty of Eq. 6 summed over groups, at a cost per step that does not depend on their number.

    Group g is held to the anchors of all others, so the sum of Eq. 16 counts every anchor G - 1 times. With
    A = sum_j F_j and B = sum_j F_j theta*_j it is a single quadratic,

        lambda (G - 1) / 2 sum_i A_i (theta_i - B_i / A_i)^2 + constant,

    and A, the centre B / A and the constant are all that is kept. With `add` only one anchor is in memory at a time.
    Centre and constant are updated as a weighted mean and variance are, without a difference of large numbers.

    Args:
        strength: lambda.
        normalisation: 'mean' or 'max' scales the sum of Fisher diagonals so that its mean or maximum over all
            parameters is 1, which makes `strength` comparable between networks and estimators. Ours, not the paper's.
        counts_others: whether an anchor counts G - 1 times; if not, once, as in Eq. 4.

    Attributes:
        groups: how many were added, G.

    Raises:
        GkpGsaError: if a setting is out of range.
    """

    def __init__(
        self, strength: float = 1.0, normalisation: Normalisation = 'none', *, counts_others: bool = True
    ) -> None:
        if not 0 <= strength < math.inf:
            raise GkpGsaError(f'strength must be finite and at least 0, not {strength}')
        if normalisation not in get_args(Normalisation):
            raise GkpGsaError(
                f'normalisation must be one of {", ".join(get_args(Normalisation))}, not {normalisation!r}'
            )
        self.strength = strength
        self.normalisation = normalisation
        self.groups = 0
        self.counts_others = counts_others
        self._importance: dict[str, Tensor] = {}
        self._centre: dict[str, Tensor] = {}
        self._spread = 0.0
        self._scale = 1.0

    @torch.no_grad()
    def add(self, anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], size: float | None = None) -> None:
        """Add a group.

        Args:
            anchor: theta*_j, in any precision and on any device.
            fisher: F_j: the mean over the group's samples of squared gradients, which is the F_j / |G_j| of Eq. 6 if
                F_j is their sum; not negative, with the anchor's names and shapes.
            size: |G_j|, by which F_j is divided once more: the reading of the authors' code. None for not at all.

        Raises:
            GkpGsaError: if names or shapes differ, from each other or from those of the groups so far, a value
                is not finite or a Fisher value negative, or the size is not above 0. Nothing is added then.
        """
        if size is not None and not 0 < size < math.inf:
            raise GkpGsaError(f'the size of a group must be finite and above 0, not {size}')
        _check_group(anchor, fisher, self._importance or fisher)
        if not self.groups:
            for name, value in fisher.items():
                zeros = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
                self._importance[name], self._centre[name] = zeros, zeros.clone()
        spread = []
        for name, importance in self._importance.items():
            added = fisher[name].to(importance)
            if size is not None:
                added = added / size
            before = importance.clone()
            importance += added
            share = torch.where(importance > 0, added / importance, 0)
            move = anchor[name].to(importance) - self._centre[name]
            spread.append((before * share * move * move).sum(dtype=torch.float64))
            self._centre[name] += share * move
        self._spread += math.fsum(torch.stack(spread).tolist())
        self.groups += 1
        self._rescale()

    def penalty(self, params: Mapping[str, Tensor], weight: float = 1.0) -> Tensor:
        """Return weight x sum_g L_gkp^g, Eq. 16: 0-d, float64, differentiable in the parameters.

        Args:
            params: the present parameters by name; others than those preserved are ignored.
            weight: 1 - alpha of Eq. 20.

        Raises:
            GkpGsaError: if a preserved parameter is missing or of another shape, type or device, or the weight
                is not within 0 and 1.
        """
        values, importance, centre = self._matched(params)
        factor = self._factor(weight)
        if factor == 0:
            return torch.zeros((), dtype=torch.float64, device=values[0].device if values else None)
        # Importance is multiplied in between: where it is 0, a difference whose square overflows still counts 0.
        sums = [
            ((value - c) * a * (value - c)).sum(dtype=torch.float64)
            for value, a, c in zip(values, importance, centre, strict=True)
        ]
        return factor / 2 * (torch.stack(sums).sum() + self._spread)

    @torch.no_grad()
    def gradient(self, params: Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
        """Return the gradient of `penalty`, weight x lambda (G - 1) (A theta - B), without an autograd graph.

        Gradient descent on it diverges where learning rate x `curvature` is too large: for training take
        `proximal_step`.

        Raises:
            GkpGsaError: as `penalty`.
        """
        values, importance, centre = self._matched(params)
        factor = self._factor(weight)
        if factor == 0:
            return {name: torch.zeros_like(value) for name, value in zip(self._importance, values, strict=True)}
        gradients = torch._foreach_sub(values, centre)
        torch._foreach_mul_(gradients, importance)
        torch._foreach_mul_(gradients, _within(factor, importance[0].dtype))
        return dict(zip(self._importance, gradients, strict=True))

    def curvature(self, weight: float = 1.0) -> float:
        """Return the largest second derivative of `penalty`, weight x lambda (G - 1) max A: of its stiffest parameter.

        On the penalty alone, gradient descent with momentum m is stable up to learning rate x curvature 2 (1 + m), with
        Nesterov momentum up to 2 (1 + m) / (1 + 2 m).

        Raises:
            GkpGsaError: if the weight is not within 0 and 1.
        """
        if not self._importance:
            return 0.0
        # The host waits for the device once.
        return self._factor(weight) * torch.stack([value.max() for value in self._importance.values()]).max().item()

    @torch.no_grad()
    def proximal_step(self, params: Mapping[str, Tensor], step: float) -> None:
        """Move the parameters, in place, to the minimum of |theta - theta_now|^2 / 2 + step x penalty.

        That is theta <- (theta + s B) / (1 + s A) with s = step lambda (G - 1): each parameter moves towards its
        centre by the share s A / (1 + s A), so it never passes it, for any lambda. To be called after the optimiser.

        Args:
            params: as for `penalty`.
            step: learning rate x (1 - alpha).

        Raises:
            GkpGsaError: as `penalty`, or if the step is negative or not finite.
        """
        if not 0 <= step < math.inf:
            raise GkpGsaError(f'step must be finite and at least 0, not {step}')
        values, importance, centre = self._matched(params)
        factor = step * self._factor(1.0)
        if factor == 0:
            return
        # The share as 1 / (1 + 1 / sA) is right where sA is 0 and where it overflows: 0 and 1.
        shares = torch._foreach_mul(importance, _within(factor, importance[0].dtype))
        torch._foreach_reciprocal_(shares)
        torch._foreach_add_(shares, 1.0)
        torch._foreach_reciprocal_(shares)
        torch._foreach_lerp_(values, centre, shares)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KnowledgePreservation:
        """Move what is kept to a device and a floating-point type, those of the parameters; return self."""
        for kept in (self._importance, self._centre):
            for name, value in kept.items():
                kept[name] = value.to(device=device, dtype=dtype)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what was added so far, as tensors and numbers; the settings belong to the constructor."""
        return {
            'importance': dict(self._importance),
            'centre': dict(self._centre),
            'spread': self._spread,
            'groups': self.groups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned in the place of what was added so far, on the devices it lies on."""
        self._importance = {name: value.clone() for name, value in state['importance'].items()}
        self._centre = {name: value.clone() for name, value in state['centre'].items()}
        self._spread = float(state['spread'])
        self.groups = int(state['groups'])
        self._rescale()

    def _rescale(self) -> None:
        if self.normalisation == 'none' or not self._importance:
            return
        values = self._importance.values()
        if self.normalisation == 'mean':
            total = math.fsum(value.sum(dtype=torch.float64).item() for value in values)
            size = total / sum(value.numel() for value in values)
        else:
            size = max(value.max().item() for value in values)
        self._scale = 1 / size if size > 0 else 1.0

    def _factor(self, weight: float) -> float:
        if not 0 <= weight <= 1:
            raise GkpGsaError(f'weight must lie between 0 and 1, not {weight}')
        times = max(self.groups - 1, 0) if self.counts_others else min(self.groups, 1)
        return _within(weight * self.strength * self._scale * times, torch.float64)

    def _matched(self, params: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        values = []
        for name, importance in self._importance.items():
            if name not in params:
                raise GkpGsaError(f'parameter {name} is preserved but not among those given')
            value = params[name]
            if value.shape != importance.shape or value.dtype != importance.dtype or value.device != importance.device:
                raise GkpGsaError(
                    f'parameter {name} is {_kind(value)}, but what is preserved of it is {_kind(importance)}; '
                    f'device and type are changed by to()'
                )
            values.append(value)
        return values, list(self._importance.values()), list(self._centre.values())


def _check_group(anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    if not fisher:
        raise GkpGsaError('a Fisher diagonal must have at least one parameter, this has none')
    for kind, tensors in (('Fisher diagonal', fisher), ('anchor', anchor)):
        if tensors.keys() != like.keys():
            name = min(tensors.keys() ^ like.keys())
            raise GkpGsaError(f'{kind} and the rest must have the same parameters; {name} is only in one')
        for name, value in tensors.items():
            if value.shape != like[name].shape:
                raise GkpGsaError(
                    f'{kind} of {name} must have shape {tuple(like[name].shape)}, not {tuple(value.shape)}'
                )
            if not value.isfinite().all() or (tensors is fisher and (value < 0).any()):
                least = ' and at least 0' if tensors is fisher else ''
                raise GkpGsaError(f'{kind} of {name} must be finite{least} everywhere')


def _kind(value: Tensor) -> str:
    return f'{value.dtype} {tuple(value.shape)} on {value.device}'


def _within(factor: float, dtype: torch.dtype) -> float:
    """Keep a factor finite in the tensors' type: infinity times an importance of 0 would be NaN."""
    return min(factor, torch.finfo(dtype).max)
