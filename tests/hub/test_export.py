"""An exported folder: the same model comes back, by ltzoo and by timm, and no failure leaves half of one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import contents
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import ltzoo
from ltzoo.hub import ExportError, export_model
from ltzoo.hub import export as export_module
from ltzoo.hub.export import check_exportable
from ltzoo.models import CosineLinear

ROOT = Path(__file__).resolve().parents[2]
Train = Callable[..., nn.Module]
MEAN, STD = (0.31, 0.42, 0.53), (0.19, 0.2, 0.21)


def export(model: nn.Module, folder: Path, lt: dict[str, Any], *, side: int = 16, **options: Any) -> None:
    export_model(model, folder, lt, input_size=(3, side, side), mean=MEAN, std=STD, **options)


def images(side: int = 16) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('timm/coat_lite_tiny', r'CoaT has tensors under several names, which model\.safetensors cannot hold: '),
        ('timm/crossvit_tiny_240', r'CrossVit cannot be exported: .*\(224, 224\).*\(240, 240\)'),
    ],
)
def test_what_cannot_be_exported_is_known_before_it_is_trained(name: str, message: str) -> None:
    model = ltzoo.create_model(name, num_classes=3)
    config = {'input_size': (3, 224, 224), 'mean': MEAN, 'std': STD, 'crop_pct': 0.9}
    with pytest.raises(ExportError, match=message):
        check_exportable(model, config)
    fit = ltzoo.create_model('timm/test_resnet', num_classes=3)
    check_exportable(fit, config)
    # As a network registered with timm, but not built by it, is.
    del fit.pretrained_cfg, fit.default_cfg
    with pytest.raises(ExportError, match=r"ResNet cannot be exported: .* no attribute 'pretrained_cfg'"):
        check_exportable(fit, config)


def test_images_are_fed_as_they_were_tested_whatever_the_pretrained_model_wants(
    lt: dict[str, Any], tmp_path: Path
) -> None:
    model = ltzoo.create_model('timm/test_resnet', num_classes=5)
    model.pretrained_cfg = {**model.pretrained_cfg, 'crop_mode': 'squash', 'interpolation': 'bicubic'}
    export(model, tmp_path / 'out', lt, side=64)
    fed = json.loads((tmp_path / 'out' / 'config.json').read_text())['pretrained_cfg']
    assert (fed['crop_mode'], fed['interpolation']) == ('center', 'bilinear')


@pytest.mark.parametrize(
    ('name', 'side', 'arguments'),
    [
        ('resnet32_cifar', 16, {}),
        ('resnet32_cifar', 16, {'head': 'cosine', 'head_scale': 16.0}),
        ('resnet32_cifar_ce', 16, {}),
        ('resnet32_cifar_bcl.cifar10_lt_r50', 16, {}),
        ('timm/test_resnet', 64, {}),
        ('timm/test_resnet', 64, {'head': 'cosine'}),
        ('timm/test_vit', 32, {'img_size': 32, 'drop_path_rate': 0.1}),
    ],
)
@torch.inference_mode()
def test_the_model_comes_back_bit_by_bit(
    train: Train, lt: dict[str, Any], tmp_path: Path, name: str, side: int, arguments: dict[str, Any]
) -> None:
    with torch.inference_mode(False):
        model = train(name, side=side, **arguments)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, tmp_path / 'out', lt, side=side)
    again = ltzoo.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert type(again.get_classifier()) is type(model.get_classifier())
    assert isinstance(again.get_classifier(), CosineLinear) == ('cosine' in arguments.values() or 'bcl' in name)
    assert again.state_dict().keys() == before.keys()
    assert torch.equal(again(images(side)), model(images(side)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    fresh = ltzoo.create_model(f'local-dir:{tmp_path / "out"}').eval()
    assert not torch.equal(fresh(images(side)), model(images(side))), 'the outputs do not depend on the weights'


@torch.inference_mode()
def test_channels_last_weights_are_exported_and_stay_channels_last(
    train: Train, lt: dict[str, Any], tmp_path: Path
) -> None:
    with torch.inference_mode(False):
        model = train('resnet20_cifar').to(memory_format=torch.channels_last)
    export(model, tmp_path / 'out', lt)
    weight = model.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    again = ltzoo.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(again.to(memory_format=torch.channels_last)(images()), model(images()))


@torch.inference_mode()
def test_timm_loads_it_alone_or_after_importing_ltzoo(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    with torch.inference_mode(False):
        models = {
            'stock': train('timm/test_resnet', side=64),
            # The zoo's plain ResNet-50 has nothing of ours in it; too large to train here.
            'zoo': ltzoo.create_model('resnet50_inat18_bs', num_classes=5).eval(),
            'linear': train('resnet20_cifar'),
            'cosine': train('timm/test_resnet', side=64, head='cosine'),
        }
    expected = {}
    for key, model in models.items():
        export(model, tmp_path / key, lt, side=64)
        expected[key] = model(images(64))
    # As whoever has timm saves it.
    models['saved'] = ltzoo.create_model('resnext50_imagenetlt_ce', num_classes=5).eval()
    save_for_hf(models['saved'], str(tmp_path / 'saved'), safe_serialization=True)
    expected['saved'] = models['saved'](images(64))
    save_file(expected, tmp_path / 'expected.safetensors')
    for key, stock in (('stock', 'test_resnet'), ('zoo', 'resnet50'), ('saved', 'resnext50_32x4d')):
        assert json.loads((tmp_path / key / 'config.json').read_text())['architecture'] == stock
    script = f"""
import sys, timm, torch
from safetensors.torch import load_file
torch.set_num_threads({torch.get_num_threads()})
expected = load_file('expected.safetensors')
images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))

@torch.inference_mode()
def check(keys):
    for key in keys:
        model = timm.create_model('local-dir:' + key, pretrained=True).eval()
        assert torch.equal(model(images), expected[key]), key
        if key == 'saved':
            continue
        config = timm.data.resolve_data_config(model=model)
        fed = tuple(config['mean']), tuple(config['std']), config['input_size']
        assert fed == ({MEAN}, {STD}, (3, 64, 64)), config

check(['stock', 'zoo', 'saved'])
assert 'ltzoo' not in sys.modules
import ltzoo
check(['linear', 'cosine'])
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_config_has_the_layout_of_timm_and_a_block_of_ours(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    model = train('resnet20_cifar', head='cosine', head_scale=16.0)
    export(model, tmp_path / 'out', lt, crop_pct=0.9)
    assert set(contents(tmp_path / 'out')) == {'config.json', 'model.safetensors', 'README.md'}
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config.pop('lt') == lt
    # The name that timm has for it, so that it comes back with the model.
    assert config.pop('label_names') == lt['class_names']
    assert ltzoo.create_model(f'local-dir:{tmp_path / "out"}').pretrained_cfg['label_names'] == lt['class_names']
    assert config.keys() == {
        'architecture', 'num_classes', 'num_features', 'global_pool', 'model_args', 'pretrained_cfg',
    }  # fmt: skip
    assert (config['architecture'], config['num_classes'], config['num_features']) == ('resnet20_cifar', 5, 64)
    assert config['model_args'].items() >= {'head': 'cosine', 'head_scale': 16.0}.items()
    fed = config['pretrained_cfg']
    assert (fed['input_size'], fed['mean'], fed['std'], fed['crop_pct']) == ([3, 16, 16], [*MEAN], [*STD], 0.9)
    assert load_file(tmp_path / 'out' / 'model.safetensors').keys() == model.state_dict().keys()


def test_a_folder_in_use_is_replaced_only_by_force(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    model, folder = train('resnet20_cifar'), tmp_path / 'out'
    folder.mkdir()
    export(model, folder, lt)
    (folder / 'notes.txt').write_text('mine')
    before = contents(folder)
    with pytest.raises(ExportError, match=r'out is not empty; give a new folder, or --force'):
        export(model, folder, lt)
    with pytest.raises(ExportError, match=r'notes\.txt is a file; an export needs a folder'):
        export(model, folder / 'notes.txt', lt, force=True)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ['out']
    export(model, folder, {**lt, 'seed': 9}, force=True)
    assert json.loads((folder / 'config.json').read_text())['lt']['seed'] == 9
    assert not (folder / 'notes.txt').exists()
    assert os.listdir(tmp_path) == ['out']


def test_what_is_no_model_and_where_one_is_working_is_not_replaced_by_force_either(
    train: Train, lt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train('resnet20_cifar')
    mine = tmp_path / 'work' / 'thesis.txt'
    mine.parent.mkdir()
    mine.write_text('mine')
    with pytest.raises(ExportError, match=r'work is not empty, and holds no model that could be replaced'):
        export(model, mine.parent, lt, force=True)
    # A clone of a repository, or somebody's project.
    (mine.parent / 'config.json').touch()
    (mine.parent / 'below').mkdir()
    with pytest.raises(ExportError, match='work holds a folder below, which is no part of a model'):
        export(model, mine.parent, lt, force=True)
    # As --to "$NOT_SET" has it, in a folder that holds a model.
    for here in (mine.parent, mine.parent / 'below'):
        monkeypatch.chdir(here)
        for folder in (Path(), mine.parent) if here == mine.parent else (mine.parent, Path('..')):
            with pytest.raises(ExportError, match='is or contains the current folder'):
                export(model, folder, lt, force=True)
    assert mine.read_text() == 'mine'


def test_the_card_of_a_timm_model_with_a_head_of_ours_names_it(lt: dict[str, Any], tmp_path: Path) -> None:
    model = ltzoo.create_model('timm/test_resnet', num_classes=5, head='cosine')
    export(model, tmp_path / 'out', lt)
    assert '- Architecture: test_resnet\n' in (tmp_path / 'out' / 'README.md').read_text()


def test_the_licence_written_is_that_of_the_weights(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    # So that what is trained on from own weights is not taken for what the architecture's licence allows.
    for data, licence in (('folder:mine', 'other'), ('cifar10_lt_r50', 'apache-2.0')):
        export(train('resnet20_cifar'), tmp_path / data, {**lt, 'data': data})
        assert json.loads((tmp_path / data / 'config.json').read_text())['pretrained_cfg']['license'] == licence


@pytest.mark.parametrize(
    ('failure', 'error', 'message'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), ExportError, 'out cannot be written: No space left'),
        (KeyError('scores'), KeyError, 'scores'),
        (KeyboardInterrupt(), KeyboardInterrupt, '^$'),
    ],
)
def test_a_failure_at_the_last_file_leaves_what_was_there(
    train: Train,
    lt: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    error: type[BaseException],
    message: str,
) -> None:
    def fail(*args: object) -> str:
        raise failure

    model = train('resnet20_cifar')
    export(model, tmp_path / 'old', lt)
    before = contents(tmp_path / 'old')
    monkeypatch.setattr(export_module, 'model_card', fail)
    with pytest.raises(error, match=message):
        export(model, tmp_path / 'out', lt)
    with pytest.raises(error):
        export(model, tmp_path / 'old', lt, force=True)
    assert contents(tmp_path / 'old') == before
    assert os.listdir(tmp_path) == ['old']


def test_a_full_disk(
    train: Train, lt: dict[str, Any], tmp_path: Path, file_size_limit: Callable[[int | None], None]
) -> None:
    model = train('resnet20_cifar')
    export(model, tmp_path / 'old', lt)
    before = contents(tmp_path / 'old')
    file_size_limit(len(before['model.safetensors']) // 2)
    with pytest.raises(ExportError, match=r'out cannot be written: .*File too large'):
        export(model, tmp_path / 'out', lt)
    with pytest.raises(ExportError, match=r'old cannot be written: .*File too large'):
        export(model, tmp_path / 'old', lt, force=True)
    assert contents(tmp_path / 'old') == before
    assert os.listdir(tmp_path) == ['old']


def test_a_place_that_cannot_be_written(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(ExportError, match=r'file/out cannot be written: (File exists|Not a directory)'):
        export(train('resnet20_cifar'), tmp_path / 'file' / 'out', lt)
    assert (tmp_path / 'file').read_text() == 'mine'
