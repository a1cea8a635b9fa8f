"""Regions of one class and the corners of their outlines, from a raster that is read strip by strip.

A region is the pixels of one class that hang together by their sides (4-connectivity). In a strip, runs (pixels of one
class side by side in a row) and the regions that are open above it are the nodes of a graph with a link where two of
them touch; its connected components are the regions. Of outlines only the corners are kept, the points where they turn:
these follow from the four pixels around, so no outline shows where a strip ended. Of a class A they are

    A .   one pixel: the corner of     A A   three: the corner of     A .   two, across: a corner of each of them
    . .   this pixel                   A .   the one without          . A   (see `rings.py` if they are one region)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Codes: TypeAlias = npt.NDArray[np.unsignedinteger]
Ints: TypeAlias = npt.NDArray[np.signedinteger]
Table: TypeAlias = npt.NDArray[np.void]

REGION = np.dtype([(name, 'i8') for name in ('code', 'first', 'last', 'pixels', 'confidence', 'confident')])
"""Code of the class, place of the first pixel in reading order, last row, number of pixels, sum of the confidences of
those that have one, number of these."""
CORNER = np.dtype([('region', 'i4'), ('row', 'i4'), ('col', 'i4'), ('east', '?'), ('south', '?')], align=True)
"""Number of the region, row and column of the point (that of a pixel's north-west corner is the pixel's), and whether
the two edges that meet there lie east (or west) and south (or north) of it."""
MOST_CONFIDENT = 250
"""Stands for a confidence of 1; higher numbers for none."""


def closed_regions(
    strips: Iterable[tuple[Codes, npt.NDArray[np.uint8] | None]], width: int
) -> Iterator[tuple[Table, Table]]:
    """Regions with their corners, given away as soon as a row has no more pixels of them.

    They come in the order of their last row, then of their first pixel, however the raster is cut into strips.

    Args:
        strips: from the first row on, codes of classes [h, W], 0 where there is none, and confidences [h, W] or None.
        width: W, pixels.

    Yields:
        `REGION` [K] and `CORNER` [N], whose region counts from 0 to K - 1.

    A map of 2 x 3 pixels in strips of one row: two regions of three pixels in the shape of an L, six corners each.

        >>> rows = [np.array([[1, 1, 2]], np.uint8), np.array([[1, 2, 2]], np.uint8)]
        >>> regions, corners = [np.concatenate(p) for p in zip(*closed_regions([(r, None) for r in rows], 3))]
        >>> regions['pixels'].tolist(), np.bincount(corners['region']).tolist()
        ([3, 3], [6, 6])
    """
    regions, corners = np.empty(0, REGION), np.empty(0, CORNER)
    above, owner = np.zeros(width + 2, np.uint8), np.zeros(width + 2, np.int64)  # codes and regions of the row above
    top = 0
    end = np.zeros((1, width), np.uint8), None  # below the last row nothing is open
    for codes, confidence in itertools.chain(strips, [end]):
        if len(regions) or codes.any():
            grid = np.zeros((len(codes) + 1, width + 2), codes.dtype)  # the row above, and a rim of no class
            grid[0], grid[1:, 1:-1] = above, codes
            new, run = _runs(grid)
            runs = _run_table(grid, new, confidence, top)
            links = _links(grid, new, run, len(runs) + owner)
            number, regions = _join(np.append(runs, regions), links)
            corners['region'] += len(runs)
            corners = np.append(corners, _corners(grid, new, run, top))
            corners['region'] = number[corners['region']]
            top += len(codes)
            closed = int(np.searchsorted(regions['last'], top - 1))
            ready = corners['region'] < closed
            yield regions[:closed], corners[ready]
            regions, corners = regions[closed:], corners[~ready]
            corners['region'] -= closed
            above, owner = grid[-1], number[run[-1]] - closed
        else:
            top += len(codes)


def _runs(grid: Codes) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Where runs start, and the number of every pixel's run [h + 1, W + 2]; those of no class may go round the rim."""
    new = np.zeros(grid.shape, bool)
    np.not_equal(grid[:, 1:], grid[:, :-1], out=new[:, 1:])
    new[0, 0] = True
    run = np.cumsum(new, dtype=np.int32).reshape(grid.shape)
    run -= 1
    return new, run


def _run_table(grid: Codes, new: npt.NDArray[np.bool_], confidence: npt.NDArray[np.uint8] | None, top: int) -> Table:
    """The runs as regions of their own; those of the row above count nothing, as their regions have them already."""
    starts = np.flatnonzero(new)
    own = starts >= grid.shape[1]
    runs = np.zeros(len(starts), REGION)
    runs['code'] = grid.ravel()[starts]
    runs['first'] = starts + (top - 1) * grid.shape[1]
    runs['last'] = top - 1 + starts // grid.shape[1]
    runs['pixels'] = np.diff(starts, append=grid.size) * own
    if confidence is not None:
        valid = np.zeros(grid.shape, bool)
        valid[1:, 1:-1] = confidence <= MOST_CONFIDENT
        values = np.zeros(grid.shape, np.uint8)
        values[1:, 1:-1] = confidence * valid[1:, 1:-1]
        runs['confident'] = np.add.reduceat(valid.ravel(), starts, dtype=np.int64)
        runs['confidence'] = np.add.reduceat(values.ravel(), starts, dtype=np.int64)
    return runs


def _links(grid: Codes, new: npt.NDArray[np.bool_], run: Ints, owner: Ints) -> tuple[Ints, Ints]:
    """Nodes that touch: runs one below the other, once where both begin to, and runs of the row above with `owner`."""
    touching = np.flatnonzero((grid[1:] == grid[:-1]) & (new[1:] | new[:-1]) & (grid[1:] > 0))
    over = np.flatnonzero(new[0] & (grid[0] > 0))
    upper, lower = run.ravel()[touching], run.ravel()[touching + grid.shape[1]]
    return np.append(upper, run[0, over]), np.append(lower, owner[over])


def _join(nodes: Table, links: tuple[Ints, Ints]) -> tuple[Ints, Table]:
    """The region of every node, -1 where there is no class, and the regions in the order in which they close."""
    graph = coo_array((np.ones(len(links[0]), np.int8), links), shape=(len(nodes), len(nodes)))
    count, part = connected_components(graph, directed=False)
    regions = np.zeros(count, REGION)
    regions['code'][part] = nodes['code']
    regions['first'] = np.iinfo(np.int64).max
    np.minimum.at(regions['first'], part, nodes['first'])
    np.maximum.at(regions['last'], part, nodes['last'])
    for name in ('pixels', 'confidence', 'confident'):
        regions[name] = np.bincount(part, nodes[name], count)
    order = np.lexsort((regions['first'], regions['last']))
    order = order[regions['code'][order] > 0]
    number = np.full(count, -1)
    number[order] = np.arange(len(order))
    return number[part], regions[order]


def _corners(grid: Codes, new: npt.NDArray[np.bool_], run: Ints, top: int) -> Table:
    """Corners at the points between the rows of `grid`; their region is the number of a run."""
    down = grid[1:] != grid[:-1]
    across = new[:, 1:]
    row, col = np.nonzero((across[1:] | across[:-1]) & (down[:, 1:] | down[:, :-1]))
    parts = []
    for south, east in itertools.product((0, 1), (0, 1)):
        pixel = grid[row + south, col + east]
        beside, over = grid[row + south, col + 1 - east], grid[row + 1 - south, col + east]
        opposite = grid[row + 1 - south, col + 1 - east]
        one = (pixel > 0) & (pixel != beside) & (pixel != over)
        three = (opposite > 0) & (opposite == beside) & (opposite == over) & (opposite != pixel)
        for turns, s, e in ((one, south, east), (three, 1 - south, 1 - east)):
            part = np.empty(np.count_nonzero(turns), CORNER)
            part['region'] = run[row[turns] + s, col[turns] + e]
            part['row'], part['col'] = top + row[turns], col[turns]
            part['south'], part['east'] = south, east
            parts.append(part)
    return np.concatenate(parts)
