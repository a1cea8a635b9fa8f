"""Where people stand with their cameras, where they look, and what their phones write down.

People walk on streets, lanes, shores and around sights; most look at a sight if one is near, others anywhere. Their
geotags are off by metres, now and then by a street; some photos are taken indoors and some show lunch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from grafalign.sandbox.ground import Cameras
from grafalign.sandbox.land import GSD_M, Land
from grafalign.sandbox.noise import FloatArray, spectral
from grafalign.sandbox.settlement import LANE, MAIN, SHORE, STREET

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


def stand(land: Land, count: int, seed: int) -> tuple[Cameras, Snapshots]:
    """Place `count` cameras and their owners' phones."""
    rng = np.random.default_rng((seed, 1))
    shape = land.classes.shape
    step = 2
    roads = land.roads[::step, ::step]
    popular = np.exp(0.8 * spectral(roads.shape, 1.5, seed + 110, 200))
    weight = np.select([roads == MAIN, roads == STREET, roads == LANE, roads == SHORE], [0.5, 0.5, 0.45, 0.9], 0.0)
    weight = weight * popular * (1 + 0.6 * (land.town_at[::step, ::step] < 1))
    centres = np.array([(o.row, o.col) for o in land.objects]).reshape(-1, 2)
    radius = np.array([min(o.length_px, 60) / 2 for o in land.objects])
    tree = cKDTree(centres) if len(centres) else None
    on_road = np.flatnonzero(weight.ravel() > 0)
    here = np.stack(np.divmod(on_road, roads.shape[1]), axis=1) * step
    w = weight.ravel()[on_road]
    if tree is not None:
        far, which = tree.query(here)
        w = w * np.where(far < radius[which] + 10, 5.0, 1.0)
    chosen = here[rng.choice(len(here), count, p=w / w.sum())] + rng.uniform(0, step, (count, 2))
    heading = rng.uniform(0, 360, count)
    if tree is not None:
        far, which = tree.query(chosen)
        attracted = (far < radius[which] + 14) & (rng.random(count) < 0.75)
        toward = centres[which] - chosen
        at_sight = np.rad2deg(np.arctan2(toward[:, 1], -toward[:, 0])) + rng.normal(0, 18, count)
        heading = np.where(attracted, at_sight, heading) % 360
    day = np.clip(rng.normal(195, 75, count), 5, 360).astype(np.int32)
    cameras = Cameras(
        np.clip(chosen[:, 0], 0, shape[0] - 1).astype(np.float32),
        np.clip(chosen[:, 1], 0, shape[1] - 1).astype(np.float32),
        heading.astype(np.float32), day, (rng.random(count) < 0.3).astype(np.float32) * rng.uniform(0.5, 1, count),
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
        rng.choice([2020, 2021], count, p=[0.3, 0.7]).astype(np.int32), rng.integers(8, 19, count).astype(np.int32),
    )
