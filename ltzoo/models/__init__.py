"""Models: the CIFAR ResNet, heads, and every name that `create_model` takes."""

from ltzoo.models import cifar_resnet, lt_experts, lt_timm, lt_zoo
from ltzoo.models.cifar_resnet import CifarResNet
from ltzoo.models.download import DownloadError
from ltzoo.models.entries import NoWeightsError, get_results
from ltzoo.models.factory import (
    ModelArgumentError,
    ModelFilesError,
    UnknownModelError,
    create_model,
    create_model_and_transforms,
    get_pretrained_cfg,
    list_models,
    list_pretrained,
)
from ltzoo.models.heads import CosineLinear, HeadError, ProjectionMLP

__all__ = [
    'CifarResNet',
    'CosineLinear',
    'DownloadError',
    'HeadError',
    'ModelArgumentError',
    'ModelFilesError',
    'NoWeightsError',
    'ProjectionMLP',
    'UnknownModelError',
    'cifar_resnet',
    'create_model',
    'create_model_and_transforms',
    'get_pretrained_cfg',
    'get_results',
    'list_models',
    'list_pretrained',
    'lt_experts',
    'lt_timm',
    'lt_zoo',
]
