"""The objects of a scene that questions are about: polygons with words, areas, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from pyproj import CRS, Transformer

from grafalign.errors import InputError
from grafalign.geo import unit_metres
from grafalign.maps.areas import areas_m2
from grafalign.maps.regions import Codes, closed_regions
from grafalign.maps.rings import polygons
from grafalign.questions.conventions import Conventions, Shapes

MOST_OBJECTS = 200_000
"""Of one question: relating more takes minutes and gigabytes."""
MERCATOR = CRS.from_epsg(3857)
_PIECE = 64
"""Edges of an outline that are looked at together."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SceneObjects:
    """Objects of a scene, N of them."""

    codes: Mapping[str, int]
    """Code of each word that was looked for; words of one meaning have one."""
    code: Ints
    """Code of each object's word, [N]."""
    shapes: Shapes
    """Polygons [N], in `crs`."""
    areas_m2: Floats
    """[N]"""
    confidence: Floats
    """How probable their pixels are on average, 0 to 1, [N]; NaN where nobody knows."""
    extent_m2: float
    """Land that was seen."""
    crs: CRS
    metres: float
    """Metres of one unit of the CRS."""

    def of(self, name: str) -> Ints:
        """Rows of a word.

        Raises:
            InputError: it was not looked for.
        """
        if name not in self.codes:
            raise InputError(f'There is no word {name!r}; there are {", ".join(self.codes)}.')
        return np.flatnonzero(self.code == self.codes[name])


def objects_of(
    strips: Iterable[tuple[Codes, npt.NDArray[np.uint8] | None]],
    codes: Mapping[str, int],
    shape: tuple[int, int],
    transform: Affine,
    crs: CRS,
    conventions: Conventions,
    *,
    min_area_m2: float = 0.0,
    missing: int = 0,
    name: str = 'The scene',
) -> SceneObjects:
    """Objects of a class map: pixels of one word that hang together by their sides.

    Args:
        strips: of the map, from the first row on: codes of words, 0 for everything else, [h, W], and confidences
            as a map has them (0 to 250) or None.
        codes: code of each word, from 1.
        shape: rows and columns.
        transform: of the map.
        crs: of the map.
        conventions: by which areas and distances are measured.
        min_area_m2: smaller objects are left out; on the ground by any conventions.
        missing: pixels that were not seen.
        name: of the scene, for messages.

    Raises:
        InputError: there are too many objects.
    """
    middle = transform * (shape[1] / 2, shape[0] / 2)
    to, metres = (MERCATOR, 1.0) if conventions.mercator else (crs, unit_metres(crs.to_wkt(), *middle))
    shapes: list[Shapes] = []
    code: list[Ints] = []
    areas: list[Floats] = []
    sure: list[Floats] = []
    found = 0
    for regions, corners in closed_regions(strips, shape[1]):
        if not len(regions):
            continue
        made = polygons(corners, len(regions), transform)
        area = areas_m2(made, crs)
        kept = area >= min_area_m2
        if conventions.mercator:
            made = _moved(made, crs, MERCATOR)
            area = np.round(shapely.area(made), 6)  # what is one pixel too few or enough must not hang on last bits
        found += int(kept.sum())
        if found > MOST_OBJECTS:
            raise InputError(
                f'{name} has more than {MOST_OBJECTS:,} objects of {", ".join(codes)}; leave out the smallest by '
                '--min-area, or ask of a part of it.'
            )
        shapes.append(made[kept])
        code.append(regions['code'][kept].astype(np.int64))
        areas.append(area[kept])
        with np.errstate(invalid='ignore'):
            sure.append((regions['confidence'] / 250 / regions['confident'])[kept])
    whole = shapely.box(0, 0, shape[1], shape[0])
    corner_points = shapely.get_coordinates(whole)
    frame = np.array([shapely.Polygon([transform * tuple(point) for point in corner_points])], dtype=object)
    extent = areas_m2(frame, crs)[0] if not conventions.mercator else shapely.area(_moved(frame, crs, MERCATOR))[0]
    return SceneObjects(
        dict(codes),
        np.concatenate([*code, np.empty(0, np.int64)]),
        np.concatenate([*shapes, np.empty(0, object)]),
        np.concatenate([*areas, np.empty(0)]),
        np.concatenate([*sure, np.empty(0)]),
        float(extent) * (1 - missing / (shape[0] * shape[1])),
        to,
        metres,
    )


def _moved(shapes: Shapes, crs: CRS, to: CRS) -> Shapes:
    """Shapes in another CRS."""
    if crs == to:
        return shapes
    transformer = Transformer.from_crs(crs, to, always_xy=True)
    moved: Shapes = shapely.transform(
        shapes, lambda points: np.stack(transformer.transform(points[:, 0], points[:, 1]), axis=1)
    )
    return moved


def outline_pieces(shapes: Shapes) -> tuple[Shapes, Ints]:
    """Outlines of polygons cut into short lines, and which polygon each is of.

    The gap between two polygons that do not overlap is that between their outlines; of a hundred thousand corners a
    tree of pieces looks at a few.

    Example:
        >>> square = np.array([shapely.box(0, 0, 2, 2)], dtype=object)
        >>> [line.wkt for line in outline_pieces(square)[0]]
        ['LINESTRING (2 0, 2 2, 0 2, 0 0, 2 0)']
    """
    rings, owner = shapely.get_rings(shapes, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    place = np.arange(len(points)) - np.searchsorted(ring, ring)
    shared = (place % _PIECE == 0) & (place > 0)  # the end of one piece and the begin of the next
    which = np.concatenate([place // _PIECE, place[shared] // _PIECE - 1])
    every = np.concatenate([np.arange(len(points)), np.flatnonzero(shared)])
    order = np.lexsort((place[every], which, ring[every]))
    every, which = every[order], which[order]
    _, number, count = np.unique(np.stack([ring[every], which]), axis=1, return_inverse=True, return_counts=True)
    number = number.ravel()
    kept = count[number] > 1
    first = np.flatnonzero(np.diff(number[kept], prepend=-1))
    lines = shapely.linestrings(points[every[kept]], indices=np.cumsum(np.diff(number[kept], prepend=-1) > 0) - 1)
    return lines, owner[ring[every[kept][first]]]
