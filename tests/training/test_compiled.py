"""Compiled steps against steps taken as they are."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from step_forms import FORMS, has_second_form, recipe_file
from torch import Tensor, nn
from torch._inductor import config as inductor

from ltzoo.data.loader import Batch
from ltzoo.gkpgsa import GkpGsa, GkpGsaSettings, SharpnessSettings
from ltzoo.training.compiled import Compiled, CompileError
from ltzoo.training.fit import fit
from ltzoo.training.loop import Step
from ltzoo.training.prepare import prepare_data, prepare_training
from ltzoo.training.recipe import Recipe, RecipeError, load_recipe

NEEDS_A_COMPILER = pytest.mark.skipif(
    not (shutil.which('g++') or shutil.which('clang++')), reason='there is no C++ compiler'
)
CLASSES = 6
METHODS = {name: form for name, form in FORMS.items() if 'method' in form}
AT_ONCE = ('averages', 'fresh')
SHARPNESS = {
    'fresh': SharpnessSettings(scale=0.3),
    'averages': SharpnessSettings(scale=0.3, ascent='ema', direction='projection'),
    'first view': SharpnessSettings(scale=0.3, ascent_views='first', mode='combined', global_gradient='ema'),
    'focal': SharpnessSettings(mode='focal', radius=0.1),
}


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


# As a model's buffer may be.
STATE = torch.ones(())
WAITING: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * 2 if x.sum().item() > 0 else x,
    lambda x: x * float(STATE),
    lambda x: x[x > 0].sum(),
    lambda x: x[STATE.expand(2) > 0],
]


@pytest.mark.parametrize('function', WAITING)
def test_what_depends_on_what_is_in_a_tensor_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    waits = Compiled(function)
    waits(torch.ones(2))
    with pytest.raises(CompileError, match=r'^this step cannot be compiled, take compile=false: .*in a tensor$'):
        waits(torch.ones(2))


@pytest.mark.usefixtures('_without_a_compiler')
def test_what_goes_wrong_later_on_is_no_matter_of_compiling() -> None:
    def taken(x: Tensor, i: Tensor) -> Tensor:
        return x[i]

    rows = Compiled(taken)
    for _ in range(3):
        rows(torch.ones(2), torch.tensor([1]))
    with pytest.raises(IndexError, match='index 5 is out of bounds'):
        rows(torch.ones(2), torch.tensor([5]))

    def full(x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    rows = Compiled(full)
    rows.calls = 1
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator: can't allocate memory$"):
        rows(torch.ones(2))


@pytest.mark.usefixtures('_without_a_compiler')
def test_a_batch_of_another_shape_is_refused() -> None:
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


def test_an_ordinary_step_without_a_compiler_is_one_sentence(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'cache'))
    message = r'^this step cannot be compiled, take compile=false: [^\n]*C\+\+ compiler[^\n]*$'
    with inductor.patch({'cpp.cxx': ('no-such-compiler',)}), pytest.raises(CompileError, match=message):
        fit(make_recipe('compile=true'), tmp_path / 'run', progress=False)
    # What was refused goes on as it would have without.
    fit(make_recipe('resume=auto', 'compile=false'), tmp_path / 'run', progress=False)


class Net(nn.Module):
    """A network and losses of its views, as a learner has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(6, CLASSES)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        features = self.body(torch.cat(views)).chunk(len(views))
        apart = (features[0] - features[-1]).square().sum(1)
        return F.cross_entropy(self.fc(features[0]), labels, reduction='none') + apart


def steps_taken(replayed: type[Compiled] | None, settings: SharpnessSettings) -> dict[str, Tensor]:
    """Return weights and running statistics after plain and perturbed steps, in pieces of batches that lack groups."""
    torch.manual_seed(0)
    net = Net().double()
    labels, counts = np.repeat(np.arange(CLASSES), 20), torch.full((CLASSES,), 20)
    method = GkpGsa(
        net, net, counts, labels, 9, GkpGsaSettings(preservation=None, sharpness=settings),
        rows_form='sliced' if replayed is None else 'sorted',
    )  # fmt: skip
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(net.parameters(), lr=0.1), device_placement=False)
    step = Step(net, optimizer, accelerator, method=method, accumulation=2, replayed=replayed)
    groups = torch.arange(CLASSES) % 3
    for epoch in range(2):
        if epoch == 1:
            method.has_groups = True
            method.sharpness.set_groups(groups, torch.bincount(groups) * 20)
        method.start_epoch(epoch)
        # The step that is traced is the second.
        for present in (range(CLASSES), (0, 2, 3, 5), range(CLASSES), (1, 4), range(CLASSES)):
            views = tuple(torch.randn(16, 3, 8, 8, dtype=torch.float64) for _ in range(3))
            step(Batch(views, torch.tensor(present)[torch.randint(len(present), (16,))]))
    return net.state_dict()


@pytest.mark.usefixtures('_without_a_compiler')
@pytest.mark.parametrize(
    'form', [pytest.param(form, marks=() if form in AT_ONCE else pytest.mark.slow) for form in SHARPNESS]
)
def test_compiled_steps_do_what_steps_do(form: str) -> None:
    torch.testing.assert_close(steps_taken(Compiled, SHARPNESS[form]), steps_taken(None, SHARPNESS[form]))


@pytest.mark.slow
@NEEDS_A_COMPILER
@pytest.mark.parametrize('fused', [64, 1])
@pytest.mark.parametrize('form', SHARPNESS)
def test_compiled_steps_do_so_in_whatever_order(form: str, fused: int) -> None:
    with inductor.patch(max_fusion_size=fused):
        compiled = steps_taken(Compiled, SHARPNESS[form])
    torch.testing.assert_close(compiled, steps_taken(None, SHARPNESS[form]))


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
    assert len(made) == 1 + has_second_form(METHODS[name])
    assert made[0].compiled is not None
    plain, replayed = (load_file(tmp_path / name / 'model' / 'model.safetensors') for name in ('false', 'true'))
    for key, value in plain.items():
        np.testing.assert_allclose(value, replayed[key], rtol=0.01, atol=0.002, err_msg=key)
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
@NEEDS_A_COMPILER
@pytest.mark.parametrize('name', ['gkpgsa', 'averages'])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_training_by_the_compiler_itself(name: str, precision: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, **METHODS[name])
    for compiled in ('false', 'true'):
        overrides = [f'compile={compiled}', f'precision={precision}']
        fit(load_recipe(path, overrides), tmp_path / compiled, progress=False)
    logs = [[json.loads(line) for line in (tmp_path / name / 'log.jsonl').open()] for name in ('false', 'true')]
    for one, other in zip(*logs, strict=True):
        assert one['loss'] == pytest.approx(other['loss'], rel=1e-3 if precision == 'fp32' else 0.02)
