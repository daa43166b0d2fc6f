"""BCL: Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual Recognition (CVPR 2022).

Source: FlamieZhu/Balanced-Contrastive-Learning, `models/resnext.py` and `main.py`. An entry `state_dict`, saved through
DataParallel, with

- `encoder.*`: ResNet-50 or ResNeXt-50 as torchvision's, without fc; in reproductions on CIFAR the ResNet of LDAM;
- `fc.weight`, shape (features, classes): cosine classifier, class vectors in columns, logits 30 cos; or, trained with
  `--use_norm ''`, `fc.weight` and `fc.bias` of a linear layer;
- `head.*`, `head_fc.*`: projections of features and of class vectors, for the contrastive loss only.
"""

from __future__ import annotations

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, resnet
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError


@family('bcl', paper='bcl', repository='FlamieZhu/Balanced-Contrastive-Learning')
def bcl(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.weights('state_dict')
    weights.drop(r'head(_fc)?\.', 'projection heads of the contrastive loss')
    if 'encoder.conv1.weight' not in weights:
        raise LayoutError('encoder.conv1.weight is missing')
    arguments = classifier(weights, 'fc')
    weights.rename(r'encoder\.', '')
    return resnet(weights, arguments)
