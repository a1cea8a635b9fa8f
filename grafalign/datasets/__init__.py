"""Labelled and captioned sets of satellite images, from local files in the layouts they were published in."""

from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.open import known_sets, open_set
from grafalign.datasets.own import VOID

__all__ = ['VOID', 'ImageSet', 'known_sets', 'open_set']
