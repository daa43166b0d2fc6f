"""A user's own images as a CSV file lists them."""

from __future__ import annotations

import csv
import logging
import os
import re
from pathlib import Path

import numpy as np

from ltzoo.data.dataset import DataError, Dataset, MissingDataError, Split, register_source
from ltzoo.data.images import FileImages
from ltzoo.data.sources._own import classes_of_integers, from_parts

_PARTS = ('train', 'test', 'val')

logger = logging.getLogger(__name__)


@register_source('csv', needs_location=True, takes_root=True)
def csv_file(location: Path, download: bool, root: Path | None = None) -> Dataset:
    """Read a CSV file (UTF-8, commas) whose first line names the columns path, label and, optionally, split.

    Relative paths start from `root`, by default the file's folder. Labels are class names, sorted into an order, or
    integers of 0 or more, without leading zeros, of which those that occur are the classes. The split is train, test or
    val; val rows are the validation set, which hold-outs are, or the test set if there are no test rows. Without
    either, 20 % of every class become the test set, always the same ones (`ltzoo.data.split_off`). Further columns are
    ignored.
    """
    if root is not None and not root.is_dir():
        raise MissingDataError(f'{root} is not a folder; data_dir is where the relative paths of {location} start from')
    root = root or location.parent
    rows = _read_rows(location, root)
    written = [row['label'] for row in rows]
    # Codes, such as 007, are names.
    if all(re.fullmatch(r'-?(0|[1-9]\d{0,17})', label) for label in written):
        labels = np.array([int(label) for label in written], dtype=np.int64)
        class_names, labels = classes_of_integers(labels, f'the labels of {location}')
    else:
        if all(re.fullmatch(r'-?\d+\.\d*', label) for label in written):
            logger.warning(
                'the labels of %s, such as %s, are taken for names: write whole numbers', location, written[0]
            )
        class_names = tuple(sorted(set(written)))
        label_of = {name: label for label, name in enumerate(class_names)}
        labels = np.array([label_of[name] for name in written], dtype=np.int64)
    parts = np.array([row.get('split', 'train') for row in rows])
    whole = Split(FileImages(root, [row['path'] for row in rows]), labels)
    train = whole.select(np.flatnonzero(parts == 'train'))
    others = [whole.select(np.flatnonzero(parts == part)) for part in ('test', 'val') if (parts == part).any()]
    dataset = from_parts(f'csv:{location}', [train, *others], class_names)
    for label in np.flatnonzero(dataset.class_counts == 0):
        raise DataError(f'class {class_names[label]} of {location} has no training image: give it one, or leave it out')
    return dataset


def _read_rows(file: Path, root: Path) -> list[dict[str, str]]:
    if not file.is_file():
        raise MissingDataError(f'{file} is not a file; csv takes a CSV file with the columns path and label')
    try:
        with open(file, newline='', encoding='utf-8-sig') as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, restval='', strict=True)
            columns = [name for name in ('path', 'label', 'split') if name in (reader.fieldnames or ())]
            if columns[:2] != ['path', 'label']:
                found = ','.join(reader.fieldnames or ())
                raise DataError(f'the first line of {file} must be path,label or path,label,split, not {found!r}')
            rows: list[dict[str, str]] = []
            lines: dict[str, int] = {}
            for row in reader:
                values = {name: row[name].strip() for name in columns}
                missing = [name for name in columns if not values[name]]
                if None in row or missing:
                    wrong = f'no {missing[0]}' if missing else 'more fields than the first line'
                    raise DataError(f'line {reader.line_num} of {file} has {wrong}')
                if values.get('split', 'train') not in _PARTS:
                    raise DataError(
                        f'line {reader.line_num} of {file} has split {values["split"]!r}; it must be train, test or val'
                    )
                path = os.path.abspath(root / values['path'])
                if path in lines:
                    raise DataError(
                        f'line {reader.line_num} of {file} names {values["path"]} again, after line {lines[path]}'
                    )
                lines[path] = reader.line_num
                rows.append(values)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f'{file} is not a CSV file in UTF-8: {error}') from error
    if not rows:
        raise DataError(f'{file} lists no images')
    return rows
