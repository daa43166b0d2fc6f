"""One file for each place that data comes from; importing this package registers them all."""

from ltzoo.data.sources import arrays, cifar, csv_file, digits, folder, hf, imagenet_lt, inat18, places_lt

__all__ = ['arrays', 'cifar', 'csv_file', 'digits', 'folder', 'hf', 'imagenet_lt', 'inat18', 'places_lt']
