"""Elevation, sea, lakes and rivers: water runs downhill, so everything else can be laid out by it.

Worked out on a coarse grid (40 m): a priority flood from the sea inwards (Barnes et al. 2014) gives every cell the
neighbour its water leaves by; counting cells upstream gives the rivers, and the depressions that the flood fills are
the lakes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from grafalign.sandbox.noise import FloatArray, spectral

COARSE = 8
"""Fine pixels (5 m) per coarse cell (40 m)."""


@dataclass(frozen=True)
class Terrain:
    """The relief and its water on the coarse grid."""

    elevation: FloatArray
    """Metres above the sea, [h, w]: of the ground, or of the water's surface."""
    sea: npt.NDArray[np.bool_]
    lake: npt.NDArray[np.bool_]
    river_width_m: FloatArray
    """Width of the river in a cell, 0 where there is none."""

    @property
    def water(self) -> npt.NDArray[np.bool_]:
        """Cells under the sea, a lake or a wide river."""
        return self.sea | self.lake | (self.river_width_m > 0)

    @property
    def slope(self) -> FloatArray:
        """Rise over run, [h, w]."""
        down, right = np.gradient(ndimage.gaussian_filter(self.elevation, 1.0), 5.0 * COARSE)
        return np.hypot(down, right).astype(np.float32)


def make_terrain(shape: tuple[int, int], seed: int) -> Terrain:
    """Raise a land with mountains in the north and the sea in the south-west.

    Args:
        shape: rows and columns of the *coarse* grid.
        seed: seed of the world.
    """
    rows, cols = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing='ij')
    north = np.clip(0.95 - 2.1 * rows + 0.12 * spectral(shape, 2.2, seed + 11, 150), 0, 1) ** 1.5
    ridges = 1 - np.abs(spectral(shape, 2.4, seed + 12, 90)) / 1.5
    rolling = spectral(shape, 2.3, seed + 13, 90)
    tilt = 1.1 * cols - 1.2 * rows + 0.28 * spectral(shape, 2.4, seed + 14, 180)
    elevation = 620 * north * np.clip(0.35 + 0.75 * ridges, 0.05, None) + 22 * rolling + 95 * tilt
    elevation = elevation - np.quantile(elevation, 0.11)
    elevation = np.where(elevation > 0, elevation, 1.4 * elevation).astype(np.float32)
    labels, _ = ndimage.label(elevation <= 0)
    sizes = np.bincount(labels.ravel())
    sea = (labels > 0) & (sizes[labels] > 40)
    filled, outlet, order = _flood(elevation, sea)
    upstream = np.ones(elevation.size, dtype=np.float64)
    for cell in reversed(order):
        if outlet[cell] >= 0:
            upstream[outlet[cell]] += upstream[cell]
    upstream = upstream.reshape(shape)
    lake = (filled - elevation > 1.5) & ~sea
    labels, _ = ndimage.label(lake)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = np.argsort(sizes)[-max(2, elevation.size // 18_000) :]
    lake = np.isin(labels, largest[sizes[largest] > 12])  # the smaller depressions have silted up
    river = (upstream > 900) & ~sea
    width = np.where(river, np.clip(0.9 * np.sqrt(upstream), 20, 80), 0).astype(np.float32)
    surface = np.where(sea, 0, np.maximum(filled, 0.3)).astype(np.float32)
    return Terrain(surface, sea, lake, width)


def _flood(elevation: FloatArray, sea: npt.NDArray[np.bool_]) -> tuple[FloatArray, list[int], list[int]]:
    """Fill depressions from the sea and the map's edge inwards; return the surface, each cell's outlet, the order."""
    height, width = elevation.shape
    flat = elevation.ravel().tolist()
    filled = list(flat)
    outlet = [-1] * len(flat)
    start = sea.copy()
    start[[0, -1], :] = True
    start[:, [0, -1]] = True
    seen = start.ravel().tolist()
    heap = [(flat[i], i) for i in np.flatnonzero(start).tolist()]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        level, cell = heapq.heappop(heap)
        order.append(cell)
        row, col = divmod(cell, width)
        for down in (-1, 0, 1):
            if not 0 <= row + down < height:
                continue
            for right in (-1, 0, 1):
                if not 0 <= col + right < width:
                    continue
                near = (row + down) * width + col + right
                if not seen[near]:
                    seen[near] = True
                    outlet[near] = cell
                    filled[near] = max(flat[near], level)
                    heapq.heappush(heap, (filled[near], near))
    return np.asarray(filled, dtype=np.float32).reshape(elevation.shape), outlet, order
