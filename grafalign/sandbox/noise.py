"""Random fields: smooth noise by shaping white noise's spectrum, hashed noise, and jittered-grid Voronoi cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def spectral(shape: tuple[int, int], slope: float, seed: int, longest_px: float | None = None) -> FloatArray:
    """Gaussian noise whose amplitude spectrum falls as frequency ** -slope.

    Args:
        shape: rows and columns of the result.
        slope: 1 is rough, 2 is like terrain, 3 is very smooth.
        seed: the same seed gives the same field.
        longest_px: wavelengths longer than this are damped, so that features have about this size.

    Returns:
        Float32 field with mean 0 and standard deviation 1.
    """
    rng = np.random.default_rng(seed)
    height, width = (fft.next_fast_len(n + n // 8, real=True) for n in shape)  # the spare edge hides periodicity
    white = rng.standard_normal((height, width), dtype=np.float32)
    rows = np.fft.fftfreq(height).astype(np.float32)[:, None]
    cols = np.fft.rfftfreq(width).astype(np.float32)[None, :]
    frequency = np.sqrt(rows**2 + cols**2)
    frequency[0, 0] = np.inf
    amplitude = frequency**-slope
    if longest_px is not None:
        amplitude *= 1 - np.exp(-((frequency * longest_px) ** 2))
    field = fft.irfft2(fft.rfft2(white) * amplitude, s=(height, width))[: shape[0], : shape[1]]
    return ((field - field.mean()) / field.std()).astype(np.float32)


def hashed(x: npt.NDArray[np.integer], y: npt.NDArray[np.integer], seed: int = 0) -> FloatArray:
    """A number in [0, 1) for every integer position, the same at every call: texture without storage."""
    mixed = x.astype(np.uint32) * np.uint32(374761393) + y.astype(np.uint32) * np.uint32(668265263)
    mixed = mixed + np.uint32((seed * 2246822519 + 3266489917) & 0xFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    mixed = mixed ^ (mixed >> np.uint32(16))
    return (mixed & np.uint32(0xFFFFFF)).astype(np.float32) / np.float32(0x1000000)


def cells(shape: tuple[int, int], cell_px: float, seed: int, warp_px: float = 0.0) -> tuple[IntArray, FloatArray]:
    """Voronoi cells of a jittered grid.

    Args:
        shape: rows and columns of the result.
        cell_px: mean width of a cell in pixels.
        seed: the same seed gives the same cells.
        warp_px: how far a smooth field bends the borders, in pixels.

    Returns:
        The id of each pixel's cell, and the distance in pixels to the border of the cell (about).
    """
    rows, cols = np.meshgrid(
        np.arange(shape[0], dtype=np.float32), np.arange(shape[1], dtype=np.float32), indexing='ij'
    )
    if warp_px:
        rows += warp_px * spectral(shape, 2.0, seed + 1, longest_px=4 * cell_px)
        cols += warp_px * spectral(shape, 2.0, seed + 2, longest_px=4 * cell_px)
    cell_row, cell_col = np.floor(rows / cell_px).astype(np.int32), np.floor(cols / cell_px).astype(np.int32)
    first = np.full(shape, np.inf, dtype=np.float32)
    second = np.full(shape, np.inf, dtype=np.float32)
    ids = np.zeros(shape, dtype=np.int32)
    stride = int(shape[1] / cell_px) + 4 + 2 * int(np.ceil(4 * warp_px / cell_px))
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = cell_row + down, cell_col + right
            seed_row = (r + 0.15 + 0.7 * hashed(r, c, seed)) * np.float32(cell_px)
            seed_col = (c + 0.15 + 0.7 * hashed(r, c, seed + 7)) * np.float32(cell_px)
            distance = np.hypot(rows - seed_row, cols - seed_col)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            first = np.where(nearer, distance, first)
            ids = np.where(nearer, (r + stride) * 4 * stride + c + stride, ids)
    _, numbers = np.unique(ids, return_inverse=True)
    return numbers.reshape(shape).astype(np.int32), ((second - first) / 2).astype(np.float32)
