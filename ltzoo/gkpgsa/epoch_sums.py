"""What the steps of an epoch leave to be logged, so that an inert or a dominating term is seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ltzoo.gkpgsa.sharpness import StepReport
from ltzoo.processes import averaged

__all__ = ['EpochSums']


class EpochSums:
    """Sums over the steps of an epoch. They lie on the device and are changed in place, as a replayed step needs it.

    Args:
        groups: G.
        like: a tensor whose device and type they have.

    Attributes:
        steps: how many there were.
        finite: how many of them had a finite gradient.
        grad_norm: sum of the norms of these gradients.
    """

    def __init__(self, groups: int, like: Tensor) -> None:
        self.groups = groups
        self._lengths = torch.zeros(groups, device=like.device, dtype=like.dtype)
        self._perturbed = torch.zeros_like(self._lengths)
        self.steps, self.finite, self.grad_norm, self._perturbed_loss, self._regulariser = (
            torch.zeros((), device=like.device) for _ in range(5)
        )

    def reset(self) -> None:
        """Begin a new epoch."""
        counts = (self.steps, self.finite, self._perturbed)
        for total in (*counts, self.grad_norm, self._lengths, self._perturbed_loss, self._regulariser):
            total.zero_()

    def add(self, report: StepReport) -> None:
        """Add what a step leaves."""
        self._lengths += report.length
        self._perturbed += report.length > 0
        # A step that overflowed in half precision, which the loss scaler skips, says nothing of the gradient.
        finite = report.grad_norm.isfinite()
        self.grad_norm += torch.where(finite, report.grad_norm, 0)
        self.finite += finite
        self._perturbed_loss += report.perturbed_loss
        self._regulariser += report.regulariser
        self.steps += 1

    @property
    def perturbation(self) -> list[float]:
        """Mean length of each group's perturbation, over the steps that had one: a rare group is in few batches."""
        return (self._lengths / self._perturbed.clamp(min=1)).tolist()

    @property
    def perturbed_loss(self) -> float:
        """Mean loss at the perturbed weights, over all processes, which need it at the same time."""
        return float(averaged(self._perturbed_loss / self.steps))

    @property
    def regulariser(self) -> float:
        """Mean value of the second term of Eq. 15."""
        return float(self._regulariser / self.steps)
