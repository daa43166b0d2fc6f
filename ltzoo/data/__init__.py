"""Data: sources by name, the long-tailed profile, hold-outs, and the views that training sees."""

from ltzoo.data import sources
from ltzoo.data.dataset import (
    DataError,
    Dataset,
    MissingDataError,
    Split,
    check_data_name,
    drop_unreadable,
    list_data,
    load_data,
    register_source,
    require_readable,
    source_of,
    spelled_plainly,
    takes_data_dir,
    with_place,
    without_folders,
)
from ltzoo.data.holdout import load_parts, split_off, with_holdout
from ltzoo.data.images import ArrayImages, FileImages, Images, MissingImageError, UnreadableImageError
from ltzoo.data.longtail import longtail_counts, longtail_indices
from ltzoo.data.profile import Profile, gini_coefficient, imbalance_ratio, plot_profile, profile_data
from ltzoo.data.shots import ShotError, check_thresholds, shot_classes

__all__ = [
    'ArrayImages',
    'DataError',
    'Dataset',
    'FileImages',
    'Images',
    'MissingDataError',
    'MissingImageError',
    'Profile',
    'ShotError',
    'Split',
    'UnreadableImageError',
    'check_data_name',
    'check_thresholds',
    'drop_unreadable',
    'gini_coefficient',
    'imbalance_ratio',
    'list_data',
    'load_data',
    'load_parts',
    'longtail_counts',
    'longtail_indices',
    'plot_profile',
    'profile_data',
    'register_source',
    'require_readable',
    'shot_classes',
    'source_of',
    'sources',
    'spelled_plainly',
    'split_off',
    'takes_data_dir',
    'with_holdout',
    'with_place',
    'without_folders',
]
