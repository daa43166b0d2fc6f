"""What timm asks of a model: the checks of its own tests/test_models.py, and what its wrappers rely on."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.models import FeatureInfo, group_parameters
from torchvision.models.feature_extraction import create_feature_extractor

import ltzoo

# Each network of the table, each head, each module of ours.
NAMES = ['resnet20_cifar', 'resnet32_cifar_gkpgsa', 'resnet50_inat18_gkpgsa', 'resnext50_imagenetlt_ce']
SMALL = NAMES[:2]
EXPERTS = ['resnet32_cifar_experts', 'resnet50_experts', 'resnext50_experts']


def images(model: torch.nn.Module, batch: int = 1, side: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    channels, height, width = model.pretrained_cfg['input_size']
    return torch.randn(batch, channels, min(height, side), min(width, side))


@pytest.mark.parametrize('name', [*NAMES, *EXPERTS])
def test_default_cfg_fits_the_model(name: str) -> None:
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    state = model.state_dict()
    assert f'{cfg["classifier"]}.weight' in state
    assert f'{cfg["first_conv"]}.weight' in state
    assert model.num_classes == cfg['num_classes']

    with torch.no_grad():
        maps = model.forward_features(images(model, side=224))
        assert maps.shape == (1, model.num_features, *cfg['pool_size'])
        assert model.forward_head(maps).shape == (1, cfg['num_classes'])
        pooled = model.forward_head(maps, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert torch.equal(model.forward_head(maps), pooled)
        model.reset_classifier(0, '')
        assert torch.equal(model.forward_head(maps), maps)
        model.reset_classifier(11, 'avg')
        assert model.forward_head(maps).shape == (1, 11)


@pytest.mark.parametrize('name', NAMES)
def test_no_classifier_and_no_pooling_from_the_constructor(name: str) -> None:
    model = timm.create_model(name, num_classes=0, global_pool='').eval()
    with torch.no_grad():
        assert model(images(model)).shape[:2] == (1, model.num_features)
        assert model(images(model)).ndim == 4


@pytest.mark.parametrize('name', [*NAMES, *EXPERTS])
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    output = model(images(model, batch=2))
    assert output.shape == (2, 42)
    output.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert output.isfinite().all()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
def test_features_only(name: str, feature_cls: str) -> None:
    model = timm.create_model(name, features_only=True, feature_cls=feature_cls).eval()
    full = timm.create_model(name).eval()
    missing, unexpected = full.load_state_dict(
        {k.removeprefix('model.'): v for k, v in model.state_dict().items()}, strict=False
    )
    assert unexpected == []
    assert {key.partition('.')[0] for key in missing} <= {'fc'}
    x = images(full)
    with torch.no_grad():
        maps = model(x)
        intermediates = full.forward_intermediates(x, intermediates_only=True)
    assert len(maps) == len(model.feature_info.channels()) >= 4
    for got, expected, channels, reduction in zip(
        maps, intermediates, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert got.shape == (1, channels, x.shape[2] // reduction, x.shape[3] // reduction)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('name', NAMES)
def test_intermediates(name: str) -> None:
    model = timm.create_model(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    x = images(model)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert [m.shape[1] for m in maps] == info.channels()
        assert [x.shape[2] // m.shape[2] for m in maps] == info.reduction()
        assert torch.equal(last, model.forward_features(x))
        assert torch.equal(maps[-1], last)
        early, chosen = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
        assert torch.equal(early, maps[2])
        assert [torch.equal(a, b) for a, b in zip(chosen, (maps[0], maps[2]), strict=True)] == [True, True]
        tail = model.forward_intermediates(x, indices=2, intermediates_only=True)
        assert [torch.equal(a, b) for a, b in zip(tail, maps[-2:], strict=True)] == [True, True]


@pytest.mark.parametrize('name', NAMES)
def test_pruning_keeps_what_the_kept_maps_need(name: str) -> None:
    model = timm.create_model(name).eval()
    x = images(model)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
        size = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([1, 2]) == [1, 2]
        assert sum(p.numel() for p in model.parameters()) < size / 3
        got = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
        assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True, True]
        assert torch.equal(model(x), expected[-1])
        assert model.num_features == expected[-1].shape[1]
        model.reset_classifier(4, 'avg')
        assert model(x).shape == (1, 4)


def test_pruning_the_head_alone() -> None:
    model = timm.create_model('resnet20_cifar')
    assert model.prune_intermediate_layers(1, prune_head=False) == [3]
    assert model.num_classes == 10
    model.prune_intermediate_layers(1)
    assert model.num_classes == 0


@pytest.mark.parametrize('name', NAMES)
def test_classifier_getter(name: str) -> None:
    model = timm.create_model(name)
    assert model.get_classifier() is model.get_submodule(model.get_classifier(name_only=True))
    assert model.get_classifier(name_only=True) == model.default_cfg['classifier']


@pytest.mark.parametrize('name', NAMES)
def test_one_channel(name: str) -> None:
    model = timm.create_model(name, in_chans=1).eval()
    assert model.get_submodule(model.default_cfg['first_conv']).weight.shape[1] == 1
    assert model(images(model)[:, :1]).shape == (1, model.num_classes)


@pytest.mark.parametrize('name', SMALL)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = timm.create_model(name).double().train()
    x = images(model, batch=2).double()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.forward_intermediates(x)[0], model.forward_features(x))


@pytest.mark.parametrize('name', SMALL)
def test_channels_last_is_kept_through_the_network(name: str) -> None:
    model = timm.create_model(name).eval()
    x = images(model, batch=2)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_layers_group_in_order_of_depth(name: str) -> None:
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups['conv1.weight'] == groups['bn1.weight'] == 0
    assert groups['fc.weight'] == max(groups.values())
    order = [groups[n] for n, _ in model.named_parameters() if re.match('layer', n)]
    assert order == sorted(order)
    assert min(order) == 1
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    stages = {n[5]: coarse[n] for n in coarse if n.startswith('layer')}
    assert sorted(stages.values()) == list(range(1, len(stages) + 1))


@pytest.mark.parametrize('name', SMALL)
def test_torchscript_and_dtype(name: str) -> None:
    model = timm.create_model(name, scriptable=True).eval()
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    low = timm.create_model(name, dtype=torch.bfloat16, device='cpu').eval()
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert low(x.bfloat16()).dtype == torch.bfloat16
    low.reset_classifier(3)
    assert low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('name', SMALL)
def test_torch_fx_and_torchscript_of_what_it_makes(name: str) -> None:
    model = timm.create_model(name, scriptable=True).eval()
    x = images(model)
    traced = create_feature_extractor(model, ['fc'])
    torch.testing.assert_close(traced(x)['fc'], model(x))
    torch.testing.assert_close(torch.jit.script(traced)(x)['fc'], model(x))


@pytest.mark.parametrize('name', ['resnet20_cifar', 'resnet32_cifar_bcl'])
def test_weights_adapt_to_other_classes_and_channels(name: str, tmp_path) -> None:
    source = timm.create_model(name, num_classes=10)
    file = tmp_path / 'weights.pth'
    torch.save(source.state_dict(), file)
    overlay = {'file': str(file), 'num_classes': 10}
    same = ltzoo.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), source.state_dict().values(), strict=True))
    other = ltzoo.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    assert other.fc.weight.shape == (5, 64)
    assert torch.equal(other.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    torch.testing.assert_close(other.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    maps = ltzoo.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert torch.equal(maps.state_dict()['conv1.weight'], source.conv1.weight)
