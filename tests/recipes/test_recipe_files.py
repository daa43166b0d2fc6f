"""Every recipe file: it loads, it can run, and it says what the papers' tables say."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import ltzoo
from ltzoo.data.views import View, parse_views
from ltzoo.losses import create_objective
from ltzoo.losses.bcl import BCL
from ltzoo.models import CosineLinear
from ltzoo.models.entries import entry_of, method_of
from ltzoo.models.lt_zoo import METHODS, ZOO, ZooEntry
from ltzoo.training.optimizer import create_optimizer
from ltzoo.training.prepare import describe_batch
from ltzoo.training.recipe import Recipe, ReweightingPart, load_recipe

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / 'recipes').rglob('*.yaml') if path.parent.name != 'plans')
NAMES = [str(path.relative_to(ROOT / 'recipes').with_suffix('')) for path in FILES]

CIFAR = {
    'epochs': 200, 'batch_size': 256, 'lr': 0.15, 'weight_decay': 5e-4,
    'schedule': 'multistep', 'warmup_epochs': 5, 'milestones': (160, 180), 'gamma': 0.1,
}  # fmt: skip
IMAGENET_LT = {
    'epochs': 90, 'batch_size': 256, 'lr': 0.1, 'weight_decay': 5e-4,
    'schedule': 'cosine', 'warmup_epochs': 0,
}  # fmt: skip
# Section 7.1 of the GKP/GSA paper (arXiv:2603.21217), which every method of a data set is compared under.
PAPER: dict[str, dict[str, Any]] = {
    'cifar10_lt_r10': CIFAR,
    'cifar10_lt_r50': CIFAR,
    'cifar10_lt_r100': CIFAR,
    'cifar100_lt_r10': CIFAR,
    'cifar100_lt_r50': CIFAR,
    'cifar100_lt_r100': CIFAR,
    'imagenet_lt': IMAGENET_LT,
    'inat18': IMAGENET_LT | {'epochs': 100, 'lr': 0.2, 'weight_decay': 1e-4},
}
GROUPS = {data: 6 if data == 'imagenet_lt' else 4 for data in PAPER}
# BCL without its contrastive term, which has a rate of its own, and what is taught on top of it.
BCL_CE, DISTILLED = 'cifar100_lt_r100/ablations/bcl_ce', 'cifar100_lt_r100/ablations/distilled'
IN_PAPER = [name for name in NAMES if name.split('/')[0] in PAPER and name not in (BCL_CE, DISTILLED)]
CLASSES = {'cifar10': 10, 'cifar100': 100, 'imagenet': 1000, 'inat18': 8142, 'digits': 10}
# Weight of the cross-entropy, weight of the contrastive term, temperature, sizes of the projection head.
BCL_SETTINGS = {'cifar': (2.0, 0.6, 0.1, 512, 128), 'large': (1.0, 0.35, 0.07, 2048, 1024)}
CONTRASTIVE = ['RandomResizedCrop', 'HorizontalFlip', 'ColorJitter', 'RandomGrayscale']
FIRST_VIEW = {
    'cifar': ['RandomCrop', 'HorizontalFlip', 'AutoAugment', 'Cutout'],
    'large': ['RandomResizedCrop', 'HorizontalFlip', 'ColorJitter', 'RandAugment'],
}


def folder_of(file: Path) -> str:
    return file.relative_to(ROOT / 'recipes').parts[0]


def scale_of(folder: str) -> str:
    return 'cifar' if folder.startswith('cifar') else 'large'


def objective_of(recipe: Recipe) -> Any:
    network = 'resnet32_cifar_experts' if recipe.objective.name == 'ride' else 'resnet20_cifar'
    model = ltzoo.create_model(network, num_classes=2, head='cosine')
    extra = recipe.objective.model_extra or {}
    with pytest.MonkeyPatch.context() as patch:
        # Teachers may be of runs, which are not here.
        patch.setattr('ltzoo.losses.distilled.create_model', lambda name, pretrained: copy.deepcopy(model))
        return create_objective(recipe.objective.name, model, torch.tensor([3, 1]), **extra)


def output_size(view: View, side: int) -> tuple[int, int]:
    size = (side, side)
    for op in view.ops:
        size = op.output_size(*size)
    return size


@pytest.fixture(params=FILES, ids=NAMES)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


@functools.cache
def load(file: Path) -> Recipe:
    return load_recipe(file)


@pytest.fixture
def recipe(file: Path) -> Recipe:
    return load(file)


def test_the_folder_says_what_is_trained_on(file: Path, recipe: Recipe) -> None:
    folder = folder_of(file)
    if folder == 'study':
        assert recipe.evaluation.split == 'holdout'
    elif folder != 'own':
        assert recipe.data.name == folder
    assert recipe.seed == 0


def test_the_model_is_one_for_this_data(file: Path, recipe: Recipe) -> None:
    assert recipe.model.name.startswith('timm/') or recipe.model.name.split('.')[0] in ltzoo.list_models()
    # An ablation is none of the zoo's methods, so it has none of their names.
    assert (entry_of(recipe.model.name) is not None) == (file.parent.name in PAPER)
    if file.parent.name in PAPER:
        classes = CLASSES[recipe.data.name.partition('_')[0]]
        assert ltzoo.get_pretrained_cfg(recipe.model.name).num_classes == classes
    with torch.device('meta'):
        model = ltzoo.create_model(recipe.model.name, num_classes=7, **(recipe.model.model_extra or {}))
    assert model.num_classes == 7
    if recipe.objective.name in ('bcl', 'ldam'):
        assert isinstance(model.get_classifier(), CosineLinear)


def test_the_objective_takes_these_options_and_views(file: Path, recipe: Recipe) -> None:
    views = parse_views(recipe.views)
    assert objective_of(recipe).num_views == len(views)
    cfg = ltzoo.get_pretrained_cfg(recipe.model.name)
    side = 8 if recipe.data.name.startswith('digits') else cfg.input_size[-1]
    # Batched and tested together, views have one size; the zoo says which, and a study may shrink timm's.
    (size,) = {output_size(view, side) for view in views}
    assert size == (side, side) or (file.parent.name == 'study' and recipe.model.name.startswith('timm/'))


def test_a_recipe_says_nothing_that_its_base_has(file: Path) -> None:
    said = yaml.safe_load(file.read_text(encoding='utf-8'))
    if 'base' not in said:
        return
    base = load(file.parent / said.pop('base'))
    # A schedule is given whole.
    for part, value in ((part, value) for part, value in said.items() if part != 'schedule'):
        old = getattr(base, part)
        assert value != old, part
        if isinstance(value, dict) and old is not None:
            same = [key for key, new in value.items() if new == getattr(old, key, ...)]
            assert not same, f'{part}: {same}'


@pytest.mark.parametrize('name', IN_PAPER)
def test_optimisation_is_the_papers(name: str) -> None:
    recipe = load(ROOT / 'recipes' / f'{name}.yaml')
    optimizer, schedule = recipe.optimizer, recipe.schedule
    said = {
        'epochs': recipe.scheduled_epochs,
        'batch_size': recipe.batch_size,
        'lr': optimizer.lr,
        'weight_decay': optimizer.weight_decay,
        'schedule': schedule.name,
        'warmup_epochs': schedule.warmup_epochs,
    }
    if schedule.name == 'multistep':
        said |= {'milestones': schedule.milestones, 'gamma': schedule.gamma}
    assert said == PAPER[name.split('/')[0]]
    assert (optimizer.name, optimizer.momentum, optimizer.decay_norm_and_bias) == ('momentum', 0.9, True)
    # Classical momentum; timm's sgd has Nesterov's.
    made = create_optimizer(nn.Linear(2, 2), optimizer)
    assert isinstance(made, torch.optim.SGD) and not made.defaults['nesterov']
    assert (recipe.seed, recipe.data.split_seed, recipe.evaluation.split, recipe.ema_decay) == (0, 0, 'test', None)
    assert (recipe.evaluation.many_above, recipe.evaluation.few_below) == (100, 20)


@pytest.mark.parametrize('name', IN_PAPER)
def test_contrastive_recipes_are_those_of_bcl(name: str) -> None:
    recipe = load(ROOT / 'recipes' / f'{name}.yaml')
    objective = objective_of(recipe)
    scale = scale_of(name)
    ops = [[type(op).__name__ for op in view.ops] for view in parse_views(recipe.views)]
    if isinstance(objective, BCL):
        head = objective.feature_head
        sizes = (head[0].out_features, head[-1].out_features)
        weights = (objective.ce_weight, objective.contrastive_weight, objective.temperature)
        assert (*weights, *sizes) == BCL_SETTINGS[scale]
        assert ops == [FIRST_VIEW[scale], CONTRASTIVE, CONTRASTIVE]
    else:
        # What a method without contrastive views is compared under: its first view, without the strong operations.
        assert ops == [FIRST_VIEW[scale][: 2 if scale == 'cifar' else 3]]


def test_bcl_without_its_contrastive_term_takes_the_steps_of_its_other_term() -> None:
    own, bcl = (load(ROOT / 'recipes' / f'{name}.yaml') for name in (BCL_CE, 'cifar100_lt_r100/bcl'))
    assert type(objective_of(own)) is type(objective_of(load(ROOT / 'recipes' / 'cifar100_lt_r100' / 'bs.yaml')))
    assert parse_views(own.views) == parse_views(bcl.views)[:1]
    assert own.model.model_extra == {'head': 'cosine'}
    # That term counts twice: 0.15 (2 g + 5e-4 w) is 0.3 (g + 2.5e-4 w).
    assert (own.optimizer.lr, own.optimizer.weight_decay) == (0.3, 2.5e-4)
    assert own.optimizer.model_copy(update={'lr': 0.15, 'weight_decay': 5e-4}) == bcl.optimizer
    for part in ('epochs', 'batch_size', 'schedule', 'seed', 'data', 'evaluation', 'ema_decay'):
        assert getattr(own, part) == getattr(bcl, part)


def test_what_is_taught_on_the_test_set_is_as_on_the_hold_out() -> None:
    own, on_holdout = (
        load(ROOT / 'recipes' / f'{name}.yaml') for name in (DISTILLED, 'study/cifar100_strong_distilled')
    )
    for part in ('model', 'views', 'optimizer', 'schedule', 'epochs', 'batch_size', 'seed', 'data', 'mixing'):
        assert getattr(own, part) == getattr(on_holdout, part)
    assert (own.evaluation.split, on_holdout.evaluation.split) == ('test', 'holdout')
    # Whose weights are here.
    create_objective('distilled', nn.Identity(), torch.ones(100, dtype=torch.long), **(own.objective.model_extra or {}))


# Of RIDE, the spread of its temperature; of a second stage, where it begins, where it ends, and its rate.
SPREAD = {'cifar': 0.05, 'imagenet_lt': 0.02, 'inat18': 0.015}
STAGES = {
    'cifar': {'crt': (200, 222, None), 'lws': (200, 211, None)},
    'imagenet_lt': {'crt': (90, 100, None), 'lws': (90, 95, None)},
    'inat18': {'crt': (100, 130, 0.1), 'lws': (100, 105, 0.1)},
}


@pytest.mark.parametrize('entry', ZOO.values(), ids=list(ZOO))
def test_a_recipe_trains_the_method_of_its_name(entry: ZooEntry) -> None:
    recipe = load(ROOT / entry.recipe)
    assert method_of(recipe.decides_result()) == METHODS[entry.method].trained_with
    extra, sharpness = recipe.objective.model_extra or {}, recipe.method and recipe.method.sharpness
    data = scale_of(entry.tag) if entry.data == 'cifar' else entry.tag
    if entry.method == 'focal':
        assert extra == {'gamma': 1}
    if entry.method.startswith('ldam_drw'):
        assert extra == {'max_margin': 0.5}
        assert recipe.reweighting == ReweightingPart(start_epoch=160, beta=0.9999)
    if entry.method == 'ride':
        epochs = {'cifar': 160, 'imagenet_lt': 72, 'inat18': 80}[data]
        assert extra == {
            **{'max_margin': 0.5, 'diversity': 0.2},
            **{'temperature_spread': SPREAD[data], 'reweighting_epoch': epochs},
        }
    if recipe.retraining is not None:
        part = recipe.retraining
        assert (part.start_epoch, recipe.epochs, part.lr) == STAGES[data][entry.method]
    if entry.method.endswith('_sam'):
        assert recipe.method is not None and sharpness is not None
        assert (recipe.method.group_by, sharpness.mode, sharpness.direction) == ('none', 'combined', 'full')
        assert sharpness.radius == {'ldam_drw_sam': 0.8, 'bcl_sam': 0.05}[entry.method]
    else:
        assert (recipe.method is not None) == entry.method.startswith('gkpgsa')


@pytest.mark.parametrize('name', [name for name in IN_PAPER if '/gkpgsa' in name])
def test_groups_are_as_many_as_the_papers(name: str) -> None:
    recipe = load(ROOT / 'recipes' / f'{name}.yaml')
    assert recipe.objective.name == 'bcl'
    assert recipe.method is not None
    assert (recipe.method.groups, recipe.method.group_by) == (GROUPS[name.split('/')[0]], 'bank')
    assert recipe.method.sharpness is not None
    assert recipe.method.preservation is not None


def test_the_papers_own_settings() -> None:
    method = load(ROOT / 'recipes' / 'cifar100_lt_r100' / 'gkpgsa_paper.yaml').method
    assert method is not None
    assert method.sharpness is not None
    assert method.preservation is not None
    # Sections 7.1 and 8.3; Eq. 20.
    assert (method.preservation.strength, method.sharpness.scale) == (100, 0.01)
    assert (method.alpha_start, method.alpha_end) == (0.95, 0.6)
    # Eq. 12, 14 and 16.
    assert (method.sharpness.direction, method.sharpness.global_gradient) == ('residual', 'batch')
    assert (method.sharpness.mode, method.preservation.form) == ('per_group', 'gradient')


def test_every_model_that_can_be_made_has_its_recipe() -> None:
    made = {entry.recipe for entry in ZOO.values()}
    # Those further down are ablations, which the zoo does not name.
    there = {str(path.relative_to(ROOT)) for path in FILES if path.parent.name in PAPER}
    assert made <= there
    assert there <= {entry.recipe for entry in ZOO.values()}, 'a recipe that no model of the zoo is made by'
    for entry in ZOO.values():
        if entry.recipe in there:
            recipe = load(ROOT / entry.recipe)
            assert recipe.data.name == entry.tag
            cfg = ltzoo.get_pretrained_cfg(recipe.model.name)
            assert (cfg.architecture, cfg.tag) in ((entry.name, entry.tag), (entry.name, ''))


def test_every_file_begins_with_a_comment_or_its_base(file: Path) -> None:
    text = file.read_text()
    assert text.startswith(('# ', 'base: '))
    # A mapping at top level, without keys given twice, which YAML would let pass.
    keys = [line.partition(':')[0] for line in text.splitlines() if line and not line.startswith(('#', ' '))]
    assert sorted(keys) == sorted(yaml.safe_load(text))


@pytest.mark.parametrize(
    ('name', 'views'), [('bs', 'cifar_plain'), ('bs', 'cifar_strong'), ('bcl', 'cifar_bcl'), ('gkpgsa', 'cifar_plain')]
)
def test_recipes_for_own_images_take_small_networks_as_readme_says(name: str, views: str, tmp_path: Path) -> None:
    for label, number in (('a', 20), ('b', 10), ('c', 3)):
        (tmp_path / label).mkdir()
        for i in range(number):
            Image.effect_noise((40, 36), 80).save(tmp_path / label / f'{i}.png')
    small = ('model.name=resnet32_cifar', 'model.pretrained=false', f'views={views}')
    words = (f'data.name=folder:{tmp_path}', 'batch_size=8', 'workers=0', 'precision=fp32')
    told = describe_batch(load_recipe(ROOT / 'recipes' / 'own' / f'{name}.yaml', [*small, *words]))
    assert 'losses: (8,)' in told
