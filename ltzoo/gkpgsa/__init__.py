"""Grouped knowledge preservation and grouped sharpness-aware training, GKP/GSA.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry, CVPR 2026 (arXiv:2603.21217). Everything here is on
tensors, modules and labels; `ltzoo.training` composes it.
"""

from ltzoo.gkpgsa.affinity import AffinityError, GramMatrix, parameter_affinity
from ltzoo.gkpgsa.bank import BankError, DiskStore, HostStore, MemoryBank
from ltzoo.gkpgsa.direction import SharpnessError, group_direction, group_radius
from ltzoo.gkpgsa.fisher import FisherError, diagonal_fisher, group_sample_indices
from ltzoo.gkpgsa.grouping import (
    GroupingError,
    classes_moved,
    group_anchors,
    group_classes,
    normalized_cut,
    normalized_cut_value,
)
from ltzoo.gkpgsa.method import GkpGsa
from ltzoo.gkpgsa.preservation import KnowledgePreservation, PreservationError
from ltzoo.gkpgsa.quality import FeatureQuality, feature_quality
from ltzoo.gkpgsa.schedule import ScheduleError, alpha_schedule
from ltzoo.gkpgsa.settings import GkpGsaError, GkpGsaSettings, PreservationSettings, SharpnessSettings
from ltzoo.gkpgsa.sharpness import GroupedSharpness, StepReport

__all__ = [
    'AffinityError',
    'BankError',
    'DiskStore',
    'FeatureQuality',
    'FisherError',
    'GkpGsa',
    'GkpGsaError',
    'GkpGsaSettings',
    'GramMatrix',
    'GroupedSharpness',
    'GroupingError',
    'HostStore',
    'KnowledgePreservation',
    'MemoryBank',
    'PreservationError',
    'PreservationSettings',
    'ScheduleError',
    'SharpnessError',
    'SharpnessSettings',
    'StepReport',
    'alpha_schedule',
    'classes_moved',
    'diagonal_fisher',
    'feature_quality',
    'group_anchors',
    'group_classes',
    'group_direction',
    'group_radius',
    'group_sample_indices',
    'normalized_cut',
    'normalized_cut_value',
    'parameter_affinity',
]
