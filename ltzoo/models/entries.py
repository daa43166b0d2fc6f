"""What is known of the zoo's published weights: where they are, how they were made, what they score.

Every published model has a folder `weights/NAME.TAG` here with its `results.json` and test vectors; small models have
their weights in it too, so that they load without a network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from timm.models import split_model_name_tag

from ltzoo.errors import LtzooError
from ltzoo.models.lt_zoo import ZOO, ZooEntry
from ltzoo.models.paper_results import PAPER_RESULTS

__all__ = ['NoWeightsError', 'entry_of', 'get_results', 'method_of', 'paper_results']


class NoWeightsError(LtzooError, LookupError):
    """A model that nobody has published weights of."""


def entry_of(name: str) -> ZooEntry | None:
    """Return the row of the zoo's table that a name, with or without a tag, stands for; None if it is no name of it."""
    base, tag = split_model_name_tag(name)
    return next((entry for entry in ZOO.values() if entry.name == base and tag in ('', entry.tag)), None)


def method_of(recipe: Mapping[str, Any]) -> str:
    """Return what a recipe trains with: `gkpgsa` as the paper has it, else the objective and the parts added to it."""
    method = recipe.get('method') or {}
    given = (key for key in ('mixing', 'reweighting', 'retraining') if recipe.get(key))
    # What such a run ends before is no part of it.
    last = recipe.get('stop_epoch') or recipe.get('epochs', math.inf)
    added = [key for key in given if recipe[key].get('start_epoch', 0) < last]
    if 'retraining' in added and recipe['retraining'].get('part') == 'scales':
        added[added.index('retraining')] = 'scaling'
    added += [key for key in ('preservation', 'sharpness') if method.get(key)]
    parts = [recipe['objective']['name'], *added]
    return 'gkpgsa' if parts == ['bcl', 'preservation', 'sharpness'] else ' + '.join(parts)


def get_results(name: str) -> dict[str, Any]:
    """Return everything known of a model's published weights.

    Args:
        name: a zoo name, with or without a tag.

    Returns:
        `name`, `hub_id`, `sha256` (of model.safetensors), `data`, `imbalance_ratio`, `method`, `recipe`, `commit`,
        `seeds`, `weights_seed` (that of the weights), `license`; `scores`: for top1, many, medium, few,
        balanced_accuracy and ece the `mean`, the sample standard deviation `std` (n - 1; None for one seed) and the
        `values` of the seeds, in percent, or None for a shot without classes; `paper`: as `paper_results`; `runs`: of
        each seed, that of the weights first, `seed`, `split`, `samples`, the scores with `per_class`,
        `training_seconds`, `environment`.

    Raises:
        NoWeightsError: if no weights are published, or the zoo has no such model.
    """
    entry = entry_of(name) if isinstance(name, str) else None
    if entry is None:
        raise NoWeightsError(f'{name} is no model of the zoo: list_pretrained() has those with results')
    if entry.folder is None:
        raise NoWeightsError(f'no weights are published yet for {entry.full_name}, so there are no results')
    results: dict[str, Any] = json.loads((entry.folder / 'results.json').read_text(encoding='utf-8'))
    return {**results, 'hub_id': entry.hub_id, 'paper': paper_results(name)}


def paper_results(name: str) -> dict[str, Any] | None:
    """Return what the GKP/GSA paper reports for a model's method: `top1`, `many`, `medium`, `few` as far as given.

    `source` is the table there.

    Args:
        name: a zoo name, with or without a tag; for any other there is None.
    """
    entry = entry_of(name)
    row = None if entry is None else PAPER_RESULTS.get(entry.full_name)
    return None if row is None else dict(row)
