"""Objectives: each takes a model, the views of a batch and its labels, and returns the loss of every sample."""

from ltzoo.losses.bcl import BCL, balanced_contrastive_loss
from ltzoo.losses.cross_entropy import CrossEntropy, LogitAdjusted, log_prior
from ltzoo.losses.distilled import Distilled, teacher_names
from ltzoo.losses.focal import Focal
from ltzoo.losses.ldam import LDAM
from ltzoo.losses.objective import (
    Objective,
    ObjectiveError,
    check_objective,
    create_objective,
    is_balanced,
    list_objectives,
    register_objective,
)
from ltzoo.losses.reweighting import class_balanced_weights
from ltzoo.losses.ride import RIDE

__all__ = [
    'BCL',
    'LDAM',
    'RIDE',
    'CrossEntropy',
    'Distilled',
    'Focal',
    'LogitAdjusted',
    'Objective',
    'ObjectiveError',
    'balanced_contrastive_loss',
    'check_objective',
    'class_balanced_weights',
    'create_objective',
    'is_balanced',
    'list_objectives',
    'log_prior',
    'register_objective',
    'teacher_names',
]
