"""Group gradients and perturbed passes against plain autograd on subsets, one group at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import ltzoo
from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa import one_hot, sliced
from ltzoo.gkpgsa.grouped_weights import GroupedWeights
from ltzoo.gkpgsa.rows import ClassRows, OneHotRows, SampleRows, SortedRows

CLASSES = 6
SIZES = [3, 1, 4]
# In no order, as a bank's groups are; the samples are sorted by them.
CLASS_GROUPS = torch.tensor([2, 0, 1, 2, 0, 2])
LABELS = torch.tensor([1, 4, 1, 2, 0, 3, 5, 0])
SLOTS = len(SIZES) + 1
_CLASS_SIZES = CLASS_GROUPS.bincount(minlength=SLOTS).tolist()
ROWS = {
    'sliced': lambda: (
        SampleRows((*SIZES, 0)),
        ClassRows(CLASS_GROUPS, _CLASS_SIZES),
    ),
    'one_hot': lambda: (OneHotRows(CLASS_GROUPS[LABELS], len(SIZES)), OneHotRows(CLASS_GROUPS, SLOTS)),
    'sorted': lambda: (
        SortedRows(CLASS_GROUPS[LABELS], len(SIZES), sizes=torch.tensor(SIZES)),
        OneHotRows(CLASS_GROUPS, SLOTS),
    ),
}


def vit() -> nn.Module:
    return ltzoo.create_model(
        'timm/vit_tiny_patch16_224', num_classes=CLASSES, img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2,
        init_values=0.1,
    )  # fmt: skip


def swin() -> nn.Module:
    return ltzoo.create_model(
        'timm/swin_tiny_patch4_window7_224', num_classes=CLASSES, img_size=16, patch_size=2, window_size=2,
        embed_dim=12, depths=(2, 1), num_heads=(2, 3), drop_path_rate=0.0,
    )  # fmt: skip


def convnext() -> nn.Module:
    return ltzoo.create_model(
        'timm/convnext_atto',
        num_classes=CLASSES,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 12, 12),
        patch_size=2,
        ls_init_value=0.5,
    )


def cosine_groupnorm() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
            self.norm = nn.GroupNorm(2, 8)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding='same', bias=False)
            self.weight = nn.Parameter(torch.randn(CLASSES, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(self.norm(self.conv(x)).relu()).mean((2, 3))
            return 3 * F.normalize(x) @ F.normalize(self.weight).T

    return Net()


class Recurrent(nn.Module):
    """Reads an image line by line; `last` takes the final states instead of the outputs."""

    def __init__(self, kind: type[nn.RNNBase], last: bool, **options: Any) -> None:
        super().__init__()
        self.lines = kind(24, 5, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(10, CLASSES)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.lines(x.transpose(1, 2).flatten(2))
        states = states[0] if isinstance(states, tuple) else states
        return self.head(torch.cat([states[-1], states[0]], 1) if self.last else outputs[:, -1].repeat(1, 2)[:, :10])


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM, last=False, bidirectional=True)


def lstm_last() -> nn.Module:
    return Recurrent(nn.LSTM, last=True)


def gru_last() -> nn.Module:
    return Recurrent(nn.GRU, last=True)


class ScaledInPlace(nn.Module):
    """As NFNet scales its branches, and with an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(192, 8), nn.Linear(8, CLASSES)
        self.gain, self.shift = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.flatten(1)).mul_(self.gain)
        x += self.shift
        return self.head(x.tanh())


class StackedHalves(nn.Module):
    """Two looks at every image, laid one behind the other along a new first dimension and merged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(torch.stack([x, x.flip(1)]).flatten(0, 1)).tanh().unflatten(0, (2, -1)).sum(0)


class EachTwice(nn.Module):
    """Every image twice, one behind the other, as GCViT repeats its global queries for every window."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1).repeat_interleave(2, dim=0)).tanh().unflatten(0, (-1, 2)).sum(1)


def input_of(make: Callable[[], nn.Module]) -> Tensor:
    side = {swin: 16, convnext: 32}.get(make, 8)
    return torch.randn(len(LABELS), 3, side, side)


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=list(ROWS))
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def leaves(model: nn.Module, moved: bool, slots: int = SLOTS) -> dict[Tensor, list[Tensor]]:
    """Return weights by slot: the model's own, or those with a different shift in every group."""
    return {
        p: [(p.detach() + moved * 0.1 * torch.randn_like(p)).requires_grad_() for _ in range(slots)]
        for p in model.parameters()
    }


def in_one_pass(
    model: nn.Module, x: Tensor, weights: dict[Tensor, list[Tensor]], shared: bool, form: str
) -> list[list[Tensor]]:
    """Return the gradient of the summed loss by slot and parameter."""
    with GroupedWeights(weights, *ROWS[form](), shared=shared) as mode:
        loss = F.cross_entropy(model(mode.mark(x)), LABELS, reduction='sum')
    grads = torch.autograd.grad(loss, [w for ws in weights.values() for w in ws], allow_unused=True)
    return [
        [torch.zeros_like(p) if g is None else g for g, p in zip(grads[s::SLOTS], weights, strict=True)]
        for s in range(SLOTS)
    ]


def assert_plain_autograd_on_subsets(
    found: list[list[Tensor]],
    model: nn.Module,
    x: Tensor,
    weights: dict[Tensor, list[Tensor]],
    **tolerance: float,
) -> None:
    """Compare every group's gradients with those of its own rows through the plain model at its own weights."""
    for slot, (part, labels) in enumerate(zip(x.split(SIZES), LABELS.split(SIZES), strict=True)):
        own = {name: weights[p][slot] for name, p in model.named_parameters()}
        loss = F.cross_entropy(functional_call(model, own, part), labels, reduction='sum')
        for g, expected in zip(found[slot], torch.autograd.grad(loss, list(own.values())), strict=True):
            torch.testing.assert_close(g, expected, **tolerance)


@pytest.mark.parametrize(
    'make', [vit, swin, convnext, cosine_groupnorm, lstm, lstm_last, gru_last, ScaledInPlace, StackedHalves, EachTwice]
)
@pytest.mark.parametrize('moved', [False, True])
def test_without_batchnorm_each_group_is_plain_autograd_on_its_subset(
    make: Callable[[], nn.Module], moved: bool, form: str
) -> None:
    model = make().double().train()
    x = input_of(make)
    weights = leaves(model, moved)
    found = in_one_pass(model, x, weights, shared=not moved, form=form)
    assert_plain_autograd_on_subsets(found, model, x, weights, rtol=1e-9, atol=1e-11)
    assert not any(g.any() for g in found[-1])


class WithBatchNorm(nn.Module):
    """Small enough to be written out a second time below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def written_out(w: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """WithBatchNorm with each group's own weights: joint batch statistics, everything else a group at a time."""
    rows = x.split(SIZES)
    y = torch.cat([F.conv2d(part, w[g]['conv.weight'], w[g]['conv.bias']) for g, part in enumerate(rows)])
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    logits = []
    for g, part in enumerate(y.split(SIZES)):
        part = part * w[g]['norm.weight'][:, None, None] + w[g]['norm.bias'][:, None, None]
        logits.append(part.relu().mean((2, 3)) @ w[g]['fc.weight'].T + w[g]['fc.bias'])
    return torch.cat(logits)


@pytest.mark.parametrize('moved', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_batchnorm_sees_the_joint_statistics(moved: bool, channels_last: bool, form: str) -> None:
    model = WithBatchNorm().double().train()
    plain = copy.deepcopy(model)
    x = torch.randn(len(LABELS), 3, 6, 6)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    weights = leaves(model, moved)
    found = in_one_pass(model, x, weights, shared=not moved, form=form)
    own = [{name: weights[p][g] for name, p in model.named_parameters()} for g in range(len(SIZES))]
    loss = F.cross_entropy(written_out(own, x), LABELS, reduction='sum')
    expected = torch.autograd.grad(loss, [w for by_group in own for w in by_group.values()])
    for g, e in zip([g for slot in found[:-1] for g in slot], expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-11)
    if not moved:
        F.cross_entropy(plain(x), LABELS, reduction='sum').backward()
        for i, p in enumerate(plain.parameters()):
            torch.testing.assert_close(sum(slot[i] for slot in found), p.grad, rtol=1e-9, atol=1e-11)
        for buffer, expected_buffer in zip(model.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected_buffer)


class ByKeywords(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(input=x, weight=self.weight, bias=self.bias)


@pytest.mark.parametrize('layer', [nn.Linear, ByKeywords])
def test_class_vectors_used_as_data_belong_to_their_classes_groups(layer: type[nn.Linear], form: str) -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, CLASSES, bias=False)
            self.head = layer(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) @ self.head(self.fc.weight).T + self.fc(x)

    model = Prototypes()
    x = torch.randn(len(LABELS), 4)
    weights = leaves(model, moved=True)
    found = in_one_pass(model, x, weights, shared=False, form=form)
    fc, head, bias = (weights[p] for p in (model.fc.weight, model.head.weight, model.head.bias))
    vectors = torch.stack([fc[g][c] @ head[g].T + bias[g] for c, g in enumerate(CLASS_GROUPS.tolist())])
    logits = torch.cat([(p @ head[g].T + bias[g]) @ vectors.T + p @ fc[g].T for g, p in enumerate(x.split(SIZES))])
    loss = F.cross_entropy(logits, LABELS, reduction='sum')
    expected = torch.autograd.grad(loss, [w for ws in weights.values() for w in ws], allow_unused=True)
    for slot in range(len(SIZES)):
        for g, e in zip(found[slot], expected[slot::SLOTS], strict=True):
            torch.testing.assert_close(g, e)


def test_sorted_rows_change_running_statistics_by_what_declares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once compiled, what changes them undeclared may come in another order: also for the rows of classes."""

    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, CLASSES, bias=False)
            self.head, self.norm = nn.Linear(4, 7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) @ self.norm(self.head(self.fc.weight)).T

    model = Prototypes().train()
    changed, update = [], torch.batch_norm_update_stats

    def watched(x: Tensor, mean: Tensor, *rest: Any) -> Any:
        changed.append(mean.data_ptr())
        return update(x, mean, *rest)

    monkeypatch.setattr(torch, 'batch_norm_update_stats', watched)
    in_one_pass(model, torch.randn(len(LABELS), 4), leaves(model, moved=False), shared=False, form='sorted')
    assert changed and model.norm.running_mean is not None and model.norm.running_mean.data_ptr() not in changed
    prototypes = model.head(model.fc.weight).detach()
    torch.testing.assert_close(model.norm.running_mean, 0.1 * prototypes.mean(0))
    torch.testing.assert_close(model.norm.running_var, 0.9 + 0.1 * prototypes.var(0))


def test_a_constant_made_for_every_image_belongs_to_the_images_groups(form: str) -> None:
    """As the positions of EdgeNeXt: a function of parameters and of a constant with as many rows as the batch."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.fc = nn.Linear(2, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.project(torch.ones(len(x), 2))).tanh()

    model = Positions()
    x = torch.randn(len(LABELS), 4)
    weights = leaves(model, moved=True)
    found = in_one_pass(model, x, weights, shared=False, form=form)
    assert_plain_autograd_on_subsets(found, model, x, weights)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).permute(2, 0, 1).repeat(1, 1, 8)).mean(0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        return self.head(self.mix(x, x, x)[0].mean(1))


class RepeatedUnevenly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1).repeat_interleave(torch.tensor([1, 3] * 4), 0))[:8]


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (SequenceFirst, 'linear brings weights to an activation whose first dimension is not the samples'),
        (Attention, 'nn.MultiheadAttention lays samples along the second dimension'),
        (RepeatedUnevenly, 'repeat_interleave repeats rows as a tensor says'),
    ],
)
def test_networks_whose_samples_cannot_be_told_apart_are_refused(
    make: Callable[[], nn.Module], message: str, form: str
) -> None:
    model = make()
    with pytest.raises(GkpGsaError, match=message):
        in_one_pass(model, torch.randn(len(LABELS), 3, 8, 8), leaves(model, True), shared=False, form=form)


def test_a_parameter_that_no_class_owns_is_refused_as_data(form: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Parameter(torch.randn(CLASSES + 1, 4))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.head(self.codes).sum()

    model = Odd()
    with pytest.raises(GkpGsaError, match=r'shape \(7, 4\) is used as data; .* each of the 6 classes'):
        in_one_pass(model, torch.randn(len(LABELS), 4), leaves(model, False), shared=True, form=form)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_batch_norm_in_bf16_rounds_what_it_gives_alone(form: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    rows, _ = ROWS[form]()
    function = sliced.BatchNorm if form == 'sliced' else one_hot.BatchNorm
    # A mean that a rounded scale would not cancel.
    x, grad = (torch.randn(8, 4, 3, 5).add(3).bfloat16().contiguous(memory_format=layout) for _ in range(2))
    scales, shifts = torch.randn(2, SLOTS, 4).add(2)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        wide = torch.promote_types(dtype, torch.float32)
        leaves = [t.to(wide).requires_grad_() for t in (*scales, *shifts)]
        images = x.to(dtype).requires_grad_()
        conf = (torch.zeros(4, dtype=wide), torch.ones(4, dtype=wide), 0.1, 1e-5)
        y = function.apply(images, rows, False, conf, SLOTS, *leaves)
        by_slot = [leaf for slot, leaf in enumerate(leaves) if slot % SLOTS < len(SIZES)]
        found.append([y, *torch.autograd.grad(y, [images, *by_slot], grad.to(dtype))])
    assert found[0][0].dtype == found[0][1].dtype == torch.bfloat16
    assert found[0][0].stride() == found[0][1].stride() == x.stride()
    for half, full in zip(*found, strict=True):
        torch.testing.assert_close(half.double(), full, rtol=2**-7, atol=2**-7 * full.abs().max().item())
