"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['new_folder', 'write_atomically']


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that, whatever happens, `path` holds either what it held before or all of `content`.

    Raises:
        OSError: if it cannot be written; no partial file stays behind.
    """
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with open(beside, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` when the block ends without an error.

    What `folder` held before is replaced; after an error it is as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        made = beside / 'new'
        made.mkdir()
        yield made
        if folder.exists():
            os.replace(folder, beside / 'old')
        os.replace(made, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
