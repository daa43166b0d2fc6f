"""Any model of timm or of this package, saved by timm's or another training script under the model's own names.

The weights are the first of the entries `state_dict_ema`, `model_ema` (averaged weights come first, as timm loads
them), `state_dict`, `model`, `net`, or the whole file; prefixes `module.`, `model.` and `_orig_mod.`, which every name
has, are taken away. The number of classes is that of the classifier in the file; images are fed as timm feeds them.
"""

from __future__ import annotations

import difflib
from typing import Any

from timm.models import is_model, split_model_name_tag
from timm.models import list_models as list_all_models

from ltzoo.models.checkpoints.families import Options, family
from ltzoo.models.checkpoints.networks import Network
from ltzoo.models.checkpoints.reading import ConversionError
from ltzoo.models.checkpoints.weights import Checkpoint, LayoutError, Weights
from ltzoo.models.entries import entry_of
from ltzoo.models.factory import get_pretrained_cfg, list_models
from ltzoo.models.lt_experts import SHAPES

_AVERAGED = ('state_dict_ema', 'model_ema')
_PLAIN = ('state_dict', 'model', 'net')


@family('timm', repository='huggingface/pytorch-image-models')
def timm(checkpoint: Checkpoint, options: Options) -> Network:
    if options.arch is None:
        raise ConversionError("timm needs --arch: the name of timm's, or this package's, model that the weights are of")
    base = split_model_name_tag(options.arch.removeprefix('timm/'))[0]
    if not is_model(base):
        near = difflib.get_close_matches(base, dict.fromkeys([*list_models(), *list_all_models()]), n=3, cutoff=0)
        raise ConversionError(f'no model is called {options.arch!r}: the nearest are {", ".join(near)}')
    name = options.arch if options.arch.startswith('timm/') or base in list_models() else f'timm/{options.arch}'
    weights = checkpoint.weights(*_AVERAGED, *_PLAIN)
    plain = [key for key in _PLAIN if key in checkpoint.content]
    if plain and checkpoint.used & {*_AVERAGED}:
        checkpoint.used.update(plain)
        weights.dropped['weights that are not averaged'] = plain
    _strip(weights)
    cfg = get_pretrained_cfg(name).to_dict()
    if not cfg['classifier']:
        raise ConversionError(f'{options.arch} has no classifier, so it classifies nothing')
    head = cfg['classifier'] if isinstance(cfg['classifier'], str) else cfg['classifier'][0]
    shape = weights.shape(f'{head}.weight')
    if len(shape) < 2:
        raise LayoutError(f'{head}.weight has shape {shape}, which is no classifier')
    images = {key: cfg[key] for key in ('input_size', 'mean', 'std', 'crop_pct', 'crop_mode', 'interpolation')}
    arguments: dict[str, Any] = {'num_classes': shape[0]}
    entry = entry_of(name)
    if (entry.backbone if entry else base) in SHAPES:
        if len(shape) != 3:
            raise LayoutError(f'{head}.weight has shape {shape}, which are no classifiers of several experts')
        kind = 'linear' if f'{head}.bias' in weights else 'cosine'
        arguments = {'num_classes': shape[1], 'num_experts': shape[0], 'head': kind}
    return Network(weights, name, arguments, images)


def _strip(weights: Weights) -> None:
    prefixes = ('module.', 'model.', '_orig_mod.')
    while prefix := next((p for p in prefixes if all(name.startswith(p) for name in weights.tensors)), None):
        weights.rename(prefix.replace('.', r'\.'), '')
