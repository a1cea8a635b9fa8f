"""From pictures to a model's input: one rule for every model, so that models differ by their weights and nothing else.

1. The bands that the model wants, by name; pictures of one band serve as all three colours.
2. Resized with the model's own interpolation, in the numbers of the file. `resize`: the shorter side to the model's
   size, the middle taken. `pad`: kept as large as it is and zero-padded (as GRAFT's users do with EuroSAT and
   BigEarthNet); what is larger than the input is first made to fit.
3. Values of the set's `value_range` become 0 to 1 and are clipped: one fixed stretch, never one per picture.
4. The model's mean and standard deviation.

For 8-bit colour pictures `resize` gives to the bit what open_clip's own preprocessing of a CLIP gives to the upright
picture: open_clip itself does not look at EXIF's orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from grafalign.encoders.bands import select_bands
from grafalign.encoders.preprocessing import to_unit
from grafalign.errors import InputError

Fit = Literal['resize', 'pad']
PIXELS_VERSION = 2
"""Raised when the rules of this file change: embeddings that were kept are then made anew."""
_LONGEST_STRIP = 40
"""Sides of a picture differ less than this: of a longer one the middle says nothing, and it would fill the memory."""
_FILTERS = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """The input that a model takes: bands, size, normalisation, interpolation."""

    bands: tuple[str, ...]
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = 'bicubic'

    def metadata(self, fit: Fit, value_range: tuple[float, float]) -> dict[str, Any]:
        """How pictures were prepared, as results tell it."""
        return {
            'fit': fit,
            'size_px': self.size_px,
            'interpolation': self.interpolation,
            'bands': list(self.bands),
            'value_range': list(value_range),
            'mean': [round(v, 6) for v in self.mean],
            'std': [round(v, 6) for v in self.std],
        }


def band_places(preprocessing: Preprocessing, bands: tuple[str, ...]) -> list[int]:
    """Positions of the model's bands in a set's pictures; a single band is taken for each of them.

    Raises:
        GrafalignError: a band is missing.
    """
    if len(bands) == 1:
        return [0] * len(preprocessing.bands)
    return select_bands(bands, preprocessing.bands, 'This set')


def to_input(
    picture: npt.NDArray[Any], preprocessing: Preprocessing, fit: Fit, value_range: tuple[float, float]
) -> Tensor:
    """One picture [C, H, W], bands in the model's order, as the model's input [C, S, S].

    Raises:
        GrafalignError: the picture is empty or holds no numbers.
    """
    unit = as_unit(resized(picture, preprocessing, fit, value_range[0]), value_range)
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy((unit - mean) / std)


def as_unit(picture: npt.NDArray[Any], value_range: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Values of the range as 0 to 1, clipped; what is not finite becomes 0."""
    low, high = value_range
    values = np.nan_to_num(picture.astype(np.float32), nan=low, posinf=low, neginf=low)
    return to_unit(values, low, high)


def resized(picture: npt.NDArray[Any], preprocessing: Preprocessing, fit: Fit, zero: float = 0.0) -> npt.NDArray[Any]:
    """The picture [C, S, S] at the model's size, in its own numbers."""
    if picture.ndim != 3 or not picture.size:
        raise InputError(f'A picture of shape {list(picture.shape)} is none; give bands, rows and columns.')
    if not np.isfinite(picture).all():
        picture = np.nan_to_num(picture, nan=zero, posinf=zero, neginf=zero)
    size = preprocessing.size_px
    height, width = picture.shape[-2:]
    if fit == 'pad':
        if max(height, width) > size:
            scale = size / max(height, width)
            picture = _scale(picture, max(1, round(height * scale)), max(1, round(width * scale)), preprocessing)
        return _pad(picture, size, zero)
    short = min(height, width)
    if max(height, width) > _LONGEST_STRIP * short:
        raise InputError(f'A picture of {height} x {width} px is a strip; cut it into pieces, or pad it.')
    if short != size:
        picture = _scale(picture, int(size * height / short), int(size * width / short), preprocessing)
    height, width = picture.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return picture[:, top : top + size, left : left + size]


def _pad(picture: npt.NDArray[Any], size: int, zero: float) -> npt.NDArray[Any]:
    height, width = picture.shape[-2:]
    if (height, width) == (size, size):
        return picture
    if zero != 0:
        picture = picture.astype(np.float32)  # the zero of the range may be no number of the file's type
    padded = np.full((len(picture), size, size), zero, dtype=picture.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    padded[:, top : top + height, left : left + width] = picture
    return padded


def _scale(picture: npt.NDArray[Any], height: int, width: int, preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """Pillow's resampling, which looks at all pixels that become one; 8-bit stays 8-bit, as everywhere with CLIP."""
    kind = np.uint8 if picture.dtype == np.uint8 else np.float32
    how = _FILTERS.get(preprocessing.interpolation, Image.Resampling.BICUBIC)
    bands = [Image.fromarray(np.ascontiguousarray(band, dtype=kind)).resize((width, height), how) for band in picture]
    return np.stack([np.asarray(band) for band in bands])
