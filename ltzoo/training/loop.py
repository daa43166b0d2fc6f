"""The training loop: `train_one_epoch` trains by taking a `Step` on every batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ltzoo.data.loader import Batch, TrainLoader
from ltzoo.errors import LtzooError
from ltzoo.gkpgsa import GkpGsa
from ltzoo.recorded import Recorded
from ltzoo.training.compiled import Compiled, compiler_errors

logger = logging.getLogger(__name__)

__all__ = ['DivergedError', 'EpochLog', 'Step', 'train_one_epoch']

# How often the host looks at the loss; in between, the device is never waited for.
LOOK_EVERY = 50


class DivergedError(LtzooError, ArithmeticError):
    """The loss is no longer a finite number; the message says since which step."""


@dataclass(frozen=True)
class EpochLog:
    """What an epoch leaves in the log: mean training loss, seconds, samples per second over all processes."""

    loss: float
    seconds: float
    samples_per_second: float


class Step:
    """One optimiser step on the mean loss of a batch.

    Args:
        learner: returns per-sample losses of (views, labels). With a `method`, as it was before it was wrapped for
            several processes: the method reduces gradients itself.
        optimizer: prepared by Accelerate.
        method: GKP/GSA, which takes the place of the ordinary gradient.
        accumulation: pieces that the batch is computed in, one after the other; gradients are summed, and synchronised
            between processes with the last piece only.
        clip_grad_norm: largest norm of the gradient.
        replayed: what replays the passes through the network, `Recorded` or `Compiled`; None to take every step as it
            is, as steps are whose work differs from one to the next.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Any,
        accelerator: Accelerator,
        *,
        method: GkpGsa | None = None,
        accumulation: int = 1,
        clip_grad_norm: float | None = None,
        replayed: type[Recorded] | type[Compiled] | None = None,
    ) -> None:
        self.learner, self.optimizer, self.accelerator, self.method = learner, optimizer, accelerator, method
        self.accumulation, self.clip_grad_norm = accumulation, clip_grad_norm
        self.gradient = self._ordinary_gradient if method is None else self._grouped_gradient
        self.replay = replayed(self.gradient, list(learner.parameters())) if replayed else None
        self.form = None if method is None else method.form
        self.told = False
        self.num_views = 0

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean loss over this process's share, on the device, until the next step.

        Raises:
            CompileError: if the step is compiled and cannot be.
        """
        targets = (batch.labels,) if batch.shares is None else (batch.labels, batch.shares)
        self.num_views = len(batch.views)
        with compiler_errors():
            loss = self._replayed_or_not()(*batch.views, *targets)
        if self.method is not None:
            self.method.weigh(self._loss_scale())
        if self.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # One that the loss scaler left out changes nothing.
        if self.method is not None and not self.optimizer.step_was_skipped:
            self.method.after_step(self.optimizer.param_groups[0]['lr'])
        return loss

    def _replayed_or_not(self) -> Callable[..., Tensor]:
        """Return what puts a batch's gradient into `grad`: the replay, made anew where the method's work is another."""
        if self.replay is None:
            return self.gradient
        if self.method is not None and self.method.form != self.form:
            # Also where the new form is not replayed: what the former one read may be gone when it comes back.
            self.replay.forget()
            self.form = self.method.form
        if self.method is None or self.method.static:
            return self.replay
        if not self.told:
            logger.warning(
                'perturbed steps (%d groups, method.sharpness.ascent=%s) are neither compiled nor recorded',
                self.method.sharpness.groups,
                self.method.sharpness.settings.ascent,
            )
            self.told = True
        return self.gradient

    def _ordinary_gradient(self, *tensors: Tensor) -> Tensor:
        pieces = self._pieces(tensors)
        samples = len(tensors[0])
        total = torch.zeros((), device=tensors[0].device)
        for i, (views, targets) in enumerate(pieces):
            last = i == len(pieces) - 1
            # The forward pass belongs inside too: DistributedDataParallel decides there whether it will synchronise.
            with nullcontext() if last else self.accelerator.no_sync(self.learner):
                with self.accelerator.autocast():
                    loss = self.learner(views, *targets).sum() / samples
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _grouped_gradient(self, *tensors: Tensor) -> Tensor:
        assert self.method is not None
        report = self.method.gradient(
            self.learner.forward,
            [(views, labels) for views, (labels,) in self._pieces(tensors)],
            loss_scale=self._loss_scale(),
            autocast=self.accelerator.autocast,
        )
        return report.loss

    def _pieces(self, tensors: tuple[Tensor, ...]) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Return each piece's views, and what follows them: its labels, and shares if its images are mixed."""
        pieces = zip(*(tensor.chunk(self.accumulation) for tensor in tensors), strict=True)
        return [(piece[: self.num_views], piece[self.num_views :]) for piece in pieces]

    def _loss_scale(self) -> Tensor | float:
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.accelerator.device))


def train_one_epoch(
    step: Callable[[Batch], Tensor],
    loader: TrainLoader,
    accelerator: Accelerator,
    *,
    epoch: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    remedy: str = 'try a lower optimizer.lr',
    seconds_an_epoch: float | None = None,
    progress: bool = True,
) -> EpochLog:
    """Train on every batch of an epoch.

    Args:
        step: takes one optimiser step on a batch and returns the loss.
        epoch: counted from 0.
        batch_size: samples of a step over all processes.
        remedy: what the error says to try where the loss stops being finite.
        seconds_an_epoch: that the last one took, for how long the bar says the run still takes; None if unknown.
        progress: show a bar on the main process.

    Raises:
        DivergedError: if the loss stops being finite, at the same point on every process.
    """
    started = time.perf_counter()
    device = accelerator.device
    total = torch.zeros((), device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)
    first_bad = torch.full((), loader.steps_per_epoch, device=device, dtype=torch.int64)
    left = '' if seconds_an_epoch is None else f', {tqdm.format_interval(seconds_an_epoch * (epochs - epoch))} to go'
    bar = tqdm(
        total=loader.steps_per_epoch,
        desc=f'epoch {epoch + 1}/{epochs}{left}',
        unit='step',
        leave=False,
        disable=not progress or not accelerator.is_main_process,
    )
    with bar:
        for number, batch in enumerate(loader.epoch(epoch)):
            loss = step(batch)
            total += loss
            first_bad = torch.where(loss.isfinite(), first_bad, first_bad.clamp(max=number))
            if (number + 1) % LOOK_EVERY == 0 or number + 1 == loader.steps_per_epoch:
                earliest = int(accelerator.gather(first_bad.reshape(1)).min())
                if earliest < loader.steps_per_epoch:
                    raise DivergedError(
                        f'the loss has not been finite since step {earliest + 1} of epoch {epoch + 1} '
                        f'(step {epoch * loader.steps_per_epoch + earliest + 1} of the run): {remedy}; '
                        'a checkpoint, if there is one, is from before it'
                    )
                bar.set_postfix(loss=f'{total.item() / (number + 1):.3f}', lr=f'{learning_rate:.4g}', refresh=False)
            bar.update()
    mean_loss = float(accelerator.reduce(total, 'mean')) / loader.steps_per_epoch
    seconds = time.perf_counter() - started
    return EpochLog(mean_loss, seconds, loader.steps_per_epoch * batch_size / seconds)
