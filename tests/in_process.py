"""Scripts of the checkout called in this process, which spares an import of torch for each, and what they leave."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Runs a script of the checkout with arguments and returns its exit code.
Script = Callable[..., int]


@contextmanager
def imported(path: str) -> Iterator[Any]:
    """Import a script of the checkout as Python does to run it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / path).parent))
        # Dataclasses and pydantic look their module up by its name.
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def run(path: str, *arguments: object) -> int:
    """Run a script with arguments and return its exit code."""
    with imported(path) as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [path, *map(str, arguments)])
        try:
            return module.main()
        except SystemExit as error:
            return int(str(error.code))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
