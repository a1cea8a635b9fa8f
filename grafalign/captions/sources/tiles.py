"""The tiles of a pair store as images without captions yet: what landmark captions are written for."""

from __future__ import annotations

from collections.abc import Iterator

from grafalign.captions.items import Item
from grafalign.store import PairStore


def read_tiles(store: PairStore) -> Iterator[Item]:
    """One image a tile, in the order of the store; its id is the tile's."""
    tiles = store.tiles
    centres = tiles.to_crs('EPSG:4326').geometry.representative_point()
    size = store.sensor.size_px
    for row, (tile_id, split, at) in enumerate(zip(tiles['tile_id'], tiles['split'], centres, strict=True)):
        metadata = {
            'digest': store.tile_digest(row),
            'split': str(split),
            **({} if at is None else {'lon': at.x, 'lat': at.y}),
            'gsd_m': store.sensor.gsd_m,
            'width': size,
            'height': size,
        }
        yield Item(str(tile_id), metadata=metadata)
