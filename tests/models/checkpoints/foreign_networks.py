"""Networks of other projects, written from the layouts of their checkpoints in plain PyTorch and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ltzoo.models.checkpoints import Converted

# See the fixture `check`.
Check = Callable[..., Converted]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and statistic a value of its own, so that none can be mistaken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.fill_(7)
            elif isinstance(module, (nn.Linear, Normed)):
                module.weight.normal_(0, 0.3, generator=generator)
                if getattr(module, 'bias', None) is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


class Normed(nn.Module):
    """Cosine classifier with class vectors in the columns of its weight."""

    def __init__(self, features: int, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, classes))
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x / x.pow(2).sum(1, keepdim=True).sqrt()
        return self.scale * x @ (self.weight / self.weight.pow(2).sum(0, keepdim=True).sqrt())


class SmallBlock(nn.Module):
    """Basic block whose shortcut drops pixels and adds channels of zeros."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, (channels - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        zeros = x.new_zeros(len(x), self.extra, *x.shape[2:])
        return F.relu(out + torch.cat([zeros, x, zeros], 1))


def small_stage(before: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = SmallBlock(before, channels, stride)
    return nn.Sequential(first, *(SmallBlock(channels, channels, 1) for _ in range(depth - 1)))


class SmallEncoder(nn.Module):
    """The ResNet for CIFAR of LDAM, up to its features."""

    def __init__(self, depth: int = 1, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = small_stage(width, width, depth, 1)
        self.layer2 = small_stage(width, 2 * width, depth, 2)
        self.layer3 = small_stage(2 * width, 4 * width, depth, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


class SmallNetwork(SmallEncoder):
    """The same with a classifier under the name `linear`."""

    def __init__(self, classifier: nn.Module, depth: int = 1, width: int = 16) -> None:
        super().__init__(depth, width)
        self.linear = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


def large_encoder(kind: str) -> nn.Module:
    """One block in each stage of torchvision's networks, without fc."""
    model = {
        'basic': lambda: ResNet(BasicBlock, [1, 1, 1, 1]),
        'bottleneck': lambda: ResNet(Bottleneck, [1, 1, 1, 1]),
        'resnext': lambda: ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4),
    }[kind]()
    model.fc = nn.Identity()
    return model


def mlp(features: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


class Contrastive(nn.Module):
    """BCL's model: encoder, classifier, and projections of features and class vectors."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module, features: int, projection: str = 'head_fc') -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp(features, 8, 4)
        self.fc = classifier
        self.add_module(projection, mlp(features, 8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(x))


class Momentum(nn.Module):
    """PaCo's model; with `keys=False` GPaCo's."""

    def __init__(self, encoder: nn.Module, features: int, classes: int, keys: bool) -> None:
        super().__init__()
        self.encoder_q = encoder
        self.encoder_q.fc = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 4))
        self.linear = nn.Linear(features, classes)
        if keys:
            self.encoder_k = SmallEncoder() if isinstance(encoder, SmallEncoder) else large_encoder('basic')
            self.linear_k = nn.Linear(features, classes)
        self.register_buffer('queue', torch.randn(16, 4))
        self.register_buffer('queue_l', torch.randint(0, classes, (16,)))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        if isinstance(self.encoder_q, SmallEncoder):
            return self.linear(self.encoder_q.features(x))
        hook = self.encoder_q.avgpool.register_forward_hook(lambda _module, _input, output: seen.append(output))
        self.encoder_q(x)
        hook.remove()
        return self.linear(seen[0].flatten(1))


class SmallExperts(nn.Module):
    """RIDE's network for CIFAR."""

    def __init__(self, classifiers: list[nn.Module], depth: int = 1, channels: tuple[int, int] = (24, 48)) -> None:
        super().__init__()
        count = len(classifiers)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = small_stage(16, 16, depth, 1)
        self.layer2s = nn.ModuleList([small_stage(16, channels[0], depth, 2) for _ in range(count)])
        self.layer3s = nn.ModuleList([small_stage(*channels, depth, 2) for _ in range(count)])
        self.linears = nn.ModuleList(classifiers)

    def experts(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        parts = zip(self.layer2s, self.layer3s, self.linears, strict=True)
        return [linear(third(second(x)).mean((2, 3))) for second, third, linear in parts]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(self.experts(x)) / len(self.linears)


def large_stage(before: int, planes: int, depth: int, stride: int, groups: int, width: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(before, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
    first = Bottleneck(before, planes, stride, shortcut, groups, width)
    rest = (Bottleneck(4 * planes, planes, groups=groups, base_width=width) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


class LargeExperts(nn.Module):
    """RIDE's and SADE's networks for large images; `share_layer3` as SADE has it on Places."""

    def __init__(
        self,
        classifiers: list[nn.Module],
        groups: int = 1,
        width: int = 64,
        depth: int = 1,
        planes: tuple[int, int] = (192, 384),
        share_layer3: bool = False,
    ) -> None:
        super().__init__()
        count = len(classifiers)
        kind = (groups, width)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = large_stage(64, 64, depth, 1, *kind)
        self.layer2 = large_stage(256, 128, depth, 2, *kind)
        if share_layer3:
            self.layer3 = large_stage(512, planes[0], depth, 2, *kind)
        else:
            self.layer3s = nn.ModuleList([large_stage(512, planes[0], depth, 2, *kind) for _ in range(count)])
        self.layer4s = nn.ModuleList([large_stage(4 * planes[0], planes[1], depth, 2, *kind) for _ in range(count)])
        self.linears = nn.ModuleList(classifiers)
        self.share_layer3 = share_layer3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer2(self.layer1(x))
        logits = []
        for index, (fourth, linear) in enumerate(zip(self.layer4s, self.linears, strict=True)):
            third = self.layer3 if self.share_layer3 else self.layer3s[index]
            logits.append(linear(fourth(third(x)).mean((2, 3))))
        return torch.stack(logits).mean(0)


class Backbone(nn.Module):
    """The wrapper that puts `backbone.` before every name."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def training_state(model: nn.Module, parallel: bool = True, **entries: Any) -> dict[str, Any]:
    """What training scripts save: the weights of a parallel model, the optimiser's state, counters."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer.step()
    model.load_state_dict(before)
    weights = (nn.DataParallel(model) if parallel else model).state_dict()
    return {
        'epoch': 200,
        'arch': 'resnet',
        'state_dict': weights,
        'best_acc1': torch.tensor(40.2),
        'optimizer': optimizer.state_dict(),
        **entries,
    }
