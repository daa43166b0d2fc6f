"""ImageNet-LT: 115,846 training images of ImageNet's 1,000 classes, 1,280 to 5 a class; 50,000 test images.

Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World (OLTR), CVPR 2019.
"""

from __future__ import annotations

from pathlib import Path

from ltzoo.data.dataset import Dataset, register_source
from ltzoo.data.sources._lists import from_oltr_lists

LISTS = ('ImageNet_LT_train.txt', 'ImageNet_LT_test.txt', 'ImageNet_LT_val.txt')


@register_source('imagenet_lt')
def imagenet_lt(location: Path, download: bool) -> Dataset:
    """Read ImageNet-LT by its official lists.

    The lists lie in `location` itself or in `location/ImageNet_LT`, beside the folders (or links to them) that their
    paths start with::

        ImageNet_LT/ImageNet_LT_train.txt    lines such as: train/n01440764/n01440764_190.JPEG 0
        ImageNet_LT/ImageNet_LT_test.txt     lines such as: val/n01440764/ILSVRC2012_val_00029930.JPEG 0
        ImageNet_LT/ImageNet_LT_val.txt      for hold-outs: 20 training images of each class that the split left out
        ImageNet_LT/train/n01440764/...
        ImageNet_LT/val/n01440764/...

    Class names are WordNet ids. Nothing is downloaded.
    """
    return from_oltr_lists('imagenet_lt', location, LISTS, 'ILSVRC2012 from https://image-net.org')
