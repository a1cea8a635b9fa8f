"""Captioned tiles of random places: cut once for every world, kept beside it as a pair store without photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.files import write_table
from grafalign.labels import VOID
from grafalign.store import MARKER, SCHEMA_VERSION, PairStore, ShardWriter, shard_name
from grafalign.store_marker import Sensor, StoreMarker

MOST = 10_000
_CHUNK = 1000
Shares = npt.NDArray[np.float32]


def tiles_to_caption(world: Path, seed: int) -> tuple[PairStore, Shares]:
    """Tiles anywhere in the training blocks of a world, in an order that is random: fewer are the first of more.

    The blocks have room for fewer than 2,000 tiles side by side, so these overlap.

    Args:
        world: folder with `sandbox/` and `pairs/`.
        seed: seed of the places.

    Returns:
        A store of `MOST` tiles, and the share of each class in every tile, [N, K].
    """
    out = world / 'random_places'
    if not (out / MARKER).is_file():
        pairs = PairStore(world / 'pairs')
        tiles, shares = _cut_at_random(SandboxTruth(world / 'sandbox', pairs), seed)
        write_tiles(out, pairs.sensor, tiles, 'place')
        np.save(out / 'shares.npy', shares)
    return PairStore(out), np.load(out / 'shares.npy')


def class_shares(labels: npt.NDArray[np.integer], classes: int) -> Shares:
    """Share of each class in label maps [N, S, S], pixels without a class aside: [N, K]."""
    counts = np.stack([np.bincount(m.ravel(), minlength=VOID + 1)[:classes] for m in labels]).astype(np.float32)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), dtype=np.float32)


def _cut_at_random(truth: SandboxTruth, seed: int) -> tuple[list[LabelledTiles], Shares]:
    """Like `SandboxTruth.chips`, as large as tiles and free to overlap; in parts, as label maps are large."""
    rng = np.random.default_rng((seed, 13))
    grid = truth.recipe.grid
    height, width = truth.raster.shape
    x, y = truth.transform @ (rng.uniform(0, width, 4 * MOST), rng.uniform(0, height, 4 * MOST))
    inside = np.flatnonzero(truth._split(x, y, grid) == 'train')
    parts: list[LabelledTiles] = []
    shares: list[Shares] = []
    start = count = 0
    while count < MOST and start < len(inside):
        rows = inside[start : start + _CHUNK]
        tiles = truth._cut(x[rows], y[rows], grid, None, rng)
        tiles = LabelledTiles(*(values[: MOST - count] for values in vars(tiles).values()))
        shares.append(class_shares(tiles.labels, len(truth.classes)))
        parts.append(replace(tiles, labels=tiles.labels[:0]))
        start, count = start + _CHUNK, count + len(tiles.pixels)
    return parts, np.concatenate(shares)


def write_tiles(out: Path, sensor: Sensor, parts: list[LabelledTiles], name: str) -> None:
    """Tiles as a store without photos, one shard a part; `name` is that of a tile."""
    rows = []
    for number, tiles in enumerate(parts):
        with ShardWriter(out / shard_name(number)) as shard:
            for pixels, scale, offset, lonlat in zip(
                tiles.pixels, tiles.scale, tiles.offset, tiles.lonlat, strict=True
            ):
                tile = f'{name}_{len(rows):05d}'
                where = shard.add(tile, pixels, {'tile_id': tile})
                rows.append((tile, 'train', shard_name(number), *where, scale, offset, *lonlat))
    names = ['tile_id', 'split', 'shard', 'byte_offset', 'nbytes', 'scale', 'offset', 'lon', 'lat']
    table = pd.DataFrame(rows, columns=names)
    points = shapely.points(table['lon'], table['lat'])
    write_table(gpd.GeoDataFrame(table, geometry=points, crs='EPSG:4326'), out / 'tiles.parquet')
    StoreMarker(schema_version=SCHEMA_VERSION, sensor=sensor, digest=f'{len(rows)} of {name}').write(out / MARKER)
