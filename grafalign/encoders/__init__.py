"""Frozen CLIP, ground bank and satellite encoder."""

from grafalign.encoders.bank import GroundBank, embed, load_bank
from grafalign.encoders.clip import ClipSettings, FrozenClip, load_clip
from grafalign.encoders.satellite import Embeddings, PixelRule, SatelliteEncoder

__all__ = [
    'ClipSettings',
    'Embeddings',
    'FrozenClip',
    'GroundBank',
    'PixelRule',
    'SatelliteEncoder',
    'embed',
    'load_bank',
    'load_clip',
]
