"""Models by name: what is found, what is refused and in which words, what is saved and loaded."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import _registry as registry
from timm.models import build_model_with_cfg, get_deprecated_models, save_for_hf
from torch import nn
from torchvision import transforms

import ltzoo
from ltzoo.evaluation import resolve_model
from ltzoo.models import (
    CifarResNet,
    CosineLinear,
    HeadError,
    ModelArgumentError,
    ModelFilesError,
    NoWeightsError,
    UnknownModelError,
)
from ltzoo.models.factory import _device


def test_the_encoder_alone() -> None:
    encoder = ltzoo.create_model('resnet32_cifar_gkpgsa', num_classes=0)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 64)


def test_timm_knows_our_names() -> None:
    model = timm.create_model('resnet32_cifar_bcl.cifar10_lt_r10')
    assert isinstance(model.get_classifier(), CosineLinear)
    assert model.num_classes == 10


def test_head_and_scale_are_choices_under_every_name() -> None:
    assert type(ltzoo.create_model('resnet32_cifar_bcl', head='linear').fc) is nn.Linear
    assert ltzoo.create_model('resnet32_cifar_ce', head='cosine', head_scale=5.0).fc.scale == 5.0
    assert type(ltzoo.create_model('timm/test_resnet', head='linear', head_scale=5.0).fc) is nn.Linear
    assert type(ltzoo.create_model('timm/test_resnet', head=None).fc) is nn.Linear
    assert type(ltzoo.create_model('timm/test_resnet').fc) is nn.Linear
    assert ltzoo.create_model('timm/test_resnet', head='cosine').fc.scale == 30.0


def test_wildcards() -> None:
    assert ltzoo.list_models('*gkpgsa') == [
        'resnet32_cifar_gkpgsa',
        'resnet50_imagenetlt_gkpgsa',
        'resnet50_inat18_gkpgsa',
        'resnext50_imagenetlt_gkpgsa',
    ]
    assert ltzoo.list_models('resnet??_cifar') == [f'resnet{d}_cifar' for d in (20, 32, 44, 56)]
    assert ltzoo.list_models('resnet32_cifar_bcl.*', exclude_filters='*.cifar100*') == [
        f'resnet32_cifar_bcl.cifar10_lt_r{r}' for r in (10, 50, 100)
    ]
    assert ltzoo.list_models(['resnext*_ce', 'resnet50_inat18_ce']) == ['resnet50_inat18_ce', 'resnext50_imagenetlt_ce']
    assert ltzoo.list_models('convnext*') == []
    # Of any iterable, and of tags where they are all that is excluded.
    assert ltzoo.list_models(f'resnet{d}_cifar' for d in (8, 56)) == ['resnet8_cifar', 'resnet56_cifar']
    assert not any('.cifar10_' in name for name in ltzoo.list_models(exclude_filters='*.cifar10_*'))
    assert all(timm.models.is_model(name) for name in ltzoo.list_models())
    assert len(ltzoo.list_models(include_tags=True)) > len(ltzoo.list_models())


def test_pretrained_lists_are_those_with_weights() -> None:
    with_weights = [n for n in ltzoo.list_models(include_tags=True) if ltzoo.get_pretrained_cfg(n).has_weights]
    assert ltzoo.list_pretrained() == with_weights
    assert ltzoo.list_pretrained('*convnext*') == []


def test_pretrained_cfg_by_name() -> None:
    assert ltzoo.get_pretrained_cfg('resnet32_cifar_bcl.cifar10_lt_r50').num_classes == 10
    assert ltzoo.get_pretrained_cfg('timm/resnet50.a1_in1k').hf_hub_id == 'timm/resnet50.a1_in1k'
    with pytest.raises(UnknownModelError, match='resnet32_cifar_bcl'):
        ltzoo.get_pretrained_cfg('resnet32_cifar_bc')
    said = r"^local-dir:mine is a saved model, which has it itself: create_model\('local-dir:mine'\)\.pretrained_cfg$"
    with pytest.raises(UnknownModelError, match=said):
        ltzoo.get_pretrained_cfg('local-dir:mine')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnet32_cifar_gkpgs', 'the nearest are resnet32_cifar_gkpgsa'),
        ('resnet23_cifar', 'resnet32_cifar'),
        ('timm/convnxt_tiny', 'the nearest are timm/convnext_tiny'),
        ('resnet50', "no model of ltzoo is called 'resnet50'; timm's is timm/resnet50"),
        ('resnet50.a1_in1k', "timm's is timm/resnet50.a1_in1k"),
        ('resnet32_cifar_bcl.cifar100_lt_r1', "no tag 'cifar100_lt_r1': it can be .*cifar100_lt_r100"),
        ('timm/resnet50.none', "timm/resnet50 has no tag 'none': it can be .*a1_in1k"),
        ('resnet32_cifar_bcl.', "resnet32_cifar_bcl has no tag '': it can be .*cifar100_lt_r100"),
        ('resnet32_cifar.cifar10', "resnet32_cifar has no tag 'cifar10': write resnet32_cifar$"),
        ('org/name', 'hf-hub:ORG/NAME'),
        ('', 'timm/NAME'),
        ('timm/', 'timm/'),
        ('timm/lt_timm', 'timm/'),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message) as caught:
        ltzoo.create_model(name)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('classes', 'known'), [(100, True), (7, False), (None, True)])
def test_names_of_classes_stay_only_with_as_many_classes(classes: int | None, known: bool) -> None:
    arguments = {} if classes is None else {'num_classes': classes}
    for pretrained in (False, True):
        model = ltzoo.create_model('resnet32_cifar_ce', pretrained=pretrained, **arguments)
        names = model.pretrained_cfg['label_names']
        assert names == model.default_cfg['label_names']
        assert (len(names), names[0], names[99]) == (100, 'apple', 'worm') if known else names is None


def test_no_weights_says_which_recipe_makes_them() -> None:
    with pytest.raises(
        NoWeightsError,
        match=r'resnet32_cifar_bcl\.cifar10_lt_r50; this makes them: '
        r'accelerate launch recipes/train\.py recipes/cifar10_lt_r50/bcl\.yaml$',
    ):
        ltzoo.create_model('resnet32_cifar_bcl.cifar10_lt_r50', pretrained=True)
    with pytest.raises(NoWeightsError, match=r'recipes/imagenet_lt/bs_resnext50\.yaml$'):
        ltzoo.create_model('resnext50_imagenetlt_bs', pretrained=True)
    with pytest.raises(NoWeightsError, match=r'recipes/cifar100_lt_r100/gkpgsa_paper\.yaml$'):
        ltzoo.create_model('resnet32_cifar_gkpgsa_paper', pretrained=True)


def test_architectures_have_no_weights_of_their_own() -> None:
    bare = next(n for n in timm.list_models(module='resnet') if not timm.get_pretrained_cfg(n).has_weights)
    for name in ('resnet32_cifar', f'timm/{bare}'):
        with pytest.raises(NoWeightsError, match=f'{name} is an architecture without published weights'):
            ltzoo.create_model(name, pretrained=True)
    assert issubclass(NoWeightsError, LookupError)


@pytest.mark.parametrize('name', ['resnet32_cifar', 'resnet32_cifar_bcl', 'timm/test_resnet'])
def test_wrong_arguments_are_named(name: str) -> None:
    with pytest.raises(ModelArgumentError, match=f"{name} .*'widht'"):
        ltzoo.create_model(name, widht=2)
    with pytest.raises(HeadError, match="no head is called 'cosin': it is linear or cosine"):
        ltzoo.create_model(name, head='cosin')
    with pytest.raises(HeadError, match='head_scale must be above 0, not -1'):
        ltzoo.create_model(name, head='cosine', head_scale=-1)


def test_a_scale_that_a_linear_head_has_no_use_for_does_not_keep_it_from_loading(tmp_path: Path) -> None:
    save_for_hf(ltzoo.create_model('resnet50_imagenetlt_ce', head_scale=8.0), str(tmp_path), safe_serialization=True)
    assert type(ltzoo.create_model(f'local-dir:{tmp_path}', pretrained=True).fc) is nn.Linear


@pytest.mark.parametrize('arguments', [{'head': 'linear'}, {'head': 'cosine', 'head_scale': 8.0}])
def test_a_chosen_head_survives_saving(arguments: dict, tmp_path: Path) -> None:
    for name in ('resnet32_cifar_ce', 'resnet32_cifar_bcl', 'resnet32_cifar', 'resnet50_imagenetlt_ce'):
        model = ltzoo.create_model(name, **arguments).eval()
        folder = tmp_path / name
        save_for_hf(model, str(folder), safe_serialization=True)
        loaded = ltzoo.create_model(f'local-dir:{folder}', pretrained=True).eval()
        assert type(loaded.fc) is type(model.fc)
        assert getattr(loaded.fc, 'scale', None) == arguments.get('head_scale')
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded(x), model(x))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_for_hf(ltzoo.create_model('resnet20_cifar', head='cosine'), str(tmp_path), safe_serialization=True)
    return tmp_path


def refused(folder: Path, message: str, **arguments) -> None:
    with pytest.raises(ModelFilesError, match=message) as caught:
        ltzoo.create_model(f'local-dir:{folder}', pretrained=True, **arguments)
    assert str(folder) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_missing_files_are_named(saved: Path) -> None:
    refused(saved / 'nowhere', 'there is no folder')
    (saved / 'model.safetensors').unlink()
    refused(saved, 'model.safetensors is missing')
    assert ltzoo.create_model(f'local-dir:{saved}').num_classes == 10
    (saved / 'config.json').unlink()
    refused(saved, 'config.json is missing')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"architecture"', 'JSONDecodeError: Expecting'),
        (b'{"num_classes": 10}', "KeyError: 'architecture'"),
        (b'[]', 'TypeError: list indices'),
        (b'\xff' * 999, "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte$"),
        (b'{"architecture": "resnet20_cifar", "num_classes": "ten"}', "TypeError: num_classes is 'ten'"),
        (b'{"architecture": "resnet20_cifar", "model_args": [3]}', r'TypeError: model_args is \[3\]'),
        (b'{"architecture": "resnet20_cifar", "pretrained_cfg": null}', 'TypeError: pretrained_cfg is None'),
        (b'{"architecture": "resnet20_cifar", "pretrained_cfg": {"lt": 1}}', "TypeError: .* keyword argument 'lt'"),
        (b'{"architecture": "resnet20_cifar", "pretrained_cfg": {"interpolation": "foo"}}', "KeyError: 'foo'"),
        (b'{"architecture": "resnet20_cifar", "pretrained_cfg": {"input_size": [3, 0, 0]}}', r'ValueError: input_size'),
        (b'{"architecture": "resnet20_cifar", "lt": 1}', "TypeError: .* keyword argument 'lt'"),
        (b'{"architecture": "resnet20_cifar", "mean": 0.5}', 'ValueError: mean is 0.5'),
        (b'{"architecture": "resnet20_cifar", "std": [0, 1, 1]}', r'ValueError: std is \[0, 1, 1\]'),
        (b'{"architecture": "resnet20_cifar", "std": [NaN, 1, 1]}', r'ValueError: std is \[nan, 1, 1\]'),
        (b'{"architecture": "resnet20_cifar", "crop_pct": "0.9"}', "ValueError: crop_pct is '0.9'"),
        (b'{"architecture": "resnet20_cifar", "label_names": 7}', 'ValueError: label_names is 7'),
        (b'{"architecture": "resnet20_cifar", "label_names": [["a"]]}', 'ValueError: label_names is'),
        (b'[' * 100_000, 'RecursionError: '),
    ],
)
def test_a_config_that_is_none_is_refused(content: bytes, message: str, saved: Path) -> None:
    (saved / 'config.json').write_bytes(content)
    refused(saved, f'is not the configuration of a timm model: {message}')


def test_the_flat_config_of_older_files(saved: Path) -> None:
    (saved / 'config.json').write_text(
        json.dumps({'architecture': 'resnet20_cifar', 'num_classes': 7, 'num_features': 64, 'labels': ['a'] * 7})
    )
    assert ltzoo.create_model(f'local-dir:{saved}').num_classes == 7


def test_a_folder_in_the_place_of_the_config_is_refused(saved: Path) -> None:
    (saved / 'config.json').unlink()
    (saved / 'config.json').mkdir()
    refused(saved, r'config\.json cannot be read: Is a directory')


def test_an_architecture_nobody_has_is_refused(saved: Path) -> None:
    config = json.loads((saved / 'config.json').read_text())
    (saved / 'config.json').write_text(json.dumps({**config, 'architecture': 'resnet_99'}))
    refused(saved, "the architecture 'resnet_99'")
    (saved / 'config.json').write_text(json.dumps({**config, 'architecture': 5}))
    refused(saved, 'the architecture 5')
    (saved / 'config.json').write_text(
        json.dumps({**config, 'architecture': 'lt_timm', 'model_args': {'backbone': 'resnet_99', 'head': 'cosine'}})
    )
    refused(saved, "the architecture 'resnet_99'")


def test_damaged_and_foreign_weights_are_refused(saved: Path) -> None:
    weights = saved / 'model.safetensors'
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused(saved, 'damaged or of another model')
    weights.write_bytes(b'')
    refused(saved, 'damaged or of another model')
    save_for_hf(ltzoo.create_model('resnet32_cifar', head='cosine'), str(saved / 'other'), safe_serialization=True)
    (saved / 'other' / 'model.safetensors').replace(weights)
    refused(saved, 'damaged or of another model.*layer1.3')


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ({'num_classes': -1}, 'not -1'),
        ({'num_classes': 'ten'}, "num_classes must be a whole number, 0 or more, not 'ten'"),
        ({'in_chans': 0}, 'in_chans must be a whole number, 1 or more, not 0'),
        ({'drop_rate': 1.5}, r'drop_rate must lie between 0 and 1, not 1\.5'),
        (
            {'layers': (3, 4, 6, 3)},
            r'blocks of three stages, one or more in each, not \(3, 4, 6, 3\)',
        ),
        ({'layers': (1, 0, 1)}, r'one or more in each, not \(1, 0, 1\)'),
        ({'device': 'nope'}, "'nope'"),
        ({'global_pool': 'foo'}, "resnet8_cifar cannot be made with global_pool='foo': "),
        ({'features_only': True, 'out_indices': (9,)}, r'cannot be made with features_only=True, out_indices=\(9,\): '),
        ({'head': 'cosine', 'head_scale': 'x'}, "head='cosine', head_scale='x'"),
    ],
)
def test_arguments_that_no_model_takes(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelArgumentError, match=message):
        ltzoo.create_model('resnet8_cifar', **argument)


def test_a_name_is_text_and_a_place_may_begin_at_home(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownModelError, match=r'a model has a name, .*, not None'):
        ltzoo.create_model(None)  # type: ignore[arg-type]
    monkeypatch.setenv('HOME', str(saved.parent))
    name = f'local-dir:~/{saved.name}'
    assert ltzoo.create_model(name, pretrained=True).num_classes == ltzoo.create_model(f'local-dir:{saved}').num_classes
    assert resolve_model(name) == f'local-dir:{saved}'
    monkeypatch.chdir(saved)
    with pytest.raises(ModelFilesError, match='local-dir: names no folder: write local-dir:PATH'):
        ltzoo.create_model('local-dir:', pretrained=True)


def test_a_number_of_classes_may_be_numpys(tmp_path: Path) -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=np.int64(7), in_chans=np.int32(1))
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert ltzoo.create_model(f'local-dir:{tmp_path}', pretrained=True).num_classes == 7


def test_weights_that_do_not_go_with_an_argument_are_not_called_damaged_alone() -> None:
    with pytest.raises(ModelFilesError, match="or of another model, or do not go with head='cosine'"):
        ltzoo.create_model('resnet32_cifar_ce', pretrained=True, head='cosine')


@pytest.mark.parametrize('create', [ltzoo.create_model, timm.create_model])
def test_other_weights_than_those_of_the_package_may_be_named(
    create: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(name)
        return {}

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', load)
    with suppress(RuntimeError, ModelFilesError):
        create('resnet32_cifar_ce', pretrained=True, pretrained_cfg_overlay={'hf_hub_id': 'me/finetuned'})
    assert asked == ['me/finetuned']


def test_a_network_of_ones_own_needs_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(CifarResNet, 'own_net', pretrained, layers=(1, 1, 1), **kwargs)

    own_net.__module__ = __name__
    monkeypatch.setitem(registry._model_entrypoints, 'own_net', own_net)
    assert ltzoo.get_pretrained_cfg('timm/own_net').architecture == 'own_net'
    with pytest.raises(NoWeightsError, match='timm/own_net is an architecture without published weights'):
        ltzoo.create_model('timm/own_net', pretrained=True)


def test_transforms_of_small_images() -> None:
    model, train, evaluate = ltzoo.create_model_and_transforms('resnet32_cifar_bcl')
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cfg = model.pretrained_cfg
    expected = (torch.tensor(pixels).permute(2, 0, 1) / 255 - torch.tensor(cfg['mean'])[:, None, None]) / torch.tensor(
        cfg['std']
    )[:, None, None]
    torch.testing.assert_close(evaluate(image), expected)

    # A training view is a window of the zero-padded image, or of its mirror image.
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ('mean', 'std'))
    padded = nn.functional.pad(expected * std + mean, (4, 4, 4, 4))
    windows = {
        (side, top, left): source[:, top : top + 32, left : left + 32]
        for side, source in (('as is', padded), ('mirrored', padded.flip(2)))
        for top in range(9)
        for left in range(9)
    }
    torch.manual_seed(0)
    drawn = set()
    for _ in range(60):
        view = train(image) * std + mean
        found = [key for key, window in windows.items() if torch.allclose(window, view, atol=1e-5)]
        assert len(found) == 1
        drawn.add(found[0])
    assert {side for side, _, _ in drawn} == {'as is', 'mirrored'}
    assert {top for _, top, _ in drawn} == {left for _, _, left in drawn} == set(range(9))
    assert train(Image.new('RGB', (50, 40))).shape == (3, 32, 32)
    # What is seen in training has the size in the picture that it has in a test: of a wide one a square is cut out.
    wide = Image.fromarray(np.tile(pixels, (2, 8, 1)))
    views = [train(wide) * std + mean for _ in range(20)]
    assert {view.shape for view in views} == {(3, 32, 32)}
    as_in_tests = transforms.Resize(32, transforms.InterpolationMode(cfg['interpolation']))
    whole = transforms.functional.to_tensor(as_in_tests(wide))
    padded = nn.functional.pad(whole, (4, 4, 4, 4))
    cut = [source.unfold(2, 32, 1).unfold(1, 32, 1) for source in (padded, padded.flip(2))]
    for view in views:
        assert any((all_of.transpose(3, 4) - view[:, None, None]).abs().amax((0, 3, 4)).min() < 0.02 for all_of in cut)


def test_transforms_of_large_and_grey_images() -> None:
    model, train, evaluate = ltzoo.create_model_and_transforms('timm/test_resnet', num_classes=3)
    size = model.pretrained_cfg['input_size']
    assert train(Image.new('RGB', (300, 200))).shape == size
    assert evaluate(Image.new('RGB', (300, 200))).shape == size
    assert model.num_classes == 3
    # Pictures of every mode, as training reads them from files.
    sixteen = Image.fromarray(np.full((8, 8), 257 * 128, dtype=np.uint16))
    for picture in (Image.new('RGBA', (8, 8)), Image.new('L', (8, 8)), Image.new('CMYK', (8, 8)), sixteen):
        assert train(picture).shape == evaluate(picture).shape == size
    grey = Image.new('RGB', (8, 8), (128, 128, 128))
    torch.testing.assert_close(evaluate(sixteen), evaluate(grey))
    _, train, evaluate = ltzoo.create_model_and_transforms('resnet20_cifar', in_chans=1)
    for mode in ('L', 'RGB', 'RGBA'):
        assert train(Image.new(mode, (32, 32))).shape == evaluate(Image.new(mode, (32, 32))).shape == (1, 32, 32)
    *_, evaluate = ltzoo.create_model_and_transforms('resnet50_inat18_bcl')
    assert evaluate(Image.new('RGB', (300, 400))).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ('name', 'arguments', 'quick'),
    [
        ('resnet18', {}, True),
        ('resnet18', {'num_classes': 7}, False),
        ('resnet18', {'in_chans': 1}, False),
        ('resnet18', {'features_only': True}, False),
        ('vit_tiny_patch16_224', {}, True),
        # Its tables of positions are in no file.
        ('swin_tiny_patch4_window7_224', {}, False),
    ],
)
def test_weights_are_put_in_place_and_nothing_is_lost(
    name: str, arguments: dict, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = timm.create_model(name, num_classes=5)
    with torch.no_grad():
        for tensor in saved.state_dict().values():
            tensor.copy_(torch.rand_like(tensor.float()))
    save_for_hf(saved, str(tmp_path), safe_serialization=True, model_config={})
    source = f'local-dir:{tmp_path}'
    torch.manual_seed(0)
    expected = timm.create_model(source, pretrained=True, **arguments)
    asked: list[bool] = []
    original = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *a, **k: (asked.append(k['pretrained']), original(*a, **k))[1])
    torch.manual_seed(0)
    model = ltzoo.create_model(source, pretrained=True, **arguments)
    assert asked == ([False] if quick else [False, True])
    assert type(model) is type(expected)
    there, here = dict(expected.named_buffers()), dict(model.named_buffers())
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) and not here[key].is_meta for key in there)
    there, here = expected.state_dict(), model.state_dict()
    assert here.keys() == there.keys()
    # A classifier of another size is drawn anew.
    assert all(torch.equal(here[key], there[key]) for key in there if not key.startswith('fc'))
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def filled(name: str, value: float, file: Path) -> nn.Module:
    """Return a model whose floats are all the same, saved to a file."""
    model = ltzoo.create_model(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(value)
    save_file(model.state_dict(), file)
    return model


def test_a_checkpoint_is_loaded_over_the_weights(saved: Path) -> None:
    file = saved / 'other.safetensors'
    filled('resnet20_cifar', 0.5, file)
    config = json.loads((saved / 'config.json').read_text())
    (saved / 'config.json').write_text(json.dumps({**config, 'model_args': {}}))
    filled('resnet20_cifar', 0.25, saved / 'model.safetensors')
    for name, pretrained in ((f'local-dir:{saved}', True), (f'local-dir:{saved}', False), ('resnet20_cifar', False)):
        model = ltzoo.create_model(name, pretrained, checkpoint_path=file)
        assert all((p == 0.5).all() for p in model.parameters())
    assert (ltzoo.create_model(f'local-dir:{saved}', pretrained=True).fc.weight == 0.25).all()


class Foreign:
    pass


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no file .*other.pth: checkpoint_path takes the file of a state dict'),
        (b'', 'other.pth is no checkpoint of resnet20_cifar: EOFError'),
        (b'epoch 1: 20 %', 'other.pth is no checkpoint of resnet20_cifar: IndexError'),
        ({'state_dict': Foreign()}, 'it is no state dict, or holds more than tensors'),
        ({'state_dict': {'fc.weight': torch.zeros(3, 3)}}, 'Missing key.*conv1.weight'),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / 'other.pth'
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ModelFilesError, match=message) as caught:
        ltzoo.create_model('resnet20_cifar', checkpoint_path=str(file))
    assert '\n' not in str(caught.value)


def test_weights_do_not_change_with_their_file(saved: Path) -> None:
    model = ltzoo.create_model(f'local-dir:{saved}', pretrained=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = saved / 'model.safetensors'
    with weights.open('r+b') as file:
        file.seek(-4000, 2)
        file.write(b'\0' * 4000)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_device_may_be_a_number() -> None:
    assert _device({'device': 0}) == torch.device(0) != _device({}) == _device({'device': None})


@pytest.mark.filterwarnings('ignore:.*copying from a non-meta')
def test_weights_come_on_the_device_asked_for(saved: Path) -> None:
    name = f'local-dir:{saved}'
    assert {p.device.type for p in ltzoo.create_model(name, pretrained=True, device='meta').parameters()} == {'meta'}
    with torch.device('meta'):
        assert {p.device.type for p in ltzoo.create_model(name, pretrained=True).parameters()} == {'meta'}
    assert {p.device.type for p in ltzoo.create_model(name, pretrained=True, device='cpu').parameters()} == {'cpu'}


def test_names_that_timm_has_changed() -> None:
    old = next(name for name, new in get_deprecated_models().items() if new and '.' in new)
    new = get_deprecated_models()[old]
    with pytest.warns(UserWarning, match=f'timm/{old} is called timm/{new} now'):
        assert ltzoo.get_pretrained_cfg(f'timm/{old}') == ltzoo.get_pretrained_cfg(f'timm/{new}')
    with pytest.warns(UserWarning, match='is called'):
        model = ltzoo.create_model('timm/swin_base_patch4_window7_224_in22k', num_classes=0)
    assert model.pretrained_cfg['tag'] == 'ms_in22k'
    # A tag that is asked for stays, or is refused.
    with pytest.warns(UserWarning, match='timm/resnet50.tv_in1k now'):
        assert ltzoo.create_model('timm/tv_resnet50', pretrained_cfg='a1_in1k').pretrained_cfg['tag'] == 'a1_in1k'
    with pytest.warns(UserWarning, match='is called'), pytest.raises(UnknownModelError, match="no tag 'none'"):
        ltzoo.create_model('timm/tv_resnet50.none')
    removed = next((name for name, new in get_deprecated_models().items() if not new), None)
    if removed:
        with pytest.raises(UnknownModelError):
            ltzoo.create_model(f'timm/{removed}')


def test_a_tag_as_pretrained_cfg_is_a_tag() -> None:
    assert ltzoo.create_model('resnet32_cifar_bcl', pretrained_cfg='cifar10_lt_r50').num_classes == 10
    with pytest.raises(NoWeightsError, match=r'for resnet32_cifar_bcl\.cifar10_lt_r50; this makes them'):
        ltzoo.create_model('resnet32_cifar_bcl', pretrained=True, pretrained_cfg='cifar10_lt_r50')
    with pytest.raises(UnknownModelError, match="no tag 'cifar10'"):
        ltzoo.create_model('resnet32_cifar_bcl', pretrained_cfg='cifar10')
    # None given, as timm and command lines have it.
    for none in (None, '', {}):
        model = ltzoo.create_model('resnet32_cifar_bs.cifar10_lt_r100', pretrained=True, pretrained_cfg=none)
        assert model.num_classes == 10
        with pytest.raises(NoWeightsError, match='no weights are published yet for resnet50_inat18_focal'):
            ltzoo.create_model('resnet50_inat18_focal', pretrained=True, pretrained_cfg=none)
    with pytest.raises(NoWeightsError, match='the pretrained_cfg given for resnet32_cifar_bcl names no weights'):
        ltzoo.create_model('resnet32_cifar_bcl', pretrained=True, pretrained_cfg={'num_classes': 7})


def test_a_saved_model_has_a_pretrained_cfg_of_its_own(saved: Path) -> None:
    with pytest.raises(ModelArgumentError, match='has a pretrained_cfg of its own'):
        ltzoo.create_model(f'local-dir:{saved}', pretrained_cfg={'num_classes': 7})


@pytest.mark.parametrize('arguments', [{'layers': 'many'}, {'width': 'broad'}, {'width': 1.5}, {'width': -16}])
def test_arguments_in_a_config_that_no_model_takes(arguments: dict, saved: Path) -> None:
    config = json.loads((saved / 'config.json').read_text())
    (saved / 'config.json').write_text(json.dumps({**config, 'model_args': arguments}))
    refused(saved, 'cannot be made with the arguments in its config.json')


def test_weights_that_may_not_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        # What is not to be read does not keep root out.
        if path.name == 'model.safetensors':
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, 'open', refuse)
    refused(saved, 'model.safetensors cannot be read: Permission denied')
