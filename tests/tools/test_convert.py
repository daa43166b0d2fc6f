"""The conversion tool as users run it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from in_process import Script, contents
from PIL import Image
from torch import nn

import ltzoo
from ltzoo.data import DataError, load_data
from ltzoo.hub.converted import images_of
from ltzoo.models.checkpoints import convert


def bcl_on_cifar(classes: int) -> dict[str, torch.Tensor]:
    """BCL's names and shapes, taken from no network of ours."""
    torch.manual_seed(0)
    state = {'encoder.conv1.weight': torch.randn(16, 3, 3, 3) / 5}
    norms = {'encoder.bn1': 16}
    before = 16
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for index, width in ((1, before), (2, channels)):
            name = f'encoder.layer{stage}.0'
            state[f'{name}.conv{index}.weight'] = torch.randn(channels, width, 3, 3) / (3 * width**0.5)
            norms[f'{name}.bn{index}'] = channels
        before = channels
    for name, channels in norms.items():
        state |= {f'{name}.weight': torch.ones(channels), f'{name}.bias': torch.zeros(channels)}
        state |= {f'{name}.running_mean': torch.zeros(channels), f'{name}.running_var': torch.ones(channels)}
    for head in ('head', 'head_fc'):
        state |= {f'{head}.{name}': value for name, value in nn.Linear(64, 4).state_dict().items()}
    return {f'module.{name}': value for name, value in {**state, 'fc.weight': torch.randn(64, classes)}.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / 'bcl.pth.tar'
    torch.save({'epoch': 200, 'state_dict': bcl_on_cifar(10), 'best_acc1': torch.tensor(1.0)}, file)
    return file


def test_a_checkpoint_becomes_a_folder_that_loads(
    script: Script, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'new' / 'out'
    options = (
        '--from',
        'bcl',
        '--to',
        out,
        '--data',
        'cifar10_lt_r100',
        '--num-classes',
        10,
        '--arch',
        'resnet8_cifar',
    )
    assert script('tools/convert.py', checkpoint, *options) == 0
    assert set(contents(out)) == {'config.json', 'model.safetensors', 'README.md'}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f'{out}: resnet8_cifar, num_classes 10, head cosine, head_scale 30.0; 36 tensors'
    assert printed[1:3] == [
        'left out: head.weight, head.bias, head_fc.weight, head_fc.bias: projection heads of the contrastive loss',
        'not in the file, set to 0: bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked, '
        'layer1.0.bn2.num_batches_tracked, layer2.0.bn1.num_batches_tracked and 3 more',
    ]
    assert 'not weights: epoch, best_acc1' in printed
    assert 'images: 32x32, mean 0.4914, 0.4822, 0.4465, std 0.2023, 0.1994, 0.201' in printed

    model, _, transform = ltzoo.create_model_and_transforms(f'local-dir:{out}', pretrained=True)
    assert torch.equal(model.fc.weight, bcl_on_cifar(10)['module.fc.weight'].T)
    assert transform.transforms[-1].mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    source = json.loads((out / 'config.json').read_text())
    assert source['pretrained_cfg']['license'] == 'other'
    assert source['pretrained_cfg']['paper_ids'] == 'arXiv:2207.09052'
    assert '@misc{arXiv2207.09052,' in (out / 'README.md').read_text()
    assert 'lt' not in source
    assert source['converted_from']['sha256'] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert source['converted_from']['data'] == 'cifar10_lt_r100'


def test_the_card_says_where_it_is_from_and_has_no_score(script: Script, checkpoint: Path, tmp_path: Path) -> None:
    assert script('tools/convert.py', checkpoint, '--from', 'bcl', '--to', tmp_path / 'out') == 0
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'github.com/FlamieZhu/Balanced-Contrastive-Learning' in card
    assert 'bcl.pth.tar' in card
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in card
    assert 'license: other' in card
    assert 'apache' not in card
    assert 'model-index' not in card
    assert '## Scores\n\nNone here.' in card
    assert '%' not in card
    assert '\n- Data' not in card


def test_data_with_other_classes_are_refused_and_their_place_is_not_told(
    script: Script,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ('tools/convert.py', checkpoint, '--from', 'bcl', '--to', tmp_path / 'out')
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / 'own.npz', x_train=images, y_train=np.arange(8) % 4, x_test=images, y_test=np.arange(8) % 4)
    assert script(*command, '--data', f'npz:{tmp_path / "own.npz"}') == 2
    assert f'{checkpoint} has 10 classes, the data set has 4' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    # Where data lie is also known without being said.
    monkeypatch.setenv('LTZOO_DATA', str(tmp_path))
    for part in ('train', 'test'):
        (tmp_path / f'Places_LT_{part}.txt').write_text(f'{part}/a/0.png 0\n{part}/b/0.png 1\n')
        (tmp_path / part / 'a').mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path / part / 'a' / '0.png')
    assert script(*command, '--data', 'places_lt') == 2
    assert f'{checkpoint} has 10 classes, the data set has 2' in capsys.readouterr().err
    # Of data that are not here nothing can be checked, unless they should be.
    assert script(*command, '--data', 'imagenet_lt', '--data-dir', tmp_path) == 2
    assert 'ImageNet_LT_train.txt is missing' in capsys.readouterr().err
    assert script(*command, '--data', 'hf:nobody/nothing') == 0
    assert script(*command, '--data', f'npz:{tmp_path / "elsewhere.npz"}', '--force') == 0
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['converted_from']['data'] == 'npz:elsewhere.npz'


def test_it_is_evaluated(script: Script, checkpoint: Path, tmp_path: Path) -> None:
    assert script('tools/convert.py', checkpoint, '--from', 'bcl', '--to', tmp_path / 'out') == 0
    scores = tmp_path / 'scores.json'
    evaluated = ('tools/evaluate.py', f'local-dir:{tmp_path / "out"}', '--data', 'digits_lt', '--json', scores)
    assert script(*evaluated, '--device', 'cpu', '--workers', 0) == 0
    test = load_data('digits_lt').test
    model, _, transform = ltzoo.create_model_and_transforms(f'local-dir:{tmp_path / "out"}', pretrained=True)
    with torch.inference_mode():
        logits = model.eval()(torch.stack([transform(test.images[i]) for i in range(len(test))]))
    right = (logits.argmax(1).numpy() == test.labels).mean()
    assert json.loads(scores.read_text())['top1'] == pytest.approx(100 * right, abs=0.3)


def test_a_model_of_timm_loads_without_ltzoo(script: Script, tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=5).eval()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    options = ('--from', 'timm', '--arch', 'test_resnet', '--to', tmp_path / 'out')
    assert script('tools/convert.py', tmp_path / 'model.pth', *options) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['architecture'] == 'test_resnet'
    assert {'tag', 'hf_hub_id', 'url', 'origin_url'}.isdisjoint(config['pretrained_cfg'])
    assert config['pretrained_cfg']['mean'] == list(model.pretrained_cfg['mean'])


def test_experts_of_ours_and_images_as_timm_feeds_them(tmp_path: Path) -> None:
    arguments = {'num_classes': 7, 'num_experts': 2}
    for arch, head in (('resnet32_cifar_experts', 'cosine'), ('resnet32_cifar_experts', 'linear'),
                       ('resnet32_cifar_ride', 'cosine')):  # fmt: skip
        model = ltzoo.create_model(arch, head=head, **arguments).eval()
        torch.save(model.state_dict(), tmp_path / 'experts.pth')
        made = convert(tmp_path / 'experts.pth', 'timm', arch=arch).model
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(made(x), model(x))
    torch.save(timm.create_model('convnextv2_nano', num_classes=3).state_dict(), tmp_path / 'squashed.pth')
    squashed = convert(tmp_path / 'squashed.pth', 'timm', arch='convnextv2_nano.fcmae_ft_in22k_in1k_384')
    assert images_of(squashed)['crop_mode'] == 'squash'


@pytest.mark.parametrize(
    ('classes', 'data', 'mean'),
    [
        (8142, None, '0.466, 0.471, 0.38'),
        (8142, 'inat18', '0.466, 0.471, 0.38'),
        (1000, 'imagenet_lt', '0.485, 0.456, 0.406'),
        (50, None, '0.485, 0.456, 0.406'),
    ],
)
def test_large_images_are_normalised_as_their_benchmark_is(
    script: Script,
    classes: int,
    data: str | None,
    mean: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = timm.create_model('resnet18', num_classes=0, layers=(1, 1, 1, 1)).state_dict()
    classifier = nn.Linear(512, classes).state_dict()
    content = {'feat_model': encoder, 'classifier': {f'fc.{name}': value for name, value in classifier.items()}}
    torch.save({'state_dict_best': content}, tmp_path / 'model.pth')
    named = ('--data', data) if data else ()
    assert script('tools/convert.py', tmp_path / 'model.pth', '--from', 'crt', '--to', tmp_path / 'out', *named) == 0
    assert f'images: 224x224, mean {mean}, std' in capsys.readouterr().out


def test_tau_normalised_class_vectors_have_no_bias(script: Script, tmp_path: Path) -> None:
    encoder = timm.create_model('resnet18', num_classes=0, layers=(1, 1, 1, 1)).state_dict()
    classifier = {'fc.weight': torch.zeros(3, 512), 'fc.bias': torch.ones(3)}
    classifier['fc.weight'][[0, 1, 2], [7, 8, 9]] = torch.tensor([4.0, 9.0, 0.25])
    torch.save({'state_dict_best': {'feat_model': encoder, 'classifier': classifier}}, tmp_path / 'model.pth')
    options = ('--from', 'tau_norm', '--to', tmp_path / 'out', '--tau', 0.5)
    assert script('tools/convert.py', tmp_path / 'model.pth', *options) == 0
    fc = ltzoo.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).get_classifier()
    # Each vector by the root of its length.
    assert fc.weight[[0, 1, 2], [7, 8, 9]].tolist() == pytest.approx([2, 3, 0.5])
    assert fc.weight.count_nonzero() == 3 and not fc.bias.any()


def test_mislas_takes_the_order_of_classes_from_the_data(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (('a', 2), ('b', 4), ('c', 3)):
        (tmp_path / 'images' / 'train' / name).mkdir(parents=True)
        for part, images in (('train', count), ('test', 1)):
            (tmp_path / 'images' / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(images):
                colour = (index * 20, count * 20, len(part) * 20)
                Image.new('RGB', (8, 8), colour).save(tmp_path / 'images' / part / name / f'{index}.png')
    torch.manual_seed(0)
    classifier = {'fc.weight': torch.randn(3, 512), 'fc.bias': torch.randn(3)}
    encoder = timm.create_model('resnet18', num_classes=0, layers=(1, 1, 1, 1)).state_dict()
    file = tmp_path / 'model.pth'
    torch.save({'state_dict_model': encoder, 'state_dict_classifier': classifier}, file)
    command = ('tools/convert.py', file, '--from', 'mislas', '--to', tmp_path / 'out', '--data', 'folder')
    assert script(*command[:-2]) == 2
    assert 'give --data NAME and --data-dir DIR' in capsys.readouterr().err
    assert script(*command) == 2
    assert 'folder needs a path' in capsys.readouterr().err
    assert script(*command, '--data-dir', tmp_path / 'images') == 0
    assert 'classes: numbered as folder numbers them' in capsys.readouterr().out
    assert 'Classes: in the order of the data set' in (tmp_path / 'out' / 'README.md').read_text()
    model = ltzoo.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert torch.equal(model.fc.bias, classifier['fc.bias'][[2, 0, 1]])


def test_data_of_another_number_of_classes(checkpoint: Path) -> None:
    with pytest.raises(DataError, match='cifar100_lt_r100 has 100 classes, the checkpoint has 10'):
        images_of(convert(checkpoint, 'bcl'), 'cifar100_lt_r100')


def test_force_replaces_what_is_there(
    script: Script, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'old.txt').write_text('old')
    for force in ((), ('--force',)):
        assert script('tools/convert.py', checkpoint, '--from', 'bcl', '--to', out, *force) == 2
    assert contents(out) == {'old.txt': b'old'}
    (out / 'config.json').write_text('{}')
    assert script('tools/convert.py', checkpoint, '--from', 'bcl', '--to', out) == 2
    assert script('tools/convert.py', checkpoint, '--from', 'bcl', '--to', out, '--force') == 0
    assert 'old.txt' not in contents(out)
    (out / 'mine.pth').write_bytes(checkpoint.read_bytes())
    assert script('tools/convert.py', out / 'mine.pth', '--from', 'bcl', '--to', out, '--force') == 2
    assert f'{out} holds {out}/mine.pth itself' in capsys.readouterr().err and (out / 'mine.pth').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--from', 'ldam'), 'bcl.pth.tar is no checkpoint of ldam: linear.weight is missing; its layout is that of'),
        (('--from', 'crtt'), "no family is called 'crtt'"),
        (('--from', 'bcl', '--num-classes', 100), 'bcl.pth.tar has 10 classes, not 100'),
        (('--from', 'bcl', '--data', 'cifar100_lt_r100'), 'cifar100_lt_r100 has 100 classes, the checkpoint has 10'),
        (
            ('--from', 'bcl', '--data', 'cifar10_tl_r100'),
            "no data set is called 'cifar10_tl_r100'; did you mean cifar10_lt_r100?",
        ),
        (('--from', 'bcl', '--data-dir', '.'), '--data-dir goes with --data'),
        (('--from', 'bcl', '--to', '{file}'), 'bcl.pth.tar is a file; an export needs a folder'),
        (('--from', 'bcl', '--to', '{file}/out'), 'out cannot be written'),
    ],
)
def test_what_cannot_be_converted_leaves_nothing_behind(
    script: Script,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    # Data that are here would be looked at first, and say the same in other words.
    monkeypatch.setenv('LTZOO_DATA', str(tmp_path / 'no data'))
    before = contents(tmp_path)
    given = [str(option).format(file=checkpoint) for option in options]
    to = [] if '--to' in given else ['--to', str(tmp_path / 'out')]
    assert script('tools/convert.py', checkpoint, *given, *to) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('convert.py: ')
    assert message in line
    assert contents(tmp_path) == before
    assert not (tmp_path / 'out').exists()


def test_unsafe_pickle_is_a_word_of_its_own(
    script: Script, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint)
    torch.save({**content, 'criterion': nn.CrossEntropyLoss()}, checkpoint)
    options = ('--from', 'bcl', '--to', tmp_path / 'out')
    assert script('tools/convert.py', checkpoint, *options) == 2
    assert 'type torch.nn.modules.loss.CrossEntropyLoss, ' in capsys.readouterr().err
    assert script('tools/convert.py', checkpoint, *options, '--unsafe-pickle') == 0


def test_images_of_one_channel(script: Script, tmp_path: Path) -> None:
    state = bcl_on_cifar(10)
    state['module.encoder.conv1.weight'] = torch.randn(16, 1, 3, 3)
    torch.save({'state_dict': state}, tmp_path / 'grey.pth')
    assert script('tools/convert.py', tmp_path / 'grey.pth', '--from', 'bcl', '--to', tmp_path / 'out') == 0
    model, _, transform = ltzoo.create_model_and_transforms(f'local-dir:{tmp_path / "out"}', pretrained=True)
    image = transform(Image.new('L', (32, 32), 255))
    assert model.eval()(image[None]).shape == (1, 10)
    assert image.unique().tolist() == pytest.approx([(1 - (0.4914 + 0.4822 + 0.4465) / 3) / 0.2009], abs=1e-3)
