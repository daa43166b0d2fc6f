"""LDAM-DRW: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (NeurIPS 2019).

Source: kaidic/LDAM-DRW, `models/resnet_cifar.py` and `cifar_train.py`. An entry `state_dict` with

- `conv1`, `bn1`, `layer1` to `layer3`: the ResNet for CIFAR with zero-padding shortcuts, as ours;
- `linear.weight`, shape (features, classes), without a bias: cosine classifier, class vectors in columns. The network
  itself returns the plain cosine; the factor s = 30 is in the loss, here it is in the model. With other losses
  `linear.weight` and `linear.bias` are those of a linear layer.
"""

from __future__ import annotations

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, resnet
from ltzoo.models.checkpoints.weights import Checkpoint


@family('ldam', paper='ldam', repository='kaidic/LDAM-DRW')
def ldam(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.weights('state_dict')
    return resnet(weights, classifier(weights, 'linear'))
