"""One file for each place that data comes from; importing this package registers them all."""

from ltzoo.data.sources import cifar, digits

__all__ = ['cifar', 'digits']
