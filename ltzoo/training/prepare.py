"""What a recipe asks for, each part made and checked: device, data, and what trains on them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, set_seed
from torch import nn

from ltzoo.data import Dataset, check_data_name, load_parts
from ltzoo.data.loader import TrainLoader, train_loader
from ltzoo.data.mixing import MixedLoader
from ltzoo.data.views import PRESETS, parse_views
from ltzoo.errors import did_you_mean, one_line
from ltzoo.evaluation.evaluate import check_classes
from ltzoo.evaluation.trained_on import TrainedOn
from ltzoo.gkpgsa import GkpGsa
from ltzoo.gkpgsa.rows import RowsForm
from ltzoo.hub.export import check_exportable
from ltzoo.losses import Distilled, check_objective, class_balanced_weights, create_objective, teacher_names
from ltzoo.models import ModelArgumentError, create_model
from ltzoo.models.factory import check_model_name
from ltzoo.models.heads import CosineLinear, classifier_of
from ltzoo.recorded import Recorded
from ltzoo.training.compiled import Compiled
from ltzoo.training.learner import Learner
from ltzoo.training.loop import Step
from ltzoo.training.optimizer import check_optimizer, create_optimizer
from ltzoo.training.recipe import Recipe, RecipeError, RetrainingPart
from ltzoo.training.sizes import image_config, view_sizes
from ltzoo.training.training import Training
from ltzoo.training.trial import try_step

logger = logging.getLogger(__name__)

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

__all__ = [
    'can_record',
    'check_names',
    'create_accelerator',
    'create_learner',
    'create_loader',
    'describe_batch',
    'prepare_data',
    'prepare_training',
    'teachers_of',
    'warn_of_what_never_comes',
]


def check_names(recipe: Recipe) -> None:
    """Refuse what is misspelled before any image is read, which may take long.

    Raises:
        LtzooError: if there is no such data set, model, objective, optimiser or view.
    """
    check_data_name(recipe.data.name)
    check_model_name(recipe.model.name)
    check_objective(recipe.objective.name, recipe.objective.model_extra or {})
    for name in teachers_of(recipe):
        check_model_name(name)
    check_optimizer(recipe.optimizer.name)
    parse_views(recipe.views)


def prepare_training(
    recipe: Recipe, dataset: Dataset, accelerator: Accelerator, bank: Path, *, weights: bool = True
) -> Training:
    """Make all that the recipe trains with, and seed the generators.

    Args:
        dataset: as `prepare_data` gives it.
        bank: folder for the snapshots of GKP/GSA, made when the first is put there.
        weights: as in `create_learner`.

    Raises:
        LtzooError: if the parts do not go together, or not with the data; a step on noise is tried.
    """
    if recipe.method is not None and recipe.method.sharpness is not None and recipe.sync_batchnorm:
        raise RecipeError('sync_batchnorm=true cannot be combined with method.sharpness: leave it out')
    alone_on_cpu = accelerator.device.type == 'cpu' and accelerator.num_processes == 1
    if recipe.method is not None and recipe.compile and not alone_on_cpu:
        raise RecipeError(
            'compile=true with a method is for one process on a CPU: leave it out (on one GPU, cuda_graphs=true)'
        )
    set_seed(recipe.seed)
    _check_start(recipe, dataset)
    learner = create_learner(recipe, dataset, weights=weights)
    dataset = _fed_as_pretrained(recipe, dataset, learner.model)
    if isinstance(learner.objective, Distilled):
        _check_teachers(recipe, learner.objective, dataset)
    if recipe.reweighting is not None and 'reweighting_epoch' in (recipe.objective.model_extra or {}):
        raise RecipeError(
            f'objective {recipe.objective.name} weighs the classes itself, from objective.reweighting_epoch on, and '
            'reweighting would once more: leave it out'
        )
    if recipe.retraining is not None:
        _check_retraining(recipe, recipe.retraining, learner, dataset)
    if recipe.mixing is not None:
        _check_mixing(recipe, learner)
    if recipe.channels_last:
        learner.to(memory_format=torch.channels_last)
    if recipe.sync_batchnorm:
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)
    learner.to(accelerator.device)
    if recipe.accumulation > 1 and learner.objective.num_views > 1:
        logger.warning(
            'accumulation=%d: objective %s contrasts each piece of a batch with itself alone, which is another loss',
            recipe.accumulation,
            recipe.objective.name,
        )
    loader = create_loader(recipe, dataset, learner, accelerator)
    optimizer = create_optimizer(learner, recipe.optimizer)
    counts = torch.from_numpy(dataset.class_counts)
    replayed, rows_form = _replay(recipe, accelerator)
    try_step(learner, view_sizes(recipe, dataset), counts, recipe, accelerator, rows_form=rows_form)
    check_exportable(learner.model, image_config(recipe, dataset))
    if recipe.compile and recipe.method is None:
        learner.compile()
    method = _create_method(recipe, dataset, learner, rows_form, bank)
    prepared, optimizer = accelerator.prepare(learner, optimizer)
    step = Step(
        # The method sums gradients over processes itself.
        prepared if method is None else learner,
        optimizer,
        accelerator,
        method=method,
        accumulation=recipe.accumulation,
        clip_grad_norm=recipe.optimizer.clip_grad_norm,
        replayed=replayed,
    )
    set_seed(recipe.seed, device_specific=True)
    return Training(recipe, accelerator, dataset, learner, loader, optimizer, method, step)


def _check_retraining(recipe: Recipe, stage: RetrainingPart, learner: Learner, dataset: Dataset) -> None:
    """Refuse a second stage that goes against another part of the recipe, or that the model does not allow.

    Raises:
        RecipeError: if so.
        ClassesError: if a classifier that is kept is for the same classes in another order.
    """
    if recipe.method is not None or recipe.ema_decay is not None:
        other = 'a method' if recipe.method is not None else f'ema_decay={recipe.ema_decay}'
        raise RecipeError(f'retraining trains the classifier alone and cannot be combined with {other}: leave it out')
    if learner.objective.balanced or recipe.reweighting is not None:
        other = 'reweighting' if recipe.reweighting is not None else f'objective {recipe.objective.name}'
        raise RecipeError(
            f'retraining draws all classes equally often, and {other} makes up for their numbers once more: leave it '
            'out, or take objective.name=ce'
        )
    if stage.start_epoch == 0 and not recipe.model.is_trained:
        raise RecipeError(
            'retraining.start_epoch=0 would train a classifier of features that nothing has trained: take '
            'model.pretrained=true, or a later epoch'
        )
    classifier, kind = classifier_of(learner.model)
    if not hasattr(classifier, 'reset_parameters'):
        raise RecipeError(f'retraining trains a classifier of one layer; that of model {recipe.model.name} is {kind}')
    if stage.part == 'classifier':
        return
    if not isinstance(classifier, nn.Linear):
        linear = 'model.head=linear, or ' if isinstance(classifier, CosineLinear) else ''
        raise RecipeError(
            f'retraining.part=scales multiplies factors into a linear classifier; that of model {recipe.model.name} is '
            f'{kind}: take {linear}retraining.part=classifier'
        )
    model: Any = learner.model
    if stage.start_epoch == 0 and recipe.model.pretrained:
        classes = (model.pretrained_cfg or {}).get('num_classes')
        if classes != model.num_classes:
            raise RecipeError(
                f'retraining.part=scales keeps the classifier, and {recipe.model.name} comes with one of {classes} '
                f'classes for the {model.num_classes} here: take retraining.part=classifier'
            )
        check_classes(model, dataset, recipe.model.name, dataset.name)


def teachers_of(recipe: Recipe) -> list[str]:
    """Return the names of the networks that teach the recipe's, if some do."""
    if recipe.objective.name != 'distilled':
        return []
    return teacher_names((recipe.objective.model_extra or {}).get('teachers'))


def _check_teachers(recipe: Recipe, objective: Distilled, dataset: Dataset) -> None:
    """Refuse teachers of other classes, warn of those that have seen images of another size, and tell how ours are fed.

    Raises:
        ClassesError: if the classes are others, or in another order.
    """
    size = view_sizes(recipe, dataset)[0]
    for name, teacher in objective.teachers.items():
        check_classes(teacher, dataset, name, dataset.name)
        its_size = tuple(teacher.pretrained_cfg['input_size'][1:])
        if its_size != size:
            logger.warning(
                'the teacher %s was trained on images of %d x %d pixels, and gets them of %d x %d',
                name,
                *its_size,
                *size,
            )
    objective.feed(dataset.mean, dataset.std)


def _check_mixing(recipe: Recipe, learner: Learner) -> None:
    """Refuse mixed images where the objective takes none, or a method tells images by their class.

    Raises:
        RecipeError: if so.
    """
    if not learner.objective.takes_shares:
        raise RecipeError(
            f'objective {recipe.objective.name} does not take mixed images, which have shares of classes for labels: '
            'leave mixing out, or take objective.name=ce, logit_adjusted or bcl'
        )
    if recipe.method is not None:
        raise RecipeError('mixing cannot be combined with a method, which tells images by their class: leave it out')


def create_accelerator(recipe: Recipe, output: Path | None = None) -> Accelerator:
    """Return Accelerate's handle on device, processes and precision.

    Raises:
        RecipeError: if the recipe asks for what the device cannot do.
    """
    if recipe.precision == 'fp16' and not torch.cuda.is_available():
        raise RecipeError('precision=fp16 needs a GPU (on a CPU it would silently run in fp32): use fp32 or bf16')
    if recipe.cuda_graphs and recipe.precision == 'fp16':
        raise RecipeError('cuda_graphs=true cannot be combined with precision=fp16, whose loss scale changes: use bf16')
    available = {str(tracker) for tracker in get_available_trackers()}
    for tracker in recipe.trackers:
        if tracker not in available:
            raise RecipeError(f'trackers: {tracker} needs its package: pip install {tracker}')
    precision = 'no' if recipe.precision == 'fp32' else recipe.precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        # A training before this one in the same process had another, which Accelerate keeps.
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(recipe.trackers) if recipe.trackers and output is not None else None,
            project_dir=output,
            # The encoder has gradients at first, and none later on.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=recipe.retraining is not None)],
        )
    except ValueError as error:
        raise RecipeError(f'accelerate cannot be set up as asked: {one_line(error)}') from error
    if accelerator.distributed_type in _SHARDED:
        raise RecipeError(
            f'accelerate is configured for {accelerator.distributed_type.value}, which cuts the model up; what trains '
            'here needs it whole in every process: accelerate launch --multi_gpu'
        )
    on_cpu = accelerator.device.type == 'cpu'
    if recipe.method is not None and accelerator.device.type == 'mps':
        raise RecipeError('method computes in float64, which the device mps does not have: accelerate launch --cpu')
    if recipe.sync_batchnorm and on_cpu:
        raise RecipeError('sync_batchnorm=true needs GPUs: PyTorch has no SyncBatchNorm for CPUs')
    if recipe.precision == 'bf16' and on_cpu and _is_slow_in_bf16():
        logger.warning(
            'precision=bf16: this CPU has no AVX512-BF16 and is slower in bf16 than in fp32: use precision=fp32'
        )
    on_gpu = accelerator.device.type == 'cuda'
    if recipe.precision == 'bf16' and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.warning('precision=bf16: this GPU only emulates it, which is slow: use precision=fp16')
    pieces = accelerator.num_processes * recipe.accumulation
    if recipe.batch_size % pieces:
        raise RecipeError(
            f'batch_size {recipe.batch_size} must be a multiple of {pieces}: processes ({accelerator.num_processes}) '
            f'times accumulation ({recipe.accumulation})'
        )
    return accelerator


def _is_slow_in_bf16() -> bool:
    """Return whether an x86 CPU convolves in bf16 by way of fp32."""
    kind = torch.backends.cpu.get_cpu_capability()
    has_bf16 = getattr(torch.cpu, '_is_avx512_bf16_supported', lambda: True)
    return kind in {'AVX2', 'NO AVX'} or (kind == 'AVX512' and not has_bf16())


def prepare_data(recipe: Recipe) -> Dataset:
    """Load the recipe's data; its `test` is what the run is measured on."""
    part, measured = recipe.data, recipe.evaluation
    return load_parts(
        part.name,
        part.data_dir,
        split_seed=part.split_seed,
        download=part.download,
        split=measured.split,
        holdout_per_class=measured.holdout_per_class,
        unreadable=part.unreadable,
    )


def _check_start(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse a model to start from, or a teacher, that may know images of the drawn test set.

    There is a warning of one that knows the hold-out.

    Raises:
        EvaluationError: as `TrainedOn.check_draw`.
    """
    start = [recipe.model.name] if recipe.model.pretrained else []
    for name in [*start, *teachers_of(recipe)]:
        if name.startswith('timm/'):
            continue
        training = TrainedOn(name, (recipe.model.model_extra or {}).get('cache_dir'))
        before = training.on(dataset)
        if (
            recipe.evaluation.split == 'holdout'
            and before
            and _left_out(before.get('recipe')) != _left_out(recipe.decides_result())
        ):
            logger.warning('%s was trained on images of the hold-out: scores there will be too high', name)
        else:
            training.check_draw(dataset, otherwise='can be trained on in a folder of another name')


def _left_out(recipe: Any) -> list[Any]:
    """Return what of a recipe decides which training images are set aside."""
    keys = (('evaluation', 'split'), ('evaluation', 'holdout_per_class'), ('data', 'split_seed'))
    return [((recipe or {}).get(part) or {}).get(key) for part, key in keys]


def _fed_as_pretrained(recipe: Recipe, dataset: Dataset, model: Any) -> Dataset:
    """Return the data set, images of the user's own with the mean and deviation that a pretrained model has seen."""
    if not (recipe.model.pretrained and dataset.users_own):
        return dataset
    cfg = model.pretrained_cfg
    if len(cfg['mean']) != 3:
        return dataset
    return replace(dataset, mean=tuple(cfg['mean']), std=tuple(cfg['std']))


def create_learner(recipe: Recipe, dataset: Dataset, *, weights: bool = True) -> Learner:
    """Create the model for the data's classes, and its objective.

    Args:
        weights: whether to load those that the recipe starts from, if it starts from any.

    Raises:
        RecipeError: if the model's arguments are for another number of classes.
        LtzooError: as `create_model` and `create_objective`.
    """
    arguments = {'num_classes': dataset.num_classes, **(recipe.model.model_extra or {})}
    if arguments['num_classes'] != dataset.num_classes:
        raise RecipeError(
            f'model.num_classes={arguments["num_classes"]}, but {dataset.name} has {dataset.num_classes} classes: '
            'leave it out, it follows from the data'
        )
    if not weights:
        arguments.pop('checkpoint_path', None)
    try:
        model = create_model(recipe.model.name, pretrained=recipe.model.pretrained and weights, **arguments)
    except ModelArgumentError as error:
        for key in recipe.model.model_extra or {}:
            if hint := did_you_mean(key, ('name', 'pretrained'), cutoff=0.75, otherwise=''):
                raise RecipeError(f'there is no key model.{key}{hint}') from error
        raise
    counts = torch.from_numpy(dataset.class_counts)
    objective = create_objective(recipe.objective.name, model, counts, **(recipe.objective.model_extra or {}))
    late, stage = recipe.reweighting, recipe.retraining
    return Learner(
        model,
        objective,
        None if late is None else class_balanced_weights(counts, late.beta),
        0 if late is None else late.start_epoch,
        dataset.num_classes if stage is not None and stage.part == 'scales' else 0,
    )


def create_loader(recipe: Recipe, dataset: Dataset, learner: Learner, accelerator: Accelerator) -> TrainLoader:
    """Create the loader of the training set.

    Raises:
        RecipeError: if the number of views is not what the objective takes.
    """
    views = parse_views(recipe.views)
    needed = learner.objective.num_views
    if len(views) != needed:
        fitting = ', '.join(name for name, spec in PRESETS.items() if len(spec) == needed) or 'none'
        raise RecipeError(
            f'objective {recipe.objective.name} needs {needed} view{"s" * (needed > 1)}, and views has {len(views)}: '
            f'presets with {needed} are {fitting}'
        )
    loader = train_loader(
        dataset.train,
        views,
        dataset.mean,
        dataset.std,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=recipe.workers,
        recorded=can_record(recipe, accelerator),
        balanced_from=recipe.scheduled_epochs,
    )
    if recipe.mixing is None:
        return loader
    mixing = recipe.mixing.model_dump(exclude={'end_epoch'})
    until = min(recipe.mixing.end_epoch or recipe.epochs, recipe.scheduled_epochs)
    return MixedLoader(loader, dataset.num_classes, recipe.seed, **mixing, until=until)


def can_record(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Return whether views and steps are replayed as CUDA graphs: they hold no talk between processes."""
    return recipe.cuda_graphs and accelerator.device.type == 'cuda' and accelerator.num_processes == 1


def _replay(recipe: Recipe, accelerator: Accelerator) -> tuple[type[Recorded] | type[Compiled] | None, RowsForm]:
    """Return what replays the steps, if anything does, and the form of a method's rows that it needs."""
    if can_record(recipe, accelerator):
        return Recorded, 'one_hot'
    # The passes of an ordinary step are compiled without a trace.
    return (Compiled, 'sorted') if recipe.compile and recipe.method is not None else (None, 'sliced')


def _create_method(
    recipe: Recipe, dataset: Dataset, learner: Learner, rows_form: RowsForm, folder: Path
) -> GkpGsa | None:
    """Create the method's state, if the recipe has one; `folder` is for the bank's snapshots."""
    if recipe.method is None:
        return None
    return GkpGsa(
        learner,
        learner.model,
        torch.from_numpy(dataset.class_counts),
        dataset.train.labels,
        recipe.epochs,
        recipe.method,
        log_prior=learner.objective.logit_adjustment,
        folder=folder,
        rows_form=rows_form,
        seed=recipe.seed,
    )


def warn_of_what_never_comes(recipe: Recipe) -> None:
    """Log what the recipe has and the run is too short for."""
    last = recipe.trained_epochs
    run = f'a run of {last} epoch{"s" * (last != 1)}'
    schedule, method, first = recipe.schedule, recipe.method, min(recipe.scheduled_epochs, last)
    stage = run if first == last else f'a first stage of {first} epoch{"s" * (first != 1)}'
    if schedule.warmup_epochs > first > 0:
        logger.warning('schedule.warmup_epochs=%d: %s ends before the full rate', schedule.warmup_epochs, stage)
    if schedule.name != 'multistep' and schedule.milestones:
        logger.warning('schedule.milestones is ignored: it is for schedule.name=multistep, not %s', schedule.name)
    missed = [milestone for milestone in schedule.milestones if milestone >= first > 0]
    if schedule.name == 'multistep' and missed:
        logger.warning('schedule.milestones: %s ends before the rate falls at %s', stage, ', '.join(map(str, missed)))
    if recipe.retraining is not None and recipe.retraining.start_epoch >= last:
        start = recipe.retraining.start_epoch
        logger.warning('retraining.start_epoch=%d: %s ends before the classifier is trained alone', start, run)
    if recipe.reweighting is not None and recipe.reweighting.start_epoch >= last:
        start = recipe.reweighting.start_epoch
        logger.warning('reweighting.start_epoch=%d: %s ends before any class is weighed', start, run)
    weighed = (recipe.objective.model_extra or {}).get('reweighting_epoch')
    if isinstance(weighed, int) and weighed >= last:
        logger.warning('objective.reweighting_epoch=%d: %s ends before any class is weighed', weighed, run)
    if method is None:
        return
    late = method.first_grouping >= last
    if late and method.preservation is not None:
        logger.warning('method.first_grouping=%d: %s has no anchors before its end', method.first_grouping, run)
    if method.sharpness is not None:
        if late and method.group_by == 'bank':
            logger.warning('method.first_grouping=%d: %s has no groups before its end', method.first_grouping, run)
        elif method.sharpness.start_epoch >= last:
            start = method.sharpness.start_epoch
            logger.warning('method.sharpness.start_epoch=%d: %s ends before any step is perturbed', start, run)


def describe_batch(recipe: Recipe) -> str:
    """Return the shapes of one batch and of what the model makes of it, without training."""
    accelerator = create_accelerator(recipe)
    check_names(recipe)
    warn_of_what_never_comes(recipe)
    made = prepare_training(recipe, prepare_data(recipe), accelerator, Path('bank'))
    dataset, learner, loader = made.dataset, made.learner, made.loader
    batch = next(loader.epoch(0))
    with torch.no_grad():
        # Called itself, a compiled learner would be compiled first.
        losses = learner.forward(batch.views, batch.labels, batch.shares)
    parameters = sum(p.numel() for p in learner.model.parameters())
    extra = sum(p.numel() for p in learner.objective.parameters())
    return '\n'.join(
        [
            f'data: {dataset.name}, {len(dataset.train)} training images in {dataset.num_classes} classes, '
            f'{len(dataset.test)} to measure on ({recipe.evaluation.split})',
            f'model: {recipe.model.name}, {parameters:,} parameters; the objective adds {extra:,}',
            f'steps: {loader.steps_per_epoch} an epoch, {loader.steps_per_epoch * recipe.trained_epochs:,} in all',
            *(f'view {i + 1}: {tuple(view.shape)} {view.dtype}' for i, view in enumerate(batch.views)),
            f'labels: {tuple(batch.labels.shape)}; losses: {tuple(losses.shape)}, mean {losses.mean():.4f}',
        ]
    )
