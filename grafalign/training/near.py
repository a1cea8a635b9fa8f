"""Candidates that were taken near a photo of the batch: no negatives of its tile (`masks.within_m`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from grafalign.geo import EARTH_RADIUS_M
from grafalign.store import PairStore

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def earth_centred(store: PairStore) -> Floats:
    """Places of a store's photos on a sphere, metres from the Earth's centre, [P, 3]; NaN where unknown."""
    points = store.photos.geometry
    lon, lat = np.deg2rad(points.x.to_numpy()), np.deg2rad(points.y.to_numpy())
    return EARTH_RADIUS_M * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)


class Neighbours:
    """The candidates of a step, to be looked up by place.

    Args:
        candidates: rows of the bank, int64 [K].
        places: of the photos, which are the first rows of the bank, [P, 3]; NaN where unknown. Texts have none.
    """

    def __init__(self, candidates: Integers, places: Floats) -> None:
        self.candidates, self._places = candidates, places
        self._placed = np.flatnonzero(candidates < len(places))
        self._placed = self._placed[np.isfinite(places[candidates[self._placed], 0])]
        self._tree = cKDTree(places[candidates[self._placed]])

    def of(self, photos: Integers, metres: float) -> Integers:
        """Candidates nearer to photos than a distance, straight through the Earth: photo and candidate, [2, M].

        Args:
            photos: positions among the candidates, [N].
            metres: the distance.

        Example: photos at 0, 3 and 10 m; the first two are near each other.

            >>> places = np.array([[0.0, 0, 0], [3, 0, 0], [10, 0, 0]])
            >>> Neighbours(np.arange(3), places).of(np.array([1]), 5)
            array([[0, 0],
                   [0, 1]])
        """
        rows = self.candidates[photos]
        placed = np.flatnonzero(rows < len(self._places))
        placed = placed[np.isfinite(self._places[rows[placed], 0])]
        near = cKDTree(self._places[rows[placed]]).sparse_distance_matrix(self._tree, metres, output_type='ndarray')
        near = np.sort(near[near['v'] < metres], order=('i', 'j'))
        return np.stack([placed[near['i']], self._placed[near['j']]])
