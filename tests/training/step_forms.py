"""Trainings on the digits whose steps are of every form that is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from timm.models import save_for_hf

import ltzoo


def recipe_file(folder: Path, **changes: Any) -> Path:
    path = folder / 'recipe.yaml'
    base = {
        'data': {'name': 'digits_lt'}, 'model': {'name': 'resnet8_cifar', 'head': 'cosine'},
        'optimizer': {'name': 'sgd', 'lr': 0.05}, 'epochs': 6, 'batch_size': 100, 'channels_last': True,
    }  # fmt: skip
    recipe = {**base, **changes}
    if recipe['objective']['name'] == 'distilled':
        teacher = ltzoo.create_model('resnet8_cifar', num_classes=10)
        save_for_hf(teacher, folder / 'teacher', safe_serialization=True)
        recipe['objective'] = {**recipe['objective'], 'teachers': f'local-dir:{folder / "teacher"}'}
    path.write_text(yaml.safe_dump(recipe))
    return path


# All that the views of CIFAR do, on 8 pixels.
FIRST: list[Any] = [{'random_crop': {'padding': 1}}, 'horizontal_flip', 'auto_augment', {'cutout': {'size': 3}}]
OTHER: list[Any] = [
    {'random_resized_crop': {'scale': [0.2, 1.0]}}, 'horizontal_flip', {'color_jitter': {'p': 0.8}},
    {'random_grayscale': {'p': 0.2}},
]  # fmt: skip
CE: dict[str, Any] = {'objective': {'name': 'ce'}, 'views': [FIRST]}
BCL: dict[str, Any] = {'objective': {'name': 'bcl', 'hidden_dim': 8, 'out_dim': 4}, 'views': [FIRST, OTHER, OTHER]}
SCALES = {'model': {'name': 'resnet8_cifar'}, 'retraining': {'start_epoch': 3, 'part': 'scales'}}
RIDE: dict[str, Any] = {
    'objective': {'name': 'ride', 'reweighting_epoch': 3},
    'model': {'name': 'resnet32_cifar_experts', 'layers': [1, 1, 1]},
}  # fmt: skip
GKPGSA: dict[str, Any] = {
    'groups': 2, 'first_grouping': 2, 'regroup_every': 2, 'preservation': {'samples_per_group': 8, 'strength': 5},
}  # fmt: skip
GRADIENT = {**GKPGSA, 'preservation': {'samples_per_group': 8, 'form': 'gradient', 'strength': 0.5}}
ESTIMATED = {**GKPGSA['preservation'], 'statistics': 'estimated'}
PRESERVATION = {**GKPGSA, 'sharpness': None, 'preservation': ESTIMATED}
COMBINED = {**GKPGSA, 'sharpness': {'mode': 'combined', 'global_gradient': 'ema', 'ascent_views': 'first'}}
AVERAGES = {**GKPGSA, 'sharpness': {'ascent': 'ema', 'direction': 'projection', 'scale': 0.01}}
FOCAL_SAM = {'group_by': 'frequency', 'preservation': None, 'sharpness': {'mode': 'focal', 'radius': 0.05}}
SAM = {'group_by': 'none', 'preservation': None, 'sharpness': {'mode': 'combined', 'direction': 'full', 'radius': 0.05}}
# Its teacher is made beside the recipe.
DISTILLED: dict[str, Any] = {**CE, 'objective': {'name': 'distilled'}}
ADAM = {'name': 'adamw', 'lr': 0.001, 'clip_grad_norm': 1.0}


FORMS: dict[str, dict[str, Any]] = {
    'ce': {**CE, 'accumulation': 2, 'ema_decay': 0.9, 'reweighting': {'start_epoch': 3}},
    'balanced softmax': {**CE, 'objective': {'name': 'logit_adjusted'}},
    'focal loss': {**CE, 'objective': {'name': 'focal'}},
    'ldam': {**CE, 'objective': {'name': 'ldam'}, 'reweighting': {'start_epoch': 3}, 'method': SAM},
    'retraining': {**CE, 'retraining': {'start_epoch': 3}},
    'scales': {**CE, **SCALES},
    'mixing': {**CE, 'mixing': {'mixup': 1.0, 'cutmix': 1.0, 'probability': 0.5}, 'retraining': {'start_epoch': 3}},
    'distilled': {**DISTILLED, 'mixing': {'mixup': 1.0, 'cutmix': 1.0, 'probability': 0.5}},
    'ride': {**CE, **RIDE},
    'bcl': BCL,
    'mixed bcl': {**BCL, 'accumulation': 2, 'mixing': {'mixup': 1.0, 'cutmix': 1.0}},
    'sam': {**BCL, 'method': SAM},
    'preservation': {**BCL, 'method': PRESERVATION},
    'gkpgsa': {**BCL, 'method': GKPGSA},
    'gradient': {**BCL, 'method': GRADIENT},
    'combined': {**BCL, 'method': COMBINED},
    'averages': {**BCL, 'method': AVERAGES, 'optimizer': ADAM},
    'distilled gkpgsa': {**DISTILLED, 'method': GKPGSA},
    'focal sam': {**BCL, 'method': FOCAL_SAM},
}


def has_second_form(form: dict[str, Any]) -> bool:
    """Return whether steps change on the way: from the second stage, or from the first groups of the bank on.

    Everything else that changes lies in memory.
    """
    return 'retraining' in form or ('method' in form and 'group_by' not in form['method'])
