"""Where people stand with their cameras, where they look, and what their phones write down.

People walk on streets, lanes and shores, around and over sights, a few across country or in boats; most look at a
sight if one is near, many at the water, others anywhere. Their
geotags are off by metres, now and then by a street; some photos are taken indoors and some show lunch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from grafalign.sandbox.classes import CLASS_ID, Material
from grafalign.sandbox.ground import Cameras
from grafalign.sandbox.land import GSD_M, Land
from grafalign.sandbox.noise import FloatArray, spectral
from grafalign.sandbox.settlement import LANE, MAIN, SHORE, STREET
from grafalign.sandbox.structures import Structures

INDOOR_SHARE, JUNK_SHARE = 0.08, 0.04
OUTDOOR, INDOOR, JUNK = 0, 1, 2


@dataclass(frozen=True)
class Snapshots:
    """What a phone writes beside P photos, as arrays of length P."""

    kind: npt.NDArray[np.int32]
    """`OUTDOOR`, `INDOOR` or `JUNK`."""
    tag_row: FloatArray
    """The geotag on the fine grid: the position with its error."""
    tag_col: FloatArray
    accuracy_m: FloatArray
    """NaN where the phone says nothing."""
    tag_heading_deg: FloatArray
    """NaN where the phone says nothing."""
    year: npt.NDArray[np.int32]
    hour: npt.NDArray[np.int32]


_OFF_ROAD = {
    'water': 0.012,
    'broadleaf forest': 0.01,
    'conifer forest': 0.006,
    'meadow': 0.015,
    'cropland': 0.008,
    'orchard': 0.015,
    'vineyard': 0.015,
    'beach': 0.12,
    'bare rock': 0.008,
    'marsh': 0.01,
    'suburb': 0.01,
    'old town': 0.1,
    'tower blocks': 0.02,
    'warehouses': 0.03,
    'oil tanks': 0.06,
    'stadium': 0.15,
    'solar farm': 0.06,
    'airport runway': 0.05,
    'marina': 0.5,
    'roundabout': 0.1,
    'golf course': 0.12,
    'quarry': 0.08,
    'greenhouses': 0.1,
    'parking lot': 0.2,
}
"""How often people take photos away from ways, against 0.5 for a street: often on beaches, golf courses, car parks and
piers, seldom in fields, from boats on the water."""


def stand(land: Land, structures: Structures, count: int, seed: int) -> tuple[Cameras, Snapshots]:
    """Place `count` cameras and their owners' phones."""
    rng = np.random.default_rng((seed, 1))
    shape = land.classes.shape
    sample = (slice(None, None, 2), slice(None, None, 2))
    here, weight = _places(land, structures, seed)
    centres = np.array([(o.row, o.col) for o in land.objects]).reshape(-1, 2)
    radius = np.array([min(o.length_px, 60) / 2 for o in land.objects])
    far, which = cKDTree(centres).query(here)
    weight = weight * np.where((far < radius[which] + 10) & (land.roads[here[:, 0], here[:, 1]] > 0), 5.0, 1.0)
    chosen = here[rng.choice(len(here), count, p=weight / weight.sum())] + rng.uniform(0, 2, (count, 2))

    heading = rng.uniform(0, 360, count)
    wet = land.classes[sample] == CLASS_ID['water']
    depth, nearest = ndimage.distance_transform_edt(~wet, return_indices=True)
    at = tuple(np.minimum(chosen // 2, np.array(wet.shape) - 1).astype(int).T)
    by_water = (depth[at] > 0) & (depth[at] * 10 < 45) & (rng.random(count) < 0.5)
    toward = np.stack([nearest[0][at], nearest[1][at]], axis=1) * 2 - chosen
    heading = np.where(by_water, _bearing(toward) + rng.normal(0, 25, count), heading)
    far, which = cKDTree(centres).query(chosen)
    attracted = (far < radius[which] + 14) & (rng.random(count) < 0.75)
    heading = np.where(attracted, _bearing(centres[which] - chosen) + rng.normal(0, 18, count), heading) % 360
    day = np.clip(rng.normal(195, 75, count), 5, 360).astype(np.int32)
    cameras = Cameras(
        np.clip(chosen[:, 0], 0, shape[0] - 1).astype(np.float32),
        np.clip(chosen[:, 1], 0, shape[1] - 1).astype(np.float32),
        heading.astype(np.float32),
        day,
        np.where(rng.random(count) < 0.3, rng.uniform(0.5, 1, count), 0).astype(np.float32),
    )
    sigma_m = np.where(rng.random(count) < 0.05, 60.0, 5.0 * np.exp(rng.normal(0, 0.5, count)))
    error = rng.normal(0, 1, (2, count)) * sigma_m / np.sqrt(2) / GSD_M
    tag_heading = (heading + rng.normal(0, 8, count)) % 360
    dice = rng.random(count)
    kind = np.select([dice < INDOOR_SHARE, dice < INDOOR_SHARE + JUNK_SHARE], [INDOOR, JUNK], OUTDOOR)
    return cameras, Snapshots(
        kind.astype(np.int32),
        np.clip(cameras.row + error[0], 0, shape[0] - 1).astype(np.float32),
        np.clip(cameras.col + error[1], 0, shape[1] - 1).astype(np.float32),
        np.where(rng.random(count) < 0.6, sigma_m, np.nan).astype(np.float32),
        np.where(rng.random(count) < 0.7, tag_heading, np.nan).astype(np.float32),
        rng.choice([2020, 2021], count, p=[0.3, 0.7]).astype(np.int32),
        rng.integers(8, 19, count).astype(np.int32),
    )


def _places(land: Land, structures: Structures, seed: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Where somebody may stand (rows and columns, [N, 2]) and how likely (unnormalised, [N])."""
    sample = (slice(None, None, 2), slice(None, None, 2))
    roads, classes = land.roads[sample], land.classes[sample]
    open_air = structures.height[sample] == 0
    off_road = np.zeros(256, dtype=np.float32)
    for name, share in _OFF_ROAD.items():
        off_road[CLASS_ID[name]] = share
    pier = (classes == CLASS_ID['marina']) & (structures.material[sample] == Material.CONCRETE)
    afloat = (classes == CLASS_ID['marina']) & ~pier
    weight = np.where((open_air & ~afloat) | pier, off_road[classes], 0)
    kinds = [roads == MAIN, roads == STREET, roads == LANE, roads == SHORE]
    weight = np.select(kinds, [0.5, 0.5, 0.45, 0.9], weight)
    popular = np.exp(0.8 * spectral(roads.shape, 1.5, seed + 110, 200))
    weight = weight * popular * (1 + 0.6 * (land.town_at[sample] < 1))
    rows, cols = np.nonzero(weight)
    return np.stack([rows, cols], axis=1) * 2, weight[rows, cols].astype(np.float32)


def _bearing(toward: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Degrees clockwise from north of steps (down, right), [N, 2]."""
    return np.rad2deg(np.arctan2(toward[:, 1], -toward[:, 0]))
