"""Scores for people and programs: a table, a CSV of classes, a plot."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltzoo.data.shots import SHOT_COLOURS, shot_classes
from ltzoo.files import drawable, save_figure

__all__ = ['format_scores', 'per_class_csv', 'plot_accuracy', 'predictions_csv']

# Those of before lack the last two.
_CLASS_COLUMNS = ('class', 'name', 'train_count', 'test_count', 'accuracy', 'predicted_count', 'precision')


def format_scores(results: Mapping[str, Any]) -> str:
    """Return the table of a results dictionary, in percent: `Scores.to_json_dict` with `model` and `data`."""
    held_out = ' of a hold-out' if results.get('split') == 'holdout' else ''
    rows = [
        ('top-1', results['top1'], f'{results["samples"]:,} images{held_out}'),
        ('Many', results['many'], ''),
        ('Medium', results['medium'], ''),
        ('Few', results['few'], ''),
        ('balanced', results['balanced_accuracy'], ''),
        ('ECE', results['ece'], ''),
        *((name, value, 'test distribution') for name, value in results.get('shifted', {}).items()),
    ]
    changes = {'tau': 'logits adjusted', 'tau_norm': 'classifier normalised'}
    adjusted = ''.join(f', {done} with tau = {results[key]:g}' for key, done in changes.items() if key in results)
    lines = [f'{results["model"]} on {results["data"]}{adjusted}']
    for name, value, note in rows:
        shown = 'none' if value is None else f'{value:.2f}'
        lines.append(f'  {name:<12}{shown:>7}  {note}'.rstrip())
    return '\n'.join(lines)


def per_class_csv(results: Mapping[str, Any]) -> str:
    """Return the table of classes as CSV.

    A class without test images has an empty accuracy, one that none was taken for an empty precision.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _CLASS_COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(results['per_class'])
    return text.getvalue()


def predictions_csv(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Return as CSV, a line for each image, what `evaluate_model` says of every image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['path', 'label', 'prediction', 'confidence'])
    for row in predictions:
        writer.writerow([row['path'], row['label'], row['prediction'], f'{row["confidence"]:.4f}'])
    return text.getvalue()


def plot_accuracy(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the accuracy of every class against its number of training images.

    Args:
        results: `Scores.to_json_dict` with `model`, `data`, `many_above` and `few_below`.
        path: a PNG, PDF or SVG file to write, whole or not at all.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the ending of `path` is of no image format.
        ImportError: without Matplotlib (`pip install 'ltzoo[plots]'`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    tested = [row for row in results['per_class'] if row['accuracy'] is not None]
    groups = shot_classes(np.array([row['train_count'] for row in tested]), results['many_above'], results['few_below'])
    for shot, members in groups.items():
        rows = [tested[i] for i in members]
        if rows:
            counts = [row['train_count'] for row in rows]
            axes.scatter(
                counts,
                [row['accuracy'] for row in rows],
                s=max(8, 36 - len(tested) // 40),
                color=SHOT_COLOURS[shot],
                alpha=0.7,
                linewidths=0,
                label=f'{shot.capitalize()}: {results[shot]:.1f}',
            )
            axes.hlines(results[shot], min(counts), max(counts), color=SHOT_COLOURS[shot], linewidth=1)
    axes.set_xscale('symlog', linthresh=1)
    axes.set_xlim(left=0 if any(row['train_count'] == 0 for row in tested) else 0.9)
    axes.set_ylim(-3, 103)
    axes.set_xlabel('training images of the class')
    axes.set_ylabel('test accuracy (%)')
    title = drawable(f'{results["model"]} on {results["data"]}: top-1 {results["top1"]:.1f}')
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, Path(path))
