"""Which network a family's tensors are of, read from their names and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ltzoo.errors import first_of
from ltzoo.models.checkpoints.weights import LayoutError, Weights
from ltzoo.models.factory import create_model

__all__ = ['Network', 'classifier', 'depths', 'place', 'resnet', 'scale_classifier']

_CIFAR = {1: 'resnet8_cifar', 3: 'resnet20_cifar', 5: 'resnet32_cifar', 7: 'resnet44_cifar', 9: 'resnet56_cifar'}
# Depths of basic-block and of bottleneck networks, the latter with groups and width of a group.
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet34'}
_BOTTLENECK: dict[tuple[int, int], dict[tuple[int, ...], str]] = {
    (1, 64): {(3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101', (3, 8, 36, 3): 'resnet152'},
    (32, 4): {(3, 4, 6, 3): 'resnext50_32x4d', (3, 4, 23, 3): 'resnext101_32x4d'},
    (32, 8): {(3, 4, 23, 3): 'resnext101_32x8d'},
}
_SUPPORTED = (
    'supported are ResNets for CIFAR with three stages of w, 2w, 4w channels and zero-padding shortcuts, and ResNets '
    'of basic or bottleneck blocks, ResNeXts 32x4d and 32x8d, with the names of torchvision'
)


@dataclass
class Network:
    """A model of ours that a family's tensors are of, what `create_model` makes it from, and how images are fed.

    `images`: input_size, mean, std, crop_pct, interpolation, where they are other than the benchmark's usual ones;
    `by_frequency`: the classes are numbered from the most frequent to the rarest, not as the data set numbers them.
    """

    weights: Weights
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    by_frequency: bool = False


def depths(weights: Weights, stages: int) -> tuple[int, ...]:
    """Return the number of blocks in layer1, layer2, ..."""
    return tuple(weights.count(rf'layer{stage}\.(\d+)\.') for stage in range(1, stages + 1))


def resnet(weights: Weights, arguments: dict[str, Any]) -> Network:
    """Return the ResNet that weights with the names of torchvision, or of LDAM's ResNet for CIFAR, are of.

    Raises:
        LayoutError: if they are of none that is supported.
    """
    stem = weights.shape('conv1.weight')
    if len(stem) != 4 or stem[2:] not in ((3, 3), (7, 7)):
        raise LayoutError(f'conv1.weight has shape {stem}, which is no first layer of a ResNet; {_SUPPORTED}')
    if stem[1] != 3:
        arguments = {**arguments, 'in_chans': stem[1]}
    model, extra = _small(weights, stem[0]) if stem[2] == 3 else _large(weights)
    return Network(weights, model, {**arguments, **extra})


def _small(weights: Weights, width: int) -> tuple[str, dict[str, Any]]:
    layers = depths(weights, 3)
    widths = [weights.shape(f'layer{stage}.0.conv1.weight')[0] for stage in (1, 2, 3)]
    projections = [name for name in weights.tensors if '.shortcut.' in name or '.downsample.' in name]
    if widths != [width, 2 * width, 4 * width] or projections or depths(weights, 4)[3]:
        what = f'shortcuts with weights ({first_of(projections)})' if projections else f'stages of {widths} channels'
        raise LayoutError(f'it is a ResNet for small images with {what}; {_SUPPORTED}')
    extra: dict[str, Any] = {} if width == 16 else {'width': width}
    if len(set(layers)) == 1 and layers[0] in _CIFAR:
        return _CIFAR[layers[0]], extra
    return 'resnet32_cifar', {**extra, 'layers': list(layers)}


def _large(weights: Weights) -> tuple[str, dict[str, Any]]:
    layers = depths(weights, 4)
    if 'layer1.0.conv3.weight' not in weights:
        names, default = _BASIC, 'resnet18'
    else:
        width, in_group = weights.shape('layer1.0.conv2.weight')[:2]
        groups = width // in_group
        names = _BOTTLENECK.get((groups, width // groups), {})
        default = next(iter(names.values()), '')
        if not names:
            raise LayoutError(f'its bottlenecks have {groups} groups of {in_group} channels; {_SUPPORTED}')
    name = names.get(layers)
    return (f'timm/{name}', {}) if name else (f'timm/{default}', {'layers': list(layers)})


def classifier(weights: Weights, name: str) -> dict[str, Any]:
    """Place a classifier as `fc`; return the arguments of the model that have to do with it.

    One with a bias is linear. One without is LDAM's normalised layer: class vectors are columns, features and class
    vectors are normalised, the cosine is multiplied by 30.
    """
    weight = weights.take(f'{name}.weight')
    if weight.ndim != 2:
        raise LayoutError(f'{name}.weight has shape {tuple(weight.shape)}, which is no linear classifier')
    if f'{name}.bias' in weights:
        bias = weights.take(f'{name}.bias')
        weights.put('fc.weight', weight)
        weights.put('fc.bias', bias)
        return {'num_classes': weight.shape[0]}
    weights.put('fc.weight', weight.t().contiguous())
    return {'num_classes': weight.shape[1], 'head': 'cosine', 'head_scale': 30.0}


def scale_classifier(weights: Weights, name: str, scales: str) -> None:
    """Multiply the logits of a linear layer by a factor for each class, in its weight and bias.

    Raises:
        LayoutError: if one of the three is missing, or the numbers of classes differ.
    """
    weight, bias, factors = weights.take(f'{name}.weight'), weights.take(f'{name}.bias'), weights.take(scales)
    if factors.numel() != len(bias):
        raise LayoutError(f'{scales} has {factors.numel()} factors for {len(bias)} classes')
    factors = factors.flatten()
    weights.put(f'{name}.weight', weight * factors[:, None])
    weights.put(f'{name}.bias', bias * factors)


def place(network: Network) -> tuple[nn.Module, list[str]]:
    """Build the network and put its weights in their places.

    Returns:
        The model, in evaluation mode, and the names of counters that the file does not have, which are 0.

    Raises:
        LayoutError: if a tensor is missing, left over, of another shape or not finite.
    """
    model = create_model(network.model, **network.arguments)
    wanted, have = model.state_dict(), dict(network.weights.tensors)
    # PyTorch before 0.4.1 did not have them; they matter only to training with momentum=None.
    counters = [name for name in wanted if name.endswith('.num_batches_tracked') and name not in have]
    have |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    problems = [
        ('missing', [name for name in wanted if name not in have]),
        ('unexpected', [name for name in have if name not in wanted]),
        ('of another shape', _other_shapes(wanted, have)),
    ]
    if any(names for _, names in problems):
        listed = '; '.join(f'{what}: {first_of(names)}' for what, names in problems if names)
        raise LayoutError(f'taken for a {network.model.removeprefix("timm/")}, it does not fit: {listed}')
    strange = [name for name, tensor in have.items() if not tensor.isfinite().all()]
    if strange:
        raise LayoutError(f'its weights are not finite, it is damaged or its training diverged: {first_of(strange)}')
    model.load_state_dict(have)
    return model.eval(), counters


def _other_shapes(wanted: dict[str, Tensor], have: dict[str, Tensor]) -> Sequence[str]:
    return [
        f'{name} {tuple(have[name].shape)}, not {tuple(tensor.shape)}'
        for name, tensor in wanted.items()
        if name in have and have[name].shape != tensor.shape
    ]
