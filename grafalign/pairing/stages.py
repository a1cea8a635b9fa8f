"""What comes before cutting: photos, plan, scenes and their choice; each stage is kept, so that no run repeats it.

A stage's last file is written last, so a stage is there whole or it is made anew.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign import console
from grafalign.errors import GrafalignError, InputError
from grafalign.files import Place, write_atomically, write_table
from grafalign.geo import SHORTEST_DEGREE_M
from grafalign.pairing.plan import Plan, ahead, make_plan
from grafalign.pairing.recipe import Recipe
from grafalign.photos import Photos, read_photos
from grafalign.scenes import Choice, SceneTable, choose_scenes, load_scenes, regions_of

CANDIDATES = 4
"""Scenes tried per tile."""
_API_MARGIN = timedelta(days=366)
_CELL_DEG = 0.1
_SQUARE_M = 200_000
"""About a scene."""
_COUNTS = 'scenes_counts.json'
SCENES = 'candidates.parquet'
"""In the folder of the stages: the candidate scenes, and beside it their items."""
_ITEMS = 'candidates.items'
_LOOKED_AT = 2_000
"""Photos that tell whether latitude and longitude are exchanged."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """All that is decided before pixels are read; T tiles, K candidate scenes a tile."""

    recipe: Recipe
    photos: Photos
    plan: Plan
    scenes: SceneTable
    """Scenes over the photos, by number."""
    rejected_scenes: pd.DataFrame
    """Items that could not be used: kind, id, reason, detail."""
    search_counts: dict[str, int]
    """What the search met: items, pages, requests, retries, items left out by each filter."""
    choice: Choice
    """The best scenes of every tile."""
    first_pair: npt.NDArray[np.int64]
    """Where each tile's rows begin in the plan's pairs, and one more: [T + 1]."""

    @property
    def best_scene(self) -> npt.NDArray[np.int64]:
        """Number of each tile's first candidate, -1 where no scene covers it, [T]."""
        return self.choice.scene[:, 0]


def prepare(recipe: Recipe, work: Place, workers: int | None = None, newer_than: datetime | None = None) -> Prepared:
    """Read the photos, plan the tiles, find the scenes, and choose among them.

    Args:
        recipe: the recipe.
        work: folder that keeps photos, plan and scenes; what it holds already is not made again.
        workers: threads that read photos.
        newer_than: searches of an API that were kept before this are made anew.

    Raises:
        GrafalignError: no photo can be used, every tile touches two splits, or no scene can be used.
    """
    photos = _photos(recipe, work, workers)
    plan = _plan(recipe, work, photos)
    scenes, rejected, counts = _scenes(recipe, work, photos, newer_than)
    first_pair = np.searchsorted(plan.pairs['tile'], np.arange(len(plan.tiles) + 1))
    corners = [plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top')]
    choice = choose_scenes(
        scenes,
        lambda tiles: recipe.grid.polygons(*(c[tiles] for c in corners)),
        photo_days(photos.table['taken_at'])[plan.pairs['photo'].to_numpy()],
        first_pair,
        CANDIDATES,
        mosaic=recipe.sensor.mosaic == 'day',
        order=_neighbours_together(*corners),
    )
    return Prepared(recipe, photos, plan, scenes, rejected, counts, choice, first_pair)


def _photos(recipe: Recipe, work: Place, workers: int | None) -> Photos:
    """The photo table and the rejected rows."""
    if not (work / 'photos.parquet').exists():
        photos = read_photos(recipe.photos, workers)
        write_table(photos.rejected, work / 'photos_rejected.parquet')
        write_table(photos.table, work / 'photos.parquet')
    return Photos(_read(work, 'photos'), _read(work, 'photos_rejected'))


def _plan(recipe: Recipe, work: Place, photos: Photos) -> Plan:
    """Tiles, and the photos in them.

    Raises:
        InputError: every tile touches two splits.
    """
    if not (work / 'plan_tiles.parquet').exists():
        table, settings, split = photos.table, recipe.plan, recipe.split
        lon, lat, heading = (table[name].to_numpy(dtype=float) for name in ('lon', 'lat', 'heading_deg'))
        plan = make_plan(
            table['photo_id'],
            lon,
            lat,
            recipe.grid,
            settings.max_photos,
            settings.seed,
            split.block_km,
            split.shares,
            recipe.buffer_m,
            settings.core,
            settings.reach,
            ahead(lon, lat, heading, settings.ahead_m) if settings.ahead_m else None,
        )
        if not len(plan.tiles):
            raise InputError(
                f'All {len(table)} photos lie in tiles that touch two splits, or within split.buffer_m '
                f'({recipe.buffer_m:g} m) of another split; make split.block_km ({split.block_km} km) larger '
                f'against the tile ({recipe.grid.side_m / 1000:g} km).'
            )
        write_table(plan.pairs, work / 'plan_pairs.parquet')
        write_table(plan.dropped, work / 'plan_dropped.parquet')
        write_table(plan.tiles, work / 'plan_tiles.parquet')
    return Plan(_read(work, 'plan_tiles'), _read(work, 'plan_pairs'), _read(work, 'plan_dropped'))


def _scenes(
    recipe: Recipe, work: Place, photos: Photos, newer_than: datetime | None
) -> tuple[SceneTable, pd.DataFrame, dict[str, int]]:
    """The scenes over the photos, items that cannot be used, and what the search met.

    Raises:
        GrafalignError: the source cannot be read, no scene lies over the photos, or their latitude and longitude look
            exchanged.
    """
    if not (work / SCENES).exists():
        _find_scenes(recipe, work, photos, newer_than)
    counts = json.loads((work / _COUNTS).read_text())
    return SceneTable.read(work / SCENES, work / _ITEMS), _read(work, 'scenes_rejected'), counts


def _find_scenes(recipe: Recipe, work: Place, photos: Photos, newer_than: datetime | None) -> None:
    """Search, and keep what was found."""
    source = recipe.scenes
    lon, lat = photos.table['lon'].to_numpy(), photos.table['lat'].to_numpy()
    margin = 1.5 * recipe.grid.side_m
    try:
        regions = regions_of(lon, lat, source.search_cell_deg, margin)
        found = load_scenes(source, regions, _period(photos), _neighbourhoods(lon, lat, margin), newer_than)
    except GrafalignError:
        _reject_swapped(recipe, lon, lat)
        raise
    if _share_inside(found.scenes, lon, lat) < 0.05:
        _reject_swapped(recipe, lon, lat)
    printable = [tuple(str(v).encode('utf-8', 'backslashreplace').decode() for v in r) for r in found.rejected]
    rejected = pd.DataFrame(printable, columns=['kind', 'id', 'reason', 'detail'], dtype='str')
    if source.api is not None:
        console.log(f'scenes: {", ".join(f"{count:,} {what}" for what, count in found.counts.items())}')
    write_table(rejected, work / 'scenes_rejected.parquet')
    write_atomically(work / _COUNTS, json.dumps(found.counts).encode())
    found.scenes.write(work / SCENES, work / _ITEMS)


def _period(photos: Photos) -> tuple[datetime, datetime] | None:
    """From a year before the first photo to a year after the last one."""
    taken = photos.table['taken_at'].dropna()
    if not len(taken):
        return None
    return taken.min().to_pydatetime() - _API_MARGIN, taken.max().to_pydatetime() + _API_MARGIN


def _reject_swapped(recipe: Recipe, lon: Floats, lat: Floats) -> None:
    """Raise if the photos would lie in scenes with latitude and longitude exchanged."""
    source = recipe.scenes
    if source.api is not None or np.abs(lon).max() > 90:
        return
    try:
        found = load_scenes(source, regions_of(lat, lon, source.search_cell_deg))
    except GrafalignError:
        return
    exchanged = _share_inside(found.scenes, lat, lon)
    if exchanged > 0.5:
        raise InputError(
            f'{recipe.photos.name}: latitude and longitude look swapped (almost no photo lies in a scene as '
            f'given, {100 * exchanged:.0f} % of the {len(lon)} would with the two exchanged); exchange the `lon` and '
            '`lat` columns in the recipe.'
        )


def _share_inside(scenes: SceneTable, lon: Floats, lat: Floats) -> float:
    """Share of the places that lie in a scene, of some of them."""
    some = np.unique(np.linspace(0, len(lon) - 1, _LOOKED_AT).astype(int))
    inside, _ = shapely.STRtree(scenes.outlines()).query(shapely.points(lon[some], lat[some]), predicate='intersects')
    return len(np.unique(inside)) / len(some)


def _read(work: Place, name: str) -> Any:
    with (work / f'{name}.parquet').open('rb') as file:
        return pd.read_parquet(io.BytesIO(file.read()) if not isinstance(work, Path) else file)


def _neighbourhoods(lon: Floats, lat: Floats, margin_m: float) -> npt.NDArray[np.object_]:
    """Boxes in degrees that together hold all places with a margin: the occupied cells of a fine grid.

    Scenes that touch none of them are not kept; however many photos there are, these are few.
    """
    row, col = np.unique(np.stack([np.floor(lat / _CELL_DEG), np.floor(lon / _CELL_DEG)]), axis=1)
    south, west = row * _CELL_DEG, col * _CELL_DEG
    high = margin_m / SHORTEST_DEGREE_M
    far = np.clip(np.maximum(np.abs(south), np.abs(south + _CELL_DEG)) + high, 0, 89)
    wide = high / np.cos(np.deg2rad(far))
    boxes = np.stack([west - wide, south - high, west + _CELL_DEG + wide, south + _CELL_DEG + high])
    around = np.concatenate([boxes, boxes[:, boxes[2] > 180] - [[360], [0], [360], [0]]], axis=1)
    around = np.concatenate([around, boxes[:, boxes[0] < -180] + [[360], [0], [360], [0]]], axis=1)
    return shapely.box(*around)


def photo_days(taken_at: pd.Series) -> Floats:
    """Times in days since 1970, NaN where unknown."""
    stamp = taken_at.astype('datetime64[us, UTC]')
    return np.where(stamp.isna(), np.nan, stamp.astype('int64').to_numpy() / 86_400e6)


def _neighbours_together(epsg: Ints, left: Floats, top: Floats) -> Ints:
    """An order of tiles in which those that stand together lie near each other: by zone, then in rows of squares."""
    return np.lexsort((left, np.floor(top / _SQUARE_M), epsg))
