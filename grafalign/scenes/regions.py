"""From places on Earth to few search regions: the occupied cells of a coarse grid, neighbours merged.

The number of regions, and so of searches, follows from how the places spread, not from how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from grafalign.geo import EARTH_KM_PER_DEGREE

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west <= east, so that no box spans the antimeridian."""

_WASTE = 1.25
"""Boxes are merged if that makes the area larger by no more than this factor."""
_MOST_CELLS = 4
"""Cells in one region at most: a region is also what an interrupted run repeats and what is held in memory at once."""
_LEAST_MARGIN_M = 10.0
"""So that every region has an area."""
_SNAP = 40
"""Regions are rounded outwards to this part of a cell, so that a few more photos find the same search."""


def regions_of(lon: npt.ArrayLike, lat: npt.ArrayLike, cell_deg: float = 4.0, margin_m: float = 0.0) -> list[Box]:
    """Boxes that hold all places with a margin around each.

    Args:
        lon: degrees, [-180, 180].
        lat: degrees.
        cell_deg: side of a grid cell in degrees.
        margin_m: metres around every place that must be inside, such as the diagonal of a tile; 10 m at least.

    Returns:
        Boxes from south to north and west to east; together they cover every place with its margin. Empty where there
        is no place.
    """
    lon, lat = np.atleast_1d(np.asarray(lon, dtype=float)), np.atleast_1d(np.asarray(lat, dtype=float))
    if not len(lon):
        return []
    high = max(margin_m, _LEAST_MARGIN_M) / 1000 / EARTH_KM_PER_DEGREE
    south, north = np.clip(lat - high, -90, 90), np.clip(lat + high, -90, 90)
    wide = np.minimum(high / np.maximum(np.cos(np.deg2rad(np.maximum(abs(south), abs(north)))), 1e-3), 180)
    boxes = np.stack([lon - wide, south, lon + wide, north], axis=1)
    # what reaches beyond the antimeridian goes on at its other side
    over, under = boxes[boxes[:, 2] > 180] - [360, 0, 360, 0], boxes[boxes[:, 0] < -180] + [360, 0, 360, 0]
    boxes = np.concatenate([boxes, over, under])
    boxes[:, [0, 2]] = np.clip(boxes[:, [0, 2]], -180, 180)
    return _merged(_cells(boxes, cell_deg), cell_deg)


def _cells(boxes: npt.NDArray[np.float64], cell_deg: float) -> dict[tuple[int, int], npt.NDArray[np.float64]]:
    """For every occupied cell (row, column) the bounds of the parts of boxes inside it, rounded outwards."""
    origin = np.array([-180.0, -90.0])
    parts = [boxes]
    for axis in (0, 1):  # cut along the grid lines; a margin is smaller than a cell, but need not be
        cut = []
        for part in parts:
            first = np.floor((part[:, axis] - origin[axis]) / cell_deg)
            last = np.floor((part[:, axis + 2] - origin[axis]) / cell_deg)
            for step in range(int((last - first).max()) + 1):
                here = part[first + step <= last].copy()
                line = origin[axis] + (first[first + step <= last] + step) * cell_deg
                here[:, axis] = np.maximum(here[:, axis], line)
                here[:, axis + 2] = np.minimum(here[:, axis + 2], line + cell_deg)
                cut.append(here)
        parts = cut
    flat = np.concatenate(parts)
    middle = (flat[:, :2] + flat[:, 2:]) / 2
    places = np.floor((middle - origin) / cell_deg).astype(int)
    snap = cell_deg / _SNAP
    flat[:, :2] = origin + np.floor((flat[:, :2] - origin) / snap + 1e-9) * snap
    flat[:, 2:] = origin + np.ceil((flat[:, 2:] - origin) / snap - 1e-9) * snap
    keys, index = np.unique(places[:, ::-1], axis=0, return_inverse=True)
    index = index.reshape(-1)
    low, top = np.full((len(keys), 2), np.inf), np.full((len(keys), 2), -np.inf)
    np.minimum.at(low, index, flat[:, :2])
    np.maximum.at(top, index, flat[:, 2:])
    bounds = np.concatenate([np.maximum(low, [-180, -90]), np.minimum(top, [180, 90])], axis=1)
    return {(int(r), int(c)): b for (r, c), b in zip(keys, bounds, strict=True)}


def _merged(cells: dict[tuple[int, int], npt.NDArray[np.float64]], cell_deg: float) -> list[Box]:
    """Merge runs of cells in a row, then equal runs of neighbouring rows."""
    runs: list[
        tuple[int, int, int, int, npt.NDArray[np.float64]]
    ] = []  # first row, last row, first column, last column
    for (row, column), box in sorted(cells.items()):
        if runs:
            first, last, left, right, before = runs[-1]
            if last == row and right == column - 1 and column - left < _MOST_CELLS and _worth(before, box):
                runs[-1] = (first, last, left, column, _union(before, box))
                continue
        runs.append((row, row, column, column, box))
    stacks: list[tuple[int, int, int, int, npt.NDArray[np.float64]]] = []
    for run in sorted(runs, key=lambda r: (r[2], r[3], r[0])):
        if stacks:
            first, last, left, right, before = stacks[-1]
            fits = (run[0] - first + 1) * (right - left + 1) <= _MOST_CELLS
            if (left, right) == (run[2], run[3]) and last == run[0] - 1 and fits and _worth(before, run[4]):
                stacks[-1] = (first, run[0], left, right, _union(before, run[4]))
                continue
        stacks.append(run)
    boxes = sorted((r[4].round(9).tolist() for r in stacks), key=lambda b: (b[1], b[0]))
    return [(b[0], b[1], b[2], b[3]) for b in boxes]


def _union(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def _worth(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    """Whether one box around both is hardly larger than the two."""

    def area(box: npt.NDArray[np.float64]) -> float:
        return float((box[2] - box[0]) * (box[3] - box[1]))

    return area(_union(a, b)) <= _WASTE * (area(a) + area(b))


def as_boxes(regions: Iterable[Box] | Box) -> list[Box]:
    """A list of boxes from several or from one."""
    boxes: list[Any] = list(regions)
    if len(boxes) == 4 and not any(isinstance(b, Iterable) for b in boxes):
        boxes = [boxes]
    return [(float(west), float(south), float(east), float(north)) for west, south, east, north in boxes]


def across_antimeridian(outline: BaseGeometry) -> BaseGeometry:
    """An outline in degrees with every polygon that runs over longitude 180 cut there.

    RFC 7946, section 3.1.9, asks for outlines that are cut already, but many items have one polygon that seems to go
    round the Earth the long way (179, -179), or longitudes above 180.
    """
    parts = [_cut(p) for p in shapely.get_parts(outline)]
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]


def _cut(part: BaseGeometry) -> BaseGeometry:
    west, _, east, _ = part.bounds
    if east - west > 180:
        shifted = shapely.transform(
            part, lambda xy: np.stack([np.where(xy[:, 0] < 0, xy[:, 0] + 360, xy[:, 0]), xy[:, 1]], 1)
        )
        if shifted.bounds[2] - shifted.bounds[0] >= 180:
            return part  # really that wide, such as a strip around a pole
        part = shapely.make_valid(shifted)
    elif west < -180:
        part = shapely.transform(part, lambda xy: xy + np.array([360, 0]))
    if part.bounds[2] <= 180:
        return part
    here = part.intersection(shapely.box(-180, -90, 180, 90))
    there = shapely.transform(part.intersection(shapely.box(180, -90, 540, 90)), lambda xy: xy - [360, 0])
    return shapely.union(here, there)
