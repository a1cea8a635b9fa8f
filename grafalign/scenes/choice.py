"""Which scene for which tile: coverage first, then the fewest days from the photos, then the fewest clouds.

Cloudy scenes never reach this point (`max_cloud_percent`), so among the scenes that are clear enough the time decides,
as in GRAFT (cloud limit, then the image closest in time to the photo). Coverage counts in twentieths: a sliver more of
a tile is worth no year.

Scenes of one collection and day (UTC) may be put together in a tile, so what counts is what they cover together; among
them the one that covers most of the tile comes first, and the others are its mates.
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
_MORE = 1e-3
"""Share of a tile that mates must add to be worth asking."""
_TILES_AT_ONCE = 10_000
MATES = 3
"""Scenes that may fill what another one of their day leaves missing: four sheets meet at a corner."""


@dataclass(frozen=True)
class Choice:
    """The best scenes of T tiles, best first; K are kept a tile."""

    scene: Ints
    """[T, K] numbers of scenes; -1 where there are no more."""
    coverage: Floats
    """[T, K]: share of the tile inside the scene's footprint, and those of its mates."""
    days_apart: Floats
    """[T, K]: mean days between the scene and the tile's photos; NaN where no photo has a time."""
    considered: Ints
    """[T]: scenes that touch the tile."""
    mates: npt.NDArray[np.int32]
    """[T, K, `MATES`] numbers of other scenes of the same collection and day over the tile, those that cover more of it
    first; -1 where there are no more. [T, K, 0] where tiles are no mosaics."""
    seams: npt.NDArray[np.bool_]
    """[T]: the best scene covers only a part of the tile, and its mates more."""


def choose_scenes(
    scenes: Sequence[Scene],
    outlines: Callable[[int, int], npt.NDArray[np.object_]],
    photo_days: Floats,
    first_photo: Ints,
    keep: int,
    mosaic: bool = False,
) -> Choice:
    """Rank the scenes over every tile.

    Args:
        scenes: candidate scenes.
        outlines: gives the polygons in degrees of the tiles from one number up to another; longitudes may exceed 180.
        photo_days: times of the tiles' photos in days since 1970, tile after tile; NaN where unknown.
        first_photo: [T + 1] where each tile's photos begin in `photo_days`.
        keep: K.
        mosaic: whether scenes of one collection and day are put together.
    """
    count = len(first_photo) - 1
    choice = Choice(
        np.full((count, keep), -1, dtype=np.int64),
        np.zeros((count, keep)),
        np.full((count, keep), np.nan),
        np.zeros(count, dtype=np.int64),
        np.full((count, keep, MATES if mosaic else 0), -1, dtype=np.int32),
        np.zeros(count, dtype=bool),
    )
    days = {(s.collection, s.when.date()) for s in scenes}
    numbers = {day: i for i, day in enumerate(sorted(days))}
    group = np.array([numbers[s.collection, s.when.date()] for s in scenes], dtype=np.int64)
    footprints = np.array([s.footprint for s in scenes], dtype=object)
    shapely.prepare(footprints)
    tree = shapely.STRtree(footprints)
    day = np.array([s.when.timestamp() / 86400 for s in scenes])
    cloud = np.array([np.inf if s.cloud_percent is None else s.cloud_percent for s in scenes])
    for start in range(0, count, _TILES_AT_ONCE):
        stop = min(start + _TILES_AT_ONCE, count)
        boxes = outlines(start, stop)
        tile, scene, own, pieces = _overlaps(tree, footprints, boxes)
        first = first_photo[start : stop + 1]
        apart = _days_apart(day[scene], photo_days[first[0] : first[-1]], first - first[0], tile)
        # photos without a time leave it to the newest scene
        time = np.where(np.isnan(apart), -day[scene], apart)
        covered, day_time, day_cloud = own, time, cloud[scene]
        if mosaic:
            _, member = np.unique(tile * len(numbers) + group[scene], return_inverse=True)
            covered, joined = _together(member, tile, own, pieces, boxes)
            day_time = np.where(joined, _least(time, member), time)
            day_cloud = np.where(joined, _least(cloud[scene], member), cloud[scene])
        order = np.lexsort((scene, cloud[scene], time, -_steps(own), day_cloud, day_time, -_steps(covered), tile))
        tile, scene, covered, apart, own = tile[order], scene[order], covered[order], apart[order], own[order]
        choice.considered[start:stop] = np.bincount(tile, minlength=stop - start)
        place = np.arange(len(tile)) - np.searchsorted(tile, tile)
        kept = place < keep
        at = start + tile[kept], place[kept]
        choice.scene[at], choice.coverage[at], choice.days_apart[at] = scene[kept], covered[kept], apart[kept]
        if mosaic:
            more = (own < _FULL) & (covered > own + _MORE)
            choice.seams[start + tile[(place == 0) & more]] = True
            # an outline may promise more than its file holds: of scenes that should cover all, mates are asked, too
            helpful = (more | (own >= _FULL))[kept]
            choice.mates[at] = np.where(
                helpful[:, None], _mates(member[order], scene, own, np.flatnonzero(kept)), np.int32(-1)
            )
    return choice


def _steps(covered: Floats) -> Floats:
    """Coverage in twentieths."""
    return np.where(covered >= _FULL, 1.0, np.floor(covered / _STEP) * _STEP)


def _least(values: Floats, member: Ints) -> Floats:
    """For every entry the least value of its group."""
    least = np.full(member.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, member, values)
    return least[member]


def _together(
    member: Ints, tile: Ints, own: Floats, pieces: npt.NDArray[np.object_], tiles: npt.NDArray[np.object_]
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What of a tile the scenes of one collection and day cover together, and where that is more than one alone does.

    Args:
        member: for every (tile, scene) the number of its tile and day.
        tile: its tile.
        own: share of the tile that the scene covers.
        pieces: what of the tile the scene covers; None where that is all.
        tiles: outlines of all tiles.
    """
    covered, joined = own.copy(), np.zeros(len(own), dtype=bool)
    most = -_least(-own, member)
    rows = np.flatnonzero((np.bincount(member)[member] > 1) & (most < _FULL))
    rows = rows[np.argsort(member[rows], kind='stable')]
    _, first, size = np.unique(member[rows], return_index=True, return_counts=True)
    union = pieces[rows[first]]
    for step in range(1, size.max(initial=0)):  # the second piece of every group at once, then the third
        more = np.flatnonzero(size > step)
        union[more] = shapely.union(union[more], pieces[rows[first[more] + step]])
    share = np.minimum(1.0, shapely.area(union) / shapely.area(tiles[tile[rows[first]]]))
    covered[rows] = np.maximum(np.repeat(share, size), most[rows])
    joined[rows] = True
    return covered, joined


def _mates(member: Ints, scene: Ints, own: Floats, rows: Ints) -> npt.NDArray[np.int32]:
    """For some (tile, scene) the others of the same tile and day, [rows, MATES], more coverage first."""
    order = np.lexsort((scene, -own, member))
    ranked = member[order]
    first, stop = (np.searchsorted(ranked, member[rows], side=side) for side in ('left', 'right'))
    found = np.full((len(rows), MATES), -1, dtype=np.int32)
    filled = np.zeros(len(rows), dtype=np.int64)
    for step in range(MATES + 1):
        at = np.minimum(first + step, len(order) - 1)
        other = scene[order[at]]
        there = (first + step < stop) & (other != scene[rows]) & (filled < MATES)
        found[there, filled[there]] = other[there]
        filled += there
    return found


def _overlaps(
    tree: shapely.STRtree, footprints: npt.NDArray[np.object_], tiles: npt.NDArray[np.object_]
) -> tuple[Ints, Ints, Floats, npt.NDArray[np.object_]]:
    """Which scene covers how much of which tile, and the piece of the tile it covers (None: all of it)."""
    across = np.flatnonzero(shapely.bounds(tiles)[:, 2] > 180)  # footprints end at the antimeridian: ask on both sides
    boxes = np.concatenate([tiles, _eastwards(tiles[across], -360.0)])
    owner = np.concatenate([np.arange(len(tiles)), across])
    box, scene = tree.query(boxes, predicate='intersects')
    whole = shapely.covers(footprints[scene], boxes[box])
    covered, piece = np.ones(len(box)), np.full(len(box), None, dtype=object)
    partly = np.flatnonzero(~whole)
    piece[partly] = shapely.intersection(boxes[box[partly]], footprints[scene[partly]])
    covered[partly] = shapely.area(piece[partly]) / shapely.area(boxes[box[partly]])
    moved = partly[box[partly] >= len(tiles)]
    piece[moved] = _eastwards(piece[moved], 360.0)
    keys, first, inverse = np.unique(owner[box] * len(footprints) + scene, return_index=True, return_inverse=True)
    share = np.minimum(1.0, np.bincount(inverse, weights=covered, minlength=len(keys)))
    pieces, again = piece[first], np.setdiff1d(np.arange(len(box)), first)  # a scene on both sides of the antimeridian
    pieces[inverse[again]] = shapely.union(pieces[inverse[again]], piece[again])
    return keys // len(footprints), keys % len(footprints), share, pieces


def _eastwards(shapes: npt.NDArray[np.object_], degrees: float) -> npt.NDArray[np.object_]:
    """Shapes moved by degrees of longitude."""
    moved: npt.NDArray[np.object_] = shapely.transform(shapes, lambda xy: xy + np.array([degrees, 0.0]))
    return moved


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
