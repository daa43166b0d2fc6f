"""All runs that test_two_processes.py looks at, one after the other: torchrun ... two_processes.py FOLDER SMALL.yaml.

They leave their run folders in FOLDER, and beside them what every process had in its last checkpoint.
"""

from __future__ import annotations

import gc
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from PIL import Image
from whole_runs import GKPGSA, fit_until

from ltzoo.gkpgsa.bank import DiskStore
from ltzoo.training.checkpoint import save_checkpoint
from ltzoo.training.fit import fit
from ltzoo.training.prepare import prepare_data
from ltzoo.training.recipe import load_recipe
from ltzoo.training.training import Training

DIGITS = Path(__file__).resolve().parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'
# Without dropout: its masks come from each process's own generator.
PLAIN = ('seed=2', 'model.proj_drop_rate=0', 'accumulation=2', 'optimizer.clip_grad_norm=1')
# What one process trains alike, of SMALL.yaml.
ALIKE = {
    'plain': PLAIN,
    'gkpgsa': (*PLAIN, *GKPGSA),
    'retraining': (*PLAIN, 'retraining.start_epoch=2', 'objective.name=ce'),
    'reweighting': (*PLAIN, 'reweighting.start_epoch=2', 'objective.name=ldam', 'model.head=cosine'),
}
# With batch-norm, of DIGITS; second stages, by the part that they train.
NORMALISED = ('model.name=resnet8_cifar', 'epochs=3')
STAGES = {part: (*NORMALISED, f'retraining={{start_epoch: 1, part: {part}}}') for part in ('classifier', 'scales')}
# Also stopped after two epochs, to go on. As in recipes/inat18/gkpgsa_resnet50.yaml, snapshots lie in the run folder.
SNAPSHOTS = (*NORMALISED, 'epochs=4', *GKPGSA, 'method.snapshots=disk', 'method.snapshot_dtype=bf16')


def train(folder: Path, name: str, recipe: Path, options: tuple[str, ...], until: int | None = None) -> None:
    """Train, with `until` to be stopped after that many epochs; a run that was is gone on with."""
    print(f'{name}: {options}, {until}', file=sys.stderr)
    state_dict, rank = Training.state_dict, torch.distributed.get_rank()

    def kept(training: Training) -> dict[str, object]:
        state = state_dict(training)
        save_checkpoint(folder / f'{name}_{rank}.pt', state)
        return state

    asked = load_recipe(recipe, [*options, 'resume=auto'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, 'state_dict', kept)
        if until is None:
            fit(asked, folder / name, progress=False)
        else:
            fit_until(until, asked, folder / name)


def read_late(patch: pytest.MonkeyPatch) -> None:
    """Let this process come to every snapshot on a disk when the others are long done with it."""
    get = DiskStore.get

    def late(store: DiskStore, epoch: int) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return get(store, epoch)

    patch.setattr(DiskStore, 'get', late)


def look_at_images(folder: Path, small: Path) -> None:
    """Read a folder of images that may be left out, as all processes do together, also where they may download."""
    with PartialState().main_process_first():
        for name in 'ab' if PartialState().is_main_process else '':
            (folder / name).mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (8, 8)).save(folder / name / f'{i}.png')
    options = [f'data.name=folder:{folder}', 'data.download=true', 'data.unreadable=skip']
    assert len(prepare_data(load_recipe(small, options)).train) == 2


def main(folder: Path, small: Path) -> None:
    # Where one process waits for what the other never does, that is an error soon.
    state = PartialState(cpu=True, timeout=timedelta(minutes=2))
    with pytest.MonkeyPatch.context() as patch:
        # It ends the group of processes, which the next run needs.
        patch.setattr(Accelerator, 'end_training', lambda accelerator: None)
        if not state.is_main_process:
            read_late(patch)
        look_at_images(folder / 'images', small)
        for name, options in ALIKE.items():
            train(folder, name, small, options)
        # One process has begun it.
        train(folder, 'joined', small, PLAIN)
        train(folder, 'dropout', small, ())
        train(folder, 'dropout_cut', small, (), 2)
        train(folder, 'dropout_cut', small, ())
        train(folder, 'first_stage', DIGITS, (*NORMALISED, 'epochs=1'))
        for part, options in STAGES.items():
            train(folder, part, DIGITS, options)
        train(folder, 'snapshots', DIGITS, SNAPSHOTS)
        train(folder, 'snapshots_cut', DIGITS, SNAPSHOTS, 2)
        train(folder, 'snapshots_cut', DIGITS, SNAPSHOTS)
    # Gloo's threads live as long as the group, which DistributedDataParallel holds in a cycle; at the end of Python
    # they may abort it.
    gc.collect()
    state.destroy_process_group()


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
