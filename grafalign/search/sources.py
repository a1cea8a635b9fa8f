"""What can be indexed: the tiles of a pair store, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from grafalign import console, engine
from grafalign.datasets.pictures import (
    BANDS_BY_COUNT,
    RASTERS,
    default_range,
    is_picture,
    picture_facts,
    read_picture,
)
from grafalign.errors import GrafalignError
from grafalign.photos.exif import read_facts
from grafalign.store import MARKER, PairStore


@dataclass(frozen=True)
class Source:
    """Items of one kind, and how their pixels are read."""

    name: str
    items: gpd.GeoDataFrame
    """item_id, geometry (EPSG:4326; missing where unknown), datetime (UTC), source, signature."""
    read: Callable[[int], np.ndarray]
    """Physical values [C, H, W] of the item in a row."""
    bands: tuple[str, ...]
    value_range: tuple[float, float]


def open_source(
    path: str, bands: tuple[str, ...] | None = None, value_range: tuple[float, float] | None = None
) -> Source:
    """A pair store or a folder of pictures.

    Args:
        path: folder (or URL of a store).
        bands: names of the bands of pictures; by their number otherwise.
        value_range: physical values that become black and white; a store's own, or those of 8 bits.

    Raises:
        GrafalignError: it is neither, it is empty, or nobody has said what its numbers mean.
    """
    folder = Path(path)
    if '://' in path or (folder / MARKER).exists():
        return _store(PairStore(path), value_range)
    if not folder.is_dir():
        raise GrafalignError(f'There is no folder {path}; give a pair store or a folder of pictures.')
    return _folder(folder, bands, value_range)


def _store(store: PairStore, value_range: tuple[float, float] | None) -> Source:
    tiles = store.tiles
    name = str(store.path if '://' in str(store.path) else Path(str(store.path)).resolve())
    items = gpd.GeoDataFrame(
        {
            'item_id': tiles['tile_id'].astype(str).to_numpy(),
            'datetime': pd.to_datetime(tiles['datetime'], utc=True).to_numpy(),
            'source': name,
            'signature': store.digest,
        },
        geometry=tiles.geometry.to_numpy(),
        crs='EPSG:4326',
    )
    items['datetime'] = pd.to_datetime(items['datetime'], utc=True)
    scale, offset = store.radiometry

    plain = bool(np.all(scale == 1) and np.all(offset == 0))

    def read(row: int) -> np.ndarray:
        pixels = store.read_tile(row)
        if plain:
            return pixels  # 8-bit pictures stay 8-bit
        return np.asarray(pixels.astype(np.float32) * scale[row][:, None, None] + offset[row][:, None, None])

    return Source(name, items, read, store.sensor.bands, value_range or store.sensor.value_range)


def _folder(folder: Path, bands: tuple[str, ...] | None, value_range: tuple[float, float] | None) -> Source:
    files = sorted(p for p in folder.rglob('*') if p.is_file() and is_picture(str(p.relative_to(folder))))
    if not files:
        raise GrafalignError(f'{folder} holds no pictures (jpg, png, tif ...); give a folder that does.')
    first = picture_facts(files[0], str(files[0]))
    bands = bands or BANDS_BY_COUNT.get(first.bands)
    if bands is None:
        raise GrafalignError(f'{files[0]} has {first.bands} bands; name them, such as --bands red,green,blue,nir.')
    many = len(bands)
    value_range = value_range or default_range(first.dtype, str(files[0]))

    def read(row: int) -> np.ndarray:
        pixels = read_picture(files[row], str(files[row]))
        if len(pixels) == 1 and many > 1:
            pixels = np.repeat(pixels, many, axis=0)  # a grey picture among coloured ones
        if len(pixels) != many:
            raise GrafalignError(
                f'{files[row]} has {len(pixels)} bands and the others {many}; put pictures of one kind into a folder.'
            )
        if pixels.dtype != np.uint8 and value_range == (0.0, 255.0):
            default_range(str(pixels.dtype), str(files[row]))
        return pixels

    console.log(f'{len(files):,} pictures in {folder}')
    rows: list[dict[str, Any]] = [{}] * len(files)
    for index, facts in engine.run(_facts_of, files):
        rows[index] = facts
    table = pd.DataFrame(rows)
    items = gpd.GeoDataFrame(
        {
            'item_id': [str(p.relative_to(folder)) for p in files],
            'datetime': pd.to_datetime(table['datetime'], utc=True),
            'source': str(folder.resolve()),
            'signature': table['signature'],
        },
        geometry=table['geometry'].to_list(),
        crs='EPSG:4326',
    )
    return Source(str(folder.resolve()), items, read, bands, value_range)


def _facts_of(path: Path) -> dict[str, Any]:
    """Place, time and state of a file; a picture that is no raster may carry EXIF."""
    known = path.stat()
    signature = f'{known.st_size}-{known.st_mtime_ns}'
    place: Any = None
    when: datetime | None = None
    if path.suffix.lower() in RASTERS:
        bounds = picture_facts(path, str(path)).bounds
        place = None if bounds is None else shapely.box(*bounds)
    else:
        facts = read_facts(path, verify=False)
        if facts.lon is not None and facts.lat is not None:
            place = shapely.Point(facts.lon, facts.lat)
        when = facts.taken_at
    return {'geometry': place, 'datetime': when, 'signature': signature}
