"""Which scene covers how much of which tile, with no more outlines open at a time than lie over the tiles in hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.scenes.scene_table import SceneTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shapes = npt.NDArray[np.object_]

_OUTLINES_AT_ONCE = 16_384


class Footprints:
    """The distinct outlines of scenes, as boxes; they become geometries where tiles are near.

    Args:
        scenes: the scenes.
    """

    def __init__(self, scenes: SceneTable) -> None:
        self._scenes = scenes
        number = scenes.outline_number
        self._by_outline = np.argsort(number, kind='stable')
        self._first = np.searchsorted(number[self._by_outline], np.arange(number.max(initial=-1) + 2))
        count = len(self._first) - 1
        parts = [
            shapely.bounds(scenes.outlines(start, start + _OUTLINES_AT_ONCE))
            for start in range(0, count, _OUTLINES_AT_ONCE)
        ]
        self._bounds = np.concatenate(parts) if parts else np.zeros((0, 4))

    def over(self, boxes: Shapes, at_once: int) -> Iterator[tuple[slice, Ints, Ints, Floats, Shapes]]:
        """The scenes that touch tiles, a few tiles at a time.

        Args:
            boxes: outlines of tiles in degrees; longitudes may exceed 180.
            at_once: (tile, scene) of one portion, about; all scenes of a tile come together.

        Yields:
            Which of the tiles, and for every (tile, scene), sorted: the place of the tile among them, the scene, the
            share of the tile that it covers, and what of the tile it covers (None: all).
        """
        near = self._near(boxes)
        shapes = self._scenes.pick_outlines(near)
        shapely.prepare(shapes)
        tile, outline, share, pieces = _overlaps(shapely.STRtree(shapes), shapes, boxes)
        outline = near[outline]
        size = self._first[outline + 1] - self._first[outline]
        rows = np.bincount(tile, weights=size, minlength=len(boxes)).cumsum()
        edges = np.flatnonzero(np.diff(rows // at_once, prepend=0)) if len(boxes) else np.zeros(0, dtype=np.int64)
        for low, high in zip([0, *edges.tolist()], [*edges.tolist(), len(boxes)], strict=True):
            if low == high:
                continue
            mine = slice(*np.searchsorted(tile, [low, high]))
            entry = np.repeat(np.arange(mine.start, mine.stop), size[mine])
            offset = np.arange(len(entry)) - np.repeat(np.cumsum(size[mine]) - size[mine], size[mine])
            scene = self._by_outline[self._first[outline[entry]] + offset]
            order = np.lexsort((scene, tile[entry]))
            entry, scene = entry[order], scene[order]
            yield slice(low, high), tile[entry] - low, scene, share[entry], pieces[entry]

    def _near(self, boxes: Shapes) -> Ints:
        """Numbers of the outlines whose box touches the box of all tiles; both sides where that passes 180 degrees."""
        west, south, east, north = shapely.total_bounds(boxes)
        left, bottom, right, top = self._bounds.T
        beside = ((left <= east) & (right >= west)) | (left <= east - 360)
        return np.flatnonzero(beside & (bottom <= north) & (top >= south))


def _overlaps(tree: shapely.STRtree, footprints: Shapes, tiles: Shapes) -> tuple[Ints, Ints, Floats, Shapes]:
    """Which outline covers how much of which tile, and the piece of the tile it covers (None: all of it)."""
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
    return keys // max(len(footprints), 1), keys % max(len(footprints), 1), share, pieces


def _eastwards(shapes: Shapes, degrees: float) -> Shapes:
    """Shapes moved by degrees of longitude."""
    moved: Shapes = shapely.transform(shapes, lambda xy: xy + np.array([degrees, 0.0]))
    return moved
