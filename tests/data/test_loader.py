"""Batches: the same for any number of processes and workers, different in every epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from ltzoo.data import ArrayImages, DataError, FileImages, Split, UnreadableImageError
from ltzoo.data.loader import Batch, ImageLoader, TrainLoader, train_loader
from ltzoo.data.views import parse_views
from ltzoo.errors import LtzooError

# The crop of the second view takes the whole image.
VIEWS = parse_views([[{'random_crop': {'padding': p, 'size': 8}}, 'horizontal_flip'] for p in (1, 0)])
Make = Callable[..., TrainLoader]


def arrays() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    # Labels say which image it is.
    return Split(ArrayImages(images), np.arange(50))


@pytest.fixture
def files(tmp_path: Path) -> Split:
    split = arrays()
    for i in range(len(split)):
        split.images[i].save(tmp_path / f'{i}.png')
    return Split(FileImages(tmp_path, [f'{i}.png' for i in range(len(split))]), split.labels)


@pytest.fixture(params=['arrays', 'files'])
def make(request: pytest.FixtureRequest, files: Split) -> Make:
    split = arrays() if request.param == 'arrays' else files

    def build(**changes: Any) -> TrainLoader:
        options: dict[str, Any] = {'batch_size': 16, 'seed': 3, 'device': torch.device('cpu'), **changes}
        return train_loader(split, VIEWS, (0.5,) * 3, (0.25,) * 3, **options)

    return build


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.labels, other.labels) and all(
        torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True)
    )


def test_an_epoch_is_a_permutation_without_its_rest(make: Make) -> None:
    loader = make()
    batches = list(loader.epoch(0))
    labels = torch.cat([batch.labels for batch in batches])
    assert loader.steps_per_epoch == len(batches) == 3
    assert len(labels) == len(labels.unique()) == 48
    for batch in batches:
        assert [tuple(view.shape) for view in batch.views] == [(16, 3, 8, 8)] * 2
        assert batch.views[0].dtype == torch.float32


def test_images_arrive_normalised(make: Make) -> None:
    batch = next(make().epoch(0))
    pixels = torch.from_numpy(arrays().images.array).permute(0, 3, 1, 2)[batch.labels].float()  # type: ignore[attr-defined]
    expected = (pixels / 255 - 0.5) / 0.25
    # The second view only flips: every image is its own or its mirror image.
    kept = (batch.views[1] - expected).abs().amax((1, 2, 3)) < 1e-5
    flipped = (batch.views[1] - expected.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    assert (kept | flipped).all()
    assert kept.any() and flipped.any()


def test_an_epoch_repeats_exactly_and_the_next_differs(make: Make) -> None:
    first, again, following = (list(make().epoch(epoch)) for epoch in (4, 4, 5))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].labels, following[0].labels)
    other_seed = next(make(seed=4).epoch(4))
    assert not torch.equal(first[0].labels, other_seed.labels)


def test_an_image_is_seen_anew_in_every_epoch_and_by_every_seed(make: Make) -> None:
    def seen(epoch: int, seed: int = 3) -> dict[int, torch.Tensor]:
        batches = list(make(seed=seed).epoch(epoch))
        return {int(label): view for batch in batches for view, label in zip(batch.views[0], batch.labels, strict=True)}

    first = seen(4)
    for other in (seen(5), seen(4, seed=4)):
        both = first.keys() & other.keys()
        # Of 18 crops and mirror images, one in eighteen is the same by chance.
        assert sum(not torch.equal(first[label], other[label]) for label in both) > 0.8 * len(both) > 30


def test_the_batches_of_an_epoch_are_not_cut_out_alike() -> None:
    image = arrays().images.array[:1]  # type: ignore[attr-defined]
    split = Split(ArrayImages(image.repeat(50, 0)), np.arange(50))
    options: dict[str, Any] = {'batch_size': 16, 'seed': 3, 'device': torch.device('cpu')}
    one, other, _ = train_loader(split, VIEWS, (0.5,) * 3, (0.25,) * 3, **options).epoch(0)
    assert not torch.equal(one.views[0], other.views[0])


def test_the_global_generator_is_left_alone(make: Make) -> None:
    torch.manual_seed(0)
    list(make().epoch(0))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_two_processes_share_what_one_would_see(make: Make) -> None:
    whole = list(make().epoch(1))
    shares = [list(make(rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    for batch, left, right in zip(whole, *shares, strict=True):
        joined = Batch(
            tuple(torch.cat(pair) for pair in zip(left.views, right.views, strict=True)),
            torch.cat([left.labels, right.labels]),
        )
        assert same(batch, joined)


@pytest.mark.parametrize('kind', ['arrays', 'files'])
def test_classes_are_drawn_equally_often_from_an_epoch_on(kind: str, files: Split) -> None:
    labels = np.repeat([0, 2, 3], [40, 8, 2])
    split = Split((files if kind == 'files' else arrays()).images, labels)
    options: dict[str, Any] = {'batch_size': 16, 'device': torch.device('cpu'), 'balanced_from': 2}

    def epoch(number: int, seed: int = 3, **more: Any) -> list[Batch]:
        return list(train_loader(split, VIEWS, (0.5,) * 3, (0.25,) * 3, **options, seed=seed, **more).epoch(number))

    plain = list(
        train_loader(split, VIEWS, (0.5,) * 3, (0.25,) * 3, **{**options, 'balanced_from': None}, seed=3).epoch(1)
    )
    assert all(same(a, b) for a, b in zip(epoch(1), plain, strict=True))
    for number in (2, 7):
        drawn = torch.cat([batch.labels for seed in range(10) for batch in epoch(number, seed)])
        assert len(drawn) == 480
        # Of 160 each, with a deviation of 10.
        assert drawn.bincount().tolist() == [pytest.approx(160, abs=50), 0, *[pytest.approx(160, abs=50)] * 2]
    # An image that comes again is cut out anew: of two images there are more than two.
    rare = torch.cat([batch.views[0][batch.labels == 3] for batch in epoch(2)])
    assert len(rare.flatten(1).unique(dim=0)) > 4
    shares = [epoch(2, rank=rank, world_size=2) for rank in range(2)]
    for batch, left, right in zip(epoch(2), *shares, strict=True):
        views = tuple(torch.cat(pair) for pair in zip(left.views, right.views, strict=True))
        assert same(batch, Batch(views, torch.cat([left.labels, right.labels])))


def test_workers_change_nothing(files: Split) -> None:
    options: dict[str, Any] = {'batch_size': 16, 'seed': 3, 'device': torch.device('cpu')}
    alone, helped = (
        train_loader(files, VIEWS, (0.5,) * 3, (0.25,) * 3, workers=workers, **options) for workers in (0, 2)
    )
    # The workers stay from one epoch to the next.
    for epoch in (2, 3):
        assert all(same(a, b) for a, b in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))


def test_batches_that_do_not_fit(make: Make) -> None:
    with pytest.raises(DataError, match='batch_size 51 is larger than the training set: give 50 or less'):
        make(batch_size=51)
    with pytest.raises(DataError, match='batch_size 16 must be a multiple of the number of processes, 3'):
        make(world_size=3)


class Killed(TorchDataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_worker_that_was_killed_is_one_sentence() -> None:
    with pytest.raises(LtzooError, match=r'was killed, most often for want of memory .*: take fewer workers, or 0'):
        list(ImageLoader(Killed(), batch_size=2, num_workers=1))


class Faulty(Killed):
    def __getitem__(self, index: int) -> int:
        raise RuntimeError('The size of tensor a (3) must match')


def test_an_error_in_a_worker_is_itself() -> None:
    with pytest.raises(RuntimeError, match=r'The size of tensor a \(3\) must match'):
        list(ImageLoader(Faulty(), batch_size=2, num_workers=1))


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named(files: Split, tmp_path: Path, workers: int) -> None:
    (tmp_path / '7.png').write_bytes(b'not an image')
    loader = train_loader(
        files, VIEWS, (0.5,) * 3, (0.25,) * 3, batch_size=50, seed=0, device=torch.device('cpu'), workers=workers
    )
    with pytest.raises(UnreadableImageError) as caught:
        list(loader.epoch(0))
    # One sentence, not a worker's traceback.
    assert str(caught.value).startswith(f'image {tmp_path / "7.png"} cannot be decoded')
    assert '\n' not in str(caught.value)
    Image.new('RGB', (8, 8)).save(tmp_path / '7.png')
