"""A recipe that trains in a second: digits, a network without batch-norm, two steps an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState, PartialState

from ltzoo.training.recipe import Recipe, load_recipe

SMALL: dict[str, Any] = {
    'data': {'name': 'digits_lt'},
    'model': {
        'name': 'timm/vit_tiny_patch16_224',
        'img_size': 8,
        'patch_size': 4,
        'embed_dim': 24,
        'depth': 2,
        'num_heads': 2,
        'proj_drop_rate': 0.1,
    },
    'objective': {'name': 'logit_adjusted'},
    'views': 'digits_plain',
    'optimizer': {'name': 'sgd', 'lr': 0.05},
    'schedule': {'name': 'cosine', 'warmup_epochs': 1},
    'epochs': 4,
    'batch_size': 120,
    'channels_last': False,
}


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test choose its precision, which Accelerate keeps for the whole process; train on the CPU."""
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    monkeypatch.setattr(PartialState, '_shared_state', {})
    monkeypatch.setattr(AcceleratorState, '_shared_state', {})


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare some hundred runs their figures, which tests/recipes and tests/tools look at."""
    monkeypatch.setattr('ltzoo.training.fit.plot_curves', lambda log, path: path.touch())
    monkeypatch.setattr('ltzoo.training.fit.plot_accuracy', lambda results, path: path.touch())


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'small.yaml'
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture
def make_recipe(small_recipe: Path) -> Callable[..., Recipe]:
    return lambda *overrides: load_recipe(small_recipe, overrides)
