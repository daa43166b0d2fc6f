"""The CIFAR ResNet against a plain re-computation of its definition, and published sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import ltzoo
from ltzoo.models import CifarResNet

# As published with the common PyTorch implementation of the CIFAR ResNets (10 classes: less 650 of the classifier);
# depth 8 by hand: stem, then two 3x3 convolutions and their norms in each stage.
ENCODER_PARAMETERS = {
    8: 464 + 4_672 + 13_952 + 55_552,
    20: 269_722 - 650,
    32: 463_504,
    44: 658_586 - 650,
    56: 853_018 - 650,
}


@pytest.mark.parametrize(('depth', 'parameters'), ENCODER_PARAMETERS.items())
def test_encoder_size(depth: int, parameters: int) -> None:
    encoder = ltzoo.create_model(f'resnet{depth}_cifar', num_classes=0)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    layers = [m for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) + 1 == depth


def plain_resnet(weights: dict[str, torch.Tensor], x: torch.Tensor, blocks: int, training: bool) -> torch.Tensor:
    """He et al. 2016, section 4.2: identity shortcuts, zeros for the channels that are missing."""

    def conv_norm(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, weights[f'{conv}.weight'], stride=stride, padding=1)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = weights[f'{norm}.running_mean'], weights[f'{norm}.running_var']
        scale = weights[f'{norm}.weight'] / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (weights[f'{norm}.bias'] - mean * scale)[:, None, None]

    x = conv_norm(x, 'conv1', 'bn1').relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            halve = stage > 1 and block == 0
            out = conv_norm(x, f'{name}.conv1', f'{name}.bn1', stride=2 if halve else 1).relu()
            out = conv_norm(out, f'{name}.conv2', f'{name}.bn2')
            if halve:
                x = x[:, :, ::2, ::2]
                before = after = x.new_zeros(x.shape[0], x.shape[1] // 2, *x.shape[2:])
                x = torch.cat([before, x, after], dim=1)
            x = (x + out).relu()
    return x.mean((2, 3)) @ weights['fc.weight'].T + weights['fc.bias']


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (8, 8), (17, 30)])
def test_forward_is_the_published_network(size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet32_cifar', num_classes=100).double().train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain_resnet(weights, x, 5, training), rtol=1e-9, atol=1e-9)


def test_convolutions_and_classifier_start_as_kaiming_normal() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet56_cifar', num_classes=1000)
    model.reset_classifier(2000)
    for weight in (model.layer3[1].conv1.weight, model.layer2[0].conv1.weight, model.fc.weight):
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
        # Fourth moment of a normal: a uniform of the same deviation would give 1.8.
        assert (weight.pow(4).mean() / weight.var() ** 2).item() == pytest.approx(3, rel=0.1)


def test_weights_drawn_anew_are_as_at_first() -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet8_cifar')
    torch.manual_seed(0)
    again = CifarResNet(layers=(1, 1, 1))
    torch.manual_seed(1)
    again.init_weights()
    assert not torch.equal(model.conv1.weight, again.conv1.weight)
    assert again.conv1.weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.2)
    assert again.layer3[0].bn2.weight.eq(1).all()


def test_an_odd_width_has_shortcuts_too() -> None:
    model = CifarResNet(layers=(1, 1, 1), width=15)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_drop_rate_drops_features_in_training_only() -> None:
    model = ltzoo.create_model('resnet20_cifar', num_classes=0, drop_rate=0.5)
    maps = torch.ones(2, 64, 8, 8)
    assert set(model.forward_head(maps).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(maps), torch.ones(2, 64))


def test_global_pool_is_a_choice() -> None:
    maps = torch.rand(2, 64, 8, 8)
    model = ltzoo.create_model('resnet20_cifar', num_classes=0, global_pool='max')
    torch.testing.assert_close(model.forward_head(maps), maps.amax((2, 3)))
    both = ltzoo.create_model('resnet20_cifar', num_classes=7, global_pool='catavgmax', head='cosine')
    assert both.head_hidden_size == 128
    assert both.forward_head(maps).shape == (2, 7)
