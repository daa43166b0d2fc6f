"""Every source on small trees written here, and the official lists against what their papers say."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from torchvision.datasets import CIFAR100

from ltzoo.data import (
    DataError,
    Dataset,
    MissingDataError,
    UnreadableImageError,
    list_data,
    load_data,
    load_parts,
    register_source,
    require_readable,
    source_of,
    with_holdout,
    without_folders,
)
from ltzoo.data.dataset import _SOURCES
from ltzoo.data.images import FileImages, join_images
from ltzoo.errors import LtzooError
from ltzoo.files import alone


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (4, 3), (value, value, value)).save(path)


def write_classes(root: Path, **images: int) -> None:
    for name, number in images.items():
        for i in range(number):
            write_image(root / name / f'{i:03}.png', i)


def names(dataset: Dataset, part: str) -> list[tuple[str, str]]:
    """Pairs of class name and file name, as read."""
    split = getattr(dataset, part)
    files = [Path(split.images.name(i)).name for i in range(len(split))]
    return [(dataset.class_names[label], file) for label, file in zip(split.labels, files, strict=True)]


def test_the_zoos_own_names_are_taken() -> None:
    with pytest.raises(DataError, match='cifar10 is a source of ltzoo: choose another name'):
        register_source('cifar10')(lambda location, download: None)  # type: ignore[arg-type,return-value]
    assert load_data('digits').num_classes == 10


def test_all_sources_are_registered() -> None:
    builtin = {'cifar10', 'cifar100', 'digits', 'imagenet_lt', 'places_lt', 'inat18'}
    assert set(list_data()) == builtin | {'folder', 'csv', 'npz', 'npy', 'hf'}


@pytest.mark.parametrize('source', ['folder', 'csv', 'npz', 'npy', 'hf'])
def test_users_sources_need_a_place_that_exists(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f'{source}:PATH'):
        load_data(source)
    with pytest.raises(FileNotFoundError, match='nowhere') as caught:
        load_data(f'{source}:{tmp_path / "nowhere"}')
    assert isinstance(caught.value, LtzooError)


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('cifar100_lt_r100', 'cifar100_lt_r100'),
        ('folder_lt_r50:/home/me/images', 'folder_lt_r50:images'),
        ('hf:org/name', 'hf:org/name'),
        ('hf_lt_r10:org/name', 'hf_lt_r10:org/name'),
        ('hf:/home/me/set', 'hf:set'),
        ('hf:~/set', 'hf:set'),
        ('hf-hub:org/name@v2', 'hf-hub:org/name@v2'),
        ('local-dir:../runs/first', 'local-dir:first'),
        ('local-dir:/home/me/runs/first/model', 'local-dir:first/model'),
        ('local-dir:/model', 'local-dir:model'),
        ('local-dir:../model', 'local-dir:model'),
        ('folder:.', 'folder:here'),
        ('folder:./../', 'folder:above'),
    ],
)
def test_no_folder_is_published(name: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / 'above' / 'here'
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert without_folders(name) == published


def test_a_place_has_one_name_however_it_is_given(tmp_path: Path) -> None:
    write_classes(tmp_path, a=2, b=2)
    assert load_data('folder', tmp_path).name == load_data(f'folder:{tmp_path}').name == f'folder:{tmp_path}'
    assert load_data('digits', tmp_path).name == 'digits'
    with pytest.raises(DataError, match=r'folder:~no_such_user/x: there is no home folder ~no_such_user'):
        load_data('folder:~no_such_user/x')
    with pytest.raises(DataError, match=r"a data set has a name, such as .*, not PosixPath\('x'\)"):
        load_data(Path('x'))  # type: ignore[arg-type]


@pytest.mark.parametrize('files', [False, True])
def test_samples_are_selected_by_number_or_by_a_mask(files: bool, tmp_path: Path) -> None:
    write_classes(tmp_path, a=1, b=3)
    split = load_data('folder', tmp_path).test if files else load_data('digits').train
    wanted = np.flatnonzero(split.labels == 1)
    for indices in (wanted, wanted.tolist(), split.labels == 1):
        chosen = split.select(indices)
        assert chosen.labels.tolist() == [1] * len(wanted)
        assert [chosen.images.name(i) for i in range(len(chosen))] == [split.images.name(i) for i in wanted]


def test_a_place_beside_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, a=2, b=2)
    monkeypatch.setenv('LTZOO_DATA', '/for/others')
    assert load_data(f'folder:{tmp_path}').num_classes == 2
    for name in (f'folder:{tmp_path}', 'npz:set.npz', 'npy:set', 'hf:org/name', 'imagenet_lt:/images'):
        with pytest.raises(DataError, match=rf'^{name} contains its path already: leave data_dir=elsewhere out'):
            load_data(name, 'elsewhere')


def test_a_seed_is_refused_where_nothing_is_drawn_by_it(tmp_path: Path) -> None:
    write_classes(tmp_path / 'train', a=16, b=16)
    write_classes(tmp_path / 'test', a=1, b=1)
    longtailed = f'folder_lt_r4:{tmp_path}'
    assert names(load_data(longtailed, split_seed=1), 'train') != names(load_data(longtailed), 'train')
    for load in (load_data, load_parts):
        for name in (f'folder:{tmp_path}', 'digits', 'imagenet_lt'):
            with pytest.raises(DataError, match=rf'^{name} is not drawn by a seed: leave split_seed=1 out'):
                load(name, split_seed=1)
    with pytest.raises(DataError, match=r'^folder is not drawn by a seed'):
        load_parts('folder', tmp_path, split_seed=1, split='holdout')


@pytest.mark.parametrize('source', ['folder', 'csv', 'npz', 'npy'])
def test_balanced_sets_of_ones_own_are_made_long_tailed(source: str, tmp_path: Path) -> None:
    labels = np.repeat([0, 1], 16)
    images = np.arange(32 * 12 * 3, dtype=np.uint8).reshape(32, 4, 3, 3)
    if source == 'folder':
        for part in ('train', 'test'):
            write_classes(tmp_path / part, a=16, b=16)
    elif source == 'csv':
        rows = [f'{part}/{i}.png,{y},{part}' for part in ('train', 'test') for i, y in enumerate(labels)]
        (tmp_path / 'list.csv').write_text('\n'.join(['path,label,split', *rows]))
    else:
        arrays = {'x_train': images, 'y_train': labels, 'x_test': images, 'y_test': labels}
        np.savez(tmp_path / 'set.npz', **arrays)
        for key, array in arrays.items():
            np.save(tmp_path / f'{key}.npy', array)
    place = tmp_path / {'csv': 'list.csv', 'npz': 'set.npz'}.get(source, '')
    dataset = load_data(f'{source}_lt_r4:{place}')
    assert dataset.class_counts.tolist() == [16, 4]
    assert np.bincount(dataset.test.labels).tolist() == [16, 16]
    assert dataset.spare is not None and len(dataset.spare) == 12


def test_a_tail_without_its_ratio_is_told_how_to_write_it() -> None:
    for name, instead in (('cifar10_lt_step', 'cifar10_lt_r100_step'), ('cifar100_lt_n500', 'cifar100_lt_r100_n500')):
        with pytest.raises(DataError, match=f'^{name} does not say how long-tailed: write {instead} for'):
            load_data(name)
        assert source_of(instead) == name.partition('_')[0]


def test_what_a_camera_notes_of_its_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (4, 3)).save(tmp_path / 'turned.jpg', exif=exif)
    assert FileImages(tmp_path, ['turned.jpg'])[0].size == (4, 3)


def test_a_place_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'images').mkdir()
    for file in ('list.CSV', 'set.npz', 'images.zip'):
        (tmp_path / file).touch()
    for place, name in (('images', 'folder'), ('list.CSV', 'csv'), ('set.npz', 'npz')):
        for written in (f'{tmp_path}/{place}', f'~/{place}'):
            with pytest.raises(DataError, match=rf"no data set is called '{written}': write {name}:{written} for what"):
                load_data(written)
    for nothing in ('nowhere', 'images.zip'):
        with pytest.raises(DataError, match=r'Known: '):
            load_data(f'{tmp_path}/{nothing}')


@pytest.mark.parametrize(
    ('name', 'source'),
    [
        ('digits', 'digits'),
        ('digits_lt', 'digits'),
        ('imagenet_lt', 'imagenet_lt'),
        ('cifar10_lt_r50_n500_step', 'cifar10'),
        ('folder:/my_lt/images', 'folder'),
        ('folder_lt_r50:/my/images', 'folder'),
        ('my_lt_photos:here', 'my_lt_photos'),
        ('my_lt_photos_lt_r10:here', 'my_lt_photos'),
        ('digits_lt_photos', None),
        ('unknown', None),
    ],
)
def test_the_source_in_a_name(name: str, source: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ltzoo.data.dataset._SOURCES', dict(_SOURCES))
    register_source('my_lt_photos', needs_location=True)(lambda location, download: load_data('digits'))
    assert source_of(name) == source
    own = source in ('folder', 'my_lt_photos')
    assert replace(load_data('digits'), name=name).users_own == own


def test_a_source_of_ones_own_has_tails_and_hold_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ltzoo.data.dataset._SOURCES', dict(_SOURCES))
    register_source('mine')(lambda location, download: load_data('digits'))
    assert load_data('mine').class_counts.tolist() == load_data('digits').class_counts.tolist()
    assert load_data('mine_lt_r10').class_counts.tolist() == load_data('digits_lt_r10').class_counts.tolist()
    assert len(with_holdout(load_data('mine_lt_r10')).test) == len(with_holdout(load_data('digits_lt_r10')).test) > 0


class TestFolder:
    def test_train_and_test(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', bee=3, ant=2)
        write_classes(tmp_path / 'test', ant=1, bee=1)
        write_classes(tmp_path / 'val', ant=5)
        write_image(tmp_path / 'train' / 'bee' / 'more' / 'x.JPG', 9)
        (tmp_path / 'train' / 'bee' / 'notes.txt').write_text('no image')
        (tmp_path / 'train' / '.cache').mkdir()
        dataset = load_data(f'folder:{tmp_path}')
        assert dataset.class_names == ('ant', 'bee')
        assert dataset.class_counts.tolist() == [2, 4]
        assert ('bee', 'x.JPG') in names(dataset, 'train')
        assert names(dataset, 'test') == [('ant', '000.png'), ('bee', '000.png')]
        assert names(dataset, 'validation') == [('ant', f'00{i}.png') for i in range(5)]
        assert dataset.train.images[1].size == (4, 3)
        assert dataset.image_size == 224
        assert dataset.mean == (0.485, 0.456, 0.406)

    def test_val_stands_in_for_test(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=2, b=2)
        write_classes(tmp_path / 'val', b=3)
        assert np.bincount(load_data('folder', tmp_path).test.labels).tolist() == [0, 3]

    def test_a_validation_part_that_is_none_is_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for part in ('train', 'test'):
            write_classes(tmp_path / part, a=2, b=2)
        write_classes(tmp_path / 'val', a=1, c=1)
        assert load_data('folder', tmp_path).validation is None
        assert 'val is left out, and a hold-out drawn from training: class folder' in caplog.text

    @pytest.mark.parametrize(('train', 'test'), [('train', 'valid'), ('Train', 'Test'), ('TRAIN', 'validation')])
    def test_other_names_of_the_parts(self, tmp_path: Path, train: str, test: str) -> None:
        write_classes(tmp_path / train, a=2, b=2)
        write_classes(tmp_path / test, b=3)
        dataset = load_data('folder', tmp_path)
        assert dataset.class_names == ('a', 'b')
        assert np.bincount(dataset.test.labels).tolist() == [0, 3]

    def test_parts_without_class_folders_are_no_classes(self, tmp_path: Path) -> None:
        write_classes(tmp_path, train=3, test=2)
        with pytest.raises(DataError, match=r'train has no folders; it must hold one folder of images for each class'):
            load_data('folder', tmp_path)

    def test_files_that_are_left_out_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_classes(tmp_path, a=4, b=4)
        assert load_data('folder', tmp_path).class_counts.sum() == 6
        assert not caplog.messages
        for name in ('x.jfif', 'y.JFIF', 'z.gif'):
            (tmp_path / 'a' / name).write_bytes(b'')
        (tmp_path / 'a' / '._000.png').write_bytes(b'what another system leaves beside a file')
        assert load_data('folder', tmp_path).class_counts.sum() == 6
        (message,) = caplog.messages
        assert message.startswith(f'files left out below {tmp_path}: 3, as images end in')
        assert message.endswith('.jfif (2), .gif (1)')

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'elsewhere', more=2)
        write_classes(tmp_path / 'set', a=3, b=3)
        (tmp_path / 'set' / 'a' / 'more').symlink_to(tmp_path / 'elsewhere' / 'more')
        (tmp_path / 'set' / 'a' / 'up').symlink_to(tmp_path / 'set')
        (tmp_path / 'set' / 'b' / 'self').symlink_to(tmp_path / 'set' / 'b')
        dataset = load_data('folder', tmp_path / 'set')
        assert Counter(np.concatenate([dataset.train.labels, dataset.test.labels]).tolist()) == {0: 5, 1: 3}

    def test_images_that_links_lead_to_again_count_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_classes(tmp_path / 'a', may=3, june=2)
        write_classes(tmp_path, b=2)
        (tmp_path / 'a' / 'latest').symlink_to(tmp_path / 'a' / 'may')
        (tmp_path / 'a' / 'below').symlink_to(tmp_path / 'a' / 'june' / 'deep')
        write_classes(tmp_path / 'a' / 'june', deep=1)
        (tmp_path / 'a' / 'june' / 'before').symlink_to(tmp_path / 'a' / 'may')
        (tmp_path / 'b' / 'one').symlink_to(tmp_path / 'a' / 'june')
        (tmp_path / 'a' / 'june' / 'other').symlink_to(tmp_path / 'b')
        dataset = load_data('folder', tmp_path)
        # What is below class b as well is below a by a link of its own.
        assert Counter(np.concatenate([dataset.train.labels, dataset.test.labels]).tolist()) == {0: 8, 1: 5 + 3}
        paths = {str(path) for part in (dataset.train, dataset.test) for path in part.images.paths}
        assert 'a/june/deep/000.png' in paths and not any('below' in path for path in paths)
        assert f'{tmp_path}/a/latest leads to {tmp_path}/a/may, whose files are there already' in caplog.text

    def test_a_class_that_is_a_broken_link_is_not_passed_over(self, tmp_path: Path) -> None:
        write_classes(tmp_path, a=3, b=3)
        (tmp_path / 'c').symlink_to('/not/mounted')
        with pytest.raises(DataError, match=r'c is a link to /not/mounted, which is not there'):
            load_data('folder', tmp_path)

    def test_names_that_are_no_utf_8(self, tmp_path: Path) -> None:
        write_classes(tmp_path, a=5, b=5)
        os.rename(tmp_path / 'a' / '000.png', os.fsencode(tmp_path / 'a') + b'/caf\xe9.png')
        before = load_data('folder', tmp_path)
        assert len(before.train) == 8
        os.rename(os.fsencode(tmp_path / 'a') + b'/caf\xe9.png', os.fsencode(tmp_path / 'a') + b'/caf\xe8.png')
        after = load_data('folder', tmp_path)
        changed = [getattr(before, part).digest() != getattr(after, part).digest() for part in ('train', 'test')]
        assert sorted(changed) == [False, True], 'of the part that holds it, and of no other'

    def test_a_folder_that_may_not_be_read_is_not_called_empty(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_classes(tmp_path, a=3, b=3)
        look = os.scandir

        def refuse(path: Any) -> Any:
            if Path(path) == tmp_path / 'b':
                raise PermissionError(13, 'Permission denied', str(path))
            return look(path)

        monkeypatch.setattr(os, 'scandir', refuse)
        with pytest.raises(DataError, match=r'b cannot be read: Permission denied'):
            load_data('folder', tmp_path)

    @pytest.mark.parametrize('below', ['', 'train'])
    def test_class_folders_alone(self, tmp_path: Path, below: str) -> None:
        write_classes(tmp_path / below, a=20, b=5, c=2, d=1)
        dataset = load_data('folder', tmp_path)
        assert dataset.class_counts.tolist() == [16, 4, 1, 1]
        assert np.bincount(dataset.test.labels, minlength=4).tolist() == [4, 1, 1, 0]
        files = Counter(names(dataset, 'train') + names(dataset, 'test'))
        assert len(files) == 28
        assert set(files.values()) == {1}
        assert names(load_data('folder', tmp_path), 'test') == names(dataset, 'test')

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        write_classes(tmp_path, train=5, test=5, tram=5)
        assert load_data('folder', tmp_path).class_names == ('test', 'train', 'tram')

    def test_a_train_is_a_vehicle_too(self, tmp_path: Path) -> None:
        write_classes(tmp_path, Bus=5, Train=2)
        write_classes(tmp_path / 'Train', freight=3)
        dataset = load_data('folder', tmp_path)
        assert dataset.class_names == ('Bus', 'Train')
        assert dataset.class_counts.tolist() == [4, 4]

    def test_made_longtailed(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=16, b=16, c=16)
        write_classes(tmp_path / 'test', a=1, b=1, c=1)
        assert load_data(f'folder_lt_r4:{tmp_path}').class_counts.tolist() == [16, 8, 4]

    def test_unbalanced_set_cannot_be_made_longtailed(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=2, b=16)
        write_classes(tmp_path / 'test', a=1, b=1)
        with pytest.raises(DataError, match=r'folder_lt_r4:.*class 0 has 2 images.*use an unbalanced set without _lt'):
            load_data(f'folder_lt_r4:{tmp_path}')

    def test_unreadable_image_is_named(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=2, b=2)
        write_classes(tmp_path / 'test', a=1, b=1)
        (tmp_path / 'train' / 'a' / '001.png').write_bytes(b'not a picture')
        images = load_data('folder', tmp_path).train.images
        assert images[0].mode == 'RGB'
        with pytest.raises(UnreadableImageError, match=r'a.001\.png cannot be decoded'):
            images[1]

    def test_a_named_pipe_among_the_images_is_not_waited_for(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=1, b=1)
        write_classes(tmp_path / 'test', a=1, b=1)
        os.mkfifo(tmp_path / 'train' / 'a' / '001.png')
        with pytest.raises(UnreadableImageError, match=r'a.001\.png cannot be decoded: it is a named pipe'):
            load_data('folder', tmp_path).train.images[1]

    def test_grey_images_of_16_bits_keep_their_contrast(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 65535, 12).reshape(3, 4).astype(np.uint16)
        for name in ('a', 'b'):
            (tmp_path / name).mkdir()
            for i, ending in enumerate(('png', 'tif', 'pgm')):
                Image.fromarray(ramp).save(tmp_path / name / f'{i}.{ending}')
        images = load_data('folder', tmp_path).train.images
        for i in range(len(images)):
            seen = np.asarray(images[i])
            assert (seen == seen[..., :1]).all()
            assert np.abs(seen[..., 0] - ramp / 257).max() <= 0.5

    def test_grey_images_of_12_bits_keep_their_contrast(self, tmp_path: Path) -> None:
        # Two pixels, 0 and the brightest, in three bytes.
        tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
        entries = b''.join(struct.pack('<HHII', tag, 3, 1, value) for tag, value in tags.items())
        header = b'II*\0' + struct.pack('<I', 12) + b'\x00\x0f\xff\0' + struct.pack('<H', len(tags))
        for name in ('a', 'b'):
            (tmp_path / name).mkdir()
            for i in range(2):
                (tmp_path / name / f'{i}.tif').write_bytes(header + entries + bytes(4))
        assert np.asarray(load_data('folder', tmp_path).train.images[0])[0, :, 0].tolist() == [0, 255]

    @pytest.mark.parametrize(('kind', 'mode'), [(np.float32, 'F'), (np.int32, 'I')])
    def test_images_of_unknown_range_are_refused(self, tmp_path: Path, kind: type, mode: str) -> None:
        write_classes(tmp_path, a=2, b=2)
        for name in ('a', 'b'):
            for i in range(2):
                (tmp_path / name / f'{i:03}.png').unlink()
                Image.fromarray(np.ones((3, 4), kind)).save(tmp_path / name / f'{i}.tif')
        with pytest.raises(UnreadableImageError, match=rf'tif cannot be decoded: .*mode {mode}.*save it with 8 or 16'):
            load_data('folder', tmp_path).train.images[0]

    def test_whatever_a_decoder_raises_names_the_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_classes(tmp_path, a=2, b=2)
        images = load_data('folder', tmp_path).train.images

        def fail(*_: Any) -> None:
            raise NotImplementedError('Unimplemented pixel format')

        monkeypatch.setattr(Image.Image, 'convert', fail)
        with pytest.raises(UnreadableImageError, match=r'00\d\.png cannot be decoded: Unimplemented pixel format'):
            images[0]

    def test_unfit_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match='has no folders'):
            load_data('folder', tmp_path)
        write_classes(tmp_path / 'train', a=2)
        write_classes(tmp_path / 'test', a=2)
        with pytest.raises(DataError, match='1 class'):
            load_data('folder', tmp_path)
        (tmp_path / 'train' / 'b').mkdir()
        with pytest.raises(DataError, match=r'train.b has no images .*: put some there or remove it'):
            load_data('folder', tmp_path)
        for name in ('1.heic', *'abcdef'):
            (tmp_path / 'train' / 'b' / name).touch()
        with pytest.raises(DataError, match=r'train.b has no images .*: save its files \(.heic, .* and 3 more\) so or'):
            load_data('folder', tmp_path)
        write_classes(tmp_path / 'train', b=1)
        write_classes(tmp_path / 'test', z=1)
        with pytest.raises(DataError, match=r'test.z has no counterpart in the training set: put images'):
            load_data('folder', tmp_path)

    def test_parts_by_other_names_are_not_classes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for part in ('Training', 'Testing'):
            write_classes(tmp_path / 'other' / part, x=3, y=2)
        dataset = load_data('folder', tmp_path / 'other')
        assert (dataset.class_names, len(dataset.train), len(dataset.test)) == (('x', 'y'), 5, 5)
        for part in ('test', 'val'):
            write_classes(tmp_path / 'no_train' / part, x=3, y=2)
        with pytest.raises(DataError, match='holds test and val but no folder train'):
            load_data('folder', tmp_path / 'no_train')
        assert not caplog.records
        for part in ('train', 'dev'):
            write_classes(tmp_path / 'ignored' / part, x=5, y=5)
        assert len(load_data('folder', tmp_path / 'ignored').test) == 2
        assert 'is trained on train and tested on 20 % of it: dev is left out' in caplog.text
        assert 'call the upper ones' not in caplog.text
        for part in ('test_set', 'training_set'):
            write_classes(tmp_path / 'unknown' / part, x=5, y=5)
        load_data('folder', tmp_path / 'unknown')
        # Without one of the classes, or with what a Mac leaves, they are parts none the less.
        shutil.rmtree(tmp_path / 'unknown' / 'test_set' / 'y')
        (tmp_path / 'unknown' / '.DS_Store').touch()
        (tmp_path / 'unknown' / 'test_set' / '.DS_Store').touch()
        load_data('folder', tmp_path / 'unknown')
        told = [message for message in caplog.messages if 'which hold the folders x, y and nothing else' in message]
        assert len(told) == 2 and all('are test_set, training_set' in message for message in told)

    def test_parts_of_images_alone_are_no_classes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        # As competitions have it, with the labels in a table beside them.
        write_classes(tmp_path / 'kaggle', train_images=5, test_images=5)
        load_data('folder', tmp_path / 'kaggle')
        (message,) = caplog.messages
        assert 'the classes of' in message and 'are test_images, train_images: if these are its parts' in message
        caplog.clear()
        write_classes(tmp_path / 'vehicles', train=5, tram=5)
        load_data('folder', tmp_path / 'vehicles')
        assert not caplog.records

    def test_train_by_another_name_beside_other_folders_is_the_training_part(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for train in ('Train', 'training'):
            write_classes(tmp_path / train / train, cat=5, dog=5)
            write_classes(tmp_path / train, Masks=3, Test=2)
            dataset = load_data('folder', tmp_path / train)
            assert (dataset.class_names, len(dataset.train)) == (('cat', 'dog'), 8)
            assert f'is trained on {train} and tested on 20 % of it: Masks, Test (no class folders) are' in caplog.text

    def test_parts_beside_the_classes_are_no_classes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_classes(tmp_path / 'whole', cat=5, dog=5, rat=5)
        write_classes(tmp_path / 'whole' / 'Test', cat=2, dog=2)
        with pytest.raises(DataError, match=r'Test holds .* such as cat: put the class folders beside it into .*train'):
            load_data('folder', tmp_path / 'whole')
        # Another name inside it tells that it may be a class with parts of its own.
        write_classes(tmp_path / 'whole' / 'Test', glass=2)
        assert 'Test' in load_data('folder', tmp_path / 'whole').class_names
        assert not caplog.records
        write_classes(tmp_path / 'loose', cat=5, val=5)
        assert load_data('folder', tmp_path / 'loose').class_names == ('cat', 'val')
        assert 'val is taken for a class: if it is the test set, put its images into class folders' in caplog.text

    def test_parts_inside_the_classes_are_refused(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'cat', train=3, test=1)
        write_classes(tmp_path / 'rare', train=2)
        with pytest.raises(DataError, match=r'such as cat, hold test and train each: put it the other way round'):
            load_data('folder', tmp_path)
        # Of one folder alone, it is where the data lies.
        write_classes(tmp_path / 'all' / 'pets' / 'train', cat=3, dog=2)
        write_classes(tmp_path / 'all' / 'pets' / 'test', cat=1, dog=1)
        with pytest.raises(DataError, match=r'all holds pets alone, which holds the parts: give .*all.pets'):
            load_data('folder', tmp_path / 'all')

    def test_images_in_no_class_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_classes(tmp_path, a=5, b=5)
        write_image(tmp_path / 'loose.png', 0)
        assert len(load_data('folder', tmp_path).train) == 8
        assert f'images left out in {tmp_path} itself: 1, as' in caplog.text

    def test_a_link_to_images_that_are_not_there_is_refused(self, tmp_path: Path) -> None:
        write_classes(tmp_path, a=2, b=2)
        (tmp_path / 'a' / 'more').symlink_to('/no/such/disk')
        with pytest.raises(DataError, match=r'a/more is a link to /no/such/disk, which is not there'):
            load_data('folder', tmp_path)

    def test_a_class_without_test_images_may_have_a_folder(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'train', a=2, b=2)
        write_classes(tmp_path / 'test', a=2)
        (tmp_path / 'test' / 'b').mkdir()
        assert load_data('folder', tmp_path).test.labels.tolist() == [0, 0]
        shutil.rmtree(tmp_path / 'test' / 'a')
        with pytest.raises(DataError, match=r'the class folders of .*test have no images'):
            load_data('folder', tmp_path)

    @pytest.mark.parametrize(('train', 'test'), [('train', 'test'), ('Train', 'Test'), ('training', 'testing')])
    def test_a_competitions_test_part_is_left_out(
        self, train: str, test: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_classes(tmp_path / train, x=5, y=5)
        write_classes(tmp_path, **{test: 3})
        assert len(load_data('folder', tmp_path).test) == 2
        assert f'tested on 20 % of it: {test} (no class folders) is left out' in caplog.text
        write_classes(tmp_path / 'val', x=3, y=1)
        dataset = load_data('folder', tmp_path)
        assert (len(dataset.train), len(dataset.test), dataset.validation) == (10, 4, None)
        assert f'tested on val: {test} (no class folders) is left out' in caplog.text

    def test_parts_without_class_folders_are_refused_in_any_case(self, tmp_path: Path) -> None:
        write_classes(tmp_path, Train=3, Test=3)
        with pytest.raises(DataError, match='Train has no folders; it must hold one folder of images for each class'):
            load_data('folder', tmp_path)


class TestCsv:
    @staticmethod
    def load(tmp_path: Path, text: str, encoding: str = 'utf-8') -> Dataset:
        (tmp_path / 'list.csv').write_bytes(text.encode(encoding))
        return load_data(f'csv:{tmp_path / "list.csv"}')

    def test_codes_are_names_and_fractions_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def classes(*labels: str) -> tuple[str, ...]:
            for i in range(len(labels)):
                write_image(tmp_path / f'{i}.png', i)
            return self.load(
                tmp_path, 'path,label\n' + ''.join(f'{i}.png,{y}\n' for i, y in enumerate(labels))
            ).class_names

        assert classes('007', '007', '7', '7') == ('007', '7')
        assert classes('10', '10', '9', '9') == ('9', '10')
        caplog.clear()
        assert classes('10.0', '10.0', '9.0', '9.0') == ('10.0', '9.0')
        assert 'such as 10.0, are taken for names: write whole numbers' in caplog.text

    def test_names_and_splits(self, tmp_path: Path) -> None:
        write_image(tmp_path / 'pictures' / 'one, two.png')
        text = 'note,split,path,label\n,train,"pictures/one, two.png",owl\nx,test,b.png,cat\n,val,c.png,cat\n'
        dataset = self.load(tmp_path, text + ',train,d.png, cat\n', 'utf-8-sig')
        assert dataset.class_names == ('cat', 'owl')
        assert names(dataset, 'train') == [('owl', 'one, two.png'), ('cat', 'd.png')]
        assert names(dataset, 'test') == [('cat', 'b.png')]
        assert names(dataset, 'validation') == [('cat', 'c.png')]
        assert dataset.train.images[0].size == (4, 3)
        with pytest.raises(UnreadableImageError, match=r'd\.png does not exist'):
            dataset.train.images[1]

    def test_integers_without_split(self, tmp_path: Path) -> None:
        rows = [('path', 'label'), *((f'{i}.png', i % 11) for i in range(110))]
        with open(tmp_path / 'list.csv', 'w', newline='') as file:
            csv.writer(file).writerows(rows)
        dataset = load_data('csv', tmp_path / 'list.csv')
        assert dataset.class_names == tuple(map(str, range(11)))
        assert dataset.class_counts.tolist() == [8] * 11
        assert all(name == str(int(Path(file).stem) % 11) for name, file in names(dataset, 'test'))

    def test_integers_that_lack_some_are_named_by_themselves(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = ''.join(f'{label}_{i}.png,{label}\n' for label in (10, 2, 0) for i in range(2))
        dataset = self.load(tmp_path, f'path,label\n{rows}')
        assert dataset.class_names == ('0', '2', '10')
        assert sorted(names(dataset, 'train') + names(dataset, 'test')) == sorted(
            (label, f'{label}_{i}.png') for label in ('0', '2', '10') for i in range(2)
        )
        (message,) = caplog.messages
        assert message.startswith(f'the labels of {tmp_path}/list.csv go up to 10 but no image has label 1: the 3 ')

    def test_paths_start_from_the_folder_that_is_said(self, tmp_path: Path) -> None:
        write_image(tmp_path / 'pictures' / 'a.png')
        name, root = f'csv:{tmp_path / "list.csv"}', tmp_path / 'pictures'
        (tmp_path / 'list.csv').write_text(f'path,label,split\na.png,0,train\n{tmp_path}/b.png,1,train\nb.png,1,test\n')
        with pytest.raises(DataError, match=r'line 4 of .*list\.csv names b\.png again'):
            load_data(name)
        dataset = load_data(name, root)
        assert dataset.train.images[0].size == (4, 3)
        assert [dataset.train.images.name(1), dataset.test.images.name(0)] == [f'{tmp_path}/b.png', f'{root}/b.png']
        with pytest.raises(MissingDataError, match=rf'image {root}/b\.png does not exist'):
            require_readable(dataset.test)
        with pytest.raises(MissingDataError, match=r'/nowhere is not a folder; data_dir is where the relative paths'):
            load_data(name, '/nowhere')

    def test_an_image_twice_or_a_class_without_training_images_is_refused(self, tmp_path: Path) -> None:
        for rows in ('a,0\nb,1\n./a,0\n', 'a,0,train\nb,1,train\na,1,test\n', f'a,0\nb,1\n{tmp_path}/a,0\n'):
            first = 'path,label,split' if 'train' in rows else 'path,label'
            with pytest.raises(DataError, match=r'line 4 of .*list\.csv names .*a again, after line 2'):
                self.load(tmp_path, f'{first}\n{rows}')
        with pytest.raises(DataError, match=r'class c of .*list\.csv has no training image'):
            self.load(tmp_path, 'path,label,split\n1,a,train\n2,b,train\n3,c,test\n')

    def test_val_stands_in_for_test(self, tmp_path: Path) -> None:
        dataset = self.load(tmp_path, 'path,label,split\na,0,train\nb,1,train\nc,1,val\n')
        assert names(dataset, 'test') == [('1', 'c')]

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            ('', "must be path,label or path,label,split, not ''"),
            ('path;label\na;0\n', 'path;label'),
            ('path,label\n', 'lists no images'),
            ('path,label\na,0\nb,\n', 'line 3 .* has no label'),
            ('path,label\na,0\nb\n', 'line 3 .* has no label'),
            ('path,label\n,0\n', 'line 2 .* has no path'),
            ('path,label\na,b,0\n', 'line 2 .* more fields'),
            ('path,label,split\na,0,\n', 'line 2 .* no split'),
            ('path,label,split\na,0,dev\n', "line 2 .* split 'dev'; it must be train, test or val"),
            ('path,label\na,-1\nb,0\n', 'label -1'),
            ('path,label\na,x\nb,x\n', '1 class'),
            ('path,label,split\na,0,test\nb,1,test\n', 'training set .* no images'),
            ('path,label\n"a,0\n', 'not a CSV file'),
        ],
    )
    def test_unfit_files_are_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, text)

    def test_other_encodings_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match='UTF-8'):
            self.load(tmp_path, 'path,label\na,käfer\n', 'latin-1')


class TestArrays:
    @pytest.fixture
    def arrays(self) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        return {
            'x_train': generator.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8),
            'y_train': np.arange(30, dtype=np.int32) % 3,
            'x_test': generator.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8),
            'y_test': np.arange(9, dtype=np.uint8) % 3,
        }

    @staticmethod
    def load(tmp_path: Path, arrays: dict[str, np.ndarray], source: str = 'npz') -> Dataset:
        if source == 'npz':
            np.savez(tmp_path / 'set.npz', **arrays)  # type: ignore[arg-type]
            return load_data(f'npz:{tmp_path / "set.npz"}')
        for key, array in arrays.items():
            np.save(tmp_path / f'{key}.npy', array)
        return load_data(f'npy:{tmp_path}')

    @pytest.mark.parametrize('source', ['npz', 'npy'])
    def test_colour(self, tmp_path: Path, arrays: dict[str, np.ndarray], source: str) -> None:
        dataset = self.load(tmp_path, arrays, source)
        np.testing.assert_array_equal(np.asarray(dataset.train.images[4]), arrays['x_train'][4])
        np.testing.assert_array_equal(dataset.test.labels, arrays['y_test'])
        assert dataset.test.labels.dtype == np.int64
        scaled = arrays['x_train'].astype(np.float64) / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-12)
        assert dataset.image_size == 5
        assert dataset.class_names == ('0', '1', '2')

    def test_names_are_places_in_the_array_that_was_read(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        dataset = self.load(tmp_path, {key: arrays[key] for key in ('x_train', 'y_train')})
        for part in (dataset.train, dataset.test):
            for i in range(len(part)):
                row = int(part.images.name(i).removeprefix('image '))
                np.testing.assert_array_equal(np.asarray(part.images[i]), arrays['x_train'][row])
        joined = join_images(dataset.train.images, dataset.test.images)
        assert {joined.name(i) for i in range(len(joined))} == {f'image {i}' for i in range(len(arrays['x_train']))}

    @pytest.mark.parametrize('shape', [(6, 6), (6, 6, 1)])
    def test_grey_with_medmnists_names(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        images = np.random.default_rng(1).integers(0, 256, (20, *shape), dtype=np.uint8)
        labels = (np.arange(20) % 2)[:, None]
        arrays = {f'{part}_images': images for part in ('train', 'val', 'test')}
        dataset = self.load(tmp_path, arrays | {f'{part}_labels': labels for part in ('train', 'val', 'test')})
        pixels = np.asarray(dataset.train.images[3])
        assert pixels.shape == (6, 6, 3)
        assert all((pixels[..., c] == images[3].reshape(6, 6)).all() for c in range(3))
        assert dataset.train.labels.tolist() == [0, 1] * 10
        assert dataset.validation is not None
        assert dataset.validation.labels.tolist() == [0, 1] * 10

    def test_val_arrays_stand_in_for_test(self, tmp_path: Path) -> None:
        images, labels = np.zeros((4, 5, 5), dtype=np.uint8), np.array([0, 1, 0, 1])
        images[0] = 9
        arrays = {'x_train': images, 'y_train': labels, 'x_val': images[:2], 'y_val': labels[:2]}
        dataset = self.load(tmp_path, arrays)
        assert (len(dataset.train), len(dataset.test), dataset.validation) == (4, 2, None)
        del arrays['y_val']
        with pytest.raises(DataError, match='has no array y_val'):
            self.load(tmp_path, arrays)

    def test_statistics_are_added_up_block_by_block(self, tmp_path: Path) -> None:
        images = np.random.default_rng(2).integers(0, 200, (7, 1100, 900, 3), dtype=np.uint8)
        labels = np.arange(7) % 3
        dataset = self.load(
            tmp_path, dict.fromkeys(('x_train', 'x_test'), images) | dict.fromkeys(('y_train', 'y_test'), labels)
        )
        np.testing.assert_allclose(dataset.mean, (images / 255).mean((0, 1, 2)), rtol=1e-9)

    def test_a_channel_that_nothing_is_in(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        images = arrays['x_train'].copy()
        images[..., 2] = 0
        dataset = self.load(tmp_path, {'x_train': images, 'y_train': arrays['y_train']})
        assert (dataset.mean[2], dataset.std[2]) == (0, 1)
        assert min(dataset.std[:2]) > 0.1

    def test_an_archive_under_an_arrays_name(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        np.save(tmp_path / 'y_train.npy', arrays['y_train'])
        with open(tmp_path / 'x_train.npy', 'wb') as file:
            np.savez(file, x=arrays['x_train'])
        with pytest.raises(DataError, match=r'x_train of npy:.* is not a readable array of numbers'):
            load_data(f'npy:{tmp_path}')

    def test_without_test_part(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        dataset = self.load(tmp_path, {key: arrays[key] for key in ('x_train', 'y_train')})
        assert dataset.class_counts.tolist() == [8, 8, 8]
        together = [np.asarray(image).tobytes() for split in (dataset.train, dataset.test) for image in split.images]
        assert Counter(together) == Counter(image.tobytes() for image in arrays['x_train'])

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (
                {'x_train': None},
                'no array x_train; it must hold x_train and y_train, can hold x_test, y_test, x_val, y_val, and holds',
            ),
            ({'y_test': None}, 'no array y_test'),
            ({'x_train': np.zeros((30, 6, 5, 3))}, r'x_train .* must be uint8 .* not float64 \(30, 6, 5, 3\)'),
            ({'x_train': np.zeros((30, 3, 6, 5), np.uint8)}, r'not uint8 \(30, 3, 6, 5\)'),
            ({'x_train': np.zeros((0, 6, 5, 3), np.uint8)}, r'not uint8 \(0, 6, 5, 3\)'),
            ({'x_train': np.zeros((30, 6, 5, 3), np.uint8)}, 'one and the same value'),
            ({'x_test': np.zeros((9, 5, 6, 3), np.uint8)}, '6 x 5 pixels in x_train but 5 x 6 in x_test: give both'),
            ({'y_train': np.zeros(30)}, 'y_train .* one integer for each image'),
            ({'y_train': np.zeros((30, 14), int)}, r'one integer for each image, not int64 \(30, 14\)'),
            ({'y_train': np.zeros(29, int)}, '30 images in x_train but 29 labels in y_train'),
            ({'y_train': np.full(30, -1)}, 'label -1'),
            ({'y_train': np.zeros(30, int), 'y_test': np.zeros(9, int)}, '1 class'),
            ({'y_train': np.array([{}] * 30)}, 'y_train .* not a readable array'),
        ],
    )
    @pytest.mark.parametrize('source', ['npz', 'npy'])
    def test_unfit_arrays_are_refused(
        self,
        tmp_path: Path,
        arrays: dict[str, np.ndarray],
        source: str,
        change: dict[str, np.ndarray | None],
        message: str,
    ) -> None:
        changed = {key: array for key, array in (arrays | change).items() if array is not None}
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, changed, source)

    @pytest.mark.parametrize('source', ['npz', 'npy'])
    def test_labels_that_lack_some_are_named_by_themselves(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], source: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        codes = np.array([3, 1, 12])
        changed = {key: codes[array] if key.startswith('y') else array for key, array in arrays.items()}
        dataset = self.load(tmp_path, changed, source)
        assert dataset.class_names == ('1', '3', '12')
        for part in ('train', 'test'):
            labels = getattr(dataset, part).labels
            assert [int(dataset.class_names[label]) for label in labels] == changed[f'y_{part}'].tolist()
        assert [message.partition(':')[2].partition(' go ')[2] for message in caplog.messages] == [
            'up to 12 but no image has label 0: the 3 labels that occur are the classes, named by them'
        ]

    def test_other_files_are_refused(self, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
        file = tmp_path / 'set.npz'
        for content in (b'', b'PK\x03\x04 and then nothing', b'text'):
            file.write_bytes(content)
            with pytest.raises(DataError, match='not a readable'):
                load_data(f'npz:{file}')
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        damaged = bytearray(file.read_bytes())
        damaged[400:600] = bytes(200)
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r'x_train of npz.* is not a readable array'):
            load_data(f'npz:{file}')
        np.save(tmp_path / 'one.npy', arrays['x_train'])
        with pytest.raises(DataError, match='a single array'):
            load_data(f'npz:{tmp_path / "one.npy"}')


def test_classes_without_training_images_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def save(train: list[int], test: list[int]) -> str:
        arrays = {
            f'{kind}_{part}': np.arange(4 * len(labels), dtype=np.uint8).reshape(-1, 2, 2) if kind == 'x' else labels
            for part, labels in (('train', train), ('test', test))
            for kind in 'xy'
        }
        np.savez(tmp_path / 'set.npz', **arrays)  # type: ignore[arg-type]
        return f'npz:{tmp_path / "set.npz"}'

    load_parts(save([0, 1, 2], [2, 1, 0]))
    assert not caplog.messages
    for empty, listed in ((1, '2'), (6, '2, 3, 4, 5 and 2 more')):
        caplog.clear()
        load_parts(save([0, 1], list(range(2 + empty))))
        (message,) = caplog.messages
        assert message.startswith('classes of npz:')
        assert f'without training images: {empty} of {2 + empty} ({listed}); add images, or' in message


class TestHub:
    @pytest.fixture
    def library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
        datasets = pytest.importorskip('datasets')
        monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
        datasets.disable_progress_bars()
        return datasets

    @staticmethod
    def table(datasets, labels: list[int | None], **more: int):  # type: ignore[no-untyped-def]
        """Images that are as bright as their row, with two columns of labels."""
        images = [Image.new('L', (3, 3), i) for i in range(len(labels))]
        features = {
            'coarse': datasets.ClassLabel(names=['low', 'high']),
            'picture': datasets.Image(),
            'fine': datasets.ClassLabel(names=['zero', 'one', 'two']),
            'note': datasets.Value('string'),
        }
        columns = {'coarse': [0] * len(labels), 'picture': images, 'fine': labels, 'note': ['x'] * len(labels)}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def test_saved_splits(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        train, test = self.table(library, [0, 1, 2, 2, 1]), self.table(library, [2, 1])
        library.DatasetDict(train=train, test=test, val=self.table(library, [0])).save_to_disk(tmp_path / 'saved')
        dataset = load_data(f'hf:{tmp_path / "saved"}')
        assert dataset.class_names == ('zero', 'one', 'two')
        assert dataset.train.labels.tolist() == [0, 1, 2, 2, 1]
        assert dataset.test.labels.tolist() == [2, 1]
        assert dataset.validation is not None and dataset.validation.labels.tolist() == [0]
        chosen = dataset.train.select(np.array([3, 1]))
        assert [chosen.images[i].getpixel((0, 0)) for i in range(2)] == [(3, 3, 3), (1, 1, 1)]
        assert 'row 3 of' in chosen.images.name(0)

    def test_unlabelled_test_split_gives_way_to_validation(  # type: ignore[no-untyped-def]
        self, library, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for hidden in (-1, None):
            parts = {'train': [0, 1, 2], 'validation': [0, 0], 'test': [hidden] * 3}
            tables = {part: self.table(library, labels) for part, labels in parts.items()}
            library.DatasetDict(tables).save_to_disk(tmp_path / f'saved {hidden}')
            caplog.clear()
            assert load_data(f'hf:{tmp_path / f"saved {hidden}"}').test.labels.tolist() == [0, 0]
            (message,) = caplog.messages
            assert message.endswith('trained on train and tested on validation: test (without labels) is left out')

    def test_other_splits_are_left_out_with_a_warning(  # type: ignore[no-untyped-def]
        self, library, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = self.table(library, [0, 1, 2] * 5)
        library.DatasetDict(train=one, dev=one, testing=one).save_to_disk(tmp_path / 'saved')
        assert len(load_data(f'hf:{tmp_path / "saved"}').test) == 3
        (message,) = caplog.messages
        assert message.endswith('trained on train and tested on 20 % of it: dev, testing are left out')

    def test_labels_go_by_the_names_of_the_classes(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        train, test = self.table(library, [0, 1, 2]), self.table(library, [0, 1, 1])
        for names, expected in ((['two', 'one', 'zero'], [2, 1, 1]), (['zero', 'two'], [0, 2, 2])):
            part = test.cast_column('fine', library.ClassLabel(names=names))
            place = tmp_path / ' '.join(names)
            library.DatasetDict(train=train, test=part).save_to_disk(place)
            assert load_data(f'hf:{place}').test.labels.tolist() == expected
        # One with its own names and no labels is still without labels.
        part = self.table(library, [None] * 3).cast_column('fine', library.ClassLabel(names=['hidden', 'two']))
        library.DatasetDict(train=train, test=part, val=test).save_to_disk(tmp_path / 'unlabelled')
        assert load_data(f'hf:{tmp_path / "unlabelled"}').test.labels.tolist() == [0, 1, 1]

    def test_a_saved_format_and_a_place_with_a_space(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        drawn = []
        for place in ('one place', 'another place'):
            self.table(library, [0, 1, 2] * 5).with_format('torch').save_to_disk(tmp_path / place)
            dataset = load_data(f'hf:{tmp_path / place}')
            assert [image.mode for image in dataset.train.images] == ['RGB'] * 12
            drawn.append(dataset.drawn_from)
        assert drawn[0] == drawn[1]

    def test_other_files_are_another_draw(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        drawn = []
        for name in ('b', 'b', 'c'):
            files = [str(tmp_path / f'{i}{name}.png') for i in range(15)]
            for i, file in enumerate(files):
                write_image(Path(file), i)
            columns = {'image': files, 'label': [0, 1, 2] * 5}
            features = {'image': library.Image(), 'label': library.ClassLabel(names=['zero', 'one', 'two'])}
            table = library.Dataset.from_dict(columns, features=library.Features(features))
            table.save_to_disk(tmp_path / 'saved')
            drawn.append(load_data(f'hf:{tmp_path / "saved"}').drawn_from)
            shutil.rmtree(tmp_path / 'saved')
        assert drawn[0] == drawn[1] != drawn[2]

    def test_a_loading_script_is_refused(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / 'script').mkdir()
        (tmp_path / 'script' / 'script.py').write_text('import datasets')
        with pytest.raises(DataError, match=r'hf:.*script cannot be loaded: Dataset scripts are no longer supported'):
            load_data(f'hf:{tmp_path / "script"}')

    @pytest.mark.parametrize('error', [KeyError('_data_files'), type('ProxyError', (Exception,), {})('403 Forbidden')])
    def test_whatever_loading_ends_with(  # type: ignore[no-untyped-def]
        self, library, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*words: str | None) -> None:
            raise error

        monkeypatch.setattr(library, 'load_dataset', fail)
        with pytest.raises(DataError, match=f'hf:org/name cannot be loaded: {error}'):
            load_data('hf:org/name')

    def test_one_of_several_configurations(  # type: ignore[no-untyped-def]
        self, library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str | None, ...]] = []
        saved = library.DatasetDict(train=self.table(library, [0, 1, 2] * 5))
        with monkeypatch.context() as patch:
            patch.setattr(library, 'load_dataset', lambda *words: asked.append(words) or saved)
            for name in ('org/name', 'org/name:large', 'name:v1.0'):
                assert load_data(f'hf:{name}').name == f'hf:{name}'
        assert asked == [('org/name', None), ('org/name', 'large'), ('name', 'v1.0')]
        # The name of a folder may have a colon.
        saved.save_to_disk(tmp_path / 'a:b')
        assert len(load_data(f'hf:{tmp_path / "a:b"}').train) == 12

        def fail(*words: str | None) -> None:
            raise ValueError('Config name is missing.\nPlease pick one among the available configs: [one, two]')

        monkeypatch.setattr(library, 'load_dataset', fail)
        with pytest.raises(DataError, match=r'is missing\. .* configs: \[one, two\]; write hf:org/name:CONFIG, with'):
            load_data('hf:org/name')

    def test_train_alone(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        self.table(library, [0, 1, 2] * 10).save_to_disk(tmp_path / 'saved')
        dataset = load_data(f'hf:{tmp_path / "saved"}')
        assert dataset.class_counts.tolist() == [8, 8, 8]
        shades = [image.getpixel((0, 0))[0] for split in (dataset.train, dataset.test) for image in split.images]
        assert sorted(shades) == list(range(30))

    def test_image_folder(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        write_classes(tmp_path / 'tree' / 'train', a=3, b=2)
        write_classes(tmp_path / 'tree' / 'test', a=1, b=1)
        (tmp_path / 'tree' / 'train' / 'b' / '000.png').write_bytes(b'not a picture')
        dataset = load_data(f'hf:{tmp_path / "tree"}')
        assert dataset.class_names == ('a', 'b')
        assert dataset.class_counts.tolist() == [3, 2]
        broken = int(np.flatnonzero(dataset.train.labels == 1)[0])
        with pytest.raises(UnreadableImageError, match=f'row {broken} of hf:.* cannot be decoded'):
            dataset.train.images[broken]

    def test_unfit_tables_are_refused(self, library, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        whole, part = self.table(library, [0, 1, None]), self.table(library, [0, 1, 2])
        other = part.cast_column('fine', library.ClassLabel(names=['zero', 'one', 'four']))
        words = part.cast_column('fine', library.Value('string'))
        for name, table, message in (
            ('a', whole, 'row 2 of .* has no fine'),
            ('b', whole.select_columns(['picture', 'note']), r'it has picture \(Image\), note \(Value\)'),
            ('c', whole.select_columns(['fine', 'coarse']), 'needs a column of type Image'),
            ('d', library.DatasetDict(test=whole), 'no split train, only test'),
            ('e', self.table(library, [0, 1, -1] * 2), 'row 2 of .* has no fine'),
            ('f', library.DatasetDict(train=part, test=whole, val=part), 'row 2 of .* test has no fine: give it one'),
            ('g', library.DatasetDict(train=part, test=part.select_columns(['picture'])), 'test has no column fine'),
            ('h', library.DatasetDict(train=part, test=part.select_columns(['fine'])), 'test has no column picture'),
            ('i', library.DatasetDict(train=part, test=other), 'test has the class four, which the split train lacks'),
            ('j', library.DatasetDict(train=part, test=words), r"fine of .* test has '\w+', where the split train has"),
        ):
            table.save_to_disk(tmp_path / name)
            with pytest.raises(DataError, match=message):
                load_data(f'hf:{tmp_path / name}')
        (tmp_path / 'empty').mkdir()
        with pytest.raises(LtzooError, match=r'hf:.*empty cannot be'):
            load_data(f'hf:{tmp_path / "empty"}')

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, 'datasets', None)
        with pytest.raises(DataError, match=r"pip install 'ltzoo\[datasets\]'"):
            load_data(f'hf:{tmp_path}')


class TestOfficialLists:
    @staticmethod
    def place(folder: Path, **lists: Path) -> None:
        """Copy lists into a folder under their official names, and make the first image of each."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in lists.items():
            shutil.copyfile(source, folder / f'{name}.txt')
            with open(source) as file:
                write_image(folder / file.readline().split()[0])

    def test_places(self, split_lists: Path, tmp_path: Path) -> None:
        parts = ('Places_LT_train', 'Places_LT_test', 'Places_LT_val')
        self.place(tmp_path / 'Places_LT', **{part: split_lists / f'{part}.txt' for part in parts})
        dataset = load_data('places_lt', tmp_path)
        assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (62_500, 36_500, 365)
        assert (dataset.class_counts.max(), dataset.class_counts.min()) == (4_980, 5)
        assert dataset.class_names[0] == 'airfield'
        assert dataset.class_names[364] == 'zen_garden'
        assert dataset.spare is not None
        assert np.bincount(dataset.spare.labels).tolist() == [20] * 365
        first = (split_lists / 'Places_LT_train.txt').read_text().split('\n')[0].split()
        assert dataset.train.images.name(0) == str(tmp_path / 'Places_LT' / first[0])
        assert dataset.train.images[0].mode == 'RGB'
        (tmp_path / 'Places_LT' / 'Places_LT_val.txt').unlink()
        dataset = load_data(f'places_lt:{tmp_path / "Places_LT"}')
        assert dataset.spare is None
        options: dict[str, Any]
        for options in ({}, {'per_class': 1}):
            with pytest.raises(MissingDataError, match=r'Places_LT_val\.txt is missing: a hold-out of places_lt'):
                with_holdout(dataset, **options)

    def test_imagenet_test_list(self, split_lists: Path, tmp_path: Path) -> None:
        """The train list is not at hand: the validation list, which has the same form, takes its place."""
        folder = tmp_path / 'ImageNet_LT'
        lists = {'ImageNet_LT_test': split_lists / 'ImageNet_LT_test.txt'}
        self.place(folder, **lists)
        with pytest.raises(
            MissingDataError, match=r'ImageNet_LT_train\.txt is missing: .*OpenLongTailRecognition-OLTR'
        ):
            load_data('imagenet_lt', tmp_path)
        self.place(folder, ImageNet_LT_train=split_lists / 'ImageNet_LT_val.txt', **lists)
        dataset = load_data('imagenet_lt', tmp_path)
        assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (20_000, 50_000, 1_000)
        assert np.bincount(dataset.test.labels).tolist() == [50] * 1000
        assert dataset.class_names[0] == 'n01440764'
        assert len(set(dataset.class_names)) == 1_000
        shutil.rmtree(folder / 'val')
        with pytest.raises(
            MissingDataError, match=r'val.n01440764.*first image of ImageNet_LT_test\.txt.*image-net\.org'
        ):
            load_data('imagenet_lt', tmp_path)

    def test_inaturalist_list_and_annotations(self, split_lists: Path, tmp_path: Path) -> None:
        folder = tmp_path / 'iNat18'
        self.place(folder, iNaturalist18_val=split_lists / 'iNaturalist18_val.txt')
        with pytest.raises(
            MissingDataError, match=r'iNaturalist18_train\.txt is missing, .*train2018\.json.*inat_comp'
        ):
            load_data('inat18', tmp_path)
        files = ['train_val2018/Plantae/7291/x.jpg', 'train_val2018/Insecta/673/y.jpg']
        annotations = {
            'images': [{'id': 5, 'file_name': files[0]}, {'id': 3, 'file_name': files[1]}],
            'annotations': [{'image_id': 3, 'category_id': 673}, {'image_id': 5, 'category_id': 7291}],
        }
        (folder / 'train2018.json').write_text(json.dumps(annotations))
        write_image(folder / files[1])
        dataset = load_data('inat18', tmp_path)
        assert (len(dataset.test), dataset.num_classes) == (24_426, 8_142)
        assert dataset.class_names == tuple(map(str, range(8_142)))
        assert dataset.train.labels.tolist() == [673, 7291]
        assert dataset.train.images[0].mode == 'RGB'
        assert dataset.mean == (0.466, 0.471, 0.380)
        assert dataset.std == (0.195, 0.194, 0.192)
        listed = (folder / 'iNaturalist18_val.txt').read_text().split()
        tested = {
            'images': [{'id': i, 'file_name': file} for i, file in enumerate(listed[::2])],
            'annotations': [{'image_id': i, 'category_id': int(c)} for i, c in enumerate(listed[1::2])],
        }
        (folder / 'val2018.json').write_text(json.dumps(tested))
        (folder / 'iNaturalist18_val.txt').rename(folder / 'val.txt')
        annotated = load_data('inat18', tmp_path).test
        assert np.array_equal(annotated.labels, dataset.test.labels)
        assert annotated.images.name(7) == dataset.test.images.name(7)
        (folder / 'val.txt').rename(folder / 'iNaturalist18_val.txt')
        categories = [{'id': c, 'name': f'Species {c}'} for c in reversed(range(8_142))]
        (folder / 'categories.json').write_text(json.dumps(categories))
        assert load_data('inat18', tmp_path).class_names[673] == 'Species 673'
        annotations['annotations'][0]['category_id'] = 674
        (folder / 'train2018.json').write_text(json.dumps(annotations))
        with pytest.raises(DataError, match=r'label 674 is folder 673 in train2018\.json but 674 in iNat'):
            load_data('inat18', tmp_path)
        for file, content, message in (
            ('categories.json', '[{"id": 1, "name": "a"}]', 'ids 0, 1'),
            ('train2018.json', '{"images": []}', 'not in the format'),
            ('train2018.json', '{', 'not valid JSON'),
        ):
            (folder / file).write_text(content)
            with pytest.raises(DataError, match=message):
                load_data('inat18', tmp_path)

    @pytest.mark.parametrize(
        ('train', 'message'),
        [
            ('train/a/0.jpg\n', "line 1 of .*train.txt must be an image path.*'train/a/0.jpg'"),
            ('train/a/0.jpg 0\ntrain/a/1.jpg zero\n', 'line 2'),
            ('train/a/0.jpg 0\ntrain/b/0.jpg -1\n', 'line 2'),
            ('train/a/0.jpg 0\ntrain/c/0.jpg 1\n', 'label 1 is folder c in .*train.txt but b in .*test.txt'),
            ('train/a/0.jpg 0\ntrain/c/0.jpg 3\n', 'labels up to 3 but none is 2'),
            ('train/a/0.jpg 0\ntrain/a/0.jpg 0\n', 'train.txt names the image train/a/0.jpg more than once'),
            ('train/a/0.jpg 0\ntest/b/0.jpg 1\n', 'test.txt names the image test/b/0.jpg, which is in .*train.txt too'),
            ('', 'no images'),
            ('train/a/0.jpg 0\ntrain/c/0.jpg 999999999\n', 'labels up to 999999999 but none is 2'),
            (f'train/a/0.jpg {"9" * 20}\n', 'line 1'),
            ('train/a/\udce9.jpg 0\n', 'is not a list in UTF-8'),
        ],
    )
    def test_unfit_lists_are_refused(self, tmp_path: Path, train: str, message: str) -> None:
        (tmp_path / 'Places_LT_train.txt').write_bytes(train.encode(errors='surrogateescape'))
        (tmp_path / 'Places_LT_test.txt').write_text('test/a/0.jpg 0\ntest/b/0.jpg 1\n')
        write_image(tmp_path / 'train' / 'a' / '0.jpg')
        write_image(tmp_path / 'test' / 'a' / '0.jpg')
        with pytest.raises(DataError, match=message):
            load_data('places_lt', tmp_path)


def test_lists_as_other_systems_write_them(tmp_path: Path) -> None:
    text = '\ufefftrain/a/0.jpg 0 \r\n\r\ntrain/b/0.jpg 1\r\n\r\n'
    (tmp_path / 'Places_LT_train.txt').write_bytes(text.encode())
    (tmp_path / 'Places_LT_test.txt').write_text('test/a/0.jpg 0\ntest/b/0.jpg 1\n')
    write_image(tmp_path / 'train' / 'a' / '0.jpg')
    write_image(tmp_path / 'test' / 'a' / '0.jpg')
    dataset = load_data('places_lt', tmp_path)
    assert dataset.train.labels.tolist() == [0, 1]
    assert names(dataset, 'train') == [('a', '0.jpg'), ('b', '0.jpg')]


def test_cifar_files_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r'cifar-100-python.*profile_data.py cifar100 --data-dir .* --download'):
        load_data('cifar100', tmp_path)


def test_cifar_is_downloaded_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = tmp_path / 'new', []
    monkeypatch.setattr(CIFAR100, 'download', lambda reader: seen.append((folder / '.lock').exists()))
    with pytest.raises(MissingDataError, match=r'downloading .* gave others'):
        load_data('cifar100', folder, download=True)
    with pytest.raises(MissingDataError, match='does not hold the official CIFAR100 files'):
        load_data('cifar100', folder)
    assert seen == [True] and not list(folder.iterdir())
    monkeypatch.setattr('ltzoo.data.sources.cifar._PATIENCE', 0.1)
    with (
        alone(folder),
        pytest.raises(MissingDataError, match=r'another process has been downloading to .*new'),
    ):
        load_data('cifar100', folder, download=True)
    assert seen == [True]


def test_cifar_in_official_order(cifar_dir: Path) -> None:
    dataset = load_data('cifar10', cifar_dir)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert dataset.class_names[:2] == ('airplane', 'automobile')
    assert dataset.class_counts.tolist() == [5000] * 10
    assert (dataset.mean, dataset.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_digits_are_balanced_and_disjoint() -> None:
    dataset = load_data('digits')
    assert dataset.class_counts.tolist() == [134] * 10
    assert np.bincount(dataset.test.labels).tolist() == [40] * 10
    pixels = [image.tobytes() for split in (dataset.train, dataset.test) for image in split.images]
    assert len(set(pixels)) == 1740
    train = np.stack([np.asarray(image) for image in dataset.train.images]) / 255
    assert dataset.mean[0] == pytest.approx(train.mean(), abs=0.01)
    assert dataset.std[0] == pytest.approx(train.std(), abs=0.01)
