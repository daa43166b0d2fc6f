"""cRT, tau-norm and LWS: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition (ICLR 2020).

Source: facebookresearch/classifier-balancing, `run_networks.py`, `models/*.py`, `tau_norm.py`. An entry
`state_dict_best` (final checkpoints) or `state_dict` (latest ones), of two state dicts saved through DataParallel:

- `feat_model`: ResNet-10, -50, -101, -152 or ResNeXt-50, -101, -152 with the names and strides of torchvision's;
- `classifier`: `fc.weight` and `fc.bias`, a linear layer; LWS adds `scales`, shape (classes,), which multiplies the
  logits and is multiplied into the linear layer here, bias included.

tau_norm takes a network trained in one stage, divides each class vector by its length to the power tau, and leaves the
bias out, as `tau_norm.py` does: the bias here is zero.
"""

from __future__ import annotations

import math

import torch

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, resnet, scale_classifier
from ltzoo.models.checkpoints.reading import ConversionError
from ltzoo.models.checkpoints.weights import Checkpoint, Weights

_KANG = {'paper': 'decoupling', 'repository': 'facebookresearch/classifier-balancing'}


@family('crt', **_KANG)
def crt(checkpoint: Checkpoint, options: Options) -> Network:
    return _network(_weights(checkpoint))


@family('lws', **_KANG)
def lws(checkpoint: Checkpoint, options: Options) -> Network:
    weights = _weights(checkpoint)
    scale_classifier(weights, 'classifier.fc', 'classifier.scales')
    return _network(weights)


@family('tau_norm', **_KANG)
def tau_norm(checkpoint: Checkpoint, options: Options) -> Network:
    if options.tau is None:
        raise ConversionError(
            'tau_norm needs --tau: 0 leaves the class vectors as they are, 1 gives all the same length'
        )
    if not math.isfinite(options.tau):
        raise ConversionError(f'--tau must be a number such as 1, not {options.tau}')
    weights = _weights(checkpoint)
    weight = weights.take('classifier.fc.weight')
    weights.drop(r'classifier\.fc\.bias$', 'bias, which tau-normalisation leaves out')
    # A vector without a direction stays as it is.
    length = weight.norm(dim=1, keepdim=True)
    weights.put('classifier.fc.weight', weight / length.where(length > 0, 1) ** options.tau)
    weights.put('classifier.fc.bias', torch.zeros(len(weight)))
    return _network(weights)


def _weights(checkpoint: Checkpoint) -> Weights:
    holder = checkpoint.entry('state_dict_best', 'state_dict')
    return checkpoint.parts(holder, feat='feat_model', classifier='classifier')


def _network(weights: Weights) -> Network:
    weights.rename(r'feat\.', '')
    return resnet(weights, classifier(weights, 'classifier.fc'))
