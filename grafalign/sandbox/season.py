"""What the time of year does to plants; used alike from above and from the ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grafalign.sandbox.noise import FloatArray, hashed


def greenness(day_of_year: FloatArray | float) -> FloatArray:
    """0 in January, 1 in July."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * (np.asarray(day_of_year) - 20) / 365), dtype=np.float32)


def crop_state(parcels: npt.NDArray[np.integer], day_of_year: FloatArray | float, seed: int) -> FloatArray:
    """Growth of the crop on each parcel: 0 bare soil, 1 green, 2 ripe; falls to 0 at harvest.

    Every parcel has its own sowing day, so that on any day a land shows soil, green and gold side by side.
    """
    sown = 40 + 110 * hashed(parcels, np.zeros_like(parcels), seed + 90)
    grown = (np.asarray(day_of_year, dtype=np.float32) - sown) / 75
    return np.where(grown > 2.1, 0.0, np.clip(grown, 0, 2)).astype(np.float32)
