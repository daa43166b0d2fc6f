"""Heads: what stands behind an encoder, and how a timm model gets a cosine classifier in place of its linear one.

Sources: the cosine classifier is the normalised linear layer of Cao et al., LDAM (NeurIPS 2019); the projection head is
the MLP of Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual Recognition (CVPR 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import timm.layers
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import load_pretrained

from ltzoo.errors import LtzooError

__all__ = [
    'CosineLinear',
    'ExpertLinear',
    'Head',
    'HeadError',
    'ProjectionMLP',
    'build_with_head',
    'classifier_of',
    'with_cosine_head',
]

Head = Literal['linear', 'cosine']


class HeadError(LtzooError, ValueError):
    """A head that does not exist, or a model whose classifier cannot be exchanged for it."""


def _check(head: str, scale: float) -> None:
    """Refuse a head that does not exist, or a cosine head whose scale is not above 0."""
    if head not in get_args(Head):
        raise HeadError(f'no head is called {head!r}: it is {" or ".join(get_args(Head))}')
    if head == 'cosine' and not scale > 0:
        raise HeadError(f'head_scale must be above 0, not {scale}')


def classifier_of(model: Any) -> tuple[Any, str]:
    """Return a model's classifier and, for a message, what kind it is; None and 'none' of a model that names none."""
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
    return classifier, 'none' if classifier is None else type(classifier).__name__


class CosineLinear(nn.Module):
    """Classifier whose logits are the scaled cosine between feature and class vector.

    Maps features of shape (..., in_features) to logits of shape (..., out_features) within +-scale; under autocast they
    are float32.

    Args:
        in_features: length of a feature.
        out_features: number of classes.
        scale: logit of a feature that points exactly at a class vector.
        device, dtype: of the class vectors.

    Raises:
        HeadError: if the scale is not above 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 30.0,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check('cosine', scale)
        self.in_features = in_features
        self.out_features = out_features
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw class vectors of unit length: the length does not change a logit, but it divides the gradient."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _scaled_cosine(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        return f'in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:g}'


@torch.fx.wrap
def _scaled_cosine(x: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    # TorchScript has no autocast of a device that is known only when it runs.
    if not torch.jit.is_scripting():
        kind = x.device.type
        # The device meta has none; PyTorch 2.11 does not compile the question which devices do.
        if kind != 'meta' and torch.is_autocast_enabled(kind):
            # It would round the cosines, of which a scale of 30 makes steps of 0.125.
            wide = torch.promote_types(x.dtype, torch.float32)
            with torch.autocast(kind, enabled=False):
                return scale * _products(F.normalize(x.to(wide), dim=-1), F.normalize(weight.to(wide), dim=-1))
    return scale * _products(F.normalize(x, dim=-1), F.normalize(weight, dim=-1))


@torch.fx.wrap
def _products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the inner products of features and class vectors, of shape (C, F), or (E, C, F) for those of E experts."""
    return F.linear(x, weight) if weight.dim() == 2 else torch.einsum('...ef,ecf->...ec', x, weight)


class ExpertLinear(nn.Module):
    """Classifiers of several experts, whose mean logits come out.

    Maps features of shape (..., in_features), the experts' side by side, to logits of shape (..., out_features); called
    with `each=True`, to those of each expert, shape (..., num_experts, out_features).

    Args:
        in_features: length of all experts' features together.
        out_features: number of classes.
        num_experts: number of experts.
        head: 'linear', or 'cosine' for classifiers as `CosineLinear`.
        scale: of a cosine head.
        device, dtype: of the weights, shape (num_experts, out_features, in_features / num_experts).

    Raises:
        HeadError: if there is no such head, a cosine head's scale is not above 0 or the features do not divide by the
            experts.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        head: Head = 'cosine',
        scale: float = 30.0,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(head, scale)
        if in_features % num_experts:
            raise HeadError(f'{in_features} features cannot be shared among {num_experts} experts')
        self.in_features = in_features
        self.out_features = out_features
        self.num_experts = num_experts
        self.scale = scale
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features // num_experts, **dd))
        self.bias = None if head == 'cosine' else nn.Parameter(torch.empty(num_experts, out_features, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw cosine class vectors of unit length, linear ones as `nn.Linear` does, with biases of 0."""
        bound = self.weight.shape[-1] ** -0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is None:
                self.weight.copy_(F.normalize(self.weight, dim=-1))
            else:
                self.bias.zero_()

    def forward(self, x: torch.Tensor, each: bool = False) -> torch.Tensor:
        logits = self._expert_logits(x)
        return logits if each else logits.mean(dim=-2)

    def _expert_logits(self, x: torch.Tensor) -> torch.Tensor:
        features = x.unflatten(-1, [self.num_experts, self.in_features // self.num_experts])
        if self.bias is not None:
            return _products(features, self.weight) + self.bias
        return _scaled_cosine(features, self.weight, self.scale)

    def extra_repr(self) -> str:
        head = f'cosine, scale={self.scale:g}' if self.bias is None else 'linear'
        return f'in_features={self.in_features}, out_features={self.out_features}, experts={self.num_experts}, {head}'


class ProjectionMLP(nn.Sequential):
    """Two-layer projection head of contrastive training: (N, in_features) to (N, out_features), not normalised.

    The published sizes are 64-512-128 for CIFAR's ResNet-32 and 2048-2048-1024 for a ResNet-50.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, hidden_features),
            nn.BatchNorm1d(hidden_features),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_features, out_features),
        )


class _CosineHead:
    """Mixin for a timm model class: its classifier is a `CosineLinear`, after `reset_classifier` too."""

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        super().reset_classifier(num_classes, *args, **kwargs)  # type: ignore[misc]
        _exchange_classifier(self, self.cosine_scale)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so a pickle has to name the class it is made from.
        return _new_cosine, (_stock_class(type(self)),), nn.Module.__getstate__(self)  # type: ignore[arg-type]


@functools.cache
def _cosine_class(stock: type) -> Any:
    return type(f'Cosine{stock.__name__}', (_CosineHead, stock), {'__module__': stock.__module__})


def _stock_class(cls: type) -> type:
    return cls.__bases__[1] if issubclass(cls, _CosineHead) else cls


def _new_cosine(stock: type) -> Any:
    cls = _cosine_class(stock)
    return cls.__new__(cls)


def _exchange_classifier(model: Any, scale: float) -> None:
    if model.num_classes == 0:
        return
    linear = model.get_classifier()
    if type(linear) not in (nn.Linear, timm.layers.Linear):
        raise HeadError(
            f'{_stock_class(type(model)).__name__} has a {type(linear).__name__} as classifier: '
            f'only a single plain linear layer can become a cosine head'
        )
    name = next(name for name, module in model.named_modules() if module is linear)
    cosine = CosineLinear(
        linear.in_features,
        linear.out_features,
        scale,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    model.set_submodule(name, cosine.train(model.training))


def with_cosine_head(model: nn.Module, scale: float = 30.0) -> nn.Module:
    """Exchange the linear classifier of a timm model for a `CosineLinear`, in place, for good.

    The model stays an instance of its class and keeps its parameter names; `reset_classifier` makes cosine
    classifiers from now on. A model without a classifier (num_classes=0) gets one at its first `reset_classifier`.
    To save it under a name that loads again, make it by `ltzoo.create_model(..., head='cosine')`.

    Args:
        model: any timm model whose classifier is a single `nn.Linear`.
        scale: see `CosineLinear`.

    Raises:
        HeadError: if the classifier is something else (a convolution, two heads, a normalised layer), or the scale is
            not above 0; the model is then as it was.
    """
    _check('cosine', scale)
    _exchange_classifier(model, scale)
    model.cosine_scale = scale  # type: ignore[assignment]
    stock: type = type(model)
    model.__class__ = _cosine_class(stock)
    return model


def build_with_head(
    build: Callable[..., Any],
    pretrained: bool = False,
    *,
    head: Head = 'linear',
    head_scale: float = 30.0,
    encoder_weights: bool = False,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Any:
    """Build a timm model with the head asked for.

    Args:
        build: a timm entry point.
        pretrained: load the weights that the model's `pretrained_cfg` names.
        head: 'linear' leaves the model as it is, 'cosine' exchanges its classifier.
        head_scale: scale of a cosine head's logits.
        encoder_weights: the weights belong to the model with its linear head, so a cosine head starts untrained.
        cache_dir: where downloads are kept.
        **kwargs: passed to `build`.

    Raises:
        HeadError: if there is no such head, or the model cannot have it.
    """
    _check(head, head_scale)
    if head == 'linear' or kwargs.get('features_only'):
        return build(pretrained=pretrained, cache_dir=cache_dir, **kwargs)
    model = build(pretrained=pretrained and encoder_weights, cache_dir=cache_dir, **kwargs)
    with_cosine_head(model, head_scale)
    if pretrained and not encoder_weights:
        load_pretrained(model, num_classes=model.num_classes, in_chans=model.in_chans, cache_dir=cache_dir)
    return model
