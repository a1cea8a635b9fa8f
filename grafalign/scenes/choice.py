"""Which scene for which tile: full coverage first, then the fewest days from the photos, then the fewest clouds.

Cloudy scenes never reach this point (`max_cloud_percent`), so among the scenes that are clear enough the time decides,
as in GRAFT (cloud limit, then the image closest in time to the photo).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.scenes.items import Scene

_FULL = 0.999


def rank_scenes(
    scenes: Sequence[Scene],
    tile_boxes: npt.NDArray[np.object_],
    photo_days: Sequence[npt.NDArray[np.float64]],
    keep: int,
) -> list[list[int]]:
    """Rank the scenes over every tile.

    Args:
        scenes: candidate scenes.
        tile_boxes: T polygons in degrees.
        photo_days: for every tile the times of its photos in days since 1970; NaN where unknown.
        keep: at most this many scenes a tile.

    Returns:
        For every tile the indices of its best scenes, best first; empty where no scene touches it.
    """
    tree = shapely.STRtree([s.footprint for s in scenes])
    tile, scene = tree.query(tile_boxes, predicate='intersects')
    order = np.lexsort((scene, tile))
    tile, scene = tile[order], scene[order]
    footprints = np.array([s.footprint for s in scenes], dtype=object)
    covered = shapely.area(shapely.intersection(tile_boxes[tile], footprints[scene])) / shapely.area(tile_boxes[tile])
    day = np.array([s.when.timestamp() / 86400 for s in scenes])
    cloud = np.array([np.nan if s.cloud_percent is None else s.cloud_percent for s in scenes])
    ranked: list[list[int]] = [[] for _ in range(len(tile_boxes))]
    edges = np.searchsorted(tile, np.arange(len(tile_boxes) + 1))
    for number in range(len(tile_boxes)):
        part = slice(edges[number], edges[number + 1])
        options = scene[part]
        if not len(options):
            continue
        times = photo_days[number][~np.isnan(photo_days[number])]
        # photos without a time leave it to the newest scene
        apart = np.abs(day[options][:, None] - times[None, :]).mean(1) if len(times) else -day[options]
        full = np.where(covered[part] >= _FULL, 1.0, covered[part])
        best = np.lexsort((options, np.nan_to_num(cloud[options], nan=0.0), apart, -full))
        ranked[number] = options[best[:keep]].tolist()
    return ranked
