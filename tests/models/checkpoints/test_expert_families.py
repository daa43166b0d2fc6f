"""Checkpoints with several experts, against networks written from their layouts."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_networks import Backbone, Check, LargeExperts, Normed, SmallExperts, randomise, training_state
from torch import nn


def normed(count: int, features: int, classes: int) -> list[nn.Module]:
    return [Normed(features, classes, scale=30) for _ in range(count)]


@pytest.mark.parametrize('family', ['ride', 'sade'])
@pytest.mark.parametrize('parallel', [False, True])
def test_small_experts(check: Check, family: str, parallel: bool) -> None:
    model = randomise(Backbone(SmallExperts(normed(3, 48, 7))))
    converted = check(training_state(model, parallel), family, model)
    assert converted.network.model == 'resnet32_cifar_experts'
    assert converted.placed == len(model.state_dict()) - 2, 'three classifiers are one tensor here'
    # The experts come in the order of the file.
    torch.manual_seed(2)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = converted.model.forward_head(converted.model.forward_features(x), pre_logits=True)
        got = converted.model.get_classifier()(features, each=True)
        for expert, expected in enumerate(model.backbone.experts(x)):
            torch.testing.assert_close(got[:, expert], expected, rtol=1e-5, atol=1e-4)


def test_linear_classifiers_other_numbers_and_channels(check: Check) -> None:
    model = randomise(Backbone(SmallExperts([nn.Linear(64, 7) for _ in range(2)], depth=2, channels=(32, 64))))
    converted = check(training_state(model), 'ride', model)
    assert converted.network.arguments == {
        **{'num_classes': 7, 'num_experts': 2, 'head': 'linear'},
        **{'layers': [2, 2, 2], 'channels': [16, 32, 64]},
    }


def test_the_published_form_needs_no_more_than_the_classes(check: Check) -> None:
    model = randomise(Backbone(SmallExperts(normed(3, 48, 7), depth=5)))
    converted = check(training_state(model), 'ride', model)
    assert converted.network.arguments.keys() == {'num_classes', 'num_experts', 'head', 'head_scale'}


@pytest.mark.parametrize(
    ('groups', 'width', 'share', 'name'),
    [
        (1, 64, False, 'resnet50_experts'),
        (32, 4, False, 'resnext50_experts'),
        (1, 64, True, 'resnet50_experts'),
    ],
)
def test_large_experts(check: Check, groups: int, width: int, share: bool, name: str) -> None:
    model = randomise(Backbone(LargeExperts(normed(2, 1536, 5), groups, width, share_layer3=share)))
    converted = check(training_state(model), 'sade', model)
    assert converted.network.model == name
    assert converted.network.arguments.get('shared') == (3 if share else None)


def test_routing_is_left_out(check: Check) -> None:
    model = randomise(Backbone(SmallExperts(normed(3, 48, 7))))
    content = training_state(model, parallel=False)
    routing = {
        'backbone.expert_help_pred_hidden_fcs.0.weight': torch.randn(16, 48),
        'backbone.expert_help_pred_fc.weight': torch.randn(1, 21),
    }
    content['state_dict'] = {**content['state_dict'], **routing}
    converted = check(content, 'ride', model)
    assert converted.dropped == {'routing; here every expert is asked': list(routing)}


def test_the_template_s_configuration_is_not_made(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def configuration() -> Any:
        module = types.ModuleType('parse_config')
        exec('class ConfigParser:\n    pass', module.__dict__)
        monkeypatch.setitem(sys.modules, 'parse_config', module)
        made = module.ConfigParser()
        made._config, made._save_dir, made.resume = {'name': 'RIDE'}, Path('saved'), None
        return made

    model = randomise(Backbone(SmallExperts(normed(3, 48, 7))))
    content = training_state(model, config=configuration(), monitor_best=0.4)
    real = torch.load

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.delitem(sys.modules, 'parse_config')
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', elsewhere)
    assert 'config' in check(content, 'ride', model).unused
