"""Mixed batches: images and labels mixed in the same shares, the same whenever an epoch is repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltzoo.data import ArrayImages, Split
from ltzoo.data.loader import Batch, TrainLoader, train_loader
from ltzoo.data.mixing import MixedLoader
from ltzoo.data.views import parse_views

CLASSES = 5


def plain(number: int) -> TrainLoader:
    rng = np.random.default_rng(0)
    split = Split(ArrayImages(rng.integers(0, 256, (320, 9, 9, 3), np.uint8)), rng.integers(0, CLASSES, 320))
    views = parse_views([[{'random_crop': {'padding': 0, 'size': 8}}]] * number)
    return train_loader(split, views, (0.5,) * 3, (0.25,) * 3, batch_size=16, seed=3, device=torch.device('cpu'))


def mixed(epoch: int = 0, *, until: int = 9, views: int = 1, **ways: float) -> list[tuple[Batch, Batch]]:
    """Return each batch of an epoch with the same one mixed."""
    loader = MixedLoader(plain(views), CLASSES, 3, **ways, until=until)
    return list(zip(plain(views).epoch(epoch), loader.epoch(epoch), strict=True))


def weight(before: Batch, after: Batch) -> float:
    """Return what weight each image's own class has, having seen that its neighbour's has the rest."""
    own = F.one_hot(before.labels, CLASSES).float()
    alone = before.labels != before.labels.roll(1)
    assert after.shares is not None and torch.equal(after.labels, before.labels)
    found = after.shares[alone][own[alone].bool()]
    assert (found == found[0]).all()
    torch.testing.assert_close(after.shares, found[0] * own + (1 - found[0]) * own.roll(1, 0))
    return float(found[0])


def own_pixels(before: Batch, after: Batch) -> Tensor:
    """Return where an image's pixels are its own, (8, 8), having seen that all others are its neighbour's."""
    view, result = before.views[0], after.views[0]
    own = (result == view).all(1)
    assert torch.equal(result, torch.where(own[:, None], view, view.roll(1, 0)))
    assert (own == own[0]).all()
    return own[0]


def test_mixup_adds_images_and_classes_by_the_same_weight() -> None:
    weights = []
    for before, after in mixed(mixup=0.4):
        view, w = before.views[0], weight(before, after)
        torch.testing.assert_close(after.views[0], w * view + (1 - w) * view.roll(1, 0))
        weights.append(w)
    assert len(set(weights)) == 20 and all(0 <= w <= 1 for w in weights)
    # Beta(0.4, 0.4) is mostly near 0 or 1.
    assert sum(0.1 < w < 0.9 for w in weights) < 15


def test_cutmix_puts_a_box_of_one_image_into_the_other() -> None:
    areas = []
    for before, after in mixed(cutmix=1.0):
        kept = own_pixels(before, after)
        areas.append(kept.float().mean().item())
        assert weight(before, after) == pytest.approx(areas[-1])
        rows, columns = (~kept).any(1), (~kept).any(0)
        assert torch.equal(~kept, rows[:, None] & columns)
    assert len(set(areas)) > 5


def test_of_both_each_batch_takes_one_and_some_take_none() -> None:
    found = {'mixup': 0, 'cutmix': 0, 'none': 0}
    for epoch in range(9):
        for before, after in mixed(epoch, mixup=50.0, cutmix=50.0, probability=0.5):
            w = weight(before, after)
            if torch.equal(before.views[0], after.views[0]):
                found['none'] += 1
                assert w == 1
            else:
                found['cutmix' if (before.views[0] == after.views[0]).all(1).any() else 'mixup'] += 1
    assert abs(found['none'] - 90) < 25 and abs(found['mixup'] - 45) < 20 and abs(found['cutmix'] - 45) < 20


def test_an_epoch_repeats_exactly_and_draws_from_no_other_generator() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = [[after for _, after in mixed(epoch, mixup=1.0, cutmix=1.0)] for epoch in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(*runs[:2], strict=True):
        assert torch.equal(one.views[0], other.views[0])
        assert one.shares is not None and other.shares is not None and torch.equal(one.shares, other.shares)
    weights = [[weight(before, after) for before, after in mixed(epoch, mixup=1.0)] for epoch in (0, 1)]
    assert not set(weights[0]) & set(weights[1])


def test_further_views_stay_as_they_are() -> None:
    for before, after in mixed(views=3, mixup=1.0):
        assert not torch.equal(before.views[0], after.views[0]) and len(after.views) == 3
        assert all(torch.equal(one, other) for one, other in zip(before.views[1:], after.views[1:], strict=True))


def test_nothing_is_mixed_from_an_epoch_on() -> None:
    for before, after in mixed(2, mixup=1.0, until=2):
        assert torch.equal(before.views[0], after.views[0]) and weight(before, after) == 1
