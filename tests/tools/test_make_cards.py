"""The cards of the zoo: up to date, readable by the Hub, and silent on what nobody measured."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from in_process import Script
from PIL import Image

import ltzoo
from ltzoo.models.entries import entry_of, paper_results
from ltzoo.models.lt_zoo import METHODS, ZOO

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / 'hub_cards'
PUBLISHED = ltzoo.list_pretrained()
UNPUBLISHED = [name for name in ZOO if name not in PUBLISHED]
# One model of each network and head: the others' usage differs by its name alone.
FIRST_OF_ITS_KIND = {
    (ZOO[name].backbone, METHODS[ZOO[name].method].head): name for name in reversed(UNPUBLISHED)
}.values()


def card(name: str) -> ModelCard:
    return ModelCard.load(CARDS / ZOO[name].hub_id.partition('/')[2] / 'README.md')


def usage(text: str) -> str:
    (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    return code


@torch.inference_mode()
def run(code: str) -> torch.Tensor:
    names: dict[str, Any] = {'image': Image.effect_noise((40, 30), 80).convert('RGB')}
    exec(code, names)
    return names['logits']


def test_the_cards_here_are_what_the_tool_makes(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script('tools/make_cards.py', '--check') == 0
    assert 'is up to date' in capsys.readouterr().out


def test_a_card_written_by_hand_is_noticed_and_made_again(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = tmp_path / 'cards'
    shutil.copytree(CARDS, cards)
    for change in (
        lambda: (cards / 'resnet32_cifar_bs' / 'README.md').open('a').write('Top-1: 99.9'),
        lambda: (cards / 'resnet32_cifar_bs' / 'README.md').unlink(),
        lambda: (cards / 'resnet32_cifar_bs' / 'more.md').write_text('more'),
    ):
        change()
        assert script('tools/make_cards.py', '--to', cards, '--check') == 2
        assert 'is not up to date (resnet32_cifar_bs/' in capsys.readouterr().err
        assert script('tools/make_cards.py', '--to', cards) == 0
        assert script('tools/make_cards.py', '--to', cards, '--check') == 0
        capsys.readouterr()


@pytest.mark.parametrize(
    ('held', 'message'),
    [
        ('thesis.txt', 'cards holds thesis.txt, which is no card'),
        ('my_models/README.md', 'cards holds my_models, which is no card'),
        # A model that was exported under its name.
        ('resnet32_cifar_bs/config.json', 'cards holds resnet32_cifar_bs, which is no card'),
        ('', 'cards is a file; cards need a folder'),
    ],
)
def test_what_is_no_card_is_not_replaced(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], held: str, message: str
) -> None:
    file = tmp_path / 'cards' / held
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('mine')
    assert script('tools/make_cards.py', '--to', tmp_path / 'cards') == 2
    assert message in capsys.readouterr().err
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == [file]


def test_every_model_has_a_card(script: Script) -> None:
    assert len(list(CARDS.iterdir())) == len(ZOO)
    for name in ZOO:
        data = card(name).data
        assert isinstance(data, ModelCardData)
        assert (data.library_name, data.license, data.pipeline_tag) == ('timm', 'apache-2.0', 'image-classification')


@pytest.mark.parametrize('name', UNPUBLISHED)
def test_a_model_without_weights_says_so_and_prints_no_score_of_ours(name: str) -> None:
    found = card(name)
    assert found.data.eval_results is None
    assert 'There are no weights of it yet' in found.text
    assert f'accelerate launch recipes/train.py {ZOO[name].recipe}' in found.text
    paper = paper_results(name) or {}
    cells = [cell.strip() for line in found.text.splitlines() if line.startswith('|') for cell in line.split('|')]
    numbers = [float(cell) for cell in cells if re.fullmatch(r'[\d.]+', cell)]
    assert numbers == [value for key, value in paper.items() if key != 'source']
    assert 'ltzoo' not in cells
    classes = ltzoo.get_pretrained_cfg(name).num_classes
    assert 'pretrained=False' in usage(found.text)
    (called,) = re.findall(r"create_model_and_transforms\('(.*?)'", usage(found.text))
    assert entry_of(called) == ZOO[name]
    if name in FIRST_OF_ITS_KIND:
        assert run(usage(found.text)).shape == (1, classes)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_model_with_weights_has_its_scores_and_usage_that_runs(name: str) -> None:
    found, results = card(name), ltzoo.get_results(name)
    assert f'\n# {name}\n' in found.text and '\n- Architecture: resnet32_cifar\n' in found.text
    # That beside the weights is the same, but for the name that loads them.
    beside = ModelCard.load(ZOO[name].folder / 'README.md').text
    assert beside.replace('local-dir:FOLDER', name) == found.text
    by_name = {result.metric_name: result.metric_value for result in found.data.eval_results}
    # The Hub shows what the weights score, not the mean over seeds.
    own = results['seeds'].index(results['weights_seed'])
    assert by_name['Top-1'] == round(results['scores']['top1']['values'][own], 2)
    few = results['scores']['few']
    # CIFAR-10-LT with r = 100 has no class that is Few: its card says nothing, and not 0.
    assert by_name.get('Few-shot') == (few and round(few['values'][own], 2))
    assert (few is None) == ('cifar10_' in name)
    assert run(usage(found.text)).shape == (1, ltzoo.get_pretrained_cfg(name).num_classes)
    for shown in re.findall(r'!\[.*?\]\((.*?)\)', found.text):
        with Image.open(CARDS / ZOO[name].hub_id.partition('/')[2] / shown) as picture:
            assert min(picture.size) > 200
