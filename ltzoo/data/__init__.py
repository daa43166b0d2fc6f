"""Data: sources by name, the long-tailed profile, hold-outs, and the views that training sees."""

from ltzoo.data import sources
from ltzoo.data.dataset import DataError, Dataset, Split, list_data, load_data, register_source
from ltzoo.data.images import ArrayImages, FileImages, UnreadableImageError
from ltzoo.data.longtail import longtail_counts, longtail_indices

__all__ = [
    'ArrayImages',
    'DataError',
    'Dataset',
    'FileImages',
    'Split',
    'UnreadableImageError',
    'list_data',
    'load_data',
    'longtail_counts',
    'longtail_indices',
    'register_source',
    'sources',
]
