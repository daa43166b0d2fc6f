"""What all tools do with their command line: how they end, and the options that several of them have."""

import argparse
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ltzoo.errors import LtzooError, one_line, saying_no_memory
from ltzoo.files import check_figure, check_target

__all__ = ['add_correction', 'at_least', 'check_outputs', 'command_line', 'file_name', 'import_named', 'naming_options']

# What the optional dependencies of training are imported as.
_TRAINING = ('accelerate', 'matplotlib', 'omegaconf', 'psutil', 'pydantic', 'tqdm', 'yaml')
# There on kernels that have them; on others PyTorch would warn.
_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage')


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
        raise argparse.ArgumentTypeError('the path is empty')
    return Path(text)


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number of the command line that is too small.

    Raises:
        LtzooError: if so.
    """
    if value < least:
        raise LtzooError(f'{name} must be {least} or more, not {value}')


def check_outputs(files: Mapping[str, Path | None], figures: Mapping[str, Path | None]) -> None:
    """Refuse files to be written at the end, before anything is computed for them.

    Args:
        files: by option; None for one that is not given.
        figures: the same, of those that are drawn.

    Raises:
        LtzooError: as `check_target` and `check_figure`, or if one file is given for two options.
    """
    given: dict[Path, str] = {}
    for option, path in {**files, **figures}.items():
        if path is None:
            continue
        (check_figure if option in figures else check_target)(path)
        if path in given:
            raise LtzooError(f'{path} is given for {given[path]} and for {option}: each needs a file of its own')
        given[path] = option


def add_correction(parser: argparse.ArgumentParser, of: str = '') -> None:
    """Add the two ways to correct a trained classifier for equally frequent classes, of which one may be taken.

    Args:
        of: what they are for, before their help.
    """
    correction = parser.add_mutually_exclusive_group()
    correction.add_argument(
        '--adjust-logits',
        type=float,
        metavar='TAU',
        help=f"{of}subtract TAU times the log of each class's share of the training images from the logits of a model "
        'trained with plain cross-entropy: 1 is usual; -1 turns one trained for equally frequent classes back to the '
        'frequencies of its training',
    )
    correction.add_argument(
        '--tau-normalize',
        type=float,
        metavar='TAU',
        help=f"{of}divide each class's weights in the classifier of such a model by the TAU-th power of their norm: 1 "
        'makes all norms equal',
    )


def command_line(main: Callable[[], int]) -> Callable[[], int]:
    """Let the `main` of a tool end as users of a shell expect, whatever ends it.

    An LtzooError, a package of training that is missing, or a file or folder that may not be used, becomes one sentence
    and exit code 2, Ctrl-C exit code 130, and a reader that has gone, as `head` does when it has its lines, exit code
    141, as the shell has it of a program that knows nothing of this.

    Before it, `import_named` imports what the user's environment asks for, and PyTorch is told to use huge pages where
    Linux has them, and oneDNN to remember fewer shapes. Names of files that are no UTF-8 are printed as their bytes.
    """

    @functools.wraps(main)
    def run() -> int:
        program = Path(sys.argv[0]).name
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors='surrogateescape')
        try:
            if _HUGE_PAGES.is_dir():
                # A step on a CPU gets the memory of its activations from the system anew, else in pages of 4 kB.
                os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
            # What convolutions on a CPU have generated is kept for the last 1,024 shapes. Groups have new ones in every
            # step, and what is kept of them breaks up the memory of activations.
            os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '256')
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


@contextmanager
def naming_options(batch_size: int) -> Iterator[None]:
    """Say which options of the tools help where there is no memory, or an image cannot be read.

    Raises:
        LtzooError: with them.
    """
    from ltzoo.data import MissingImageError, UnreadableImageError

    less = (
        f'there is not enough memory for the model with --batch-size {batch_size}: take a smaller one or, on a GPU, '
        '--device cpu'
    )
    try:
        with saying_no_memory(less):
            yield
    except MissingImageError:
        raise
    except UnreadableImageError as error:
        raise LtzooError(f'{error}; --skip-unreadable leaves such images out') from error
