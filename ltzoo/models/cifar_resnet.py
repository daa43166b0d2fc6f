"""The CIFAR ResNet of the long-tailed literature, with timm's interface.

Source: He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2, with option A (zero-padding)
shortcuts; initialised as in Cao et al., LDAM (NeurIPS 2019), which later papers follow.
"""

# No postponed annotations: torch.fx writes those of forward into the code that it makes, and TorchScript reads them.

import functools
from typing import Any

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock

from ltzoo.models.heads import build_with_head
from ltzoo.models.papers import PAPERS
from ltzoo.models.staged_resnet import SMALL_IMAGES, StagedResNet, ZeroPadShortcut, network_cfg

__all__ = ['CifarResNet']


def _stage(in_channels: int, channels: int, depth: int, **dd: Any) -> nn.Sequential:
    if in_channels == channels:
        first = BasicBlock(channels, channels, **dd)
    else:
        shortcut = ZeroPadShortcut(in_channels, channels)
        first = BasicBlock(in_channels, channels, stride=2, downsample=shortcut, **dd)
    return nn.Sequential(first, *(BasicBlock(channels, channels, **dd) for _ in range(depth - 1)))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)


class CifarResNet(StagedResNet):
    """ResNet for small images: three stages of 16, 32 and 64 channels at strides 1, 2 and 4.

    Args:
        layers: blocks of each stage; n blocks in each give a depth of 6n + 2.
        width: channels of the first stage; those of the others are 2 and 4 times as many (PaCo takes 32).
        num_classes: number of classes, 0 for none (pooled features come out).
        in_chans: channels of the images.
        global_pool: any of timm's poolings, '' for none.
        drop_rate: dropout before the classifier.
        device, dtype: of the parameters.

    Raises:
        ValueError: if there are not three stages of one block or more.
    """

    def __init__(
        self,
        layers: tuple[int, int, int] = (5, 5, 5),
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if len(layers) != 3 or min(layers) < 1:
            raise ValueError(f'layers must be the blocks of three stages, one or more in each, not {layers}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **dd)  # type: ignore[assignment]
        self.bn1 = nn.BatchNorm2d(width, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, layers[0], **dd)
        self.layer2 = _stage(width, 2 * width, layers[1], **dd)
        self.layer3 = _stage(2 * width, 4 * width, layers[2], **dd)
        self.feature_info = [
            {'num_chs': width, 'reduction': 1, 'module': 'act1'},
            {'num_chs': width, 'reduction': 1, 'module': 'layer1'},
            {'num_chs': 2 * width, 'reduction': 2, 'module': 'layer2'},
            {'num_chs': 4 * width, 'reduction': 4, 'module': 'layer3'},
        ]
        self.num_features = 4 * width
        super().reset_classifier(num_classes, global_pool)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:  # type: ignore[override]
        """Draw convolutions and classifier anew, as LDAM's code does."""
        self.apply(_init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier for `num_classes` (0: none), and a new pooling if one is given."""
        super().reset_classifier(num_classes, global_pool)
        self.fc.apply(_init_weights)


default_cfgs = generate_default_cfgs(
    {f'resnet{depth}_cifar': network_cfg(PAPERS['resnet'], **SMALL_IMAGES) for depth in (8, 20, 32, 44, 56)}
)


def _create(name: str, blocks: int, pretrained: bool, **kwargs: Any) -> CifarResNet:
    build = functools.partial(
        build_model_with_cfg, CifarResNet, name, feature_cfg={'out_indices': (0, 1, 2, 3)}, layers=(blocks,) * 3
    )
    return build_with_head(build, pretrained, **kwargs)


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8 for CIFAR: small enough for studies on a CPU."""
    return _create('resnet8_cifar', 1, pretrained, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for CIFAR."""
    return _create('resnet20_cifar', 3, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for CIFAR: the network of nearly every CIFAR-LT number."""
    return _create('resnet32_cifar', 5, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for CIFAR."""
    return _create('resnet44_cifar', 7, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for CIFAR."""
    return _create('resnet56_cifar', 9, pretrained, **kwargs)
