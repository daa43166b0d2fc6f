"""The card: what the Hub reads of it, what a reader can run of it, and that it says nothing that is not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from torch import nn

import ltzoo
from ltzoo.hub import export_model, model_card
from ltzoo.hub.card import licence_of

Train = Callable[..., nn.Module]
MEAN, STD = (0.31, 0.42, 0.53), (0.19, 0.2, 0.21)
CFG = {
    'architecture': 'resnet20_cifar',
    'license': 'mit',
    'paper_name': 'A Paper',
    'paper_ids': 'arXiv:1512.03385',
}
BLOCK = re.compile(r'```(\w+)\n(.*?)```', re.DOTALL)


def load(text: str, folder: Path) -> ModelCard:
    (folder / 'README.md').write_text(text, encoding='utf-8')
    return ModelCard.load(folder / 'README.md')


def test_the_hub_client_reads_the_scores(lt: dict[str, Any], tmp_path: Path) -> None:
    data = load(model_card(lt, CFG), tmp_path).data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.license, data.pipeline_tag) == ('timm', 'mit', 'image-classification')
    assert {'ltzoo', 'timm', 'image-classification', 'long-tailed'} == set(data.tags or [])
    assert data.model_name == 'resnet20_cifar on pets_lt'
    assert data.eval_results is not None
    read = {result.metric_name: (result.metric_type, result.metric_value) for result in data.eval_results}
    # No Medium-shot entry: the model has no such classes.
    assert read == {
        'Top-1': ('accuracy', 71.24),
        'Many-shot': ('accuracy', 80.5),
        'Few-shot': ('accuracy', 33.33),
        'Balanced accuracy': ('balanced_accuracy', 61.0),
        'Expected calibration error': ('ece', 4.45),
    }
    assert {(r.dataset_name, r.dataset_split, r.task_type) for r in data.eval_results} == {
        ('pets_lt', 'test', 'image-classification')
    }
    # Written again by the client and read again, it says the same.
    again = ModelCardData(**yaml.safe_load(data.to_yaml()), ignore_metadata_errors=False)
    assert again.to_dict() == data.to_dict()


@pytest.mark.parametrize('data', ['folder:/my/own images', 'hf:org/set', 'csv:C: #1, "x".csv'])
def test_any_name_of_a_data_set_makes_a_readable_card(lt: dict[str, Any], tmp_path: Path, data: str) -> None:
    card = load(model_card({**lt, 'data': data}, CFG), tmp_path)
    assert card.data.model_name == f'resnet20_cifar on {data}'
    assert {result.dataset_name for result in card.data.eval_results} == {data}
    assert not any(set(':/') & set(result.dataset_type) for result in card.data.eval_results)


def test_every_number_is_one_that_was_given(lt: dict[str, Any], tmp_path: Path) -> None:
    text = load(model_card(lt, CFG), tmp_path).text
    for known in ('resnet20_cifar', 'Top-1', CFG['paper_ids']):
        text = text.replace(known, '')
    prose = BLOCK.sub('', text)
    assert sorted(re.findall(r'\d(?:[\d,.]*\d)?', prose)) == sorted(
        [
            *('71.24', '80.50', '33.33', '61.00', '4.45', '2,345'),
            # classes, largest and smallest count, sum
            *('5', '1234', '5', '2,096'),
            # epochs, batch size, seed, thresholds
            *('37', '48', '8', '106', '21'),
        ]
    )
    assert '| Medium-shot | none |' in prose
    assert '| Few-shot | 33.33 |' in prose


def test_a_hold_out_is_not_called_a_test_set(lt: dict[str, Any]) -> None:
    assert 'images of the test set' in model_card(lt, CFG)
    held_out = model_card({**lt, 'split': 'holdout'}, CFG)
    assert 'a hold-out, not the test set' in held_out
    assert 'split: holdout' in held_out


@pytest.mark.parametrize(
    ('data', 'start', 'licence'),
    [
        ('folder:x', {}, 'other'),
        ('folder:x', {'pretrained': True}, 'mit'),
        ('cifar10_lt_r50', {}, 'mit'),
        ('cifar10_lt_r50', {'checkpoint_path': 'theirs.pth'}, 'other'),
    ],
)
def test_the_licence_of_what_was_made_of_own_images_is_for_its_makers_to_say(
    lt: dict[str, Any], tmp_path: Path, data: str, start: dict[str, Any], licence: str
) -> None:
    recipe = {**lt['recipe'], 'model': {**lt['recipe']['model'], **start}}
    card = load(model_card({**lt, 'data': data, 'recipe': recipe}, CFG), tmp_path)
    assert card.data.license == licence


def test_a_licence_that_the_hub_does_not_know_is_named_to_it(lt: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**lt['recipe'], 'model': {'name': 'timm/convnext_tiny.dinov3_lvd1689m', 'pretrained': True}}
    tuned = {**lt, 'recipe': recipe}
    data = load(model_card(tuned, {**CFG, 'license': 'dinov3-license'}), tmp_path).data
    assert (data.license, data.license_name) == ('other', 'dinov3-license')
    # Trained from the start, there is nothing in it of the weights that the name's licence is of.
    recipe['model']['pretrained'] = False
    assert load(model_card(tuned, {**CFG, 'license': 'dinov3-license'}), tmp_path).data.license == 'apache-2.0'


def test_weights_that_name_no_licence_pass_none_on(lt: dict[str, Any]) -> None:
    assert licence_of({}, lt) == licence_of({'license': ['mit', 'apache-2.0']}, lt) == 'apache-2.0'
    assert licence_of({}, {**lt, 'recipe': {'model': {'pretrained': True}}}) == 'other'


def test_it_points_to_no_place_that_may_not_exist(lt: dict[str, Any]) -> None:
    assert not re.search(r'https?:|www\.|huggingface|hf-hub|github|pip install', model_card(lt, CFG))
    without_paper = model_card(lt, {'architecture': 'resnet20_cifar'})
    assert 'Reference' not in without_paper and '- Reference: A Paper (' in model_card(lt, CFG)
    assert 'None' not in without_paper


def test_the_recipe_in_it_is_the_recipe(lt: dict[str, Any]) -> None:
    (recipe,) = (code for language, code in BLOCK.findall(model_card(lt, CFG)) if language == 'yaml')
    assert yaml.safe_load(recipe) == lt['recipe']


@torch.inference_mode()
def test_its_usage_runs_as_printed(train: Train, lt: dict[str, Any], tmp_path: Path) -> None:
    with torch.inference_mode(False):
        model = train('resnet20_cifar')
    folder = tmp_path / 'export'
    export_model(model, str(folder), lt, input_size=(3, 16, 16), mean=MEAN, std=STD)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    text = (folder / 'README.md').read_text(encoding='utf-8')
    (snippet,) = (code for language, code in BLOCK.findall(text) if language == 'python')
    assert 'FOLDER' in snippet
    names: dict[str, Any] = {'image': Image.fromarray(pixels)}
    exec(snippet.replace('FOLDER', str(folder)), names)
    scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    normalised = (scaled - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(names['logits'], model(normalised.float()), rtol=1e-4, atol=1e-4)
    assert names['ltzoo'] is ltzoo
