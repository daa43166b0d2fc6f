"""Batched augmentations against torchvision, one image at a time with the same parameters."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_image
from timm.data import auto_augment
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional as F

from ltzoo.data.augment import (
    AutoAugment,
    ColorJitter,
    Cutout,
    HorizontalFlip,
    Op,
    RandAugment,
    RandomCrop,
    RandomGrayscale,
    RandomResizedCrop,
    ViewError,
    create_op,
    list_ops,
    op,
    take_rows,
)
from ltzoo.data.augment._affine import Filling
from ltzoo.data.augment._operations import NAMES, apply_operations
from ltzoo.data.augment.auto_augment import FILLING

N = 48


@pytest.fixture(scope='module')
def images() -> Tensor:
    """Patches of a photograph, a flat image, a black and a white one: uint8, (N, 3, 32, 32)."""
    photo = torch.from_numpy(load_sample_image('flower.jpg').copy()).permute(2, 0, 1)
    corners = torch.randint(0, 350, (N, 2), generator=torch.Generator().manual_seed(0)).tolist()
    patches = [photo[:, top : top + 64 : 2, left : left + 64 : 2] for top, left in corners]
    patches[0], patches[1], patches[2] = torch.full_like(patches[0], 77), patches[1] * 0, patches[2] * 0 + 255
    return torch.stack(patches)


def drawn(operation: Op, seed: int = 0, n: int = N) -> dict[str, Any]:
    return operation.sample(n, 32, 32, torch.Generator().manual_seed(seed))


def differences(fast: Tensor, images: Tensor, one: Callable[[Tensor, int], Tensor]) -> Tensor:
    assert fast.dtype == torch.uint8
    slow = torch.stack([one(image, i) for i, image in enumerate(images)])
    return (fast.int() - slow.int()).abs()


@pytest.mark.parametrize('size', [None, 32, 24, 40])
def test_random_crop_is_exact(images: Tensor, size: int | None) -> None:
    crop = RandomCrop(padding=4, size=size)
    p = drawn(crop)
    side = size or 32

    def one(x: Tensor, i: int) -> Tensor:
        resized = F.resize(x, [side], antialias=True)
        return F.crop(F.pad(resized, [4]), int(p['top'][i]), int(p['left'][i]), side, side)

    assert differences(crop.apply(images, p), images, one).max() == 0
    assert (int(p['top'].min()), int(p['top'].max())) == (0, 8)


def test_random_crop_of_oblong_images_reaches_from_end_to_end() -> None:
    crop = RandomCrop(padding=0, size=8)
    # Brightness says where in the image a pixel was.
    wide = (torch.arange(51) * 5).to(torch.uint8).expand(1, 3, 20, 51)
    p = crop.sample(200, 20, 51, torch.Generator().manual_seed(0))
    # torchvision's rounding: 8 x 51 / 20 is 20.4.
    assert (int(p['top'].max()), int(p['left'].min()), int(p['left'].max())) == (0, 0, 12)
    made = crop.apply(wide.expand(200, -1, -1, -1), p)
    assert made.shape == (200, 3, 8, 8)
    assert made.min() < 10 and made.max() > 240
    torch.manual_seed(0)
    picture = Image.fromarray(wide[0].permute(1, 2, 0).numpy())
    files = torch.stack([v2.functional.pil_to_tensor(crop.on_picture()(picture)) for _ in range(200)])
    assert {tuple(x.flatten().tolist()) for x in files} == {tuple(x.flatten().tolist()) for x in made}


def test_flip_grey_and_cutout_are_exact(images: Tensor) -> None:
    flip, grey, cutout = HorizontalFlip(), RandomGrayscale(0.5), Cutout(16)
    p = drawn(flip)
    gap = differences(flip.apply(images, p), images, lambda x, i: F.horizontal_flip(x) if p['flip'][i] else x)
    assert gap.max() == 0 and 0 < p['flip'].sum() < N
    q = drawn(grey)
    gap = differences(grey.apply(images, q), images, lambda x, i: F.rgb_to_grayscale(x, 3) if q['chosen'][i] else x)
    assert gap.max() == 0 and 0 < q['chosen'].sum() < N
    r = drawn(cutout)

    def cut(x: Tensor, i: int) -> Tensor:
        top, left = max(0, int(r['row'][i]) - 8), max(0, int(r['column'][i]) - 8)
        bottom, right = min(32, int(r['row'][i]) + 8), min(32, int(r['column'][i]) + 8)
        return F.erase(x, top, left, bottom - top, right - left, torch.zeros(1, 1, 1))

    assert differences(cutout.apply(images, r), images, cut).max() == 0


@pytest.mark.parametrize('size', [None, 20, 48])
def test_resized_crop_is_torchvisions_within_rounding(images: Tensor, size: int | None) -> None:
    crop = RandomResizedCrop(size=size, scale=(0.2, 1.0))
    p = drawn(crop)
    window = torch.stack([p[key] for key in ('top', 'left', 'height', 'width')], 1).int().tolist()

    def one(x: Tensor, i: int) -> Tensor:
        return F.resized_crop(x, *window[i], [size or 32] * 2, antialias=True)

    # torchvision's kernel for uint8 works with 16-bit weights, so a few pixels come out a level or two apart.
    gap = differences(crop.apply(images, p), images, one)
    assert gap.max() <= 2
    assert (gap > 0).float().mean() < 0.1


def test_resized_crop_windows_have_torchvisions_distribution() -> None:
    ours = RandomResizedCrop(scale=(0.2, 1.0), ratio=(0.5, 2.0))
    p = ours.sample(3000, 40, 24, torch.Generator().manual_seed(0))
    assert ((p['top'] >= 0) & (p['top'] + p['height'] <= 40) & (p['left'] >= 0) & (p['left'] + p['width'] <= 24)).all()
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(32, scale=(0.2, 1.0), ratio=(0.5, 2.0))
    blank = [torch.zeros(3, 40, 24)]
    windows = [theirs.make_params(blank) for _ in range(3000)]
    for key in ('top', 'left', 'height', 'width'):
        assert ks_2samp(p[key].numpy(), [window[key] for window in windows]).pvalue > 1e-3
    # Nothing of this shape fits: the largest allowed window in the middle, as torchvision takes.
    wide = RandomResizedCrop(scale=(1.0, 1.0), ratio=(3.0, 4.0))
    q = wide.sample(2, 30, 30, torch.Generator().manual_seed(0))
    expected = v2.RandomResizedCrop(30, scale=(1.0, 1.0), ratio=(3.0, 4.0)).make_params([torch.zeros(3, 30, 30)])
    assert {key: int(value[0]) for key, value in q.items()} == expected


CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    'ShearX': lambda x, m: _affine(x, shear=[math.degrees(math.atan(m)), 0.0], center=[0, 0]),
    'ShearY': lambda x, m: _affine(x, shear=[0.0, math.degrees(math.atan(m))], center=[0, 0]),
    'TranslateX': lambda x, m: _affine(x, translate=[int(m), 0]),
    'TranslateY': lambda x, m: _affine(x, translate=[0, int(m)]),
    'Rotate': lambda x, m: F.rotate(x, m, fill=list(COLOUR)),
    'Brightness': lambda x, m: F.adjust_brightness(x, 1 + m),
    'Color': lambda x, m: F.adjust_saturation(x, 1 + m),
    'Contrast': lambda x, m: F.adjust_contrast(x, 1 + m),
    'Sharpness': lambda x, m: F.adjust_sharpness(x, 1 + m),
    'Posterize': lambda x, m: F.posterize(x, int(m)),
    'Solarize': lambda x, m: F.solarize(x, 255 * m),
    'SolarizeAdd': lambda x, m: torch.where(x < 128, (x.int() + int(m)).clamp(0, 255), x.int()).to(torch.uint8),
    'AutoContrast': lambda x, m: F.autocontrast(x),
    'Equalize': lambda x, m: F.equalize(x),
    'Invert': lambda x, m: F.invert(x),
    'Identity': lambda x, m: x,
}
RANGES = {'Shear': 0.3, 'Translate': 14.0, 'Rotate': 30.0, 'Posterize': 8.0, 'Solarize': 1.0, 'SolarizeAdd': 110.0}
COLOUR = (128, 20, 250)


def _affine(x: Tensor, **changes: Any) -> Tensor:
    return F.affine(
        x, **{'angle': 0.0, 'translate': [0, 0], 'scale': 1.0, 'shear': [0.0, 0.0], 'fill': list(COLOUR), **changes}
    )


@pytest.mark.parametrize('name', NAMES)
def test_operations_are_torchvisions(images: Tensor, name: str) -> None:
    high = next((value for start, value in RANGES.items() if name.startswith(start)), 0.9)
    magnitudes = high * torch.rand(N, generator=torch.Generator().manual_seed(1))
    if name not in ('Posterize', 'Solarize', 'SolarizeAdd'):
        magnitudes *= torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)
    fast = apply_operations(images, torch.full((N,), NAMES.index(name)), magnitudes, Filling(COLOUR))
    gap = differences(fast, images, lambda x, i: CHANGES[name](x, magnitudes[i].item()))
    # A blend that lands on a whole level may be cut to either side; a rotation may hit exactly between two pixels.
    if name in ('Color', 'Contrast', 'Sharpness'):
        assert gap.max() <= 1
    assert (gap > 0).float().mean() <= (0.01 if name in ('Color', 'Contrast', 'Sharpness', 'Rotate') else 0)


@pytest.mark.parametrize('name', ['TranslateX', 'TranslateY'])
def test_where_pixels_are_mixed_images_move_by_fractions_as_timms_do(images: Tensor, name: str) -> None:
    pixels = torch.linspace(-6, 6, N)
    fast = apply_operations(images, torch.full((N,), NAMES.index(name)), pixels, Filling(COLOUR, bilinear=True))

    def one(x: Tensor, i: int) -> Tensor:
        move = {'TranslateX': auto_augment.translate_x_abs, 'TranslateY': auto_augment.translate_y_abs}[name]
        # timm's positive moves go left and up.
        moved = move(F.to_pil_image(x), -pixels[i].item(), fillcolor=COLOUR, resample=Image.Resampling.BILINEAR)
        return F.pil_to_tensor(moved)

    # Beside the edge, where Pillow does not mix with what lies beyond.
    inside = (..., slice(8, -8), slice(8, -8))
    gap = differences(fast, images, one)
    assert gap[inside].max() <= 1


def test_colour_jitter_is_torchvisions_in_every_order(images: Tensor) -> None:
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    p = drawn(jitter)
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

    def one(x: Tensor, i: int) -> Tensor:
        if p['chosen'][i]:
            for index in p['order'][i].tolist():
                x = functions[index](x, p['amount'][i, index].item())
        return x

    gap = differences(jitter.apply(images, p), images, one)
    # One level lost in an early step can grow in a later one.
    assert gap.max() <= 4
    assert (gap > 0).float().mean() < 0.02
    many = drawn(jitter, n=20_000)
    assert many['chosen'].float().mean() == pytest.approx(0.8, abs=0.02)
    assert len({tuple(order) for order in many['order'].tolist()}) == 24
    low, high = many['amount'].amin(0), many['amount'].amax(0)
    torch.testing.assert_close(low, torch.tensor([0.6, 0.6, 0.6, -0.1]), rtol=0, atol=1e-3)
    torch.testing.assert_close(high, torch.tensor([1.4, 1.4, 1.4, 0.1]), rtol=0, atol=1e-3)
    unchanged = ColorJitter(0, 0, 0, 0)
    assert torch.equal(unchanged.apply(images, drawn(unchanged)), images)


def test_auto_augment_does_all_that_its_policy_draws(images: Tensor) -> None:
    many = images.repeat(20, 1, 1, 1)
    p = drawn(AutoAugment(), n=len(many))
    expected = many
    for slot in range(2):
        expected = apply_operations(expected, p['operation'][:, slot], p['magnitude'][:, slot], FILLING)
    assert torch.equal(AutoAugment().apply(many, p), expected)


def test_auto_augment_draws_the_policy() -> None:
    n = 50_000
    p = AutoAugment().sample(n, 32, 32, torch.Generator().manual_seed(0))
    transform = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    share = np.zeros((2, len(NAMES)))
    for pair in transform._policies:
        for slot, (name, probability, _) in enumerate(pair):
            share[slot, NAMES.index(name)] += probability / 25
            share[slot, NAMES.index('Identity')] += (1 - probability) / 25
    for slot in range(2):
        measured = torch.bincount(p['operation'][:, slot], minlength=len(NAMES)).numpy() / n
        np.testing.assert_allclose(measured, share[slot], atol=0.01)
    # Of every operation that is changed by an amount, the amounts that its levels in the policy stand for.
    for slot in range(2):
        for name in {pair[slot][0] for pair in transform._policies}:
            levels = {pair[slot][2] for pair in transform._policies if pair[slot][0] == name}
            amounts, signed = transform._AUGMENTATION_SPACE[name]
            told = {round(float(amounts(10, 32, 32)[level]), 4) for level in levels if level is not None}
            drawn = p['magnitude'][:, slot][p['operation'][:, slot] == NAMES.index(name)]
            if told:
                assert {round(m, 4) for m in drawn.abs().unique().tolist()} == told, name
                negative = (drawn[drawn != 0] < 0).float().mean().item()
                assert negative == pytest.approx(0.5 if signed else 0, abs=0.1), name
    # Where the policy says level 9 of translation, the magnitude is 150/331 of the side, to either side.
    moved = p['magnitude'][:, 1][p['operation'][:, 1] == NAMES.index('TranslateY')]
    assert set(moved.abs().mul(100).round().int().tolist()) == {round(100 * 150 / 331 * 32)}
    assert 0.45 < (moved > 0).float().mean() < 0.55


def test_rand_augment_is_timms_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that timm's own operations get are those that the batched form draws."""
    n, side = 6000, 40
    augment = RandAugment(n=2, m=9, mstd=0.5)
    called: dict[str, list[float]] = {}

    def record(name: str) -> Callable[..., Any]:
        def take(picture: Any, *arguments: float, fillcolor: Any, resample: Any) -> Any:
            assert fillcolor == (124, 116, 104) and resample == auto_augment._RANDOM_INTERPOLATION
            called.setdefault(name, []).append(arguments[0] if arguments else 0.0)
            return picture

        return take

    monkeypatch.setattr(auto_augment, 'NAME_TO_OP', {name: record(name) for name in auto_augment.NAME_TO_OP})
    torch.manual_seed(0)
    transform = augment.on_picture()
    for _ in range(n):
        transform('picture')
    p = augment.sample(n, side, side, torch.Generator().manual_seed(0))
    assert p['operation'].shape == (n, 2)
    assert len(called) == 15
    for theirs, values in called.items():
        name = theirs.removesuffix('Rel')
        ours = p['magnitude'][p['operation'] == NAMES.index(name)].double().numpy()
        assert len(ours) == pytest.approx(n / 15, rel=0.25) and len(values) == pytest.approx(n / 15, rel=0.25)
        scale = {'Solarize': 255, 'TranslateX': 1 / side, 'TranslateY': 1 / side}.get(name, 1)
        shift = 1 if name in ('Color', 'Contrast', 'Brightness', 'Sharpness') else 0
        if name not in ('AutoContrast', 'Equalize', 'Invert'):
            assert ks_2samp((scale * ours + shift).round(4), np.round(values, 4)).pvalue > 1e-3, name


def test_rand_augment_on_a_picture_is_decided_by_pytorchs_generator(images: Tensor) -> None:
    picture = Image.fromarray(images[5].permute(1, 2, 0).numpy())
    transform = RandAugment().on_picture()
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        random.seed(len(made))
        np.random.seed(len(made))
        before = (random.getstate(), np.random.get_state()[1].tolist())
        made.append([transform(picture).tobytes() for _ in range(8)])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert made[0] == made[1] != made[2]


def test_what_moves_out_of_the_picture_leaves_grey_or_the_mean() -> None:
    white = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    for operation, colour in ((AutoAugment(), (128, 128, 128)), (RandAugment(), (124, 116, 104))):
        moved = {NAMES.index(name) for name in ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')}
        p = drawn(operation, n=200)
        only = [i for i in range(200) if {*p['operation'][i].tolist()} <= {*moved, 0}]
        seen = {tuple(pixel) for i in only for pixel in operation.apply(white, p)[i].flatten(1).T.tolist()}
        assert {colour, (255, 255, 255)} <= seen
        assert (0, 0, 0) not in seen


ALL = [
    RandomCrop(4, 32), HorizontalFlip(), AutoAugment(), RandAugment(2, 10), Cutout(16), RandomResizedCrop(32),
    ColorJitter(), RandomGrayscale(0.5),
]  # fmt: skip


@pytest.mark.parametrize('operation', ALL, ids=lambda o: type(o).__name__)
def test_each_image_has_its_own_parameters_whatever_the_batch(images: Tensor, operation: Op) -> None:
    p = drawn(operation)
    whole = operation.apply(images, p)
    part = operation.apply(images[10:20], take_rows(p, slice(10, 20)))
    assert torch.equal(whole[10:20], part)
    same = operation.apply(images[5:6].expand(N, -1, -1, -1), p)
    assert len(torch.unique(same.flatten(1), dim=0)) > 1
    assert not torch.equal(operation.apply(images, drawn(operation, seed=1)), whole)


@pytest.mark.parametrize('operation', ALL, ids=lambda o: type(o).__name__)
def test_computing_all_and_choosing_equals_computing_the_chosen(
    images: Tensor, operation: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = drawn(operation)
    chosen = operation.apply(images, p)
    monkeypatch.setattr(op, '_only_chosen', lambda images: False)
    assert torch.equal(operation.apply(images, p), chosen)


@pytest.mark.parametrize('operation', ALL, ids=lambda o: type(o).__name__)
def test_the_file_form_changes_a_picture_and_keeps_its_size(images: Tensor, operation: Op) -> None:
    picture = Image.fromarray(images[5].permute(1, 2, 0).numpy())
    torch.manual_seed(0)
    made = [operation.on_picture()(picture) for _ in range(30)]
    assert {image.size for image in made} == {(32, 32)}
    assert len({image.tobytes() for image in made}) > 1


def test_the_file_form_has_the_settings(images: Tensor) -> None:
    picture = Image.fromarray(images[5].permute(1, 2, 0).numpy())

    def made(operation: Op, of: Image.Image = picture, number: int = 60) -> list[Image.Image]:
        torch.manual_seed(0)
        transform = operation.on_picture()
        return [transform(of) for _ in range(number)]

    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for p, wanted in ((0.0, picture), (1.0, mirrored)):
        assert {image.tobytes() for image in made(HorizontalFlip(p))} == {wanted.tobytes()}
    for unchanged in (ColorJitter(p=0.0), RandomGrayscale(0.0)):
        assert {image.tobytes() for image in made(unchanged)} == {picture.tobytes()}
    grey = np.stack([np.asarray(image) for image in made(RandomGrayscale(1.0))])
    assert (grey == grey[..., :1]).all()
    even = Image.new('RGB', (4, 4), (100, 100, 100))
    levels = [np.asarray(image)[0, 0, 0] for image in made(ColorJitter(0.2, 0, 0, 0), even, 300)]
    assert 80 <= min(levels) < 85 and 115 < max(levels) <= 120
    for image in made(RandomResizedCrop(32, scale=(1.0, 1.0), ratio=(1.0, 1.0))):
        assert np.abs(np.asarray(image, np.int64) - np.asarray(picture, np.int64)).max() <= 1
    white = np.stack([np.asarray(image) for image in made(AutoAugment(), Image.new('RGB', (32, 32), 'white'), 200)])
    assert (white == 128).all(-1).any(), 'a moved image leaves grey'


def test_the_file_form_of_cutout_has_the_distribution_of_the_batched() -> None:
    white = Image.new('RGB', (32, 32), 'white')
    torch.manual_seed(0)
    transform = Cutout(16).on_picture()
    files = [(np.asarray(transform(white)) == 0).mean() for _ in range(1500)]
    cutout = Cutout(16)
    batch = cutout.apply(torch.full((1500, 3, 32, 32), 255, dtype=torch.uint8), drawn(cutout, n=1500))
    assert ks_2samp(files, (batch == 0).float().mean((1, 2, 3)).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('random_crops', {}, 'did you mean random_crop?'),
        ('random_crop', {'pad': 4}, "random_crop has no setting 'pad'; it has padding, size"),
        ('random_crop', {'padding': -1}, 'padding must be 0 or more'),
        ('horizontal_flip', {'p': 2}, 'p is a probability'),
        ('cutout', {'size': 0}, 'size must be 1 or more'),
        ('random_resized_crop', {'scale': 0.2}, 'scale must be a pair of numbers such as [0.2, 1.0], not 0.2'),
        ('random_resized_crop', {'scale': [0.5, 3]}, 'scale is two shares'),
        ('random_resized_crop', {'scale': [0.2, 0.5, 1]}, 'scale must be a pair'),
        ('random_resized_crop', {'ratio': [2, 1]}, 'ratio is a least'),
        ('random_resized_crop', {'size': 0}, 'size must be 1 or more'),
        ('random_resized_crop', {'size': [8, 8]}, 'size must be a whole number or null, not [8, 8]'),
        ('random_crop', {'size': -3}, 'size must be 1 or more'),
        ('random_crop', {'padding': 1.5}, 'padding must be a whole number, not 1.5'),
        ('random_crop', {'padding': 'a'}, "padding must be a whole number, not 'a'"),
        ('random_crop', {'padding': True}, 'padding must be a whole number, not True'),
        ('rand_augment', {'n': 2.5}, 'n must be a whole number'),
        ('cutout', {'size': 4.5}, 'size must be a whole number'),
        ('color_jitter', {'hue': float('nan')}, 'hue must be a number'),
        ('rand_augment', {'m': 30}, 'm 0 to 10'),
        ('rand_augment', {'mstd': -1}, 'mstd 0 or more'),
        ('color_jitter', {'hue': 0.7}, 'hue 0 to 0.5'),
        ('random_grayscale', {'p': -1}, 'p is a probability'),
        ('random_crop', {'name': 'x'}, "random_crop has no setting 'name'"),
    ],
)
def test_bad_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ViewError) as caught:
        create_op(name, **settings)
    assert message in str(caught.value)
    assert len(list_ops()) == len(ALL)


def test_settings_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, '_OPS', dict(op._OPS))

    @op.register_op('own')
    @dataclass(frozen=True)
    class Own(HorizontalFlip):
        on: bool = False
        word: str = 'a'
        kind: Literal['soft', 'hard', 1] = 'soft'
        side: float | Literal['auto'] | None = None
        pair: tuple[str, bool] = ('a', True)
        place: Path = Path()

    assert op.register_op('own')(Own) is Own
    with pytest.raises(ViewError, match='cutout is an operation of ltzoo: choose another name'):
        op.register_op('cutout')(Own)
    with pytest.raises(ViewError, match='the operation bare must be a dataclass'):
        op.register_op('bare')(type('Bare', (), {}))
    assert 'bare' not in list_ops()
    given = {'on': True, 'word': 'b', 'kind': 'hard', 'side': 'auto', 'pair': ['c', False], 'place': Path('x')}
    assert create_op('own', **given) == Own(**{**given, 'pair': ('c', False)})  # type: ignore[arg-type]
    for setting, value, words in (
        ('on', 1, 'true or false'),
        ('on', 'yes', 'true or false'),
        ('word', 1, 'a word'),
        ('word', True, 'a word'),
        ('kind', 'sof', "'soft' or 'hard' or 1"),
        ('kind', True, "'soft' or 'hard' or 1"),
        ('side', 'Auto', "a number or 'auto' or null"),
        ('side', True, "a number or 'auto' or null"),
        ('pair', ['c', 1], '2 values in brackets: a word, true or false, not'),
        ('place', 'x', 'Path'),
    ):
        with pytest.raises(ViewError) as caught:
            create_op('own', **{setting: value})
        assert str(caught.value).startswith(f'own: {setting} must be {words}')
