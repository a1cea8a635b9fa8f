"""Scenes that tests make: real GeoTIFFs of any size, CRS and content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

UTM = 'EPSG:32633'
CORNER = Affine(5, 0, 500_000, 0, -5, 5_400_000)


def write_scene(path: Path, pixels: npt.NDArray[Any], **changes: Any) -> Path:
    """A tiled GeoTIFF of red, green and blue, 5 m a pixel, of 2023-05-01."""
    profile = {
        'driver': 'GTiff', 'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2],
        'dtype': pixels.dtype, 'crs': UTM, 'transform': CORNER, 'tiled': True, 'blockxsize': 256, 'blockysize': 256,
        'photometric': 'RGB' if len(pixels) == 3 else 'MINISBLACK', 'compress': 'DEFLATE', **changes,
    }  # fmt: skip
    with rasterio.open(path, 'w', **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(TIFFTAG_DATETIME='2023:05:01 10:00:00')
    return path


def patchwork(height: int, width: int, seed: int = 0, side: int = 64) -> npt.NDArray[np.uint8]:
    """Coloured squares with some noise, [3, H, W]; never 0."""
    random = np.random.default_rng(seed)
    colours = random.integers(40, 216, (3, -(-height // side), -(-width // side)))
    pixels = colours.repeat(side, 1).repeat(side, 2)[:, :height, :width] + random.integers(-30, 30, (3, height, width))
    return pixels.astype(np.uint8)
