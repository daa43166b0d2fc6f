"""Mixing: the images of a batch blended with one another, and their classes in the same shares."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from ltzoo.data.loader import Batch, TrainLoader, seed_of

__all__ = ['MixedLoader']


class MixedLoader:
    """Gives a loader's batches with the images of the first view mixed, and the classes' shares in them.

    All images of a batch are mixed in one way, each with its neighbour in the batch. Which way, and how much, follows
    from (seed, epoch, position) and is the same on all processes, each of which mixes its own share of the batch.
    Further views stay as they are, for objectives that compare them by class.

    Args:
        num_classes: C, of the shares: float32, shape (B, C), each row of sum 1.
        mixup: alpha of Beta(alpha, alpha), from which the weight of an image is drawn that the other one is added to
            (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018); 0 for never.
        cutmix: the same for the area that is left of an image where a box of the other one is put into it (Yun et al.,
            CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019). Where
            both are given, one of the two is drawn for each batch.
        probability: that a batch is mixed at all.
        until: from this epoch on, counted from 0, no batch is mixed; an image's share of its own class is 1 then.
    """

    def __init__(
        self,
        loader: TrainLoader,
        num_classes: int,
        seed: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        probability: float = 1.0,
        until: int,
    ) -> None:
        self.loader, self.num_classes, self.seed, self.until = loader, num_classes, seed, until
        self.steps_per_epoch = loader.steps_per_epoch
        ways = [way(alpha=alpha) for way, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
        self.mix = v2.RandomApply([v2.RandomChoice(ways)], probability)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(self.loader.epoch(epoch)):
            view, *others = batch.views
            shares = F.one_hot(batch.labels, self.num_classes).float()
            if epoch < self.until:
                with torch.random.fork_rng(devices=()):
                    # That of the CPU alone, which draws; not as the views are seeded.
                    torch.default_generator.manual_seed(seed_of(self.seed, epoch, step, 1))
                    view, shares = self.mix(view, shares)
            yield Batch((view, *others), batch.labels, shares)
