"""scikit-learn's handwritten digits: 1,797 real grey images of 8 x 8 pixels that come inside the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltzoo.data.dataset import Dataset, Split, register_source
from ltzoo.data.images import ArrayImages

TEST_PER_CLASS = 40
# Of its 1,740 images, scaled to 0..1.
MEAN = (0.3056,) * 3
STD = (0.3759,) * 3


@register_source('digits', default_ratio=50)
def digits(location: Path, download: bool) -> Dataset:
    """The last 40 images of each class are the test set; every class keeps 134 for training, the most all have."""
    # Imported here for the sake of everyone who imports ltzoo for something else: it takes a second.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = ArrayImages(np.repeat(grey[..., None], 3, axis=3))
    labels = bunch.target.astype(np.int64)
    members = [np.flatnonzero(labels == c) for c in range(10)]
    train_per_class = min(len(m) for m in members) - TEST_PER_CLASS
    whole = Split(images, labels)
    train = whole.select(np.sort(np.concatenate([m[:train_per_class] for m in members])))
    test = whole.select(np.sort(np.concatenate([m[-TEST_PER_CLASS:] for m in members])))
    return Dataset('digits', train, test, tuple(map(str, range(10))), MEAN, STD, image_size=8)
