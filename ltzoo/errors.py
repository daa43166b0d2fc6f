"""The base of every error that means: what was asked cannot be done as asked; and what their sentences share."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    'GkpGsaError',
    'LtzooError',
    'did_you_mean',
    'first_of',
    'is_out_of_memory',
    'one_line',
    'one_of',
    'saying_no_memory',
]


class LtzooError(Exception):
    """One sentence that names the input, what is wrong with it and what would be right.

    Tools print it and exit with code 2.
    """


class GkpGsaError(LtzooError, ValueError):
    """Settings, a model, parameters or samples that GKP/GSA, or a part of it, does not take."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, otherwise: str = '.') -> str:
    """Return how a sentence on an unknown name ends: `; did you mean X?`, or as told where nothing is near.

    Args:
        cutoff: how alike X has to be, from 0 to 1, as `difflib.get_close_matches` counts it.
        otherwise: the end where nothing is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f'; did you mean {near[0]}?' if near else otherwise


def first_of(things: Iterable[str], between: str = ', ', most: int = 4) -> str:
    """Return the first of some names for a sentence, and how many more there are."""
    things = list(things)
    more = f' and {len(things) - most} more' if len(things) > most else ''
    return between.join(things[:most]) + more


def one_of(name: str, value: str, known: Iterable[str], error: type[LtzooError] = LtzooError) -> None:
    """Refuse a value that is none of those known.

    Raises:
        error: with the nearest of them.
    """
    known = tuple(known)
    if value not in known:
        hint = did_you_mean(value, known, otherwise=f': it can be {", ".join(known)}')
        raise error(f'{name} is {value!r}{hint}')


def one_line(error: BaseException) -> str:
    """Return what an error says as one line, or the name of its class if it says nothing."""
    return ' '.join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory; for a CPU's PyTorch has no type of its own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in said for words in ('not enough memory', "can't allocate memory", 'out of memory'))
    )


@contextmanager
def saying_no_memory(sentence: str) -> Iterator[None]:
    """Say in a sentence what to do where there was no memory.

    Raises:
        LtzooError: with that sentence.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise LtzooError(sentence) from error
