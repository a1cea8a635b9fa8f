"""Labelled sets of a sandbox world: the only reader of its truth.

Tiles for classification are cut around random places and around objects, chips for segmentation at random places, all
wholly inside blocks of one split of a pair store's recipe, from random clear scenes of the same catalog. A tile's label
is the object in its middle, or else the class of its middle that also fills at least 45 % of it (roads aside).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from grafalign import engine
from grafalign.config import parse_settings
from grafalign.errors import InputError
from grafalign.geo import TileGrid, blocks_touched, project, unproject, utm_epsg
from grafalign.pairing import Recipe
from grafalign.pairing.splits import split_of_blocks
from grafalign.scenes import RangeReader, SceneCutter, SceneTiles, Uncut, band_sources, load_scenes
from grafalign.store import PairStore

_DOMINANT = 0.45


@dataclass(frozen=True)
class LabelledTiles:
    """N tiles with labels."""

    pixels: npt.NDArray[np.generic]
    """[N, C, S, S] as stored."""
    scale: npt.NDArray[np.float32]
    """[N, C]"""
    offset: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    """[N] class numbers; for chips [N, S, S] with `VOID`."""
    lonlat: npt.NDArray[np.float64]
    """Centres, [N, 2]."""


class SandboxTruth:
    """Truth of a sandbox world beside the store that was paired from it.

    Args:
        sandbox: folder of the world.
        store: the pair store; its recipe gives tiles, bands and splits.

    Raises:
        GrafalignError: the folder is no sandbox world.
    """

    def __init__(self, sandbox: Path, store: PairStore) -> None:
        self.path = sandbox / 'truth' / 'classes.tif'
        if not self.path.is_file():
            raise InputError(
                f'{sandbox} is no sandbox world (no truth/classes.tif); make one with `grafalign sandbox`.'
            )
        self.recipe = parse_settings(store.marker.recipe, Recipe, str(store.path / 'dataset.json'))
        with rasterio.open(self.path) as raster:
            self.classes: list[str] = json.loads(raster.tags()['classes'])
            self.raster = raster.read(1)
            self.transform, self.epsg = raster.transform, raster.crs.to_epsg()
        objects = gpd.read_file(sandbox / 'truth' / 'objects.geojson')
        self.object_class = objects['class'].map(self.classes.index).to_numpy()
        centres = objects.to_crs(self.epsg).geometry.centroid
        self.object_xy = np.stack([centres.x, centres.y], axis=1)
        west, south, east, north = transform_bounds(
            f'EPSG:{self.epsg}', 'EPSG:4326', *array_bounds(*self.raster.shape, self.transform)
        )
        self._scenes = load_scenes(self.recipe.scenes, (west, south, east, north))

    def tiles(self, split: str, per_class: int, seed: int = 0) -> LabelledTiles:
        """Labelled tiles of a split, at most `per_class` of each class."""
        rng = np.random.default_rng((seed, len(split), 7))
        x, y, label = self._candidates(rng, per_class)
        grid = self.recipe.grid
        inside = self._split(x, y, grid) == split
        chosen = []
        for number in range(len(self.classes)):
            here = np.flatnonzero(inside & (label == number))
            chosen.append(here[:per_class])
        rows = np.concatenate(chosen)
        return self._cut(x[rows], y[rows], grid, label[rows].astype(np.int64), rng)

    def chips(self, split: str, count: int, size_px: int, seed: int = 0) -> LabelledTiles:
        """Squares with a label for every pixel, at random places of a split, none overlapping another."""
        rng = np.random.default_rng((seed, len(split), 11))
        grid = TileGrid(size_px, self.recipe.sensor.gsd_m)
        height, width = self.raster.shape
        x, y = self.transform @ (rng.uniform(0, width, 40 * count), rng.uniform(0, height, 40 * count))
        inside = np.flatnonzero(self._split(x, y, grid) == split)
        kept: list[int] = []
        for i in inside.tolist():
            if all(max(abs(x[i] - x[j]), abs(y[i] - y[j])) > grid.side_m * 1.1 for j in kept):
                kept.append(i)
            if len(kept) == count:
                break
        return self._cut(x[kept], y[kept], grid, None, rng)

    def label_maps(self, geoboxes: Sequence[GeoBox]) -> npt.NDArray[np.uint8]:
        """The truth on other grids, nearest neighbour: [N, H, W] with `VOID`."""
        maps = []
        with rasterio.open(self.path) as raster:
            for box in geoboxes:
                with WarpedVRT(
                    raster,
                    crs=str(box.crs),
                    transform=box.affine,
                    width=box.shape[1],
                    height=box.shape[0],
                    resampling=Resampling.nearest,
                ) as warped:
                    maps.append(warped.read(1))
        return np.stack(maps)

    def _candidates(
        self, rng: np.random.Generator, per_class: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Places with a clear label: random ones by the class that dominates, and jittered objects."""
        half = self.recipe.grid.size_px // 2
        height, width = self.raster.shape
        rows = rng.integers(half, height - half, 40_000)
        cols = rng.integers(half, width - half, 40_000)
        label = np.full(len(rows), -1)
        is_object = np.unique(self.object_class)
        for i, (r, c) in enumerate(zip(rows, cols, strict=True)):
            window = self.raster[r - half : r + half : 2, c - half : c + half : 2]
            count = np.bincount(window.ravel(), minlength=256)[: len(self.classes)]
            best = int(count.argmax())
            if self.raster[r, c] == best and count[best] >= _DOMINANT * count.sum():
                label[i] = best
        label[np.isin(label, is_object)] = -1  # objects are sampled around their own centres
        x, y = self.transform @ (cols.astype(float), rows.astype(float))
        repeats = max(2, per_class // 8)
        jitter = rng.uniform(-0.15, 0.15, (repeats * len(self.object_xy), 2)) * self.recipe.grid.side_m
        order = rng.permutation(len(jitter))
        places = (np.tile(self.object_xy, (repeats, 1)) + jitter)[order]
        labels = np.tile(self.object_class, repeats)[order]
        known = label >= 0
        return (
            np.concatenate([x[known], places[:, 0]]),
            np.concatenate([y[known], places[:, 1]]),
            np.concatenate([label[known], labels]),
        )

    def _split(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], grid: TileGrid) -> npt.NDArray[np.object_]:
        """Split of the squares around places in the truth's own zone; None where a square touches two."""
        lon, lat = unproject(x, y, self.epsg)
        zone = utm_epsg(lon, lat)
        out = np.full(len(x), None, dtype=object)
        for epsg in np.unique(zone):
            here = zone == epsg
            corner = grid.corner(*project(lon[here], lat[here], int(epsg)))
            box = grid.bounds_lonlat(int(epsg), *corner)
            names = split_of_blocks(
                blocks_touched(*box, self.recipe.split.block_km), self.recipe.split.shares, self.recipe.plan.seed
            )
            agree = (names == names[:, :1]).all(axis=1)
            out[np.flatnonzero(here)[agree]] = names[agree, 0]
        return out

    def _cut(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        grid: TileGrid,
        labels: npt.NDArray[np.int64] | None,
        rng: np.random.Generator,
    ) -> LabelledTiles:
        """Read squares around places from random clear scenes that cover them wholly."""
        lon, lat = unproject(x, y, self.epsg)
        zone = utm_epsg(lon, lat)
        boxes: list[GeoBox] = []
        for i in range(len(x)):
            left, top = grid.corner(*project(lon[i : i + 1], lat[i : i + 1], int(zone[i])))
            boxes.append(grid.geobox(int(zone[i]), float(left[0]), float(top[0])))
        jobs: dict[int, list[int]] = {}
        for i, box in enumerate(boxes):
            outline = box.extent.to_crs('EPSG:4326').geom
            over = [j for j, s in enumerate(self._scenes) if shapely.covers(s.footprint, outline)]
            if over:
                jobs.setdefault(int(rng.choice(over)), []).append(i)
        found: dict[int, tuple[Any, Any]] = {}
        wanted = []
        for number, places in sorted(jobs.items()):
            in_order = sorted(places, key=lambda i: (-boxes[i].affine.f // 2560, boxes[i].affine.c))
            sensor = self.recipe.sensor
            sources = band_sources(self._scenes[number].item, sensor.bands, sensor.gsd_m, sensor.overrides)
            wanted.append((in_order, SceneTiles(sources, [boxes[i] for i in in_order])))
        workers = engine.default_workers()
        with ThreadPoolExecutor(workers) as pool:
            for index, cut in SceneCutter(pool, RangeReader(), 2 * workers).cut([w for _, w in wanted]):
                if isinstance(cut, Uncut):
                    raise InputError(f'{cut.reason}; make the world again with `grafalign sandbox`.')
                if cut.missing.mean() < 0.01:
                    found[wanted[index][0][cut.number]] = cut.pixels, (cut.scale, cut.offset)
        rows = np.array(sorted(found))
        if not len(rows):
            raise InputError(f'No clear scene covers the labelled places of {self.path.parent.parent}.')
        scale, offset = (np.array([found[i][1][k] for i in rows], dtype=np.float32) for k in (0, 1))
        kept = self.label_maps([boxes[i] for i in rows]).astype(np.int64) if labels is None else labels[rows]
        return LabelledTiles(
            np.stack([found[i][0] for i in rows]), scale, offset, kept, np.stack([lon[rows], lat[rows]], axis=1)
        )
