"""The ground that a photo may show, as random points in its field of view.

The points of a view are drawn, not weighed: a point falls where the camera looks as often as the view's weight says
(`training.placement`, `view_cone`), so a plain mean over points is the weighted mean over the ground.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pyproj import Geod

from grafalign.training.placement import RADIUS_PER_SIGMA, PlacementSettings

Floats = npt.NDArray[np.float64]
_COMPASS_DEG = 10.0
"""Error of a phone's compass."""
_VIEW = PlacementSettings(kind='view_cone')


def points_in_view(
    lonlat: Floats,
    heading_deg: Floats,
    field_of_view_deg: Floats,
    accuracy_m: Floats,
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """Points of the ground that photos look at.

    The place is off by a normal error as wide as its accuracy says; from there the camera looks along its heading, at
    the near ground more than at the far: distances are exponential.

    Args:
        lonlat: geotags in degrees, [P, 2].
        heading_deg: clockwise from true north, [P]; NaN where unknown: then it may look anywhere.
        field_of_view_deg: across the photo, [P]; NaN where unknown.
        accuracy_m: radius that holds the place in 68 % of cases, [P]; NaN or 0 where unknown.
        count: points a photo.
        rng: random numbers.

    Returns:
        Degrees, [P, count, 2].
    """
    shape = (len(lonlat), count)
    sigma = np.where(accuracy_m > 0, accuracy_m, _VIEW.unknown_accuracy_m) / RADIUS_PER_SIGMA
    error = rng.normal(size=(*shape, 2)) * sigma[:, None, None]
    stands = _moved(
        np.broadcast_to(lonlat[:, None], (*shape, 2)),
        np.degrees(np.arctan2(error[..., 0], error[..., 1])),
        np.hypot(error[..., 0], error[..., 1]),
    )
    half = np.where(np.isnan(field_of_view_deg), _VIEW.field_of_view_deg, field_of_view_deg)[:, None] / 2
    looks = heading_deg[:, None] + half * rng.uniform(-1, 1, shape) + rng.normal(size=shape) * _COMPASS_DEG
    anywhere = rng.uniform(0, 360, shape)
    return _moved(stands, np.where(np.isnan(looks), anywhere, looks), rng.exponential(_VIEW.reach_m, shape))


def _moved(lonlat: Floats, azimuth_deg: Floats, distance_m: Floats) -> Floats:
    """Where one comes to from points, on the ellipsoid."""
    lon, lat, azimuth, distance = (
        np.ascontiguousarray(v).ravel() for v in (lonlat[..., 0], lonlat[..., 1], azimuth_deg, distance_m)
    )
    moved_lon, moved_lat, _ = Geod(ellps='WGS84').fwd(lon, lat, azimuth, distance)
    return np.stack([moved_lon, moved_lat], axis=-1).reshape(lonlat.shape)
