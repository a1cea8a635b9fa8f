"""Frozen CLIP, the bank of photo embeddings, and the satellite encoder."""

from grafalign.encoders.bands import select_bands
from grafalign.encoders.bank import PhotoBank, load_bank
from grafalign.encoders.clip import ClipSettings, FrozenClip, best_device, load_clip
from grafalign.encoders.content import ContentFilters, filter_bank
from grafalign.encoders.embedding import embed
from grafalign.encoders.import_bank import import_bank
from grafalign.encoders.preprocessing import TilePreprocessing
from grafalign.encoders.satellite import Embeddings, SatelliteEncoder
from grafalign.encoders.text_bank import TextBank, embed_texts, load_text_bank
from grafalign.encoders.tuning import LoraSettings, TuneSettings, merge, trainable, tune

__all__ = [
    'ClipSettings',
    'ContentFilters',
    'Embeddings',
    'FrozenClip',
    'LoraSettings',
    'PhotoBank',
    'SatelliteEncoder',
    'TextBank',
    'TilePreprocessing',
    'TuneSettings',
    'best_device',
    'embed',
    'embed_texts',
    'filter_bank',
    'import_bank',
    'load_bank',
    'load_clip',
    'load_text_bank',
    'merge',
    'select_bands',
    'trainable',
    'tune',
]
