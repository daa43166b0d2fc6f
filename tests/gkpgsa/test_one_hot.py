"""What networks do to an activation after a convolution or a matrix product that all groups' weights had part in."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltzoo.gkpgsa.grouped_weights import GroupedWeights
from ltzoo.gkpgsa.one_hot import BatchNorm, _select, _spread
from ltzoo.gkpgsa.rows import OneHotRows

LABELS = torch.tensor([2, 0, 1, 0, 2])


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_activations_may_be_changed_in_place(layout: torch.memory_format) -> None:
    """As in squeeze-and-excitation (MobileNet, EfficientNet, RegNet) and in networks without norms."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.SiLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 3),
    )  # fmt: skip
    net = net.double().to(memory_format=layout)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64).contiguous(memory_format=layout)
    weights = {
        p: [(p.detach() + 0.1 * torch.randn_like(p)).requires_grad_() for _ in range(4)] for p in net.parameters()
    }
    samples, classes = OneHotRows(LABELS, 3), OneHotRows(torch.arange(3), 4)
    with GroupedWeights(weights, samples, classes, shared=False) as mode:
        loss = F.cross_entropy(net(mode.mark(x)), LABELS, reduction='sum')
    found = torch.autograd.grad(loss, [w for ws in weights.values() for w in ws[:3]])
    for slot in range(3):
        alone = copy.deepcopy(net)
        for p, ws in zip(alone.parameters(), weights.values(), strict=True):
            p.data.copy_(ws[slot])
        rows = LABELS.eq(slot)
        F.cross_entropy(alone(x[rows]), LABELS[rows], reduction='sum').backward()
        for g, p in zip(found[slot::3], alone.parameters(), strict=True):
            torch.testing.assert_close(g, p.grad, rtol=1e-9, atol=1e-11)


def test_a_channels_last_network_stays_so_whatever_its_images_are() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weights = {p: [p.detach().clone().requires_grad_() for _ in range(4)] for p in conv.parameters()}
    with GroupedWeights(weights, OneHotRows(LABELS, 3), OneHotRows(torch.arange(3), 4), shared=False) as mode:
        out = conv(mode.mark(torch.randn(5, 3, 8, 8)))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not out.is_contiguous()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('dtype', 'channels'), [(torch.bfloat16, 8), (torch.bfloat16, 6), (torch.float32, 4)])
def test_rows_are_spread_to_their_slots_and_found_again(
    dtype: torch.dtype, channels: int, layout: torch.memory_format
) -> None:
    x = torch.randn(5, channels, 3, 5).to(dtype).contiguous(memory_format=layout)
    rows = OneHotRows(LABELS, 3)
    for groups in (1, 2):
        wide = _spread(x, rows, groups)
        by_slot = wide.unflatten(1, (groups, 3, -1))
        for row, slot in enumerate(LABELS.tolist()):
            assert torch.equal(by_slot[row, :, slot].flatten(0, 1), x[row])
        assert torch.count_nonzero(wide) == torch.count_nonzero(x)
        assert torch.equal(_select(wide, rows, groups), x)
        assert _select(wide, rows, groups).stride() == x.stride()


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 3, 3)])
def test_large_gradients_of_batch_norm_do_not_overflow_in_fp16(shape: tuple[int, ...]) -> None:
    """As a loss scale makes them."""
    torch.manual_seed(0)
    x, grad = 30 * torch.randn(shape), 1e4 * torch.randn(shape)
    found = []
    for dtype in (torch.float32, torch.float16):
        weights = [torch.ones(4, requires_grad=True) for _ in range(4)]
        biases = [torch.zeros(4, requires_grad=True) for _ in range(4)]
        conf = (torch.zeros(4), torch.ones(4), 0.1, 1e-5)
        y = BatchNorm.apply(x.to(dtype), OneHotRows(LABELS, 3), False, conf, 4, *weights, *biases)
        found.append(torch.autograd.grad(y, weights[:3], grad.to(dtype)))
    for half, full in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(half, full, rtol=1e-2, atol=100)
