"""Compiled steps against steps taken as they are."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from step_forms import FORMS, recipe_file
from torch import Tensor, nn
from torch._inductor import config as inductor

from ltzoo.compiled import Compiled, CompileError
from ltzoo.training.fit import fit
from ltzoo.training.prepare import prepare_data, prepare_training
from ltzoo.training.recipe import RecipeError, load_recipe

METHODS = {name: form for name, form in FORMS.items() if 'method' in form}
AT_ONCE = ('gkpgsa',)


@pytest.fixture
def _without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that compiling does up to the code that it would write, which is seconds instead of minutes."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(1))
        self.register_buffer('seen', torch.zeros(()))

    def gradient(self, x: Tensor) -> Tensor:
        self.seen += 1
        loss = (self.fc(x).square() * self.seen).mean()
        loss.backward()
        return loss.detach()


@pytest.mark.usefixtures('_without_a_compiler')
def test_replays_give_gradients_and_change_what_lies_in_tensors() -> None:
    module, calls = Small(), []

    def gradient(x: Tensor) -> Tensor:
        calls.append(len(x))
        return module.gradient(x)

    replayed = Compiled(gradient, list(module.parameters()))
    for call in range(6):
        x = torch.randn(4, 3)
        loss = replayed(x)
        expected = (module.fc(x).square() * (call + 1)).mean()
        torch.testing.assert_close(loss, expected.detach())
        grads = torch.autograd.grad(expected, list(module.fc.parameters()))
        for p, g in zip(module.fc.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, g)
        assert module.unused.grad is None
        assert module.seen == call + 1
        module.zero_grad()
        with torch.no_grad():
            module.fc.weight += 0.1
    assert len(calls) == 2
    replayed.forget()
    replayed(torch.randn(4, 3))
    assert len(calls) == 3


@pytest.mark.usefixtures('_without_a_compiler')
def test_what_cannot_be_compiled_is_refused() -> None:
    waits = Compiled(lambda x: x * 2 if x.sum().item() > 0 else x)
    waits(torch.ones(2))
    with pytest.raises(CompileError, match=r'^this step cannot be compiled, take compile=false: '):
        waits(torch.ones(2))
    double = Compiled(lambda x: 2 * x)
    for _ in range(3):
        double(torch.ones(2))
    with pytest.raises(CompileError, match=r'compiled for a batch of shape \(2,\) and is now given \(3,\)'):
        double(torch.ones(3))


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    double = Compiled(lambda x: (2 * x).sin() + 1)
    double(torch.ones(2))
    double(torch.ones(2))
    message = r'^this step cannot be compiled, take compile=false: [^\n]*C\+\+ compiler[^\n]*$'
    with (
        inductor.patch({'cpp.cxx': ('no-such-compiler',)}),
        pytest.raises(CompileError, match=message) as refused,
    ):
        double(torch.ones(2))
    assert 'TORCHDYNAMO_VERBOSE' not in str(refused.value)


@pytest.mark.usefixtures('_without_a_compiler')
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in METHODS]
)
def test_a_compiled_training_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Compiled] = []

    class Counted(Compiled):
        def forget(self) -> None:
            super().forget()
            made.append(self)

    monkeypatch.setattr('ltzoo.training.prepare.Compiled', Counted)
    path = recipe_file(tmp_path, **METHODS[name])
    for compiled in ('false', 'true'):
        fit(load_recipe(path, [f'compile={compiled}']), tmp_path / compiled, progress=False)
    # Of plain steps, and from the first grouping on of perturbed ones.
    assert len(made) == 2 - (name == 'focal')
    assert made[0].compiled is not None
    plain, replayed = (load_file(tmp_path / name / 'model' / 'model.safetensors') for name in ('false', 'true'))
    for key, value in plain.items():
        np.testing.assert_allclose(value, replayed[key], rtol=1e-3, atol=1e-4, err_msg=key)
    logs = [[json.loads(line) for line in (tmp_path / name / 'log.jsonl').open()] for name in ('false', 'true')]
    for one, other in zip(*logs, strict=True):
        assert one['loss'] == pytest.approx(other['loss'], rel=1e-4)
        assert one['method']['perturbation'] == pytest.approx(other['method']['perturbation'], rel=1e-3)


@pytest.mark.parametrize(('device', 'processes'), [('cuda', 1), ('cpu', 2)])
def test_a_method_is_compiled_on_one_cpu_alone(device: str, processes: int, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, **METHODS['gkpgsa']), ['compile=true'])
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=processes)
    with pytest.raises(RecipeError, match=r'^compile=true with a method is for one process on a CPU: leave it out'):
        prepare_training(recipe, prepare_data(recipe), accelerator, tmp_path / 'bank')


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')), reason='there is no C++ compiler')
@pytest.mark.parametrize('name', ['gkpgsa', 'averages'])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_training_by_the_compiler_itself(name: str, precision: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, **METHODS[name])
    for compiled in ('false', 'true'):
        overrides = [f'compile={compiled}', f'precision={precision}']
        fit(load_recipe(path, overrides), tmp_path / compiled, progress=False)
    logs = [[json.loads(line) for line in (tmp_path / name / 'log.jsonl').open()] for name in ('false', 'true')]
    for one, other in zip(*logs, strict=True):
        assert one['loss'] == pytest.approx(other['loss'], rel=1e-3 if precision == 'fp32' else 0.05)
