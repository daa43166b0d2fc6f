"""Archives of runs: what two of them hold of one run is not mixed."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock

from ltzoo.errors import LtzooError
from ltzoo.files import BusyError, alone
from ltzoo.plans.archive import ArchiveError, collect, write_archive
from ltzoo.training.recipe import load_recipe
from ltzoo.training.run import RunFolder

RECIPE = Path(__file__).parents[2] / 'recipes' / 'digits_lt' / 'ce.yaml'


def test_a_run_that_is_being_trained_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ltzoo.plans.archive._PATIENCE', 0.3)
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'log.jsonl').write_text('{}')
    with alone(tmp_path / 'one'):
        files, left_out = write_archive(tmp_path / 'runs.tar.gz', [tmp_path / 'one', tmp_path / 'two'])
    assert left_out == [f'the run {tmp_path}/one is being trained']
    with tarfile.open(files[0]) as tar:
        assert tar.getnames() == ['two/log.jsonl']
    assert {path.name for path in (tmp_path / 'two').iterdir()} == {'log.jsonl'}


@pytest.mark.parametrize('order', [1, -1])
def test_of_two_unfinished_runs_the_one_of_more_epochs_is_taken(order: int, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    archives = []
    for epochs in (3, 7):
        run = tmp_path / str(epochs) / 'base_seed0'
        run.mkdir(parents=True)
        (run / 'recipe.yaml').write_text(recipe.to_yaml())
        (run / 'log.jsonl').write_text('{}\n' * epochs)
        (run / 'checkpoint.pt').write_bytes(b'state')
        archives += write_archive(tmp_path / f'{epochs}.tar.gz', [run], to_continue=True)[0]
    for archive in archives[::order]:
        collect([archive], tmp_path / 'home', {'base_seed0': recipe})
    assert len((tmp_path / 'home' / 'base_seed0' / 'log.jsonl').read_text().splitlines()) == 7


def test_a_run_that_diverged_comes_home_as_such(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    run = tmp_path / 'there' / 'base_seed0'
    run.mkdir(parents=True)
    (run / 'recipe.yaml').write_text(recipe.to_yaml())
    (run / 'diverged.txt').write_text('the loss is not finite since step 7')
    home = tmp_path / 'home' / 'base_seed0'
    home.mkdir(parents=True)
    (home / 'checkpoint.pt').write_bytes(b'state')
    (home / 'log.jsonl').write_text('{}')
    archives, _ = write_archive(tmp_path / 'runs.tar.gz', [run])
    # Begun again, it may be further by now.
    assert collect(archives, home.parent, {run.name: recipe}) == {run.name: 'the archive has nothing newer'}
    (run / 'log.jsonl').write_text('{}')
    archives, _ = write_archive(tmp_path / 'runs.tar.gz', [run])
    assert collect(archives, home.parent, {run.name: recipe}) == {run.name: 'diverged'}
    assert RunFolder(home).diverged(recipe)
    # What a run of other settings did says nothing of this one's.
    assert not RunFolder(home).diverged(recipe.model_copy(update={'epochs': 7}))


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
    # On a tie what is here stays, the text beside the folder too.
    (home / 'base_seed0.log').write_text('said here')
    archives[-1 if order == 1 else 0].parent.joinpath('second', 'base_seed0.log').write_text('said there')
    again = write_archive(tmp_path / 'again.tar.gz', [tmp_path / 'second' / 'base_seed0'])[0]
    assert collect(again, home, {'base_seed0': recipe}) == {'base_seed0': 'the archive has nothing newer'}
    assert (home / 'base_seed0.log').read_text() == 'said here'
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
        f'the run {runs[0]} is larger than 0.2 MB: give --max-mb 0.4',
        f'the checkpoint of the run {runs[1]} is larger than 0.2 MB: give --max-mb 0.4',
    ]
    done = collect(archives, tmp_path / 'home', {path.name: recipe for path in runs})
    anew = 'unfinished, without its checkpoint: training will start over'
    assert done == {'begun': anew, 'done': 'finished'}
    whole, left_out = write_archive(tmp_path / 'runs.tar.gz', runs, megabytes=0.4, to_continue=True)
    assert not left_out
    assert collect(whole, tmp_path / 'home', {path.name: recipe for path in runs})['begun'] == 'unfinished'


def finished_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / 'recipe.yaml').write_text(load_recipe(RECIPE).to_yaml())
    (folder / 'results.json').write_text('{"training_seconds": 1.0}')
    return folder


def test_what_was_damaged_on_the_way_is_not_taken(tmp_path: Path) -> None:
    run = finished_run(tmp_path / 'there' / 'base_seed0')
    # No compression finds anything in weights, so that every bit of them is one of the file.
    weights = os.urandom(100_000)
    (run / 'accuracy.png').write_bytes(weights)
    (archive,), _ = write_archive(tmp_path / 'runs.tar.gz', [run])
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(content)
    with pytest.raises(ArchiveError, match=r'runs-1\.tar\.gz cannot be unpacked: '):
        collect([archive], tmp_path / 'home', {run.name: load_recipe(RECIPE)})
    assert not (tmp_path / 'home').exists()


def test_a_run_whose_results_cannot_be_read_takes_no_place(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    run, home = tmp_path / 'there' / 'base_seed0', tmp_path / 'home' / 'base_seed0'
    for content in ('', '{}', '[1]', '{"training_seconds": NaN}'):
        (finished_run(run) / 'results.json').write_text(content)
        (archive,), _ = write_archive(tmp_path / 'runs.tar.gz', [run])
        shutil.rmtree(run)
        home.mkdir(parents=True, exist_ok=True)
        (home / 'recipe.yaml').write_text(recipe.to_yaml())
        (home / 'checkpoint.pt').write_bytes(b'state')
        with pytest.raises(ArchiveError, match=r'holds a folder base_seed0 that is no run: .*results\.json is damaged'):
            collect([archive], tmp_path / 'home', {'base_seed0': recipe})
        assert (home / 'checkpoint.pt').read_bytes() == b'state'


def test_a_log_is_read_as_far_as_it_is_one(tmp_path: Path) -> None:
    (tmp_path / 'log.jsonl').write_bytes(b'{"epoch": 0, "said": "caf\xe9"}\n5\n{"epoch": 2}\n')
    assert [line['epoch'] for line in RunFolder(tmp_path).read_log()] == [0]


def test_a_file_of_holes_and_an_impossible_time_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / 'runs-1.tar.gz'
    holes, never = tarfile.TarInfo('base_seed0/model'), tarfile.TarInfo('base_seed0.log')
    holes.type, never.pax_headers = tarfile.GNUTYPE_SPARSE, {'mtime': '1e300'}
    for member, form, message in (
        (holes, tarfile.GNU_FORMAT, 'holds base_seed0/model, which is no file'),
        (never, tarfile.PAX_FORMAT, 'cannot be unpacked'),
    ):
        with tarfile.open(archive, 'w:gz', format=form) as tar:
            tar.addfile(member)
        with pytest.raises(ArchiveError, match=message):
            collect([archive], tmp_path / 'home', {'base_seed0': load_recipe(RECIPE)})


@pytest.mark.parametrize('name', ['base_seed0/model', '../base_seed0', '/base_seed0'])
def test_what_leads_out_of_the_folder_is_not_unpacked(name: str, tmp_path: Path) -> None:
    archive = tmp_path / 'runs-1.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.addfile(tarfile.TarInfo('base_seed0.log'), io.BytesIO())
        member = tarfile.TarInfo(name)
        if name.startswith('base'):
            member.type, member.linkname = tarfile.SYMTYPE, 'base_seed0.log'
        tar.addfile(member)
    with pytest.raises(ArchiveError, match=f'runs-1.tar.gz holds {name}, which is no file or folder of a run'):
        collect([archive], tmp_path / 'home', {'base_seed0': load_recipe(RECIPE)})
    assert list(tmp_path.iterdir()) == [archive]


def test_only_the_files_that_follow_in_number_are_removed(tmp_path: Path) -> None:
    run = finished_run(tmp_path / 'there' / 'base_seed0')
    for number in (1, 2, 3, 20240501):
        (tmp_path / f'runs-{number}.tar.gz').write_text('earlier')
    assert write_archive(tmp_path / 'runs.tar.gz', [run], megabytes=1e-3)[0] == []
    assert (tmp_path / 'runs-1.tar.gz').read_text() == 'earlier'
    assert write_archive(tmp_path / 'runs.tar.gz', [run])[0] == [tmp_path / 'runs-1.tar.gz']
    assert {path.name for path in tmp_path.glob('*.tar.gz')} == {'runs-1.tar.gz', 'runs-20240501.tar.gz'}


def test_what_a_link_leads_to_comes_along(tmp_path: Path) -> None:
    run = finished_run(tmp_path / 'there' / 'base_seed0')
    (run / 'results.json').unlink()
    (tmp_path / 'large disk').write_bytes(b'state')
    (run / 'checkpoint.pt').symlink_to(tmp_path / 'large disk')
    archives, _ = write_archive(tmp_path / 'runs.tar.gz', [run], to_continue=True)
    (tmp_path / 'large disk').unlink()
    assert collect(archives, tmp_path / 'home', {run.name: load_recipe(RECIPE)}) == {run.name: 'unfinished'}
    assert (tmp_path / 'home' / run.name / 'checkpoint.pt').read_bytes() == b'state'
