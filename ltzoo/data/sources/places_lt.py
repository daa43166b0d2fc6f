"""Places-LT: 62,500 training images of 365 scenes, 4,980 to 5 a class; 36,500 test images.

Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World (OLTR), CVPR 2019.
"""

from __future__ import annotations

from pathlib import Path

from ltzoo.data.dataset import Dataset, register_source
from ltzoo.data.sources._lists import from_oltr_lists

LISTS = ('Places_LT_train.txt', 'Places_LT_test.txt', 'Places_LT_val.txt')


@register_source('places_lt')
def places_lt(location: Path, download: bool) -> Dataset:
    """Read Places-LT by its official lists.

    The lists lie in `location` itself or in `location/Places_LT`, beside the folders (or links to them) that their
    paths start with::

        Places_LT/Places_LT_train.txt    lines such as: train/airfield/00004851.jpg 0
        Places_LT/Places_LT_test.txt     lines such as: val/airfield/Places365_val_00003597.jpg 0
        Places_LT/Places_LT_val.txt      for hold-outs: 20 training images of each class that the split left out
        Places_LT/train/airfield/...
        Places_LT/val/airfield/...

    Class names are the scenes' folders. Nothing is downloaded.
    """
    images_from = 'Places365-Standard (easy directory structure) from http://places2.csail.mit.edu'
    return from_oltr_lists('places_lt', location, LISTS, images_from)
