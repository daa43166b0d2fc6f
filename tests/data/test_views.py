"""Views from their description, for tensors and for files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ltzoo.data.augment import (
    AutoAugment,
    ColorJitter,
    Cutout,
    HorizontalFlip,
    RandAugment,
    RandomCrop,
    RandomGrayscale,
    RandomResizedCrop,
    ViewError,
)
from ltzoo.data.views import PRESETS, FileViews, TensorViews, View, normalise, parse_views

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_make_views_of_tensors_and_of_files(preset: str) -> None:
    side = {'cifar': 32, 'imagenet': 224, 'digits': 8}[preset.partition('_')[0]]
    views = parse_views(preset)
    assert len(views) == (3 if preset.endswith('_bcl') else 1)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8))
    tensors = TensorViews(views, MEAN, STD)
    made = tensors(images, tensors.sample(4, side, side, torch.Generator().manual_seed(0)))
    assert [(tuple(view.shape), view.dtype) for view in made] == [((4, 3, side, side), torch.float32)] * len(views)
    torch.manual_seed(0)
    seen = FileViews(views, MEAN, STD)(Image.fromarray(images[0].permute(1, 2, 0).numpy()))
    assert [tuple(view.shape) for view in seen] == [(3, side, side)] * len(views)
    if len(views) == 3:
        assert not torch.equal(made[1], made[2])


def test_presets_are_those_of_the_literature() -> None:
    crop, flip = RandomCrop(padding=4, size=32), HorizontalFlip(p=0.5)
    jitter, grey = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(p=0.2)
    small, large = RandomResizedCrop(32, scale=(0.2, 1.0)), RandomResizedCrop(224, scale=(0.08, 1.0))
    assert large.ratio == (3 / 4, 4 / 3)
    first = (large, flip, ColorJitter(0.4, 0.4, 0.4, 0.0, p=1.0))
    assert parse_views('cifar_plain') == [View((crop, flip))]
    assert parse_views('cifar_bcl') == [
        View((crop, flip, AutoAugment(), Cutout(size=16))),
        *[View((small, flip, jitter, grey))] * 2,
    ]
    assert parse_views('imagenet_plain') == [View(first)]
    assert parse_views('imagenet_bcl') == [
        View((*first, RandAugment(n=2, m=10, mstd=0.5))),
        *[View((large, flip, jitter, grey))] * 2,
    ]


def test_views_that_are_alike_are_what_each_would_be_alone() -> None:
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = parse_views('cifar_bcl')
    together = TensorViews(views, (0.5,) * 3, (0.2,) * 3)
    params = together.sample(9, 32, 32, torch.Generator().manual_seed(1))
    made = together(images, params)
    assert not torch.equal(made[1], made[2])
    for view, drawn, seen in zip(views, params, made, strict=True):
        (alone,) = TensorViews([view], (0.5,) * 3, (0.2,) * 3)(images, [drawn])
        assert torch.equal(seen, alone)


def test_normalise_is_torchvisions() -> None:
    images = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8)
    torch.testing.assert_close(normalise(images, MEAN, STD), v2.functional.normalize(images / 255, MEAN, STD))


def test_operations_follow_in_order_and_sizes_carry_on() -> None:
    views = parse_views([[{'random_crop': {'padding': 0, 'size': 6}}, {'cutout': {'size': 30}}]])
    tensors = TensorViews(views, (0.0,) * 3, (1.0,) * 3)
    params = tensors.sample(50, 8, 8, torch.Generator().manual_seed(0))
    # The second operation draws for the size that the first leaves.
    assert params[0][1]['row'].max() == 5
    (made,) = tensors(torch.full((50, 3, 8, 8), 255, dtype=torch.uint8), params)
    assert made.shape == (50, 3, 6, 6)
    assert made.max() == 0


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('cifar_blc', 'did you mean cifar_bcl?'),
        ([], 'views is an empty list'),
        ([['horizontal_flp']], 'did you mean horizontal_flip?'),
        ([[{'random_crop': {}, 'cutout': {}}]], 'is not a view operation'),
        ([[{'random_crop': 4}]], 'settings are a mapping'),
        ([[{'cutout': {'sides': 4}}]], "cutout has no setting 'sides'"),
    ],
)
def test_what_is_wrong_is_said(spec: Any, message: str) -> None:
    with pytest.raises(ViewError) as caught:
        parse_views(spec)
    assert message in str(caught.value)


def test_files_need_a_size() -> None:
    for name in ('random_crop', 'random_resized_crop'):
        with pytest.raises(ViewError, match='images from files need a size'):
            FileViews(parse_views([[name]]), MEAN, STD)
