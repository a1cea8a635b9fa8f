"""Which rows of a store and its bank a training follows from.

A store may grow, be paired again with other scenes, or lose tiles of the test split: a run is another one only if the
tiles, pairs and photos that it trains on or is validated with are others.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from grafalign.captions.caption_set import CaptionSet
from grafalign.encoders import PhotoBank
from grafalign.store import PairStore
from grafalign.store_marker import Sensor

SPLITS = ('train', 'val')


def training_rows_digest(store: PairStore, bank: PhotoBank) -> str:
    """Digest of the tiles of `SPLITS`, their pairs, and those photos' places and rows in the bank.

    Args:
        store: the store.
        bank: its bank.
    """
    used = np.isin(store.tiles['split'], SPLITS)
    pairs = store.pairs[used[store.pairs['tile']] & bank.valid[store.pairs['photo']]]
    tiles = store.tiles[used]
    scale, offset = store.radiometry
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((store.sensor.bands, store.sensor.size_px, store.sensor.value_range)).encode())
    of_tiles = pd.DataFrame({'tile_id': tiles['tile_id'], 'split': tiles['split']}).astype(str)
    of_tiles['pixels'] = [store.tile_digest(row) for row in np.flatnonzero(used).tolist()]
    state.update(_hashed(of_tiles))
    state.update(np.ascontiguousarray(scale[used]).tobytes() + np.ascontiguousarray(offset[used]).tobytes())
    state.update(_hashed(pairs[['tile_id', 'photo_id']].astype(str).assign(row=pairs['row'], col=pairs['col'])))
    rows = np.unique(pairs['photo'])
    photos = store.photos.iloc[rows]
    lonlat = photos.geometry.get_coordinates()
    of_photos = pd.DataFrame({'photo_id': photos['photo_id'].astype(str), 'lon': lonlat['x'], 'lat': lonlat['y']})
    for name in ('accuracy_m', 'heading_deg'):
        of_photos[name] = photos[name].astype('float64') if name in photos else np.nan
    if 'field_of_view_deg' in photos and photos['field_of_view_deg'].notna().any():
        # where no camera tells its own, the digest is that of stores without the column
        of_photos['field_of_view_deg'] = photos['field_of_view_deg'].astype('float64')
    of_photos['content'] = bank.photos['digest'].astype('string').fillna('').to_numpy(dtype=object)[rows]
    state.update(_hashed(of_photos))
    return state.hexdigest()


def caption_rows_digest(captions: CaptionSet, sensor: Sensor, without: np.ndarray | None = None) -> str:
    """Digest of the images of `SPLITS` of a caption set, their texts, and what images are brought to.

    Args:
        captions: the set.
        sensor: bands and size.
        without: rows of images that are left out.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((sensor.bands, sensor.size_px, sensor.value_range)).encode())
    images = captions.images.select(['image_id', 'digest', 'file', 'split']).to_pandas()
    used = images['split'].isin(SPLITS).to_numpy(copy=True)
    if without is not None:
        used[without] = False
    images['digest'] = images['digest'].astype('string').fillna(images['file'].astype('string'))
    state.update(_hashed(images.loc[used, ['image_id', 'digest', 'split']].astype(str)))
    image = captions.image_of_caption
    texts = pq.read_table(captions.path / 'captions.parquet', columns=['text']).to_pandas()
    state.update(_hashed(texts.assign(image=np.cumsum(used)[image])[used[image]]))
    return state.hexdigest()


def _hashed(table: pd.DataFrame) -> bytes:
    return bytes(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
