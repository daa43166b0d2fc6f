"""Checkpoints: whole or not at all, and no code in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
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


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, file_size_limit: Callable[[int | None], None]
) -> None:
    path, large = tmp_path / 'c.pt', {'epoch': 2, 'weights': torch.zeros(1_000_000)}
    save_checkpoint(path, {'epoch': 1})
    file_size_limit(100_000)
    with pytest.raises(CheckpointError, match=r'cannot be written.*the one before it is intact'):
        save_checkpoint(path, large)
    assert os.listdir(tmp_path) == ['c.pt']
    assert load_checkpoint(path) == {'epoch': 1}
    path.unlink()
    with pytest.raises(CheckpointError, match='it would have been the first'):
        save_checkpoint(path, large)
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
