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
from ltzoo.models.checkpoints.networks import Network, classifier, depths, resnet
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError, Weights


@family(
    'mislas',
    paper='Improving Calibration for Long-Tailed Recognition',
    paper_id='arXiv:2104.00466',
    repository='dvlab-research/MiSLAS',
)
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
