"""Multi-expert ResNets and their classifiers."""

from __future__ import annotations

import copy
import math
import re
import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from torch import nn

import ltzoo
from ltzoo.models.heads import ExpertLinear, HeadError

NAMES = ['resnet32_cifar_experts', 'resnet50_experts', 'resnext50_experts']
SHORT = {'resnet32_cifar_experts': [1, 1, 1], 'resnet50_experts': [1, 1, 1, 1], 'resnext50_experts': [1, 1, 1, 1]}


def build(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return ltzoo.create_model(name, layers=SHORT[name], **kwargs).eval()


def images(model: nn.Module, batch: int = 2) -> torch.Tensor:
    side = min(model.pretrained_cfg['input_size'][-1], 64)
    return torch.randn(batch, 3, side, side)


@pytest.mark.parametrize(
    ('name', 'convolution', 'fan_in'),
    [
        ('resnet32_cifar_experts', 'layer3.experts.1.0.conv1', True),
        ('resnet50_experts', 'layer3.experts.1.0.conv3', False),
    ],
)
def test_convolutions_start_as_in_the_network_without_experts(name: str, convolution: str, fan_in: bool) -> None:
    weight = ltzoo.create_model(name).get_submodule(convolution).weight
    assert weight.shape[0] != weight.shape[1]
    fan = weight[0].numel() if fan_in else weight[:, 0].numel()
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.03)
    assert (weight.pow(4).mean() / weight.var() ** 2).item() == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize('cosine', [False, True])
def test_classifier_is_the_mean_of_single_ones(cosine: bool) -> None:
    torch.manual_seed(0)
    head = ExpertLinear(12, 5, 3, 'cosine' if cosine else 'linear', 7.0).double()
    if not cosine:
        nn.init.normal_(head.bias)
    x = torch.randn(4, 2, 12, dtype=torch.float64)
    expected = []
    for expert in range(3):
        part, weight = x[..., 4 * expert : 4 * expert + 4], head.weight[expert]
        if cosine:
            cosines = torch.cosine_similarity(part[..., None, :], weight, dim=-1)
            expected.append(7 * cosines)
        else:
            expected.append(part @ weight.T + head.bias[expert])
    torch.testing.assert_close(head(x, each=True), torch.stack(expected, -2), rtol=0, atol=1e-12)
    torch.testing.assert_close(head(x), sum(expected) / 3, rtol=0, atol=1e-12)


def test_cosine_class_vectors_start_at_unit_length_and_linear_ones_have_a_bias() -> None:
    cosine, linear = ExpertLinear(12, 5, 3), ExpertLinear(12, 5, 3, 'linear')
    torch.testing.assert_close(cosine.weight.norm(dim=-1), torch.ones(3, 5))
    assert cosine.bias is None
    assert linear.bias.shape == (3, 5)
    assert ExpertLinear(12, 5, 3, 'linear', scale=0.0).bias is not None
    with torch.no_grad():
        linear.bias.fill_(3)
    before = linear.weight.clone()
    linear.reset_parameters()
    assert not linear.bias.any() and (linear.weight != before).any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((12, 5, 3, 'mlp'), "no head is called 'mlp'"),
        ((12, 5, 3, 'cosine', 0.0), 'head_scale must be above 0, not 0.0'),
        ((13, 5, 3), '13 features cannot be shared among 3 experts'),
    ],
)
def test_impossible_classifiers(arguments: tuple, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        ExpertLinear(*arguments)


@pytest.mark.parametrize(
    'wrong',
    [
        {'shared': 0},
        {'shared': 3},
        {'num_experts': 0},
        {'channels': (16, 24)},
        {'layers': (1, 1), 'channels': (16, 24)},
        {'global_pool': 'catavgmax'},
        {'global_pool': ''},
        {'head': 'mlp'},
        {'layers': (5, 0, 5)},
    ],
)
def test_impossible_networks(wrong: dict) -> None:
    with pytest.raises(HeadError):
        ltzoo.create_model('resnet32_cifar_experts', **wrong)


@pytest.mark.parametrize('head', ['cosine', 'linear'])
def test_torch_fx_follows_them(head: str) -> None:
    model = timm.create_model('resnet32_cifar_experts', head=head, features_only=True, feature_cls='fx').eval()
    assert [maps.shape[2] for maps in model(torch.zeros(1, 3, 32, 32))] == [32, 32, 16, 8]


def test_published_sizes() -> None:
    # RIDE's ResNet-32 with reduced channels: stem 448 + 32, stages of 16, 24 and 48 channels, cosine classifiers.
    def stage(before: int, channels: int) -> int:
        convolutions = 9 * before * channels + 9 * (9 * channels * channels)
        return convolutions + 10 * 2 * channels

    model = ltzoo.create_model('resnet32_cifar_experts', num_classes=100)
    one = stage(16, 24) + stage(24, 48) + 48 * 100
    assert sum(p.numel() for p in model.parameters()) == 432 + 32 + stage(16, 16) + 3 * one


@pytest.mark.parametrize('name', NAMES)
def test_an_expert_alone_sees_the_shared_stages_and_its_own(name: str) -> None:
    model = build(name, num_classes=6)
    x = images(model)
    with torch.no_grad():
        maps = model.forward_features(x)
        before = model.get_classifier()(model.forward_head(maps, pre_logits=True), each=True)
        last = model.layer4 if 'cifar' not in name else model.layer3
        nn.init.zeros_(last.experts[1][0].conv1.weight)
        changed = model.forward_features(x)
        after = model.get_classifier()(model.forward_head(changed, pre_logits=True), each=True)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])
    torch.testing.assert_close(model(x), after.mean(1))


@pytest.mark.parametrize('name', NAMES)
def test_intermediates_pruning_and_features_only(name: str) -> None:
    model = build(name, num_classes=6)
    x = images(model)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(model.forward_head(last), model(x))
        assert torch.equal(last, maps[-1])
        assert [(m.shape[1], x.shape[-1] // m.shape[-1]) for m in maps] == [
            (info['num_chs'], info['reduction']) for info in model.feature_info
        ]
        wrapped = timm.create_model(name, layers=SHORT[name], features_only=True).eval()
        wrapped.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('fc.')}, strict=False)
        for got, expected in zip(wrapped(x), maps, strict=True):
            assert torch.equal(got, expected)
        two = timm.create_model(name, layers=SHORT[name], features_only=True, out_indices=(1, 2))
        assert tuple(two.feature_info.out_indices) == (1, 2)
        model.set_grad_checkpointing()
        torch.testing.assert_close(model(x), model.forward_head(last))
        stem = copy.deepcopy(model)
        stem.prune_intermediate_layers([0])
        assert torch.equal(stem(x), maps[0])
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers(2) == [len(maps) - 2, len(maps) - 1]
        pruned.prune_intermediate_layers([1])
        assert torch.equal(pruned(x), maps[1])
        assert pruned.num_features == maps[1].shape[1]


@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_grouped_by_depth_with_the_experts_together(name: str) -> None:
    stages = len(SHORT[name])
    with torch.device('meta'):
        model = ltzoo.create_model(name, layers=[2] * stages, num_classes=6)
    fine, coarse = (group_parameters(model, model.group_matcher(coarse), reverse=True) for coarse in (False, True))
    assert fine.keys() == coarse.keys() == dict(model.named_parameters()).keys()
    assert {'layer3.experts.0.0.conv1.weight', 'layer3.experts.2.1.conv1.weight'} < fine.keys()
    for parameter in fine:
        place = re.match(r'layer(\d)\.(?:experts\.\d\.)?(\d)', parameter)
        if place:
            stage, block = map(int, place.groups())
            expected = (2 * stage - 1 + block, stage)
        else:
            expected = (2 * stages + 1, stages + 1) if parameter.startswith('fc.') else (0, 0)
        assert (fine[parameter], coarse[parameter]) == expected, parameter


@pytest.mark.parametrize('head', ['linear', 'cosine'])
def test_saved_and_loaded(head: str, tmp_path: Path) -> None:
    arguments = {'num_classes': 6, 'num_experts': 2, 'head': head, 'channels': (16, 32, 64), 'shared': 2}
    model = build('resnet32_cifar_experts', **arguments)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(model)
    assert torch.equal(loaded(x), model(x))
    other = ltzoo.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=4)
    assert other.num_classes == 4
    assert torch.equal(other.layer3.experts[1][0].conv1.weight, model.layer3.experts[1][0].conv1.weight)


def test_it_compiles_exports_and_scripts() -> None:
    model = build('resnet32_cifar_experts', num_classes=6)
    x = images(model)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.testing.assert_close(torch.jit.script(model)(x), expected)


def test_they_are_listed() -> None:
    assert set(NAMES) <= set(ltzoo.list_models('*experts'))
