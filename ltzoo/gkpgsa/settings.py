"""The settings of the method, of its two halves, and what is refused of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.direction import Direction
from ltzoo.gkpgsa.fisher import FisherKind
from ltzoo.gkpgsa.preservation import Normalisation
from ltzoo.gkpgsa.quality import QualityForm

__all__ = ['GkpGsaSettings', 'PreservationSettings', 'SharpnessSettings']


@dataclass(frozen=True)
class SharpnessSettings:
    """What decides a perturbation.

    Args:
        mode: `per_group`, every group's samples see their own perturbed weights (Eq. 14 to 16); `combined`, all see the
            mean of the groups' perturbations, weighted by their share of the batch (the authors' code); `focal`,
            Focal-SAM (Li et al., ICML 2025), where groups have shares of the sharpness and not directions: with
            w_g = (1 - |G_g|/N)^focal_power, one perturbation along the gradient of sum_g w_g L_g, and what that sum
            rises by is added to the loss, focal_weight times.
        start_epoch: epochs before the first perturbation; with groups of the bank it waits for those, too.
        direction: see `group_direction`.
        global_gradient: what Eq. 12 projects on: the gradient of the batch, or an exponential moving average of it
            (Friendly-SAM). With one group only the average leaves anything, and it is taken.
        ema_decay: of the averages. They start at zero; those that a direction is taken from without a first pass
            (`ascent: ema`) are divided by what that leaves out.
        scale: Z, the radius as a share of Eq. 13.
        radius: a fixed length of the perturbation in place of Eq. 13, as in SAM.
        radius_by_group: what each group's length is multiplied by, shape (G,); ImbSAM has 0 for head classes.
        clamp: least and greatest length of a perturbation.
        adaptive: power of |theta| that every weight's share is scaled by: 0, or 1 for ASAM (Kwon et al., ICML 2021),
            here of all parameters and without their eta.
        ascent_views: `first` takes the direction from the first view only, at a third of the cost for BCL.
        ascent: `fresh`, a pass at the weights themselves in every step; a number k, only in every k-th, the
            perturbation being kept in between; `ema`, never: the direction comes from an average of earlier steps (of
            one group alone, from what the last step's gradient has beside the average).
        regulariser: coefficient of the second term of Eq. 15, which has the radius as it is, Z included: the smaller
            Z, the stronger it pulls the weights to zero.
        focal_power, focal_weight: gamma and lambda of mode `focal`; the defaults are its authors' for CIFAR-100-LT.

    Raises:
        GkpGsaError: if a setting does not exist or is out of range.
    """

    mode: Literal['per_group', 'combined', 'focal'] = 'per_group'
    start_epoch: int = 0
    direction: Direction = 'residual'
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
        _check_names(self)
        if self.ascent not in ('fresh', 'ema') and not (isinstance(self.ascent, int) and self.ascent >= 1):
            raise GkpGsaError(f"ascent: 'fresh', 'ema' or a number of steps, not {self.ascent!r}")
        names = ('start_epoch', 'scale', 'radius', 'regulariser', 'adaptive', 'focal_power', 'focal_weight')
        _check_range(self, 0, *(name for name in names if getattr(self, name) is not None))
        for factor in self.radius_by_group or ():
            if not 0 <= factor < math.inf:
                raise GkpGsaError(f'radius_by_group must be 0 or more for every group, not {self.radius_by_group}')
        if not 0 <= self.ema_decay < 1:
            raise GkpGsaError(f'ema_decay must be 0 or more and below 1, not {self.ema_decay}')
        if self.mode == 'focal':
            if self.radius is None:
                raise GkpGsaError('mode focal needs radius, the length of its perturbation')
            without = ('direction', 'global_gradient', 'radius_by_group', 'clamp', 'adaptive', 'regulariser',
                       'ascent', 'ascent_views')  # fmt: skip
            for name in without:
                if getattr(self, name) != getattr(type(self), name):
                    raise GkpGsaError(
                        f'mode focal has no {name}: it takes one perturbation of length radius, afresh from all views'
                    )
        if self.ascent == 'ema' and self.ascent_views != 'all':
            raise GkpGsaError('ascent ema has no first pass that ascent_views could shorten: leave one of them out')
        if self.clamp is not None and not (len(self.clamp) == 2 and 0 <= self.clamp[0] <= self.clamp[1]):
            raise GkpGsaError(f'clamp must be (least, greatest), not {self.clamp}')


@dataclass(frozen=True)
class PreservationSettings:
    """Knowledge preservation, GKP.

    Args:
        strength: lambda.
        form: `proximal`, an exact step on the penalty after the optimiser's; `gradient`, the penalty's gradient added
            to the loss's (Eq. 16, beside a mean loss), which diverges where learning rate x (1 - alpha) lambda (G - 1)
            x Fisher exceeds 2 (1 + momentum), and earlier with Nesterov momentum. Momentum adds up gradients and not
            proximal steps: with momentum mu the proximal form holds as the gradient form does at (1 - mu) lambda.
        fisher: see `diagonal_fisher`.
        statistics: batch-norm's running statistics that the Fisher is taken with: those of `now`; the `anchor`'s,
            which are the means of its classes' as its weights are; or `estimated` anew at the anchor, on at most 1,024
            training images of all classes.
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
    statistics: Literal['now', 'anchor', 'estimated'] = 'now'
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
        quality, beta: form of feature quality, see `FeatureQuality`, and its beta, Eq. 19.
        first_snapshot: epochs before the first snapshot; their qualities do not count.
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
    quality: QualityForm = 'difference'
    beta: float = 0.5
    first_snapshot: int = 0
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
        _check_range(self, 0, 'beta', 'first_snapshot')
        _check_range(self, 1, 'groups', 'first_grouping', 'regroup_every')
        if self.first_snapshot >= self.first_grouping:
            raise GkpGsaError(
                f'first_snapshot must be below first_grouping, {self.first_grouping}, not {self.first_snapshot}: '
                'groups and anchors need a snapshot'
            )
        if self.group_by == 'bank' and self.sharpness is not None and self.sharpness.radius_by_group is not None:
            raise GkpGsaError('radius_by_group needs groups that stay as they are: group_by frequency or class')
        if (self.alpha_start is None) != (self.alpha_end is None):
            raise GkpGsaError('alpha_start and alpha_end are given both or not at all')
        for name in ('alpha_start', 'alpha_end'):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise GkpGsaError(f'{name} must lie between 0 and 1, not {getattr(self, name)}')


def _check_names(settings: Any) -> None:
    for name, kind in get_type_hints(type(settings)).items():
        known, value = get_args(kind), getattr(settings, name)
        if all(isinstance(option, str) for option in known) and known and value not in known:
            raise GkpGsaError(f'{name}: {value!r} does not exist; known: {", ".join(known)}')


def _check_range(settings: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not least <= value < math.inf:
            raise GkpGsaError(f'{name} must be {least} or more, not {value}')
