"""What a model says of its training, and which images it can be scored on by that: it has to know none of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltzoo.data import Dataset, Split, load_parts, with_place, without_folders
from ltzoo.data.images import join_images
from ltzoo.errors import LtzooError
from ltzoo.models.download import fetch_named
from ltzoo.models.entries import entry_of

__all__ = ['EvaluationError', 'TrainedOn', 'resolve_model']

logger = logging.getLogger(__name__)

# Models of others, trained on data that is known.
_PUBLIC = ('timm/', 'hf-hub:timm/')


class EvaluationError(LtzooError, ValueError):
    """A model, data set or device that do not go together."""


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda said: said is None or (isinstance(said, list) and all(type(one) in kinds for one in said))


# What is read of the block `lt`, and what it has to be.
_SOUND: dict[str, Callable[[Any], bool]] = {
    'data': lambda said: isinstance(said, str),
    'class_counts': _is_list_of(int),
    'class_names': _is_list_of(str, int),
    'many_above': lambda said: type(said) is int,
    'few_below': lambda said: type(said) is int,
    'recipe': lambda said: isinstance(said, dict),
    'scores': lambda said: isinstance(said, dict),
}


def resolve_model(name: str) -> str:
    """Return the name that `create_model` takes; a run's folder stands for the model exported from it.

    Raises:
        EvaluationError: if a folder is neither.
    """
    if not name:
        raise EvaluationError("the model's name is empty: give one of the zoo, a run's folder or local-dir:FOLDER")
    kind, _, place = name.partition(':')
    if kind == 'local-dir' and place.startswith('~'):
        return f'{kind}:{os.path.expanduser(place)}'
    run = Path(os.path.expanduser(name))
    # Not by `Path`, which raises an error for a name that is too long.
    if not os.path.exists(run / 'recipe.yaml'):
        if os.path.isdir(run):
            raise EvaluationError(
                f'{name} holds no run (recipe.yaml is missing); for an exported model write local-dir:{name}'
            )
        if '/' in name and ':' not in name and not name.startswith('timm/'):
            raise EvaluationError(
                f'there is no folder {name}; models are hf-hub:{name} on the Hub, timm/NAME, local-dir:PATH or a name '
                'of the zoo'
            )
        return name
    if not (run / 'model').is_dir():
        raise EvaluationError(
            f'the run {name} is not finished: continue it with resume=auto, or end it with stop_epoch=N too'
        )
    return f'local-dir:{run / "model"}'


class TrainedOn:
    """What a model says of its training.

    Args:
        name: as `evaluate_model` takes it.
        cache_dir: of the Hub's client, if not its own.

    Attributes:
        lt: the block `lt` of the config.json of a model in a folder, of the zoo or on the Hub; empty where that says
            nothing.

    Raises:
        EvaluationError: as `resolve_model`, or if the block is damaged.
        DownloadError: if a model on the Hub, which `create_model` leaves in the client's cache, cannot be fetched.
    """

    def __init__(self, name: str, cache_dir: str | Path | None = None) -> None:
        self.name = name
        entry = entry_of(name)
        if name.startswith('hf-hub:'):
            place = fetch_named(name, files=('config.json',), cache_dir=cache_dir)
        else:
            place = (entry and entry.folder) or Path(resolve_model(name).removeprefix('local-dir:'))
        try:
            lt = json.loads((place / 'config.json').read_text(encoding='utf-8'))['lt']
        except (OSError, ValueError, KeyError, TypeError):
            lt = None
        self.lt: dict[str, Any] = lt if isinstance(lt, dict) else {}
        for key, is_sound in _SOUND.items():
            if key in self.lt and not is_sound(self.lt[key]):
                said = str(self.lt[key])[:80]
                raise EvaluationError(f'the config.json of {name} is damaged: {key} in its block lt is {said}')

    def on(self, dataset: Dataset) -> dict[str, Any]:
        """Return `lt` if the model was trained on this data set, else nothing."""
        return self.lt if self.lt.get('data') == without_folders(dataset.name) else {}

    def warn_of_other_shots(self, dataset: Dataset) -> None:
        """Log that the model was trained on another form of a benchmark, whose class counts are not this one's."""
        trained_on = self.lt.get('data')
        if trained_on and not self.on(dataset) and not dataset.users_own:
            logger.warning(
                '%s was trained on %s: Many, Medium and Few go by the training images of %s',
                self.name, trained_on, dataset.name,
            )  # fmt: skip

    def check_draw(
        self, dataset: Dataset, otherwise: str = 'are scored whole by tools/evaluate.py --split all'
    ) -> None:
        """Refuse a test set drawn from other images than when the model was trained, which may know some of it.

        Where that is not known, there is a warning.

        Args:
            otherwise: what can be done with images that the model was not trained on.

        Raises:
            EvaluationError: if so.
        """
        own, drawn_from = self.on(dataset), dataset.drawn_from
        if drawn_from is not None and not self.lt.get('data') and not self.name.startswith(_PUBLIC):
            logger.warning(
                'the test set of %s is drawn from its images, and whether %s was trained on some of them is not '
                'known: give images that it was not trained on as a test set of their own',
                dataset.name, self.name,
            )  # fmt: skip
        # A run with a hold-out records what that was drawn from; a drawn test set comes from the same images. A run
        # whose test set was not drawn records None, and may have been trained on all that is there now.
        if drawn_from is not None and own.get('drawn_from', drawn_from) != drawn_from:
            raise EvaluationError(
                f'{dataset.name} has other images, or other names for them, than when {self.name} was trained, and the '
                'test set drawn from them would hold some that it was trained on: put them back, or give the test '
                f'images their own folder; images that it was not trained on {otherwise}'
            )
        if drawn_from is None and own.get('split') == 'test' and own.get('drawn_from') is not None:
            logger.warning(
                '%s has a test set of its own now, where one was drawn when %s was trained: scores are too high if '
                'images that it was trained on are in it',
                dataset.name, self.name,
            )  # fmt: skip
        of_own_images = ':' in str(self.lt.get('data')) and self.lt.get('drawn_from') != drawn_from
        if drawn_from is not None and not own and of_own_images:
            logger.warning(
                'the test set of %s is drawn from its images: scores are too high if %s was trained on some of them: '
                'give images that it was not trained on as a test set of their own',
                dataset.name, self.name,
            )  # fmt: skip

    def in_classes(self, dataset: Dataset) -> Dataset:
        """Return images of some of the classes that the model knows by these names, labelled as it labels them."""
        names = self.lt.get('class_names')
        if not isinstance(names, list) or not set(dataset.class_names) < set(names):
            return dataset
        place = {known: label for label, known in reversed(list(enumerate(names)))}
        labels = np.array([place[known] for known in dataset.class_names])

        def renumbered(part: Split | None) -> Any:
            return None if part is None else Split(part.images, labels[part.labels])

        parts = {part: renumbered(getattr(dataset, part)) for part in ('train', 'test', 'validation', 'spare')}
        return replace(dataset, class_names=tuple(names), **parts)

    def all_of(self, dataset: Dataset) -> Dataset:
        """Return a data set all of whose images are its test set.

        Raises:
            EvaluationError: if the model may have been trained on some of them, or does not say on what it was.
        """
        counts = self.lt.get('class_counts')
        if not isinstance(counts, list) or len(counts) != dataset.num_classes:
            raise EvaluationError(
                f'{self.name} does not say how many images of each class it was trained on, which shots go by: '
                "--split all takes a run, an export in a folder, or one of the zoo's models"
            )
        trained_on = str(self.lt.get('data')).partition(':')[2]
        alike = trained_on and trained_on == without_folders(dataset.name).partition(':')[2]
        drawn = dataset.drawn_from is not None and self.lt.get('drawn_from') == dataset.drawn_from
        if alike or drawn or counts == dataset.class_counts.tolist() or not dataset.users_own:
            others = ''
            if alike:
                others = '; if these are, rename their folder'
            elif dataset.users_own:
                others = ', and these are as many of every class; if they are others, add one or leave one out'
            raise EvaluationError(
                f'{self.name} may have been trained on images of {dataset.name} (it was on {self.lt.get("data")}): '
                f'--split all is for images that it was not trained on{others}'
            )
        whole = dataset.test
        for part in (dataset.train, dataset.validation, dataset.spare):
            if part is not None:
                whole = Split(join_images(whole.images, part.images), np.concatenate([whole.labels, part.labels]))
        return replace(dataset, test=whole, drawn_from=None)

    def held_out(self, data: str, data_dir: str | Path | None) -> Dataset:
        """Return the data set as the training saw it, with its hold-out in the place of the test set.

        Raises:
            EvaluationError: if the model was not trained without a hold-out of these images.
        """
        name, lt = self.name, self.lt
        if not lt:
            raise EvaluationError(f'{name} does not say what it was trained on: score it on the test set')
        if lt.get('split') != 'holdout':
            raise EvaluationError(f'{name} was not trained with evaluation.split=holdout: score it on the test set')
        if lt.get('data') != without_folders(with_place(data, data_dir)):
            raise EvaluationError(f'{name} left out images of {lt.get("data")}, not of {data}')
        try:
            part, measured = lt['recipe']['data'], lt['recipe']['evaluation']
            drawn = {'split_seed': part['split_seed'], 'holdout_per_class': measured['holdout_per_class']}
            unreadable = part['unreadable']
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f'{name} does not say how its hold-out was drawn: score it on the test set'
            ) from error
        numbers = all(value is None or type(value) is int for value in drawn.values())
        if not numbers or drawn['split_seed'] is None or unreadable not in ('stop', 'skip'):
            raise EvaluationError(f'the config.json of {name} is damaged: {drawn}, unreadable {unreadable!r}')
        dataset = load_parts(data, data_dir, split='holdout', unreadable=unreadable, **drawn)
        self.check_draw(dataset)
        found = (dataset.class_counts.tolist(), len(dataset.test))
        if found != (lt.get('class_counts'), lt.get('scores', {}).get('samples')):
            raise EvaluationError(f'{data} is not what {name} was trained on: its classes have other numbers of images')
        return dataset
