"""Corners of outlines to valid polygons.

Along every row of points a region's corners are the two ends of its horizontal edges in turn, along every column those
of its vertical edges: sorting pairs them, and rings are walked from pair to pair. Where two pixels of one region meet
across a point, its outlines go round the pixels of others there; rings that went round its own pixels would touch
themselves:

    A A A        one ring passes outside, one goes round the hole,
    A . A        and they share the point in the middle:
    A A .        a valid polygon with a hole
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from grafalign.maps.regions import Ints, Table


def polygons(corners: Table, count: int, transform: Affine) -> npt.NDArray[np.object_]:
    """Polygons of regions, shells counterclockwise and holes clockwise; no vertex lies on a straight edge.

    Args:
        corners: `CORNER` [N] of whole regions 0 to K - 1, in any order.
        count: K.
        transform: from column and row to the CRS.

    Returns:
        Shapely polygons [K], each from its northernmost, then westernmost corner on.
    """
    corners = corners[_order(corners, 'region', 'row', 'col', 'east')]
    spot = corners[['region', 'row', 'col']]
    twin = np.flatnonzero(spot[1:] == spot[:-1])
    corners['south'][twin] ^= True
    corners['south'][twin + 1] ^= True
    indices, ends, owners = _walk(corners, transform.determinant > 0)
    col, row = corners['col'][indices], corners['row'][indices]
    points = np.stack(
        [transform.c + col * transform.a + row * transform.b, transform.f + col * transform.d + row * transform.e], 1
    )
    rings = np.append(0, ends)
    shells = np.append(0, np.cumsum(np.bincount(owners, minlength=count)))
    made: npt.NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings, shells))
    return made


def _order(corners: Table, *names: str) -> Ints:
    """What sorts corners by the first column, then by the next; no two agree in all, and one key sorts fastest."""
    key = np.zeros(len(corners), np.int64)
    for name in names:
        key = key * (int(corners[name].max()) + 1) + corners[name]
    return np.argsort(key)


def _walk(corners: Table, mirrored: bool) -> tuple[Ints, Ints, Ints]:
    """Walk all rings: indices of corners (a ring's first one again at its end), ends of rings, and their regions.

    Corners are sorted by region, row and column, so 2i and 2i + 1 are the ends of a horizontal edge, and a region's
    first one is on its shell. `mirrored` is of transforms in which rows count upwards.

    A walk leaves the uppermost edge of a shell downwards on its left, that of a hole on its right:

        0 - 1
        |   |       opposite [2, 3, 0, 1], walked 0 -> 2 ^ 1 = 3 -> 1 ^ 1 = 0: vertices 0, 2, 3, 1, 0
        2 - 3
    """
    order = _order(corners, 'region', 'col', 'row', 'south')
    opposite = np.empty(len(corners), np.int64)  # the other end of the vertical edge
    opposite[order[0::2]], opposite[order[1::2]] = order[1::2], order[0::2]
    step = (opposite ^ 1).tolist()  # down or up an edge, then along one
    walked = bytearray(len(step))
    walk: list[int] = []
    ends: list[int] = []
    owners: list[int] = []
    for start, region in zip(range(0, len(step), 2), corners['region'][::2].tolist(), strict=True):
        if walked[start] or walked[start + 1]:
            continue
        hole = bool(owners) and owners[-1] == region
        i = start + (hole != mirrored)
        while not walked[i]:
            walked[i] = 1
            walk.append(i)
            i = step[i]
        ends.append(len(walk))
        owners.append(region)
    leaving = np.array(walk, np.int64)
    rings = 2 * np.array(ends, np.int64)
    path = np.stack([leaving, opposite[leaving]], 1).ravel()
    closed = np.insert(path, rings, path[np.append(0, rings[:-1])])
    return closed, rings + np.arange(1, len(rings) + 1), np.array(owners, np.int64)
