"""Predictions: in order, whole, from arrays and files alike, and from two processes as from one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torch import nn
from two_ranks import of_both

import ltzoo
from ltzoo.data import ArrayImages, FileImages, Split, UnreadableImageError
from ltzoo.evaluation import PredictionError, predict, predict_files

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CONFIG = {'input_size': (3, 8, 8), 'mean': MEAN, 'std': STD, 'crop_pct': 1.0, 'interpolation': 'bilinear'}


def make_split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    return Split(ArrayImages(images), np.arange(23) % 3)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Dropout(0.9))


def test_equals_one_image_at_a_time() -> None:
    split, model = make_split(), make_model()
    seen = predict(model, split, CONFIG, batch_size=10)
    for i in range(len(split)):
        pixels = torch.from_numpy(split.images.array[i]).double().permute(2, 0, 1) / 255  # type: ignore[attr-defined]
        normal = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        share = model[1](normal.float().flatten()).softmax(0)  # type: ignore[index]
        assert seen.predictions[i] == share.argmax()
        assert seen.confidences[i] == pytest.approx(share.max().item(), abs=1e-5)
    assert np.array_equal(seen.labels, split.labels)
    assert model.training


def test_full_precision_also_where_a_gpu_would_take_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cudnn = make_model(), torch.backends.cudnn
    seen: list[Any] = []
    apart = hasattr(cudnn, 'conv')
    model.register_forward_pre_hook(lambda *_: seen.append(cudnn.conv.fp32_precision if apart else cudnn.allow_tf32))
    monkeypatch.setattr(cudnn, 'allow_tf32', True)
    predict(model, make_split(), CONFIG)
    assert set(seen) == {'ieee' if apart else False}
    assert cudnn.allow_tf32


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, 'conv'), reason='PyTorch before 2.9 has one setting for all')
def test_settings_of_each_kind_of_operator_stay_as_they_are() -> None:
    kinds = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [kind.fp32_precision for kind in kinds]
    try:
        for asked in (['ieee', 'ieee'], ['tf32', 'ieee']):
            for kind, value in zip(kinds, asked, strict=True):
                kind.fp32_precision = value
            predict(make_model(), make_split(), CONFIG)
            assert [kind.fp32_precision for kind in kinds] == asked
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def test_the_device_is_that_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(split: Split, config: object, batch_size: int, device: torch.device, workers: int) -> None:
        asked.append(device.type)
        raise InterruptedError

    # The package has a function of the module's name.
    monkeypatch.setattr(importlib.import_module('ltzoo.evaluation.predict'), 'image_batches', stop)
    # The one device beside the CPU that every machine has.
    there, files = ltzoo.create_model('resnet8_cifar').to('meta'), [tmp_path / 'a.png']
    for call in (
        lambda: predict(there, make_split(), CONFIG),
        lambda: predict_files(there, files),
        lambda: predict(there, make_split(), CONFIG, device='cpu'),
        lambda: predict_files(there, files, device='cpu'),
        lambda: predict(Recorder(), make_split(), CONFIG),
    ):
        with pytest.raises(InterruptedError):
            call()
    assert asked == ['meta', 'meta', 'cpu', 'cpu', 'cpu']


def test_files_give_what_arrays_give(tmp_path: Path) -> None:
    split = make_split()
    for i in range(len(split)):
        split.images[i].save(tmp_path / f'{i}.png')
    files = Split(FileImages(tmp_path, [f'{i}.png' for i in range(len(split))]), split.labels)
    one = predict(make_model(), split, CONFIG)
    other = predict(make_model(), files, CONFIG, batch_size=10, workers=1)
    assert np.array_equal(one.predictions, other.predictions)
    np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-5)
    (tmp_path / '3.png').write_bytes(b'')
    with pytest.raises(UnreadableImageError, match=r'3\.png'):
        predict(make_model(), files, CONFIG)


def _share(rank: int) -> tuple[list[int], list[float]]:
    seen = predict(make_model(), make_split(), CONFIG, batch_size=5)
    return seen.predictions.tolist(), seen.confidences.tolist()


def test_two_processes_see_every_image_once(tmp_path: Path) -> None:
    whole = predict(make_model(), make_split(), CONFIG)
    for predictions, confidences in of_both(_share, tmp_path):
        assert predictions == whole.predictions.tolist()
        assert confidences == pytest.approx(whole.confidences.tolist(), abs=1e-6)


class Recorder(nn.Module):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    'changes',
    [
        {'input_size': (3, 6, 6), 'crop_pct': 0.7},
        {'input_size': (3, 16, 16), 'interpolation': 'bicubic'},
        {'crop_pct': 0.8, 'crop_mode': 'squash'},
        {'interpolation': 'bicubic', 'crop_pct': 0.875},
    ],
)
def test_images_are_made_as_the_transform_of_the_model_makes_them(changes: dict, tmp_path: Path) -> None:
    split, config = make_split(), {**CONFIG, **changes}
    for i in range(len(split)):
        split.images[i].resize((8, 11)).save(tmp_path / f'{i}.png')
    files = Split(FileImages(tmp_path, [f'{i}.png' for i in range(len(split))]), split.labels)
    transform = create_transform(**config)
    for part in (split, files):
        model = Recorder()
        predict(model, part, config, batch_size=10)
        wanted = torch.stack([transform(part.images[i]) for i in range(len(part))])
        assert torch.equal(torch.cat(model.seen), wanted)


def test_outputs_that_are_no_numbers_are_refused() -> None:
    model = make_model()
    with torch.no_grad():
        model[1].bias[1] = torch.nan  # type: ignore[index]
    with pytest.raises(PredictionError, match='not finite for 23 of 23 images'):
        predict(model, make_split(), CONFIG)


def test_arguments_that_are_no_files(tmp_path: Path) -> None:
    make_split().images[0].save(tmp_path / 'a.png')
    model = ltzoo.create_model('resnet8_cifar', num_classes=4)
    from_names = predict_files(model, (name for name in [str(tmp_path / 'a.png')]))
    assert np.array_equal(from_names[1], predict_files(model, [tmp_path / 'a.png'])[1])
    for one in (tmp_path / 'a.png', str(tmp_path / 'a.png')):
        with pytest.raises(ValueError, match=r'where a list of files is needed: give \['):
            predict_files(model, one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='files is empty'):
        predict_files(model, [])
    with pytest.raises(ValueError, match='top must be 1 or more, not 0'):
        predict_files(model, [tmp_path / 'a.png'], top=0)
    # Arrays of the model's own size are cut into batches without a loader, which would refuse it.
    for size in (0, -1):
        with pytest.raises(ValueError, match=f'batch_size must be 1 or more, not {size}'):
            predict(make_model(), make_split(), CONFIG, batch_size=size)
    with pytest.raises(PredictionError, match='has no classifier'):
        predict_files(ltzoo.create_model('resnet8_cifar', num_classes=0), [tmp_path / 'a.png'])
