"""Exported for other runtimes: the same logits, for any batch, and no file that is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from ltzoo.errors import LtzooError
from ltzoo.hub import DeployError, ExportError
from ltzoo.hub import deploy as deploy_function
from ltzoo.hub.deploy import deploy

Train = Callable[..., nn.Module]


@pytest.mark.parametrize('form', ['.onnx', '.pt2'])
@pytest.mark.parametrize(
    ('name', 'side'),
    [('resnet20_cifar', 32), ('resnet32_cifar_gkpgsa', 32), ('timm/test_vit', 160)],
)
def test_logits_of_batches_never_seen_at_export(train: Train, tmp_path: Path, name: str, side: int, form: str) -> None:
    model = train(name, side=side).to(memory_format=torch.channels_last)
    file = tmp_path / f'model{form}'
    assert deploy(model, file) < 1e-5
    assert os.listdir(tmp_path) == [file.name]
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(images)
        if form == '.onnx':
            session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
            got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        else:
            got = torch.export.load(file).module()(images).numpy()
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert expected.std(0).max() > 1e-3, 'logits that do not depend on the image'


def test_a_model_that_comes_out_otherwise_is_not_left_behind(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moody(nn.Module):
        """Says something else whenever it is asked."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.pretrained_cfg = model.pretrained_cfg
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.model(x) * self.calls

    with pytest.raises(DeployError, match=r'model\.pt2 was not written: its logits differ by'):
        deploy(Moody(train('resnet20_cifar')), tmp_path / 'model.pt2')
    assert os.listdir(tmp_path) == []


def test_a_link_keeps_pointing_where_it_did(train: Train, tmp_path: Path) -> None:
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'model.pt2').symlink_to('disk/new.pt2')
    deploy(train('resnet20_cifar'), tmp_path / 'model.pt2')
    assert (tmp_path / 'model.pt2').is_symlink()
    assert os.listdir(tmp_path / 'disk') == ['new.pt2']


def test_a_full_disk(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, 'write_bytes', refuse)
    with pytest.raises(LtzooError, match=r'model\.pt2 cannot be written: .*No space left on device'):
        deploy(train('resnet20_cifar'), tmp_path / 'model.pt2')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('form', ['.onnx', '.pt2'])
def test_a_model_that_no_exporter_takes(train: Train, tmp_path: Path, form: str) -> None:
    class Choosy(nn.Module):
        """Goes another way for bright images."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.pretrained_cfg = model.pretrained_cfg

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x) if x.mean() > 0 else -self.model(x)

    with pytest.raises(DeployError, match=r'was not written: the exporter does not take this model: .+') as caught:
        deploy(Choosy(train('resnet20_cifar')), tmp_path / f'model{form}')
    assert '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written(train: Train, tmp_path: Path) -> None:
    model = train('resnet20_cifar')
    with pytest.raises(ExportError, match=r'model\.tflite is of no known format: the ending can be \.onnx or \.pt2'):
        deploy(model, tmp_path / 'model.tflite')
    with pytest.raises(LtzooError, match='there is no folder'):
        deploy(model, tmp_path / 'missing' / 'model.pt2')
    with pytest.raises(LtzooError, match=r'/proc/model\.pt2 cannot be written'):
        deploy(model, Path('/proc/model.pt2'))
    assert os.listdir(tmp_path) == []
    assert deploy_function is deploy
