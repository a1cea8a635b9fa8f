"""Frozen CLIP, ground bank and satellite encoder."""

from grafalign.encoders.bank import GroundBank, embed, load_bank
from grafalign.encoders.clip import ClipSettings, FrozenClip, load_clip
from grafalign.encoders.content import ContentFilters, filter_bank
from grafalign.encoders.satellite import Embeddings, PixelRule, SatelliteEncoder

__all__ = [
    'ClipSettings',
    'ContentFilters',
    'Embeddings',
    'FrozenClip',
    'GroundBank',
    'PixelRule',
    'SatelliteEncoder',
    'embed',
    'filter_bank',
    'load_bank',
    'load_clip',
]
