"""From a recipe to a run folder."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ltzoo.data import Dataset, require_readable, without_folders
from ltzoo.data.loader import Batch
from ltzoo.errors import LtzooError, one_line
from ltzoo.evaluation import Scores, plot_accuracy
from ltzoo.files import write_atomically
from ltzoo.hub import export_model
from ltzoo.training.checkpoint import CheckpointError, Training, save_checkpoint
from ltzoo.training.learner import Learner, create_optimizer, learning_rate_factor
from ltzoo.training.loop import train_one_epoch
from ltzoo.training.measure import image_config, measure, training_samples, view_sizes
from ltzoo.training.plots import plot_curves
from ltzoo.training.prepare import (
    create_accelerator,
    create_learner,
    create_loader,
    create_method,
    create_step,
    fed_as_pretrained,
    prepare_data,
    warn_of_what_never_comes,
)
from ltzoo.training.recipe import Recipe
from ltzoo.training.run import RunFolder, describe_environment
from ltzoo.training.trial import try_step

__all__ = ['fit']

SCORES = ('data', 'samples', 'top1', 'many', 'medium', 'few', 'balanced_accuracy', 'ece')


def fit(recipe: Recipe, output: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train as the recipe says, measure, export.

    Args:
        recipe: the run; with `resume='auto'` a run in `output` is continued, or shown if it is finished.
        output: the run folder, see `ltzoo.training.run`.

    Returns:
        What stands in `results.json`.

    Raises:
        LtzooError: whatever is wrong with recipe, data, model or folder; nothing has been trained then.
        DivergedError: if the loss stops being finite.
        CheckpointError: if a checkpoint cannot be written.
    """
    accelerator = create_accelerator(recipe, output)
    folder = RunFolder(output)
    folder.check(recipe)
    if recipe.resume == 'auto' and folder.finished and folder.model.exists():
        return folder.read_results()
    accelerator.wait_for_everyone()
    with ExitStack() as held:
        results = _train(recipe, folder, accelerator, held, progress)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


def _train(
    recipe: Recipe, folder: RunFolder, accelerator: Accelerator, held: ExitStack, progress: bool
) -> dict[str, Any]:
    """Do what `fit` does; the folder is made, and held to the end of `held`, when nothing can be refused any more."""
    set_seed(recipe.seed)
    warn_of_what_never_comes(recipe)
    dataset = prepare_data(recipe)
    if recipe.data.unreadable == 'stop' and not folder.checkpoint.exists() and accelerator.is_main_process:
        # Training meets its own images in the first epoch, those of the test only after the last one.
        require_readable(dataset.test)
    # A checkpoint holds all weights, so that going on needs no others.
    learner = create_learner(recipe, dataset, pretrained=recipe.model.pretrained and not folder.checkpoint.exists())
    dataset = fed_as_pretrained(recipe, dataset, learner.model)
    if recipe.channels_last:
        learner.to(memory_format=torch.channels_last)
    if recipe.sync_batchnorm:
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)
    learner.to(accelerator.device)
    ema = None if recipe.ema_decay is None else ModelEmaV3(learner.model, decay=recipe.ema_decay)
    loader = create_loader(recipe, dataset, learner, accelerator)
    optimizer = create_optimizer(learner, recipe.optimizer)
    try_step(learner, view_sizes(recipe, dataset), dataset.num_classes, recipe, accelerator)
    if recipe.compile:
        learner.compile()
    method = create_method(recipe, dataset, learner, accelerator, folder.bank)
    prepared, optimizer = accelerator.prepare(learner, optimizer)
    set_seed(recipe.seed, device_specific=True)

    if accelerator.is_main_process:
        held.enter_context(folder.alone())
    training = Training(
        accelerator,
        learner,
        optimizer,
        ema,
        method,
        dataset.class_counts.tolist(),
        dataset.drawn_from,
        f'{dataset.train.digest()} {dataset.test.digest()}',
    )
    _restore(folder, recipe, training)
    if recipe.trackers:
        accelerator.init_trackers('ltzoo', config={'recipe': recipe.to_yaml()})

    take_step = create_step(recipe, learner, prepared, optimizer, accelerator, method)

    def step(batch: Batch) -> Tensor:
        loss = take_step(batch)
        if ema is not None and not optimizer.step_was_skipped:
            ema.update(learner.model)
        return loss

    measured = learner.model if ema is None else ema.module
    for epoch in range(training.epoch, recipe.epochs):
        rate = recipe.optimizer.lr * learning_rate_factor(recipe.schedule, epoch, recipe.epochs)
        for group in optimizer.param_groups:
            group['lr'] = rate
        learner.train()
        if method is not None:
            method.start_epoch(epoch)
        log = train_one_epoch(
            step,
            loader,
            accelerator,
            epoch=epoch,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=rate,
            progress=progress,
        )
        training.epoch, training.seconds = epoch + 1, training.seconds + log.seconds
        line = {'epoch': epoch, 'lr': rate, **asdict(log)}
        _equalise(accelerator, learner, ema)
        if method is not None:
            line['method'] = method.end_epoch(
                epoch, lambda indices: training_samples(dataset, indices, recipe, accelerator)
            )
        every = recipe.evaluation.every_epochs
        if every and (epoch + 1) % every == 0:
            scores = measure(measured, dataset.test, dataset, recipe, accelerator)
            line['holdout'] = {key: getattr(scores, key) for key in ('top1', 'many', 'medium', 'few')}
        if recipe.trackers:
            accelerator.log(_numbers(line), step=epoch)
        if accelerator.is_main_process:
            folder.append_log(line)
        if (epoch + 1) % recipe.checkpoint_every == 0 or epoch + 1 == recipe.epochs:
            _save(folder, training)

    scores = measure(measured, dataset.test, dataset, recipe, accelerator)
    results = _results(recipe, dataset, scores, learner, folder, training.seconds)
    if recipe.trackers:
        final = {f'{recipe.evaluation.split}/{key}': results[key] for key in SCORES if key != 'samples'}
        accelerator.log(_numbers(final), step=recipe.epochs)
    if recipe.evaluation.train:
        results['train_top1'] = measure(measured, dataset.train, dataset, recipe, accelerator).top1
    if accelerator.is_main_process:
        _finish(folder, measured, recipe, dataset, results)
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


def _save(folder: RunFolder, training: Training) -> None:
    state = training.state_dict()
    if training.accelerator.is_main_process:
        save_checkpoint(folder.checkpoint, state)
    training.accelerator.wait_for_everyone()


def _restore(folder: RunFolder, recipe: Recipe, training: Training) -> None:
    """Start the run folder or continue from it."""
    accelerator, counts = training.accelerator, training.class_counts
    with accelerator.main_process_first():
        state = folder.checkpoint_state()
        before = counts if state is None else state.get('class_counts', counts)
        # A run that an unreadable image stopped goes on with fewer.
        if before != counts and recipe.data.unreadable == 'stop':
            raise CheckpointError(
                f'output={folder.path} was trained on {sum(before):,} images in {len(before)} classes, '
                f'{recipe.data.name} now has {sum(counts):,} in {len(counts)}, or others in one of them: '
                'put them back, or give another output'
            )
        if state is not None and state.get('drawn_from', training.drawn_from) != training.drawn_from:
            raise CheckpointError(
                f'output={folder.path} was trained on other images of {recipe.data.name} than are there now, and its '
                'test part would hold some of them: put them back as they were, or give another output'
            )
        if state is not None and state.get('images') != training.images:
            place = folder.read_recipe().data.name
            # In their own place an unreadable image may be missing by now; elsewhere they have to be the same.
            if place != recipe.data.name:
                raise CheckpointError(
                    f'output={folder.path} was trained on {place}, and {recipe.data.name} has other images, or other '
                    'names for them: give another output'
                )
        if accelerator.is_main_process:
            folder.start(recipe, describe_environment(str(accelerator.device), accelerator.num_processes), state)
    if state is None:
        return
    try:
        training.load_state_dict(state)
    except LtzooError as error:
        raise CheckpointError(f'{folder.checkpoint} cannot be gone on from: {error}') from error
    except (RuntimeError, KeyError, ValueError) as error:
        reason = one_line(error)[:300]
        raise CheckpointError(f'{folder.checkpoint} is not of this model and optimiser: {reason}') from error


def _results(
    recipe: Recipe, dataset: Dataset, scores: Scores, learner: Learner, folder: RunFolder, seconds: float
) -> dict[str, Any]:
    return {
        'model': recipe.model.name,
        'data': dataset.name,
        **scores.to_json_dict(),
        'split': recipe.evaluation.split,
        'many_above': recipe.evaluation.many_above,
        'few_below': recipe.evaluation.few_below,
        'epochs': recipe.epochs,
        'seed': recipe.seed,
        'split_seed': recipe.data.split_seed,
        'parameters': sum(p.numel() for p in learner.model.parameters()),
        'training_seconds': round(seconds, 1),
        'environment': json.loads(folder.environment.read_text()),
        'recipe': recipe.decides_result(),
    }


def _finish(folder: RunFolder, model: nn.Module, recipe: Recipe, dataset: Dataset, results: dict[str, Any]) -> None:
    """Write what a finished run consists of; the results come last, so that they mean: finished."""
    # What is published says nothing of the folders of the machine that made it.
    data = without_folders(dataset.name)
    trained_by = copy.deepcopy(results['recipe'])
    trained_by['data']['name'], trained_by['model']['name'] = data, without_folders(recipe.model.name)
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
    export_model(model, folder.model, lt, **image_config(recipe, dataset), force=True)
    plot_curves(folder.read_log(), folder.path / 'curves.png')
    plot_accuracy(results, folder.path / 'accuracy.png')
    write_atomically(folder.results, json.dumps(results, indent=2) + '\n')
    shutil.rmtree(folder.bank, ignore_errors=True)


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return what a tracker can draw: the numbers of a log line."""
    method = {f'method/{key}': value for key, value in line.get('method', {}).items()}
    parts = {**line, **line.get('holdout', {}), **method}
    return {key: value for key, value in parts.items() if isinstance(value, (int, float))}
