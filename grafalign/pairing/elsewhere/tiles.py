"""The tiles of a store of pairs made elsewhere: one kind, one size, written shard by shard."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from grafalign import console, engine
from grafalign.datasets.pictures import BANDS_BY_COUNT, check_depth, default_range
from grafalign.errors import GrafalignError, InputError
from grafalign.pairing.elsewhere.pictures import Georeference, Square, Tile, read_tile
from grafalign.pairing.elsewhere.settings import PairImport
from grafalign.pairing.pixel_shares import shares_of
from grafalign.store import ShardWriter, shard_name
from grafalign.store_marker import Sensor

_SHARD_TILES = 256
_GSD_RATIO = 1.25
"""Between the largest and the smallest pixels that pass for one: Web Mercator's grow with latitude."""


class Tiles:
    """Tiles as they are written.

    Args:
        settings: size, bands and range, where the user says them.
        gsd_m: metres a pixel of the pictures, where their layout knows it.
        out: the store.
    """

    def __init__(self, settings: PairImport, gsd_m: float | None, out: Path) -> None:
        self._settings, self._out, self._known_gsd = settings, out, gsd_m
        self.files: dict[str, str] = {}
        """Shards with their digests."""
        self.rejected: list[tuple[str, str, str, str]] = []
        self.squares: dict[str, Square] = {}
        """What each tile shows of its picture."""
        self.grounds: dict[str, Georeference] = {}
        """Where georeferenced tiles lie."""
        self._first: str | None = None

    def write(self, files: pd.DataFrame, workers: int | None) -> gpd.GeoDataFrame:
        """Cut all pictures into shards.

        Args:
            files: `tile_id`, `tile` (a path) and `split`, one row a tile, sorted by id.
            workers: threads that decode.

        Returns:
            `tiles.parquet`; outlines of tiles that do not know their place are missing.

        Raises:
            GrafalignError: none can be read, they are of several kinds, or nobody says how large a pixel is.
        """
        listed = list(files.itertuples(index=False))
        made: list[dict[str, Any]] = []
        with console.progress('cutting tiles', len(listed)) as bar:
            for at in range(0, len(listed), _SHARD_TILES):
                part = listed[at : at + _SHARD_TILES]
                read = dict(engine.run(self._read, [str(row.tile) for row in part], workers))
                fit = [(row, self._fitting(row, read[i])) for i, row in enumerate(part)]
                made += self._shard([(row, tile) for row, tile in fit if tile is not None])
                bar.advance(len(part))
        if not made:
            _, first, reason, detail = self.rejected[0]
            raise InputError(f'None of the {len(listed):,} tiles can be used ({first} {reason}: {detail}).')
        return gpd.GeoDataFrame(pd.DataFrame(made), geometry='geometry', crs='EPSG:4326')

    def _read(self, path: str) -> Tile | str:
        """A tile, or why there is none."""
        try:
            return read_tile(Path(path), self._settings.size_px)
        except GrafalignError as error:
            return str(error)

    def _fitting(self, row: Any, tile: Tile | str) -> Tile | None:
        """A tile of the kind of the first one; None if it is left out. One of another kind is an error."""
        if isinstance(tile, str):
            self.rejected.append(('tile', str(row.tile_id), 'cannot be read', tile))
            return None
        if np.issubdtype(tile.pixels.dtype, np.inexact) and not np.isfinite(tile.pixels).all():
            self.rejected.append(('tile', str(row.tile_id), 'holds NaN or infinite numbers', str(row.tile)))
            return None
        if self._first is None:
            self._begin(str(row.tile), tile)
        shape = self.sensor.size_px, self.sensor.size_px
        if len(tile.pixels) != len(self.sensor.bands):
            self._clash(row.tile, f'{len(tile.pixels)} bands', f'{len(self.sensor.bands)}', 'import them by themselves')
        if str(tile.pixels.dtype) != self.dtype:
            self._clash(row.tile, f'{tile.pixels.dtype} numbers', self.dtype, 'import them by themselves')
        if tile.pixels.shape[1:] != shape:
            size = ' x '.join(map(str, tile.shape))
            remedy = 'give --size-px to bring all tiles to one size'
            self._clash(row.tile, f'{size} px', ' x '.join(map(str, shape)), remedy)
        gsd_m = self._gsd_of(str(row.tile), tile)
        if not 1 / _GSD_RATIO <= gsd_m / self.sensor.gsd_m <= _GSD_RATIO:
            remedy = 'import them by themselves, or bring their pictures to one size and scale first'
            self._clash(row.tile, f'pixels of {gsd_m:g} m as a tile', f'{self.sensor.gsd_m:g} m', remedy)
        return tile

    def _gsd_of(self, path: str, tile: Tile) -> float:
        """Metres a pixel of a picture at the size of a tile."""
        given = self._settings.gsd_m or self._known_gsd
        own = tile.ground.gsd_m if tile.ground else None
        gsd_m = own or given
        if gsd_m is None:
            raise InputError(f'{path} does not say how many metres a pixel is; give --gsd.')
        if own and self._settings.gsd_m and not 1 / _GSD_RATIO <= own / self._settings.gsd_m <= _GSD_RATIO:
            raise InputError(
                f'{path} says that a pixel is {own:.3g} m, and --gsd {self._settings.gsd_m:g}; leave --gsd out, or '
                'mend the georeference.'
            )
        return gsd_m * tile.square.side / tile.pixels.shape[1]

    def _clash(self, path: str, has: str, first: str, remedy: str) -> None:
        raise InputError(f'{path} has {has} and {self._first} has {first}; {remedy}.')

    def _begin(self, path: str, tile: Tile) -> None:
        """Take the first tile for the kind that all are of."""
        settings = self._settings
        height, width = tile.pixels.shape[1:]
        if height != width:
            raise InputError(f'{path} is {height} x {width} px; give --size-px, and tiles are the middle squares.')
        self.dtype = str(tile.pixels.dtype)
        value_range = settings.value_range or default_range(self.dtype, path)
        check_depth(tile.pixels, value_range, path)
        bands = settings.bands or BANDS_BY_COUNT.get(len(tile.pixels), ())
        if len(bands) != len(tile.pixels):
            raise InputError(f'{path} has {len(tile.pixels)} bands; name them all with --bands.')
        gsd_m = self._gsd_of(path, tile)
        self._first = path
        self.sensor = Sensor(settings.layout, tuple(bands), round(gsd_m, 6), height, value_range)

    def _shard(self, tiles: list[tuple[Any, Tile]]) -> list[dict[str, Any]]:
        """Write one shard; its rows of `tiles.parquet`."""
        if not tiles:
            return []
        made = []
        name = shard_name(len(self.files))
        with ShardWriter(self._out / name) as shard:
            for row, tile in tiles:
                pixels = tile.pixels
                outside, zeros = shares_of(
                    pixels, np.zeros(pixels.shape[1:], bool), tile.scale, tile.offset, self.sensor.value_range
                )
                metadata = {'tile_id': str(row.tile_id), 'item_id': str(row.tile_id), 'split': str(row.split)}
                place, nbytes = shard.add(str(row.tile_id), pixels, metadata)
                self.squares[str(row.tile_id)] = tile.square
                if tile.ground is not None:
                    self.grounds[str(row.tile_id)] = tile.ground
                made.append(
                    {
                        **metadata,
                        'collection': self._settings.layout,
                        'uri': str(row.tile),
                        'outside_fraction': outside,
                        'zero_fraction': zeros,
                        'not_finite_fraction': 0.0,
                        'scale': list(tile.scale),
                        'offset': list(tile.offset),
                        'digest': hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).hexdigest(),
                        'shard': name,
                        'byte_offset': place,
                        'nbytes': nbytes,
                        'datetime': pd.NaT,
                        'geometry': None if tile.ground is None else tile.ground.outline(tile.square),
                    }
                )
            self.files[name] = shard.seal()
        return made
