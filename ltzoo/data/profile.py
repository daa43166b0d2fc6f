"""What a data set looks like before one trains on it: how long its tail is, and what is wrong with its images."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltzoo.data.dataset import Dataset, spelled_plainly
from ltzoo.data.images import UnreadableImageError, examine
from ltzoo.data.shots import FEW_BELOW, MANY_ABOVE, SHOT_COLOURS, shot_classes
from ltzoo.errors import first_of
from ltzoo.files import drawable, save_figure

__all__ = ['ImagesCheck', 'Profile', 'gini_coefficient', 'imbalance_ratio', 'plot_profile', 'profile_data']


@dataclass(frozen=True)
class ImagesCheck:
    """What decoding every image brought to light.

    Attributes:
        unreadable: for 'training', 'test' and, where there is one, 'validation', the messages that name the images that
            cannot be decoded.
        duplicates: groups of images with the same pixels, each a list of (part, position in that part).
    """

    unreadable: dict[str, list[str]]
    duplicates: list[list[tuple[str, int]]]


@dataclass(frozen=True)
class Profile:
    """What `profile_data` finds.

    Attributes:
        data: the data set's name.
        class_names: C names.
        train_counts, test_counts: images per class, int64, shape (C,).
        shots: class indices of 'many', 'medium' and 'few', see `shot_classes`.
        many_above, few_below: their thresholds.
        check: what was found in the images, None if they were not looked at.
        warnings: what to know before training, each one sentence.
    """

    data: str
    class_names: tuple[str, ...]
    train_counts: np.ndarray
    test_counts: np.ndarray
    shots: dict[str, np.ndarray]
    many_above: int
    few_below: int
    check: ImagesCheck | None
    warnings: tuple[str, ...]

    @property
    def imbalance_ratio(self) -> float:
        return imbalance_ratio(self.train_counts)

    @property
    def gini(self) -> float:
        return gini_coefficient(self.train_counts)

    def to_json(self) -> dict[str, Any]:
        """Return the profile in JSON's types."""
        counts = zip(self.class_names, self.train_counts.tolist(), self.test_counts.tolist(), strict=True)
        return {
            'data': self.data,
            'classes': len(self.class_names),
            'train_images': int(self.train_counts.sum()),
            'test_images': int(self.test_counts.sum()),
            'imbalance_ratio': self.imbalance_ratio,
            'gini': self.gini,
            'many_above': self.many_above,
            'few_below': self.few_below,
            'shots': {
                shot: {'classes': len(classes), 'train_images': int(self.train_counts[classes].sum())}
                for shot, classes in self.shots.items()
            },
            'unreadable': None if self.check is None else self.check.unreadable,
            'duplicates': None if self.check is None else self.check.duplicates,
            'warnings': list(self.warnings),
            'per_class': [
                {'class': c, 'name': name, 'train_count': train, 'test_count': test}
                for c, (name, train, test) in enumerate(counts)
            ],
        }


def imbalance_ratio(class_counts: np.ndarray) -> float:
    """Return the largest over the smallest number of images in a class, over the classes that have any.

    Raises:
        ValueError: if none has.
    """
    counts = np.asarray(class_counts)
    if not counts.any():
        raise ValueError('no class has an image')
    return float(counts.max() / counts[counts > 0].min())


def gini_coefficient(class_counts: np.ndarray) -> float:
    """Return the Gini coefficient of the class sizes: 0 if all are equal, near 1 if one class has almost everything.

    It is half the mean absolute difference between two classes' sizes, relative to the mean size.

    Source: Yang et al., A Survey on Long-Tailed Visual Recognition, IJCV 2022, which compares data sets by it.

    Args:
        class_counts: images per class, shape (C,); unlike in `imbalance_ratio` classes without any count.

    Raises:
        ValueError: if none has an image.
    """
    counts = np.sort(np.asarray(class_counts))
    if not counts.any():
        raise ValueError('no class has an image')
    n = len(counts)
    return float((2 * np.arange(1, n + 1) - n - 1) @ counts / (n * counts.sum()))


def profile_data(
    dataset: Dataset, *, many_above: int = MANY_ABOVE, few_below: int = FEW_BELOW, check_images: bool = True
) -> Profile:
    """Describe a data set and look for what is wrong with it.

    Args:
        dataset: the data set.
        many_above, few_below: thresholds of the shots, see `shot_classes`.
        check_images: decode every image of all parts, to find those that cannot be and those that occur more
            than once; takes minutes for a large set of files.

    Raises:
        ShotError: if the thresholds do not fit each other.
    """
    counts = dataset.class_counts
    test_counts = dataset.test_counts
    shots = shot_classes(counts, many_above, few_below)
    warnings = []
    for lacking, what in (
        (counts == 0, 'no training image'),
        (counts == 1, 'only one training image'),
        (test_counts == 0, 'no test image'),
    ):
        if lacking.any():
            names = [dataset.class_names[c] for c in np.flatnonzero(lacking)]
            warnings.append(f'{_count(names, "class has", "classes have")} {what}: {first_of(names)}')
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in dataset.class_names:
        spellings[spelled_plainly(name)].append(name)
    if doubled := [first_of(names, between=' = ') for names in spellings.values() if len(names) > 1]:
        told = _count(doubled, 'class name is', 'class names are')
        warnings.append(f'{told} there in spellings that differ in case or accents alone: {first_of(doubled)}')
    check = _check_images(dataset) if check_images else None
    if check is not None:
        warnings += _image_warnings(dataset, check)
    return Profile(
        data=dataset.name,
        class_names=dataset.class_names,
        train_counts=counts,
        test_counts=test_counts,
        shots=shots,
        many_above=many_above,
        few_below=few_below,
        check=check,
        warnings=tuple(warnings),
    )


def plot_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Draw the number of training images of every class, from the head to the tail, coloured by shot.

    Args:
        profile: what to draw.
        path: a PNG, PDF or SVG file to write, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if its suffix names no format.
        ImportError: without Matplotlib (`pip install 'ltzoo[plots]'`).
    """
    from matplotlib.figure import Figure

    order = np.argsort(-profile.train_counts, kind='stable')
    counts = profile.train_counts[order]
    # The axis is logarithmic: bars start below one image, so that a class with one is seen.
    floor = 0.7
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    for shot, classes in profile.shots.items():
        ranks = np.flatnonzero(np.isin(order, classes))
        label = f'{shot.capitalize()}: none'
        if len(ranks):
            label = f'{shot.capitalize()}: {_count(ranks, "class", "classes")}, {counts[ranks].sum():,} images'
            edges = np.append(ranks, ranks[-1] + 1)
            axes.stairs(np.maximum(counts[ranks], floor), edges, baseline=floor, fill=True, color=SHOT_COLOURS[shot])
        axes.plot([], [], color=SHOT_COLOURS[shot], linewidth=6, label=label)
    for threshold in (profile.many_above, profile.few_below):
        axes.axhline(threshold, color='black', linewidth=0.8, linestyle='--')
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter('{x:,.0f}')
    axes.set_xlim(0, len(counts))
    axes.set_ylim(floor, 1.5 * max(counts.max(), profile.many_above))
    if len(counts) <= 30:
        names = [drawable(profile.class_names[c]) for c in order]
        axes.set_xticks(np.arange(len(counts)) + 0.5, names, rotation=45, ha='right', parse_math=False)
    axes.set_xlabel('class, from the largest to the smallest')
    axes.set_ylabel('training images')
    axes.set_title(
        f'{drawable(profile.data)}\n{counts.sum():,} training images in {len(counts):,} classes, '
        f'imbalance ratio {profile.imbalance_ratio:,.4g}, Gini {profile.gini:.3f}',
        fontsize='medium',
        parse_math=False,
    )
    # Below the axes, where no bar and no threshold can run through it.
    figure.legend(frameon=False, loc='outside lower center', ncols=len(profile.shots))
    axes.grid(axis='y', alpha=0.3)
    save_figure(figure, Path(path))


def _check_images(dataset: Dataset) -> ImagesCheck:
    unreadable: dict[str, list[str]] = {}
    seen: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for part, split in dataset.parts.items():
        unreadable[part] = []
        for index, result in enumerate(examine(split.images, _fingerprint)):
            if isinstance(result, UnreadableImageError):
                unreadable[part].append(str(result))
            else:
                seen[result].append((part, index))
    return ImagesCheck(unreadable, [group for group in seen.values() if len(group) > 1])


def _fingerprint(image: Image.Image) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=b'%dx%d' % image.size).digest()


def _image_warnings(dataset: Dataset, check: ImagesCheck) -> list[str]:
    def name(place: tuple[str, int]) -> str:
        part, index = place
        return f'{part} {dataset.parts[part].images.name(index)}'

    warnings = []
    for part, messages in check.unreadable.items():
        if messages:
            warnings.append(
                f'{_count(messages, f"{part} image", f"{part} images")} cannot be read: {first_of(messages)}'
            )
    equal: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    contradictory = []
    for group in check.duplicates:
        first = group[0]
        for place in group[1:]:
            equal[place[0], first[0]].append(f'{name(place)} = {name(first)}')
        if len({int(dataset.parts[part].labels[index]) for part, index in group}) > 1:
            contradictory.append(first_of(map(name, group), between=' = '))
    # Those in two parts first.
    for (part, other), found in sorted(equal.items(), key=lambda item: item[0][0] == item[0][1]):
        image, images = f'{part} image', f'{part} images'
        if part == other:
            told = _count(found, f'{image} is a copy of another', f'{images} are copies of another')
        else:
            theirs = f'{other} image'
            told = _count(found, f'{image} is also a {theirs}', f'{images} are also {theirs}s')
        warnings.append(f'{told}: {first_of(found)}')
    if contradictory:
        told = _count(
            contradictory, 'group of equal images has different labels', 'groups of equal images have different labels'
        )
        warnings.append(f'{told}: {first_of(contradictory)}')
    return warnings


def _count(things: Sized, one: str, several: str) -> str:
    return f'{len(things):,} {one if len(things) == 1 else several}'
