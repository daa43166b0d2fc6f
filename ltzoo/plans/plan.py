"""A plan: which recipes are trained, what is changed in each, and with which seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ltzoo.data import takes_data_dir
from ltzoo.errors import LtzooError, did_you_mean, one_line
from ltzoo.training.recipe import Recipe, load_recipe
from ltzoo.training.run import RunFolder

__all__ = ['Job', 'Plan', 'PlanError', 'PlannedRun', 'load_plan', 'plan_jobs']


# Keys of a recipe that a plan sets itself.
_OF_PLANS = {
    'seed': 'a plan says its seeds itself, and --seeds picks some of them',
    'output': 'a plan says where its runs go, or --output does',
    'resume': 'a plan always goes on where it was stopped',
}


class PlanError(LtzooError, ValueError):
    """A plan that cannot be used; the message names the key and what would be right."""


class PlannedRun(BaseModel):
    """One row of the table: a recipe and what is changed in it."""

    model_config = ConfigDict(extra='forbid', frozen=True)
    recipe: Path
    overrides: tuple[str, ...] = ()


class Plan(BaseModel):
    """Which recipes are trained with which seeds."""

    model_config = ConfigDict(extra='forbid', frozen=True)
    output: Path
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    runs: dict[str, PlannedRun] = Field(min_length=1)

    @field_validator('output')
    @classmethod
    def _at_home(cls, output: Path) -> Path:
        return output.expanduser()

    @field_validator('runs')
    @classmethod
    def _names_of_folders(cls, runs: dict[str, PlannedRun]) -> dict[str, PlannedRun]:
        for name in runs:
            if name != Path(name).name:
                raise ValueError(f'{name!r} is not a folder name: leave out the slash')
        return runs

    def folder(self, name: str, seed: int) -> Path:
        return self.output / f'{name}_seed{seed}'


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    seed: int
    command: list[str]
    folder: Path
    recipe: Recipe

    @property
    def finished(self) -> bool:
        return RunFolder(self.folder).finished

    @property
    def diverged(self) -> bool:
        return RunFolder(self.folder).diverged(self.recipe)

    @property
    def log(self) -> Path:
        """What the training printed, beside its folder."""
        return self.folder.with_name(f'{self.folder.name}.log')


def load_plan(path: Path, output: Path | None = None) -> Plan:
    """Read a plan; its runs go to `output`, if given, instead of where it says.

    Raises:
        PlanError: if it is missing, not YAML, or a key is unknown, missing or of the wrong type.
    """
    try:
        # A key that is there twice is an error here, and not in plain PyYAML.
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        if output is not None and isinstance(content, dict):
            content['output'] = output
        return Plan.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise PlanError(f'{path} cannot be read as a plan: {one_line(error)}') from error
    except ValidationError as error:
        first = error.errors()[0]
        key = '.'.join(map(str, first['loc'])) or 'the file'
        if first['type'] == 'extra_forbidden':
            known = (Plan if len(first['loc']) == 1 else PlannedRun).model_fields
            raise PlanError(f'{path}: there is no key {key}; it can be {", ".join(known)}') from error
        raise PlanError(f'{path}: {key}: {first["msg"].removeprefix("Value error, ")}') from error


def plan_jobs(
    plan: Plan,
    folder: Path,
    script: Path,
    only: Sequence[str] | None = None,
    data_dir: str | None = None,
    changes: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    into_folders: bool = True,
) -> list[Job]:
    """Return the plan's trainings, those of the first seed first; every recipe is read before anything is trained.

    Args:
        plan: what to train.
        folder: that the plan's recipes are relative to.
        script: what trains a recipe, `recipes/train.py`.
        only: names of runs, in the order to train them in; None for all.
        data_dir: where the data lies whose place the recipes do not name, if not where they say.
        changes: `key=value`, what is changed in all recipes.
        seeds: those to train, in order; None for all of the plan.
        into_folders: whether something is to be put into the run folders, which must then be of these recipes.

    Raises:
        PlanError: if `only` names a run, or `seeds` a seed, that the plan does not have.
        RecipeError: if a recipe or an override cannot be used.
        CheckpointError: if a run's folder holds something else.
    """
    for name in only or ():
        if name not in plan.runs:
            hint = did_you_mean(name, plan.runs, otherwise=f'; it has {", ".join(plan.runs)}')
            raise PlanError(f'--only: the plan has no run {name}{hint}')
    for seed in seeds or ():
        if seed not in plan.seeds:
            raise PlanError(f'--seeds: the plan has no seed {seed}; it has {", ".join(map(str, plan.seeds))}')
    for change in (*changes, *(word for name in only or plan.runs for word in plan.runs[name].overrides)):
        key = change.partition('=')[0]
        if key in _OF_PLANS:
            raise PlanError(f'{change}: {_OF_PLANS[key]}')
    jobs = []
    for seed in dict.fromkeys(seeds or plan.seeds):
        for name in dict.fromkeys(only or plan.runs):
            run = plan.runs[name]
            output = plan.folder(name, seed)
            overrides = [*run.overrides, *changes, f'seed={seed}', f'output={output}', 'resume=auto']
            recipe = load_recipe(folder / run.recipe, overrides)
            # Own images whose place a recipe names have theirs.
            if data_dir is not None and takes_data_dir(recipe.data.name):
                overrides.append(f'data.data_dir={data_dir}')
                recipe = load_recipe(folder / run.recipe, overrides)
            if into_folders:
                RunFolder(output).check(recipe)
            command = [sys.executable, str(script), str(folder / run.recipe), *overrides]
            jobs.append(Job(name, seed, [*command, '--no-progress'], output, recipe))
    return jobs
