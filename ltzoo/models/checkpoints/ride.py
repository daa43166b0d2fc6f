"""RIDE and SADE: Wang et al., Long-tailed Recognition by Routing Diverse Distribution-Aware Experts (ICLR 2021), and
Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition (NeurIPS 2022).

Sources: frank-xwang/RIDE-LongTailRecognition and Vanint/SADE-AgnosticLT, `model/model.py` and the networks it imports;
both have one layout. An entry `state_dict` with, under `backbone.`,

- `conv1`, `bn1` and the shared stages: `layer1` of the CIFAR ResNet, `layer1` and `layer2` (SADE on Places also
  `layer3`) of ResNet-50 and its line;
- `layer2s.E.*`, `layer3s.E.*`, `layer4s.E.*`: the stages of expert E; on CIFAR with zero-padding shortcuts, which add
  half of the missing channels on each side, whatever the numbers of channels;
- `linears.E.weight`, shape (features, classes), without a bias: cosine classifier of expert E, logits 30 cos; or
  `linears.E.weight` and `linears.E.bias` of linear layers. The logits of the network are the experts' mean;
- RIDE with routing: `expert_help_pred_*`, which decides for each image how many experts are asked. Here all are.

SADE's weights for aggregation at test time are not in the file: they are learnt on the test images.

The entry `config` is an object of the repository's own class `parse_config.ConfigParser`, which is not made.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError, Weights
from ltzoo.models.lt_experts import SHAPES

# By cardinality and width of a group.
_LARGE = {(1, 64): 'resnet50_experts', (32, 4): 'resnext50_experts'}


@family('ride', paper='ride', repository='frank-xwang/RIDE-LongTailRecognition')
def ride(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.weights('state_dict')
    weights.drop(r'backbone\.expert_help_pred_', 'routing; here every expert is asked')
    return _experts(weights)


@family('sade', paper='sade', repository='Vanint/SADE-AgnosticLT')
def sade(checkpoint: Checkpoint, options: Options) -> Network:
    return _experts(checkpoint.weights('state_dict'))


def _experts(weights: Weights) -> Network:
    weights.rename(r'backbone\.', '')
    arguments = _classifiers(weights)
    stem = weights.shape('conv1.weight')
    stages = 3 if stem[2:] == (3, 3) else 4
    shared = next((stage for stage in range(1, stages) if f'layer{stage + 1}s.0.0.conv1.weight' in weights), 0)
    if not shared:
        raise LayoutError('no stage of the experts (layer2s.0.0.conv1.weight, ...) is in it')
    weights.rename(r'layer(\d)s\.', r'layer\1.experts.')
    first = [f'layer{stage}.{"experts.0." if stage > shared else ""}' for stage in range(1, stages + 1)]
    layers = [weights.count(rf'{re.escape(prefix)}(\d+)\.') for prefix in first]
    name, channels = 'resnet32_cifar_experts', [weights.shape(f'{prefix}0.conv2.weight')[0] for prefix in first]
    if stages == 4:
        width, in_group = weights.shape('layer1.0.conv2.weight')[:2]
        name = _LARGE.get((width // in_group, in_group), '')
        if not name or 'layer1.0.conv3.weight' not in weights:
            raise LayoutError('its blocks are neither those of ResNet-50 nor of ResNeXt-50 (32x4d), nor for CIFAR')
        channels = [weights.shape(f'{prefix}0.conv3.weight')[0] // 4 for prefix in first]
    found = {'layers': layers, 'channels': channels, 'shared': shared}
    arguments |= {key: value for key, value in found.items() if value != SHAPES[name][key]}
    return Network(weights, name, arguments)


def _classifiers(weights: Weights) -> dict[str, Any]:
    count = weights.count(r'linears\.(\d+)\.')
    if not count:
        raise LayoutError('no classifiers of experts (linears.0.weight, ...) are in it')
    columns = [weights.take(f'linears.{expert}.weight') for expert in range(count)]
    shapes = {tuple(weight.shape) for weight in columns}
    if len(shapes) > 1:
        raise LayoutError(f"the experts' classifiers differ in shape: {', '.join(map(str, sorted(shapes)))}")
    if 'linears.0.bias' in weights:
        weights.put('fc.weight', torch.stack(columns))
        weights.put('fc.bias', torch.stack([weights.take(f'linears.{expert}.bias') for expert in range(count)]))
        return {'num_classes': columns[0].shape[0], 'num_experts': count, 'head': 'linear'}
    weights.put('fc.weight', torch.stack([weight.t() for weight in columns]))
    return {'num_classes': columns[0].shape[1], 'num_experts': count, 'head': 'cosine', 'head_scale': 30.0}
