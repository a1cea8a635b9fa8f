"""What can be indexed: the tiles of a pair store or of a field, or a folder of pictures."""

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
    picture_metadata,
    read_picture,
)
from grafalign.errors import GrafalignError, InputError
from grafalign.fields import MARKER as FIELD_MARKER
from grafalign.photos.exif import read_metadata
from grafalign.search.field_source import FieldTiles
from grafalign.search.marker import IndexSource
from grafalign.store import MARKER, PairStore


@dataclass(frozen=True)
class Source:
    """Items of one kind, and how their pixels are read."""

    name: str
    items: gpd.GeoDataFrame
    """item_id, geometry (EPSG:4326; missing where unknown), datetime (UTC), source, stamp."""
    read: Callable[[int], np.ndarray]
    """Physical values [C, H, W] of the item in a row."""
    bands: tuple[str, ...]
    value_range: tuple[float, float]
    dtype: str = 'uint8'
    """Of the pixels as they are stored: 8-bit pictures from elsewhere are black at 0 and white at 255."""
    rejected: tuple[tuple[str, str], ...] = ()
    """Items that cannot be read, by their heads: id and reason."""
    tiles: FieldTiles | None = None
    """Tiles of a field, which are embedded already: nothing is read."""

    @property
    def metadata(self) -> IndexSource:
        """What an index remembers of it."""
        return IndexSource(bands=self.bands, value_range=self.value_range, dtype=self.dtype)


def open_source(
    path: str, bands: tuple[str, ...] | None = None, value_range: tuple[float, float] | None = None
) -> Source:
    """A pair store, a field, or a folder of pictures.

    Args:
        path: folder (or URL of a store).
        bands: names of the bands of pictures; by their number otherwise.
        value_range: physical values that become black and white; a store's own, or those of 8 bits.

    Raises:
        GrafalignError: it is neither, it is empty, or nobody has said what its numbers mean.
    """
    if value_range is not None and not value_range[0] < value_range[1]:
        raise InputError(f'The value range {value_range[0]:g} {value_range[1]:g} is none; give the smaller first.')
    folder = Path(path)
    if '://' in path or (folder / MARKER).exists():
        return _store(PairStore(path), value_range)
    if (folder / FIELD_MARKER).exists():
        return _field(folder)
    if not folder.is_dir():
        raise InputError(f'There is no folder {path}; give a pair store, a field, a scene or a folder of pictures.')
    return _folder(folder, bands, value_range)


def _store(store: PairStore, value_range: tuple[float, float] | None) -> Source:
    tiles = store.tiles
    name = str(store.path if '://' in str(store.path) else Path(str(store.path)).resolve())
    items = gpd.GeoDataFrame(
        {
            'item_id': tiles['tile_id'].astype(str).to_numpy(),
            'datetime': pd.to_datetime(tiles['datetime'], utc=True).to_numpy(),
            'source': name,
            'stamp': [tile_state(store, row) for row in range(len(tiles))],
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

    dtype = 'uint8' if plain and len(tiles) and store.read_tile(0).dtype == np.uint8 else 'other'
    return Source(name, items, read, store.sensor.bands, value_range or store.sensor.value_range, dtype)


def _field(folder: Path) -> Source:
    tiles, name = FieldTiles(folder), str(folder.resolve())
    plan = tiles.field.plan

    def read(row: int) -> np.ndarray:
        raise InputError(f'{name} holds embeddings and no pixels of {tiles.names[row]}; index the scene itself.')

    return Source(name, tiles.items(name), read, plan.bands, plan.value_range, 'other', tiles=tiles)


def tile_state(store: PairStore, row: int) -> str:
    """State of a tile: its pixels, and what these mean where they are no 8-bit picture."""
    digest = store.tile_digest(row)
    scale, offset = (values[row] for values in store.radiometry)
    if 'digest' not in store.tiles or ((scale == 1).all() and (offset == 0).all()):
        return digest
    return f'{digest} {scale.tolist()} {offset.tolist()}'


def _folder(folder: Path, bands: tuple[str, ...] | None, value_range: tuple[float, float] | None) -> Source:
    files = sorted(p for p in folder.rglob('*') if p.is_file() and is_picture(str(p.relative_to(folder))))
    if not files:
        raise InputError(f'{folder} holds no pictures (jpg, png, tif ...); give a folder that does.')
    console.log(f'{len(files):,} pictures in {folder}')
    rows: list[dict[str, Any]] = [{}] * len(files)
    for index, metadata in engine.run(_metadata_of, files):
        rows[index] = metadata
    pairs = list(zip(files, rows, strict=True))
    rejected = [
        (_printable(path.relative_to(folder)), metadata['reason']) for path, metadata in pairs if 'reason' in metadata
    ]
    files, rows = [p for p, f in pairs if 'reason' not in f], [f for _, f in pairs if 'reason' not in f]
    if not files:
        name, reason = rejected[0]
        raise InputError(f'{folder}: none of its {len(rejected)} pictures can be read ({name}: {reason}).')
    first, many, dtype = _kind(files)
    bands = bands or BANDS_BY_COUNT.get(many)
    if bands is None:
        raise InputError(f'{first} has {many} bands; name them, such as --bands red,green,blue,nir.')
    given, count = value_range is not None, len(bands)
    value_range = value_range or default_range(dtype, str(first))

    def read(row: int) -> np.ndarray:
        pixels = read_picture(files[row], str(files[row]))
        if len(pixels) == 1 and count > 1:
            pixels = np.repeat(pixels, count, axis=0)  # a grey picture among coloured ones
        if len(pixels) != count:
            raise InputError(
                f'{files[row]} has {len(pixels)} bands and the others {count}; put pictures of one kind into a folder.'
            )
        if pixels.dtype != np.uint8 and not given:
            default_range(str(pixels.dtype), str(files[row]))
        return pixels

    table = pd.DataFrame(rows)
    items = gpd.GeoDataFrame(
        {
            'item_id': [str(p.relative_to(folder)) for p in files],
            'datetime': pd.to_datetime(table['datetime'], utc=True),
            'source': str(folder.resolve()),
            'stamp': table['stamp'],
        },
        geometry=table['geometry'].to_list(),
        crs='EPSG:4326',
    )
    return Source(str(folder.resolve()), items, read, bands, value_range, dtype, tuple(rejected))


def _printable(name: Any) -> str:
    """A name of any bytes as text that can be written."""
    return str(name).encode('utf-8', 'backslashreplace').decode()


_LOOKED_AT = 100
"""Pictures whose heads decide how many bands those of a folder have."""


def _kind(files: list[Path]) -> tuple[Path, int, str]:
    """The number of bands and the data type that most pictures of a folder have, and the first that has them."""
    step = max(1, len(files) // _LOOKED_AT)
    kinds: dict[tuple[int, str], list[Path]] = {}
    problem: GrafalignError | None = None
    for path in files[::step]:
        try:
            metadata = picture_metadata(path, str(path))
            kinds.setdefault((metadata.bands, metadata.dtype), []).append(path)
        except GrafalignError as error:
            problem = problem or error
    if not kinds:
        raise problem or InputError(f'{files[0]} cannot be read.')
    (count, dtype), those = max(kinds.items(), key=lambda k: (len(k[1]), -k[0][0]))
    return those[0], count, dtype


def box_of(west: float, south: float, east: float, north: float) -> Any:
    """A box in degrees; two of them where it lies over the date line, and so ends west of where it begins."""
    if west <= east:
        return shapely.box(west, south, east, north)
    parts = shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east, north)
    return shapely.MultiPolygon(parts)


def state_of(path: Path) -> str:
    """Size and time of a file: whether it is the one that was indexed."""
    known = path.stat()
    return f'{known.st_size}-{known.st_mtime_ns}'


def _metadata_of(path: Path) -> dict[str, Any]:
    """Place, time and state of a file, or the `reason` why it cannot be used; a picture may carry EXIF."""
    try:
        str(path).encode()
        stamp = state_of(path)
        place: Any = None
        when: datetime | None = None
        if path.suffix.lower() in RASTERS:
            bounds = picture_metadata(path, str(path)).bounds
            place = None if bounds is None else box_of(*bounds)
        else:
            metadata = read_metadata(path, verify=False)
            if metadata.problem is not None:
                return {'reason': metadata.problem}
            if metadata.lon is not None and metadata.lat is not None:
                place = shapely.Point(metadata.lon, metadata.lat)
            when = metadata.taken_at
    except UnicodeEncodeError:
        return {'reason': 'its name is no UTF-8; rename the file'}
    except (GrafalignError, OSError) as error:
        return {'reason': str(error)}
    return {'geometry': place, 'datetime': when, 'stamp': stamp}
