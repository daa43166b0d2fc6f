"""Distillation: a network learns from its labels and from what trained networks, its teachers, say of the same images.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv:1503.02531): the temperature and its
square before the loss, Sec. 2. He et al., Distilling Virtual Examples for Long-Tailed Recognition, ICCV 2021
(arXiv:2103.15042): balanced softmax as the loss of the labels; their flattening by a power is not here. Beyer et al.,
Knowledge Distillation: A Good Teacher is Patient and Consistent, CVPR 2022 (arXiv:2106.05237): the teacher sees the
same view as the network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltzoo.losses.cross_entropy import log_prior, widen
from ltzoo.losses.objective import Objective, ObjectiveError, register_objective
from ltzoo.models import create_model

__all__ = ['Distilled', 'teacher_names']


def teacher_names(teachers: Any) -> list[str]:
    """Return the names in the option `teachers` of `Distilled`: one, or a list.

    Raises:
        ObjectiveError: if it is something else, or a name comes twice.
    """
    names = [teachers] if isinstance(teachers, str) else teachers
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise ObjectiveError(f'objective distilled: teachers must be names of trained models, not {teachers!r}')
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ObjectiveError(f'objective distilled: the teacher {twice} is named twice')
    return list(names)


@register_objective('distilled')
class Distilled(Objective):
    """Logit-adjusted cross-entropy with the labels, and divergence of the plain predictions from the teachers'.

    The loss of a sample is (1 - share) CE(z + log prior, label) + share T^2 KL(p || softmax(z / T)), with the network's
    logits z and the mean p of the teachers' softmax(t / T). Both networks give plain logits for balanced data, so the
    teachers should have been trained with an objective that makes up for the classes' numbers.

    The teachers see the images as they are normalised for the network; where theirs are normalised otherwise, see
    `feed`. They are no part of the objective's parameters or state: they are loaded by name, and never change.

    Args:
        model: unused.
        class_counts: training images per class, an integer tensor of shape (C,).
        teachers: the name of a trained model, as `ltzoo.create_model` takes it, or several: `resnet32_cifar_bcl`,
            `local-dir:runs/bcl/model`.
        share: of the teachers' term in the loss, more than 0 and at most 1, which leaves the labels out.
        temperature: T, more than 0.

    Raises:
        ObjectiveError: if a value is out of range, or a teacher has other classes.
        LtzooError: if a teacher cannot be loaded, as `ltzoo.create_model`.
    """

    takes_shares = True
    balanced = True
    logit_adjustment: Tensor

    def __init__(
        self,
        model: nn.Module,
        class_counts: Tensor,
        teachers: str | Sequence[str],
        share: float = 0.9,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(log_prior(class_counts))
        names = teacher_names(teachers)
        if not 0 < share <= 1:
            raise ObjectiveError(f'objective distilled: share must be more than 0 and at most 1, not {share}')
        if temperature <= 0:
            raise ObjectiveError(f'objective distilled: temperature must be more than 0, not {temperature}')
        self.share = share
        self.temperature = temperature
        # Not as submodules: they are not trained, kept in checkpoints or set to training mode.
        self.teachers: dict[str, Any] = {}
        self.feeding: dict[str, _Affine | nn.Identity] = {}
        for name in names:
            teacher: Any = create_model(name, pretrained=True).eval().requires_grad_(False)
            if teacher.num_classes != len(class_counts):
                raise ObjectiveError(
                    f'objective distilled: the teacher {name} has {teacher.num_classes} classes, where there are '
                    f'{len(class_counts)}: they must be the same'
                )
            self.teachers[name] = teacher
            self.feeding[name] = nn.Identity()

    def feed(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Be told how the images are normalised, so that each teacher gets them as its own were.

        To be called before the objective is moved to its device.

        Args:
            mean, std: per channel, of images scaled to 0..1.
        """
        for name, teacher in self.teachers.items():
            its_mean, its_std = (tuple(teacher.pretrained_cfg[key]) for key in ('mean', 'std'))
            if (its_mean, its_std) != (tuple(mean), tuple(std)):
                self.feeding[name] = _Affine(mean, std, its_mean, its_std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distilled:
        """Move the teachers, too, where PyTorch moves the objective."""
        for module in (*self.teachers.values(), *self.feeding.values()):
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Return the logarithm of what the teachers say in the mean of images (B, 3, H, W): shape (B, C)."""
        said = [
            F.log_softmax(widen(teacher(self.feeding[name](images))) / self.temperature, 1)
            for name, teacher in self.teachers.items()
        ]
        return torch.stack(said).logsumexp(0) - math.log(len(said))

    def forward(
        self, model: nn.Module, views: tuple[Tensor, ...], labels: Tensor, shares: Tensor | None = None
    ) -> Tensor:
        logits = widen(model(views[0]))
        taught = F.kl_div(
            F.log_softmax(logits / self.temperature, 1), self.teach(views[0]), reduction='none', log_target=True
        ).sum(1)
        losses = self.share * self.temperature**2 * taught
        if self.share == 1:
            return losses
        targets = labels if shares is None else shares
        return losses + (1 - self.share) * F.cross_entropy(logits + self.logit_adjustment, targets, reduction='none')


class _Affine(nn.Module):
    """Images normalised by one mean and deviation, (B, 3, H, W), as another mean and deviation normalise them."""

    factor: Tensor
    shift: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], its_mean: Sequence[float], its_std: Sequence[float]
    ) -> None:
        super().__init__()
        of_images, to = (torch.tensor([m, s])[..., None, None] for m, s in ((mean, std), (its_mean, its_std)))
        self.register_buffer('factor', of_images[1] / to[1])
        self.register_buffer('shift', (of_images[0] - to[0]) / to[1])

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.shift
