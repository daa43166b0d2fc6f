"""Eq. 8 and 12 to 14 against their definitions."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar

from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.direction import group_direction, group_radius

torch.manual_seed(0)
GROUPS = torch.randn(3, 20, dtype=torch.float64)
WHOLE = GROUPS.mean(0)


def test_residual_is_orthogonal_and_projection_parallel() -> None:
    residual = group_direction(GROUPS, WHOLE, 'residual')
    projection = group_direction(GROUPS, WHOLE, 'projection')
    assert (residual @ WHOLE).abs().max() < 1e-12
    cosine = torch.nn.functional.cosine_similarity(projection, WHOLE[None])
    torch.testing.assert_close(cosine.abs(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(residual + projection, GROUPS)


def test_other_directions() -> None:
    assert torch.equal(group_direction(GROUPS, WHOLE, 'full'), GROUPS)
    torch.testing.assert_close(group_direction(GROUPS, WHOLE, 'subtract'), GROUPS - WHOLE)
    with pytest.raises(GkpGsaError, match="direction 'sideways' does not exist; known: residual"):
        group_direction(GROUPS, WHOLE, 'sideways')  # type: ignore[arg-type]


@pytest.mark.parametrize('mode', ['residual', 'subtract'])
def test_what_rounding_leaves_is_no_direction(mode: str) -> None:
    for dtype in (torch.float32, torch.float64):
        alone = WHOLE.to(dtype)[None]
        assert not group_direction(alone, alone[0] * (1 + 1e-7), mode).any()  # type: ignore[arg-type]


def test_a_global_gradient_of_zero_takes_nothing_away() -> None:
    torch.testing.assert_close(group_direction(GROUPS, torch.zeros_like(WHOLE)), GROUPS)


def test_radius_minimises_the_bound() -> None:
    theta, grad, dim, samples = 7.0, 0.3, 5000, 400

    def bound(rho: float) -> float:
        return dim**0.5 * rho * grad + theta / (2 * rho * (samples - 1) ** 0.5)

    best = minimize_scalar(bound, bounds=(1e-6, 10), method='bounded', options={'xatol': 1e-10}).x
    radius = group_radius(
        torch.tensor(theta, dtype=torch.float64), torch.tensor([grad], dtype=torch.float64), dim,
        torch.tensor([samples]), 1.0,
    )  # fmt: skip
    assert radius.item() == pytest.approx(best, rel=1e-5)


def test_radius_of_small_and_directionless_groups() -> None:
    radius = group_radius(torch.tensor(2.0), torch.tensor([1.0, 1.0, 0.0]), 16, torch.tensor([1, 2, 50]), 0.1)
    assert radius[0] == radius[1] == pytest.approx(0.1 * 1.0 * 0.5)
    assert radius[2] == 0


def test_a_groups_gradient_that_is_the_whole_has_no_direction_however_long_it_is() -> None:
    # In float32 a vector's inner products with itself differ by 1e-4 and more, by how they are summed up.
    whole = torch.randn(3_000_000, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    assert not group_direction(torch.stack([whole, 0.1 * whole]), whole).any()
    assert group_direction(torch.stack([whole, whole.flip(0)]), whole)[1].any()
