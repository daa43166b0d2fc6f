"""What the zoo's own ResNets have in common beyond timm's: stages of blocks without weights in their shortcuts, and
three stages as well as four.
"""

# No postponed annotations: torch.fx writes those of forward into the code that it makes, and TorchScript reads them.

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import feature_take_indices
from timm.models.resnet import ResNet

from ltzoo.models.papers import Paper
from ltzoo.normalisation import CIFAR_MEAN, CIFAR_STD

__all__ = ['SMALL_IMAGES', 'StagedResNet', 'ZeroPadShortcut', 'network_cfg']

# What CIFAR's images change in `network_cfg`.
SMALL_IMAGES: dict[str, Any] = {
    'num_classes': 10,
    'input_size': (3, 32, 32),
    'pool_size': (8, 8),
    'crop_pct': 1.0,
    'mean': CIFAR_MEAN,
    'std': CIFAR_STD,
}


def network_cfg(paper: Paper, **changes: Any) -> dict[str, Any]:
    """Return the entries of a ResNet's pretrained_cfg, of ImageNet's images where nothing else is said."""
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1',
        'classifier': 'fc',
        'license': 'apache-2.0',
        'paper_name': paper.title,
        'paper_ids': paper.id,
        **changes,
    }


class ZeroPadShortcut(nn.Module):
    """Option A shortcut: every second pixel, missing channels filled with zeros, half before and half behind."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.behind = out_channels - in_channels - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class StagedResNet(ResNet):
    """timm's ResNet of three or four stages, whose modules a subclass makes itself."""

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        nn.Module.__init__(self)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = self.head_hidden_size = 0
        self.feature_info: list[dict[str, Any]] = []
        # In the order in which they are run, which is that of parameters and of timm's feature extraction.
        for name in ('conv1', 'bn1', 'act1', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'global_pool', 'fc'):
            self.add_module(name, nn.Sequential())

    def forward_intermediates(  # type: ignore[override]
        self, x: torch.Tensor, indices: int | list[int] | None = None, *args: Any, **options: Any
    ) -> Any:
        # Of the maps that there are: timm counts five.
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        return super().forward_intermediates(x, take_indices, *args, **options)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        if prune_head or max_index < len(self.feature_info) - 1:
            super().prune_intermediate_layers(take_indices, prune_norm, prune_head)
        return take_indices
