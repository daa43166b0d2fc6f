"""Multi-expert ResNets: shared first stages, then several networks of their own, whose logits are averaged.

Sources: Wang et al., Long-Tailed Recognition by Routing Diverse Distribution-Aware Experts (RIDE, ICLR 2021), section
3.2 and its released configurations, which keep the early stages in common and make the experts' stages a quarter
narrower; Zhang et al., Self-Supervised Aggregation of Diverse Experts (SADE, NeurIPS 2022) has the same networks.
"""

# No postponed annotations: torch.fx writes those of forward into the code that it makes, and TorchScript reads them.

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn as nn
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck

from ltzoo.models.heads import ExpertLinear, Head, HeadError
from ltzoo.models.papers import PAPERS
from ltzoo.models.staged_resnet import SMALL_IMAGES, StagedResNet, ZeroPadShortcut, network_cfg

__all__ = ['ExpertResNet']


class _Experts(nn.Module):
    """One stage for each expert; their maps lie side by side in the channels.

    `fan_out`: every expert gets the whole input (that of the shared stages), otherwise its own share of the channels.
    """

    def __init__(self, stages: Sequence[nn.Module], fan_out: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(stages)
        self.fan_out = fan_out

    def __iter__(self) -> Iterator[nn.Module]:
        # timm recomputes what a stage consists of; this one as a whole.
        yield self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x] * len(self.experts) if self.fan_out else x.chunk(len(self.experts), dim=1)
        maps = []
        for index, stage in enumerate(self.experts):
            maps.append(stage(parts[index]))
        return torch.cat(maps, dim=1)


def _shortcut(block: type, in_channels: int, out_channels: int, stride: int, dd: dict[str, Any]) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if block is BasicBlock:
        return ZeroPadShortcut(in_channels, out_channels)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, **dd)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, **dd))


def _init_weights(module: nn.Module, mode: Literal['fan_in', 'fan_out']) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity='relu')


class ExpertResNet(StagedResNet):
    """ResNet whose last stages and classifier exist once for each expert; the logits are the experts' mean.

    Features are the experts' features side by side: maps of shape (N, num_experts * width, H, W), the first expert's
    channels first. `get_classifier()(features, each=True)` gives the logits of each.

    Args:
        layers: blocks of each stage.
        channels: of each stage, before the expansion by 4 of bottlenecks.
        shared: how many of the stages, from the first, are common to all experts.
        num_experts: number of experts.
        bottleneck: bottleneck blocks and the stem of large images (the ResNet-50 line); otherwise basic blocks with
            zero-padding shortcuts and the stem of small images (the CIFAR line).
        cardinality, base_width: of a ResNeXt's bottlenecks.
        num_classes: number of classes, 0 for none (pooled features come out).
        in_chans: channels of the images.
        global_pool: 'avg' or 'max', '' for none.
        drop_rate: dropout before the classifiers.
        head: 'cosine' or 'linear' classifiers.
        head_scale: scale of cosine classifiers' logits.
        device, dtype: of the parameters.

    Raises:
        HeadError: if there is no such head, the pooling cannot be told apart by experts, or the numbers of layers,
            channels, shared stages and experts do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int],
        shared: int,
        num_experts: int = 3,
        bottleneck: bool = False,
        cardinality: int = 1,
        base_width: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        head: Head = 'cosine',
        head_scale: float = 30.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        count = len(layers)
        fits = count in (3, 4) and len(channels) == count and 0 < shared < count
        if not fits or num_experts < 1 or min(layers) < 1:
            raise HeadError(
                f'{num_experts} experts with {shared} shared stages of {count} ({len(channels)} widths) cannot be: '
                'three or four stages of one block or more, a width for each, at least one stage shared and one not, '
                'at least one expert'
            )
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.num_experts = num_experts
        self.head = head
        self.head_scale = head_scale

        stem = 64 if bottleneck else channels[0]
        block: type = Bottleneck if bottleneck else BasicBlock
        kernel, stride = (7, 2) if bottleneck else (3, 1)
        self.conv1 = nn.Conv2d(in_chans, stem, kernel, stride=stride, padding=kernel // 2, bias=False, **dd)  # type: ignore[assignment]
        self.bn1 = nn.BatchNorm2d(stem, **dd)
        self.act1 = nn.ReLU(inplace=True)
        if bottleneck:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)  # type: ignore[assignment]

        kwargs = {'cardinality': cardinality, 'base_width': base_width, **dd}
        stages: list[nn.Module] = []
        width, reduction = stem, stride
        self.feature_info = [{'num_chs': width, 'reduction': reduction, 'module': 'act1'}]
        reduction *= 2 if bottleneck else 1
        for index, (depth, planes) in enumerate(zip(layers, channels, strict=True)):
            step, out = 1 if index == 0 else 2, planes * block.expansion  # type: ignore[attr-defined]
            copies = [
                nn.Sequential(
                    block(width, planes, step, _shortcut(block, width, out, step, dd), **kwargs),
                    *(block(out, planes, **kwargs) for _ in range(depth - 1)),
                )
                for _ in range(1 if index < shared else num_experts)
            ]
            stages.append(copies[0] if index < shared else _Experts(copies, index == shared))
            width, reduction = out, reduction * step
            self.feature_info.append(
                {'num_chs': width * len(copies), 'reduction': reduction, 'module': f'layer{index + 1}'}
            )
        self.layer1, self.layer2, self.layer3 = stages[:3]
        if count == 4:
            self.layer4 = stages[3]
        self.num_features = width * num_experts
        self.bottleneck = bottleneck
        self.init_weights()
        self.reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def init_weights(self) -> None:  # type: ignore[override]
        """Draw convolutions anew, as in the networks without experts: LDAM's on CIFAR, timm's on larger images."""
        self.apply(functools.partial(_init_weights, mode='fan_out' if self.bottleneck else 'fan_in'))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's parameter groups, with the experts' of one depth together."""
        blocks = r'^layer(\d+)' if coarse else r'^layer(\d+)(?:\.experts\.\d+)?\.(\d+)'
        return {'stem': r'^(?:conv1|bn1)', 'blocks': blocks}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier for `num_classes` (0: none), and a new pooling if one is given."""
        global_pool = self.global_pool.pool_type if global_pool is None else global_pool
        if global_pool not in ('avg', 'max', ''):
            raise HeadError(f"global_pool of experts is 'avg', 'max' or '', not {global_pool!r}")
        if not global_pool and num_classes:
            raise HeadError("the classifiers of experts need pooled features: global_pool='' goes with num_classes=0")
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features
        self.fc = (
            ExpertLinear(
                self.num_features, num_classes, self.num_experts, self.head, self.head_scale, **get_device_dtype(self)
            )
            if num_classes
            else nn.Identity()
        )
        self.global_pool.train(self.training)
        self.fc.train(self.training)


default_cfgs = generate_default_cfgs(
    {
        'resnet32_cifar_experts': network_cfg(PAPERS['ride'], **SMALL_IMAGES),
        'resnet50_experts': network_cfg(PAPERS['ride']),
        'resnext50_experts': network_cfg(PAPERS['ride']),
    }
)


_LARGE: dict[str, Any] = {'layers': [3, 4, 6, 3], 'channels': [64, 128, 192, 384], 'shared': 2, 'bottleneck': True}
# Blocks and channels of each stage, how many stages the experts share, and the form of the blocks.
SHAPES: dict[str, dict[str, Any]] = {
    'resnet32_cifar_experts': {'layers': [5, 5, 5], 'channels': [16, 24, 48], 'shared': 1},
    'resnet50_experts': _LARGE,
    'resnext50_experts': {**_LARGE, 'cardinality': 32, 'base_width': 4},
}


def _create(name: str, pretrained: bool, **kwargs: Any) -> ExpertResNet:
    kwargs = {**SHAPES[name], **kwargs}
    # The stem's features and those of every stage.
    maps = tuple(range(len(kwargs['layers']) + 1))
    return build_model_with_cfg(ExpertResNet, name, pretrained, feature_cfg={'out_indices': maps}, **kwargs)


@register_model
def resnet32_cifar_experts(pretrained: bool = False, **kwargs: Any) -> ExpertResNet:
    """Three experts on the first stage of a ResNet-32 for CIFAR."""
    return _create('resnet32_cifar_experts', pretrained, **kwargs)


@register_model
def resnet50_experts(pretrained: bool = False, **kwargs: Any) -> ExpertResNet:
    """Three experts on the first two stages of a ResNet-50."""
    return _create('resnet50_experts', pretrained, **kwargs)


@register_model
def resnext50_experts(pretrained: bool = False, **kwargs: Any) -> ExpertResNet:
    """Three experts on the first two stages of a ResNeXt-50 (32x4d)."""
    return _create('resnext50_experts', pretrained, **kwargs)
