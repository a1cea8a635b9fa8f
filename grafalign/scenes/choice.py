"""Which scene for which tile: coverage first, then the fewest days from the photos, then the fewest clouds.

Cloudy scenes never reach this point (`max_cloud_percent`), so among the scenes that are clear enough the time decides,
as in GRAFT (cloud limit, then the image closest in time to the photo). Coverage counts in twentieths: a sliver more of
a tile is worth no year.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.scenes.items import Scene

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FULL = 0.999
_STEP = 0.05
_TILES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Choice:
    """The best scenes of T tiles, best first; K are kept a tile."""

    scene: Ints
    """[T, K] numbers of scenes; -1 where there are no more."""
    coverage: Floats
    """[T, K]: share of the tile inside the scene's footprint."""
    days_apart: Floats
    """[T, K]: mean days between the scene and the tile's photos; NaN where no photo has a time."""
    considered: Ints
    """[T]: scenes that touch the tile."""


def choose_scenes(
    scenes: Sequence[Scene],
    outlines: Callable[[int, int], npt.NDArray[np.object_]],
    photo_days: Floats,
    first_photo: Ints,
    keep: int,
) -> Choice:
    """Rank the scenes over every tile.

    Args:
        scenes: candidate scenes.
        outlines: gives the polygons in degrees of the tiles from one number up to another; longitudes may exceed 180.
        photo_days: times of the tiles' photos in days since 1970, tile after tile; NaN where unknown.
        first_photo: [T + 1] where each tile's photos begin in `photo_days`.
        keep: K.
    """
    count = len(first_photo) - 1
    choice = Choice(
        np.full((count, keep), -1, dtype=np.int64),
        np.zeros((count, keep)),
        np.full((count, keep), np.nan),
        np.zeros(count, dtype=np.int64),
    )
    footprints = np.array([s.footprint for s in scenes], dtype=object)
    shapely.prepare(footprints)
    tree = shapely.STRtree(footprints)
    day = np.array([s.when.timestamp() / 86400 for s in scenes])
    cloud = np.array([np.inf if s.cloud_percent is None else s.cloud_percent for s in scenes])
    for start in range(0, count, _TILES_AT_ONCE):
        stop = min(start + _TILES_AT_ONCE, count)
        tile, scene, covered = _overlaps(tree, footprints, outlines(start, stop))
        first = first_photo[start : stop + 1]
        apart = _days_apart(day[scene], photo_days[first[0] : first[-1]], first - first[0], tile)
        step = np.where(covered >= _FULL, 1.0, np.floor(covered / _STEP) * _STEP)
        # photos without a time leave it to the newest scene
        order = np.lexsort((scene, cloud[scene], np.where(np.isnan(apart), -day[scene], apart), -step, tile))
        tile, scene, covered, apart = tile[order], scene[order], covered[order], apart[order]
        choice.considered[start:stop] = np.bincount(tile, minlength=stop - start)
        place = np.arange(len(tile)) - np.searchsorted(tile, tile)
        kept = place < keep
        at = start + tile[kept], place[kept]
        choice.scene[at], choice.coverage[at], choice.days_apart[at] = scene[kept], covered[kept], apart[kept]
    return choice


def _overlaps(
    tree: shapely.STRtree, footprints: npt.NDArray[np.object_], tiles: npt.NDArray[np.object_]
) -> tuple[Ints, Ints, Floats]:
    """Which scene covers how much of which tile."""
    across = np.flatnonzero(shapely.bounds(tiles)[:, 2] > 180)  # footprints end at the antimeridian: ask on both sides
    boxes = np.concatenate([tiles, shapely.transform(tiles[across], lambda xy: xy - (360.0, 0.0))])
    owner = np.concatenate([np.arange(len(tiles)), across])
    box, scene = tree.query(boxes, predicate='intersects')
    whole = shapely.covers(footprints[scene], boxes[box])
    covered = np.ones(len(box))
    partly = np.flatnonzero(~whole)
    shared = shapely.intersection(boxes[box[partly]], footprints[scene[partly]])
    covered[partly] = shapely.area(shared) / shapely.area(boxes[box[partly]])
    keys, inverse = np.unique(owner[box] * len(footprints) + scene, return_inverse=True)
    share = np.minimum(1.0, np.bincount(inverse, weights=covered, minlength=len(keys)))
    return keys // len(footprints), keys % len(footprints), share


def _days_apart(scene_day: Floats, photo_days: Floats, first_photo: Ints, tile: Ints) -> Floats:
    """Mean days between each (tile, scene) and the tile's photos."""
    count = np.diff(first_photo)[tile]
    pair = np.repeat(np.arange(len(tile)), count)
    photo = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first_photo[:-1][tile], count)
    known = ~np.isnan(photo_days[photo])
    pair, photo = pair[known], photo[known]
    total = np.bincount(pair, weights=np.abs(scene_day[pair] - photo_days[photo]), minlength=len(tile))
    seen = np.bincount(pair, minlength=len(tile))
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
