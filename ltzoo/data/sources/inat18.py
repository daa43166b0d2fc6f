"""iNaturalist 2018: 437,513 training images of 8,142 species, 1,000 to 2 a class; 24,426 validation images.

Source: Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018;
https://github.com/visipedia/inat_comp/tree/master/2018.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, register_source
from ltzoo.data.sources._lists import ImageList, find_folder, from_lists, read_list
from ltzoo.normalisation import INAT18_MEAN, INAT18_STD

LISTS = {'train': 'iNaturalist18_train.txt', 'val': 'iNaturalist18_val.txt'}
ANNOTATIONS = {'train': 'train2018.json', 'val': 'val2018.json'}
CATEGORIES = 'categories.json'
ORIGIN = 'from https://github.com/visipedia/inat_comp/tree/master/2018 (the competition of 2018)'


@register_source('inat18')
def inat18(location: Path, download: bool) -> Dataset:
    """Read iNaturalist 2018; the validation set is its test set, as in the literature.

    The files lie in `location` itself or in `location/iNat18`. Each part is read from its list or else from the
    competition's annotations::

        iNat18/iNaturalist18_train.txt    lines such as: train_val2018/Plantae/7291/9f8e...d7.jpg 7291
        iNat18/iNaturalist18_val.txt
        iNat18/train2018.json             instead of iNaturalist18_train.txt
        iNat18/val2018.json               instead of iNaturalist18_val.txt
        iNat18/categories.json            optional: the species' names
        iNat18/train_val2018/Plantae/7291/...

    Without `categories.json`, class names are category ids. Nothing is downloaded.
    """
    folder = find_folder(location, 'iNat18', (*LISTS.values(), *ANNOTATIONS.values()))
    dataset = from_lists(
        'inat18',
        folder,
        train=_read_part(folder, 'train'),
        test=_read_part(folder, 'val'),
        class_names=_read_names(folder / CATEGORIES) if (folder / CATEGORIES).exists() else None,
        images_origin=f'get train_val2018.tar.gz {ORIGIN} and unpack or link it as {folder / "train_val2018"}',
    )
    return replace(dataset, mean=INAT18_MEAN, std=INAT18_STD)


def _read_part(folder: Path, part: str) -> ImageList:
    listed, annotated = folder / LISTS[part], folder / ANNOTATIONS[part]
    if listed.exists():
        return read_list(listed, ORIGIN)
    if not annotated.exists():
        raise MissingDataError(
            f'{listed} is missing, and so is {annotated}, which does as well: get {annotated.name} {ORIGIN}'
        )
    content = _read_json(annotated)
    try:
        files = {image['id']: image['file_name'] for image in content['images']}
        paths = [files[annotation['image_id']] for annotation in content['annotations']]
        if not all(isinstance(path, str) for path in paths):
            raise TypeError('a file_name is no text')
        labels = np.array([int(annotation['category_id']) for annotation in content['annotations']], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f'{annotated} is not in the format of the iNaturalist competition: its images must have id and file_name, '
            'its annotations image_id and category_id'
        ) from error
    return ImageList(annotated, paths, labels)


def _read_names(file: Path) -> list[str]:
    try:
        names = {category['id']: str(category['name']) for category in _read_json(file)}
        return [names[label] for label in range(len(names))]
    except (KeyError, TypeError) as error:
        raise DataError(f'{file} must be a list of categories with ids 0, 1, ... and names') from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise DataError(f'{file} is not valid JSON: {error}') from error
