"""The base of every error that means: what was asked cannot be done as asked."""

import difflib
from collections.abc import Iterable

__all__ = ['LtzooError', 'did_you_mean']


class LtzooError(Exception):
    """One sentence that names the input, what is wrong with it and what would be right.

    Tools print it and exit with code 2.
    """


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return how a sentence on an unknown name ends: `; did you mean X?`, or a full stop where nothing is near.

    Args:
        cutoff: how alike X has to be, from 0 to 1, as `difflib.get_close_matches` counts it.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f'; did you mean {near[0]}?' if near else '.'
