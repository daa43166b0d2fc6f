"""Stand-ins are read as what they stand for, with its class counts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltzoo.data import DataError, load_data
from ltzoo.data.standin import STANDINS, make_standin, standin_counts

SMALL = (40, 30)
PLACES = 'Places_LT_{}.txt'


@pytest.mark.parametrize(
    ('name', 'extremes', 'images', 'shots'),
    [
        # Classes with more than 100, 20 to 100 and fewer than 20 training images, as published.
        ('imagenet_lt', (1280, 5), 115_846, (385, 479, 136)),
        ('places_lt', (4980, 5), 62_500, (131, 163, 71)),
        ('inat18', (1000, 2), 437_513, (842, 4076, 3224)),
    ],
)
def test_class_counts(name: str, extremes: tuple[int, int], images: int, shots: tuple[int, int, int]) -> None:
    counts = standin_counts(STANDINS[name])
    assert (counts[0], counts[-1]) == (counts.max(), counts.min()) == extremes
    assert counts.sum() == images
    assert ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()) == shots


def test_the_tail_of_places_is_that_of_its_list(split_lists: Path) -> None:
    lines = (split_lists / PLACES.format('train')).read_text().splitlines()
    real = -np.sort(-np.bincount([int(line.split()[1]) for line in lines]))
    made = standin_counts(STANDINS['places_lt'])
    # Half the images lie in as many classes, to within a quarter.
    half = [int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) for counts in (real, made)]
    assert half[1] == pytest.approx(half[0], rel=1 / 4)


@pytest.mark.parametrize('name', STANDINS)
def test_its_source_reads_it(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / 'made'
    numbers = make_standin(name, folder, classes=7, share=0.01, size=SMALL)
    with caplog.at_level(logging.WARNING):
        dataset = load_data(name, folder)
    assert f'{folder} is a stand-in for {name}: its images are noise' in caplog.text
    standin = STANDINS[name]
    assert dataset.num_classes == 7
    assert dataset.class_counts.max() == round(standin.largest / 100)
    assert dataset.class_counts.min() == 1
    assert list(numbers.values())[:2] == [len(dataset.train), len(dataset.test)]
    assert set(dataset.test.labels) == set(range(7))
    assert (dataset.spare is None) == (standin.spare == 0)
    assert dataset.train.images[3].size == SMALL
    assert np.asarray(dataset.train.images[3]).std() > 20
    # A hundred images under all names.
    assert len({file.stat().st_ino for file in folder.rglob('*') if file.suffix.lower() in ('.jpg', '.jpeg')}) <= 100


def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match='is or contains the current folder'):
        make_standin('imagenet_lt', Path(), classes=2, share=0.001)
    assert not list(tmp_path.iterdir())


def test_images_are_as_large_as_photographs(tmp_path: Path) -> None:
    make_standin('imagenet_lt', tmp_path / 'made', classes=2, share=0.001)
    image = tmp_path / 'made' / 'images' / '000.jpg'
    assert Image.open(image).size == (500, 375)
    assert 80_000 < image.stat().st_size < 130_000


def test_official_lists_are_taken_where_they_are_there(tmp_path: Path) -> None:
    lists = tmp_path / 'lists'
    lists.mkdir()
    given = {
        'train': 'train/airfield/00004851.jpg 0\ntrain/alley/00000012.jpg 1\n',
        'test': 'val/alley/Places365_val_00003597.jpg 1\n',
    }
    for part, content in given.items():
        (lists / PLACES.format(part)).write_text(content)
    make_standin('places_lt', tmp_path / 'made', size=SMALL, lists=lists)
    dataset = load_data('places_lt', tmp_path / 'made')
    for part, content in given.items():
        assert (tmp_path / 'made' / PLACES.format(part)).read_text() == content
    # The list that was made goes by the folders of those that were given.
    assert dataset.class_names[:3] == ('airfield', 'alley', 'scene_002')
    assert dataset.spare is not None
    assert np.bincount(dataset.spare.labels).tolist() == [20] * 365
    assert dataset.train.images[1].size == dataset.spare.images[7_299].size == SMALL


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('imagenet', {}, "no stand-in is called 'imagenet'; known: imagenet_lt, places_lt, inat18"),
        ('places_lt', {'classes': 366}, r'classes must be 2 to 365 \(places_lt has 365\), not '),
        ('places_lt', {'classes': 1}, r'classes must be 2 to 365 \(places_lt has 365\), not '),
        ('places_lt', {'share': 0.0}, 'share must be more than 0 and at most 1, not 0.0'),
        ('places_lt', {'size': (4, 400)}, 'size must be 8 pixels or more on either side, not 4 x 400'),
        ('places_lt', {'lists': 'empty', 'share': 0.5}, 'leave classes and share out'),
        ('places_lt', {'lists': 'empty'}, 'empty holds none of the lists Places_LT_train.txt, '),
        ('places_lt', {'lists': 'labels'}, 'has label 365; its labels are 0 to 364'),
        ('places_lt', {'lists': 'outside'}, r'names \.\./a/b.jpg, but paths start from its folder'),
        ('places_lt', {'lists': 'twice'}, 'twice names a/b/c.jpg more than once'),
    ],
)
def test_what_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = {'labels': 'a/b.jpg 365\n', 'outside': '../a/b.jpg 1\n', 'twice': 'a/b/c.jpg 0\na/b/c.jpg 0\n', 'empty': ''}
    for folder, content in lines.items():
        Path(folder).mkdir()
        if content:
            Path(folder, PLACES.format('train')).write_text(content)
    if 'lists' in arguments:
        arguments = {**arguments, 'lists': Path(str(arguments['lists']))}
    before = sorted(os.listdir())
    with pytest.raises(DataError, match=message):
        make_standin(name, Path('made'), **{'size': SMALL, **arguments})  # type: ignore[arg-type]
    assert sorted(os.listdir()) == before


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / 'mine').write_text('photographs')
    with pytest.raises(DataError, match='holds something already'):
        make_standin('places_lt', tmp_path)
    with pytest.raises(DataError, match='holds something already'):
        make_standin('places_lt', tmp_path / 'mine')
    assert (tmp_path / 'mine').read_text() == 'photographs'
