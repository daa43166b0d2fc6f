"""Files that are of another family, damaged, or not safe; and models of timm under their own names."""

from __future__ import annotations

import argparse
import collections
import decimal
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from foreign_networks import (
    Backbone,
    Check,
    Contrastive,
    LargeExperts,
    Momentum,
    Normed,
    SmallEncoder,
    SmallExperts,
    SmallNetwork,
    large_encoder,
    randomise,
    training_state,
)
from safetensors.torch import save_file
from torch import nn

import ltzoo
from ltzoo.models.checkpoints import FAMILIES, ConversionError, LayoutError, convert


def ldam() -> nn.Module:
    return randomise(SmallNetwork(Normed(64, 7)))


def two_parts(**extra: Any) -> dict[str, Any]:
    classifier = nn.ModuleDict({'fc': nn.Linear(512, 9)})
    weights = {'feat_model': large_encoder('basic').state_dict(), 'classifier': {**classifier.state_dict(), **extra}}
    return {'state_dict_best': weights}


CONTENTS = {
    'ldam': lambda: training_state(ldam()),
    'bcl or gkpgsa': lambda: training_state(Contrastive(SmallEncoder(), Normed(64, 7), 64)),
    'bcl': lambda: training_state(Contrastive(large_encoder('bottleneck'), Normed(2048, 7), 2048)),
    'paco': lambda: training_state(Momentum(SmallEncoder(), 64, 7, keys=True)),
    'gpaco': lambda: training_state(Momentum(SmallEncoder(), 64, 7, keys=False)),
    'ride or sade': lambda: training_state(Backbone(SmallExperts([Normed(48, 7), Normed(48, 7)]))),
    'mislas': lambda: {
        'state_dict_model': SmallEncoder().state_dict(),
        'state_dict_classifier': nn.ModuleDict({'fc': nn.Linear(64, 7)}).state_dict(),
    },
    'crt': two_parts,
    'lws': lambda: two_parts(scales=torch.ones(9)),
}


def saved(content: Any, folder: Path) -> Path:
    file = folder / 'checkpoint.pth'
    torch.save(content, file)
    return file


@pytest.mark.parametrize('right', CONTENTS)
def test_the_family_that_fits_is_named(right: str, tmp_path: Path) -> None:
    file = saved(CONTENTS[right](), tmp_path)
    names = set(right.split(' or '))
    for family in sorted(set(FAMILIES) - {'timm', 'tau_norm'} - names):
        with pytest.raises(LayoutError) as caught:
            convert(str(file), family)
        message = str(caught.value)
        assert message.startswith(f'{file} is no checkpoint of {family}: ')
        assert message.endswith(f'; its layout is that of --from {right}')
        assert '\n' not in message
    for family in names:
        assert convert(file, family).family.name == family


def test_timm_is_suggested_where_its_architecture_is_given(tmp_path: Path) -> None:
    file = saved(timm.create_model('test_resnet', num_classes=5).state_dict(), tmp_path)
    with pytest.raises(LayoutError, match=r'its layout is that of --from timm$'):
        convert(file, 'ldam', arch='test_resnet')
    with pytest.raises(LayoutError) as caught:
        convert(file, 'ldam')
    assert 'its layout is that' not in str(caught.value)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = ldam().state_dict()
    del state['layer2.0.bn1.weight'], state['bn1.running_mean']
    state |= {f'extra.{index}': torch.zeros(1) for index in range(6)}
    state['layer3.0.conv2.weight'] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(LayoutError) as caught:
        convert(saved({'state_dict': state}, tmp_path), 'ldam')
    assert str(caught.value).endswith(
        'ldam: taken for a resnet8_cifar, it does not fit: missing: bn1.running_mean, layer2.0.bn1.weight; '
        'unexpected: extra.0, extra.1, extra.2, extra.3 and 2 more; '
        'of another shape: layer3.0.conv2.weight (64, 64, 1, 1), not (64, 64, 3, 3)'
    )


def changed(**tensors: Any) -> dict[str, Any]:
    return {key: value for key, value in {**ldam().state_dict(), **tensors}.items() if value is not None}


@pytest.mark.parametrize(
    ('content', 'family', 'message'),
    [
        ([1, 2], 'ldam', 'it holds a list, not a dictionary'),
        ({}, 'ldam', 'it is empty'),
        ({'state_dict': {}}, 'ldam', 'it holds no tensors'),
        ({'state_dict': {}}, 'bcl', 'it holds no tensors'),
        ({'state_dict': {0: torch.zeros(1)}}, 'ldam', '0 is no name of a tensor'),
        ({'state_dict': changed(), 3: torch.zeros(1)}, 'ldam', 'unexpected: 3'),
        (changed(**{'linear.weight': torch.full((64, 7), torch.nan)}), 'ldam', r'not finite, .*: fc\.weight'),
        (
            training_state(nn.Sequential(collections.OrderedDict(fc=nn.Linear(64, 7)))),
            'bcl',
            'encoder.conv1.weight is missing',
        ),
        (
            {'state_dict': ltzoo.create_model('resnet20_cifar').state_dict()},
            'gkpgsa',
            'neither projection heads nor an encoder',
        ),
        ({'epoch': 3, 'weights': 4}, 'ldam', r'it has no state_dict \(it has epoch, weights\)'),
        (changed(epoch=3), 'ldam', 'it has no state_dict'),
        ({'state_dict': {'a': 3}}, 'ldam', 'a is a int, not a tensor'),
        ({'state_dict': changed(), 'teacher': {'a': torch.zeros(1)}}, 'ldam', 'unexpected: teacher'),
        (changed(**{'linear.weight': torch.zeros(3)}), 'ldam', r'linear.weight has shape \(3,\), which is no linear'),
        (changed(**{'linear.weight': None}), 'ldam', 'linear.weight is missing'),
        (changed(**{'conv1.weight': torch.zeros(16, 3, 5, 5)}), 'ldam', 'no first layer of a ResNet; supported are'),
        (changed(**{'layer2.0.shortcut.0.weight': torch.zeros(1)}), 'ldam', r'shortcuts with weights \(layer2.0.short'),
        (changed(**{'layer2.0.conv1.weight': torch.zeros(24, 16, 3, 3)}), 'ldam', r'stages of \[16, 24, 64\] channels'),
        (
            {
                'state_dict_model': SmallEncoder().state_dict(),
                'state_dict_classifier': {'fc.weight': torch.zeros(7, 64), 'fc.bias': torch.zeros(7)},
                'state_dict_lws_model': {'learned_norm': torch.ones(1, 8)},
            },
            'mislas',
            'lws.learned_norm has 8 factors for 7 classes',
        ),
        (
            {
                'state_dict_model': SmallEncoder().state_dict(),
                'state_dict_classifier': {'fc.weight': torch.zeros(7, 64), 'fc.bias': torch.zeros(7)},
                'state_dict_block': {'conv1.weight': torch.ones(1)},
            },
            'mislas',
            'it is a ResNet for small images',
        ),
        (two_parts(scales=torch.ones(9)), 'crt', 'unexpected: classifier.scales; its layout is that of --from lws'),
        (
            training_state(Backbone(SmallExperts([Normed(48, 7), Normed(48, 8)]))),
            'ride',
            r"experts' classifiers differ in shape: \(48, 7\), \(48, 8\)",
        ),
        (
            training_state(Backbone(LargeExperts([Normed(1536, 7)], groups=2, width=32))),
            'ride',
            'neither those of ResNet-50 nor of ResNeXt-50',
        ),
        (
            changed(**{'linear.weight': torch.zeros(1).expand(64, 7)}),
            'ldam',
            r'linear\.weight has more numbers than the file holds',
        ),
        (training_state(Contrastive(large_encoder('basic'), Normed(512, 7), 512)), 'gkpgsa', 'ResNets for CIFAR only'),
    ],
)
def test_other_layouts_are_refused(content: Any, family: str, message: str, tmp_path: Path) -> None:
    file = saved(content, tmp_path)
    with pytest.raises(LayoutError, match=message):
        convert(file, family)


@pytest.mark.parametrize(
    ('family', 'options', 'message'),
    [
        ('lda', {}, "no family is called 'lda': it can be bcl, crt, "),
        ('ldam', {'num_classes': 10}, 'has 7 classes, not 10'),
        ('ldam', {'arch': 'resnet32_cifar'}, 'is of a resnet8_cifar, not of a resnet32_cifar'),
        ('ldam', {'tau': 1.0}, '--tau goes with the family tau_norm, not with ldam'),
        ('tau_norm', {}, 'tau_norm needs --tau'),
        ('timm', {}, 'timm needs --arch'),
        ('tau_norm', {'tau': float('nan')}, '--tau must be a number such as 1, not nan'),
        ('timm', {'arch': 'resnet5000'}, "no model is called 'resnet5000': the nearest are resnet"),
        (
            'timm',
            {'arch': 'resnet32_cifr_ce'},
            "no model is called 'resnet32_cifr_ce': the nearest are resnet32_cifar_ce",
        ),
        ('timm', {'arch': 'resnet32_cifar_ce.cifar100'}, "no tag 'cifar100'"),
        ('timm', {'arch': 'qwen3_vit_88m_enc'}, 'qwen3_vit_88m_enc has no classifier'),
    ],
)
def test_options_that_do_not_fit(family: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ltzoo.LtzooError, match=message):
        convert(saved(CONTENTS['ldam'](), tmp_path), family, **options)


@pytest.mark.parametrize(
    ('counts', 'message'),
    [(None, 'give --data NAME and --data-dir DIR'), ([3, 2], 'has 7 classes, the data set has 2')],
)
def test_mislas_of_large_images_needs_the_data_s_classes(
    counts: list[int] | None, message: str, tmp_path: Path
) -> None:
    classifier = {'fc.weight': torch.zeros(7, 512), 'fc.bias': torch.zeros(7)}
    content = {'state_dict_model': large_encoder('basic').state_dict(), 'state_dict_classifier': classifier}
    file = saved(content, tmp_path)
    with pytest.raises(ConversionError, match=message):
        convert(file, 'mislas', class_counts=counts)
    with pytest.raises(LayoutError, match='its layout is that of --from mislas'):
        convert(file, 'ldam')


def test_options_that_fit(tmp_path: Path) -> None:
    file = saved(CONTENTS['ldam'](), tmp_path)
    assert convert(file, 'ldam', num_classes=7, arch='resnet8_cifar').model.num_classes == 7


def test_harmless_types_need_no_word(check: Check) -> None:
    model = ldam()
    check(
        training_state(
            model,
            args=argparse.Namespace(lr=0.1, root=Path('logs')),
            loss=np.float32(1.5),
            acc=np.arange(4.0),
            history=collections.OrderedDict(epoch=np.int64(3), many=np.bool_(True)),
        ),
        'ldam',
        lambda x: 30 * model(x),
    )


class Mine:
    """A class of this file, which is no harmless type."""


class Evil:
    """An object that runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    model = ldam()
    for value, kind in (
        (Mine(), f'{Mine.__module__}.Mine'),
        (decimal.Decimal(1), 'decimal.Decimal'),
        (Evil(tmp_path / 'ran'), f'{os.name}.mkdir'),
    ):
        file = saved(training_state(model, value=value), tmp_path)
        with pytest.raises(ConversionError) as caught:
            convert(file, 'ldam')
        assert str(caught.value).startswith(f'{file} holds an object of type {kind}, ')
        assert str(caught.value).endswith('say --unsafe-pickle')
    assert not (tmp_path / 'ran').exists()
    convert(file, 'ldam', unsafe_pickle=True)
    assert (tmp_path / 'ran').exists()


def test_the_word_also_loads_types_of_modules_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType('their_utils')
    exec('class Meter:\n    def __init__(self):\n        self.average = 3', module.__dict__)
    monkeypatch.setitem(sys.modules, 'their_utils', module)
    file = saved(training_state(ldam(), meter=module.Meter()), tmp_path)
    monkeypatch.delitem(sys.modules, 'their_utils')
    with pytest.raises(ConversionError, match=r'type their_utils\.Meter'):
        convert(file, 'ldam')
    assert 'meter' in convert(file, 'ldam', unsafe_pickle=True).unused


def test_a_whole_model_needs_the_word(tmp_path: Path) -> None:
    model = ldam()
    file = saved(model, tmp_path)
    with pytest.raises(ConversionError, match=r'type foreign_networks\.SmallNetwork'):
        convert(file, 'ldam')
    converted = convert(file, 'ldam', unsafe_pickle=True)
    assert torch.equal(converted.model.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize('cut', [0, 3, 5000])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('unsafe', [False, True])
def test_damaged_files(cut: int, suffix: str, unsafe: bool, tmp_path: Path) -> None:
    file = tmp_path / f'checkpoint{suffix}'
    state = ldam().state_dict()
    save_file(state, file) if suffix == '.safetensors' else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ConversionError, match=str(file)):
        convert(file, 'ldam', unsafe_pickle=unsafe)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    text = tmp_path / 'notes.pth'
    text.write_text('my notes')
    for file, message in (
        (text, 'is no checkpoint|damaged'),
        (tmp_path, 'there is no file'),
        (tmp_path / 'x', 'no file'),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(file, 'ldam')


@pytest.mark.parametrize('legacy', [False, True])
def test_safetensors_and_old_files(legacy: bool, tmp_path: Path) -> None:
    model = ldam()
    file = tmp_path / ('checkpoint.pth' if legacy else 'checkpoint.safetensors')
    if legacy:
        torch.save(training_state(model), file, _use_new_zipfile_serialization=False)
    else:
        save_file(model.state_dict(), file)
    converted = convert(file, 'ldam')
    for name, value in model.state_dict().items():
        if name != 'linear.weight':
            assert torch.equal(converted.model.state_dict()[name], value), name
    assert torch.equal(converted.model.fc.weight, model.linear.weight.T)


@pytest.mark.parametrize('arch', ['test_vit', 'timm/test_convnext', 'resnet8_cifar'])
@pytest.mark.parametrize(
    ('prefix', 'key'),
    [
        ('', None),
        ('module.', 'state_dict'),
        ('model.', 'state_dict'),
        ('module.model.', 'net'),
        ('_orig_mod.', 'model'),
    ],
)
def test_models_of_timm(check: Check, arch: str, prefix: str, key: str | None) -> None:
    torch.manual_seed(0)
    name = arch if arch == 'resnet8_cifar' else f'timm/{arch.removeprefix("timm/")}'
    model = ltzoo.create_model(name, num_classes=6).eval()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    converted = check({key: state, 'epoch': 3} if key else state, 'timm', model, arch=arch)
    assert converted.model.num_classes == 6


def test_averaged_weights_come_first(check: Check) -> None:
    plain, averaged = (timm.create_model('test_resnet', num_classes=5).eval() for _ in range(2))
    content = {'state_dict': plain.state_dict(), 'state_dict_ema': averaged.state_dict(), 'metric': 3.0}
    converted = check(content, 'timm', averaged, arch='test_resnet')
    assert converted.dropped == {'weights that are not averaged': ['state_dict']}
    assert converted.unused == ['metric']


def test_a_model_of_timm_without_its_classifier(tmp_path: Path) -> None:
    file = saved(timm.create_model('test_resnet', num_classes=0).state_dict(), tmp_path)
    with pytest.raises(LayoutError, match=r'fc\.weight is missing'):
        convert(file, 'timm', arch='test_resnet')


def test_a_file_of_no_bytes_or_a_classifier_of_no_dimensions(tmp_path: Path) -> None:
    file = tmp_path / 'checkpoint.pth'
    file.touch()
    with pytest.raises(ConversionError, match='cannot be read: it is empty or ends too soon'):
        convert(file, 'ldam')
    saved({'fc.weight': torch.zeros(())}, tmp_path)
    with pytest.raises(LayoutError, match=r'fc.weight has shape \(\), which is no classifier'):
        convert(file, 'timm', arch='resnet20_cifar')


def test_an_empty_state_dict_of_timm_ends(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match='it holds no tensors'):
        convert(saved({'state_dict': {}}, tmp_path), 'timm', arch='resnet20_cifar')


def test_timm_takes_a_zoo_name_with_its_tag(tmp_path: Path) -> None:
    name = 'resnet32_cifar_bcl.cifar10_lt_r50'
    converted = convert(saved(ltzoo.create_model(name).state_dict(), tmp_path), 'timm', arch=name)
    assert converted.network.model == name
    assert converted.model.num_classes == 10


def test_a_class_vector_of_zeros_has_no_length_to_divide_by(tmp_path: Path) -> None:
    content = two_parts()
    content['state_dict_best']['classifier']['fc.weight'][2] = 0
    weight = convert(saved(content, tmp_path), 'tau_norm', tau=1.0).model.get_classifier().weight
    assert weight.isfinite().all()
    assert (weight[2] == 0).all()


def test_averaged_weights_alone_leave_nothing_out(check: Check) -> None:
    averaged = timm.create_model('test_resnet', num_classes=5).eval()
    converted = check({'state_dict_ema': averaged.state_dict()}, 'timm', averaged, arch='test_resnet')
    assert not converted.dropped
