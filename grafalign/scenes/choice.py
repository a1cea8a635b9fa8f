"""Which scene for which tile: coverage first, then the fewest days from the photos, then the fewest clouds.

Cloudy scenes never reach this point (`max_cloud_percent`), so among the scenes that are clear enough the time decides,
as in GRAFT (cloud limit, then the image closest in time to the photo). Coverage counts in twentieths: a sliver more of
a tile is worth no year.

Scenes of one collection and day (UTC) may be put together in a tile, so what counts is what they cover together; among
them the one that covers most of the tile comes first, and the others are its mates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.scenes.footprints import Footprints
from grafalign.scenes.photo_times import PhotoTimes
from grafalign.scenes.scene_table import SceneTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FULL = 0.999
_STEP = 0.05
_MORE = 1e-3
"""Share of a tile that mates must add to be worth asking."""
_TILES_AT_ONCE = 10_000
_ROWS_AT_ONCE = 500_000
"""(tile, scene) that are ranked together."""
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
    scenes: SceneTable,
    outlines: Callable[[Ints], npt.NDArray[np.object_]],
    photo_days: Floats,
    first_photo: Ints,
    keep: int,
    mosaic: bool = False,
    order: Ints | None = None,
) -> Choice:
    """Rank the scenes over every tile.

    Time grows with the tiles, the (tile, scene) that touch and the photos; memory with the tiles and scenes alone.

    Args:
        scenes: candidate scenes.
        outlines: gives the polygons in degrees of some tiles; longitudes may exceed 180.
        photo_days: times of the tiles' photos in days since 1970, tile after tile; NaN where unknown.
        first_photo: [T + 1] where each tile's photos begin in `photo_days`.
        keep: K.
        mosaic: whether scenes of one collection and day are put together.
        order: [T] tiles, neighbours near each other: those that are looked at together meet few scenes. The result does
            not depend on it.
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
    footprints, times = Footprints(scenes), PhotoTimes(photo_days, first_photo)
    columns = _Columns(scenes)
    order = np.arange(count) if order is None else order
    for start in range(0, count, _TILES_AT_ONCE):
        numbers = order[start : start + _TILES_AT_ONCE]
        boxes = outlines(numbers)
        for rows, tile, scene, own, pieces in footprints.over(boxes, _ROWS_AT_ONCE):
            _rank(choice, numbers[rows], boxes[rows], tile, scene, own, pieces, columns, times, mosaic)
    return choice


class _Columns:
    """What ranking needs of all scenes."""

    def __init__(self, scenes: SceneTable) -> None:
        self.when_us, self.day_number = scenes.when_us, scenes.day_number
        self.days = self.when_us / 86_400e6
        self.cloud = np.where(np.isnan(scenes.cloud_percent), np.inf, scenes.cloud_percent)


def _rank(
    choice: Choice,
    numbers: Ints,
    boxes: npt.NDArray[np.object_],
    tile: Ints,
    scene: Ints,
    own: Floats,
    pieces: npt.NDArray[np.object_],
    columns: _Columns,
    times: PhotoTimes,
    mosaic: bool,
) -> None:
    """Write the best scenes of some tiles into the choice.

    Args:
        choice: filled in.
        numbers: the tiles.
        boxes: their outlines.
        tile: for every (tile, scene) that touch the place of the tile among `numbers`; sorted, with `scene`.
        scene: its scene.
        own: share of the tile that the scene covers.
        pieces: what of the tile the scene covers; None where that is all.
        columns: of all scenes.
        times: of all photos.
        mosaic: as of `choose_scenes`.
    """
    keep = choice.scene.shape[1]
    choice.considered[numbers] = np.bincount(tile, minlength=len(numbers))
    apart = times.days_apart(numbers, tile, columns.when_us[scene])
    # photos without a time leave it to the newest scene
    time = np.where(np.isnan(apart), -columns.days[scene], apart)
    cloud = columns.cloud[scene]
    covered, day_time, day_cloud = own, time, cloud
    if mosaic:
        _, member = np.unique(tile * len(columns.days) + columns.day_number[scene], return_inverse=True)
        covered, joined = _together(member, tile, own, pieces, boxes)
        day_time = np.where(joined, _least(time, member), time)
        day_cloud = np.where(joined, _least(cloud, member), cloud)
    some = np.flatnonzero(_may_lead(tile, _steps(covered), day_time, keep))
    keys = scene, cloud, time, -_steps(own), day_cloud, day_time, -_steps(covered), tile
    some = some[np.lexsort([key[some] for key in keys])]
    place = np.arange(len(some)) - np.searchsorted(tile[some], tile[some])
    some, place = some[place < keep], place[place < keep]
    at = numbers[tile[some]], place
    choice.scene[at], choice.coverage[at], choice.days_apart[at] = scene[some], covered[some], apart[some]
    if mosaic:
        more = (own[some] < _FULL) & (covered[some] > own[some] + _MORE)
        choice.seams[numbers[tile[some]][(place == 0) & more]] = True
        # an outline may promise more than its file holds: of scenes that should cover all, mates are asked, too
        helpful = more | (own[some] >= _FULL)
        choice.mates[at] = np.where(helpful[:, None], _mates(member, scene, own, some), np.int32(-1))


def _may_lead(tile: Ints, steps: Floats, time: Floats, keep: int) -> npt.NDArray[np.bool_]:
    """Which rows can be among the first `keep` of their tile; the order of all the others need not be known.

    Where enough scenes cover as much of a tile as any does, only those come first, and of them only those whose time is
    not behind that of the `keep`-th.

    Args:
        tile: of every row; sorted.
        steps: coverage, the more the better.
        time: the less the better.
        keep: how many are wanted of each tile.

    Example: three scenes cover all of the tile, two are wanted, and the fourth, though nearest, cannot be one.

        >>> _may_lead(np.zeros(4, int), np.array([1, 1, 1, 0.5]), np.array([3.0, 1, 2, 0]), 2)
        array([False,  True,  True, False])
    """
    most = np.maximum.reduceat(steps, np.flatnonzero(np.diff(tile, prepend=-1))) if len(tile) else steps
    best = steps == most[np.cumsum(np.diff(tile, prepend=tile[:1]) > 0)]
    rows = np.flatnonzero(best)
    rows = rows[np.lexsort((time[rows], tile[rows]))]
    first, stop = (np.searchsorted(tile[rows], tile, side=side) for side in ('left', 'right'))
    enough = stop - first >= keep
    limit = time[rows[np.minimum(first + keep, stop) - 1]]
    return ~enough | (best & (time <= limit))


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
    has_row = np.zeros(member.max(initial=-1) + 1, dtype=bool)
    has_row[member[rows]] = True
    of_day = np.flatnonzero(has_row[member])
    order = of_day[np.lexsort((scene[of_day], -own[of_day], member[of_day]))]
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
