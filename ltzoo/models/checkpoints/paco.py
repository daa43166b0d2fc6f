"""PaCo and GPaCo: Cui et al., Parametric Contrastive Learning (ICCV 2021), Generalized Parametric Contrastive Learning
(TPAMI 2023).

Source: dvlab-research/Parametric-Contrastive-Learning, `LT/moco/builder.py`, `GPaCo/LT/moco/builder.py` and
`LT/models/resnet_cifar.py`. An entry `state_dict`, saved through DistributedDataParallel, with

- `encoder_q.*`: torchvision's ResNet or ResNeXt, or LDAM's ResNet-32 for CIFAR with twice the channels (32, 64, 128);
- `encoder_q.fc.*`: a projection in the place of the encoder's own classifier, for the contrastive loss only;
- `linear.*`: the classifier, linear, with bias, on pooled features (which the published commands do not normalise);
- `queue`, `queue_l`, `queue_ptr`: stored keys and their labels;
- PaCo only: `encoder_k.*`, `linear_k.*`, the moving averages that make the keys. GPaCo has none.
"""

from __future__ import annotations

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, resnet
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError, Weights

_REPOSITORY = 'dvlab-research/Parametric-Contrastive-Learning'


@family('paco', paper='paco', repository=_REPOSITORY)
def paco(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.weights('state_dict')
    if 'encoder_k.conv1.weight' not in weights:
        raise LayoutError('encoder_k.conv1.weight, of the key encoder, is missing')
    weights.drop(r'(encoder|linear)_k\.', 'key encoder, a moving average')
    return _query_encoder(weights)


@family('gpaco', paper='gpaco', repository=_REPOSITORY)
def gpaco(checkpoint: Checkpoint, options: Options) -> Network:
    return _query_encoder(checkpoint.weights('state_dict'))


def _query_encoder(weights: Weights) -> Network:
    weights.drop(r'queue(_l|_ptr)?$', 'queue of keys')
    weights.drop(r'encoder_q\.fc\.', 'projection head of the contrastive loss')
    weights.rename(r'encoder_q\.', '')
    if 'linear.bias' not in weights:
        raise LayoutError('linear.bias is missing')
    return resnet(weights, classifier(weights, 'linear'))
