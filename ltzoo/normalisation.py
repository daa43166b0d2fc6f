"""Means and standard deviations of images scaled to 0..1, per channel, that data sources and models agree on."""

__all__ = ['CIFAR_MEAN', 'CIFAR_STD', 'INAT18_MEAN', 'INAT18_STD']

# Of CIFAR-10's training images, which the LDAM line uses for both sets.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

# Of iNaturalist 2018's training images, as the long-tailed literature uses them.
INAT18_MEAN = (0.466, 0.471, 0.380)
INAT18_STD = (0.195, 0.194, 0.192)
