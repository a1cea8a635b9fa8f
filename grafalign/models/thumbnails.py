"""Pictures of satellite images for pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign.encoders.bands import colours
from grafalign.models.pixels import as_unit
from grafalign.pages import picture_url


def shown_bands(bands: Sequence[str]) -> list[int]:
    """Which bands are shown as red, green and blue; the first one for all where they have no colours."""
    which = colours(bands)
    return [which.index(c) if c in which else 0 for c in (0, 1, 2)]


def picture_of(pixels: npt.NDArray[Any], bands: Sequence[str], value_range: tuple[float, float]) -> Image.Image:
    """A picture of physical values [C, H, W], stretched by the same range as the model's input."""
    which = colours(bands) if len(bands) == len(pixels) else colours(len(pixels))
    shown = [which.index(c) if c in which else 0 for c in (0, 1, 2)]
    unit = as_unit(pixels[shown], value_range)
    return Image.fromarray((np.moveaxis(unit, 0, -1) * 255).astype(np.uint8))


def thumbnail(
    pixels: npt.NDArray[Any], bands: Sequence[str], value_range: tuple[float, float], longest_px: int = 192
) -> str:
    """`picture_of` as a small JPEG data URL."""
    return picture_url(picture_of(pixels, bands, value_range), longest_px)
