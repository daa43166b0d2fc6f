"""The memory bank against a naive one that keeps a copy of the parameters for every class."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltzoo.gkpgsa.bank import BankError, DiskStore, HostStore, MemoryBank, SnapshotStore

CLASSES = 25


def parameters(epoch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return {
        'conv.weight': torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        'bn.bias': torch.randn(4, generator=generator),
        'scale': torch.randn((), generator=generator),
    }


def qualities(epochs: int, seed: int = 0) -> Tensor:
    """Random walks with gaps: early and late winners, ties, classes never seen."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.randn(epochs, CLASSES, dtype=torch.float64, generator=generator).cumsum(0)
    quality[torch.rand(quality.shape, generator=generator) < 0.3] = torch.nan
    quality[3::4] = quality[1::4][: len(quality[3::4])]
    quality[:, 7] = torch.nan
    return quality


class NaiveBank:
    """Eq. 1 as it stands: C copies."""

    def __init__(self) -> None:
        self.copies: list[dict[str, Tensor] | None] = [None] * CLASSES
        self.best = [float('-inf')] * CLASSES
        self.epochs = [-1] * CLASSES

    def update(self, epoch: int, quality: Tensor) -> None:
        for c, value in enumerate(quality.tolist()):
            if value > self.best[c]:
                self.copies[c], self.best[c], self.epochs[c] = parameters(epoch), value, epoch


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def files(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix('epoch_')) for path in folder.iterdir())


@pytest.fixture(params=['host', 'disk'])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SnapshotStore]:
    return HostStore if request.param == 'host' else lambda: DiskStore(tmp_path / 'bank')


def same(one: MemoryBank, other: MemoryBank) -> bool:
    return (
        one.best_epoch.equal(other.best_epoch)
        and one.best_quality.equal(other.best_quality)
        and all(
            tensor.equal(other.snapshot(epoch)[name])
            for epoch in one.epochs
            for name, tensor in one.snapshot(epoch).items()
        )
    )


def test_equals_a_copy_for_every_class(make_store: Callable[[], SnapshotStore]) -> None:
    bank, naive = MemoryBank(CLASSES, make_store()), NaiveBank()
    for epoch, quality in enumerate(qualities(40)):
        before = bank.best_epoch
        won = bank.update(epoch, quality, parameters(epoch))
        naive.update(epoch, quality)
        assert bank.best_epoch.tolist() == naive.epochs
        assert bank.best_quality.tolist() == naive.best
        assert won.equal(bank.best_epoch != before)
        used = [e for e in naive.epochs if e >= 0]
        assert bank.epochs == sorted(set(used))
        assert bank.multiplicity.tolist() == [used.count(e) for e in bank.epochs]
    assert len(bank.epochs) > 3 and bank.best_epoch[7] == -1
    for c, copy in enumerate(naive.copies):
        if copy is not None:
            stored = bank.snapshot(int(bank.best_epoch[c]))
            assert list(sorted(stored)) == list(sorted(copy))
            assert all(stored[name].equal(tensor) for name, tensor in copy.items())


def test_stores_only_what_some_class_points_at(tmp_path: Path) -> None:
    bank = MemoryBank(CLASSES, DiskStore(tmp_path))
    host = HostStore()
    other = MemoryBank(CLASSES, host)
    most = 0
    for epoch, quality in enumerate(qualities(60)):
        bank.update(epoch, quality, parameters(epoch))
        other.update(epoch, quality, parameters(epoch))
        assert files(tmp_path) == bank.epochs == sorted(host.state(bank.epochs))
        with pytest.raises(BankError, match='no snapshot of epoch 999'):
            host.get(999)
        assert sorted(host._snapshots) == other.epochs
        most = max(most, len(bank.epochs))
    assert 3 < most < 30


def test_the_strictly_higher_quality_wins_and_nan_never(make_store: Callable[[], SnapshotStore]) -> None:
    bank = MemoryBank(3, make_store())
    assert bank.update(0, torch.tensor([torch.nan, 1.0, -torch.inf]), parameters(0)).tolist() == [False, True, False]
    assert bank.update(1, torch.tensor([-5.0, 1.0, torch.nan]), parameters(1)).tolist() == [True, False, False]
    assert bank.update(2, torch.tensor([torch.nan, 1.5, torch.nan]), parameters(2)).tolist() == [False, True, False]
    assert bank.best_epoch.tolist() == [1, 2, -1]
    assert bank.best_quality.tolist() == [-5.0, 1.5, -torch.inf]
    with pytest.raises(BankError):
        bank.snapshot(0)


def test_parameters_are_read_only_if_a_class_wins(make_store: Callable[[], SnapshotStore]) -> None:
    class Untouchable(dict[str, Tensor]):
        def items(self) -> Any:
            raise AssertionError('read')

    bank = MemoryBank(2, make_store())
    bank.update(0, torch.tensor([1.0, 2.0]), parameters(0))
    assert not bank.update(1, torch.tensor([0.5, torch.nan]), Untouchable()).any()
    with pytest.raises(AssertionError, match='read'):
        bank.update(1, torch.tensor([1.5, torch.nan]), Untouchable())


def test_snapshots_are_copies(make_store: Callable[[], SnapshotStore]) -> None:
    bank = MemoryBank(1, make_store())
    live = {'weight': torch.nn.Parameter(torch.ones(3))}
    bank.update(0, torch.ones(1), live)
    with torch.no_grad():
        live['weight'].fill_(7)
    bank.snapshot(0)['weight'].fill_(8)
    stored = bank.snapshot(0)['weight']
    assert stored.tolist() == [1, 1, 1] and not stored.requires_grad


@pytest.mark.parametrize('stop', [1, 13, 29])
def test_a_resumed_bank_equals_an_uninterrupted_one(make_store: Callable[[], SnapshotStore], stop: int) -> None:
    table = qualities(40)
    whole = MemoryBank(CLASSES, HostStore())
    for epoch, quality in enumerate(table):
        whole.update(epoch, quality, parameters(epoch))

    first = MemoryBank(CLASSES, make_store())
    for epoch in range(stop):
        first.update(epoch, table[epoch], parameters(epoch))
    state = through_file(first.state_dict())
    # Cut off two epochs after the checkpoint: what was freed since must still be there.
    for epoch in range(stop, stop + 2):
        first.update(epoch, table[epoch], parameters(epoch))
    second = MemoryBank(CLASSES, make_store())
    second.load_state_dict(state)
    for epoch in range(stop, 40):
        second.update(epoch, table[epoch], parameters(epoch))
    assert same(second, whole)


def test_a_crash_while_a_checkpoint_is_written_loses_nothing(tmp_path: Path) -> None:
    """Training goes on while a state is being written: until it is, the state before it must be loadable."""
    bank = MemoryBank(CLASSES, DiskStore(tmp_path))
    written: dict[str, Any] = bank.state_dict()
    taken = written
    for epoch, quality in enumerate(qualities(30)):
        bank.update(epoch, quality, parameters(epoch))
        assert set(written['best_epoch'].tolist()) - {-1} <= set(files(tmp_path))
        written, taken = taken, bank.state_dict()
        # Freed files wait for two newer states, not for ever.
        assert len(files(tmp_path)) <= 3 * len(bank.epochs)
    bank.state_dict()
    bank.update(30, torch.full((CLASSES,), 1e9), parameters(30))
    assert len(files(tmp_path)) > 1
    bank.state_dict()
    bank.state_dict()
    bank.update(31, torch.full((CLASSES,), 2e9), parameters(31))
    assert files(tmp_path) == [30, 31]


def test_a_disk_state_holds_no_weights_and_loading_removes_stale_files(tmp_path: Path) -> None:
    bank = MemoryBank(CLASSES, DiskStore(tmp_path))
    for epoch, quality in enumerate(qualities(10)):
        bank.update(epoch, quality, parameters(epoch))
    state = through_file(bank.state_dict())
    assert state['snapshots'] == {}
    (tmp_path / 'epoch_0077.safetensors').write_bytes(b'stale')
    (tmp_path / '.epoch_0078.safetensors.123.part').write_bytes(b'half')
    (tmp_path / 'notes.txt').write_text('mine')
    resumed = MemoryBank(CLASSES, DiskStore(tmp_path))
    resumed.load_state_dict(state)
    (tmp_path / 'notes.txt').unlink()
    assert files(tmp_path) == resumed.epochs == bank.epochs


def test_a_new_run_removes_what_an_earlier_one_left(tmp_path: Path) -> None:
    for epochs in (range(5), range(1)):
        bank = MemoryBank(2, DiskStore(tmp_path))
        for epoch in epochs:
            bank.update(epoch, torch.tensor([epoch + 1.0, 1.0]), parameters(epoch))
    assert files(tmp_path) == [0]


def test_whoever_may_read_new_files_may_read_snapshots(tmp_path: Path) -> None:
    (tmp_path / 'usual').touch()
    store = DiskStore(tmp_path / 'bank')
    store.put(0, parameters(0))
    assert store.path(0).stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    bank = MemoryBank(2, store)
    bank.update(0, torch.tensor([1.0, torch.nan]), parameters(0))
    bank.update(3, torch.tensor([torch.nan, 1.0]), parameters(3))
    state = bank.state_dict()
    store.path(3).write_bytes(store.path(3).read_bytes()[:40])
    with pytest.raises(BankError, match=r'epoch_0003\.safetensors of epoch 3 cannot be read'):
        bank.snapshot(3)
    store.path(3).unlink()
    with pytest.raises(BankError, match=r'epoch_0003\.safetensors of epoch 3 is missing'):
        bank.snapshot(3)
    fresh = MemoryBank(2, DiskStore(tmp_path))
    with pytest.raises(BankError, match=r'epoch_0003\.safetensors of epoch 3, which the state names, is missing'):
        fresh.load_state_dict(state)
    # A load that failed changed nothing.
    assert fresh.epochs == [] and store.path(0).exists()


def test_a_disk_that_refuses_leaves_the_bank_as_it_was(tmp_path: Path) -> None:
    bank = MemoryBank(1, DiskStore(tmp_path / 'bank'))
    (tmp_path / 'bank').write_text('a file where the folder should be')
    with pytest.raises(BankError, match='cannot be written'):
        bank.update(0, torch.ones(1), parameters(0))
    assert bank.epochs == []


def test_states_move_from_host_to_disk_but_not_back(tmp_path: Path) -> None:
    host = MemoryBank(CLASSES, HostStore())
    for epoch, quality in enumerate(qualities(10)):
        host.update(epoch, quality, parameters(epoch))
    disk = MemoryBank(CLASSES, DiskStore(tmp_path))
    disk.load_state_dict(through_file(host.state_dict()))
    assert same(disk, host) and files(tmp_path) == host.epochs
    with pytest.raises(BankError, match=f'does not hold the snapshot of epoch {host.epochs[0]}'):
        MemoryBank(CLASSES, HostStore()).load_state_dict(disk.state_dict())


@pytest.mark.parametrize('kind', ['host', 'disk'])
def test_bfloat16_rounds_once_and_halves_the_space(kind: str, tmp_path: Path) -> None:
    live = {'weight': torch.randn(64, 64)}

    def store(dtype: torch.dtype) -> SnapshotStore:
        return HostStore(dtype) if kind == 'host' else DiskStore(tmp_path / str(dtype), dtype)

    sizes = []
    for dtype in (torch.bfloat16, torch.float32):
        bank = MemoryBank(1, store(dtype))
        bank.update(0, torch.ones(1), live)
        restored = MemoryBank(1, store(dtype))
        restored.load_state_dict(through_file(bank.state_dict()))
        for one in (bank, restored):
            weight = one.snapshot(0)['weight']
            assert weight.dtype == torch.float32
            assert weight.equal(live['weight'].to(dtype).float())
        state = bank.state_dict()['snapshots']
        sizes.append(
            state[0]['weight'].nbytes if kind == 'host' else DiskStore(tmp_path / str(dtype)).path(0).stat().st_size
        )
    assert sizes[0] < 0.55 * sizes[1]


def test_bad_input_is_refused() -> None:
    bank = MemoryBank(2, HostStore())
    bank.update(4, torch.tensor([1.0, torch.nan]), parameters(4))
    for epoch in (4, 3, -1):
        with pytest.raises(BankError, match=f'epoch {epoch} cannot enter a bank that holds epoch 4'):
            bank.update(epoch, torch.tensor([2.0, 2.0]), parameters(4))
    with pytest.raises(ValueError, match=r'quality must have shape \(2,\)'):
        bank.update(5, torch.ones(3), parameters(5))
    with pytest.raises(BankError, match='the state is of 2 classes, the bank of 3'):
        MemoryBank(3, HostStore()).load_state_dict(bank.state_dict())
    with pytest.raises(ValueError, match='float32 or bfloat16, not torch'):
        HostStore(torch.float16)
