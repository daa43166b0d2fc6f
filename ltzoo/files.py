"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from ltzoo.errors import LtzooError

__all__ = [
    'LOCK',
    'BusyError',
    'alone',
    'check_figure',
    'check_target',
    'new_folder',
    'require_outside',
    'save_figure',
    'write_atomically',
    'writing',
]

# The file that says that a process is at a folder.
LOCK = '.lock'


class BusyError(LtzooError, RuntimeError):
    """A folder that another process is writing into."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that, whatever happens, `path` holds either what it held before or all of `content`.

    A link keeps pointing where it did, to the new content; what is no file, such as `/dev/stdout`, is written into.
    Text is written as UTF-8; file names in it that are not valid UTF-8 keep their bytes.

    Raises:
        OSError: if it cannot be written; no partial file stays behind.
    """
    data = content.encode(errors='surrogateescape') if isinstance(content, str) else content
    descriptor = _descriptor(path)
    if descriptor is not None:
        # By its name a file that the shell sends output to would be replaced, with all that is in it.
        sys.stdout.flush()
        with open(descriptor, 'wb', closefd=False) as stream:
            stream.write(data)
        return
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    # Not by the process's number, which another machine that writes to the same disk may have given as well.
    beside = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.part')
    try:
        with open(beside, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as /dev/stdout stands for; None for any other path."""
    found = re.fullmatch(r'(?:/dev|/proc/self)/fd/(\d+)', str(path))
    return int(found[1]) if found else {'/dev/stdout': 1, '/dev/stderr': 2}.get(str(path))


def save_figure(figure: Any, path: Path) -> None:
    """Write a Matplotlib figure whole or not at all, in the format that the ending of `path` names, else as PNG.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the ending is of no image format.
    """
    image = BytesIO()
    figure.savefig(image, format=path.suffix.removeprefix('.') or 'png', dpi=120)
    write_atomically(path, image.getvalue())


def drawable(text: str) -> str:
    """Return text that a plot can show: what is no UTF-8 in a name is a question mark there."""
    return text.encode(errors='surrogateescape').decode(errors='replace')


def check_target(path: Path) -> None:
    """Refuse a file to be written later, before anything is computed for it.

    Raises:
        LtzooError: if its folder does not exist, it is a folder itself, or either is write-protected.
    """
    if _descriptor(path) is not None:
        return
    # Not by `Path`, which raises an error where a folder above may not be looked into.
    if not os.path.isdir(path.parent):
        raise LtzooError(f'{path} cannot be written: there is no folder {path.parent}, or it may not be looked into')
    if os.path.isdir(path):
        raise LtzooError(f'{path} cannot be written: it is a folder')
    needed = [path] if os.path.exists(path) else []
    if not os.path.exists(path) or os.path.isfile(path):
        needed.append(Path(os.path.realpath(path)).parent)
    for place in needed:
        if not os.path.exists(place):
            raise LtzooError(f'{path} cannot be written: it is a link, and there is no folder {place}')
        if not os.access(place, os.W_OK):
            raise LtzooError(f'{path} cannot be written: {place} is write-protected')


def check_figure(path: Path) -> None:
    """Refuse a figure to be drawn later, before anything is computed for it.

    Raises:
        LtzooError: as `check_target`, or if Matplotlib is missing or has no format of that ending.
    """
    check_target(path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise LtzooError(f"{path} needs Matplotlib ({error}): pip install 'ltzoo[plots]'") from error
    with writing(path):
        ending = path.suffix.removeprefix('.').lower() or 'png'
        if ending not in FigureCanvasBase.get_supported_filetypes():
            raise ValueError(f'no plot is made in the format {ending}, take .png, .pdf or .svg')


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in whatever error writing it, or making what is to be written, ends with.

    Raises:
        LtzooError: in the place of an OSError, ValueError or ImportError; one of ours says enough as it is.
    """
    try:
        yield
    except LtzooError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise LtzooError(f'{path} cannot be written: {error}') from error


@contextmanager
def alone(folder: Path, patience: float = 0, on_acquired: Callable[[int], None] | None = None) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder.

    The operating system gives the lock back when the process ends, however it ends.

    Args:
        patience: seconds to wait for another process.
        on_acquired: takes the descriptor of the lock; a process that inherits it holds the folder to its own end, if
            this one does not come to the end of the block.

    Raises:
        BusyError: if another process is at it.
    """
    from filelock import FileLock, Timeout

    # Where a pack was brought to there may be an older filelock, which knows nothing of the descriptor.
    asked: dict[str, Any] = {} if on_acquired is None else {'on_acquired': on_acquired}
    lock = FileLock(folder / LOCK, timeout=patience, **asked)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f'{folder} is being written by another process: wait for it, or give another folder') from error
    try:
        yield
    finally:
        # While it is still held: afterwards the file may be another process's. One that waits with this file open sees
        # that it is gone, with filelock from 3.30 on.
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def require_outside(folder: Path, error: type[LtzooError] = LtzooError) -> None:
    """Refuse a folder whose place another is to take while one works in it: that would be gone from under one's feet.

    Raises:
        error: if the current folder is it, or lies below it.
    """
    if Path.cwd().is_relative_to(os.path.realpath(folder)):
        raise error(f'{folder} is or contains the current folder: give another one')


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` when the block ends without an error.

    What `folder` held before is replaced, once the disk holds the new; after an error it is as it was, and so are the
    folders above it.

    Raises:
        LtzooError: as `require_outside`.
    """
    require_outside(folder)
    folder = Path(os.path.realpath(folder))
    made_above = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    made, old = beside / 'new', beside / 'old'
    try:
        made.mkdir()
        yield made
        _open_to_readers(made)
        _sync_below(made)
        if folder.exists():
            os.replace(folder, old)
        os.replace(made, folder)
        for place in (folder, *made_above):
            _sync(place.parent)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(beside, ignore_errors=True)
        if not folder.exists():
            for above in made_above:
                with suppress(OSError):
                    above.rmdir()


def _open_to_readers(folder: Path) -> None:
    """Give the files below a folder the permissions of any other new file; safetensors makes its own unreadable."""
    probe = folder.parent / 'permissions'
    probe.touch()
    for file in folder.rglob('*'):
        if file.is_file() and not file.is_symlink():
            file.chmod(probe.stat().st_mode)


def _sync_below(folder: Path) -> None:
    """Have the disk hold a folder and all that is in it."""
    synced: set[int] = set()
    for path in (*folder.rglob('*'), folder):
        status = path.lstat()
        # One file may have many names.
        if status.st_ino not in synced and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            _sync(path)
            synced.add(status.st_ino)


def _sync(path: Path) -> None:
    """Have the disk hold a file or a folder as it is now; not every file system does so for a folder."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
