"""A training: all that a recipe asks for, made, and how far it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ltzoo.data import Dataset, Split
from ltzoo.data.loader import TrainLoader
from ltzoo.errors import saying_no_memory
from ltzoo.evaluation import Scores, predict, score
from ltzoo.evaluation.predict import image_batches
from ltzoo.gkpgsa import GkpGsa
from ltzoo.models.heads import classifier_of
from ltzoo.training.learner import Learner
from ltzoo.training.loop import Step
from ltzoo.training.recipe import Recipe
from ltzoo.training.sizes import image_config

__all__ = ['Training']


@dataclass
class Training:
    """What trains, and all that changes in its course.

    Args:
        accelerator: its loss scaler and the processes' random generators are part of the state.
        dataset: as it is fed; its `test` is what is measured on.
        learner: on its device.
        optimizer: prepared by Accelerate.
        method: GKP/GSA's state, if the recipe has it.
        step: takes a batch of the loader.
        ema: moving average of the model, if the recipe has one.
        epoch: epochs that are done.
        seconds: that they took.
    """

    recipe: Recipe
    accelerator: Accelerator
    dataset: Dataset
    learner: Learner
    loader: TrainLoader
    optimizer: Any
    method: GkpGsa | None
    step: Step
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        # Some optimisers keep what they remember in their groups.
        again = self.recipe.retraining is not None
        self.first_optimizer = copy.deepcopy(self.optimizer.state_dict()) if again else None

    @property
    def model(self) -> nn.Module:
        """What is measured and exported: the model, or the average of it."""
        return self.learner.model if self.ema is None else self.ema.module

    def retrain_classifier(self, *, anew: bool) -> None:
        """Let only the classifier train for an epoch, or its scales, on features as evaluation sees them.

        Args:
            anew: with the optimiser as it was at first, and a classifier that is trained itself from weights that are
                drawn again, the same on every process.
        """
        classifier, _ = classifier_of(self.learner.model)
        scales = self.learner.class_scales
        self.learner.requires_grad_(False).eval()
        if scales is not None:
            self.learner.scale_logits()
            scales.requires_grad_(True)
        else:
            classifier.requires_grad_(True).train()
        if not anew:
            return
        if scales is None:
            device = self.accelerator.device
            with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
                torch.manual_seed(self.recipe.seed)
                classifier.reset_parameters()
        self.optimizer.load_state_dict(self.first_optimizer)
        if self.step.replay is not None:
            self.step.replay.forget()

    def measure(self, images: Split) -> Scores:
        """Score the model on a part of the data, the images shared out to all processes.

        Raises:
            LtzooError: if the device has no memory for so large a batch.
        """
        part, config = self.recipe.evaluation, image_config(self.recipe, self.dataset)
        size, device, workers = part.batch_size, self.accelerator.device, self.recipe.workers
        smaller = 'go on with a smaller one and resume=auto'
        with saying_no_memory(f'there is no memory to test with evaluation.batch_size={size}: {smaller}'):
            found = predict(self.model, images, config, batch_size=size, device=device, workers=workers)
        thresholds = {'many_above': part.many_above, 'few_below': part.few_below}
        return score(*found, self.dataset.class_counts, self.dataset.class_names, **thresholds)

    def samples(self, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training images as evaluation would see them, with labels, in batches as large as training's."""
        part, size, device = self.dataset.train.select(indices), self.recipe.batch_size, self.accelerator.device
        images = image_batches(part, image_config(self.recipe, self.dataset), size, device, self.recipe.workers)
        yield from zip(images, torch.from_numpy(part.labels).to(device).split(size), strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Return, after an epoch, what a checkpoint holds; to be called by all processes."""
        scaler = self.accelerator.scaler
        return {
            **self.dataset.identity,
            'epoch': self.epoch,
            'seconds': self.seconds,
            'learner': self.learner.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': None if scaler is None else scaler.state_dict(),
            'ema': None if self.ema is None else self.ema.state_dict(),
            'method': None if self.method is None else self.method.state_dict(),
            'rng': _rng_states(self.accelerator.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same recipe.

        Raises:
            RuntimeError, KeyError, ValueError: if it is of another model, optimiser or method.
        """
        self.learner.load_state_dict(state['learner'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.ema is not None:
            self.ema.load_state_dict(state['ema'])
        # After the last epoch no step follows, and the snapshots of a finished run are gone.
        if self.method is not None and state['epoch'] < self.recipe.trained_epochs:
            self.method.load_state_dict(state['method'])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        _restore_rng(state['rng'], self.accelerator)
        self.epoch, self.seconds = state['epoch'], state['seconds']


def _rng_states(device: torch.device) -> list[dict[str, Any]]:
    """Return the state of the global random generators of every process, in order of rank.

    Nothing here draws from Python's and NumPy's; a view or an objective of one's own may.
    """
    of_numpy: Any = np.random.get_state()
    kind, numbers, *rest = of_numpy
    states: dict[str, Any] = {
        'cpu': torch.get_rng_state(),
        'python': random.getstate(),
        'numpy': (kind, torch.from_numpy(numbers.astype(np.int64)), *rest),
    }
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return gather_object([states])


def _restore_rng(states: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Undo `_rng_states`; a run continued with more processes seeds the new ones by rank."""
    if accelerator.process_index >= len(states):
        set_seed(accelerator.process_index)
        return
    own = states[accelerator.process_index]
    torch.set_rng_state(own['cpu'])
    random.setstate(own['python'])
    kind, numbers, *rest = own['numpy']
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    if 'cuda' in own and accelerator.device.type == 'cuda':
        torch.cuda.set_rng_state(own['cuda'], accelerator.device)
