"""MiSLAS: Zhong et al., Improving Calibration for Long-Tailed Recognition (CVPR 2021).

Source: dvlab-research/MiSLAS, `train_stage1.py`, `train_stage2.py`, `models/resnet.py`. Entries

- `state_dict_model`: the encoder, torchvision's ResNet without fc, or LDAM's ResNet-32 for CIFAR. Stage 2 shifts the
  batch-norm statistics in it;
- `state_dict_classifier`: `fc.weight`, `fc.bias`, a linear layer;
- stage 2 only, `state_dict_lws_model`: `learned_norm`, shape (1, classes), which multiplies the logits. It is
  multiplied into the linear layer here, bias included;
- on Places, `state_dict_block`: the last block of the last stage, which the encoder then lacks.

Apart from CIFAR the repository's `datasets/*.py` number the classes anew, from the most frequent to the rarest.
"""

from __future__ import annotations

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network, classifier, depths, resnet, scale_classifier
from ltzoo.models.checkpoints.weights import Checkpoint


@family('mislas', paper='mislas', repository='dvlab-research/MiSLAS')
def mislas(checkpoint: Checkpoint, options: Options) -> Network:
    weights = checkpoint.parts(
        checkpoint.content,
        optional=['block', 'lws'],
        model='state_dict_model',
        block='state_dict_block',
        classifier='state_dict_classifier',
        lws='state_dict_lws_model',
    )
    if 'lws.learned_norm' in weights:
        scale_classifier(weights, 'classifier.fc', 'lws.learned_norm')
    weights.rename(r'model\.', '')
    weights.rename(r'block\.', f'layer4.{depths(weights, 4)[3]}.')
    network = resnet(weights, classifier(weights, 'classifier.fc'))
    network.by_frequency = network.model.startswith('timm/')
    return network
