"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltzoo.errors import LtzooError
from ltzoo.files import check_target, new_folder, write_atomically, writing

ROOT = Path(__file__).resolve().parents[1]


def test_after_an_error_nothing_is_left_above_the_folder_either(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_folder(tmp_path / 'a' / 'b' / 'c') as made:
        (made / 'file').write_text('half')
        raise OSError
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_after_an_error_and_goes_without_one(tmp_path: Path) -> None:
    folder = tmp_path / 'a'
    for content in ('old', 'new'):
        with new_folder(folder) as made:
            (made / content).touch()
        with pytest.raises(OSError), new_folder(folder):
            raise OSError
        assert [path.name for path in folder.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_keeps_pointing_where_it_did(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('old')
    (tmp_path / 'link').symlink_to('file')
    write_atomically(tmp_path / 'link', 'new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'file').read_text() == 'new'
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'elsewhere').symlink_to('folder')
    with new_folder(tmp_path / 'elsewhere') as made:
        (made / 'x').touch()
    assert (tmp_path / 'elsewhere').is_symlink()
    assert [path.name for path in (tmp_path / 'folder').iterdir()] == ['x']


def test_a_process_of_the_same_number_on_another_machine_keeps_its_file(tmp_path: Path) -> None:
    theirs = tmp_path / f'.file.{os.getpid()}.part'
    theirs.write_text('half of theirs')
    write_atomically(tmp_path / 'file', 'ours')
    assert (tmp_path / 'file').read_text() == 'ours'
    assert theirs.read_text() == 'half of theirs'


def test_the_disk_holds_a_new_folder_before_what_it_replaces_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'new' / 'a'
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree
    done: list[str] = []

    def note_sync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        done.append(f'sync {next(p.name for p in (tmp_path, *tmp_path.rglob("*")) if p.stat().st_ino == inode)}')
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        done.append(f'{source.name} to {target.name}')
        replace(source, target)

    def note_removal(path: Path, **options: Any) -> None:
        done.append('remove')
        rmtree(path, **options)

    monkeypatch.setattr(os, 'fsync', note_sync)
    monkeypatch.setattr(os, 'replace', note_replace)
    monkeypatch.setattr(shutil, 'rmtree', note_removal)
    for before, after in (([], [f'sync {tmp_path.name}']), (['a to old'], [])):
        done.clear()
        with new_folder(folder) as made:
            (made / 'below').mkdir()
            (made / 'below' / 'file').touch()
        assert sorted(done[:3]) == ['sync below', 'sync file', 'sync new']
        assert done[3:] == [*before, 'new to a', 'sync new', *after, 'remove']


def test_what_is_no_file_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, 'content')
        assert os.read(reader, 100) == b'content'
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
    # What /dev/stdout is where a tool's output is piped on.
    reader, writer = os.pipe()
    try:
        write_atomically(Path(f'/dev/fd/{writer}'), 'content')
        assert os.read(reader, 100) == b'content'
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize('mode', ['a', 'w'])
def test_a_file_that_output_is_sent_to_is_added_to(tmp_path: Path, mode: str) -> None:
    log = tmp_path / 'log'
    log.write_text('before\n')
    program = (
        # Without all that `ltzoo` itself imports.
        'import sys, types; sys.modules["ltzoo"] = bare = types.ModuleType("ltzoo"); bare.__path__ = ["ltzoo"]; '
        'from pathlib import Path; from ltzoo.files import check_target, write_atomically; out = Path("/dev/stdout"); '
        'print("told"); check_target(out); write_atomically(out, "content\\n"); print("told again")'
    )
    with open(log, mode) as output:
        # Where Python does not buffer, there is nothing that could come too late.
        buffered = {**os.environ, 'PYTHONUNBUFFERED': ''}
        subprocess.run([sys.executable, '-c', program], cwd=ROOT, stdout=output, env=buffered, check=True)
    assert log.read_text() == ('before\n' if mode == 'a' else '') + 'told\ncontent\ntold again\n'
    assert list(tmp_path.iterdir()) == [log]


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # What `Path` asks by; the functions of os.path answer no.
    monkeypatch.setattr(Path, 'stat', refuse)
    monkeypatch.setattr(os.path, 'isdir', lambda path: False)
    with pytest.raises(LtzooError, match=r'there is no folder .*, or it may not be looked into'):
        check_target(tmp_path / 'closed' / 'x.json')


def test_names_that_are_no_utf_8_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / 'list', os.fsdecode(b'caf\xe9, caf\xc3\xa9\n'))
    assert (tmp_path / 'list').read_bytes() == b'caf\xe9, caf\xc3\xa9\n'


def test_a_target_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protected: set[Path] = set()
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK or Path(path) not in protected)
    (tmp_path / 'file').touch()
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to('elsewhere/new')
    everything = [tmp_path / name for name in ('file', 'new', 'pipe', 'link')]
    for path in everything:
        check_target(path)
    for place, refused in (
        (tmp_path, ['file', 'new']),
        (tmp_path / 'file', ['file']),
        (tmp_path / 'pipe', ['pipe']),
        (tmp_path / 'elsewhere', ['link']),
    ):
        protected.clear()
        protected.add(place)
        for path in everything:
            if path.name in refused:
                with pytest.raises(LtzooError, match=f'{path} cannot be written: {place} is write-protected'):
                    check_target(path)
            else:
                check_target(path)


def test_the_folder_that_one_is_in_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'below').mkdir()
    for here, folder in ((tmp_path, Path()), (tmp_path / 'below', tmp_path)):
        monkeypatch.chdir(here)
        with pytest.raises(LtzooError, match='is or contains the current folder'), new_folder(folder):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ['below']


def test_whoever_may_read_new_files_may_read_these(tmp_path: Path) -> None:
    (tmp_path / 'usual').touch()
    with new_folder(tmp_path / 'a') as made:
        save_file({'x': torch.zeros(1)}, made / 'model.safetensors')
    assert (tmp_path / 'a' / 'model.safetensors').stat().st_mode == (tmp_path / 'usual').stat().st_mode


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_what_was_there_comes_back_where_the_new_one_cannot_take_its_place(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / 'a', os.replace
    with new_folder(folder) as made:
        (made / 'old').touch()

    def failing(source: Path, target: Path) -> None:
        if source.name == 'new':
            raise error('no space')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(error, match='no space'), new_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ['old']
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_names_the_file_unless_it_is_one_of_ours(tmp_path: Path) -> None:
    class Ours(LtzooError, ValueError):
        pass

    with pytest.raises(LtzooError, match='file cannot be written: no room'), writing(tmp_path / 'file'):
        raise OSError('no room')
    with pytest.raises(Ours, match=r'^no image$'), writing(tmp_path / 'file'):
        raise Ours('no image')
