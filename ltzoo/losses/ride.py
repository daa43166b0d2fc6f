"""The loss of routed diverse experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.cross_entropy import widen
from ltzoo.losses.ldam import class_margins, with_margins
from ltzoo.losses.objective import Objective, ObjectiveError, register_objective
from ltzoo.losses.reweighting import class_balanced_weights
from ltzoo.models.heads import ExpertLinear, classifier_of

__all__ = ['RIDE']


@register_objective('ride')
class RIDE(Objective):
    """LDAM-DRW of every expert by itself, less how far its predictions are from the experts' mean.

    The distance is the Kullback-Leibler divergence from the mean's softmax, which gets no gradient, to the expert's. In
    the epochs from `reweighting_epoch` on rare classes weigh more in the first term, as with `reweighting` of a recipe,
    and their logits have a lower temperature in the second. The losses of the experts add up. This is the first stage
    of RIDE, whose experts are all asked; its second, which routes a sample to fewer of them, is not here.

    Source: Wang et al., Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR 2021, Sec. 3.2 and
    3.3; temperatures are scaled so that the largest is 1, as in its authors' code, where the paper subtracts.

    Args:
        model: its classifier must be that of several experts with cosine heads, such as `resnet32_cifar_experts` has.
        class_counts: training images per class, an integer tensor of shape (C,); a class without one counts as having
            one for its margin and its weight.
        reweighting_epoch: counted from 0.
        max_margin: as for `ldam`.
        diversity: weight of the second term; 0 leaves it out.
        temperature_spread: how far the temperatures follow the classes' numbers, from 0, not at all, to 1; 0.05 on
            CIFAR-LT, 0.02 on ImageNet-LT, 0.015 on iNaturalist 2018.
        beta: of the weights, see `class_balanced_weights`.

    Raises:
        ObjectiveError: if the classifier is another one, or a value is out of range.
    """

    balanced = True
    margins: Tensor
    late: Tensor
    now: Tensor

    def __init__(
        self,
        model: nn.Module,
        class_counts: Tensor,
        reweighting_epoch: int,
        max_margin: float = 0.5,
        diversity: float = 0.2,
        temperature_spread: float = 0.05,
        beta: float = 0.9999,
    ) -> None:
        super().__init__()
        classifier, kind = classifier_of(model)
        if not isinstance(classifier, ExpertLinear) or classifier.bias is not None:
            linear = ', with linear ones' if isinstance(classifier, ExpertLinear) else ''
            raise ObjectiveError(
                'objective ride trains several experts with cosine heads, such as those of model '
                f'resnet32_cifar_experts; the classifier of {type(model).__name__} is {kind}{linear}'
            )
        if diversity < 0:
            raise ObjectiveError(f'objective ride: diversity must be 0 or more, not {diversity}')
        if not 0 <= temperature_spread < 1:
            raise ObjectiveError(
                f'objective ride: temperature_spread must be 0 or more and below 1, not {temperature_spread}'
            )
        if not isinstance(reweighting_epoch, int) or reweighting_epoch < 0:
            raise ObjectiveError(
                f'objective ride: reweighting_epoch must be a whole number of 0 or more, not {reweighting_epoch}'
            )
        self.diversity = diversity
        self.reweighting_epoch = reweighting_epoch
        margins = class_margins('ride', class_counts, max_margin)
        # Of the logits, which the classifier has scaled.
        self.register_buffer('margins', classifier.scale * margins, persistent=False)
        shares = class_counts / class_counts.sum()
        temperatures = len(class_counts) * shares * temperature_spread + 1 - temperature_spread
        # Of every class, its weight and its temperature, when they differ.
        late = torch.stack([class_balanced_weights(class_counts, beta), temperatures / temperatures.max()])
        self.register_buffer('late', late, persistent=False)
        self.register_buffer('now', late.clone(), persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        # In place, for a replayed step reads it there.
        self.now.copy_(self.late if epoch >= self.reweighting_epoch else torch.ones(()))

    def forward(self, model: Any, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        features = model.forward_head(model.forward_features(views[0]), pre_logits=True)
        # (B, experts, C)
        logits = widen(model.get_classifier()(features, each=True))
        weights, temperatures = self.now
        each = labels[:, None].expand(logits.shape[:2])
        first = F.cross_entropy(with_margins(logits, each, self.margins).mT, each, reduction='none')
        mean = (logits.mean(1, keepdim=True).detach() / temperatures).log_softmax(-1)
        own = (logits / temperatures).log_softmax(-1)
        distance = F.kl_div(own, mean, reduction='none', log_target=True).sum(-1)
        return (weights[each] * first - self.diversity * temperatures.mean() ** 2 * distance).sum(1)
