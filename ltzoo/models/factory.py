"""Models by name: the zoo's, any of timm's, saved ones."""

from __future__ import annotations

import difflib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn as nn
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import create_transform, resolve_input_data_config
from timm.data.transforms import str_to_interp_mode
from timm.models import PretrainedCfg, get_deprecated_models, is_model, load_checkpoint, split_model_name_tag
from torch import Tensor
from torchvision import transforms

from ltzoo.errors import LtzooError, is_out_of_memory, one_line
from ltzoo.models.download import fetch, fetch_named
from ltzoo.models.entries import NoWeightsError, entry_of, get_results
from ltzoo.models.lt_zoo import METHODS, PLACES, ZOO, ZooEntry

__all__ = [
    'ModelArgumentError',
    'ModelFilesError',
    'UnknownModelError',
    'check_model_name',
    'create_model',
    'create_model_and_transforms',
    'get_pretrained_cfg',
    'list_models',
    'list_pretrained',
]

Transform = Callable[[Image.Image], Tensor]

# The files of ours that register models; the name of a file is what timm calls a module.
_MODULES = ['cifar_resnet', 'lt_experts', 'lt_zoo']
_TIMM = 'timm/'
_LOCAL = 'local-dir:'
_HUB = 'hf-hub:'
_WEIGHTS = 'model.safetensors'
_FORMS = 'timm/NAME, local-dir:PATH or hf-hub:ORG/NAME'
# Arguments that users do not give, or that do not make the model.
_OURS = {'pretrained_cfg_overlay', 'cache_dir', 'backbone'}
# What making a model ends with where arguments or files are wrong.
_OF_ARGUMENTS_OR_FILES = (
    TypeError, ValueError, ArithmeticError, AssertionError, LookupError, AttributeError, RuntimeError, SafetensorError,
)  # fmt: skip
# What timm takes from a config.json without looking.
_CONFIG = {'num_classes': int, 'model_args': dict, 'pretrained_cfg': dict}
# What its old, flat form has besides the fields of a PretrainedCfg.
_FLAT_CONFIG = {'num_features', 'labels'}
# Images up to this side are trained on padded crops, as CIFAR is; larger ones on random resized crops.
_SMALL_IMAGE = 64


class UnknownModelError(LtzooError, ValueError):
    """A name that no model has; the message gives the nearest ones."""


class ModelArgumentError(LtzooError, TypeError):
    """An argument that the model does not take."""


class ModelFilesError(LtzooError, OSError):
    """A folder that holds no usable model."""


def list_models(
    filter: str | Sequence[str] = '',
    *,
    exclude_filters: str | Sequence[str] = '',
    include_tags: bool | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Return the names of ltzoo's models.

    Args:
        filter: wildcards, one or several: `'resnet32*'`, `'*.cifar100_lt_*'`.
        exclude_filters: wildcards of names to leave out.
        include_tags: one name for each tag; by default if a filter has a tag or `pretrained` is set.
        pretrained: only those with published weights.
    """
    wanted, unwanted = ([f] if isinstance(f, str) and f else list(f or ()) for f in (filter, exclude_filters))
    if include_tags is None:
        include_tags = pretrained or any('.' in f for f in (*wanted, *unwanted))
    return timm.list_models(
        wanted, _MODULES, pretrained=pretrained, exclude_filters=unwanted, include_tags=include_tags
    )


def list_pretrained(
    filter: str | Sequence[str] = '',
    *,
    exclude_filters: str | Sequence[str] = '',
    data: str | None = None,
    method: str | None = None,
) -> list[str]:
    """Return the names, with tags, of ltzoo's models that have published weights; `get_results` says what they score.

    Args:
        filter, exclude_filters: as in `list_models`.
        data: only those trained on this data set, such as `cifar100_lt_r100`.
        method: only those trained this way: `ce`, `focal`, `ldam_drw`, `ldam_drw_sam`, `crt`, `lws`, `ride`,
            `bs`, `bcl`, `bcl_sam`, `gkpgsa_paper` or `gkpgsa`.

    Raises:
        UnknownModelError: if the zoo has no such data set or method.
    """
    for key, value, known in (('data', data, {e.tag for e in ZOO.values()}), ('method', method, set(METHODS))):
        if value is not None and value not in known:
            raise UnknownModelError(f'the zoo has no {key} {value!r}: it can be {", ".join(sorted(known))}')
    names = list_models(filter, exclude_filters=exclude_filters, pretrained=True)
    return [name for name in names if data in (None, ZOO[name].tag) and method in (None, ZOO[name].method)]


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """Return what is known about a model's weights and images: where they are, classes, input size, mean and std.

    Args:
        name: a zoo name, with or without a tag, or `timm/NAME`.

    Raises:
        UnknownModelError: if there is no such model or tag.
    """
    if name.startswith((_LOCAL, _HUB)):
        raise UnknownModelError(f'{name} is a saved model, which has it itself: create_model({name!r}).pretrained_cfg')
    name = _check_name(name)
    stock = name.removeprefix(_TIMM)
    # Networks of one's own may be registered without one.
    return cast(PretrainedCfg, timm.get_pretrained_cfg(stock) or PretrainedCfg(architecture=stock))


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a model by name.

    Args:
        name: a zoo name, with or without a tag (`resnet32_cifar_bcl.cifar100_lt_r100`); an architecture of ours
            (`resnet32_cifar`); any timm model as `timm/NAME`; a saved one as `local-dir:PATH` or
            `hf-hub:ORG/NAME[@REVISION]`.
        pretrained: load its weights. For `timm/NAME` with a cosine head these are the backbone's.
        **kwargs: what the model takes: `num_classes` (by default that of the tag; 0 leaves the classifier out),
            `in_chans`, `drop_rate`, `features_only`; `head` ('linear' or 'cosine') and `head_scale` (what a cosine head
            multiplies cosines by, 30 by default); and what
            `timm.create_model` takes, such as `checkpoint_path`, `cache_dir`, `device`.

    Returns:
        The model, from images of shape (N, in_chans, H, W) to logits of shape (N, num_classes).

    Raises:
        UnknownModelError: if no model has that name.
        NoWeightsError: if `pretrained` and none are published, or of `timm/NAME` only in a pickle.
        DownloadError: if what is published cannot be had from the Hub, is a pickle, or is not what it should be.
        ModelFilesError: if the folder of a `local-dir:` name holds no usable model, or `checkpoint_path` is no
            checkpoint of the model.
        ModelArgumentError: if the model does not take an argument, or it is out of range.
        HeadError: if there is no such head, or the model cannot have it.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f'a model has a name, such as resnet32_cifar_bcl, not {name!r}')
    checkpoint = kwargs.pop('checkpoint_path', None)
    if checkpoint and not Path(checkpoint).is_file():
        raise ModelFilesError(f'there is no file {checkpoint}: checkpoint_path takes the file of a state dict')
    for key, least in (('num_classes', 0), ('in_chans', 1)):
        value = kwargs.get(key)
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise ModelArgumentError(f'{key} must be a whole number, {least} or more, not {value!r}')
        if value is not None:
            # NumPy's would not go into a config.json.
            kwargs[key] = int(value)
    for key in ('drop_rate', 'drop_path_rate'):
        rate = kwargs.get(key)
        if rate is not None and not (isinstance(rate, Real) and 0 <= float(rate) <= 1):
            raise ModelArgumentError(f'{key} must lie between 0 and 1, not {rate!r}')
    try:
        _device(kwargs)
    except RuntimeError as error:
        raise ModelArgumentError(f'device {kwargs["device"]!r} does not exist: write cpu, cuda, cuda:1, mps') from error
    model: Any = _create(name, pretrained, kwargs)
    config = getattr(model, 'pretrained_cfg', None) or {}
    names, classes = config.get('label_names'), kwargs.get('num_classes')
    if names and classes and classes != len(names):
        # They are those of the classes that it was published for.
        model.pretrained_cfg = model.default_cfg = {**config, 'label_names': None}
    if checkpoint:
        _load_checkpoint(model, Path(checkpoint), name)
    return model


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    name, kwargs = _with_tag(name, kwargs)
    entry, weights = _locate(name, pretrained, kwargs)
    if name.startswith(_TIMM):
        if kwargs.get('head') in (None, 'linear'):
            # A plain timm model: it must not carry arguments that timm, reading it back, would not know.
            kwargs = {key: value for key, value in kwargs.items() if key not in ('head', 'head_scale')}
        else:
            entry, kwargs = 'lt_timm', {'backbone': entry, **kwargs}
    try:
        if weights is None:
            return timm.create_model(entry, pretrained=pretrained, **kwargs)
        # Files of timm's models may need what its loader does to them.
        model = None if name.startswith(_TIMM) else _assigned(entry, weights, kwargs)
        if model is not None:
            return model
        if not entry.startswith(_LOCAL):
            # What timm would load by a rule of the model's is its makers' file, not the safetensors.
            overlay = kwargs.get('pretrained_cfg_overlay') or {}
            kwargs = {**kwargs, 'pretrained_cfg_overlay': {**overlay, 'file': str(weights), 'custom_load': False}}
        return timm.create_model(entry, pretrained=True, **kwargs)
    except LtzooError:
        raise
    except OSError as error:
        raise ModelFilesError(f'{name} cannot be loaded: {one_line(error)}') from error
    except _OF_ARGUMENTS_OR_FILES as error:
        reason, given = one_line(error), _given(kwargs)
        if 'No pretrained weights exist' in reason:
            raise NoWeightsError(f'the pretrained_cfg given for {name} names no weights') from error
        if isinstance(error, SafetensorError) or 'loading state_dict' in reason:
            asked = f', or do not go with {given}' if given else ''
            raise ModelFilesError(f'the weights of {name} are damaged or of another model{asked}: {reason}') from error
        if isinstance(error, torch.OutOfMemoryError) or (not given and is_out_of_memory(error)):
            raise
        if given:
            raise ModelArgumentError(f'{name} cannot be made with {given}: {reason}') from error
        if not entry.startswith(_LOCAL):
            raise
        raise ModelFilesError(f'{name} cannot be made with the arguments in its config.json: {reason}') from error


def _given(kwargs: dict[str, Any]) -> str:
    """Return, for a message, the arguments that a user gave."""
    return ', '.join(f'{key}={value!r}' for key, value in kwargs.items() if key not in _OURS)


def _load_checkpoint(model: nn.Module, file: Path, name: str) -> None:
    """Load what `checkpoint_path` names, as timm does."""
    try:
        load_checkpoint(model, str(file))
    except Exception as error:  # Reading a damaged file can end in anything.
        reason = one_line(error)
        if 'weights_only' in reason:
            reason = 'it is no state dict, or holds more than tensors, and reading that could run code'
        elif not isinstance(error, RuntimeError):
            reason = f'{type(error).__name__}: {reason}'
        raise ModelFilesError(f'{file} is no checkpoint of {name}: {reason}') from error


def create_model_and_transforms(
    name: str, pretrained: bool = False, **kwargs: Any
) -> tuple[nn.Module, Transform, Transform]:
    """Create a model with the transforms that turn a PIL image into its input: float32 of shape (C, H, W), normalised.

    Models of three channels, or of one, take grey images and those of any colour mode, but for 32-bit numbers, whose
    range is not known; those of another number of channels take pictures with just as many.

    Args:
        name, pretrained, **kwargs: as in `create_model`.

    Returns:
        The model, the transform for training (crop and flip) and the one for evaluation.

    Raises:
        As `create_model`; the transforms a ValueError for an image of 32-bit numbers.
    """
    model = create_model(name, pretrained, **kwargs)
    config = resolve_input_data_config(model)
    height, width = config['input_size'][1:]
    if max(height, width) > _SMALL_IMAGE:
        train = create_transform(**config, is_training=True, color_jitter=0.0)
    else:
        train = transforms.Compose(
            [
                transforms.Resize(min(height, width), str_to_interp_mode(config['interpolation'])),
                transforms.RandomCrop((height, width), padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config['mean'], config['std']),
            ]
        )
    in_colours = {3: [_in_rgb], 1: [_in_grey]}.get(config['input_size'][0], [])
    return model, *(transforms.Compose([*in_colours, *made.transforms]) for made in (train, create_transform(**config)))


def _in_rgb(image: Any) -> Any:
    """Return a picture as the data sources read it from a file; what is no picture is left to the transforms."""
    from ltzoo.data.images import as_rgb

    return as_rgb(image) if isinstance(image, Image.Image) else image


def _in_grey(image: Any) -> Any:
    """Return a picture as one of grey levels, for a model of one channel."""
    return _in_rgb(image).convert('L') if isinstance(image, Image.Image) else image


def check_model_name(name: str) -> None:
    """Refuse a name that no model has, or a folder that holds none; the Hub is not asked.

    Raises:
        UnknownModelError: if it is no name.
        ModelFilesError: if it is no folder of a model.
    """
    if not name.startswith(_HUB):
        _locate(name, False, {})


def _with_tag(name: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a name and arguments in which a tag, that timm also takes as `pretrained_cfg`, is part of the name."""
    cfg = kwargs.get('pretrained_cfg')
    if cfg and name.startswith((_LOCAL, _HUB)):
        raise ModelArgumentError(f'{name} has a pretrained_cfg of its own, in its config.json')
    if cfg and not isinstance(cfg, str):
        return name, kwargs
    kwargs = {key: value for key, value in kwargs.items() if key != 'pretrained_cfg'}
    # As timm does, it takes '' and None for none given.
    return f'{split_model_name_tag(name)[0]}.{cfg}' if cfg else name, kwargs


def _check_name(name: str) -> str:
    """Return a zoo name or `timm/NAME`, the present one where timm has renamed it.

    Raises:
        UnknownModelError: if it is neither.
    """
    ours = list_models()
    theirs = set(timm.list_models()).difference(ours, timm.list_models(module='lt_timm'))
    base, dot, tag = name.partition('.')
    stock = base.removeprefix(_TIMM)
    if base.startswith(_TIMM) and (present := get_deprecated_models().get(stock)):
        warnings.warn(f'{base} is called {_TIMM}{present} now', stacklevel=4)
        # The tag that timm gives the name is that of the old weights.
        name = f'{_TIMM}{split_model_name_tag(present)[0]}.{tag}' if dot else _TIMM + present
        base, dot, tag = name.partition('.')
        stock = base.removeprefix(_TIMM)
    if base in ours or (base.startswith(_TIMM) and stock in theirs):
        tags = [n.partition('.')[2] for n in timm.list_models(f'{stock}.*', include_tags=True)]
        if dot and tag not in tags:
            instead = f'it can be {", ".join(tags)}' if tags else f'write {base}'
            raise UnknownModelError(f'{base} has no tag {tag!r}: {instead}')
        return name
    if base in theirs:
        raise UnknownModelError(f"no model of ltzoo is called {name!r}; timm's is {_TIMM}{name}")
    known = [_TIMM + other for other in theirs] if base.startswith(_TIMM) else ours
    near = difflib.get_close_matches(base, known, n=3)
    hint = f'the nearest are {", ".join(near)}' if near else f'write a name of list_models(), {_FORMS}'
    raise UnknownModelError(f'no model is called {name!r}: {hint}')


def weights_file(entry: ZooEntry, cache_dir: str | Path | None = None) -> Path:
    """Return the file with a published model's weights: that in this package, else the Hub's, verified.

    Args:
        entry: row of the zoo's table.
        cache_dir: where the Hub's files are kept, by default where its client keeps them.

    Raises:
        NoWeightsError: if none are published.
        DownloadError: if they cannot be had.
    """
    results = get_results(entry.full_name)
    assert entry.folder is not None
    bundled = entry.folder / _WEIGHTS
    if bundled.is_file():
        return bundled
    folder = fetch(entry.hub_id, files=(_WEIGHTS,), sha256=results['sha256'], cache_dir=cache_dir)
    return folder / _WEIGHTS


def _locate(name: str, pretrained: bool, kwargs: dict[str, Any]) -> tuple[str, Path | None]:
    """Return what timm calls a model, and the file with its weights, where they are wanted and we know it."""
    cache_dir = kwargs.get('cache_dir')
    called = name.removeprefix(_LOCAL)
    if name.startswith(_HUB):
        files = ('config.json', _WEIGHTS) if pretrained else ('config.json',)
        name = _LOCAL + str(fetch_named(name, files=files, cache_dir=cache_dir))
    if name == _LOCAL:
        raise ModelFilesError(f'{_LOCAL} names no folder: write local-dir:PATH')
    if name.startswith(_LOCAL):
        # Shells leave a ~ behind a colon alone.
        folder = Path(os.path.expanduser(name.removeprefix(_LOCAL)))
        _check_folder(folder, pretrained, called)
        return f'{_LOCAL}{folder}', folder / _WEIGHTS if pretrained else None
    name = _check_name(name)
    entry = name.removeprefix(_TIMM)
    overlay = kwargs.get('pretrained_cfg_overlay') or {}
    if not pretrained or kwargs.get('pretrained_cfg') or overlay.keys() & PLACES:
        return entry, None
    ours = entry_of(name)
    if ours is not None and ours.folder is not None:
        return entry, weights_file(ours, cache_dir)
    cfg = get_pretrained_cfg(name)
    if not cfg.has_weights:
        if ours is None:
            raise NoWeightsError(
                f'{name} is an architecture without published weights: train it (pretrained=False creates it '
                'untrained) or take a name of ltzoo.list_pretrained()'
            )
        none_yet = f'no weights are published yet for {ours.full_name}'
        command = f'accelerate launch recipes/train.py {ours.recipe}'
        raise NoWeightsError(f'{none_yet}; this makes them: {command}')
    file = cfg.hf_hub_filename or _WEIGHTS
    if not cfg.hf_hub_id or not file.endswith('.safetensors'):
        place = cfg.url or f'hf-hub:{cfg.hf_hub_id}'
        raise NoWeightsError(
            f'{name} has no safetensors, only a pickle, which can run code when it is read: if you trust {place}, '
            f'download it and run tools/convert.py FILE --from timm --arch {cfg.architecture} --to DIR'
        )
    return entry, fetch(cfg.hf_hub_id, files=(file,), cache_dir=cache_dir) / file


def _device(kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device asked for, which may be a number, 0 among them; else PyTorch's default one."""
    return torch.get_default_device() if kwargs.get('device') is None else torch.device(kwargs['device'])


def _assigned(entry: str, weights: Path, kwargs: dict[str, Any]) -> nn.Module | None:
    """Build a model without memory and put the file's tensors in its places, which spares initialising and copying.

    Returns:
        The model; None where that cannot be done: the file is of another shape than the model asked for, which timm
        adapts, or part of the model is in no file, or it is wanted on another device than the CPU.
    """
    if _device(kwargs).type != 'cpu':
        return None
    try:
        with torch.device('meta'):
            model = timm.create_model(entry, pretrained=False, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Some networks compute with their own weights when they are made.
        return None
    wanted = model.state_dict()
    if any(name not in wanted for name, _ in model.named_buffers()):
        return None
    # Copies: the tensors themselves lie in the file, and change with it.
    state = {key: value.clone() for key, value in load_file(weights).items()}
    if wanted.keys() != state.keys() or any(
        wanted[key].shape != value.shape or wanted[key].dtype != value.dtype for key, value in state.items()
    ):
        return None
    model.load_state_dict(state, assign=True)
    return model


def _are_numbers(values: Any, above: float) -> bool:
    """Return whether these are one or more finite numbers above another."""
    if not isinstance(values, (list, tuple)) or not values:
        return False
    return all(isinstance(x, (int, float)) and math.isfinite(x) and x > above for x in values)


def _check_folder(folder: Path, pretrained: bool, called: str) -> None:
    """Refuse a folder without a usable model; `called` is its name in messages."""
    # Not by `Path`, which raises an error for a name that is too long.
    if not os.path.isdir(folder):
        raise ModelFilesError(
            f'there is no folder {folder}: local-dir: takes one with config.json and model.safetensors'
        )
    config = f'{called}/config.json'
    try:
        content = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        architecture = content['architecture']
        if architecture == 'lt_timm':
            architecture = content['model_args']['backbone']
        for key, kind in _CONFIG.items():
            if not isinstance(content.get(key, kind()), kind):
                raise TypeError(f'{key} is {content[key]!r}')
        # Without a pretrained_cfg, timm takes the whole file for one, as it once wrote it.
        flat = {key: value for key, value in content.items() if key not in _FLAT_CONFIG}
        cfg = PretrainedCfg(**content.get('pretrained_cfg', flat))
        str_to_interp_mode(cfg.interpolation)
        if not all(type(side) is int and side > 0 for side in cfg.input_size):
            raise ValueError(f'input_size is {cfg.input_size!r}')
        for key in ('mean', 'std'):
            numbers = getattr(cfg, key)
            if numbers is not None and not _are_numbers(numbers, above=0 if key == 'std' else -math.inf):
                raise ValueError(f'{key} is {numbers!r}')
        if cfg.crop_pct is not None and not _are_numbers([cfg.crop_pct], above=0):
            raise ValueError(f'crop_pct is {cfg.crop_pct!r}')
        names = content.get('label_names', cfg.label_names)
        listed = isinstance(names, (list, tuple)) and all(isinstance(name, (str, int)) for name in names)
        if not (names is None or isinstance(names, dict) or listed):
            raise ValueError(f'label_names is {str(names)[:80]}')
    except FileNotFoundError as error:
        raise ModelFilesError(f'{called} holds no exported model: config.json is missing') from error
    except OSError as error:
        raise ModelFilesError(f'{config} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise ModelFilesError(f'{config} is not the configuration of a timm model: {reason}') from error
    if not isinstance(architecture, str) or not is_model(architecture):
        raise ModelFilesError(f'{config} names the architecture {architecture!r}, which neither timm nor ltzoo has')
    if not pretrained:
        return
    try:
        (folder / _WEIGHTS).open('rb').close()
    except FileNotFoundError as error:
        raise ModelFilesError(f'{called} has no weights: {_WEIGHTS} is missing') from error
    except OSError as error:
        raise ModelFilesError(f'{called}/{_WEIGHTS} cannot be read: {error.strerror}') from error
