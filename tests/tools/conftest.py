"""One small trained run for all tools, and tools called in this process, which spares an import of torch for each."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Script = Callable[..., int]


@pytest.fixture(scope='session')
def script() -> Script:
    """Return a function that runs a script of the checkout with arguments and returns its exit code."""

    def run(path: str, *arguments: object) -> int:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            # As Python does for a script.
            patch.syspath_prepend(str((ROOT / path).parent))
            # Dataclasses and pydantic look their module up by its name.
            patch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
            patch.setattr(sys, 'argv', [path, *map(str, arguments)])
            try:
                return module.main()
            except SystemExit as error:
                return int(str(error.code))

    return run


@pytest.fixture
def clock() -> Callable[..., Callable[[], float]]:
    """Return a function that winds a clock: read before and after each measurement, it has them take `seconds`.

    Between two of them it goes on by 100; `before` is how far it goes on at each reading that comes before them. Where
    they end, it goes on by 2 whenever it is read.
    """

    def wind(*seconds: float, before: Sequence[float] = ()) -> Callable[[], float]:
        measured = (gap for taken in seconds for gap in (100.0, taken))
        return itertools.accumulate(itertools.chain(before, measured, itertools.repeat(2.0))).__next__

    return wind


@pytest.fixture(scope='session')
def digits_run(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that is better than chance and worse than perfect."""
    run = tmp_path_factory.mktemp('runs') / 'digits'
    recipe = ROOT / 'recipes' / 'digits_lt' / 'ce.yaml'
    options = ['model.name=resnet20_cifar', 'batch_size=8', 'optimizer.lr=0.05', 'schedule.warmup_epochs=0']
    assert script('recipes/train.py', recipe, *options, 'epochs=1', f'output={run}', '--no-progress') == 0
    return run
