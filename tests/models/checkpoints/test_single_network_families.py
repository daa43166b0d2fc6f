"""Checkpoints with one network, against networks written from their layouts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import (
    Check,
    Contrastive,
    Momentum,
    Normed,
    SmallEncoder,
    SmallNetwork,
    large_encoder,
    randomise,
    training_state,
)
from torch import nn
from torchvision.models.resnet import Bottleneck

from ltzoo.models.checkpoints import convert


@pytest.mark.parametrize(('depth', 'name'), [(1, 'resnet8_cifar'), (3, 'resnet20_cifar'), (2, 'resnet32_cifar')])
def test_ldam_cosine_is_multiplied_by_30(check: Check, depth: int, name: str) -> None:
    model = randomise(SmallNetwork(Normed(64, 7), depth))
    converted = check(training_state(model), 'ldam', lambda x: 30 * model(x))
    assert converted.network.model == name
    assert converted.network.arguments.get('layers') == ([2, 2, 2] if depth == 2 else None)
    assert converted.model.num_classes == 7
    assert converted.unused == ['epoch', 'arch', 'best_acc1', 'optimizer']
    assert not converted.dropped


def test_ldam_of_as_many_classes_as_features(check: Check) -> None:
    model = randomise(SmallNetwork(Normed(64, 64)))
    check(training_state(model), 'ldam', lambda x: 30 * model(x))


def test_ldam_trained_with_another_loss_has_a_linear_classifier(check: Check) -> None:
    model = randomise(SmallNetwork(nn.Linear(64, 7)))
    converted = check(training_state(model, parallel=False), 'ldam', model)
    assert 'head' not in converted.network.arguments


def test_checkpoints_of_old_pytorch_have_no_counters(check: Check) -> None:
    model = randomise(SmallNetwork(Normed(64, 7)))
    state = {key: value for key, value in model.state_dict().items() if not key.endswith('num_batches_tracked')}
    converted = check({'state_dict': state}, 'ldam', lambda x: 30 * model(x))
    assert len(converted.added) == 7
    assert converted.placed == len(state)
    assert converted.model.bn1.num_batches_tracked == 0


@pytest.mark.parametrize('kind', ['bottleneck', 'resnext'])
@pytest.mark.parametrize('linear', [False, True])
def test_bcl_without_its_projections(check: Check, kind: str, linear: bool) -> None:
    classifier = nn.Linear(2048, 5) if linear else Normed(2048, 5, scale=30)
    model = randomise(Contrastive(large_encoder(kind), classifier, 2048))
    converted = check(training_state(model), 'bcl', model)
    assert converted.network.model == {'bottleneck': 'timm/resnet50', 'resnext': 'timm/resnext50_32x4d'}[kind]
    ((why, names),) = converted.dropped.items()
    assert why == 'projection heads of the contrastive loss'
    assert set(names) == {key for key in model.state_dict() if key.startswith(('head.', 'head_fc.'))}
    assert converted.placed + len(names) == len(model.state_dict())


def test_bcl_on_cifar(check: Check) -> None:
    model = randomise(Contrastive(SmallEncoder(), Normed(64, 7, scale=30), 64))
    assert check(training_state(model), 'bcl', model).network.model == 'resnet8_cifar'


@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('projection', ['head_fc', 'head_center'])
def test_gkpgsa_flat_or_with_an_encoder(check: Check, flat: bool, projection: str) -> None:
    model = randomise(Contrastive(SmallEncoder(), Normed(64, 100, scale=30), 64, projection))
    content = training_state(model, best_acc1=np.float64(51.3))
    if flat:
        content['state_dict'] = {key.replace('encoder.', ''): value for key, value in content['state_dict'].items()}
    converted = check(content, 'gkpgsa', model)
    assert sum(map(len, converted.dropped.values())) == 18
    cfg = converted.model.pretrained_cfg
    assert cfg['paper_ids'] == 'arXiv:2603.21217'
    assert converted.network.images['mean'] == (0.5071, 0.4867, 0.4408)


@pytest.mark.parametrize('family', ['paco', 'gpaco'])
@pytest.mark.parametrize('kind', ['small', 'resnext'])
def test_paco_keeps_the_query_encoder(check: Check, family: str, kind: str) -> None:
    encoder = SmallEncoder(width=32) if kind == 'small' else large_encoder(kind)
    model = randomise(Momentum(encoder, 128 if kind == 'small' else 2048, 6, keys=family == 'paco'))
    converted = check(training_state(model), family, model)
    if kind == 'small':
        assert converted.network.arguments['width'] == 32
    left_out = {name for names in converted.dropped.values() for name in names}
    assert left_out == {
        key for key in model.state_dict() if key.startswith(('encoder_k.', 'linear_k.', 'queue', 'encoder_q.fc.'))
    }


def stages(encoder: nn.Module, classifier: nn.Module, **entries: Any) -> dict[str, Any]:
    return {
        'epoch': 10,
        'state_dict_model': nn.DataParallel(encoder).state_dict(),
        'state_dict_classifier': nn.DataParallel(classifier).state_dict(),
        'best_acc1': torch.tensor(47.0),
        'its_ece': np.float64(4.8),
        **entries,
    }


def test_mislas_before_its_second_stage(check: Check) -> None:
    encoder = randomise(SmallEncoder())
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(64, 9)}), seed=1)
    check(stages(encoder, classifier), 'mislas', lambda x: classifier['fc'](encoder(x)))


def test_mislas_of_large_images_gets_back_the_data_set_s_order_of_classes(check: Check) -> None:
    encoder = randomise(large_encoder('bottleneck'))
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(2048, 5)}), seed=1)
    scaling = torch.rand(1, 5) + 0.5
    content = stages(encoder, classifier, state_dict_lws_model={'learned_norm': scaling})
    counts = [7, 90, 8, 1280, 5]

    def logits(x: torch.Tensor) -> torch.Tensor:
        theirs = scaling * classifier['fc'](encoder(x))
        return torch.stack([theirs[:, sorted(counts, reverse=True).index(count)] for count in counts], 1)

    check(content, 'mislas', logits, class_counts=counts)


def test_mislas_on_places_has_the_last_block_apart(check: Check) -> None:
    encoder, block = randomise(large_encoder('bottleneck')), randomise(Bottleneck(2048, 512), seed=2)
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(2048, 5)}), seed=1)
    del encoder.avgpool
    encoder.avgpool = nn.Identity()
    encoder.fc = nn.Unflatten(1, (2048, 2, 2))
    content = stages(encoder, classifier, state_dict_block=nn.DataParallel(block).state_dict())
    converted = check(
        content, 'mislas', lambda x: classifier['fc'](block(encoder(x)).mean((2, 3))), class_counts=[5, 4, 3, 2, 1]
    )
    assert converted.network.arguments == {'num_classes': 5, 'layers': [1, 1, 1, 2]}


def test_classes_of_equal_frequency_stand_as_numpy_left_them_when_mislas_was_trained(tmp_path: Path) -> None:
    counts = [2 + i * i * 7919 % 97 for i in range(1000)]
    encoder = large_encoder('basic')
    classifier = nn.ModuleDict({'fc': nn.Linear(512, 1000)})
    classifier['fc'].bias.data = torch.arange(1000.0)
    torch.save(stages(encoder, classifier), tmp_path / 'file.pth')
    model = convert(tmp_path / 'file.pth', 'mislas', class_counts=counts).model
    order = model.fc.bias.argsort().tolist()
    # Of np.argsort(-np.array(counts)), made with NumPy 1.21.0.
    digest = hashlib.sha256(','.join(map(str, order)).encode()).hexdigest()
    assert digest.startswith('835b05f19be2d8db')


def test_mislas_scales_multiply_weight_and_bias(check: Check) -> None:
    encoder = randomise(SmallEncoder())
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(64, 9)}), seed=1)
    scaling = torch.rand(1, 9) + 0.5
    content = stages(encoder, classifier, state_dict_lws_model={'module.learned_norm': scaling})
    check(content, 'mislas', lambda x: scaling * classifier['fc'](encoder(x)))


def two_parts(encoder: nn.Module, classifier: nn.Module, key: str = 'state_dict_best') -> dict[str, Any]:
    weights = {
        name: nn.DataParallel(part).state_dict() for name, part in (('feat_model', encoder), ('classifier', classifier))
    }
    return {'epoch': 90, 'best_epoch': 88, key: weights, 'best_acc': np.float64(0.41), 'centroids': None}


@pytest.mark.parametrize(
    ('kind', 'features', 'name'),
    [('basic', 512, 'resnet18'), ('bottleneck', 2048, 'resnet50'), ('resnext', 2048, 'resnext50_32x4d')],
)
@pytest.mark.parametrize('key', ['state_dict_best', 'state_dict'])
def test_crt(check: Check, kind: str, features: int, name: str, key: str) -> None:
    encoder = randomise(large_encoder(kind))
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(features, 9)}), seed=1)
    converted = check(two_parts(encoder, classifier, key), 'crt', lambda x: classifier['fc'](encoder(x)))
    assert converted.network.model == f'timm/{name}'
    assert converted.network.arguments == {'num_classes': 9, 'layers': [1, 1, 1, 1]}


def test_lws_scales_the_logits(check: Check) -> None:
    encoder = randomise(large_encoder('basic'))
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(512, 9)}), seed=1)
    classifier.register_parameter('scales', nn.Parameter(torch.rand(9) + 0.5))
    check(two_parts(encoder, classifier), 'lws', lambda x: classifier['fc'](encoder(x)) * classifier.scales)


@pytest.mark.parametrize('tau', [0.0, 0.7, 1.0])
def test_tau_norm_divides_by_lengths_and_has_no_bias(check: Check, tau: float) -> None:
    encoder = randomise(large_encoder('basic'))
    classifier = randomise(nn.ModuleDict({'fc': nn.Linear(512, 9)}), seed=1)

    def logits(x: torch.Tensor) -> torch.Tensor:
        rows = [row / float((row**2).sum()) ** (tau / 2) for row in classifier['fc'].weight]
        return torch.stack([encoder(x) @ row for row in rows], dim=1)

    converted = check(two_parts(encoder, classifier), 'tau_norm', logits, tau=tau)
    assert converted.dropped == {'bias, which tau-normalisation leaves out': ['classifier.fc.bias']}
    assert converted.options == {'tau': tau}
