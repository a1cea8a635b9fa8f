"""What comes before cutting: photos, plan, scenes and their choice; each stage is kept, so that no run repeats it.

A stage's last file is written last, so a stage is there whole or it is made anew.
"""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign import console
from grafalign.errors import GrafalignError
from grafalign.files import Place, write_atomically, write_table
from grafalign.pairing.plan import Plan, make_plan
from grafalign.pairing.recipe import Recipe
from grafalign.photos import Photos, read_photos
from grafalign.scenes import Choice, Scene, choose_scenes, load_scenes, regions_of
from grafalign.scenes.items import scene_of
from grafalign.scenes.table import UNWRITABLE, keep_items, read_items

CANDIDATES = 4
"""Scenes tried per tile."""
_API_MARGIN = timedelta(days=366)
_CELL_DEG = 0.1
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scenes:
    """Scenes over the photos, and the items that could not be used."""

    scenes: list[Scene]
    rejected: pd.DataFrame
    """kind, id, reason, detail."""
    counts: dict[str, int]
    """What the search met: items, pages, requests, retries, items left out by each filter."""


class Stages:
    """The stages of one recipe, computed when first asked for.

    Args:
        recipe: the recipe.
        work: folder that keeps the stages.
        workers: threads that read photos.
        newer_than: searches of an API that were kept before this are made anew.
    """

    def __init__(
        self, recipe: Recipe, work: Place, workers: int | None = None, newer_than: datetime | None = None
    ) -> None:
        self.recipe, self.work, self._workers, self._newer_than = recipe, work, workers, newer_than

    @cached_property
    def photos(self) -> Photos:
        """The photo table and the rejected rows."""
        if not (self.work / 'photos.parquet').exists():
            photos = read_photos(self.recipe.photos, self._workers)
            write_table(photos.rejected, self.work / 'photos_rejected.parquet')
            write_table(photos.table, self.work / 'photos.parquet')
        return Photos(self._read('photos'), self._read('photos_rejected'))

    @cached_property
    def plan(self) -> Plan:
        """Tiles, and the photos in them.

        Raises:
            GrafalignError: every tile touches two splits.
        """
        recipe = self.recipe
        if not (self.work / 'plan_tiles.parquet').exists():
            table = self.photos.table
            lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
            settings, split = recipe.plan, recipe.split
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
            )
            if not len(plan.tiles):
                raise GrafalignError(
                    f'All {len(table)} photos lie in tiles that touch two splits, or within split.buffer_m '
                    f'({recipe.buffer_m:g} m) of another split; make split.block_km ({split.block_km} km) larger '
                    f'against the tile ({recipe.grid.side_m / 1000:g} km).'
                )
            write_table(plan.pairs, self.work / 'plan_pairs.parquet')
            write_table(plan.dropped, self.work / 'plan_dropped.parquet')
            write_table(plan.tiles, self.work / 'plan_tiles.parquet')
        return Plan(self._read('plan_tiles'), self._read('plan_pairs'), self._read('plan_dropped'))

    @cached_property
    def scenes(self) -> Scenes:
        """The scenes over the photos, searched once.

        Raises:
            GrafalignError: the source cannot be read, no scene lies over the photos, or their latitude and longitude
                look exchanged.
        """
        path = self.work / 'scenes.parquet'
        if not path.exists():
            table, source = self.photos.table, self.recipe.scenes
            lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
            margin = 1.5 * self.recipe.grid.side_m
            try:
                regions = regions_of(lon, lat, source.search_cell_deg, margin)
                around = _neighbourhoods(lon, lat, margin)
                found = load_scenes(source, regions, self._period(), around, self._newer_than)
            except GrafalignError:
                self._reject_swapped(lon, lat)
                raise
            if shapely.contains_xy(shapely.union_all([s.footprint for s in found.scenes]), lon, lat).mean() < 0.05:
                self._reject_swapped(lon, lat)
            items, bad = keep_items([s.item for s in found.scenes])
            lost = [('scene', str(item.get('id')), UNWRITABLE, reason) for item, reason in bad]
            printable = [
                tuple(str(v).encode('utf-8', 'backslashreplace').decode() for v in r) for r in (*found.rejected, *lost)
            ]
            rejected = pd.DataFrame(printable, columns=['kind', 'id', 'reason', 'detail'], dtype='str')
            if source.api is not None:
                console.log(f'scenes: {", ".join(f"{count:,} {what}" for what, count in found.counts.items())}')
            write_table(rejected, self.work / 'scenes_rejected.parquet')
            write_atomically(self.work / 'scenes_counts.json', json.dumps(found.counts).encode())
            write_atomically(path, items)
        with _local(path) as local:
            scenes = [scene_of(item) for item in read_items(local)]
        counts = json.loads((self.work / 'scenes_counts.json').read_text())
        return Scenes(scenes, self._read('scenes_rejected'), counts)

    @cached_property
    def choice(self) -> Choice:
        """The best scenes of every tile."""
        plan, grid = self.plan, self.recipe.grid
        columns = [plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top')]
        return choose_scenes(
            self.scenes.scenes,
            lambda start, stop: grid.polygons(*(c[start:stop] for c in columns)),
            photo_days(self.photos.table['taken_at'])[plan.pairs['photo'].to_numpy()],
            self.first_pair,
            CANDIDATES,
            mosaic=self.recipe.sensor.mosaic == 'day',
        )

    @cached_property
    def first_pair(self) -> npt.NDArray[np.int64]:
        """Where each tile's rows begin in the plan's pairs, and one more: [T + 1]."""
        return np.searchsorted(self.plan.pairs['tile'], np.arange(len(self.plan.tiles) + 1))

    def _period(self) -> tuple[datetime, datetime] | None:
        taken = self.photos.table['taken_at'].dropna()
        if not len(taken):
            return None
        return taken.min().to_pydatetime() - _API_MARGIN, taken.max().to_pydatetime() + _API_MARGIN

    def _reject_swapped(self, lon: Floats, lat: Floats) -> None:
        """Raise if the photos would lie in scenes with latitude and longitude exchanged."""
        source = self.recipe.scenes
        if source.api is not None or np.abs(lon).max() > 90:
            return
        try:
            found = load_scenes(source, regions_of(lat, lon, source.search_cell_deg))
        except GrafalignError:
            return
        exchanged = shapely.contains_xy(shapely.union_all([s.footprint for s in found.scenes]), lat, lon)
        if exchanged.mean() > 0.5:
            raise GrafalignError(
                f'{self.recipe.photos.name}: latitude and longitude look swapped (almost no photo lies in a scene as '
                f'given, {exchanged.sum()} of {len(lon)} would with the two exchanged); exchange the `lon` and `lat` '
                'columns in the recipe.'
            )

    def _read(self, name: str) -> Any:
        with (self.work / f'{name}.parquet').open('rb') as file:
            return pd.read_parquet(io.BytesIO(file.read()) if not isinstance(self.work, Path) else file)


def _neighbourhoods(lon: Floats, lat: Floats, margin_m: float) -> npt.NDArray[np.object_]:
    """Boxes in degrees that together hold all places with a margin: the occupied cells of a fine grid.

    Scenes that touch none of them are not kept; however many photos there are, these are few.
    """
    row, col = np.unique(np.stack([np.floor(lat / _CELL_DEG), np.floor(lon / _CELL_DEG)]), axis=1)
    south, west = row * _CELL_DEG, col * _CELL_DEG
    high = margin_m / 110_000
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


class _local:
    """A local copy of a file while it is read, or the file itself where it is local."""

    def __init__(self, path: Place) -> None:
        self._path = path

    def __enter__(self) -> Path:
        if isinstance(self._path, Path):
            return self._path
        self._folder = tempfile.TemporaryDirectory()
        copy = Path(self._folder.name) / self._path.name
        copy.write_bytes(self._path.read_bytes())
        return copy

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._path, Path):
            self._folder.cleanup()
