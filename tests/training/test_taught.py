"""Trainings whose objective has teachers: networks that were trained before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from step_forms import CE, recipe_file
from whole_runs import assert_equal_runs, fit_until

from ltzoo.evaluation.evaluate import ClassesError
from ltzoo.hub.release import release
from ltzoo.models.factory import ModelFilesError, UnknownModelError
from ltzoo.training.fit import fit
from ltzoo.training.prepare import describe_batch
from ltzoo.training.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def teacher(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    fit(make_recipe('epochs=1'), tmp_path / 'first', progress=False)
    return tmp_path / 'first' / 'model'


def taught_by(*teachers: Path) -> str:
    return f'objective={{name: distilled, teachers: [{", ".join(f"local-dir:{folder}" for folder in teachers)}]}}'


def test_a_taught_run_goes_on_and_says_nothing_of_folders(
    make_recipe: MakeRecipe, teacher: Path, tmp_path: Path
) -> None:
    taught = taught_by(teacher)
    fit(make_recipe(taught), tmp_path / 'whole', progress=False)
    fit_until(2, make_recipe(taught), tmp_path / 'cut')
    held = torch.load(tmp_path / 'cut' / 'checkpoint.pt', weights_only=True)['learner']
    assert not [name for name in held if name.startswith('objective')]
    fit(make_recipe(taught, 'resume=auto'), tmp_path / 'cut', progress=False)
    assert_equal_runs(tmp_path / 'whole', tmp_path / 'cut')
    release([tmp_path / 'whole'], tmp_path / 'released')
    for place in ('whole/model', 'released'):
        said = json.loads((tmp_path / place / 'config.json').read_text())['lt']['recipe']
        assert said['objective'] == {'name': 'distilled', 'teachers': ['local-dir:first/model']}
    told = [file.read_text() for file in (tmp_path / 'released').iterdir() if file.suffix in ('.json', '.md')]
    assert not [text for text in told if str(tmp_path) in text]


def test_teachers_are_refused_before_there_is_a_run(make_recipe: MakeRecipe, teacher: Path, tmp_path: Path) -> None:
    config = teacher / 'config.json'
    for name, error in ((f'local-dir:{tmp_path}', ModelFilesError), ('resnet32_cifar_bsl', UnknownModelError)):
        with pytest.raises(error):
            fit(make_recipe(f'objective={{name: distilled, teachers: "{name}"}}'), tmp_path / 'run', progress=False)
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, 'label_names': said['label_names'][::-1]}))
    with pytest.raises(ClassesError, match='the classes are in another order'):
        fit(make_recipe(taught_by(teacher)), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()


def test_what_a_teacher_has_seen_is_told(
    make_recipe: MakeRecipe, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    describe_batch(make_recipe(taught_by(teacher)))
    assert not caplog.records
    describe_batch(make_recipe(taught_by(teacher), 'evaluation.split=holdout'))
    assert f'local-dir:{teacher} was trained on images of the hold-out: scores there will be too high' in caplog.text
    fit(load_recipe(recipe_file(tmp_path, **CE, epochs=1)), tmp_path / 'other', progress=False)
    config = tmp_path / 'other' / 'model' / 'config.json'
    said = json.loads(config.read_text())
    said['pretrained_cfg']['input_size'] = [3, 16, 16]
    config.write_text(json.dumps(said))
    describe_batch(make_recipe(taught_by(config.parent)))
    assert 'was trained on images of 16 x 16 pixels, and gets them of 8 x 8' in caplog.text
