"""Model cards: what a model is, how it was trained, what it scores, what it is for and not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from ltzoo.models.entries import entry_of, method_of
from ltzoo.models.lt_zoo import METHODS, ZooEntry
from ltzoo.models.papers import PAPERS, citation

__all__ = [
    'METRICS', 'PLACE', 'architecture_of', 'eval_results', 'front_matter', 'licence_of', 'model_card', 'planned_card',
    'usage',
]  # fmt: skip

TAGS = ('ltzoo', 'timm', 'image-classification', 'long-tailed')

# What loads a model whose folder is not known yet.
PLACE = 'local-dir:FOLDER'

# What is reported: the Hub's name of the metric, and the title.
METRICS = {
    'top1': ('accuracy', 'Top-1'),
    'many': ('accuracy', 'Many-shot'),
    'medium': ('accuracy', 'Medium-shot'),
    'few': ('accuracy', 'Few-shot'),
    'balanced_accuracy': ('balanced_accuracy', 'Balanced accuracy'),
    'ece': ('ece', 'Expected calibration error'),
}

# Licences of timm's weights that the Hub knows by the same name; others are given to it as `other`, with their name.
_LICENCES_OF_THE_HUB = {
    'apache-2.0', 'apple-amlr', 'apple-ascl', 'bsd-3-clause', 'cc-by-nc-4.0', 'gemma', 'mit', 'other', 'unknown',
}  # fmt: skip

# The Hub's data sets that benchmarks are cut from.
_HUB_DATA = {'cifar100': 'uoft-cs/cifar100', 'cifar10': 'uoft-cs/cifar10', 'imagenet': 'ILSVRC/imagenet-1k'}

_PURPOSE = """## Intended use

Comparing methods for long-tailed recognition, starting point for tuning on related images, teaching. It is no ground
for decisions about people."""


def model_card(
    lt: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any],
    *,
    results: Mapping[str, Any] | None = None,
    plots: Sequence[str] = (),
    place: str = PLACE,
) -> str:
    """Return the card of a trained model as Markdown with front matter that the Hub reads.

    Args:
        lt: data, class_counts, many_above, few_below, recipe, seed, split and scores of the training that made the
            weights, as `export_model` takes them.
        pretrained_cfg: timm's, for architecture, licence and paper.
        results: of several trainings, as `ltzoo.get_results` returns them, to show beside the scores of `lt`, which are
            those of the weights.
        plots: files beside the card to show.
        place: the name that loads the model.
    """
    recipe, data = lt['recipe'], lt['data']
    name = recipe['model']['name']
    entry = entry_of(name)
    results = results or {}
    # The zoo's own names say the data, and are those of results of its recipes alone.
    title = name if results.get('hub_id') else f'{entry.backbone if entry else name} on {data}'
    scores = {key: lt['scores'][key] for key in METRICS}
    counts = lt['class_counts']
    paper = pretrained_cfg.get('paper_name')
    source = f'- Reference: {paper} ({pretrained_cfg.get("paper_ids")})\n' if paper else ''
    part = 'the test set' if lt['split'] == 'test' else 'a hold-out, not the test set'
    stop, epochs = recipe.get('stop_epoch'), recipe['epochs']
    if stop is not None:
        epochs, end = f'{stop} of {epochs}', f'epoch {stop}, at which training was ended'
    else:
        end = 'the last epoch'
    front = front_matter(title, licence_of(pretrained_cfg, lt), data, lt['split'], scores)
    return f"""---
{front.to_yaml()}
---

# {title}

An image classifier for long-tailed data, trained with ltzoo.

- Architecture: {pretrained_cfg['architecture'] if entry is None else entry.backbone}
- Classes: {len(counts)}, with {max(counts)} to {min(counts)} training images ({sum(counts):,} in all)
{source}- Method: {method_of(recipe)}, {epochs} epochs of batches of {recipe['batch_size']}
- Seed: {lt['seed']}

## Use

{usage(place, pretrained=True)}

## Scores

In percent, on {lt['scores']['samples']:,} images of {part}, after {end}{_seeds(results)}.

{_table(scores, results)}

Many-shot classes have more than {lt['many_above']} training images, few-shot classes fewer than {lt['few_below']}.
{''.join(f'{chr(10)}![{plot.partition(".")[0]}]({plot}){chr(10)}' for plot in plots)}
{_PURPOSE}

## Recipe
{_command(results)}
```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False).rstrip()}
```

## Limits

The scores hold for images like those of {data}.
A class with few training images is recognised less reliably, and confidences are off by the calibration error above
on average.
{citation(paper, pretrained_cfg.get('paper_ids'))}"""


def planned_card(entry: ZooEntry, paper: Mapping[str, Any] | None) -> str:
    """Return the card of a model of the zoo that has no published weights: how to make them, and no score of ours.

    Args:
        entry: its row of the zoo's table.
        paper: what the method's paper reports, as `paper_results` returns it.
    """
    cfg = entry.pretrained_cfg
    front = front_matter(entry.full_name, cfg.license)
    rows = ''
    if paper:
        rows = f"""
## What the GKP/GSA paper reports

{_table({}, {'paper': paper})}
"""
    method = METHODS[entry.method]
    cited = citation(method.paper.title, method.paper.id) if method.paper else ''
    return f"""---
{front.to_yaml()}
---

# {entry.full_name}

An image classifier for long-tailed data. **There are no weights of it yet**, and no scores of ours: no
training of this recipe has been finished.

- Architecture: {entry.backbone}
- Data: {entry.tag}, {cfg.num_classes} classes
- Method: {method.trained_with}

## Make the weights

```bash
accelerate launch recipes/train.py {entry.recipe} data.data_dir=DATA output=RUN
python tools/export.py RUN --to DIR
```

## Use

The network without trained weights:

{usage(entry.full_name, pretrained=False)}
{rows}
{_PURPOSE}

## Limits

Not measured by us yet.
{cited}"""


def eval_results(results: Mapping[str, Any], shots: bool = True) -> str | None:
    """Return the file `.eval_results/NAME.yaml` of a model's results; None if they are not of a test set of the Hub's.

    Args:
        results: as `ltzoo.get_results` returns them.
        shots: whether Many, Medium and Few belong into it: those of other thresholds are other numbers.
    """
    dataset = _HUB_DATA.get(results['data'].partition('_')[0])
    if dataset is None or any(run['split'] != 'test' for run in results['runs']):
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f'{results["data"]}_{key}',
            value=round(score['values'][0], 2),
            notes=f'these weights: last epoch, seed {results["weights_seed"]}',
        )
        for key, score in results['scores'].items()
        if score is not None and (shots or key not in ('many', 'medium', 'few'))
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the name of the network in a config.json, of a timm model with a head of ours that of the timm model."""
    return str(config.get('model_args', {}).get('backbone', config['architecture']))


def licence_of(pretrained_cfg: Mapping[str, Any], lt: Mapping[str, Any]) -> str:
    """Return the licence of trained weights.

    It is that which their configuration names, as that of weights which they started from, else the zoo's. What was
    trained from the start on own images, or started from weights that name none, has none: it is for who made it to
    say.
    """
    model = lt['recipe']['model']
    pretrained = model.get('pretrained')
    if model.get('checkpoint_path') or (':' in lt['data'] and not pretrained):
        return 'other'
    if not pretrained and model.get('name', '').startswith('timm/'):
        # Its configuration names that of weights which this training has not seen.
        return 'apache-2.0'
    named = pretrained_cfg.get('license')
    return named if named and isinstance(named, str) else 'other' if pretrained else 'apache-2.0'


def front_matter(
    title: str,
    licence: str | None,
    data: str = '',
    split: str = 'test',
    scores: Mapping[str, float | None] = MappingProxyType({}),
) -> ModelCardData:
    """Return what stands above a card, as the Hub reads it; scores, in percent, by the keys of `METRICS`."""
    known = {key: score for key, score in scores.items() if score is not None}
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=data.replace(':', '-').replace('/', '-'),
            dataset_name=data,
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=round(known[key], 2),
        )
        for key, (metric, name) in METRICS.items()
        if key in known
    ]
    known_there = licence is None or licence in _LICENCES_OF_THE_HUB
    return ModelCardData(
        library_name='timm',
        license=licence if known_there else 'other',
        license_name=None if known_there else licence,
        pipeline_tag='image-classification',
        tags=list(TAGS),
        model_name=title,
        eval_results=results or None,
    )


def usage(name: str, pretrained: bool) -> str:
    """Return, in Markdown, how the model of this name is loaded and used."""
    return f"""```python
import ltzoo

model, _, transform = ltzoo.create_model_and_transforms('{name}', pretrained={pretrained})
logits = model.eval()(transform(image).unsqueeze(0))  # image: a PIL image in RGB
```"""


def _seeds(results: Mapping[str, Any]) -> str:
    seeds = sorted(results.get('seeds') or [])
    if len(seeds) < 2:
        return '; one seed'
    said = f'; mean and sample standard deviation of seeds {", ".join(map(str, seeds))}'
    by_seed = {run['seed']: _processes(run['environment']) for run in results['runs']}
    if len(set(by_seed.values())) == 1:
        return said
    # Batch-norm's statistics are each process's own: such seeds differ in more than chance.
    return f'{said}, trained by {", ".join(by_seed[seed] for seed in seeds)} processes'


def _processes(environment: Mapping[str, Any]) -> str:
    """Return by how many processes a run was trained, one number after the other where they changed."""
    parts = (*(environment.get('earlier') or ()), environment)
    return ' then '.join(dict.fromkeys(str(part.get('processes', 1)) for part in parts))


def _table(scores: Mapping[str, float | None], results: Mapping[str, Any]) -> str:
    paper, seeds = results.get('paper') or {}, results.get('seeds') or []
    several = {}
    if len(seeds) > 1:
        several = {
            key: 'none' if score is None else f'{score["mean"]:.2f} ± {score["std"]:.2f}'
            for key, score in results['scores'].items()
        }
    ours = {key: 'none' if score is None else f'{score:.2f}' for key, score in scores.items()}
    theirs = {key: f'{paper[key]:.1f}' for key in METRICS if key in paper}
    own = f'these weights, seed {results["weights_seed"]}' if several else 'ltzoo'
    columns = [
        (title, column)
        for title, column in ((f'ltzoo, {len(seeds)} seeds', several), (own, ours), ('paper', theirs))
        if column
    ]
    lines = ['| | ' + ' | '.join(title for title, _ in columns) + ' |', '|' + '---|' * (len(columns) + 1)]
    for key, (_, title) in METRICS.items():
        if any(key in column for _, column in columns):
            lines.append(f'| {title} | ' + ' | '.join(column.get(key, '') for _, column in columns) + ' |')
    if paper:
        last = '; ours are of the last' if scores else ''
        where = f'*{PAPERS["gkpgsa"].title}* ({paper["source"]})'
        lines += ['', f'Paper: {where}. It does not say which epoch its numbers are of{last}.']
    return '\n'.join(lines)


def _command(results: Mapping[str, Any]) -> str:
    if not results.get('recipe'):
        return ''
    commit = f', at commit {results["commit"]}' if results.get('commit') else ''
    # Those of the weights' run, which may not have been trained at one commit, or by as many processes, throughout.
    run = results['runs'][0]['environment']
    processes = run.get('processes', 1)
    for part in run.get('earlier') or ():
        others = part.get('processes', processes) != processes
        if others or part['commit'] != results.get('commit'):
            commit += f', until epoch {part["until_epoch"]} {part["commit"]}'
            commit += f' with {part["processes"]} processes' if others else ''
    launch = f'accelerate launch {"--multi_gpu " if processes > 1 else ""}--num_processes {processes}'
    if processes > 1 and run.get('device') == 'cpu':
        # Accelerate starts one process there.
        launch = f'ACCELERATE_USE_CPU=1 torchrun --nproc_per_node {processes}'
    command = f'{launch} recipes/train.py {results["recipe"]} seed={results["weights_seed"]}'
    return f'\n`{command}`{commit}:\n'
