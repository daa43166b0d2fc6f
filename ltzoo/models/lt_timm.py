"""Any timm model as backbone, with a head of ours."""

from __future__ import annotations

from typing import Any

from timm.models import model_entrypoint, register_model, split_model_name_tag

from ltzoo.models.heads import Head, build_with_head

__all__ = ['lt_timm']


@register_model
def lt_timm(
    pretrained: bool = False,
    pretrained_cfg: str | dict[str, Any] | None = None,
    *,
    backbone: str = 'resnet50',
    head: Head = 'cosine',
    **kwargs: Any,
) -> Any:
    """A timm model with an exchanged head, under a name that saves and loads it.

    `pretrained=True` loads timm's weights of the backbone and leaves a cosine head untrained; from a saved folder it
    loads backbone and head.

    Args:
        pretrained: load weights.
        pretrained_cfg: that of a saved model; else the backbone's, by default its own.
        backbone: timm's name of it, with or without a tag.
        head: see `build_with_head`.
        **kwargs: `head_scale`, and what timm's model takes.

    Raises:
        HeadError: if there is no such head, or the backbone cannot have it.
    """
    # timm says where it has read that of a saved model.
    saved = isinstance(pretrained_cfg, dict) and bool(pretrained_cfg.get('source'))
    _, tag = split_model_name_tag(backbone)
    model = build_with_head(
        model_entrypoint(backbone),
        pretrained,
        head=head,
        encoder_weights=not saved,
        pretrained_cfg=tag if pretrained_cfg is None else pretrained_cfg,
        **kwargs,
    )
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'architecture': 'lt_timm'}
    return model
