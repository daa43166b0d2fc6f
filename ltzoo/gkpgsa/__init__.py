"""Grouped knowledge preservation and grouped sharpness-aware training, GKP/GSA.

Source: Reframing Long-Tailed Learning via Loss Landscape Geometry, CVPR 2026 (arXiv:2603.21217). Everything here is on
tensors, modules and labels; `ltzoo.training` composes it.
"""

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.affinity import SnapshotDistances, parameter_affinity
from ltzoo.gkpgsa.bank import BankError, DiskStore, HostStore, MemoryBank
from ltzoo.gkpgsa.direction import group_direction, group_radius
from ltzoo.gkpgsa.fisher import diagonal_fisher, estimated_statistics
from ltzoo.gkpgsa.grouping import group_anchors, group_classes, normalized_cut
from ltzoo.gkpgsa.method import GkpGsa
from ltzoo.gkpgsa.preservation import KnowledgePreservation
from ltzoo.gkpgsa.quality import ClassQuality, FeatureQuality
from ltzoo.gkpgsa.settings import GkpGsaSettings, PreservationSettings, SharpnessSettings
from ltzoo.gkpgsa.sharpness import GroupedSharpness

__all__ = [
    'BankError',
    'ClassQuality',
    'DiskStore',
    'FeatureQuality',
    'GkpGsa',
    'GkpGsaError',
    'GkpGsaSettings',
    'GroupedSharpness',
    'HostStore',
    'KnowledgePreservation',
    'MemoryBank',
    'PreservationSettings',
    'SharpnessSettings',
    'SnapshotDistances',
    'diagonal_fisher',
    'estimated_statistics',
    'group_anchors',
    'group_classes',
    'group_direction',
    'group_radius',
    'normalized_cut',
    'parameter_affinity',
]
