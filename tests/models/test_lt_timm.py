"""Any timm model with a cosine head: saved, loaded, started from timm's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import ltzoo
from ltzoo.models import CosineLinear


@pytest.mark.parametrize('backbone', ['test_convnext', 'test_vit', 'mobilenetv3_small_050'])
def test_saved_and_loaded_outputs_are_bit_equal(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ltzoo.create_model(f'timm/{backbone}', num_classes=6, head='cosine', head_scale=16.0).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert isinstance(loaded.get_classifier(), CosineLinear)
    assert loaded.get_classifier().scale == 16.0
    x = torch.randn(2, *model.pretrained_cfg['input_size'])
    assert torch.equal(loaded(x), model(x))


def test_a_loaded_model_saves_again(tmp_path: Path) -> None:
    model = ltzoo.create_model('timm/test_resnet', num_classes=6, head='cosine', head_scale=16.0).eval()
    for generation in ('first', 'second'):
        save_for_hf(model, str(tmp_path / generation), safe_serialization=True)
        model = ltzoo.create_model(f'local-dir:{tmp_path / generation}', pretrained=True).eval()
    first, second = ((tmp_path / g / 'model.safetensors').read_bytes() for g in ('first', 'second'))
    assert first == second
    assert model.get_classifier().scale == 16.0


def test_other_classes_than_the_saved_ones_keep_the_encoder(tmp_path: Path) -> None:
    model = ltzoo.create_model('timm/test_resnet', num_classes=6, head='cosine')
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    other = ltzoo.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=4)
    assert isinstance(other.get_classifier(), CosineLinear)
    assert other.num_classes == 4
    encoder = ltzoo.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=0).state_dict()
    saved = model.state_dict()
    assert encoder.keys() == saved.keys() - {'fc.weight'}
    for name, value in encoder.items():
        assert torch.equal(value, saved[name])
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('num_classes', [7, 1000])
def test_pretrained_starts_from_the_backbone_and_a_new_head(num_classes: int, whole: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = timm.create_model('test_resnet')
    save_file(stock.state_dict(), tmp_path / 'stock.safetensors')
    file = {'file': str(tmp_path / 'stock.safetensors')}
    model = ltzoo.create_model(
        'timm/test_resnet',
        pretrained=True,
        **({'pretrained_cfg': {**stock.pretrained_cfg, **file}} if whole else {'pretrained_cfg_overlay': file}),
        num_classes=num_classes,
        head='cosine',
    )
    expected = stock.state_dict()
    for name, value in model.state_dict().items():
        if name != 'fc.weight':
            assert torch.equal(value, expected[name])
    assert model.state_dict().keys() == expected.keys() - {'fc.bias'}
    torch.testing.assert_close(model.fc.weight.norm(dim=1), torch.ones(num_classes))


def test_features_only_and_tags() -> None:
    maps = ltzoo.create_model('timm/test_resnet', head='cosine', features_only=True)
    stock = timm.create_model('test_resnet', features_only=True)
    assert maps.state_dict().keys() == stock.state_dict().keys()
    tagged = ltzoo.create_model('timm/resnet18.a1_in1k', head='cosine', num_classes=5)
    assert tagged.pretrained_cfg['tag'] == 'a1_in1k'
