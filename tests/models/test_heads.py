"""The heads against plain formulas, and the exchange of classifiers on models of many families."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

import ltzoo
from ltzoo.models import CosineLinear, HeadError, ProjectionMLP
from ltzoo.models.heads import ExpertLinear, with_cosine_head

# One small model of each way in which timm builds a classifier.
BACKBONES = ['test_resnet', 'test_convnext', 'test_vit', 'test_efficientnet', 'mobilenetv3_small_050', 'test_byobnet']


def plain_cosine(features: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * F.cosine_similarity(features[:, None], weight[None], dim=-1)


def test_cosine_logits_and_gradients_are_those_of_cosine_similarity() -> None:
    torch.manual_seed(0)
    head = CosineLinear(7, 5, scale=12.5).double()
    features = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    expected = plain_cosine(features, head.weight, 12.5)
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-12)
    downstream = torch.randn(4, 5, dtype=torch.float64)
    got = torch.autograd.grad(head(features), (features, head.weight), downstream)
    wanted = torch.autograd.grad(expected, (features, head.weight), downstream)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('compiled', [False, True])
def test_cosine_logits_are_not_rounded_under_autocast(dtype: torch.dtype, compiled: bool) -> None:
    torch.manual_seed(0)
    head = CosineLinear(64, 5)
    features = torch.randn(16, 64).bfloat16()
    expected = plain_cosine(features.double(), head.weight.double(), 30.0)
    run = torch.compile(head, backend='eager', fullgraph=True) if compiled else head
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = run(features.to(dtype))
        # The next layer is rounded again.
        assert F.linear(logits.float(), torch.eye(5)).dtype == torch.bfloat16
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    downstream = torch.randn(16, 5)
    (got,) = torch.autograd.grad(logits, head.weight, downstream.to(logits.dtype))
    (wanted,) = torch.autograd.grad(expected, head.weight, downstream.double())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_nor_are_those_of_several_experts() -> None:
    torch.manual_seed(0)
    head = ExpertLinear(64, 5, 2)
    features = torch.randn(16, 64).bfloat16()
    wanted = [
        plain_cosine(f.double(), w.double(), 30.0) for f, w in zip(features.split(32, 1), head.weight, strict=True)
    ]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), sum(wanted) / 2, rtol=0, atol=1e-5)


def test_cosine_takes_leading_dimensions_and_has_no_bias() -> None:
    head = CosineLinear(7, 5)
    assert head(torch.randn(2, 3, 7)).shape == (2, 3, 5)
    assert [name for name, _ in head.named_parameters()] == ['weight']
    assert head.weight.shape == (5, 7)


def test_class_vectors_start_at_unit_length() -> None:
    torch.testing.assert_close(CosineLinear(64, 100).weight.norm(dim=1), torch.ones(100))


@pytest.mark.parametrize('scale', [0, -1.0])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(HeadError, match=f'head_scale must be above 0, not {scale}'):
        CosineLinear(4, 3, scale)


def test_a_model_whose_scale_is_refused_is_left_alone() -> None:
    model = ltzoo.create_model('resnet8_cifar', head='cosine')
    for scale in (-1.0, 5.0):
        with pytest.raises(HeadError):
            with_cosine_head(model, scale)
    model.reset_classifier(7)
    assert model.fc.scale == 30


def test_projection_is_linear_batchnorm_relu_linear() -> None:
    torch.manual_seed(0)
    mlp = ProjectionMLP(6, 9, 4).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    first, norm, _, second = mlp
    hidden = x @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(mlp(x), hidden.clamp_min(0) @ second.weight.T + second.bias)


@pytest.mark.parametrize('name', BACKBONES)
def test_any_backbone_becomes_a_cosine_classifier_of_its_own_features(name: str) -> None:
    torch.manual_seed(0)
    stock = timm.create_model(name, num_classes=6)
    names = [n for n, _ in stock.named_parameters()]
    model = with_cosine_head(stock, scale=20.0).eval()
    removed = {n for n in names} - {n for n, _ in model.named_parameters()}
    assert removed == {f'{model.pretrained_cfg["classifier"]}.bias'}

    x = torch.randn(2, *model.pretrained_cfg['input_size'])
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        head = model.get_classifier()
        torch.testing.assert_close(model(x), plain_cosine(features, head.weight, 20.0), rtol=1e-5, atol=1e-4)
        model.reset_classifier(4)
        assert isinstance(model.get_classifier(), CosineLinear)
        assert model.get_classifier().scale == 20.0
        assert model(x).shape == (2, 4)
        assert model(x).abs().max() <= 20.0
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), features)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)


def test_reset_keeps_mode_and_dtype() -> None:
    model = ltzoo.create_model('resnet20_cifar', head='cosine').to(torch.bfloat16).eval()
    model.reset_classifier(3)
    assert model.fc.weight.dtype == torch.bfloat16
    assert not model.fc.training


@pytest.mark.parametrize(
    ('name', 'kind'), [('levit_128', 'tuple'), ('dla34', 'Conv2d'), ('crossvit_9_240', 'ModuleList')]
)
def test_what_is_no_single_linear_layer_is_refused_and_left_alone(name: str, kind: str) -> None:
    with torch.device('meta'):
        stock = timm.create_model(name)
    cls = type(stock)
    with pytest.raises(HeadError, match=f'{cls.__name__} has a {kind} as classifier'):
        with_cosine_head(stock)
    assert type(stock) is cls


def cosine_model() -> nn.Module:
    torch.manual_seed(0)
    return ltzoo.create_model('resnet20_cifar', num_classes=5, head='cosine', head_scale=16.0).eval()


@pytest.mark.parametrize(
    'clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: ModelEmaV3(m).module]
)
def test_copies_are_whole_and_independent(clone) -> None:
    model = cosine_model()
    copied = clone(model)
    x = torch.randn(2, 3, 32, 32)
    assert type(copied) is type(model)
    assert torch.equal(copied(x), model(x))
    copied.reset_classifier(3)
    assert isinstance(copied.fc, CosineLinear)
    assert copied.fc.scale == 16.0
    assert model.fc.out_features == 5


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(clone) -> None:
    model = cosine_model()
    model.compile(backend='eager')
    x = torch.randn(2, 3, 32, 32)
    assert model(x).any()
    copied = clone(model)
    for p in copied.parameters():
        p.data.zero_()
    assert not copied(x).any()


def test_cosine_model_compiles() -> None:
    model = cosine_model()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert torch.equal(torch.compile(model, backend='eager', fullgraph=True)(x), expected)
