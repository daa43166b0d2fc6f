"""A record of a training, and models whose weights and statistics are no longer those of their initialisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ltzoo

Train = Callable[..., nn.Module]

COUNTS = [1234, 777, 61, 19, 5]


@pytest.fixture(scope='session')
def record() -> dict[str, Any]:
    """What a run knows of itself; five classes, no Medium-shot accuracy."""
    return {
        'data': 'pets_lt',
        'class_counts': COUNTS,
        'class_names': ['ant', 'bee', 'cat', 'dog', 'eel'],
        'many_above': 106,
        'few_below': 21,
        'recipe': {
            'data': {'name': 'pets_lt'},
            'model': {'name': 'resnet20_cifar'},
            'objective': {'name': 'bcl', 'temperature': 0.07},
            'views': 'cifar_plain',
            'optimizer': {'name': 'sgd', 'lr': 0.1},
            'epochs': 37,
            'batch_size': 48,
        },
        'seed': 8,
        'split': 'test',
        'scores': {
            'data': 'pets_lt',
            'samples': 2345,
            'top1': 71.237,
            'many': 80.5,
            'medium': None,
            'few': 33.3333333,
            'balanced_accuracy': 61.0,
            'ece': 4.449,
        },
        'environment': {'torch': '2.99'},
    }


@pytest.fixture
def lt(record: dict[str, Any]) -> dict[str, Any]:
    """The same, to be changed."""
    return copy.deepcopy(record)


@pytest.fixture(scope='session')
def train() -> Train:
    """Return a function that makes a model and takes two steps, so that batch-norm has statistics too."""
    made: dict[str, nn.Module] = {}

    def train(name: str, *, side: int = 16, **kwargs: Any) -> nn.Module:
        key = f'{name}, {side}, {sorted(kwargs.items())}'
        if key not in made:
            made[key] = make(name, side, **kwargs)
        return copy.deepcopy(made[key])

    def make(name: str, side: int, **kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        model = ltzoo.create_model(name, **{'num_classes': len(COUNTS), **kwargs})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(2):
            images, labels = torch.randn(8, 3, side, side) + 1, torch.randint(model.num_classes, (8,))
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    return train
