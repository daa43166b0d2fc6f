"""Export: a trained model as a folder that ltzoo and timm load by name."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf

from ltzoo.data import without_folders
from ltzoo.errors import LtzooError, first_of, one_line
from ltzoo.files import new_folder, require_outside
from ltzoo.hub.card import architecture_of, licence_of, model_card
from ltzoo.losses import teacher_names

__all__ = ['ExportError', 'as_published', 'check_exportable', 'check_new_folder', 'export_model', 'write_folder']


class ExportError(LtzooError, OSError):
    """A folder that cannot be exported from or to."""


def export_model(
    model: Any,
    folder: str | os.PathLike[str],
    lt: Mapping[str, Any],
    *,
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = 1.0,
    force: bool = False,
) -> None:
    """Write `model.safetensors`, `config.json` in timm's layout and the card `README.md`.

    `ltzoo.create_model('local-dir:FOLDER', pretrained=True)` gives the model back, bit by bit; so does
    `timm.create_model`, after `import ltzoo` where the architecture is ours.

    Args:
        model: made by `ltzoo.create_model`, not wrapped for training.
        folder: where to; it appears whole or not at all.
        lt: what is known of the training, JSON-able; needed are data, class_counts, class_names, many_above, few_below,
            recipe (as `Recipe.decides_result` returns it), seed, split (`test` or `holdout`), scores (`samples`, and
            `top1`, `many`, `medium`, `few`, `balanced_accuracy` and `ece` in percent, None for a shot without classes)
            and drawn_from (`Dataset.drawn_from`, by which evaluation refuses to test on images of the training);
            environment, if known. It becomes the block `lt` of config.json, which timm
            ignores; the class names become timm's `label_names`.
        input_size: channels, height, width that the model was trained for.
        mean, std: per channel, of images scaled to 0..1.
        crop_pct: share of the resized image's side that the test crop covers.
        force: replace what is in `folder`.

    Raises:
        ExportError: if `folder` holds something and `force` is not given, or it cannot be written.
        KeyError: if `lt` lacks one of these.
    """
    data_config = _as_tested({'input_size': input_size, 'mean': tuple(mean), 'std': tuple(std), 'crop_pct': crop_pct})
    config = {
        'lt': dict(lt),
        # That of these weights, not of the architecture: what is trained on from here goes by it.
        'pretrained_cfg': {'license': licence_of(model.pretrained_cfg, lt)},
        **({'label_names': list(lt['class_names'])} if lt.get('class_names') else {}),
    }
    write_folder(model, Path(folder), config, data_config, lambda cfg: model_card(lt, cfg), force=force)


def write_folder(
    model: Any,
    folder: Path,
    config: Mapping[str, Any],
    data_config: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
    *,
    force: bool = False,
) -> None:
    """Write a model, what is known of it and its card, as `export_model` does.

    Args:
        model, folder, force: as there.
        config: entries of config.json, JSON-able, which timm ignores.
        data_config: how images are fed, as timm names it.
        card: makes the card of the model's `pretrained_cfg`.

    Raises:
        ExportError: if `folder` holds something and `force` is not given, or it cannot be written.
    """
    check_new_folder(folder, force)
    # Channels-last weights would be refused; a copy leaves the trained model as it is.
    plain = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    try:
        with new_folder(folder) as made:
            save_for_hf(
                plain, str(made), model_config=dict(config), safe_serialization=True, data_config=dict(data_config)
            )
            written = json.loads((made / 'config.json').read_text(encoding='utf-8'))
            cfg = {**plain.pretrained_cfg, 'architecture': architecture_of(written)}
            (made / 'README.md').write_text(card(cfg), encoding='utf-8')
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ExportError(f'{folder} cannot be written: {getattr(error, "strerror", None) or error}') from error


def check_exportable(model: Any, config: Mapping[str, Any]) -> None:
    """Refuse, before it is trained, a model that `export_model` could not write.

    Args:
        config: `input_size`, `mean`, `std` and `crop_pct`, as there.

    Raises:
        ExportError: if it has a tensor under two names, an input size of its own that is another, or not the attributes
            of a timm model, such as `pretrained_cfg`.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    # Not of storages: on a GPU an LSTM's weights lie one behind the other in one.
    uses = Counter(tensor.data_ptr() for tensor in state.values())
    shared = [name for name, tensor in state.items() if uses[tensor.data_ptr()] > 1]
    if shared:
        raise ExportError(
            f'{type(model).__name__} has tensors under several names, which model.safetensors cannot hold: '
            f'{first_of(shared)}'
        )
    with TemporaryDirectory() as place:
        try:
            save_config_for_hf(model, str(Path(place, 'config.json')), data_config=_as_tested(config))
        except (ValueError, AttributeError) as error:
            raise ExportError(f'{type(model).__name__} cannot be exported: {one_line(error)}') from error


def _as_tested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole of how `ltzoo.evaluation.predict` feeds images that `config` says the rest of."""
    return {**config, 'interpolation': 'bilinear', 'crop_mode': 'center'}


def as_published(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose networks are named without the folders of the machine that trained it.

    Those are the network that is trained and the teachers of `ltzoo.losses.Distilled`.
    """
    model = {key: value for key, value in recipe['model'].items() if key != 'cache_dir'}
    model['name'] = without_folders(model['name'])
    if model.get('checkpoint_path'):
        model['checkpoint_path'] = Path(model['checkpoint_path']).name
    objective = dict(recipe['objective'])
    if objective['name'] == 'distilled':
        objective['teachers'] = [without_folders(name) for name in teacher_names(objective.get('teachers'))]
    return {**recipe, 'model': model, 'objective': objective}


def check_new_folder(folder: Path, force: bool) -> None:
    """Refuse a folder that holds something, unless it is a model's and may be replaced.

    Raises:
        ExportError: if so, or it is a file, or one is working in it.
    """
    try:
        if not os.path.exists(folder):
            return
        inside = [path.name for path in folder.iterdir()]
    except NotADirectoryError as error:
        raise ExportError(f'{folder} is a file; an export needs a folder') from error
    except OSError as error:
        raise ExportError(f'{folder} cannot be used: {error.strerror}') from error
    require_outside(folder, ExportError)
    if inside and 'config.json' not in inside:
        raise ExportError(f'{folder} is not empty, and holds no model that could be replaced; give a new folder')
    # As a clone of a repository has.
    others = sorted(name for name in inside if name != '.eval_results' and (folder / name).is_dir())
    if others:
        raise ExportError(f'{folder} holds a folder {others[0]}, which is no part of a model; give a new folder')
    if inside and not force:
        raise ExportError(f'{folder} is not empty; give a new folder, or --force')
