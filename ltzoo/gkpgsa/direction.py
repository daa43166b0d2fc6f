"""Direction and radius of a group's perturbation: Eq. 8 and 12 to 14."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ltzoo.errors import GkpGsaError

__all__ = ['Direction', 'group_direction', 'group_radius']

Direction = Literal['residual', 'projection', 'full', 'subtract']

# A residual shorter than this share of its gradient is what rounding leaves of zero; it has no direction.
ROUNDING = 1e-5


def group_direction(group_grad: Tensor, global_grad: Tensor, mode: Direction = 'residual') -> Tensor:
    """Return the direction in which groups are perturbed, not normalised.

    Args:
        group_grad: gradients of the groups' mean losses, shape (..., d).
        global_grad: gradient of the whole loss, shape (d,); zero is a valid one.
        mode: `residual`, the group's gradient less its projection on the global one (Eq. 12); `projection`, the part
            that Eq. 12 takes away (Table 5); `full`, the group's gradient itself; `subtract`, the group's gradient
            less the global one (Friendly-SAM, Li et al., CVPR 2024, and the authors' code).

    Returns:
        Shape (..., d). Where rounding is all that is left of a group's gradient the direction is exactly zero.

    Raises:
        GkpGsaError: if the mode does not exist.
    """
    if mode == 'full':
        return group_grad
    if mode == 'subtract':
        direction = group_grad - global_grad
    elif mode in ('residual', 'projection'):
        # Eq. 12 divides by <m, m>; where that is zero there is nothing to project on.
        # Sums of products and not inner products, which lose digits with the length of the vectors, and differently
        # for one vector and for many: what should be zero would be left with a length.
        square = global_grad.square().sum()
        share = (group_grad * global_grad).sum(-1) / torch.where(square > 0, square, 1)
        projection = share.unsqueeze(-1) * global_grad
        direction = projection if mode == 'projection' else group_grad - projection
    else:
        raise GkpGsaError(f'direction {mode!r} does not exist; known: residual, projection, full, subtract')
    left = direction.norm(dim=-1, keepdim=True) > ROUNDING * group_grad.norm(dim=-1, keepdim=True)
    return torch.where(left, direction, 0)


def group_radius(theta_norm: Tensor, grad_norm: Tensor, dim: int, samples: Tensor, scale: float | Tensor) -> Tensor:
    """Return the radius rho*_g of Eq. 13 times `scale` (the paper's Z); the perturbation has sqrt(dim) times
    that length.

    Eq. 37 has dim^(-1/2) where Eq. 8 and 13 have dim^(-1/4); minimising the bound gives the latter.

    Args:
        theta_norm: L2 norm of the weights, a scalar.
        grad_norm: L2 norm of each group's direction, shape (...).
        dim: number of weights.
        samples: training samples of each group, shape (...); fewer than 2 count as 2.
        scale: Z.

    Returns:
        Shape (...); zero for a group without direction.
    """
    known = grad_norm > 0
    ratio = theta_norm / (2 * torch.where(known, grad_norm, 1))
    radius = scale * ratio.sqrt() * dim**-0.25 * (samples.clamp(min=2) - 1).to(ratio.dtype) ** -0.25
    return torch.where(known, radius, 0)
