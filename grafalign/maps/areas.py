"""Areas of many polygons on the ellipsoid at once, across the antimeridian and around poles, too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Geod, Transformer

from grafalign.geo import EARTH_RADIUS_M, Floats

_STRAIGHT_M = 1000
"""Longer edges are divided while they are in the CRS that they are straight in."""


def areas_m2(polygons: npt.NDArray[np.object_], crs: CRS) -> Floats:
    """Areas in square metres, holes subtracted.

    The area between an edge and a parallel is the edge's width in longitude times the mean over its ends of the
    ellipsoid's area from the equator to their latitude, counted from the parallel (Snyder, Map Projections, 1987,
    eq. 3-12, without the factor that makes a latitude of it). pyproj's geodesic areas are the same to two
    millionths, but come ring by ring.

    Args:
        polygons: shapely polygons [N], N at least 1.
        crs: of their coordinates; its own ellipsoid counts.
    """
    reach = _STRAIGHT_M / (EARTH_RADIUS_M if crs.is_geographic else 1) / crs.axis_info[0].unit_conversion_factor
    left, bottom, right, top = shapely.bounds(polygons).T
    wide = np.maximum(right - left, top - bottom) > reach
    polygons = polygons.copy()
    polygons[wide] = shapely.segmentize(polygons[wide], reach)
    _, points, (rings, shells) = shapely.to_ragged_array(polygons)
    own = crs.geodetic_crs or crs
    lon, lat = Transformer.from_crs(crs, own, always_xy=True).transform(points[:, 0], points[:, 1])
    radians = own.axis_info[0].unit_conversion_factor  # of degrees or grads
    from_equator = _area_from_equator(lat * radians, crs)
    width = np.diff(lon * radians, append=0)
    width = (width + np.pi) % (2 * np.pi) - np.pi
    width[rings[1:] - 1] = 0  # from ring to ring
    round_pole = np.abs(np.add.reduceat(width, rings[:-1])) > np.pi
    first = from_equator[rings[:-1]]
    pole = _area_from_equator(np.copysign(np.pi / 2, first), crs)
    parallel = np.repeat(np.where(round_pole, pole, first), np.diff(rings))
    height = (from_equator + np.append(from_equator[1:], 0)) / 2 - parallel
    areas = np.abs(np.add.reduceat(width * height, rings[:-1]))
    outer: Floats = areas[shells[:-1]]
    return 2 * outer - np.add.reduceat(areas, shells[:-1])


def _area_from_equator(lat: Floats, crs: CRS) -> Floats:
    """Square metres from the equator to a latitude in radians, for a radian of longitude."""
    geod = crs.get_geod() or Geod(ellps='WGS84')
    squared = geod.es  # the eccentricity
    sine = np.sin(lat)
    rest = np.arctanh(np.sqrt(squared) * sine) / np.sqrt(squared) if squared else sine
    area: Floats = geod.a**2 * (1 - squared) / 2 * (sine / (1 - squared * sine**2) + rest)
    return area
