"""From a recipe to a run folder."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ltzoo.data import DataError, Dataset, FileImages, require_readable, source_of, with_place, without_folders
from ltzoo.data.loader import Batch
from ltzoo.errors import LtzooError, one_line
from ltzoo.evaluation import Scores, plot_accuracy
from ltzoo.evaluation.metrics import SCORES
from ltzoo.files import write_atomically
from ltzoo.hub import export_model
from ltzoo.hub.export import as_published
from ltzoo.training.checkpoint import CheckpointError, save_checkpoint
from ltzoo.training.learner import Learner
from ltzoo.training.loop import DivergedError, train_one_epoch
from ltzoo.training.optimizer import learning_rate
from ltzoo.training.plots import plot_curves
from ltzoo.training.prepare import (
    check_names,
    create_accelerator,
    prepare_data,
    prepare_training,
    warn_of_what_never_comes,
)
from ltzoo.training.recipe import DataPart, Recipe
from ltzoo.training.run import RunFolder, describe_environment
from ltzoo.training.sizes import image_config
from ltzoo.training.training import Training

logger = logging.getLogger(__name__)

__all__ = ['fit']


def fit(recipe: Recipe, output: str | os.PathLike[str], *, progress: bool = True) -> dict[str, Any]:
    """Train as the recipe says, measure, export.

    Args:
        recipe: the run; with `resume='auto'` a run in `output` is continued, or shown if it is finished.
        output: the run folder, see `ltzoo.training.run`.
        progress: whether a bar shows how far it is.

    Returns:
        What stands in `results.json`.

    Raises:
        LtzooError: whatever is wrong with recipe, data, model or folder, mostly before anything is trained; later for
            want of memory to test with or an image that cannot be read.
        RuntimeError, MemoryError: if the device has no memory for a step; on a GPU the former's own kind,
            torch.OutOfMemoryError.
        DivergedError: if the loss stops being finite.
        CheckpointError: if a checkpoint cannot be written.
    """
    folder = RunFolder(Path(output))
    accelerator = create_accelerator(recipe, folder.path)
    folder.check(recipe)
    if recipe.resume == 'auto' and folder.finished and folder.model.exists():
        if accelerator.is_main_process:
            # A kill may have left some of the snapshots.
            shutil.rmtree(folder.bank, ignore_errors=True)
        return folder.read_results()
    accelerator.wait_for_everyone()
    with ExitStack() as held:
        results = _train(recipe, folder, accelerator, held, progress)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # The process group goes with what refers to it. Its threads must not be left to Python's end, which kills them.
        accelerator.free_memory()
    accelerator.end_training()
    return results


def _train(
    recipe: Recipe, folder: RunFolder, accelerator: Accelerator, held: ExitStack, progress: bool
) -> dict[str, Any]:
    """Do what `fit` does; the folder is made, and held to the end of `held`, when nothing can be refused any more."""
    check_names(recipe)
    warn_of_what_never_comes(recipe)
    dataset = prepare_data(recipe)
    _require_alike(accelerator, dataset)
    _require_apart(folder, dataset)
    begun = folder.checkpoint.exists()
    # A checkpoint holds all weights, so that going on needs no others.
    training = prepare_training(recipe, dataset, accelerator, folder.bank, weights=not begun)
    if recipe.data.unreadable == 'stop' and not begun:
        # Training meets its own images in the first epoch, those of the test only after the last one.
        require_readable(dataset.test)
    if recipe.ema_decay is not None:
        training.ema = ModelEmaV3(training.learner.model, decay=recipe.ema_decay)
        left = recipe.ema_decay ** (recipe.trained_epochs * training.loader.steps_per_epoch)
        if left > 0.05:
            logger.warning(
                'ema_decay=%s: at the end of so short a run the average is still %.0f %% of the weights it starts from',
                recipe.ema_decay, 100 * left,
            )  # fmt: skip
    # Each process may have refused something until here.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        held.enter_context(folder.alone())
        # Another run may have been here until now.
        folder.check(recipe)
    _restore(folder, training)
    if recipe.trackers:
        accelerator.init_trackers('ltzoo', config={'recipe': recipe.to_yaml()})
    try:
        _train_epochs(folder, training, progress)
    except DivergedError as error:
        if accelerator.is_main_process:
            # A full disk must not hide why it ended.
            with suppress(OSError):
                write_atomically(folder.divergence, f'{error}\n')
        raise
    return _score_and_finish(folder, training)


def _require_alike(accelerator: Accelerator, dataset: Dataset) -> None:
    """Refuse processes that found other images than the others: they would take rows of different batches.

    Raises:
        DataError: if so.
    """
    if accelerator.num_processes == 1:
        return
    first, *others = gather_object([dataset.identity])
    for process, other in enumerate(others, start=1):
        if other != first:
            raise DataError(
                f'process {process} found other images in {dataset.name} than process 0 '
                f'({sum(other["class_counts"]):,} and {sum(first["class_counts"]):,} for training): all processes need '
                'the same, readable files'
            )


def _require_apart(folder: RunFolder, dataset: Dataset) -> None:
    """Refuse a run folder among the class folders of the images: it would be a class itself when they are read again.

    Raises:
        CheckpointError: if so.
    """
    images = dataset.train.images
    if source_of(dataset.name) != 'folder' or not isinstance(images, FileImages):
        return
    # Of CLASS/..., or of train/CLASS/..., the folder that the classes lie in.
    top = os.path.commonpath({os.path.dirname(path) for path in images.paths})
    output, classes = folder.path.resolve(), (images.root / top).resolve()
    if output.is_relative_to(classes):
        raise CheckpointError(
            f'output={folder.path} lies among the images of {dataset.name}, where it would be taken for a class: give '
            'one outside of them'
        )


def _train_epochs(folder: RunFolder, training: Training, progress: bool) -> None:
    """Train from the epoch that `training` is in to the last one; every epoch leaves a line in the log."""
    recipe, accelerator, ema = training.recipe, training.accelerator, training.ema
    learner, optimizer, method = training.learner, training.optimizer, training.method

    def step(batch: Batch) -> Tensor:
        loss = training.step(batch)
        if ema is not None and not optimizer.step_was_skipped:
            ema.update(learner.model)
        return loss

    remedy, seconds = _remedy(recipe), None
    for epoch in range(training.epoch, recipe.trained_epochs):
        learner.train()
        learner.start_epoch(epoch)
        if epoch >= recipe.scheduled_epochs:
            training.retrain_classifier(anew=epoch == recipe.scheduled_epochs)
        rate = learning_rate(recipe, epoch)
        for group in optimizer.param_groups:
            group['lr'] = rate
        if method is not None:
            method.start_epoch(epoch)
        log = train_one_epoch(
            step,
            training.loader,
            accelerator,
            epoch=epoch,
            epochs=recipe.trained_epochs,
            batch_size=recipe.batch_size,
            learning_rate=rate,
            remedy=remedy,
            seconds_an_epoch=seconds,
            progress=progress,
        )
        seconds = log.seconds
        training.epoch, training.seconds = epoch + 1, training.seconds + seconds
        line = {'epoch': epoch, 'lr': rate, **asdict(log)}
        _equalise(accelerator, learner, ema)
        _require_finite(learner, epoch, remedy)
        if method is not None:
            started = time.perf_counter()
            line['method'] = method.end_epoch(epoch, training.samples)
            line['end_seconds'] = time.perf_counter() - started
            seconds, training.seconds = seconds + line['end_seconds'], training.seconds + line['end_seconds']
        every = recipe.evaluation.every_epochs
        if every and (epoch + 1) % every == 0:
            scores = training.measure(training.dataset.test)
            shown = ('top1', 'many', 'medium', 'few', 'balanced_accuracy')
            line['holdout'] = {key: getattr(scores, key) for key in shown}
        if recipe.trackers:
            accelerator.log(_numbers(line), step=epoch)
        if accelerator.is_main_process:
            folder.append_log(line)
        if (epoch + 1) % recipe.checkpoint_every == 0 or epoch + 1 == recipe.trained_epochs:
            _save(folder, training)


def _score_and_finish(folder: RunFolder, training: Training) -> dict[str, Any]:
    """Measure the trained model, write what a finished run consists of, and return its results."""
    recipe, accelerator, dataset = training.recipe, training.accelerator, training.dataset
    training.learner.fold_scales()
    results = _results(folder, training, training.measure(dataset.test))
    if recipe.trackers:
        final = {f'{recipe.evaluation.split}/{key}': results[key] for key in SCORES if key != 'samples'}
        accelerator.log(_numbers(final), step=recipe.trained_epochs)
    if recipe.evaluation.train:
        results['train_top1'] = training.measure(dataset.train).top1
    if accelerator.is_main_process:
        _finish(folder, training, results)
    return results


@torch.no_grad()
def _equalise(accelerator: Accelerator, *modules: nn.Module | None) -> None:
    """Give all processes the main one's weights and buffers, so that what is scored is what is exported.

    Running statistics are each process's own. The method does not go through DistributedDataParallel, which gives the
    main one's to all before every step: rounding could let weights drift too.
    """
    if accelerator.num_processes > 1:
        for module in filter(None, modules):
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor, 0)


def _remedy(recipe: Recipe) -> str:
    preservation = None if recipe.method is None else recipe.method.preservation
    if preservation is not None and preservation.form == 'gradient':
        return (
            'try method.preservation.form=proximal, which is stable for every method.preservation.strength, or a lower '
            'optimizer.lr'
        )
    return 'try a lower optimizer.lr'


def _require_finite(learner: Learner, epoch: int, remedy: str) -> None:
    """Keep weights that an epoch's last step broke out of all that follows: no loss has been taken of them yet.

    Raises:
        DivergedError: if there are some.
    """
    # The host waits for the device once.
    if not torch.stack([p.isfinite().all() for p in learner.parameters()]).all():
        raise DivergedError(
            f'the weights are not finite after epoch {epoch + 1}: {remedy}; a checkpoint, if there is one, is from '
            'before it'
        )


def _save(folder: RunFolder, training: Training) -> None:
    state = training.state_dict()
    if training.accelerator.is_main_process:
        save_checkpoint(folder.checkpoint, state)
    training.accelerator.wait_for_everyone()


def _restore(folder: RunFolder, training: Training) -> None:
    """Start the run folder or continue from it."""
    recipe, accelerator = training.recipe, training.accelerator
    with accelerator.main_process_first():
        state = folder.checkpoint_state()
        if state is not None:
            with _saying_what_is_wrong(folder):
                _check_data(folder, recipe, training.dataset.identity, state)
    if accelerator.num_processes > 1 and len(set(gather_object([0 if state is None else state['epoch']]))) > 1:
        raise CheckpointError(
            f'the processes find different checkpoints in output={folder.path}: give a folder that all machines share'
        )
    if state is not None:
        if state['epoch'] > recipe.trained_epochs:
            raise CheckpointError(
                f'output={folder.path} has been trained for {state["epoch"]} epochs, which is more than stop_epoch='
                f'{recipe.stop_epoch}: give {state["epoch"]} to end it there, or more'
            )
        with _saying_what_is_wrong(folder):
            training.load_state_dict(state)
    # Only now: what cannot be gone on from stays as it is.
    if accelerator.is_main_process:
        folder.start(recipe, describe_environment(str(accelerator.device), accelerator.num_processes), state)


@contextmanager
def _saying_what_is_wrong(folder: RunFolder) -> Iterator[None]:
    """Turn what a checkpoint of something else ends in into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except LtzooError as error:
        raise CheckpointError(f'training cannot be resumed from {folder.checkpoint}: {error}') from error
    except (RuntimeError, KeyError, ValueError) as error:
        reason = one_line(error)[:300]
        raise CheckpointError(
            f'{folder.checkpoint} is not of this model and optimiser, or not of this version of ltzoo: {reason}; go on '
            'with the commit that environment.json names, or give another output'
        ) from error


def _check_data(folder: RunFolder, recipe: Recipe, now: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse to go on with other images or classes than those that the checkpoint's run was trained on.

    Raises:
        CheckpointError: with what to do instead.
    """
    counts = now['class_counts']
    before = state['class_counts']
    # A run that an unreadable image stopped goes on with fewer.
    fewer = len(before) == len(counts) and all(now <= then for now, then in zip(counts, before, strict=True))
    if before != counts and not (fewer and recipe.data.unreadable == 'skip'):
        then, here = f'{sum(before):,} images in {len(before)} classes', f'{sum(counts):,} in {len(counts)}'
        if (sum(before), len(before)) == (sum(counts), len(counts)):
            c = next(c for c in range(len(counts)) if before[c] != counts[c])
            then, here = f'{before[c]:,} images of class {now["class_names"][c]}', f'{counts[c]:,}'
        raise CheckpointError(
            f'output={folder.path} was trained on {then}, {recipe.data.name} now has {here}: put them back, or give '
            'another output'
        )
    if state['class_names'] != now['class_names']:
        raise CheckpointError(
            f'output={folder.path} was trained on classes of other names, or in another order, than '
            f'{recipe.data.name} has now: name them as they were, or give another output'
        )
    # A checkpoint of before does not say it.
    tested = state.get('test_counts', now['test_counts'])
    if any(here > then for here, then in zip(now['test_counts'], tested, strict=True)):
        raise CheckpointError(
            f'output={folder.path} was begun with {sum(tested):,} images to test on, {recipe.data.name} now has '
            f'{sum(now["test_counts"]):,}, or more of one class: take them out, or give another output'
        )
    if state['drawn_from'] != now['drawn_from']:
        raise CheckpointError(
            f'output={folder.path} was trained on other images of {recipe.data.name} than are there now, and its '
            'test set would hold some of them: put them back as they were, or give another output'
        )
    if state['images'] != now['images']:
        was, here = (_place_of(of.data) for of in (folder.read_recipe(), recipe))
        # In their own place an unreadable image may be missing by now; elsewhere they have to be the same.
        if was != here or recipe.data.unreadable == 'stop':
            raise CheckpointError(
                f'output={folder.path} was trained on {was}, and {here} has other images, or other names for '
                'them: put them back as they were, or give another output'
            )


def _place_of(data: DataPart) -> str:
    name = with_place(data.name, data.data_dir)
    return name if data.data_dir is None or name != data.name else f'{name} with data_dir={data.data_dir}'


def _results(folder: RunFolder, training: Training, scores: Scores) -> dict[str, Any]:
    recipe, accelerator = training.recipe, training.accelerator
    # Which the main process has written, on its machine.
    environment = json.loads(folder.environment.read_text()) if accelerator.is_main_process else None
    return {
        'model': recipe.model.name,
        'data': training.dataset.name,
        **scores.to_json_dict(),
        'split': recipe.evaluation.split,
        'many_above': recipe.evaluation.many_above,
        'few_below': recipe.evaluation.few_below,
        'epochs': recipe.trained_epochs,
        'seed': recipe.seed,
        'split_seed': recipe.data.split_seed,
        'parameters': sum(p.numel() for p in training.learner.model.parameters()),
        'training_seconds': round(training.seconds, 1),
        'environment': gather_object([environment])[0],
        'recipe': recipe.decides_result(),
    }


def _finish(folder: RunFolder, training: Training, results: dict[str, Any]) -> None:
    """Write what a finished run consists of; the results come last, so that they mean: finished."""
    recipe, dataset = training.recipe, training.dataset
    # What is published says nothing of the folders of the machine that made it.
    data = without_folders(dataset.name)
    trained_by = as_published(copy.deepcopy(results['recipe']))
    trained_by['data']['name'] = data
    lt = {
        'data': data,
        'class_counts': dataset.class_counts.tolist(),
        'class_names': list(dataset.class_names),
        'drawn_from': dataset.drawn_from,
        'many_above': recipe.evaluation.many_above,
        'few_below': recipe.evaluation.few_below,
        'recipe': trained_by,
        'seed': recipe.seed,
        'split': recipe.evaluation.split,
        'scores': {**{key: results[key] for key in SCORES}, 'data': data},
        'environment': {key: value for key, value in results['environment'].items() if key != 'command'},
    }
    export_model(training.model, folder.model, lt, **image_config(recipe, dataset), force=True)
    plot_curves(folder.read_log(), folder.path / 'curves.png')
    plot_accuracy({**results, 'data': data, 'model': trained_by['model']['name']}, folder.path / 'accuracy.png')
    write_atomically(folder.results, json.dumps(results, indent=2) + '\n')
    shutil.rmtree(folder.bank, ignore_errors=True)


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return what a tracker can draw: the numbers of a log line."""
    method = {f'method/{key}': value for key, value in line.get('method', {}).items()}
    parts = {**line, **line.get('holdout', {}), **method}
    return {key: value for key, value in parts.items() if isinstance(value, (int, float))}
