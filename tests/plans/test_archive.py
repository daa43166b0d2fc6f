"""Archives of runs: what two of them hold of one run is not mixed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from ltzoo.errors import LtzooError
from ltzoo.files import BusyError, alone
from ltzoo.plans.archive import collect, write_archive
from ltzoo.training.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'


@pytest.mark.parametrize('order', [1, -1])
def test_of_two_archives_of_one_run_the_further_one_is_taken_whole(
    order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPE)

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def trip(name: str, epochs: int, finished: bool) -> list[Path]:
        run = tmp_path / name / 'base_seed0'
        run.mkdir(parents=True)
        (run / 'recipe.yaml').write_text(recipe.to_yaml())
        (run / 'environment.json').write_text(json.dumps({'device': name}))
        (run / 'log.jsonl').write_text(''.join(json.dumps({'epoch': epoch}) + '\n' for epoch in range(epochs)))
        if finished:
            (run / 'results.json').write_text(json.dumps({'training_seconds': 1.0}))
        else:
            (run / 'checkpoint.pt').write_bytes(b'state')
        return write_archive(tmp_path / f'{name}.tar.gz', [run], to_continue=True)[0]

    archives = [*trip('first', 3, False), *trip('second', 10, True)][::order]
    home = tmp_path / 'home'
    assert collect(archives, home, {'base_seed0': recipe}) == {'base_seed0': 'finished'}
    run = home / 'base_seed0'
    assert len((run / 'log.jsonl').read_text().splitlines()) == 10
    assert json.loads((run / 'environment.json').read_text()) == {'device': 'second'}
    run.joinpath('log.jsonl').write_text('')
    with alone(run), pytest.raises(BusyError, match='base_seed0 is being written by another process'):
        collect(archives, home, {'base_seed0': recipe})
    assert run.joinpath('log.jsonl').read_text() == ''
    with monkeypatch.context() as patch:
        # As in a folder that is write-protected, which does not keep root out.
        patch.setattr(FileLock, 'acquire', refuse)
        with pytest.raises(LtzooError, match=f'^{run} cannot be written: .*Permission denied'):
            collect(archives, home, {'base_seed0': recipe})
    assert {'results.json'} == {path.name for path in run.iterdir()} & {'results.json', 'checkpoint.pt'}


def test_what_is_too_large_for_a_file_leaves_the_other_runs_in(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)

    def run(name: str, **files: bytes) -> Path:
        folder = tmp_path / 'there' / name
        folder.mkdir(parents=True)
        (folder / 'recipe.yaml').write_text(recipe.to_yaml())
        for file, content in files.items():
            (folder / file.replace('_', '.')).write_bytes(content)
        return folder

    large = os.urandom(300_000)
    runs = [
        run('large', results_json=b'{"training_seconds": 1.0}', curves_png=large),
        run('begun', checkpoint_pt=large),
        run('done', results_json=b'{"training_seconds": 1.0}'),
    ]
    archives, left_out = write_archive(tmp_path / 'runs.tar.gz', runs, megabytes=0.2, to_continue=True)
    assert left_out == [
        f'the run {runs[0]} does not fit into 0.2 MB, but into --max-mb 0.4',
        f'the checkpoint of the run {runs[1]} does not fit into 0.2 MB, but into --max-mb 0.4',
    ]
    done = collect(archives, tmp_path / 'home', {path.name: recipe for path in runs})
    anew = 'unfinished, its checkpoint did not come along: it will be begun anew'
    assert done == {'begun': anew, 'done': 'finished'}
    whole, left_out = write_archive(tmp_path / 'runs.tar.gz', runs, megabytes=0.4, to_continue=True)
    assert not left_out
    assert collect(whole, tmp_path / 'home', {path.name: recipe for path in runs})['begun'] == 'unfinished'
