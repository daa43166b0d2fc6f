"""Recipes: what is changed in them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltzoo.training.recipe import Recipe, RecipeError, load_recipe

BCL = Path(__file__).resolve().parents[2] / 'recipes' / 'cifar100_lt_r100' / 'bcl.yaml'


def test_overrides_win_and_keep_the_rest() -> None:
    recipe = load_recipe(BCL, ['optimizer.lr=0.3', 'precision=bf16', 'views=cifar_plain', 'trackers=[tensorboard]'])
    assert recipe.optimizer.lr == 0.3
    assert recipe.optimizer.weight_decay == 5e-4
    assert recipe.precision == 'bf16'
    assert recipe.trackers == ('tensorboard',)


@pytest.mark.parametrize('order', [1, -1])
def test_another_objective_leaves_the_options_of_the_former_behind(order: int, tmp_path: Path) -> None:
    recipe = load_recipe(BCL, ['objective.name=logit_adjusted', 'objective.tau=2', 'views=cifar_plain'][::order])
    assert recipe.objective.model_dump() == {'name': 'logit_adjusted', 'tau': 2}
    (tmp_path / 'mine.yaml').write_text(f'base: {BCL.resolve()}\nobjective: {{name: ce}}\nviews: cifar_plain')
    assert load_recipe(tmp_path / 'mine.yaml').objective.model_dump() == {'name': 'ce'}
    # Nor do those of an override that another one takes back.
    recipe = load_recipe(BCL, ['objective={name: focal, gamma: 2}', 'objective.name=logit_adjusted'])
    assert recipe.objective.model_dump() == {'name': 'logit_adjusted'}
    recipe = load_recipe(BCL, ['objective.name=bcl', 'objective.temperature=0.2'][::order])
    assert recipe.objective.model_dump() == load_recipe(BCL).objective.model_dump() | {'temperature': 0.2}


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('method.groups=true', 'method.groups is True: input should be a valid integer'),
        ('method.sharpness.radius=false', 'method.sharpness.radius is False: input should be a valid number'),
        ('method.sharpness.ascent=fast', "method.sharpness.ascent is 'fast': input should be 'fresh' or 'ema', or: "),
        ('views=[[3]]', 'views: input should be the name of a preset, or a list of operations for each view'),
    ],
)
def test_what_is_wrong_within_a_part_is_said_of_its_key(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(BCL.with_name('gkpgsa.yaml'), [override])


def test_a_folder_is_taken_as_it_is_written() -> None:
    place = '/my images: 2024 #2/${new}, [a]'
    recipe = load_recipe(BCL, [f'data.name=folder:{place}', f'data.data_dir={place}', f'output={place}'])
    assert (recipe.data.name, recipe.data.data_dir, recipe.output) == (f'folder:{place}', place, Path(place))
    recipe = load_recipe(BCL, ['data.name="cifar10"', 'output=null', 'data.data_dir=2024'])
    assert (recipe.data.name, recipe.output, recipe.data.data_dir) == ('cifar10', None, '2024')


def test_a_recipe_written_out_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(BCL, ['output=somewhere'])
    (tmp_path / 'again.yaml').write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / 'again.yaml') == recipe


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('optimzer.lr=1', 'no key optimzer; did you mean optimizer?'),
        ('optimizer.weight_deacy=1', 'no key optimizer.weight_deacy; did you mean optimizer.weight_decay?'),
        ('data_dir=x', 'no key data_dir; did you mean data.data_dir?'),
        ('retraining.start_epch=1', 'no key retraining.start_epch; did you mean retraining.start_epoch?'),
        ('stop_epoch=201', 'stop_epoch 201 is after the last of 200 epochs: give fewer'),
        ('mixing.mixup_alpha=1', 'no key mixing.mixup_alpha; did you mean mixing.mixup?'),
        ('mixing.probability=0.5', 'mixing: give the alpha of mixup or of cutmix, such as {mixup: 0.2}'),
        ('retraining.lr=1', 'the key retraining.start_epoch is missing'),
        ('reweighting.beta=1', 'reweighting.beta is 1: input should be less than 1'),
        ('data.dir=x', 'no key data.dir; did you mean data.data_dir?'),
        ('optimizer.epochs=1', 'no key optimizer.epochs; did you mean epochs?'),
        ('optimizer.learning_rate=1', 'no key optimizer.learning_rate; valid here: name, lr,'),
        ('img_size=1', 'no key img_size; valid here: '),
        ('objective=bcl', 'objective is a group of keys and no word: write objective.name=bcl'),
        ('data=folder:/x', 'data is a group of keys and no word: write data.name=folder:/x'),
        ('optimizer.zz=1', 'no key optimizer.zz; valid here: name, lr,'),
        ('optimizer.lr=fast', "optimizer.lr is 'fast': input should be a valid number"),
        ('optimizer.lr=-1', 'optimizer.lr is -1: input should be greater than 0'),
        ('epochs=2.5', 'epochs is 2.5: input should be a valid integer'),
        ('epochs', 'not of the form key=value'),
        ('schedule.name=stepwise', "'multistep', 'cosine' or 'constant'"),
        ('schedule.milestones=[]', 'schedule: multistep needs milestones, the epochs at which the rate falls'),
        ('schedule.milestones=[0, 9]', 'schedule.milestones.0 is 0: input should be greater than or equal to 1'),
        ('evaluation.every_epochs=1', 'test set is touched once'),
        ('data=cifar10', 'data is a group of keys and no word: write data.name=cifar10'),
        ('epochs=true', 'epochs is True: input should be a valid integer'),
        ('optimizer.clip_grad_norm=true', 'optimizer.clip_grad_norm is True: input should be a valid number'),
        ('optimizer.lr=.inf', 'optimizer.lr is inf: input should be a finite number'),
        ('seed=4294967296', 'seed is 4294967296: input should be less than 4294967296'),
        ('views=3', 'views is 3: input should be the name of a preset, or a list of operations for each view'),
        ('views=[horizontal_flip]', 'views: input should be the name of a preset, or a list'),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(BCL, [override])
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_an_entry_of_a_list_cannot_be_changed_by_itself() -> None:
    with pytest.raises(RecipeError, match=r'an entry of a list cannot be changed by itself: give the whole list'):
        load_recipe(BCL, ['views=[[random_crop]]', 'views[0][0].random_crop.padding=2'])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'did you mean .*bcl\.yaml\?'):
        load_recipe(BCL.with_name('bcll.yaml'))
    (tmp_path / 'list.yaml').write_text('- a\n')
    with pytest.raises(RecipeError, match='holds a list'):
        load_recipe(tmp_path / 'list.yaml')
    (tmp_path / 'broken.yaml').write_text('a: [')
    with pytest.raises(RecipeError, match='is not a YAML file'):
        load_recipe(tmp_path / 'broken.yaml')
    (tmp_path / 'loop.yaml').write_text('base: loop.yaml')
    with pytest.raises(RecipeError, match='its own base'):
        load_recipe(tmp_path / 'loop.yaml')
    for content, message in (
        ('5', 'is not a YAML file of keys'),
        ('base: [a.yaml, b.yaml]', 'base is the name of one recipe file, not '),
        ('base: ${oc.env:NOT_SET_ANYWHERE}', r'own\.yaml: base: '),
        (f'base: {BCL}\noptimizer: [1]', 'does not go with its base'),
        (f'base: {BCL}\nseed: ${{other}}', r"^\S*own\.yaml: Interpolation key 'other' not found"),
        (f'base: {BCL}\nviews: !!binary aGVsbG8=', r'own\.yaml: .*not JSON serializable'),
    ):
        (tmp_path / 'own.yaml').write_text(content)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / 'own.yaml')
    with pytest.raises(RecipeError, match=r"data\.name is 'folder:caf\\udce9', which is no UTF-8"):
        load_recipe(BCL, ['data.name=folder:caf\udce9'])
    (tmp_path / 'empty.yaml').write_text('{}')
    with pytest.raises(RecipeError, match='the key data is missing'):
        load_recipe(tmp_path / 'empty.yaml')


def test_where_a_run_is_stored_does_not_decide_its_result() -> None:
    here = load_recipe(BCL, ['output=a', 'workers=1', 'data.data_dir=x', 'model.cache_dir=x'])
    there = load_recipe(BCL, ['output=b', 'workers=3', 'resume=auto', 'compile=true', 'cuda_graphs=true'])
    assert here.decides_result() == there.decides_result()
    assert load_recipe(BCL, ['seed=1']).decides_result() != there.decides_result()
    assert isinstance(here, Recipe)


def test_shots_that_overlap_are_refused_before_training() -> None:
    with pytest.raises(RecipeError, match='few_below 200 must be at most many_above'):
        load_recipe(BCL, ['evaluation.few_below=200'])


def test_keys_of_the_method_are_checked_like_all_others() -> None:
    with pytest.raises(RecipeError, match=r'no key method\.sharpness\.scail; did you mean method\.sharpness\.scale'):
        load_recipe(BCL, ['method.sharpness.scail=1'])
    with pytest.raises(RecipeError, match=r'group_by'):
        load_recipe(BCL, ['method.group_by=size'])
    method = load_recipe(BCL, ['method.sharpness.ascent=4', 'method.preservation=null']).method
    assert method is not None and method.sharpness is not None
    assert (method.sharpness.ascent, method.preservation) == (4, None)
