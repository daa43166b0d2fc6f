"""The card of an exported model: what it is, how it was trained, what it scores, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

__all__ = ['model_card']

_METRICS = {
    'top1': ('accuracy', 'Top-1'),
    'many': ('accuracy', 'Many-shot'),
    'medium': ('accuracy', 'Medium-shot'),
    'few': ('accuracy', 'Few-shot'),
    'balanced_accuracy': ('balanced_accuracy', 'Balanced accuracy'),
    'ece': ('ece', 'Expected calibration error'),
}


def model_card(lt: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]) -> str:
    """Return the card as Markdown with front matter that the Hub reads, one seed's scores in it.

    Args:
        lt: data, class_counts, many_above, few_below, recipe, seed, split and scores of the training, as
            `export_model` takes them.
        pretrained_cfg: timm's, for architecture, licence and paper.
    """
    scores, recipe = lt['scores'], lt['recipe']
    data, split = lt['data'], lt['split']
    name = f'{recipe["model"]["name"]} on {data}'
    known = {key: scores[key] for key in _METRICS if scores[key] is not None}
    front = ModelCardData(
        library_name='timm',
        license=pretrained_cfg.get('license') or 'apache-2.0',
        pipeline_tag='image-classification',
        tags=['ltzoo', 'timm', 'image-classification', 'long-tailed'],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type='image-classification',
                dataset_type=data.replace(':', '-').replace('/', '-'),
                dataset_name=data,
                dataset_split=split,
                metric_type=metric,
                metric_name=title,
                metric_value=round(known[key], 2),
            )
            for key, (metric, title) in _METRICS.items()
            if key in known
        ],
    )
    counts = lt['class_counts']
    rows = '\n'.join(
        f'| {title} | {"none" if scores[key] is None else f"{scores[key]:.2f}"} |'
        for key, (_, title) in _METRICS.items()
    )
    paper = pretrained_cfg.get('paper_name')
    source = f'- Paper: {paper} ({pretrained_cfg.get("paper_ids")})\n' if paper else ''
    part = 'the test set' if split == 'test' else 'a hold-out of training images, not the test set'
    return f"""---
{front.to_yaml()}
---

# {name}

An image classifier for long-tailed data, trained with ltzoo.

- Architecture: {pretrained_cfg['architecture']}
- Classes: {len(counts)}, with {max(counts)} to {min(counts)} training images ({sum(counts):,} in all)
{source}- Objective: {recipe['objective']['name']}, {recipe['epochs']} epochs of batches of {recipe['batch_size']}
- Seed: {lt['seed']}

## Use

```python
import ltzoo

model, _, transform = ltzoo.create_model_and_transforms('local-dir:FOLDER', pretrained=True)
logits = model.eval()(transform(image).unsqueeze(0))      # image: a PIL image in RGB
```

## Scores

In percent, on {scores['samples']:,} images of {part}, after the last epoch; one seed.

| | |
|---|---|
{rows}

Many-shot classes have more than {lt['many_above']} training images, few-shot classes fewer than {lt['few_below']}.

## Recipe

```yaml
{yaml.safe_dump(dict(recipe), sort_keys=False).rstrip()}
```

## Limits

The scores hold for images like those of {data}. A class with few training images is recognised less reliably, and
confidences are off by the calibration error above on average. It is no ground for decisions about people.
"""
