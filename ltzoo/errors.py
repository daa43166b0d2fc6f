"""The base of every error that means: what was asked cannot be done as asked; and how tools end by it."""

import argparse
import difflib
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    'LtzooError',
    'at_least',
    'command_line',
    'did_you_mean',
    'import_named',
    'is_out_of_memory',
    'one_line',
    'one_of',
    'saying_no_memory',
]

# What the optional dependencies of training are imported as.
_TRAINING = ('accelerate', 'matplotlib', 'omegaconf', 'psutil', 'pydantic', 'tqdm', 'yaml')


class LtzooError(Exception):
    """One sentence that names the input, what is wrong with it and what would be right.

    Tools print it and exit with code 2.
    """


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, otherwise: str = '.') -> str:
    """Return how a sentence on an unknown name ends: `; did you mean X?`, or as told where nothing is near.

    Args:
        cutoff: how alike X has to be, from 0 to 1, as `difflib.get_close_matches` counts it.
        otherwise: the end where nothing is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f'; did you mean {near[0]}?' if near else otherwise


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


def import_named() -> None:
    """Import the modules that LTZOO_IMPORTS names, separated by commas: they may register new parts.

    Raises:
        LtzooError: if one cannot be imported.
    """
    for name in filter(None, map(str.strip, os.environ.get('LTZOO_IMPORTS', '').split(','))):
        try:
            importlib.import_module(name)
        except Exception as error:  # Whatever the module's own code raises.
            raise LtzooError(
                f'LTZOO_IMPORTS: {name} cannot be imported ({type(error).__name__}: {one_line(error)}); its folder '
                'must be in PYTHONPATH'
            ) from error


def file_name(text: str) -> Path:
    """Return a path of the command line, for `argparse`; an empty one would be the current folder.

    Raises:
        ArgumentTypeError: if it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the file's name is empty")
    return Path(text)


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number of the command line that is too small.

    Raises:
        LtzooError: if so.
    """
    if value < least:
        raise LtzooError(f'{name} must be {least} or more, not {value}')


def command_line(main: Callable[[], int]) -> Callable[[], int]:
    """Let the `main` of a tool end as users of a shell expect, whatever ends it.

    An LtzooError, a package of training that is missing, or a file or folder that may not be used, becomes one sentence
    and exit code 2, Ctrl-C exit code 130, and a reader that has gone, as `head` does when it has its lines, exit code
    141, as the shell has it of a program that knows nothing of this.

    Before it, `import_named` imports what the user's environment asks for. Names of files that are no UTF-8 are printed
    as their bytes.
    """

    @functools.wraps(main)
    def run() -> int:
        program = Path(sys.argv[0]).name
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors='surrogateescape')
        try:
            import_named()
            code = main()
            sys.stdout.flush()
            return code
        except LtzooError as error:
            print(f'{program}: {error}', file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            if error.name not in _TRAINING:
                raise
            print(f"{program}: {error.name} is missing: pip install 'ltzoo[train]'", file=sys.stderr)
            return 2
        except PermissionError as error:
            print(f'{program}: {error.filename or "a file"} cannot be used: {error.strerror}', file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f'\n{program}: stopped', file=sys.stderr)
            return 130
        except BrokenPipeError:
            # Python flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    return run
