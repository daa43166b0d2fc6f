"""The folder of a converted checkpoint: another project's weights, with a card that says so and has no scores."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltzoo.data import DataError, check_data_name, without_folders
from ltzoo.hub.card import PLACE, front_matter, usage
from ltzoo.hub.export import write_folder
from ltzoo.models.checkpoints import Converted
from ltzoo.models.download import file_hash
from ltzoo.models.lt_zoo import DATA, Data
from ltzoo.models.papers import citation

__all__ = ['export_converted', 'images_of']

# What of a model's configuration is about the architecture, and not about somebody's weights of it.
_ARCHITECTURE = ('architecture', 'input_size', 'pool_size', 'fixed_input_size', 'first_conv', 'classifier')


def export_converted(converted: Converted, folder: Path, *, data: str | None = None, force: bool = False) -> None:
    """Write `model.safetensors`, `config.json` and the card `README.md` of a converted checkpoint.

    `ltzoo.create_model('local-dir:FOLDER', pretrained=True)` loads it. The block `converted_from` of config.json says
    what it was made from.

    Args:
        converted: what `convert` returned.
        folder: where to; it appears whole or not at all.
        data: the data set it was trained on, as `load_data` takes it; it decides how images are normalised.
        force: replace what is in `folder`.

    Raises:
        ExportError: if `folder` holds something and `force` is not given, or it cannot be written.
        DataError: if there is no such data set, or it has another number of classes.
    """
    model: Any = converted.model
    images = images_of(converted, data)
    family = converted.family
    source = {
        'family': family.name,
        'repository': family.repository,
        'file': converted.file.name,
        'sha256': file_hash(converted.file),
        'data': None if data is None else without_folders(data),
        'options': dict(converted.options),
        'dropped': converted.dropped,
    }
    cfg = {key: model.pretrained_cfg[key] for key in _ARCHITECTURE if key in model.pretrained_cfg}
    cfg |= {'num_classes': model.num_classes, 'license': 'other'}
    if family.paper:
        cfg |= {'paper_name': family.paper.title, 'paper_ids': family.paper.id}
    model.pretrained_cfg = model.default_cfg = cfg
    write_folder(
        model, folder, {'converted_from': source}, images, lambda _: _card(converted, source, images), force=force
    )


def images_of(converted: Converted, data: str | None = None) -> dict[str, Any]:
    """Return how images are fed: input_size, mean, std, crop_pct, interpolation.

    They are those of the data set, without one those of the benchmark that the network is usually trained on (by the
    size of its images and its number of classes), except for what the family has otherwise.

    Raises:
        DataError: if there is no such data set, or it has another number of classes.
    """
    model: Any = converted.model
    small = model.pretrained_cfg['input_size'][-1] <= 64
    row = _row(data, model.num_classes) or DATA['cifar' if small else 'imagenetlt']
    if data is None and not small and model.num_classes in DATA['inat18'].classes.values():
        row = DATA['inat18']
    usual = {'input_size': row.input_size, 'mean': row.mean, 'std': row.std, 'crop_pct': row.crop_pct}
    images = {**usual, 'interpolation': 'bilinear', **converted.network.images}
    channels = converted.network.arguments.get('in_chans', 3)
    if channels != 3:
        # As timm does: the mean over the colours.
        images['input_size'] = (channels, *images['input_size'][1:])
        images |= {key: (statistics.fmean(images[key]),) * channels for key in ('mean', 'std')}
    return images


def _row(data: str | None, num_classes: int) -> Data | None:
    for row in DATA.values():
        if data in row.classes:
            if row.classes[data] != num_classes:
                raise DataError(f'{data} has {row.classes[data]} classes, the checkpoint has {num_classes}')
            return row
    if data is not None:
        check_data_name(data)
    return None


def _card(converted: Converted, source: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    model: Any = converted.model
    family = converted.family
    network = converted.network.model.removeprefix('timm/')
    title = f'{family.name} checkpoint {converted.file.name}'
    front = front_matter(title, 'other')
    lines = [
        f'- Architecture: {network}, {model.num_classes} classes',
        f'- File: {converted.file.name}, SHA-256 {source["sha256"]}',
    ]
    if family.repository:
        lines.append(f'- Layout: github.com/{family.repository}')
    cited = ''
    if family.paper:
        lines.append(f'- Paper: {family.paper.title} ({family.paper.id})')
        cited = citation(family.paper.title, family.paper.id)
    if source['data']:
        lines.append(f'- Data, as told to the converter: {source["data"]}')
    lines += [f'- {key}: {value:g}' for key, value in source['options'].items()]
    if converted.network.by_frequency:
        lines.append('- Classes: in the order of the data set; in the file, in the order of their frequency')
    lines += [f'- Left out: {why} ({len(names)})' for why, names in converted.dropped.items()]
    size = 'x'.join(map(str, images['input_size'][1:]))
    mean, std = (', '.join(f'{value:g}' for value in images[key]) for key in ('mean', 'std'))
    return f"""---
{front.to_yaml()}
---

# {title}

An image classifier converted by ltzoo from a checkpoint of another project. ltzoo did not train it: who made the
weights, from which data and under which licence, the file does not say.

{chr(10).join(lines)}
- Images: {size}, mean {mean}, standard deviation {std}

## Use

{usage(PLACE, pretrained=True)}

## Scores

None here. `python tools/evaluate.py local-dir:FOLDER --data {source['data'] or 'DATA'}` measures them.

## Licence

That of the weights' makers; ask them before passing this folder on.
{cited}"""
