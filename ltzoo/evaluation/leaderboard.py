"""One HTML file with all that was measured, sortable and filtered, head against tail, and the papers' numbers apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['leaderboard']

_TEMPLATE = Path(__file__).with_name('leaderboard.html')


def leaderboard(rows: Sequence[Mapping[str, Any]], papers: Sequence[Mapping[str, Any]]) -> str:
    """Return a page that needs nothing but itself.

    Args:
        rows: what was measured, with the keys of `ltzoo.evaluation.benchmark.COLUMNS`.
        papers: what papers report: model, data, top1, source, and as far as given many, medium, few.
    """
    # Inside a script element only this could end it.
    data = json.dumps({'rows': list(rows), 'papers': list(papers)}).replace('<', '\\u003c')
    return _TEMPLATE.read_text(encoding='utf-8').replace('"DATA"', data)
