"""Labelled and captioned sets of satellite images, from local files in the layouts they were published in."""

from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.open import known_sets, open_set

__all__ = ['ImageSet', 'known_sets', 'open_set']
