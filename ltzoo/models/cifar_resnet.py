"""The CIFAR ResNet of the long-tailed literature, with timm's interface.

Source: He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2, with option A (zero-padding)
shortcuts; initialised as in Cao et al., LDAM (NeurIPS 2019), which later papers follow.
"""

# No postponed annotations: torch.fx writes those of forward into the code that it makes, and TorchScript reads them.

import functools
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock

from ltzoo.models.heads import build_with_head

__all__ = ['CIFAR_MEAN', 'CIFAR_STD', 'CifarResNet']

# The statistics of CIFAR-10's training images, which the LDAM line uses for both sets.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class ZeroPadShortcut(nn.Module):
    """Option A shortcut: every second pixel, missing channels filled with zeros, half before and half behind."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


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


class CifarResNet(nn.Module):
    """ResNet for small images: three stages of 16, 32 and 64 channels at strides 1, 2 and 4.

    Args:
        layers: blocks of each stage; n blocks in each give a depth of 6n + 2.
        width: channels of the first stage; those of the others are 2 and 4 times as many (PaCo takes 32).
        num_classes: number of classes, 0 for none (pooled features come out).
        in_chans: channels of the images.
        global_pool: any of timm's poolings, '' for none.
        drop_rate: dropout before the classifier.
        device, dtype: of the parameters.
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
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(width, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, layers[0], **dd)
        self.layer2 = _stage(width, 2 * width, layers[1], **dd)
        self.layer3 = _stage(2 * width, 4 * width, layers[2], **dd)
        self.feature_info: list[dict[str, Any]] = [
            {'num_chs': width, 'reduction': 1, 'module': 'act1'},
            {'num_chs': width, 'reduction': 1, 'module': 'layer1'},
            {'num_chs': 2 * width, 'reduction': 2, 'module': 'layer2'},
            {'num_chs': 4 * width, 'reduction': 4, 'module': 'layer3'},
        ]
        self.num_features = 4 * width
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.apply(_init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's parameter groups: the stem, then stages (coarse) or blocks."""
        return {'stem': r'^(?:conv1|bn1)', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the classifier, or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier for `num_classes` (0: none), and a new pooling if one is given."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.global_pool.train(self.training)
        self.fc = fc.apply(_init_weights).train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv1(x)))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and those of stem (0) and stages (1 to 3).

        Args:
            x: images, shape (N, in_chans, H, W).
            indices: which to return: the last n if an int, all if None.
            norm: has no effect, there is no final norm layer.
            stop_early: leave out the stages behind the last one asked for.
            output_fmt: 'NCHW'.
            intermediates_only: return the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt must be NCHW, not {output_fmt}')
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        x = self._stem(x)
        intermediates = [x] if 0 in take_indices else []
        stages = [self.layer1, self.layer2, self.layer3]
        for index, stage in enumerate(stages[:max_index] if stop_early else stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of `indices`, and the classifier; return the indices kept."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        pruned = self.feature_info[max_index + 1 :]
        for info in pruned:
            # An empty Sequential, not an Identity: checkpoint_seq iterates over it.
            setattr(self, info['module'], nn.Sequential())
        self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or pruned:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to feature maps (N, num_features, ceil(H / 4), ceil(W / 4))."""
        x = self._stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool feature maps and classify them; `pre_logits` stops before the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


_cfg = {
    'num_classes': 10,
    'input_size': (3, 32, 32),
    'pool_size': (8, 8),
    'crop_pct': 1.0,
    'interpolation': 'bilinear',
    'mean': CIFAR_MEAN,
    'std': CIFAR_STD,
    'first_conv': 'conv1',
    'classifier': 'fc',
    'license': 'apache-2.0',
    'paper_name': 'Deep Residual Learning for Image Recognition',
    'paper_ids': 'arXiv:1512.03385',
}
default_cfgs = generate_default_cfgs({f'resnet{depth}_cifar': _cfg for depth in (8, 20, 32, 44, 56)})


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
