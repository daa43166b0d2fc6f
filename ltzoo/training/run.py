"""The run folder: what a training leaves behind.

recipe.yaml       everything that decided the run
environment.json  versions, device, processes, commit
log.jsonl         one line for every epoch, counted from 0: lr, loss, seconds, samples_per_second; holdout, method
checkpoint.pt     the last epoch, to continue from
diverged.txt      if the loss stopped being finite: at which step
bank/             while a run with method.snapshots=disk goes on: its snapshots
results.json      the final scores with every class, recipe, environment, seconds of training
model/            the exported model: `ltzoo.create_model('local-dir:RUN/model', pretrained=True)`
curves.png, accuracy.png
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ltzoo.data import without_folders
from ltzoo.errors import one_line
from ltzoo.files import LOCK, alone, write_atomically
from ltzoo.training.checkpoint import CheckpointError, load_checkpoint
from ltzoo.training.recipe import Recipe, flattened

__all__ = ['COMMIT_FILE', 'RunFolder', 'commit_of', 'describe_environment', 'difference']

# Beside the package in what `ltzoo.plans.pack` made, where there is no git to ask.
COMMIT_FILE = 'COMMIT'
# Seconds to wait for a process that only looks whether another one is at a run.
_PATIENCE = 2.0


class RunFolder:
    """Paths and files of one run; the main process writes, every process reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / 'recipe.yaml'
        self.environment = path / 'environment.json'
        self.log = path / 'log.jsonl'
        self.checkpoint = path / 'checkpoint.pt'
        self.divergence = path / 'diverged.txt'
        self.results = path / 'results.json'
        self.model = path / 'model'
        self.bank = path / 'bank'

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end: the results are written last."""
        return self.results.exists()

    def diverged(self, recipe: Recipe) -> bool:
        """Return whether the run stopped as its loss, or its weights, were not finite any more, with this recipe.

        Begun with another recipe, such a run may have a checkpoint, with which `check` refuses it, or none, and is then
        begun anew.
        """
        try:
            return self.divergence.exists() and not difference(self.read_recipe(), recipe, with_place=False)
        except CheckpointError:
            return False

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that holds something else, another recipe, or a run that was not asked to be continued.

        Raises:
            CheckpointError: with what to do instead.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise CheckpointError(f'output={self.path} is a file, not a folder')
        # Of a run both are there from its start on; a recipe of one's own lies in many a folder.
        if not (self.recipe.exists() and self.environment.exists()):
            leftovers = self._leftovers()
            if any(path.name != LOCK and path not in leftovers for path in self.path.iterdir()):
                raise CheckpointError(f'output={self.path} is not empty and holds no run; give an empty or new folder')
            return
        # Stopped in its first epoch, a run is begun anew; finished and brought home, it has no checkpoint.
        if not (self.checkpoint.exists() or self.finished):
            if self.model.exists():
                raise CheckpointError(
                    f'output={self.path} holds a model without results.json and checkpoint.pt, and training would '
                    'start over: restore one of them, or give another output'
                )
            return
        if recipe.resume == 'never':
            raise CheckpointError(
                f'output={self.path} holds a run already: continue it with resume=auto, or give another output'
            )
        if self.finished and not (self.checkpoint.exists() or self.model.exists()):
            raise CheckpointError(
                f'output={self.path} holds a finished run without its model and checkpoint: put one back, or give '
                'another output'
            )
        # The images may lie in another folder by now; that they are the same is seen from the checkpoint. A run that an
        # unreadable image stopped may go on without it, and one that is not finished may be ended earlier or later.
        free = {'data.unreadable'} if self.finished else {'data.unreadable', 'stop_epoch'}
        changed = difference(self.read_recipe(), recipe, free, with_place=self.finished)
        if changed:
            raise CheckpointError(f'output={self.path} holds a run of another recipe: {changed}; give another output')

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training into this folder, which is made; one that stays empty is taken away again.

        Raises:
            BusyError: if another process is at it.
            CheckpointError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f'output={self.path} cannot be made: {error.strerror}; give another folder'
            ) from error
        try:
            with alone(self.path, _PATIENCE):
                yield
        finally:
            with suppress(OSError):
                self.path.rmdir()

    def checkpoint_state(self) -> dict[str, Any] | None:
        """Return the checkpoint to continue from, None at the start of a run."""
        if not self.checkpoint.exists():
            return None
        state = load_checkpoint(self.checkpoint)
        if not isinstance(state, dict) or 'epoch' not in state:
            raise CheckpointError(f'{self.checkpoint} is no checkpoint of a run; give another output')
        return state

    def start(self, recipe: Recipe, environment: dict[str, Any], state: dict[str, Any] | None) -> None:
        """Create the folder, or cut its log off at the checkpoint that the run continues from."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self._leftovers():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.divergence.unlink(missing_ok=True)
        kept = [] if state is None else [line for line in self.read_log() if line['epoch'] < state['epoch']]
        write_atomically(self.recipe, recipe.to_yaml())
        write_atomically(self.environment, json.dumps(self._with_earlier(environment, recipe, state), indent=2) + '\n')
        write_atomically(self.log, ''.join(json.dumps(line) + '\n' for line in kept))
        if state is None:
            shutil.rmtree(self.bank, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        """Return what a kill left of files, or of the exported model, that were being written."""
        begun = [self.recipe] if not self.environment.exists() and self._is_written_out() else []
        return [*self.path.glob('.*.part'), *self.path.glob(f'.{self.model.name}.*'), *begun]

    def _is_written_out(self) -> bool:
        """Return whether `recipe.yaml` is as a run writes it, and nobody's own with a base or comments."""
        try:
            return self.recipe.read_text() == self.read_recipe().to_yaml()
        except (OSError, UnicodeDecodeError, CheckpointError):
            return False

    def _with_earlier(
        self, environment: dict[str, Any], recipe: Recipe, state: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the environment with those that the run was trained in before, where they differ."""
        if state is None:
            return environment
        try:
            before = dict(json.loads(self.environment.read_text()))
        except (OSError, ValueError, TypeError):
            return environment
        if state['epoch'] >= recipe.trained_epochs:
            # Nothing is left to be trained; how it was ended is said by the last command alone.
            return {**before, 'command': environment['command']}
        earlier = before.pop('earlier', [])
        former, present = ({k: v for k, v in part.items() if k != 'command'} for part in (before, environment))
        if former != present:
            earlier = [*earlier, {**former, 'until_epoch': state['epoch']}]
        return {**environment, **({'earlier': earlier} if earlier else {})}

    def read_recipe(self) -> Recipe:
        """Return what `recipe.yaml` holds.

        Raises:
            CheckpointError: if it is missing, damaged, or of another version of ltzoo.
        """
        try:
            return Recipe.model_validate(yaml.safe_load(self.recipe.read_text()))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CheckpointError(
                f'{self.recipe} is damaged, or of another version of ltzoo: {one_line(error)[:200]}; '
                f'give another output'
            ) from error

    def read_log(self) -> list[dict[str, Any]]:
        """Return the log's whole lines; a last one cut off by a crash is left out."""
        lines = []
        for text in self.log.read_text(errors='replace').splitlines() if self.log.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if not isinstance(line, dict):
                break
            lines.append(line)
        return lines

    def read_results(self) -> dict[str, Any]:
        """Return what `results.json` holds.

        Raises:
            CheckpointError: if it is damaged.
        """
        try:
            results = dict(json.loads(self.results.read_text(), parse_constant=_refuse))
            if not isinstance(results.get('training_seconds'), (int, float)):
                raise ValueError('it does not say training_seconds')
        except (OSError, ValueError, TypeError) as error:
            instead = (
                'remove it to go on from the checkpoint' if self.checkpoint.exists() else 'copy the run here again'
            )
            raise CheckpointError(f'{self.results} is damaged: {error}; {instead}') from error
        return results

    def append_log(self, line: dict[str, Any]) -> None:
        with open(self.log, 'a') as file:
            file.write(json.dumps(line) + '\n')


def _refuse(constant: str) -> None:
    """Refuse a number that JSON does not have, and no score is."""
    raise ValueError(f'it holds {constant}')


def difference(before: Recipe, now: Recipe, free: Set[str] = frozenset(), *, with_place: bool = True) -> str:
    """Return in words the first key that decides the result and differs, and how many more do; empty if none does.

    Args:
        free: keys that may differ.
        with_place: whether the folder of the images may not.
    """
    old, new = (flattened(recipe.decides_result()) for recipe in (before, now))
    if not with_place:
        for flat in (old, new):
            flat['data.name'] = without_folders(flat['data.name'])
    changed = [key for key in sorted((old.keys() | new.keys()) - free) if old.get(key) != new.get(key)]
    if not changed:
        return ''
    more = f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''
    return f'{changed[0]} was {old.get(changed[0])}, is {new.get(changed[0])}{more}'


def describe_environment(device: str, processes: int) -> dict[str, Any]:
    """Return what a reader of the numbers needs to know of the machine and the versions."""
    import accelerate
    import timm
    import torch
    import torchvision

    import ltzoo

    cuda = torch.cuda.get_device_name() if device.startswith('cuda') else None
    return {
        'ltzoo': ltzoo.__version__,
        'commit': commit_of(Path(__file__).resolve().parents[2]),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'timm': timm.__version__,
        'accelerate': accelerate.__version__,
        'system': f'{platform.system()} {platform.machine()}',
        'device': cuda or device,
        'threads': torch.get_num_threads(),
        'processes': processes,
        'command': shlex.join([*(['recipes/train.py'] if Path(sys.argv[0]).name == 'train.py' else []), *sys.argv[1:]]),
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit of a checkout, marked `-dirty` where files were changed, or what a pack says it was made from.

    None if `folder` is neither.
    """
    try:
        top, head, changed = (
            subprocess.run(['git', '-C', str(folder), *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (
                ('rev-parse', '--show-toplevel'),
                ('rev-parse', 'HEAD'),
                ('status', '--porcelain', '--untracked-files=no'),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        top = ''
    if top and Path(top) == folder.resolve():
        return f'{head}-dirty' if changed else head
    packed = folder / COMMIT_FILE
    return packed.read_text().strip() if packed.is_file() else None
