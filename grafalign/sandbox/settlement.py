"""Towns where people would settle, and the roads that join them.

Sites are flat, low and near water; main roads are least-cost paths over slope and bridges (a minimum spanning tree of
the towns with a few short cuts); streets fill the towns; lanes and tracks follow the borders of large parcels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from grafalign.sandbox.noise import FloatArray, spectral
from grafalign.sandbox.terrain import COARSE, Terrain

MAIN, STREET, LANE, SHORE = 3, 2, 1, 4
"""Kinds of way in the road raster; 0 is none."""


@dataclass(frozen=True)
class Town:
    """A town on the fine grid."""

    row: float
    col: float
    radius_px: float
    bearing_rad: float
    """How its street grid is turned."""


def find_towns(terrain: Terrain, seed: int, per_km2: float = 0.075) -> list[Town]:
    """Choose town sites greedily by score, at least 1.9 km apart."""
    rng = np.random.default_rng(seed + 21)
    to_water = ndimage.distance_transform_edt(~terrain.water) * 0.04
    score = (
        -12.0 * ndimage.uniform_filter(terrain.slope, 9)
        - 0.004 * np.clip(terrain.elevation, 0, None)
        - 0.25 * np.clip(to_water, 0, 4)
        + 0.7 * spectral(terrain.elevation.shape, 1.5, seed + 22, 40)
    )
    score[terrain.water | (to_water < 0.3)] = -np.inf
    margin = 10
    score[:margin], score[-margin:], score[:, :margin], score[:, -margin:] = (-np.inf,) * 4
    count = max(2, round(score.size * 0.0016 * per_km2))
    rows, cols = np.indices(score.shape)
    towns: list[Town] = []
    for rank in range(count):
        best = int(np.argmax(score))
        if not np.isfinite(score.flat[best]):
            break
        row, col = divmod(best, score.shape[1])
        radius_m = (1050 if rank % 4 == 0 else 720) * rng.uniform(0.8, 1.25)
        towns.append(Town(row * COARSE, col * COARSE, radius_m / 5.0, rng.uniform(0, np.pi / 2)))
        score[np.hypot(rows - row, cols - col) * 40 < 1900 + radius_m * 0.6] = -np.inf
    return towns


def draw_roads(
    shape: tuple[int, int],
    terrain: Terrain,
    towns: list[Town],
    lanes: npt.NDArray[np.bool_],
    town_at: FloatArray,
    water: npt.NDArray[np.bool_],
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Draw every way on the fine grid.

    Args:
        shape: rows and columns of the fine grid.
        terrain: the coarse relief.
        towns: the towns to join.
        lanes: fine mask of parcel borders that carry a lane.
        town_at: fine raster of distance to the nearest town over its radius.
        water: fine mask of water; a shore walk runs beside it.
        seed: seed of the world.

    Returns:
        uint8 raster of `MAIN`, `STREET`, `LANE`, `SHORE` or 0.
    """
    roads = np.zeros(shape, dtype=np.uint8)
    roads[lanes & ~water & (town_at > 0.9)] = LANE
    land = ~water[::2, ::2]
    from_water = ndimage.distance_transform_edt(land)
    walk = (from_water > 1.1) & (from_water < 2.1) & (spectral(land.shape, 1.5, seed + 31, 60) > -0.2)
    roads[np.repeat(np.repeat(walk, 2, 0), 2, 1) & ~water] = SHORE
    for town in towns:
        roads_in_town(roads, town, water, town_at)
    canvas = Image.fromarray(roads)
    pen = ImageDraw.Draw(canvas)
    for path in _main_roads(terrain, towns):
        smooth = np.stack([ndimage.uniform_filter1d(p, 5, mode='nearest') for p in np.asarray(path, float).T], axis=1)
        pen.line([(c * 2 * COARSE, r * 2 * COARSE) for r, c in smooth], fill=MAIN, width=3, joint='curve')
    return np.array(canvas)


def roads_in_town(roads: npt.NDArray[np.uint8], town: Town, water: npt.NDArray[np.bool_], town_at: FloatArray) -> None:
    """Draw a town's street grid in place."""
    reach = int(town.radius_px * 1.25)
    top, left = max(0, int(town.row) - reach), max(0, int(town.col) - reach)
    bottom, right = min(roads.shape[0], int(town.row) + reach), min(roads.shape[1], int(town.col) + reach)
    window = (slice(top, bottom), slice(left, right))
    rows, cols = np.mgrid[window]
    u = (cols - town.col) * np.cos(town.bearing_rad) + (rows - town.row) * np.sin(town.bearing_rad)
    v = -(cols - town.col) * np.sin(town.bearing_rad) + (rows - town.row) * np.cos(town.bearing_rad)
    r = np.hypot(u, v) / town.radius_px
    here = (np.mod(u, 17) < 2) | (np.mod(v, 29) < 2)
    inside = (town_at[window] < 1.02) & (r < 1.2) & here & ~water[window]
    roads[window][inside] = STREET


def _main_roads(terrain: Terrain, towns: list[Town]) -> list[list[tuple[int, int]]]:
    """Least-cost paths, in cells of 80 m, along a spanning tree of the towns and a few short cuts."""
    if len(towns) < 2:
        return []
    slope, wet = terrain.slope[::2, ::2], terrain.water[::2, ::2]
    cost = 1 + 40 * slope + 30 * wet + 200 * terrain.sea[::2, ::2]
    height, width = cost.shape
    index = np.arange(cost.size).reshape(cost.shape)
    edges = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        b = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        edges.append((index[a].ravel(), index[b].ravel(), ((cost[a] + cost[b]) / 2 * np.hypot(down, right)).ravel()))
    i, j, w = (np.concatenate(part) for part in zip(*edges, strict=True))
    graph = sparse.coo_matrix((w, (i, j)), shape=(cost.size, cost.size)).tocsr()
    cells = [
        min(int(t.row) // (2 * COARSE), height - 1) * width + min(int(t.col) // (2 * COARSE), width - 1) for t in towns
    ]
    distance, before = csgraph.dijkstra(graph, directed=False, indices=cells, return_predecessors=True)
    between = distance[:, cells]
    tree = csgraph.minimum_spanning_tree(between).toarray() > 0
    nearest = np.argsort(between, axis=1)[:, 1:3]
    tree[np.arange(len(towns)), nearest[:, -1]] = True
    paths = []
    for a, b in zip(*np.nonzero(tree), strict=True):
        cell, path = cells[b], []
        while cell >= 0:
            path.append(divmod(int(cell), width))
            cell = before[a, cell]
        paths.append(path)
    return paths
