"""The table of the zoo's names, `architecture_data_method`, and their registration with timm.

A tag behind a dot says which data exactly, by the name that `ltzoo.data.load_data` takes:
`resnet32_cifar_bcl.cifar10_lt_r50`. The first tag of a row is the default.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    generate_default_cfgs,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)

from ltzoo.models.heads import Head, build_with_head
from ltzoo.models.papers import PAPERS, Paper
from ltzoo.normalisation import CIFAR_MEAN, CIFAR_STD, INAT18_MEAN, INAT18_STD

__all__ = [
    'ARCHITECTURES',
    'DATA',
    'METHODS',
    'PLACES',
    'ZOO',
    'Architecture',
    'Data',
    'Method',
    'ZooEntry',
    'organisation',
]

# What says in a pretrained_cfg where weights are.
PLACES = {'file', 'url', 'state_dict', 'hf_hub_id', 'hf_hub_filename'}
# A folder for every published model, with its results and, while it is small, its weights.
_WEIGHTS = Path(__file__).parent / 'weights'


def organisation() -> str:
    """Return whose models are loaded from the Hub: the environment variable LTZOO_ORG, else 'ltzoo'."""
    return os.environ.get('LTZOO_ORG') or 'ltzoo'


@dataclass(frozen=True)
class Architecture:
    """A network: the entry points that build it and its form with experts, its paper, and arguments of the first."""

    backbone: str
    experts: str
    paper: Paper
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A benchmark: its forms (tag: number of classes), the architectures and methods it is for, how images are fed.

    `recipe` is the rule that names the file that trains on it.
    """

    classes: dict[str, int]
    architectures: tuple[str, ...]
    recipe: str
    methods: tuple[str, ...] = ('ce', 'focal', 'crt', 'lws', 'ride', 'bs', 'bcl', 'gkpgsa')
    input_size: tuple[int, int, int] = (3, 224, 224)
    pool_size: tuple[int, int] = (7, 7)
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD


@dataclass(frozen=True)
class Method:
    """A way of training: the head it leaves behind, what `method_of` calls its recipes, its paper, if it has experts.

    Plain cross-entropy has no paper of its own; the architecture's stands in its place.
    """

    head: Head
    trained_with: str
    paper: Paper | None = None
    experts: bool = False


# BCL's networks begin with residual branches that are at work; timm's begin with none.
_AT_WORK = {'zero_init_last': False}

ARCHITECTURES = {
    'resnet32': Architecture('resnet32_cifar', 'resnet32_cifar_experts', PAPERS['resnet']),
    'resnet50': Architecture('resnet50', 'resnet50_experts', PAPERS['resnet'], _AT_WORK),
    'resnext50': Architecture('resnext50_32x4d', 'resnext50_experts', PAPERS['resnext'], _AT_WORK),
}

DATA = {
    'cifar': Data(
        {f'cifar{classes}_lt_r{ratio}': classes for classes in (100, 10) for ratio in (100, 50, 10)},
        ('resnet32',),
        'recipes/{tag}/{method}.yaml',
        (
            *('ce', 'focal', 'ldam_drw', 'ldam_drw_sam', 'crt', 'lws', 'ride'),
            *('bs', 'bcl', 'bcl_sam', 'gkpgsa_paper', 'gkpgsa'),
        ),
        input_size=(3, 32, 32),
        pool_size=(8, 8),
        crop_pct=1.0,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    ),
    'imagenetlt': Data({'imagenet_lt': 1000}, ('resnet50', 'resnext50'), 'recipes/{tag}/{method}_{architecture}.yaml'),
    'inat18': Data(
        {'inat18': 8142},
        ('resnet50',),
        'recipes/{tag}/{method}_{architecture}.yaml',
        mean=INAT18_MEAN,
        std=INAT18_STD,
    ),
}

_GKPGSA = Method('cosine', 'gkpgsa', PAPERS['gkpgsa'])

# `gkpgsa` has our setting, `gkpgsa_paper` the paper's.
METHODS = {
    'ce': Method('linear', 'ce'),
    'focal': Method('linear', 'focal', PAPERS['focal']),
    'ldam_drw': Method('cosine', 'ldam + reweighting', PAPERS['ldam']),
    'ldam_drw_sam': Method('cosine', 'ldam + reweighting + sharpness', PAPERS['sam_on_tails']),
    'crt': Method('linear', 'ce + retraining', PAPERS['decoupling']),
    'lws': Method('linear', 'ce + scaling', PAPERS['decoupling']),
    'ride': Method('cosine', 'ride', PAPERS['ride'], experts=True),
    'bs': Method('linear', 'logit_adjusted', PAPERS['balanced_softmax']),
    'bcl': Method('cosine', 'bcl', PAPERS['bcl']),
    'bcl_sam': Method('cosine', 'bcl + sharpness', PAPERS['sam']),
    'gkpgsa_paper': _GKPGSA,
    'gkpgsa': _GKPGSA,
}


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo: keys into the tables above, and the tag, which names the data set."""

    architecture: str
    data: str
    method: str
    tag: str

    @property
    def name(self) -> str:
        """Its name without the tag."""
        return f'{self.architecture}_{self.data}_{self.method}'

    @property
    def full_name(self) -> str:
        """Its name with the tag."""
        return f'{self.name}.{self.tag}'

    @property
    def backbone(self) -> str:
        """The entry point that builds its network."""
        architecture = ARCHITECTURES[self.architecture]
        return architecture.experts if METHODS[self.method].experts else architecture.backbone

    @property
    def hub_id(self) -> str:
        """Where it is on the Hub; the default tag is left out."""
        default = next(iter(DATA[self.data].classes))
        return f'{organisation()}/{self.name if self.tag == default else self.full_name}'

    @property
    def folder(self) -> Path | None:
        """The folder of its results, and of its weights while they are small; None if it is not published."""
        folder = _WEIGHTS / self.full_name
        return folder if (folder / 'results.json').is_file() else None

    def _label_names(self) -> tuple[str, ...] | None:
        config = self.folder and self.folder / 'config.json'
        if not config or not config.is_file():
            return None
        names = json.loads(config.read_text(encoding='utf-8')).get('label_names')
        return tuple(names) if names else None

    @property
    def recipe(self) -> str:
        """The file that `recipes/train.py` makes its weights from."""
        rule = DATA[self.data].recipe
        return rule.format(tag=self.tag, method=self.method, architecture=self.architecture)

    @property
    def pretrained_cfg(self) -> PretrainedCfg:
        """What timm keeps about it."""
        architecture, data, method = ARCHITECTURES[self.architecture], DATA[self.data], METHODS[self.method]
        paper = method.paper or architecture.paper
        weights = self.folder and self.folder / 'model.safetensors'
        return PretrainedCfg(
            hf_hub_id=self.hub_id if self.folder else None,
            file=str(weights) if weights and weights.is_file() else None,
            num_classes=data.classes[self.tag],
            label_names=self._label_names(),  # type: ignore[arg-type]  # of any length
            input_size=data.input_size,
            pool_size=data.pool_size,
            crop_pct=data.crop_pct,
            interpolation='bilinear',
            mean=data.mean,
            std=data.std,
            first_conv='conv1',
            classifier='fc',
            license='apache-2.0',
            paper_name=paper.title,
            paper_ids=paper.id,
        )


ZOO = {
    entry.full_name: entry
    for entry in (
        ZooEntry(architecture, data, method, tag)
        for data, row in DATA.items()
        for architecture in row.architectures
        for method in row.methods
        for tag in row.classes
    )
}


def _default_cfgs(cfgs: Mapping[str, PretrainedCfg]) -> dict[str, DefaultCfg]:
    """Return what timm keeps of each name's tags: the first one is the default, whichever has weights."""
    made = generate_default_cfgs(dict(cfgs))
    for name in made.values():
        # timm has put the first tag with weights in front.
        name.tags = deque(name.cfgs)
    return dict(made)


default_cfgs = _default_cfgs({name: entry.pretrained_cfg for name, entry in ZOO.items()})


def _register(entry: ZooEntry) -> None:
    name, backbone = entry.name, entry.backbone
    architecture, method = ARCHITECTURES[entry.architecture], METHODS[entry.method]

    def create(
        pretrained: bool = False,
        pretrained_cfg: str | dict[str, Any] | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        head: Head | None = None,
        **kwargs: Any,
    ) -> Any:
        overlay = dict(pretrained_cfg_overlay or {})
        if overlay.keys() & PLACES:
            # The file in this package would come first.
            overlay.setdefault('file', None)
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, overlay).to_dict()
        if method.experts:
            # They have heads of either kind themselves.
            return model_entrypoint(backbone)(
                pretrained=pretrained, pretrained_cfg=cfg, head=head or method.head, **kwargs
            )
        if method.head == 'linear' and head is None and 'head_scale' not in kwargs:
            # Nothing of ours is in such a model, so it is saved as what it is, and timm alone can load it.
            cfg['architecture'] = backbone
        return build_with_head(
            model_entrypoint(backbone),
            pretrained,
            head=head or method.head,
            pretrained_cfg=cfg,
            **{**architecture.arguments, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f'{backbone} as {entry.method} trains it; `ltzoo.get_results` says what is published of it.'
    # timm names the entry point in its module's __all__.
    globals()[name] = register_model(create)


for _entry in {entry.name: entry for entry in ZOO.values()}.values():
    _register(_entry)
