"""GKP and GSA as one method that a training loop calls: Eq. 1 to 20 in their order.

Per step: the gradient at weights perturbed group by group (GSA), then, after the optimiser, the pull towards the
groups' anchors (GKP). Per epoch: feature quality, memory bank and, when it is due, groups, anchors and Fisher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.affinity import SnapshotDistances, parameter_affinity
from ltzoo.gkpgsa.bank import DiskStore, HostStore, MemoryBank, SnapshotStore
from ltzoo.gkpgsa.epoch_sums import EpochSums
from ltzoo.gkpgsa.fisher import diagonal_fisher, estimated_statistics
from ltzoo.gkpgsa.grouping import classes_moved, group_anchors, group_classes
from ltzoo.gkpgsa.passes import Losses, Views
from ltzoo.gkpgsa.preservation import KnowledgePreservation
from ltzoo.gkpgsa.quality import FeatureQuality
from ltzoo.gkpgsa.rows import RowsForm
from ltzoo.gkpgsa.settings import GkpGsaSettings, PreservationSettings
from ltzoo.gkpgsa.sharpness import GroupedSharpness, StepReport
from ltzoo.models.heads import classifier_of

__all__ = ['GkpGsa']

# Takes indices of training samples; gives their images, as for evaluation, and labels, in batches.
Samples = Callable[[np.ndarray], Iterable[tuple[Tensor, Tensor]]]
# Training images that batch-norm's statistics are estimated on at an anchor.
_ESTIMATED_ON = 1024


class GkpGsa:
    """The method's state and its part of every step and epoch.

    Args:
        module: everything that is trained: the model and what the objective adds to it.
        model: the network within it; its `forward_head` hands its features to `get_classifier()`.
        class_counts: training samples of every class, int64, shape (C,).
        labels: class of every training sample, in the order that `samples` of `end_epoch` counts in, int64, shape (N,).
        epochs: of the whole training, T of Eq. 20.
        settings: see `GkpGsaSettings`.
        log_prior: what the objective adds to the logits, shape (C,), for the Fisher; None for nothing.
        folder: of the bank's snapshots, if they are kept on disk.
        rows_form: as for `GroupedSharpness`.
        seed: of the grouping and the Fisher's samples.

    Raises:
        GkpGsaError: if class counts or labels are no such numbers, the bank is needed and nothing of the encoder is
            trained, or the network drops activations to compute them anew (`set_grad_checkpointing`) or has
            SyncBatchNorm, which groups with own weights cannot be taken through; if snapshots are kept on disk, without
            a folder; if nothing of `module` is trained, or `radius_by_group` has another number of groups.
    """

    def __init__(
        self,
        module: nn.Module,
        model: Any,
        class_counts: Tensor | np.ndarray,
        labels: np.ndarray | Tensor,
        epochs: int,
        settings: GkpGsaSettings,
        *,
        log_prior: Tensor | None = None,
        folder: Path | None = None,
        rows_form: RowsForm = 'sliced',
        seed: int = 0,
    ) -> None:
        self.model, self.settings = model, settings
        self.class_counts, self.labels = _checked(class_counts, labels)
        self.epochs, self.seed = epochs, seed
        self.log_prior = None if log_prior is None else log_prior.to(next(module.parameters()).device)
        heads, _ = classifier_of(model)
        if heads is None:
            raise GkpGsaError(
                f'{type(model).__name__} has no get_classifier() that returns its classifier, as timm models have it'
            )
        # Distilled transformers have two; the first is the classifier that features are looked at for.
        self.heads: Sequence[nn.Module] = heads if isinstance(heads, (tuple, list)) else (heads,)
        classifier = {id(p) for head in self.heads for p in head.parameters()}
        self.encoder: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if id(p) not in classifier and p.requires_grad
        }
        if self.needs_bank and not self.encoder:
            raise GkpGsaError('the encoder has no trainable parameter, so there is nothing to keep or to group by')
        sharpness = settings.sharpness
        by_group = sharpness is not None and sharpness.mode != 'focal' and settings.group_by != 'none'
        of_samples = by_group or settings.preservation is not None
        if of_samples and any(getattr(part, 'grad_checkpointing', False) for part in module.modules()):
            raise GkpGsaError(
                'a step by group, and Fisher, cannot be combined with gradient checkpointing: leave it off'
            )
        if by_group and any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            raise GkpGsaError(
                'a step by group cannot be combined with SyncBatchNorm, in which groups cannot have their own weights: '
                'leave batch-norm as it is'
            )
        kept = settings.preservation is not None and settings.preservation.statistics == 'anchor'
        self.statistics: dict[str, Tensor] = _running_statistics(model) if kept else {}
        self.bank = MemoryBank(len(class_counts), _store(settings, folder))
        self.gram = SnapshotDistances()
        self.preservation: KnowledgePreservation | None = None
        self.class_groups = self._first_groups()
        self.has_groups = settings.group_by != 'bank'
        self.sharpness = GroupedSharpness(
            module,
            self.class_groups,
            self._samples_by_group(self.class_groups),
            settings.sharpness,
            rows_form=rows_form,
        )
        self.quality: FeatureQuality | None = None
        self.epoch = 0
        self.alpha = 1.0
        self.sums = self._empty_sums()

    @property
    def sharp(self) -> bool:
        """Whether steps are taken at perturbed weights by now."""
        part = self.settings.sharpness
        return part is not None and self.has_groups and self.epoch >= part.start_epoch

    @property
    def static(self) -> bool:
        """Whether `gradient` does the same work on the device in every step of the same `form`."""
        return not self.sharp or self.sharpness.static

    @property
    def form(self) -> tuple[bool, int]:
        """What decides which work `gradient` does on the device: whether it perturbs, and for how many groups."""
        return self.sharp, self.sharpness.groups

    @property
    def needs_bank(self) -> bool:
        """Whether quality is measured and snapshots are kept: for groups of the bank, or for anchors."""
        return self.settings.group_by == 'bank' or self.settings.preservation is not None

    def start_epoch(self, epoch: int) -> None:
        """Call before the first step of an epoch, counted from 0.

        Raises:
            GkpGsaError: if the training has no such epoch.
        """
        if not 0 <= epoch < self.epochs:
            raise GkpGsaError(f'epoch must be 0 to {self.epochs - 1}, as there are {self.epochs} epochs, not {epoch}')
        self.epoch = epoch
        start, end = self.settings.alpha_start, self.settings.alpha_end
        if start is not None and end is not None:
            # Eq. 20: half a cosine, whose end the epoch after the last one would have.
            self.alpha = end + (start - end) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.sums.groups == self.sharpness.groups:
            self.sums.reset()
        else:
            self.sums = self._empty_sums()
        if self.quality is not None:
            self.quality.reset()

    def gradient(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        *,
        loss_scale: Tensor | float = 1.0,
        autocast: Callable[[], Any] = nullcontext,
    ) -> StepReport:
        """Put the loss's gradient into the parameters' `grad`; `weigh` and the optimiser's step come next.

        These are the passes through the network; what they change, they change in place.

        Args, Returns and Raises: as for `GroupedSharpness.step`.
        """
        left = len(pieces) if self.needs_bank else 0
        seen: list[tuple[Tensor, Tensor]] = []

        def observed(views: Views, labels: Tensor) -> Tensor:
            """In the first pass, take note of the features that the classifier gets, which are those of one view.

            In a step without a first pass (`ascent`) it is the perturbed one, and so are its features.
            """
            nonlocal left
            if left == 0:
                return losses(views, labels)
            left -= 1
            # Where the classifier is a convolution, features still have their one pixel.
            hook = self.heads[0].register_forward_pre_hook(
                lambda _, inputs: seen.append((inputs[0].detach().flatten(1), labels))
            )
            with hook:
                return losses(views, labels)

        report = self.sharpness.step(observed, pieces, perturbed=self.sharp, loss_scale=loss_scale, autocast=autocast)
        for features, labels in seen:
            self._observe(features, labels)
        self.sums.add(report)
        return report

    @torch.no_grad()
    def weigh(self, loss_scale: Tensor | float = 1.0) -> None:
        """Weigh the loss's gradient in `grad`, which `loss_scale` has multiplied, against the penalty's (Eq. 16)."""
        if self._loss_weight != 1.0:
            grads = [p.grad for p in self.sharpness.layout.parameters if p.grad is not None]
            torch._foreach_mul_(grads, self._loss_weight)
        if self.preservation is not None and self._penalty_form == 'gradient':
            for name, gradient in self.preservation.gradient(self.encoder, self._penalty_weight).items():
                scaled = gradient * (loss_scale.to(gradient.dtype) if isinstance(loss_scale, Tensor) else loss_scale)
                grad = self.encoder[name].grad
                self.encoder[name].grad = scaled if grad is None else grad + scaled

    def after_step(self, learning_rate: float) -> None:
        """Call after every step that the optimiser takes, with its learning rate for the encoder."""
        if self.preservation is not None and self._penalty_form == 'proximal':
            self.preservation.proximal_step(self.encoder, learning_rate * self._penalty_weight)

    def end_epoch(self, epoch: int, samples: Samples) -> dict[str, Any]:
        """Update bank, groups, anchors and Fisher; return what belongs in the log.

        With several processes all call it, and the weights and buffers of all must be the same by now: batch-norm's are
        each process's own until somebody sends those of one to the others.

        Args:
            epoch: counted from 0.
            samples: takes indices of training samples, int64, shape (n,); returns an iterator over batches of those
                images, as evaluation sees them, and their labels, int64, both on the model's device.

        Raises:
            GkpGsaError: if the bank is needed and no features were seen, as the losses call something else than the
                module that the model's `get_classifier()` returns; if a batch-norm keeps no running statistics; or if
                `samples` yields none, or the Fisher diagonal is not finite.
            BankError: if the epoch is not later than those before, or a snapshot cannot be written or read.
        """
        log: dict[str, Any] = {'alpha': self._loss_weight}
        if self.sums.steps > 0:
            log['perturbation'] = self.sums.perturbation
            if self.sharp:
                log.update(perturbed_loss=self.sums.perturbed_loss, regulariser=self.sums.regulariser)
        if self.preservation is not None and self.preservation.groups > 0 and self.sums.finite > 0:
            pull = self.preservation.gradient(self.encoder, self._penalty_weight)
            norm = torch.stack([g.double().norm() for g in pull.values()]).norm()
            log['penalty'] = self.preservation.penalty(self.encoder, self._penalty_weight).item()
            log['penalty_to_loss_gradient'] = float(norm * self.sums.finite / (self.sums.grad_norm * self._loss_weight))
        if not self.needs_bank:
            return log
        if self.quality is None:
            if self.sums.steps == 0:
                return log
            raise GkpGsaError(
                f'no features were seen: the losses never call the module that get_classifier() of '
                f'{type(self.model).__name__} returns, whose input is what classes are grouped by'
            )
        self.quality.all_reduce()
        found = self.quality.compute()
        means = {'distance': found.distance.nanmean().item(), 'variance': found.variance.nanmean().item()}
        log.update({name: mean for name, mean in means.items() if math.isfinite(mean)})
        if epoch < self.settings.first_snapshot:
            return log
        won = self.bank.update(epoch, found.quality, {**self.encoder, **self.statistics})
        if self.settings.group_by == 'bank':
            self.gram.update(self.bank.epochs, lambda other: self._of_encoder(self.bank.snapshot(other)))
        log.update(best_now=int(won.sum()), snapshots=len(self.bank.epochs))
        since = epoch + 1 - self.settings.first_grouping
        if since >= 0 and since % self.settings.regroup_every == 0 and self.bank.epochs:
            log.update(self._regroup(samples))
        if self.preservation is not None and self.preservation.groups > 0:
            log['penalty_curvature'] = self.preservation.curvature(self._penalty_weight)
        return log

    def state_dict(self) -> dict[str, Any]:
        """Return, after `end_epoch`, all that goes on: bank, distances, groups, averages, anchors and Fisher."""
        return {
            'bank': self.bank.state_dict(),
            'gram': self.gram.state_dict(),
            'class_groups': self.class_groups,
            'has_groups': self.has_groups,
            'sharpness': self.sharpness.state_dict(),
            'preservation': None if self.preservation is None else self.preservation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same settings, on whatever device its tensors lie; `start_epoch` comes next.

        Raises:
            BankError: if the state is of another number of classes, or a snapshot it names is missing.
        """
        self.bank.load_state_dict(state['bank'])
        self.gram.load_state_dict(state['gram'])
        self.class_groups, self.has_groups = state['class_groups'].cpu(), state['has_groups']
        self.sharpness.load_state_dict(state['sharpness'])
        self.preservation = None
        if state['preservation'] is not None and self.settings.preservation is not None:
            self.preservation = self._empty_preservation(self.settings.preservation)
            self.preservation.load_state_dict(state['preservation'])
            self.preservation.to(next(iter(self.encoder.values())).device)

    @property
    def _weighted(self) -> bool:
        # A penalty of no strength leaves the step of the loss as it is.
        held = self.preservation is not None and self.preservation.strength > 0
        return held and self.settings.alpha_start is not None

    @property
    def _penalty_weight(self) -> float:
        return 1 - self.alpha if self._weighted else 1.0

    @property
    def _loss_weight(self) -> float:
        return self.alpha if self._weighted else 1.0

    @property
    def _penalty_form(self) -> str:
        assert self.settings.preservation is not None
        return self.settings.preservation.form

    def _empty_sums(self) -> EpochSums:
        return EpochSums(self.sharpness.groups, self.sharpness.layout.parameters[0])

    def _observe(self, features: Tensor, labels: Tensor) -> None:
        if self.quality is None:
            self.quality = FeatureQuality(
                len(self.class_counts), features.shape[1], self.settings.beta, features.device, self.class_counts,
                self.settings.quality,
            )  # fmt: skip
        self.quality.update(features, labels)

    def _first_groups(self) -> Tensor:
        """Return the groups that never change; until the bank has some, one for all stands in."""
        classes = len(self.class_counts)
        if self.settings.group_by == 'class':
            return torch.arange(classes)
        groups = torch.zeros(classes, dtype=torch.int64)
        if self.settings.group_by == 'frequency':
            order = self.class_counts.argsort(descending=True, stable=True)
            for group, members in enumerate(order.tensor_split(min(self.settings.groups, classes))):
                groups[members] = group
        return groups

    def _samples_by_group(self, class_groups: Tensor) -> Tensor:
        return torch.bincount(class_groups, weights=self.class_counts.double()).long()

    def _regroup(self, samples: Samples) -> dict[str, Any]:
        before = self.class_groups
        if self.settings.group_by == 'bank':
            affinity = parameter_affinity(self.gram, self.settings.affinity)
            self.class_groups = group_classes(self.bank, affinity, self.settings.groups, self.seed)
            if not self.has_groups or not torch.equal(before, self.class_groups):
                self.sharpness.set_groups(self.class_groups, self._samples_by_group(self.class_groups))
            self.has_groups = True
        of_anchors: dict[str, list[float]] = {}
        # After the last epoch there is no step that anchors could hold.
        if self.settings.preservation is not None and self.epoch + 1 < self.epochs:
            self.preservation, of_anchors = self._new_preservation(self.settings.preservation, samples)
        sizes = torch.bincount(self.class_groups).tolist()
        return {
            'group_sizes': sizes,
            'classes_moved': classes_moved(before, self.class_groups),
            'class_groups': self.class_groups.tolist(),
            **of_anchors,
        }

    def _of_encoder(self, snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a snapshot, which may also hold running statistics."""
        return {name: snapshot[name] for name in self.encoder}

    def _empty_preservation(self, part: PreservationSettings) -> KnowledgePreservation:
        return KnowledgePreservation(part.strength, part.normalisation, counts_others=part.grouped)

    def _new_preservation(
        self, part: PreservationSettings, samples: Samples
    ) -> tuple[KnowledgePreservation, dict[str, list[float]]]:
        """Return what holds the groups' anchors, and what belongs in the log of each anchor."""
        groups = self.class_groups if part.grouped else torch.zeros_like(self.class_groups)
        device = next(iter(self.encoder.values())).device
        preservation = self._empty_preservation(part)
        of_samples = groups.numpy()[self.labels]
        sizes = {
            'samples': self._samples_by_group(groups).tolist(),
            'classes': torch.bincount(groups).tolist(),
        }.get(part.size)
        generator = torch.Generator().manual_seed(self.seed)
        # A group of which no class was ever seen has nothing to be held to.
        stored = self.bank.best_epoch >= 0
        held, places = groups[stored].unique(return_inverse=True)
        anchors = group_anchors(self.bank, torch.zeros_like(groups).masked_scatter(stored, places))
        of_anchors: dict[str, list[float]] = {'anchor_epoch': [], 'anchor_loss': []}
        of_all = self._drawn(np.arange(len(self.labels)))[:_ESTIMATED_ON]
        for g, anchor in zip(held.tolist(), anchors, strict=True):
            parameters = self._of_encoder(anchor)
            if part.statistics == 'estimated':
                buffers = estimated_statistics(self.model, parameters, self._batches(samples, of_all))
            else:
                buffers = {name: anchor[name] for name in self.statistics}
            # A group's draw depends on its own samples alone.
            drawn = self._drawn(np.flatnonzero(of_samples == g))
            fisher, loss = diagonal_fisher(
                self.model, parameters, self._batches(samples, drawn[: part.samples_per_group]), part.fisher,
                buffers=buffers, chunk_size=part.chunk_size, log_prior=self.log_prior, generator=generator,
            )  # fmt: skip
            preservation.add(parameters, fisher, None if sizes is None else max(sizes[g], 1))
            of_anchors['anchor_epoch'].append(self.bank.best_epoch[stored & (groups == g)].double().mean().item())
            of_anchors['anchor_loss'].append(loss)
        return preservation.to(device), of_anchors

    def _drawn(self, indices: np.ndarray) -> np.ndarray:
        """Return the indices in a random order, the same every time: NumPy's legacy generator has frozen streams."""
        return np.random.RandomState(self.seed).permutation(indices)

    def _batches(self, samples: Samples, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of `indices`, checked to be those."""
        expected = torch.from_numpy(self.labels[indices])
        for images, labels in samples(indices):
            of_batch, expected = expected[: len(labels)], expected[len(labels) :]
            if not torch.equal(labels.long().cpu(), of_batch):
                raise GkpGsaError('samples gives other labels than those of the training samples that it was asked for')
            yield images, labels


def _checked(class_counts: Tensor | np.ndarray, labels: np.ndarray | Tensor) -> tuple[Tensor, np.ndarray]:
    """Return class counts and labels where they are used, on the CPU.

    Raises:
        GkpGsaError: if they are something else.
    """
    counts, of_samples = torch.as_tensor(class_counts).cpu(), torch.as_tensor(labels).cpu()
    for name, of_what, numbers in (('class_counts', 'class', counts), ('labels', 'training sample', of_samples)):
        if numbers.ndim != 1 or numbers.is_floating_point() or not len(numbers):
            found = f'{numbers.dtype} of shape {tuple(numbers.shape)}'
            raise GkpGsaError(f'{name} must be whole numbers, one for each {of_what}, not {found}')
    if counts.min() < 0:
        raise GkpGsaError(f'class_counts must be 0 or more, not {int(counts.min())}')
    if of_samples.min() < 0 or of_samples.max() >= len(counts):
        wrong = int(of_samples.min() if of_samples.min() < 0 else of_samples.max())
        raise GkpGsaError(
            f'labels must be 0 to {len(counts) - 1}, as there are {len(counts)} class counts, not {wrong}'
        )
    there = torch.bincount(of_samples, minlength=len(counts))
    if not torch.equal(there, counts.long()):
        c = int((there != counts).nonzero()[0])
        raise GkpGsaError(
            f'class_counts must be those of labels, the classes of all training samples: class {c} has {counts[c]} '
            f'there and {there[c]} among the labels'
        )
    return counts, of_samples.numpy()


def _running_statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        f'{path}.{name}': buffer
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }


def _store(settings: GkpGsaSettings, folder: Path | None) -> SnapshotStore:
    dtype = torch.bfloat16 if settings.snapshot_dtype == 'bf16' else torch.float32
    if settings.snapshots == 'memory':
        return HostStore(dtype)
    if folder is None:
        raise GkpGsaError('snapshots=disk needs a folder to keep them in')
    return DiskStore(folder, dtype)
