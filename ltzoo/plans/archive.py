"""Bring runs from one machine to another: what is worth keeping of them, in files of limited size."""

from __future__ import annotations

import io
import itertools
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

from ltzoo.errors import LtzooError
from ltzoo.files import BusyError, alone, check_target, new_folder, write_atomically, writing
from ltzoo.training.checkpoint import CheckpointError
from ltzoo.training.recipe import Recipe
from ltzoo.training.run import RunFolder, difference

__all__ = ['ArchiveError', 'check_archive', 'collect', 'write_archive']

_KEPT = (
    'recipe.yaml', 'environment.json', 'log.jsonl', 'diverged.txt', 'results.json', 'model', 'curves.png',
    'accuracy.png',
)  # fmt: skip
_TO_CONTINUE = ('checkpoint.pt', 'bank')
_ENDING = '.tar.gz'
_BLOCK = 512
# Seconds to wait for a run: what was stopped by force may leave processes that read images, for a while.
_PATIENCE = 6.0


class ArchiveError(LtzooError, ValueError):
    """Runs that cannot be archived or brought home; the message names the file and what would be right."""


def check_archive(file: Path, megabytes: float) -> None:
    """Refuse what `write_archive` could not write, before anything is trained.

    Raises:
        LtzooError: if the name does not end in .tar.gz, its folder does not exist, or the size is none.
    """
    if not file.name.endswith(_ENDING) or file.name == _ENDING:
        raise ArchiveError(f'--archive {file}: its name must end in {_ENDING}')
    check_target(file)
    if not megabytes > 0:
        raise ArchiveError(f'--max-mb must be above 0, not {megabytes:g}')


def write_archive(
    file: Path, folders: Sequence[Path], *, megabytes: float = 15, to_continue: bool = False
) -> tuple[list[Path], list[str]]:
    """Write `NAME-1.tar.gz`, `NAME-2.tar.gz`, ..., each a tar by itself that holds some of the runs, whole.

    A run that does not fit into a file by itself goes without its checkpoint, or, if it is still too large, not at all;
    the others go all the same.

    Args:
        file: `NAME.tar.gz`; numbered files of an earlier archive of this name are replaced, and those whose numbers
            follow on are removed. Where no run fits, they stay as they are.
        folders: run folders, those that do not exist are left out; the log beside each comes along.
        megabytes: the most that one file may take, in 10^6 bytes.
        to_continue: bring the checkpoints of unfinished runs, so that they can be continued elsewhere.

    Returns:
        The files, and a sentence for each run of which something was left out.

    Raises:
        LtzooError: if the files cannot be written.
    """
    with ExitStack() as held:
        return _write_archive(file, folders, megabytes, to_continue, held)


def _write_archive(
    file: Path, folders: Sequence[Path], megabytes: float, to_continue: bool, held: ExitStack
) -> tuple[list[Path], list[str]]:
    """Do what `write_archive` does; the runs are kept from being trained to the end of `held`."""
    parts: list[list[tuple[Path, str]]] = []
    left_out: list[str] = []
    room, whole = 0.0, megabytes * 1e6 - tarfile.RECORDSIZE
    for folder in folders:
        try:
            # A finished run, which may lie where nothing can be written, does not change.
            if folder.is_dir() and not RunFolder(folder).finished:
                held.enter_context(alone(folder, _PATIENCE))
        except BusyError:
            left_out.append(f'the run {folder} is being trained')
            continue
        files = list(_files(folder, to_continue))
        if _needed(files) > whole:
            least = (_needed(files) + tarfile.RECORDSIZE) / 1e6 + 0.1
            smaller = list(_files(folder, to_continue=False))
            checkpoint = len(smaller) < len(files) and _needed(smaller) <= whole
            files = smaller if checkpoint else []
            what = 'the checkpoint of the run' if checkpoint else 'the run'
            left_out.append(f'{what} {folder} is larger than {megabytes:g} MB: give --max-mb {least:.1f}')
        if files and _needed(files) > room:
            parts.append([])
            room = whole
        if files:
            parts[-1] += files
            room -= _needed(files)
    stem = file.name.removesuffix(_ENDING)
    names = (file.with_name(f'{stem}-{number}{_ENDING}') for number in itertools.count(1))
    numbered = list(itertools.islice(names, len(parts)))
    with writing(file):
        contents = [_tar(part) for part in parts]
        new = [path for path in numbered if not path.exists()]
        try:
            for path, content in zip(numbered, contents, strict=True):
                write_atomically(path, content)
        except OSError:
            for path in new:
                path.unlink(missing_ok=True)
            raise
        for path in itertools.takewhile(Path.is_file, names) if numbered else ():
            path.unlink()
    return numbered, left_out


def collect(archives: Sequence[Path], output: Path, recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Put the runs of archives into their place; one that is further here than there stays as it is.

    Args:
        archives: files of `write_archive`.
        output: the folder of the run folders.
        recipes: the recipe of every run folder, by its name.

    Returns:
        What was done with each run, by its name.

    Raises:
        ArchiveError: if a file is no such archive, or holds a run of another plan or recipe; nothing is changed then.
        BusyError: if one of these runs is being trained here.
        LtzooError: if a run folder cannot be written.
    """
    done: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        runs = []
        for number, archive in enumerate(archives):
            # Each by itself: two may hold the same run, one of them further than the other.
            brought = Path(temporary, str(number))
            brought.mkdir()
            try:
                with tarfile.open(archive, 'r:gz') as tar:
                    _check_members(archive, tar)
                    # Pythons before 3.10.12 and 3.11.4 have no filter.
                    safely: dict[str, Any] = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
                    tar.extractall(brought, **safely)
                    # To the end, where the sum stands that shows damage: tar itself stops before it.
                    while tar.fileobj is not None and tar.fileobj.read(2**20):
                        pass
            except ArchiveError:
                raise
            except (OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error) as error:
                raise ArchiveError(f'{archive} cannot be unpacked: {error}') from error
            names = {path.name.removesuffix('.log') for path in brought.iterdir()}
            for name in sorted(names):
                if name not in recipes:
                    raise ArchiveError(f'{archive} holds a run {name}, which is none of those that the plan has')
                _check_recipe(archive, brought / name, recipes[name])
                runs.append((brought, name))
        for brought, name in runs:
            done.setdefault(name, 'the archive has nothing newer')
            place = output / name
            # A training that goes on here would go on writing into what takes its folder's place.
            with writing(place), alone(place) if place.is_dir() else nullcontext():
                new, there = (_progress(folder / name, recipes[name]) for folder in (brought, output))
                if new > there:
                    done[name] = 'finished' if new[0] else 'diverged' if new[3] else 'unfinished'
                    if not any(new[:2]):
                        done[name] += ', without its checkpoint: training will start over'
                    with new_folder(place) as made:
                        shutil.copytree(brought / name, made, dirs_exist_ok=True)
            log = brought / f'{name}.log'
            if log.is_file() and (new > there or not (output / log.name).exists()):
                with writing(output / log.name):
                    output.mkdir(parents=True, exist_ok=True)
                    write_atomically(output / log.name, log.read_bytes())
    return done


def _files(folder: Path, to_continue: bool) -> Iterator[tuple[Path, str]]:
    """Yield a run's files that are to be kept, and their names in the archive."""
    unfinished = not RunFolder(folder).finished
    log = folder.with_name(f'{folder.name}.log')
    if log.is_file():
        yield log, log.name
    for name in (*_KEPT, *(_TO_CONTINUE if to_continue and unfinished else ())):
        kept = folder / name
        for path in sorted(kept.rglob('*')) if kept.is_dir() else [kept]:
            if path.is_file():
                yield path, str(path.relative_to(folder.parent))


def _needed(files: Sequence[tuple[Path, str]]) -> float:
    """Return how many bytes of a tar files take before compression, which makes weights no smaller."""
    return sum(2 * _BLOCK + path.stat().st_size for path, _ in files) * 1.001


def _tar(files: Sequence[tuple[Path, str]]) -> bytes:
    content = io.BytesIO()
    # What is a link here, as to a larger disk, is a file there.
    with tarfile.open(fileobj=content, mode='w:gz', dereference=True) as tar:
        for path, name in files:
            tar.add(path, name)
    return content.getvalue()


def _check_members(archive: Path, tar: tarfile.TarFile) -> None:
    """Refuse what no archive of ours holds: by links the filter of an older Python is led out of the folder."""
    for member in tar:
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or member.issparse() or path.is_absolute() or '..' in path.parts:
            raise ArchiveError(
                f'{archive} holds {member.name}, which is no file or folder of a run: take an archive that '
                'tools/reproduce.py --archive wrote'
            )


def _check_recipe(archive: Path, folder: Path, recipe: Recipe) -> None:
    if not folder.exists():
        return
    run = RunFolder(folder)
    try:
        written = run.read_recipe()
        if run.finished:
            run.read_results()
    except CheckpointError as error:
        raise ArchiveError(f'{archive} holds a folder {folder.name} that is no run: {error}') from error
    changed = difference(written, recipe)
    if changed:
        raise ArchiveError(
            f'{archive} holds a run {folder.name} of another recipe than the plan has: {changed}; give the words of '
            '--set that it was trained with'
        )


def _progress(folder: Path, recipe: Recipe) -> tuple[bool, bool, int, bool]:
    """Return how far a run is: finished, not to be begun anew, epochs, diverged; the larger, the further."""
    run = RunFolder(folder)
    diverged = run.diverged(recipe)
    epochs = len(run.read_log()) if folder.exists() else -1
    return run.finished, diverged or run.checkpoint.exists(), epochs, diverged
