"""Run a recipe: photos -> plan -> scenes -> shards -> store, resuming whatever an earlier run left.

Stages that are expensive to repeat leave their result in `STORE/_work`; a shard counts as done once its .tar stands
under its final name (its facts are written just before). Anything else is garbage that the next run overwrites. The
finished store is the same, byte for byte, however often the run was killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from grafalign import console, engine
from grafalign.errors import GrafalignError, naming_full_disk
from grafalign.locks import LOCK
from grafalign.pairing.cut import cut_tile
from grafalign.pairing.plan import Plan, make_plan
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.tables import make_tables
from grafalign.photos import Photos, read_photos
from grafalign.scenes import Scene, SceneReader, load_scenes, rank_scenes
from grafalign.scenes.items import scene_of
from grafalign.store import (
    MARKER,
    SCHEMA_VERSION,
    PairStore,
    Sensor,
    ShardWriter,
    file_digest,
    shard_name,
    write_atomically,
    write_table,
)

_WORK = '_work'
_CANDIDATES = 4
"""Scenes tried per tile."""
_API_MARGIN = timedelta(days=366)


@dataclass(frozen=True)
class PairSummary:
    """Counts of a finished store."""

    photos: int
    """Photos in the source, usable or not."""
    rejected: int
    """Photos that are in no pair."""
    tiles: int
    pairs: int
    splits: dict[str, int]
    """Tiles of each split."""
    reasons: dict[str, int]
    """Why photos, tiles and scene reads were rejected."""


def pair(recipe: Recipe, out: Path, workers: int | None = None) -> PairSummary:
    """Make a pair store, or finish one that an earlier run began.

    Args:
        recipe: what to make.
        out: the store's folder; created.
        workers: threads; the number of cores by default.

    Returns:
        The store's counts; of the existing store if it is already complete.

    Raises:
        GrafalignError: the input is unusable, `out` holds the store of another recipe, or the disk is full.
    """
    with naming_full_disk(out):
        return _pair(recipe, out, workers)


def _pair(recipe: Recipe, out: Path, workers: int | None) -> PairSummary:
    work = out / _WORK
    if (out / MARKER).exists():
        store = PairStore(out)
        if store.facts['recipe_digest'] != recipe.digest:
            raise GrafalignError(f'{out} holds the store of another recipe; give another folder or delete it.')
        shutil.rmtree(work, ignore_errors=True)
        console.log(f'{out} is already complete.')
        return PairSummary(**store.facts['summary'])
    if out.exists() and any(p.name != LOCK for p in out.iterdir()) and not work.is_dir():
        raise GrafalignError(f'{out} is not empty and holds no pair store; give a new or an empty folder.')
    work.mkdir(parents=True, exist_ok=True)
    begun = work / 'recipe.txt'
    if begun.exists() and begun.read_text() != recipe.digest:
        if (out / 'tiles').exists():
            raise GrafalignError(f'{out} was begun with another recipe; give another folder or delete it.')
        shutil.rmtree(work)  # nothing was cut yet: the recipe was mended after an error, so begin again
        work.mkdir()
    write_atomically(begun, recipe.digest.encode())

    photos = _photos(recipe, work, workers)
    plan = make_plan(
        photos.table, recipe.grid, recipe.plan.max_photos, recipe.plan.seed, recipe.split.block_km, recipe.split.shares
    )
    if not len(plan.tiles):
        raise GrafalignError(
            f'All {len(photos.table)} photos lie in tiles that touch two splits; make split.block_km '
            f'({recipe.split.block_km} km) larger against the tile ({recipe.grid.side_m / 1000:g} km).'
        )
    scenes = _scenes(recipe, photos, work)
    ranked = rank_scenes(scenes, plan.tiles.geometry.to_numpy(), _photo_days(photos.table, plan), _CANDIDATES)
    shards = _shards(plan, ranked, recipe.shard_tiles)
    _cut_all(recipe, out, plan, scenes, ranked, shards, workers)
    return _finish(recipe, out, photos, plan, scenes, shards)


def _photos(recipe: Recipe, work: Path, workers: int | None) -> Photos:
    """The photo table, read once."""
    table, rejected = work / 'photos.parquet', work / 'photos_rejected.parquet'
    if not (table.exists() and rejected.exists()):
        photos = read_photos(recipe.photos, workers)
        write_table(photos.rejected, rejected)
        write_table(photos.table, table)
    return Photos(gpd.read_parquet(table), pd.read_parquet(rejected))


def _scenes(recipe: Recipe, photos: Photos, work: Path) -> list[Scene]:
    """The scenes over the photos, searched once."""
    path = work / 'scenes.ndjson'
    if not path.exists():
        points = photos.table.geometry
        taken = photos.table['taken_at'].dropna()
        dates: tuple[datetime, datetime] | None = None
        if len(taken):
            dates = (taken.min().to_pydatetime() - _API_MARGIN, taken.max().to_pydatetime() + _API_MARGIN)
        try:
            found = load_scenes(recipe.scenes, tuple(points.total_bounds), dates)
        except GrafalignError:
            _reject_swapped(recipe, points)
            raise
        covered = shapely.union_all([s.footprint for s in found])
        if shapely.contains_xy(covered, points.x, points.y).mean() < 0.05:
            _reject_swapped(recipe, points)
        write_atomically(path, '\n'.join(json.dumps(s.item) for s in found).encode())
    items = (json.loads(line) for line in path.read_text(encoding='utf-8').splitlines())
    return [scene for item in items if (scene := scene_of(item)) is not None]


def _reject_swapped(recipe: Recipe, points: gpd.GeoSeries) -> None:
    """Raise if the photos would lie in scenes with latitude and longitude exchanged."""
    west, south, east, north = points.total_bounds
    if recipe.scenes.api is not None or max(abs(west), abs(east)) > 90:
        return
    try:
        found = load_scenes(recipe.scenes, (south, west, north, east))
    except GrafalignError:
        return
    covered = shapely.union_all([s.footprint for s in found])
    exchanged = shapely.contains_xy(covered, points.y, points.x)
    if exchanged.mean() > 0.5:
        name = recipe.photos.table or recipe.photos.folder
        raise GrafalignError(
            f'{name}: latitude and longitude look swapped (almost no photo lies in a scene as given, '
            f'{exchanged.sum()} of {len(points)} would with the two exchanged); exchange the `lon` and `lat` columns '
            'in the recipe.'
        )


def _photo_days(table: gpd.GeoDataFrame, plan: Plan) -> list[np.ndarray]:
    """For every tile the times of its photos in days since 1970, NaN where unknown."""
    stamp = table['taken_at'].astype('datetime64[us, UTC]')
    days = stamp.astype('int64').to_numpy() / 86_400e6
    days = np.where(stamp.isna(), np.nan, days)
    pairs = plan.pairs.sort_values('tile', kind='stable')
    edges = np.searchsorted(pairs['tile'], np.arange(1, len(plan.tiles)))
    return np.split(days[pairs['photo'].to_numpy()], edges)


def _shards(plan: Plan, ranked: list[list[int]], shard_tiles: int) -> list[np.ndarray]:
    """Tiles in shards, those of one scene together and in reading order."""
    best = np.array([r[0] if r else -1 for r in ranked])
    tiles = plan.tiles
    order = np.lexsort((tiles['left'], -tiles['top'] // 2560, tiles['epsg'], best))
    return [order[i : i + shard_tiles] for i in range(0, len(order), shard_tiles)]


def _cut_all(
    recipe: Recipe,
    out: Path,
    plan: Plan,
    scenes: list[Scene],
    ranked: list[list[int]],
    shards: list[np.ndarray],
    workers: int | None,
) -> None:
    """Cut every shard that is not there yet."""
    facts = plan.tiles.drop(columns='geometry').to_dict('records')
    pairs_of = dict(tuple(plan.pairs.groupby('tile')))

    def cut(index: int) -> int:
        rows: list[dict[str, Any]] = []
        rejects: list[tuple[str, str, str, str]] = []
        with ShardWriter(out / shard_name(index)) as writer, SceneReader() as reader:
            for number in shards[index].tolist():
                tile = facts[number]
                report = cut_tile(
                    reader,
                    recipe.grid,
                    tile['tile_id'],
                    tile['epsg'],
                    (tile['left'], tile['top']),
                    [scenes[i] for i in ranked[number]],
                    recipe.sensor.bands,
                    recipe.max_nodata,
                )
                rejects += report.rejects
                if report.tile is None:
                    continue
                here = pairs_of[number]
                row = {**tile, **report.tile.facts, 'dtype': str(report.tile.pixels.dtype)}
                inside = {**row, 'photos': len(here), 'bands': recipe.sensor.bands, 'gsd_m': recipe.sensor.gsd_m}
                offset, nbytes = writer.add(tile['tile_id'], report.tile.pixels, inside)
                rows.append(
                    {**row, 'number': number, 'shard': shard_name(index), 'byte_offset': offset, 'nbytes': nbytes}
                )
            sidecar = json.dumps({'tiles': rows, 'rejects': rejects}).encode()
            write_atomically(_sidecar(out, index), sidecar)
        return len(shards[index])

    todo = [i for i in range(len(shards)) if not ((out / shard_name(i)).exists() and _sidecar(out, i).exists())]
    if len(todo) < len(shards):
        console.log(f'resuming: {len(shards) - len(todo)} of {len(shards)} shards are done')
    total = sum(len(shards[i]) for i in todo)
    for _ in console.track(engine.run(cut, todo, workers), 'cutting tiles', total, step=recipe.shard_tiles):
        pass


def _sidecar(out: Path, index: int) -> Path:
    return out / _WORK / f'{index:05d}.json'


def _finish(
    recipe: Recipe, out: Path, photos: Photos, plan: Plan, scenes: list[Scene], shards: list[np.ndarray]
) -> PairSummary:
    """Write the tables from the shards' facts, then the marker."""
    cut, rejects = [], []
    for index in range(len(shards)):
        part = json.loads(_sidecar(out, index).read_text())
        cut += part['tiles']
        rejects += [tuple(r) for r in part['rejects']]
    tables = make_tables(recipe, photos, plan, cut, rejects)
    for name in ('photos', 'tiles', 'pairs', 'rejected'):
        write_table(getattr(tables, name), out / f'{name}.parquet')
    wanted = set(zip(tables.tiles['collection'], tables.tiles['item_id'], strict=True))
    _write_items([s.item for s in scenes if (s.collection, s.item_id) in wanted], out / 'scenes.parquet')
    summary = PairSummary(
        photos=len(photos.table) + len(photos.rejected),
        rejected=int((tables.rejected['kind'] == 'photo').sum()),
        tiles=len(tables.tiles),
        pairs=len(tables.pairs),
        splits={str(k): int(v) for k, v in tables.tiles['split'].value_counts().sort_index().items()},
        reasons={str(k): int(v) for k, v in tables.rejected['reason'].value_counts().items()},
    )
    files = [f'{n}.parquet' for n in ('photos', 'tiles', 'pairs', 'rejected', 'scenes')]
    files += [shard_name(i) for i in range(len(shards))]
    digests = {name: file_digest(out / name) for name in files}
    known = recipe.sensor
    sensor = Sensor(known.name, tuple(known.bands), known.gsd_m, known.size_px, known.value_range)
    facts = {
        'schema_version': SCHEMA_VERSION,
        'sensor': asdict(sensor),
        'dtype': tables.dtype,
        'recipe': recipe.model_dump(mode='json'),
        'recipe_digest': recipe.digest,
        'summary': asdict(summary),
        'files': digests,
        'digest': hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest(),
    }
    write_atomically(out / MARKER, (json.dumps(facts, indent=2) + '\n').encode())
    shutil.rmtree(out / _WORK)
    return summary


def _write_items(items: list[dict[str, Any]], path: Path) -> None:
    """Write STAC items as stac-geoparquet."""
    import pyarrow.parquet
    from stac_geoparquet.arrow import parse_stac_items_to_arrow

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(parse_stac_items_to_arrow(items).read_all(), buffer)
    write_atomically(path, buffer.getvalue())
