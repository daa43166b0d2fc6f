"""Checkpoints: whole or not at all, and no code in them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ltzoo.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def test_round_trip(tmp_path: Path) -> None:
    state = {'weights': {'w': torch.randn(3, 4)}, 'epoch': 7, 'rng': [torch.get_rng_state()], 'none': None}
    save_checkpoint(tmp_path / 'c.pt', state)
    back = load_checkpoint(tmp_path / 'c.pt')
    assert torch.equal(back['weights']['w'], state['weights']['w'])
    assert torch.equal(back['rng'][0], state['rng'][0])
    assert (back['epoch'], back['none']) == (7, None)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / 'c.pt'
    save_checkpoint(path, {'epoch': 1})
    # A limit on the size of files is the full disk that a test can have: the same write fails with OSError.
    script = textwrap.dedent("""
        import resource, sys, torch
        from pathlib import Path
        from ltzoo.training.checkpoint import CheckpointError, save_checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint(Path(sys.argv[1]), {'epoch': 2, 'weights': torch.zeros(1_000_000)})
        except CheckpointError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, '-c', script, str(path)], capture_output=True, text=True, check=True)
    assert 'cannot be written' in done.stdout and 'the one before it is intact' in done.stdout
    assert os.listdir(tmp_path) == ['c.pt']
    assert load_checkpoint(path) == {'epoch': 1}
    path.unlink()
    done = subprocess.run([sys.executable, '-c', script, str(path)], capture_output=True, text=True, check=True)
    assert 'it would have been the first' in done.stdout
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (OSError(5, 'Input/output error'), r'the checkpoint .*c\.pt cannot be read: Input/output error$'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 'allocate memory$'),
    ],
)
def test_a_good_file_that_cannot_be_read_now_is_not_called_damaged(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    save_checkpoint(tmp_path / 'c.pt', {'epoch': 1})
    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(RuntimeError, match=told):
        load_checkpoint(tmp_path / 'c.pt')


@pytest.mark.parametrize(
    'content', [b'', b'not a checkpoint', b'https://x', b'.', None], ids=['empty', 'text', 'link', 'point', 'truncated']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / 'c.pt'
    if content is None:
        save_checkpoint(path, {'weights': torch.zeros(1000)})
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'c\.pt is not a readable checkpoint'):
        load_checkpoint(path)


def test_code_is_not_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / 'ran'),)

    with open(tmp_path / 'c.pt', 'wb') as file:
        pickle.dump(Payload(), file)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / 'c.pt')
    torch.save({'x': Payload()}, tmp_path / 'c.pt')
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / 'c.pt')
    assert not (tmp_path / 'ran').exists()
