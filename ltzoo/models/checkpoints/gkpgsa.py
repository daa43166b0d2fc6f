"""GKP/GSA: the authors' code of Reframing Long-Tailed Learning via Loss Landscape Geometry (CVPR 2026).

Source: ChenShengHan100/gkp-gsa, `cifar_OneBackward.py`, `utils.py` and `models/resnet_cifar.py`. An entry `state_dict`
with the names of LDAM's ResNet-32 for CIFAR, flat or under `encoder.` (the file of the model that the script imports is
not part of the repository, its parent is), and

- `fc.weight`, shape (features, classes): cosine classifier, logits 30 cos;
- `head.*` and `head_center.*` or `head_fc.*`: projections, for the contrastive loss only.

The script feeds CIFAR-100 with the statistics of CIFAR-100, unlike the rest of the field. `best_acc1` is a NumPy
scalar; the optimiser's state is that of the SGD inside its wrapper.
"""

from __future__ import annotations

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, resnet
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError

_CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
_CIFAR100_STD = (0.2675, 0.2565, 0.2761)


@family('gkpgsa', paper='gkpgsa', repository='ChenShengHan100/gkp-gsa')
def gkpgsa(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.weights('state_dict')
    weights.drop(r'head(_fc|_center)?\.', 'projection heads of the contrastive loss')
    arguments = classifier(weights, 'fc')
    if not weights.dropped and 'encoder.conv1.weight' not in weights:
        raise LayoutError('it has neither projection heads nor an encoder')
    weights.rename(r'encoder\.', '')
    network = resnet(weights, arguments)
    if network.model.startswith('timm/'):
        raise LayoutError(
            f'it is a {network.model.removeprefix("timm/")}; the released code has ResNets for CIFAR only'
        )
    if arguments['num_classes'] == 100:
        network.images = {'mean': _CIFAR100_MEAN, 'std': _CIFAR100_STD}
    return network
