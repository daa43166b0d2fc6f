"""The collapsed penalty against the double sum of Eq. 6 and 16 in float64, written out group by group."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ltzoo.errors import GkpGsaError, LtzooError
from ltzoo.gkpgsa.preservation import KnowledgePreservation, Normalisation

Params = dict[str, Tensor]
SHAPES = {'conv.weight': (4, 3, 2, 2), 'norm.bias': (5,), 'scalar': ()}
STRENGTH = 100.0


def randoms(seed: int, spread: float = 1.0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: spread * torch.randn(s, dtype=torch.float64, generator=generator) for n, s in SHAPES.items()}


def make_groups(count: int) -> tuple[list[Params], list[Params]]:
    """Return anchors and Fisher diagonals over nine orders of magnitude, a third of whose entries are 0."""
    anchors = [randoms(seed) for seed in range(count)]
    fishers = [{n: 1e3 ** randoms(seed + 50)[n] for n in SHAPES} for seed in range(count)]
    for fisher, anchor in zip(fishers, anchors, strict=True):
        for name in SHAPES:
            fisher[name] = torch.where(anchor[name] > 0.4, 0, fisher[name])
    unused = fishers[0]['conv.weight'].flatten()[:7] * 0
    for fisher in fishers:
        fisher['conv.weight'].view(-1)[:7] = unused
    return anchors, fishers


def preserving(
    anchors: list[Params],
    fishers: list[Params],
    strength: float = STRENGTH,
    sizes: list[float] | None = None,
    **settings: Any,
) -> KnowledgePreservation:
    preservation = KnowledgePreservation(strength, **settings)
    for anchor, fisher, size in zip(anchors, fishers, sizes or [None] * len(anchors), strict=True):
        preservation.add(anchor, fisher, size)
    return preservation


def literal(
    params: Params, anchors: list[Params], fishers: list[Params], alpha: float = 0.0, sizes: list[float] | None = None
) -> Tensor:
    """Eq. 6 summed over groups as in Eq. 16."""
    total = torch.zeros((), dtype=torch.float64)
    for g in range(len(anchors)):
        for j in range(len(anchors)):
            if j != g:
                for name in params:
                    squares = fishers[j][name] * (params[name] - anchors[j][name]) ** 2
                    total = total + (1 - alpha) * STRENGTH / 2 * squares.sum() / (1 if sizes is None else sizes[j])
    return total


def leaves(params: Params) -> Params:
    return {name: value.clone().requires_grad_() for name, value in params.items()}


def assert_same(one: Params, other: Params, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=0)


@pytest.mark.parametrize('alpha', [0.0, 0.6])
@pytest.mark.parametrize('sizes', [None, [500, 20.0, 3, 7]], ids=['mean', 'sizes'])
@pytest.mark.parametrize('count', [2, 3, 4])
def test_value_and_gradient_equal_the_double_sum(count: int, sizes: list[float] | None, alpha: float) -> None:
    anchors, fishers = make_groups(count)
    sizes = sizes and sizes[:count]
    preservation = preserving(anchors, fishers, STRENGTH, sizes)
    params = leaves(randoms(99))
    slow = literal(params, anchors, fishers, alpha, sizes)
    fast = preservation.penalty(params, 1 - alpha)
    assert fast.shape == () and fast.dtype == torch.float64
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    slow_gradient = dict(zip(params, torch.autograd.grad(slow, list(params.values())), strict=True))
    fast_gradient = preservation.gradient(params, 1 - alpha)
    assert not any(value.requires_grad for value in fast_gradient.values())
    assert_same(fast_gradient, slow_gradient)
    assert_same(dict(zip(params, torch.autograd.grad(fast, list(params.values())), strict=True)), slow_gradient)


@pytest.mark.parametrize('step', [1e-9, 0.1 * 0.4, 1e3])
def test_proximal_step_is_the_minimum_it_says(step: float) -> None:
    anchors, fishers = make_groups(3)
    preservation = preserving(anchors, fishers, STRENGTH)
    before = randoms(99)
    after = leaves(before)
    preservation.proximal_step(after, step)
    distance = torch.stack([((after[n] - before[n]) ** 2).sum() / 2 for n in after]).sum()
    (distance + step * literal(after, anchors, fishers)).backward()
    for name, value in after.items():
        stiffness = 1 + step * STRENGTH * 2 * torch.stack([fisher[name] for fisher in fishers]).sum(0)
        assert value.grad is not None
        # In units of the parameter: a gradient of the stiffness is a distance of 1 from the minimum.
        assert (value.grad / stiffness).abs().max() < 1e-12
    assert any((after[name] != before[name]).any() for name in after)


def test_proximal_step_equals_the_closed_form_and_leaves_what_does_not_matter() -> None:
    anchors, fishers = make_groups(4)
    preservation = preserving(anchors, fishers, STRENGTH)
    before, after = randoms(99), leaves(randoms(99))
    preservation.proximal_step(after, 0.04)
    s = 0.04 * STRENGTH * 3
    for name, value in after.items():
        a = torch.stack([fisher[name] for fisher in fishers]).sum(0)
        b = torch.stack([f[name] * t[name] for f, t in zip(fishers, anchors, strict=True)]).sum(0)
        torch.testing.assert_close(value.detach(), (before[name] + s * b) / (1 + s * a), rtol=1e-12, atol=1e-13)
        assert value.is_leaf and value.requires_grad
    assert (after['conv.weight'].view(-1)[:7] == before['conv.weight'].view(-1)[:7]).all()


def test_float32_keeps_its_precision_where_the_terms_cancel() -> None:
    """Anchors 1e-3 apart at distance 1e3: A theta^2, 2 B theta and C0 are 1e12 times their sum."""
    centre = randoms(7)
    near = [{n: 1000 + centre[n] + randoms(seed, 1e-1)[n] for n in SHAPES} for seed in range(3)]
    anchors = [{n: v.float() for n, v in anchor.items()} for anchor in near]
    fishers = [{n: v.square().float() for n, v in randoms(seed + 50).items()} for seed in range(3)]
    params = {n: anchors[0][n].clone() for n in SHAPES}
    preservation = preserving(anchors, fishers, STRENGTH)
    wide = [[{n: v.double() for n, v in one.items()} for one in many] for many in (anchors, fishers, [params])]
    exact = literal(wide[2][0], wide[0], wide[1])
    torch.testing.assert_close(preservation.penalty(params), exact, rtol=1e-3, atol=0)
    a, b, c = ({n: torch.zeros(s) for n, s in SHAPES.items()} for _ in range(3))
    for anchor, fisher in zip(anchors, fishers, strict=True):
        for n in SHAPES:
            a[n] += fisher[n]
            b[n] += fisher[n] * anchor[n]
            c[n] += fisher[n] * anchor[n] ** 2
    naive = STRENGTH * torch.stack([(a[n] * params[n] ** 2 - 2 * b[n] * params[n] + c[n]).sum() for n in SHAPES]).sum()
    assert abs(naive / exact - 1) > 0.1, 'the case is too easy to tell the forms apart'


@pytest.mark.parametrize('strength', [1.0, 1e6, 1e30, 1e300])
@pytest.mark.parametrize('size', [1e-30, 1.0, 1e30])
def test_nothing_is_nan_however_large(strength: float, size: float) -> None:
    fisher = {'w': torch.tensor([0.0, 1e-30, 1.0, 1e30, 1e38])}
    anchors = [{'w': torch.full((5,), size)}, {'w': torch.full((5,), -size)}]
    preservation = preserving(anchors, [fisher, {'w': fisher['w'] / 1000}], strength)
    params = {'w': torch.full((5,), 3 * size)}
    assert not preservation.penalty(params).isnan()
    assert not preservation.gradient(params)['w'].isnan().any()
    at_centre = {'w': preservation.state_dict()['centre']['w'].clone()}
    assert (preservation.gradient(at_centre)['w'] == 0).all()
    for step in (0.0, 1e-30, 0.1, 1e30, 1e300):
        moved = {'w': params['w'].clone()}
        preservation.proximal_step(moved, step)
        assert moved['w'].isfinite().all()
        assert moved['w'][0] == params['w'][0]
        if step == 0:
            assert (moved['w'] == params['w']).all()
        if strength * step >= 0.1:
            # The centre is (1 - 1/1000) / (1 + 1/1000) of the first anchor.
            torch.testing.assert_close(moved['w'][3:], torch.full((2,), 0.999 / 1.001 * size))


def test_training_with_a_huge_strength_stays_at_the_centre() -> None:
    """The gradient form diverges here: learning rate x lambda x A is 1e5."""
    anchors, fishers = [{'w': torch.tensor([1.0])}, {'w': torch.tensor([3.0])}], [{'w': torch.tensor([1.0])}] * 2
    preservation = preserving(anchors, fishers, strength=1e6)
    plain, proximal = {'w': torch.tensor([9.0])}, {'w': torch.tensor([9.0])}
    for _ in range(60):
        plain['w'] -= 0.05 * (torch.sin(plain['w']) + preservation.gradient(plain)['w'])
        proximal['w'] -= 0.05 * torch.sin(proximal['w'])
        preservation.proximal_step(proximal, 0.05)
    assert not plain['w'].isfinite().all()
    assert proximal['w'].item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize('nesterov', [False, True])
def test_with_momentum_the_proximal_form_holds_as_a_part_of_lambda_does_in_the_loss(nesterov: bool) -> None:
    """Where the loss x^2 / 2 and the penalty come to rest, with momentum 0.9."""
    resting = {}
    for form, strength in (('gradient', 10.0), ('proximal', 10.0), ('proximal', 100.0)):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.01, momentum=0.9, nesterov=nesterov)
        one = {'x': torch.ones(1, dtype=torch.float64)}
        preservation = preserving([one, one], [{'x': 0.005 * one['x']}] * 2, strength)
        for _ in range(3000):
            x.grad = x.detach().clone()
            if form == 'gradient':
                x.grad += preservation.gradient({'x': x})['x']
            optimizer.step()
            if form == 'proximal':
                preservation.proximal_step({'x': x}, 0.01)
        resting[form, strength] = x.item()
    assert resting['gradient', 10.0] == pytest.approx(0.1 / 1.1)
    assert resting['proximal', 10.0] == pytest.approx(0.01 / 1.01, rel=0.01)
    assert resting['proximal', 100.0] == pytest.approx(resting['gradient', 10.0], rel=0.01)


@pytest.mark.parametrize(('nesterov', 'limit'), [(False, 2 * 1.9), (True, 2 * 1.9 / 2.8)])
def test_gradient_descent_is_stable_up_to_a_curvature(nesterov: bool, limit: float) -> None:
    (anchor, _), fishers = make_groups(2)
    preservation = preserving([anchor, anchor], fishers, 0.3)
    for times, stable in ((0.98, True), (1.02, False)):
        params = leaves(randoms(99))
        learning_rate = times * limit / preservation.curvature(0.5)
        optimizer = torch.optim.SGD(params.values(), learning_rate, momentum=0.9, nesterov=nesterov)
        for _ in range(200):
            for name, gradient in preservation.gradient(params, 0.5).items():
                params[name].grad = gradient
            optimizer.step()
        furthest = max((params[name] - anchor[name]).abs().max().item() for name in params)
        assert (furthest < 10) == stable, furthest
        assert (furthest > 1e3) != stable, furthest
    assert KnowledgePreservation().curvature() == 0


def test_one_group_has_no_other_to_preserve() -> None:
    anchors, fishers = make_groups(1)
    unfilled = KnowledgePreservation(counts_others=False)
    for preservation in (preserving(anchors, fishers), KnowledgePreservation(), unfilled):
        params = randoms(99)
        assert preservation.penalty(params) == 0
        assert all((value == 0).all() for value in preservation.gradient(params).values())
        preservation.proximal_step(params, 1.0)
        assert_same(params, randoms(99), rtol=0)


def test_identical_anchors_are_a_fixed_point_without_a_constant() -> None:
    anchors, fishers = make_groups(4)
    same = {name: value.float() for name, value in anchors[0].items()}
    preservation = preserving([same] * 4, [{n: v.float() for n, v in f.items()} for f in fishers])
    params = {name: value.clone() for name, value in same.items()}
    assert preservation.penalty(params) == 0
    preservation.proximal_step(params, 1.0)
    assert_same(params, same, rtol=0)


def test_ewc_is_one_anchor_counted_once() -> None:
    (anchor,), (fisher,) = make_groups(1)
    preservation = preserving([anchor], [fisher], 7.0, counts_others=False)
    params = leaves(randoms(99))
    slow = torch.stack([7.0 / 2 * (fisher[n] * (params[n] - anchor[n]) ** 2).sum() for n in params]).sum()
    torch.testing.assert_close(preservation.penalty(params), slow, rtol=1e-12, atol=0)
    slow_gradient = dict(zip(params, torch.autograd.grad(slow, list(params.values())), strict=True))
    assert_same(preservation.gradient(params), slow_gradient)


@pytest.mark.parametrize('normalisation', ['mean', 'max'])
def test_normalised_importance_forgets_its_unit(normalisation: Normalisation) -> None:
    anchors, fishers = make_groups(3)
    total = torch.cat([torch.stack([f[n] for f in fishers]).sum(0).flatten() for n in SHAPES])
    unit = (total.mean() if normalisation == 'mean' else total.max()).item()
    params = randoms(99)
    raw = preserving(anchors, fishers, STRENGTH).penalty(params)
    for factor in (1.0, 1e-9, 1e9):
        scaled = [{n: factor * v for n, v in fisher.items()} for fisher in fishers]
        preservation = preserving(anchors, scaled, STRENGTH, normalisation=normalisation)
        torch.testing.assert_close(preservation.penalty(params), raw / unit, rtol=1e-10, atol=0)
        restored = KnowledgePreservation(strength=STRENGTH, normalisation=normalisation)
        restored.load_state_dict(preservation.state_dict())
        torch.testing.assert_close(restored.penalty(params), raw / unit, rtol=1e-10, atol=0)
        moved, expected = leaves(params), leaves(params)
        preservation.proximal_step(moved, 0.1)
        preserving(anchors, fishers, STRENGTH / unit).proximal_step(expected, 0.1)
        assert_same(moved, expected)
    nothing = [{n: v * 0 for n, v in fisher.items()} for fisher in fishers]
    assert preserving(anchors, nothing, normalisation=normalisation).penalty(params) == 0


def test_groups_may_come_one_by_one_in_any_order_and_precision() -> None:
    anchors, fishers = make_groups(4)
    anchors = [{n: v.bfloat16().double() for n, v in anchor.items()} for anchor in anchors]
    whole = preserving(anchors, fishers, STRENGTH)
    stream = KnowledgePreservation(strength=STRENGTH)
    for j in (2, 0, 3, 1):
        stream.add({n: v.bfloat16() for n, v in anchors[j].items()}, fishers[j])
    assert stream.groups == 4
    params = randoms(99)
    torch.testing.assert_close(stream.penalty(params), whole.penalty(params), rtol=1e-12, atol=0)
    torch.testing.assert_close(stream.gradient(params), whole.gradient(params), rtol=1e-9, atol=1e-9)
    half = preserving(anchors, [{n: v.half() for n, v in f.items()} for f in [randoms(1, 0.0)] * 4])
    assert {v.dtype for v in half.state_dict()['importance'].values()} == {torch.float32}


def test_given_tensors_are_not_changed_and_not_kept() -> None:
    anchors, fishers = make_groups(2)
    again = make_groups(2)
    preservation = preserving(anchors, fishers)
    assert_same(anchors[0], again[0][0], rtol=0)
    assert_same(fishers[0], again[1][0], rtol=0)
    before = preservation.penalty(randoms(99))
    for one in (*anchors, *fishers):
        for value in one.values():
            value.zero_()
    assert preservation.penalty(randoms(99)) == before


def test_state_survives_a_file() -> None:
    anchors, fishers = make_groups(3)
    preservation = preserving(anchors[:2], fishers[:2], STRENGTH)
    file = io.BytesIO()
    torch.save(preservation.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    restored, second = KnowledgePreservation(strength=STRENGTH), KnowledgePreservation(strength=STRENGTH)
    restored.load_state_dict(state)
    for one in (preservation, restored):
        one.add(anchors[2], fishers[2])
    params = randoms(99)
    assert restored.penalty(params) == preservation.penalty(params)
    assert_same(restored.gradient(params), preservation.gradient(params), rtol=0)
    second.load_state_dict(state)
    assert second.penalty(params) == preserving(anchors[:2], fishers[:2], STRENGTH).penalty(params)


def test_other_parameters_are_ignored_and_types_are_changed_by_to() -> None:
    anchors, fishers = make_groups(2)
    preservation = preserving(anchors, fishers)
    params = {'head.weight': torch.ones(2), **{n: v.float() for n, v in randoms(99).items()}}
    with pytest.raises(GkpGsaError, match=r'conv.weight is torch.float32 .* torch.float64 .* by to\(\)'):
        preservation.penalty(params)
    exact = preservation.penalty(randoms(99))
    assert preservation.to('cpu', torch.float32) is preservation
    torch.testing.assert_close(preservation.penalty(params), exact, rtol=1e-5, atol=0)
    assert list(preservation.gradient(params)) == list(SHAPES)
    preservation.proximal_step(params, 1.0)
    assert (params['head.weight'] == 1).all()


ONE = {'w': torch.ones(2)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'strength': -1.0}, 'strength must be finite and at least 0, not -1'),
        ({'strength': math.inf}, 'strength must be finite'),
        ({'normalisation': 'sum'}, "normalisation must be one of none, mean, max, not 'sum'"),
        ({'sizes': [1, 0]}, 'size of a group must be finite and above 0, not 0'),
        ({'anchors': [ONE, {}]}, 'anchor and the rest .* w is only in one'),
        ({'fishers': [{}, {}]}, 'at least one parameter'),
        ({'fishers': [ONE, {'v': torch.ones(2)}]}, 'Fisher diagonal and the rest .* v is only in one'),
        ({'anchors': [ONE, {'w': torch.ones(3)}]}, r'anchor of w must have shape \(2,\), not \(3,\)'),
        ({'fishers': [ONE, {'w': -torch.ones(2)}]}, 'Fisher diagonal of w must be finite and at least 0'),
        ({'fishers': [ONE, {'w': torch.ones(2) * math.nan}]}, 'Fisher diagonal of w must be finite'),
        ({'anchors': [ONE, {'w': torch.ones(2) * math.inf}]}, 'anchor of w must be finite everywhere'),
    ],
)
def test_bad_groups_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GkpGsaError, match=message) as caught:
        preserving(**{'anchors': [ONE, ONE], 'fishers': [ONE, ONE], **arguments})
    assert isinstance(caught.value, LtzooError) and isinstance(caught.value, ValueError)


def test_bad_calls_are_named_and_change_nothing() -> None:
    preservation = preserving([ONE, ONE], [ONE, ONE])
    with pytest.raises(GkpGsaError, match='only in one'):
        preservation.add(ONE, {**ONE, 'v': torch.ones(1)})
    with pytest.raises(GkpGsaError, match='finite'):
        preservation.add(ONE, {'w': torch.tensor([1.0, math.nan])})
    assert preservation.groups == 2 and preservation.penalty({'w': torch.zeros(2)}) == STRENGTH / 2 * 4
    with pytest.raises(GkpGsaError, match=r'weight must lie between 0 and 1, not 1\.5'):
        preservation.penalty(ONE, 1.5)
    with pytest.raises(GkpGsaError, match=r'step must be finite and at least 0, not -0\.1'):
        preservation.proximal_step(ONE, -0.1)
    with pytest.raises(GkpGsaError, match='w is preserved but not among those given'):
        preservation.gradient({})
    with pytest.raises(GkpGsaError, match=r'\(3,\) on cpu, but what is preserved of it is .* \(2,\) on cpu'):
        preservation.gradient({'w': torch.ones(3)})
