"""Whole runs: stopped on the way, and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltzoo.training import fit as fit_module
from ltzoo.training.fit import fit
from ltzoo.training.recipe import Recipe
from ltzoo.training.run import RunFolder
from ltzoo.training.training import Training

GKPGSA = (
    'method.groups=2', 'method.first_grouping=1', 'method.regroup_every=1', 'method.preservation.samples_per_group=8',
)  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / 'model' / 'model.safetensors')


def assert_equal_runs(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert json.loads((one / 'results.json').read_text())['top1'] == pytest.approx(
        json.loads((other / 'results.json').read_text())['top1']
    )


class Pulled(BaseException):
    """The plug."""


def fit_until(epochs: int, recipe: Recipe, run: Path) -> None:
    """Train, and pull the plug right after the checkpoint of that many epochs."""
    whole = fit_module._save

    def save_and_stop(folder: RunFolder, training: Training) -> None:
        whole(folder, training)
        if training.epoch == epochs:
            raise Pulled

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Pulled):
        patch.setattr(fit_module, '_save', save_and_stop)
        fit(recipe, run, progress=False)
