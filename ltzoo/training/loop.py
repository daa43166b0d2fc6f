"""The training loop: `fit` sets up, `train_one_epoch` trains, `measure` scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from ltzoo.data.loader import Batch, TrainLoader
from ltzoo.errors import LtzooError
from ltzoo.gkpgsa import GkpGsa

__all__ = ['DivergedError', 'EpochLog', 'grouped_step', 'train_one_epoch', 'train_step']

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


def train_step(
    learner: nn.Module,
    optimizer: Any,
    batch: Batch,
    accelerator: Accelerator,
    *,
    accumulation: int = 1,
    clip_grad_norm: float | None = None,
) -> Tensor:
    """Take one optimiser step on the mean loss of a batch.

    Args:
        learner: returns per-sample losses of (views, labels).
        accumulation: pieces that the batch is computed in, one after the other; gradients are summed, and
            synchronised between processes with the last piece only.
        clip_grad_norm: largest norm of the gradient.

    Returns:
        The mean loss over this process's share, on the device.
    """
    pieces = _cut(batch, accumulation)
    total = torch.zeros((), device=batch.labels.device)
    for i, (views, labels) in enumerate(pieces):
        last = i == len(pieces) - 1
        # The forward pass belongs inside too: DistributedDataParallel decides there whether it will synchronise.
        with nullcontext() if last else accelerator.no_sync(learner):
            with accelerator.autocast():
                loss = learner(views, labels).sum() / len(batch.labels)
            accelerator.backward(loss)
        total += loss.detach()
    _update(learner, optimizer, accelerator, clip_grad_norm)
    return total


def grouped_step(
    method: GkpGsa,
    learner: nn.Module,
    optimizer: Any,
    batch: Batch,
    accelerator: Accelerator,
    *,
    accumulation: int = 1,
    clip_grad_norm: float | None = None,
) -> Tensor:
    """Take one step of GKP/GSA on the mean loss of a batch; arguments and result as for `train_step`.

    Args:
        learner: as it was before it was wrapped for several processes: the method reduces gradients itself.
    """
    scale = (
        1.0 if accelerator.scaler is None else accelerator.scaler.scale(batch.labels.new_ones((), dtype=torch.float))
    )
    report = method.step(learner.forward, _cut(batch, accumulation), loss_scale=scale, autocast=accelerator.autocast)
    _update(learner, optimizer, accelerator, clip_grad_norm)
    method.after_step(optimizer.param_groups[0]['lr'])
    return report.loss


def _cut(batch: Batch, pieces: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Return views and labels of a batch's pieces."""
    views = zip(*(view.chunk(pieces) for view in batch.views), strict=True)
    return list(zip(views, batch.labels.chunk(pieces), strict=True))


def _update(learner: nn.Module, optimizer: Any, accelerator: Accelerator, clip_grad_norm: float | None) -> None:
    """Take the optimiser's step along the gradient that lies ready."""
    if clip_grad_norm is not None:
        accelerator.clip_grad_norm_(learner.parameters(), clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def train_one_epoch(
    step: Callable[[Batch], Tensor],
    loader: TrainLoader,
    accelerator: Accelerator,
    *,
    epoch: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    progress: bool = True,
) -> EpochLog:
    """Train on every batch of an epoch.

    Args:
        step: takes one optimiser step on a batch and returns the loss.
        epoch: counted from 0.
        batch_size: samples of a step over all processes.
        progress: show a bar on the main process.

    Raises:
        DivergedError: if the loss stops being finite, at the same point on every process.
    """
    started = time.perf_counter()
    device = accelerator.device
    total = torch.zeros((), device=device, dtype=torch.float64)
    first_bad = torch.full((), loader.steps_per_epoch, device=device, dtype=torch.int64)
    bar = tqdm(
        total=loader.steps_per_epoch,
        desc=f'epoch {epoch + 1}/{epochs}',
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
                        f'the loss is not finite since step {earliest} of epoch {epoch + 1} '
                        f'(step {epoch * loader.steps_per_epoch + earliest} of the run): try a lower optimizer.lr; '
                        'the last checkpoint is from before it'
                    )
                bar.set_postfix(loss=f'{total.item() / (number + 1):.3f}', lr=f'{learning_rate:.4g}', refresh=False)
            bar.update()
    mean_loss = float(accelerator.reduce(total, 'mean')) / loader.steps_per_epoch
    seconds = time.perf_counter() - started
    return EpochLog(mean_loss, seconds, loader.steps_per_epoch * batch_size / seconds)


def rng_states(device: torch.device) -> list[dict[str, Tensor]]:
    """Return the state of the global random generators of every process, in order of rank."""
    states = {'cpu': torch.get_rng_state()}
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return gather_object([states])


def restore_rng(states: list[dict[str, Tensor]], accelerator: Accelerator) -> None:
    """Undo `rng_states`; a run continued with more processes seeds the new ones by rank."""
    if accelerator.process_index >= len(states):
        torch.manual_seed(accelerator.process_index)
        return
    own = states[accelerator.process_index]
    torch.set_rng_state(own['cpu'])
    if 'cuda' in own and accelerator.device.type == 'cuda':
        torch.cuda.set_rng_state(own['cuda'], accelerator.device)
