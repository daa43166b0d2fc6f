"""Recipes: everything that decides a training run, typed, in one YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ltzoo.data import check_thresholds
from ltzoo.data.shots import FEW_BELOW, MANY_ABOVE
from ltzoo.errors import LtzooError, one_line
from ltzoo.gkpgsa import GkpGsaSettings

__all__ = ['Recipe', 'RecipeError', 'check_recipe', 'flattened', 'load_recipe', 'with_bases']

# Keys that may hold a folder, which is not to be read as YAML: one may be called `images: 2024 #2`.
_PLACES = ('data.name', 'data.data_dir', 'model.name', 'output')

# What pydantic calls a key that a part or a dataclass does not have.
_UNKNOWN = ('extra_forbidden', 'unexpected_keyword_argument')


class RecipeError(LtzooError, ValueError):
    """A recipe that cannot be used; the message names the key and what would be right."""


class _Part(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


class DataPart(_Part):
    """Which images. `name` as `ltzoo.data.load_data` takes it; `data_dir` is where they lie, or its paths start."""

    name: str
    data_dir: str | None = None
    split_seed: int = Field(0, ge=0, lt=2**32)
    download: bool = False
    unreadable: Literal['stop', 'skip'] = 'stop'


class ModelPart(_Part):
    """Which network. `name` as `ltzoo.create_model` takes it; further keys are its arguments."""

    model_config = ConfigDict(extra='allow', frozen=True)
    name: str
    pretrained: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether it starts from weights that something has trained."""
        return self.pretrained or bool((self.model_extra or {}).get('checkpoint_path'))


class ObjectivePart(_Part):
    """Which loss. `name` from `ltzoo.losses.list_objectives`; further keys are its options."""

    model_config = ConfigDict(extra='allow', frozen=True)
    name: str


class ReweightingPart(_Part):
    """Every sample's loss is multiplied by the weight of its class, `ltzoo.losses.class_balanced_weights`.

    From `start_epoch` on, counted from 0: deferred to where the learning rate falls it is the DRW of LDAM-DRW.
    """

    start_epoch: int = Field(0, ge=0)
    beta: float = Field(0.9999, ge=0, lt=1)


class RetrainingPart(_Part):
    """A second stage that trains the classifier, and nothing else, on classes that are drawn equally often.

    With `part: classifier` it is drawn anew; with `part: scales` it stays, and one factor for each class's logit is
    trained, which at the end is multiplied into the classifier. The stage takes the epochs from `start_epoch` on,
    counted from 0, before which the schedule ends. Its learning rate begins at `lr`, by default `optimizer.lr`, and
    falls to zero by a cosine. The encoder keeps its weights and batch-norm's running statistics.

    Source: cRT and LWS of Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020.
    """

    start_epoch: int = Field(ge=0)
    part: Literal['classifier', 'scales'] = 'classifier'
    lr: float | None = Field(None, gt=0)


class MixingPart(_Part):
    """Images of a batch are mixed with one another, their classes in the same shares: `ltzoo.data.mixing.MixedLoader`.

    `mixup` and `cutmix` are the alpha of each, 0 for none; of both, each batch takes one. `probability` is that of a
    batch to be mixed. From `end_epoch` on, counted from 0, and in a second stage, none is.
    """

    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    probability: float = Field(1.0, gt=0, le=1)
    end_epoch: int | None = Field(None, ge=1)

    @model_validator(mode='after')
    def _consistent(self) -> MixingPart:
        if not self.mixup and not self.cutmix:
            raise ValueError('give the alpha of mixup or of cutmix, such as {mixup: 0.2}')
        return self


class OptimizerPart(_Part):
    """Optimiser by timm's name. `decay_norm_and_bias` applies weight decay to every parameter, as LDAM and BCL do."""

    name: str = 'momentum'
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    decay_norm_and_bias: bool = True
    clip_grad_norm: float | None = Field(None, gt=0)


class SchedulePart(_Part):
    """Learning rate by epoch. `multistep` multiplies by `gamma` at each milestone; `cosine` falls to zero."""

    name: Literal['multistep', 'cosine', 'constant'] = 'cosine'
    warmup_epochs: int = Field(0, ge=0)
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)

    @model_validator(mode='after')
    def _consistent(self) -> SchedulePart:
        if self.name == 'multistep' and not self.milestones:
            raise ValueError('multistep needs milestones, the epochs at which the rate falls, such as [160, 180]')
        return self


class EvaluationPart(_Part):
    """What is measured. `split: holdout` chooses settings on training images instead of touching the test set.

    `every_epochs` measures during training as well, on the hold-out only; 0 measures once, after the last epoch.
    `holdout_per_class` is its size, by default as `ltzoo.data.with_holdout` has it. `train` measures the training
    images too, at the end and as one would test: a network that has not fitted them is no ground to judge flatness on.
    `crop_pct` is the share of a resized file's shorter side that the test crop covers where the first view has a
    `random_resized_crop`, which trains on enlarged parts; else files are tested on the whole central square, and arrays
    always whole.
    """

    split: Literal['test', 'holdout'] = 'test'
    holdout_per_class: int | None = Field(None, ge=1)
    every_epochs: int = Field(0, ge=0)
    train: bool = False
    batch_size: int = Field(128, ge=1)
    crop_pct: float = Field(0.875, gt=0, le=1)
    many_above: int = Field(MANY_ABOVE, ge=0)
    few_below: int = Field(FEW_BELOW, ge=0)

    @model_validator(mode='after')
    def _consistent(self) -> EvaluationPart:
        if self.split == 'test' and self.every_epochs:
            raise ValueError('the test set is touched once, at the end: use split=holdout with every_epochs')
        if self.split == 'test' and self.holdout_per_class is not None:
            raise ValueError('holdout_per_class belongs to split=holdout, but split is test')
        check_thresholds(self.many_above, self.few_below)
        return self


class Recipe(_Part):
    """One training run. Every key, its type and its default are here."""

    data: DataPart
    model: ModelPart
    objective: ObjectivePart
    views: str | list[list[str | dict[str, Any]]]
    mixing: MixingPart | None = Field(None, description='mixup and CutMix')
    optimizer: OptimizerPart
    schedule: SchedulePart = SchedulePart()
    reweighting: ReweightingPart | None = Field(None, description='rare classes weigh more')
    retraining: RetrainingPart | None = Field(None, description='of the classifier, in a second stage')
    method: GkpGsaSettings | None = Field(None, description='grouped knowledge preservation and sharpness')
    evaluation: EvaluationPart = EvaluationPart()

    epochs: int = Field(ge=1)
    stop_epoch: int | None = Field(None, ge=1, description='end after so many epochs of a schedule for `epochs`')
    batch_size: int = Field(ge=1, description='samples in one optimiser step, over all processes')
    seed: int = Field(0, ge=0, lt=2**32, description='of weights, order and views')

    precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32'
    accumulation: int = Field(1, ge=1, description='pieces that batch_size is cut into; it does not grow with them')
    channels_last: bool = False
    compile: bool = Field(False, description='make one loop of what lies between convolutions and matrix products')
    cuda_graphs: bool = Field(False, description='on one GPU, replay a recorded step instead of launching its kernels')
    sync_batchnorm: bool = False
    ema_decay: float | None = Field(None, gt=0, lt=1)
    workers: int = Field(2, ge=0, description='processes that read image files; unused for arrays')
    trackers: tuple[Literal['tensorboard', 'wandb', 'trackio'], ...] = ()
    checkpoint_every: int = Field(1, ge=1, description='epochs')

    output: Path | None = None
    resume: Literal['auto', 'never'] = 'never'

    @field_validator('output', mode='before')
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str) else value

    @field_validator('views', mode='before')
    @classmethod
    def _preset_or_lists(cls, value: Any) -> Any:
        lists = isinstance(value, list) and all(
            isinstance(view, list) and all(isinstance(operation, (str, dict)) for operation in view) for view in value
        )
        if not lists and not isinstance(value, str):
            raise ValueError('input should be the name of a preset, or a list of operations for each view')
        return value

    @model_validator(mode='after')
    def _stops_before_the_end(self) -> Recipe:
        if self.stop_epoch is not None and self.stop_epoch > self.epochs:
            raise ValueError(f'stop_epoch {self.stop_epoch} is after the last of {self.epochs} epochs: give fewer')
        return self

    @property
    def trained_epochs(self) -> int:
        """The epochs that are trained: all, or those before the run is ended early."""
        return self.epochs if self.stop_epoch is None else self.stop_epoch

    @property
    def scheduled_epochs(self) -> int:
        """The epochs of the schedule: all, or those before the classifier is trained alone."""
        return self.epochs if self.retraining is None else min(self.retraining.start_epoch, self.epochs)

    def decides_result(self) -> dict[str, Any]:
        """Return the part that a resumed run must share with the run it continues."""
        free = {'output', 'resume', 'trackers', 'workers', 'checkpoint_every', 'compile', 'cuda_graphs'}
        parts = {'data': {'data_dir', 'download'}, 'evaluation': {'batch_size'}}
        decides = self.model_dump(mode='json', exclude={**dict.fromkeys(free, True), **parts})
        # Where the Hub's files are kept.
        decides['model'].pop('cache_dir', None)
        return decides

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode='json'), sort_keys=False)


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides.

    A recipe may start from another one: `base: ../cifar100_lt_r100/bcl.yaml` (relative to the file); its own keys win,
    and another objective takes the place of the base's with all its options. The same holds of overrides.

    Args:
        path: a YAML file.
        overrides: such as `optimizer.lr=0.1` or `data.name=cifar100_lt_r50`; values are YAML, but names and folders
            are taken as they stand, unless in quotes.

    Raises:
        RecipeError: if a file is missing or not YAML, a key is unknown, or a value is of the wrong type or out of
            range. The message names the nearest valid key.
    """
    config = _read(Path(path), ())
    for override in overrides:
        key, equals, _ = override.partition('=')
        if not equals or not key:
            raise RecipeError(f'{override!r} is not of the form key=value, such as optimizer.lr=0.1')
    try:
        changes = functools.reduce(_merge, map(_parse_override, overrides), OmegaConf.create())
        merged = OmegaConf.to_container(_merge(config, changes), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(f'{" ".join([str(path), *overrides])}: {one_line(error)}') from error
    except TypeError as error:
        raise RecipeError(
            f'{" ".join(overrides)}: an entry of a list cannot be changed by itself: give the whole list'
        ) from error
    return check_recipe(merged, path)


def check_recipe(content: Any, place: str | os.PathLike[str]) -> Recipe:
    """Return a recipe from its keys and values, with defaults for those that are not there.

    Args:
        content: as a recipe file holds it, or `Recipe.decides_result` returned it.
        place: where it was read, for the error.

    Raises:
        RecipeError: if a key is unknown or missing, or a value is not possible.
    """
    try:
        written = json.dumps(content)
    except TypeError as error:
        raise RecipeError(f'{place}: {one_line(error)}; write numbers, words, lists and keys') from error
    for key, value in (flattened(content) if isinstance(content, dict) else {}).items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            # As a file's name may have it.
            raise RecipeError(f'{place}: {key} is {value!r}, which is no UTF-8: give it another name') from error
    try:
        # Strict, so that true is no 1; from JSON, where lists stand for tuples and texts for paths.
        return Recipe.model_validate_json(written, strict=True)
    except ValidationError as error:
        raise RecipeError(f'{place}: {_explain(error)}') from error


def flattened(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return the values of a recipe's keys and values, by their whole keys, such as data.name."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values.update(flattened(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value})
    return values


def with_bases(path: Path) -> Iterator[Path]:
    """Yield a recipe file that can be loaded, and those that it starts from, as absolute paths."""
    base: str | None = path.name
    while base is not None:
        path = (path.parent / base).resolve()
        yield path
        base = OmegaConf.select(OmegaConf.load(path), 'base')


def _read(path: Path, seen: tuple[Path, ...]) -> Any:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob('*.yaml')], n=1, cutoff=0.3)
        hint = f'; did you mean {path.parent / near[0]}?' if near else ''
        raise RecipeError(f'there is no recipe file {path}{hint}')
    if path.resolve() in seen:
        raise RecipeError(f'{path} is its own base')
    try:
        config = OmegaConf.load(path)
    except PermissionError:
        raise
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f'{path} is not a YAML file of keys: {one_line(error)}') from error
    if not isinstance(config, DictConfig):
        raise RecipeError(f'{path} holds a list, a recipe is a mapping of keys')
    try:
        base = config.pop('base', None)
    except OmegaConfBaseException as error:
        raise RecipeError(f'{path}: base: {one_line(error)}') from error
    if base is None:
        return config
    if not isinstance(base, str):
        raise RecipeError(f'{path}: base is the name of one recipe file, not {base!r}')
    start = _read(path.parent / base, (*seen, path.resolve()))
    try:
        return _merge(start, config)
    except (OmegaConfBaseException, TypeError) as error:
        raise RecipeError(f'{path} does not go with its base {base}: {one_line(error)}') from error


def _merge(config: DictConfig, change: Any) -> Any:
    """Return `config` with the keys of `change`; another objective starts without the options of the former."""
    before, after = (
        OmegaConf.select(tree, 'objective.name', throw_on_resolution_failure=False) for tree in (config, change)
    )
    if before is not None and after not in (None, before):
        config.pop('objective', None)
    return OmegaConf.merge(config, change)


def _parse_override(override: str) -> DictConfig:
    """Return `key=value` as a tree."""
    key, _, value = override.partition('=')
    if key not in _PLACES or value in ('', 'null', '~') or value[0] in '"\'':
        return OmegaConf.from_dotlist([override])
    tree = OmegaConf.create()
    # What OmegaConf would take for a reference to another key.
    OmegaConf.update(tree, key, value.replace('${', r'\${'))
    return tree


def _fields(part: Any) -> dict[str, Any]:
    """Return the keys of a part of the recipe with their types, none for a plain value; those of `X | None` are X's."""
    part = next((option for option in get_args(part) if option is not type(None)), part)
    if not isinstance(part, type):
        return {}
    if dataclasses.is_dataclass(part):
        return get_type_hints(part)
    return {name: field.annotation for name, field in part.model_fields.items()} if issubclass(part, BaseModel) else {}


def _keys(part: Any) -> Iterator[str]:
    """Yield the keys of a part of the recipe and of its parts, such as data, data.name."""
    for name, inner in _fields(part).items():
        yield name
        yield from (f'{name}.{key}' for key in _keys(inner))


def _part(location: Sequence[str]) -> Any:
    """Return the type of what stands at a place in the recipe."""
    part: Any = Recipe
    for name in location:
        part = _fields(part).get(name)
    return part


def _location(place: Sequence[int | str]) -> list[str]:
    """Return the keys of pydantic's place of an error, without the form of a value that it tried."""
    location: list[str] = []
    part: Any = Recipe
    for name in place:
        fields = _fields(part)
        if not fields and isinstance(name, str):
            break
        location.append(str(name))
        part = fields.get(str(name))
    return location


def _explain(error: ValidationError) -> str:
    """Turn one of pydantic's findings into a sentence with the nearest valid key."""
    # A key that is misspelled is missing, too.
    first = min(error.errors(), key=lambda e: e['type'] not in _UNKNOWN)
    location = _location(first['loc'])
    key = '.'.join(location)
    if first['type'] in _UNKNOWN:
        *parents, leaf = location
        part = _part(parents)
        elsewhere = [key for key in _keys(Recipe) if key.split('.')[-1] == leaf]
        fields = _fields(part)
        near = [field for field in fields if leaf in field] or difflib.get_close_matches(leaf, fields, n=1)
        if len(elsewhere) == 1:
            hint = f'did you mean {elsewhere[0]}?'
        elif near:
            hint = f'did you mean {".".join([*parents, near[0]])}?'
        else:
            hint = f'valid here: {", ".join(fields)}'
        return f'there is no key {key}; {hint}'
    if first['type'] == 'missing':
        return f'the key {key} is missing'
    if isinstance(first['input'], str) and 'name' in _fields(_part(location)):
        return f'{key} is a group of keys and no word: write {key}.name={first["input"]}'
    # One for each form that a value may have.
    reasons = dict.fromkeys(
        e['msg'].removeprefix('Value error, ') for e in error.errors() if _location(e['loc']) == location
    )
    message = ', or: '.join(reasons)
    value = first['input']
    shown = f' is {value!r}' if isinstance(value, (str, int, float, bool, type(None))) else ''
    return f'{key}{shown}: {message[0].lower()}{message[1:]}'.removeprefix(': ')
