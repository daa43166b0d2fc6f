"""The plot of a run's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ltzoo.data.shots import SHOT_COLOURS
from ltzoo.files import save_figure

__all__ = ['plot_curves']


def plot_curves(log: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss and learning rate by epoch, and the hold-out accuracy where it was measured.

    Args:
        log: the lines of a run's `log.jsonl`.
        path: a PNG, PDF or SVG file to write, whole or not at all.
    """
    held_out = [line for line in log if 'holdout' in line]
    figure = Figure(figsize=(7, 6 if held_out else 4.5), layout='constrained')
    axes = figure.subplots(3 if held_out else 2, 1, sharex=True, height_ratios=[2, 2, 1] if held_out else [3, 1])
    epochs = [line['epoch'] + 1 for line in log]
    # One point makes no line.
    alone = 'o' if len(log) == 1 else None
    axes[0].plot(epochs, [line['loss'] for line in log], color='tab:blue', marker=alone)
    axes[0].set_ylabel('training loss')
    if held_out:
        at = [line['epoch'] + 1 for line in held_out]
        for key, colour in {'top1': 'black', 'balanced_accuracy': 'tab:brown', **SHOT_COLOURS}.items():
            if held_out[0]['holdout'][key] is not None:
                # Of a balanced hold-out the first two are the same.
                style = {'linestyle': '--'} if key == 'balanced_accuracy' else {}
                values = [line['holdout'][key] for line in held_out]
                axes[1].plot(at, values, label=key.replace('_', ' '), color=colour, marker='.', **style)
        axes[1].set_ylabel('hold-out accuracy (%)')
        axes[1].legend()
    axes[-1].step(epochs, [line['lr'] for line in log], where='mid', color='tab:grey', marker=alone)
    axes[-1].set_ylabel('learning rate')
    axes[-1].set_xlabel('epoch')
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, path)
