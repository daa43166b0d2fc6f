"""GKP and GSA as one method that a training loop calls: Eq. 1 to 20 in their order.

Per step: the gradient at weights perturbed group by group (GSA), then, after the optimiser, the pull towards the
groups' anchors (GKP). Per epoch: feature quality, memory bank and, when it is due, groups, anchors and Fisher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltzoo.errors import LtzooError
from ltzoo.gkpgsa.affinity import GramMatrix, parameter_affinity
from ltzoo.gkpgsa.bank import DiskStore, HostStore, MemoryBank, SnapshotStore
from ltzoo.gkpgsa.fisher import FisherKind, diagonal_fisher, group_sample_indices
from ltzoo.gkpgsa.grouping import classes_moved, group_anchors, group_classes
from ltzoo.gkpgsa.passes import Losses, Reduce, Views
from ltzoo.gkpgsa.preservation import KnowledgePreservation, Normalisation
from ltzoo.gkpgsa.quality import FeatureQuality
from ltzoo.gkpgsa.schedule import alpha_schedule
from ltzoo.gkpgsa.sharpness import GroupedSharpness, SharpnessSettings, StepReport

__all__ = ['GkpGsa', 'GkpGsaError', 'GkpGsaSettings', 'PreservationSettings']

# Takes indices of training samples; gives their images, as for evaluation, and labels, in batches.
Samples = Callable[[np.ndarray], Iterable[tuple[Tensor, Tensor]]]


class GkpGsaError(LtzooError, ValueError):
    """Settings of the method that do not exist, are out of range or contradict each other."""


@dataclass(frozen=True)
class PreservationSettings:
    """Knowledge preservation, GKP.

    Args:
        strength: lambda.
        form: `proximal`, an exact step on the penalty after the optimiser's; `gradient`, the penalty's gradient added
            to the loss's (Eq. 16 as written), which diverges where learning rate x (1 - alpha) lambda (G - 1) x Fisher
            exceeds 2 (1 + momentum), and earlier with Nesterov momentum.
        fisher: see `diagonal_fisher`.
        statistics: batch-norm's running statistics that the Fisher is taken with: those of `now`, or the `anchor`'s,
            which are the means of its classes' as its weights are.
        size: what the mean Fisher is divided by once more: nothing, or the group's samples or classes.
        normalisation: see `KnowledgePreservation`.
        samples_per_group: on which a group's Fisher is taken.
        chunk_size: samples whose gradients are in memory at once; None as `diagonal_fisher`.
        grouped: False holds all classes to the mean of their anchors, as elastic weight consolidation would (Eq. 4).

    Raises:
        GkpGsaError: if a setting does not exist or is out of range.
    """

    strength: float = 1.0
    form: Literal['proximal', 'gradient'] = 'proximal'
    fisher: FisherKind = 'empirical'
    statistics: Literal['now', 'anchor'] = 'now'
    size: Literal['none', 'samples', 'classes'] = 'none'
    normalisation: Normalisation = 'none'
    samples_per_group: int = 256
    chunk_size: int | None = None
    grouped: bool = True

    def __post_init__(self) -> None:
        _check_names(self)
        _check_range(self, 0, 'strength')
        _check_range(self, 1, 'samples_per_group', *([] if self.chunk_size is None else ['chunk_size']))


@dataclass(frozen=True)
class GkpGsaSettings:
    """The whole method.

    Args:
        groups: G.
        group_by: `bank` (Eq. 2); `frequency`, as many classes in each, by training samples; `class`, one for each
            (CC-SAM); `none`, one for all (SAM).
        affinity: `gaussian` or `cosine`, see `parameter_affinity`.
        beta: of feature quality, Eq. 19.
        first_grouping: epochs before the first groups of the bank; until then training is the base method's.
        regroup_every: epochs between groupings.
        snapshots: where the bank keeps them: `memory` (and every checkpoint), or `disk` for large networks.
        snapshot_dtype: `fp32`, or `bf16` for half the space.
        sharpness: None leaves GSA out.
        preservation: None leaves GKP out.
        alpha_start, alpha_end: Eq. 20; `None` for both leaves the loss's gradient and the penalty unweighted.

    Raises:
        GkpGsaError: if a setting does not exist, is out of range or contradicts another.
    """

    groups: int = 4
    group_by: Literal['bank', 'frequency', 'class', 'none'] = 'bank'
    affinity: Literal['gaussian', 'cosine'] = 'gaussian'
    beta: float = 0.5
    first_grouping: int = 5
    regroup_every: int = 5
    snapshots: Literal['memory', 'disk'] = 'memory'
    snapshot_dtype: Literal['fp32', 'bf16'] = 'fp32'
    sharpness: SharpnessSettings | None = field(default_factory=SharpnessSettings)
    preservation: PreservationSettings | None = field(default_factory=PreservationSettings)
    alpha_start: float | None = 0.95
    alpha_end: float | None = 0.6

    def __post_init__(self) -> None:
        _check_names(self)
        _check_range(self, 0, 'beta')
        _check_range(self, 1, 'groups', 'first_grouping', 'regroup_every')
        if self.group_by == 'bank' and self.sharpness is not None and self.sharpness.radius_by_group is not None:
            raise GkpGsaError('radius_by_group needs groups that stay as they are: group_by frequency or class')
        if (self.alpha_start is None) != (self.alpha_end is None):
            raise GkpGsaError('alpha_start and alpha_end are given both or not at all')
        for name in ('alpha_start', 'alpha_end'):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise GkpGsaError(f'{name} must lie between 0 and 1, not {getattr(self, name)}')


class GkpGsa:
    """The method's state and its part of every step and epoch.

    Args:
        module: everything that is trained: the model and what the objective adds to it.
        model: the classifier within it; `forward_head` hands its features to `get_classifier()`.
        class_counts: training samples of every class, int64, shape (C,).
        labels: class of every training sample, int64, shape (N,).
        epochs: of the whole training, T of Eq. 20.
        settings: see `GkpGsaSettings`.
        log_prior: what the objective adds to the logits, shape (C,), for the Fisher; None for nothing.
        folder: of the bank's snapshots, if they are kept on disk.
        reduce, processes: as for `GroupedSharpness`.
        seed: of the grouping and the Fisher's samples.
    """

    def __init__(
        self,
        module: nn.Module,
        model: Any,
        class_counts: Tensor,
        labels: np.ndarray,
        epochs: int,
        settings: GkpGsaSettings,
        *,
        log_prior: Tensor | None = None,
        folder: Path | None = None,
        reduce: Reduce | None = None,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        self.model, self.settings = model, settings
        self.class_counts, self.labels, self.epochs, self.seed = class_counts.cpu(), labels, epochs, seed
        self.log_prior = log_prior
        heads = model.get_classifier()
        # Distilled transformers have two; the first is the classifier that features are looked at for.
        self.heads: Sequence[nn.Module] = heads if isinstance(heads, (tuple, list)) else (heads,)
        classifier = {id(p) for head in self.heads for p in head.parameters()}
        self.encoder: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if id(p) not in classifier and p.requires_grad
        }
        kept = settings.preservation is not None and settings.preservation.statistics == 'anchor'
        self.statistics: dict[str, Tensor] = _running_statistics(model) if kept else {}
        self.bank = MemoryBank(len(class_counts), _store(settings, folder))
        self.gram = GramMatrix()
        self.preservation: KnowledgePreservation | None = None
        self.class_groups = self._first_groups()
        self.grouped = settings.group_by != 'bank'
        self.sharpness = GroupedSharpness(
            module,
            self.class_groups,
            self._samples_by_group(self.class_groups),
            settings.sharpness,
            reduce=reduce,
            processes=processes,
        )
        self.quality: FeatureQuality | None = None
        self.alpha = 1.0
        self._lengths = torch.zeros(0)
        self._restart_log()

    @property
    def sharp(self) -> bool:
        """Whether steps are taken at perturbed weights by now."""
        return self.settings.sharpness is not None and self.grouped

    @property
    def static(self) -> bool:
        """Whether `gradient` does the same work on the device in every step of the same `form`."""
        return not self.sharp or (self.sharpness.static and self.sharpness.settings.ascent in ('fresh', 'ema'))

    @property
    def form(self) -> tuple[bool, int]:
        """What decides which work `gradient` does on the device: whether it perturbs, and for how many groups."""
        return self.sharp, self.sharpness.groups

    @property
    def needs_bank(self) -> bool:
        """Whether quality is measured and snapshots are kept: for groups of the bank, or for anchors."""
        return self.settings.group_by == 'bank' or self.settings.preservation is not None

    def start_epoch(self, epoch: int) -> None:
        """Call before the first step of an epoch, counted from 0."""
        if self.settings.alpha_start is not None and self.settings.alpha_end is not None:
            self.alpha = alpha_schedule(epoch, self.epochs, self.settings.alpha_start, self.settings.alpha_end)
        self._restart_log()
        if self.quality is not None:
            self.quality.reset()

    def gradient(
        self,
        losses: Losses,
        pieces: Sequence[tuple[Views, Tensor]],
        *,
        loss_scale: Tensor | float = 1.0,
        autocast: Callable[[], Any] | None = None,
    ) -> StepReport:
        """Put the loss's gradient into the parameters' `grad`; `weigh` and the optimiser's step come next.

        These are the passes through the network; what they change, they change in place.

        Args: as for `GroupedSharpness.step`.
        """
        left = len(pieces) if self.needs_bank else 0

        def observed(views: Views, labels: Tensor) -> Tensor:
            """In the first pass, take note of the features that the classifier gets, which are those of one view.

            With `ascent` other than `fresh` the only pass of a step is at perturbed weights, and so are its features.
            """
            nonlocal left
            if left == 0:
                return losses(views, labels)
            left -= 1
            # Where the classifier is a convolution, features still have their one pixel.
            hook = self.heads[0].register_forward_pre_hook(
                lambda _, inputs: self._observe(inputs[0].detach().flatten(1), labels)
            )
            with hook:
                return losses(views, labels)

        take = self.sharpness.step if self.sharp else self.sharpness.ordinary_step
        report = take(observed, pieces, loss_scale=loss_scale, autocast=autocast)
        self._lengths += report.length
        self._perturbed += report.length > 0
        self._grad_norm.copy_(report.grad_norm)
        self._steps += 1
        return report

    @torch.no_grad()
    def weigh(self, loss_scale: Tensor | float = 1.0) -> None:
        """Weigh the loss's gradient in `grad`, which `loss_scale` has multiplied, against the penalty's (Eq. 16)."""
        if self._loss_weight != 1.0:
            grads = [p.grad for p in self.sharpness.layout.parameters if p.grad is not None]
            torch._foreach_mul_(grads, self._loss_weight)
        if self.preservation is not None and self._form == 'gradient':
            for name, gradient in self.preservation.gradient(self.encoder, 1 - self._penalty_weight).items():
                scaled = gradient * (loss_scale if isinstance(loss_scale, float) else loss_scale.to(gradient.dtype))
                grad = self.encoder[name].grad
                self.encoder[name].grad = scaled if grad is None else grad + scaled

    def after_step(self, learning_rate: float) -> None:
        """Call after every step of the optimiser, with its learning rate."""
        if self.preservation is not None and self._form == 'proximal':
            self.preservation.proximal_step(self.encoder, learning_rate * self._penalty_weight)

    def end_epoch(self, epoch: int, samples: Samples) -> dict[str, Any]:
        """Update bank, groups, anchors and Fisher; return what belongs in the log.

        Args:
            epoch: counted from 0.
            samples: see `Samples`.
        """
        log: dict[str, Any] = {'alpha': self.alpha}
        if self._steps > 0:
            # Over the steps in which a group was perturbed: a rare one is in few batches.
            log['perturbation'] = (self._lengths / self._perturbed.clamp(min=1)).tolist()
        if self.preservation is not None and self._steps > 0:
            pull = self.preservation.gradient(self.encoder, 1 - self._penalty_weight)
            norm = torch.stack([g.double().norm() for g in pull.values()]).norm()
            log['penalty'] = self.preservation.penalty(self.encoder, 1 - self._penalty_weight).item()
            log['penalty_to_loss_gradient'] = float(norm / (self._grad_norm * self._loss_weight))
        if not self.needs_bank or self.quality is None:
            return log
        self.quality.all_reduce()
        won = self.bank.update(epoch, self.quality.compute(), {**self.encoder, **self.statistics})
        if self.settings.group_by == 'bank':
            self.gram.update(self.bank.epochs, lambda other: self._of_encoder(self.bank.snapshot(other)))
        log.update(best_now=int(won.sum()), snapshots=len(self.bank.epochs))
        since = epoch + 1 - self.settings.first_grouping
        if since >= 0 and since % self.settings.regroup_every == 0:
            log.update(self._regroup(samples))
        return log

    def state_dict(self) -> dict[str, Any]:
        """Return, after `end_epoch`, all that goes on: bank, distances, groups, averages, anchors and Fisher."""
        return {
            'bank': self.bank.state_dict(),
            'gram': self.gram.state_dict(),
            'class_groups': self.class_groups,
            'grouped': self.grouped,
            'sharpness': self.sharpness.state_dict(),
            'preservation': None if self.preservation is None else self.preservation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same settings; `start_epoch` comes next.

        Raises:
            BankError: if the state is of another number of classes, or a snapshot it names is missing.
            PreservationError: if what it holds of the anchors is not of `state_dict`.
        """
        self.bank.load_state_dict(state['bank'])
        self.gram.load_state_dict(state['gram'])
        self.class_groups, self.grouped = state['class_groups'], state['grouped']
        self.sharpness.load_state_dict(state['sharpness'])
        if state['preservation'] is not None and self.settings.preservation is not None:
            self.preservation = self._empty_preservation(self.settings.preservation)
            self.preservation.load_state_dict(state['preservation'])
            self.preservation.to(next(iter(self.encoder.values())).device)

    @property
    def _weighted(self) -> bool:
        return self.settings.alpha_start is not None and self.preservation is not None

    @property
    def _penalty_weight(self) -> float:
        return 1 - self.alpha if self._weighted else 1.0

    @property
    def _loss_weight(self) -> float:
        return self.alpha if self._weighted else 1.0

    @property
    def _form(self) -> str:
        assert self.settings.preservation is not None
        return self.settings.preservation.form

    def _restart_log(self) -> None:
        """Forget what the steps of an epoch left to be logged; it lies on the device, and always in the same place."""
        parameter = self.sharpness.layout.parameters[0]
        if len(self._lengths) != self.sharpness.groups:
            self._lengths = torch.zeros(self.sharpness.groups, device=parameter.device, dtype=parameter.dtype)
            self._perturbed = torch.zeros_like(self._lengths)
            self._steps, self._grad_norm = (torch.zeros((), device=parameter.device) for _ in range(2))
        for seen in (self._lengths, self._perturbed, self._steps, self._grad_norm):
            seen.zero_()

    def _observe(self, features: Tensor, labels: Tensor) -> None:
        if self.quality is None:
            self.quality = FeatureQuality(
                len(self.class_counts), features.shape[1], self.settings.beta, features.device, self.class_counts
            )
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
            if not self.grouped or not torch.equal(before, self.class_groups):
                self.sharpness.set_groups(self.class_groups, self._samples_by_group(self.class_groups))
            self.grouped = True
        if self.settings.preservation is not None:
            self.preservation = self._new_preservation(self.settings.preservation, samples)
        sizes = torch.bincount(self.class_groups).tolist()
        return {'group_sizes': sizes, 'classes_moved': classes_moved(before, self.class_groups)}

    def _of_encoder(self, snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of a snapshot, which may also hold running statistics."""
        return {name: snapshot[name] for name in self.encoder}

    def _empty_preservation(self, part: PreservationSettings) -> KnowledgePreservation:
        empty = KnowledgePreservation(strength=part.strength, normalisation=part.normalisation)
        empty.counts_others = part.grouped
        return empty

    def _new_preservation(self, part: PreservationSettings, samples: Samples) -> KnowledgePreservation:
        groups = self.class_groups if part.grouped else torch.zeros_like(self.class_groups)
        device = next(iter(self.encoder.values())).device
        preservation = self._empty_preservation(part)
        drawn = group_sample_indices(self.labels, groups.numpy(), part.samples_per_group, self.seed)
        sizes = {
            'samples': self._samples_by_group(groups).tolist(),
            'classes': torch.bincount(groups).tolist(),
        }.get(part.size)
        generator = torch.Generator().manual_seed(self.seed)
        # A group of which no class was ever seen has nothing to be held to.
        stored = self.bank.best_epoch >= 0
        held, places = groups[stored].unique(return_inverse=True)
        anchors = group_anchors(self.bank, torch.zeros_like(groups).masked_scatter(stored, places))
        for g, anchor in zip(held.tolist(), anchors, strict=True):
            parameters = self._of_encoder(anchor)
            fisher = diagonal_fisher(
                self.model, parameters, samples(drawn[g]), part.fisher,
                buffers={name: anchor[name] for name in self.statistics},
                chunk_size=part.chunk_size, log_prior=self.log_prior, generator=generator,
            )  # fmt: skip
            preservation.add(parameters, fisher, None if sizes is None else max(sizes[g], 1))
        return preservation.to(device)


def _running_statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        f'{path}.{name}': buffer
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }


def _check_names(settings: GkpGsaSettings | PreservationSettings) -> None:
    for name, kind in get_type_hints(type(settings)).items():
        known, value = get_args(kind), getattr(settings, name)
        if all(isinstance(option, str) for option in known) and known and value not in known:
            raise GkpGsaError(f'{name}: {value!r} does not exist; known: {", ".join(known)}')


def _check_range(settings: GkpGsaSettings | PreservationSettings, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not least <= value < math.inf:
            raise GkpGsaError(f'{name} must be {least} or more, not {value}')


def _store(settings: GkpGsaSettings, folder: Path | None) -> SnapshotStore:
    dtype = torch.bfloat16 if settings.snapshot_dtype == 'bf16' else torch.float32
    if settings.snapshots == 'memory':
        return HostStore(dtype)
    if folder is None:
        raise GkpGsaError('snapshots=disk needs a folder to keep them in')
    return DiskStore(folder, dtype)
