"""What the zoo's own ResNets have in common: stem, stages, pooling and classifier, with timm's interface."""

# No postponed annotations: torch.fx writes those of forward into the code that it makes, and TorchScript reads them.

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices

__all__ = ['StagedResNet', 'ZeroPadShortcut']


class ZeroPadShortcut(nn.Module):
    """Option A shortcut: every second pixel, missing channels filled with zeros, half before and half behind."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


def _blocks(*stages: nn.Module) -> list[nn.Module]:
    """Return what is recomputed at once: a stage's blocks each, a stage of several networks as a whole."""
    return [block for stage in stages for block in (stage if isinstance(stage, nn.Sequential) else [stage])]


class StagedResNet(nn.Module):
    """A ResNet of three or four stages, with timm's interface.

    A network puts its own modules in the place of the identities here, as far as it has them, sets `num_features` and
    `feature_info`, and makes pooling and classifier by `_make_head`.

    Args:
        num_classes: number of classes, 0 for none (pooled features come out).
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
    """

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = self.head_hidden_size = 0
        self.feature_info: list[dict[str, Any]] = []
        # In the order in which they are run, which is that of parameters and of timm's feature extraction.
        self.conv1: nn.Module = nn.Identity()
        self.bn1: nn.Module = nn.Identity()
        self.act1: nn.Module = nn.Identity()
        self.maxpool: nn.Module = nn.Identity()
        self.layer1: nn.Module = nn.Identity()
        self.layer2: nn.Module = nn.Identity()
        self.layer3: nn.Module = nn.Identity()
        self.layer4: nn.Module = nn.Identity()
        self.global_pool: Any = nn.Identity()
        self.fc: nn.Module = nn.Identity()

    def _make_head(self, num_classes: int, global_pool: str) -> None:
        """Set `global_pool`, `fc` (an identity for 0 classes) and `head_hidden_size`."""
        raise NotImplementedError

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's parameter groups: the stem, then stages (coarse) or blocks, experts' of one depth together."""
        blocks = r'^layer(\d+)' if coarse else r'^layer(\d+)(?:\.experts\.\d+)?\.(\d+)'
        return {'stem': r'^(?:conv1|bn1)', 'blocks': blocks}

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
        self._make_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and those of stem (0) and stages (from 1).

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
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take_indices else []
        x = self.maxpool(x)
        stages = [self.layer1, self.layer2, self.layer3, self.layer4][: len(self.feature_info) - 1]
        for index, stage in enumerate(stages[:max_index] if stop_early else stages, start=1):
            x = checkpoint_seq(_blocks(stage), x) if self.grad_checkpointing else stage(x)
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
            setattr(self, info['module'], nn.Identity())
        if max_index == 0:
            self.maxpool = nn.Identity()
        self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or pruned:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_chans, H, W) to feature maps (N, num_features, h, w)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(_blocks(self.layer1, self.layer2, self.layer3, self.layer4), x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool feature maps and classify them; `pre_logits` stops before the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))
