"""The table: every name builds what it says, and says what is true."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

import ltzoo
from ltzoo.models import CosineLinear
from ltzoo.models.heads import ExpertLinear
from ltzoo.models.lt_zoo import ZOO, _default_cfgs

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# Published sizes of the encoders: those of ResNet-50 and ResNeXt-50 are torchvision's, less the 1000-class classifier.
ENCODERS = {'resnet32': 463_504, 'resnet50': 25_557_032 - 2_049_000, 'resnext50': 25_028_904 - 2_049_000}
CLASSES = {'cifar100': 100, 'cifar10': 10, 'imagenet': 1000, 'inat18': 8142}


@pytest.mark.parametrize('name', ZOO)
def test_every_entry_builds_what_it_is_called(name: str) -> None:
    base, tag = name.split('.')
    architecture, _, method = base.split('_', 2)
    classes = CLASSES[tag.split('_')[0]]
    with torch.device('meta'):
        model = ltzoo.create_model(name)
        features = model.forward_features(torch.empty(2, *model.pretrained_cfg['input_size']))
        assert features.shape[2:] == model.pretrained_cfg['pool_size']
        assert model.forward_head(features).shape == (2, classes)
    head = model.get_classifier()
    if method == 'ride':
        assert type(head) is ExpertLinear
        assert (head.num_experts, head.bias, head.scale) == (3, None, 30)
        return
    assert type(head) is (nn.Linear if method in ('ce', 'focal', 'crt', 'lws', 'bs') else CosineLinear)
    assert getattr(head, 'scale', 30) == 30
    encoder = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in head.parameters())
    assert encoder == ENCODERS[architecture]


def test_large_networks_begin_with_residual_branches_at_work_as_those_of_bcl() -> None:
    def asleep(name: str, **arguments: bool) -> int:
        model = ltzoo.create_model(name, **arguments)
        last = [value for key, value in model.named_parameters() if key.endswith('.bn3.weight')]
        assert len(last) == 16
        return sum(not value.any() for value in last)

    assert asleep('resnet50_imagenetlt_bcl') == asleep('resnext50_imagenetlt_ce') == 0
    assert asleep('resnet50_inat18_gkpgsa', zero_init_last=True) == 16


def test_the_names_of_the_mission_and_their_tags() -> None:
    for name in (
        'resnet32_cifar_gkpgsa',
        'resnet50_imagenetlt_gkpgsa',
        'resnext50_imagenetlt_gkpgsa',
        'resnet50_inat18_gkpgsa',
    ):
        assert name in ltzoo.list_models()
        for method in ('ce', 'bs', 'bcl'):
            assert name.replace('gkpgsa', method) in ltzoo.list_models()
    assert set(ltzoo.list_models('resnet32_cifar_gkpgsa.*')) == {
        f'resnet32_cifar_gkpgsa.cifar{c}_lt_r{r}' for c in (10, 100) for r in (10, 50, 100)
    }


def test_the_first_tag_is_the_default_and_classes_follow_the_tag() -> None:
    assert ltzoo.get_pretrained_cfg('resnet32_cifar_gkpgsa').tag == 'cifar100_lt_r100'
    # Also where weights of another one alone are published.
    cfgs = {'net.a': PretrainedCfg(), 'net.b': PretrainedCfg(file='b.safetensors'), 'net.c': PretrainedCfg()}
    assert list(_default_cfgs(cfgs)['net'].tags) == ['a', 'b', 'c']
    with torch.device('meta'):
        assert ltzoo.create_model('resnet32_cifar_gkpgsa').num_classes == 100
        assert ltzoo.create_model('resnet32_cifar_gkpgsa.cifar10_lt_r50').num_classes == 10
        assert ltzoo.create_model('resnet32_cifar_gkpgsa.cifar10_lt_r50', num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ('name', 'mean', 'std', 'input_size', 'crop_pct'),
    [
        ('resnet32_cifar_bcl', *CIFAR, (3, 32, 32), 1.0),
        ('resnet32_cifar', *CIFAR, (3, 32, 32), 1.0),
        ('resnet50_imagenetlt_ce', *IMAGENET, (3, 224, 224), 0.875),
        ('resnet50_inat18_bs', (0.466, 0.471, 0.380), (0.195, 0.194, 0.192), (3, 224, 224), 0.875),
    ],
)
def test_images_are_fed_as_the_literature_has_it(name, mean, std, input_size, crop_pct) -> None:
    cfg = ltzoo.get_pretrained_cfg(name)
    assert (cfg.mean, cfg.std, cfg.input_size, cfg.crop_pct) == (mean, std, input_size, crop_pct)


def test_every_entry_has_licence_paper_and_layer_names() -> None:
    for name in ZOO:
        cfg = ltzoo.get_pretrained_cfg(name)
        assert cfg.license == 'apache-2.0'
        assert cfg.paper_name
        assert cfg.paper_ids.startswith('arXiv:')
        assert (cfg.first_conv, cfg.classifier) == ('conv1', 'fc')


def test_registered_modules_do_not_mix_with_those_of_timm() -> None:
    ours = set(ltzoo.list_models())
    for module in ('cifar_resnet', 'lt_zoo'):
        assert set(timm.list_models(module=module)) <= ours
    assert not ours & set(timm.list_models(module='resnet'))
