"""Where the pixels of anchors come from: tiles of a pair store, or pictures, brought to the same bands and size."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign.captions.pictures import Pictures
from grafalign.encoders import select_bands
from grafalign.errors import DamagedError, InputError
from grafalign.photos.exif import PhotoError
from grafalign.store import PairStore
from grafalign.store_marker import Sensor

Floats = npt.NDArray[np.float32]
PICTURE_BANDS = ('red', 'green', 'blue')


class Pixels(Protocol):
    """Reads images [C, H, W] of one sensor by their rows."""

    def read(self, row: int) -> npt.NDArray[np.generic]:
        """Pixels as they are stored.

        Raises:
            GrafalignError: they cannot be read.
        """

    def radiometry(self, rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Scale and offset that make them physical values, [n, C] each."""


class TilePixels:
    """Tiles of a pair store.

    Args:
        store: the store.
        bands: positions of the wanted bands.
        rows: the tiles that row 0, 1, ... stand for; all of the store's by default.
    """

    def __init__(self, store: PairStore, bands: list[int], rows: npt.NDArray[np.int64] | None = None) -> None:
        self._store, self._bands, self._rows = store, bands, rows

    def read(self, row: int) -> npt.NDArray[np.generic]:
        """See `Pixels`."""
        pixels = self._store.read_tile(row if self._rows is None else int(self._rows[row]))[self._bands]
        if np.issubdtype(pixels.dtype, np.inexact) and not np.isfinite(pixels).all():
            raise DamagedError('it holds numbers that are not finite')
        return pixels

    def radiometry(self, rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """See `Pixels`."""
        scale, offset = self._store.radiometry
        rows = rows if self._rows is None else self._rows[rows]
        return scale[rows][:, self._bands], offset[rows][:, self._bands]


class PicturePixels:
    """8-bit pictures: the shorter side to the sensor's size, the middle taken, as CLIP's own preprocessing does.

    Their scale and offset bring 0 to 255 to the sensor's value range, so that pictures and tiles can share a batch.

    Args:
        pictures: the pictures of a caption set.
        sensor: bands and size.

    Raises:
        GrafalignError: a band of the sensor is no colour, or pictures are addresses.
    """

    def __init__(self, pictures: Pictures, sensor: Sensor) -> None:
        self._pictures, self._size = pictures, sensor.size_px
        if pictures.remote:
            raise InputError(
                f'{pictures.remote:,} images of {pictures.path} are addresses, and no training fetches them in every '
                f'epoch; run `grafalign captions pack {pictures.path} SHARDS` and import the shards.'
            )
        self._bands = select_bands(PICTURE_BANDS, sensor.bands, 'a picture')
        low, high = sensor.value_range
        self._scale, self._offset = (high - low) / 255, low

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """See `Pixels`."""
        size = self._size
        try:
            image = self._pictures.read(row, 2 * size)
        except PhotoError as error:
            raise DamagedError(str(error)) from None
        short = min(image.size)
        if short != size:
            across, down = (int(size * v / short) for v in image.size)
            if max(across, down) > _LONGEST_STRIP * size:
                raise DamagedError('a strip, not a picture')
            image = image.resize((across, down), Image.Resampling.BICUBIC)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        middle = np.asarray(image)[top : top + size, left : left + size]
        return np.ascontiguousarray(middle.transpose(2, 0, 1)[self._bands])

    def radiometry(self, rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """See `Pixels`."""
        shape = len(rows), len(self._bands)
        return np.full(shape, self._scale, np.float32), np.full(shape, self._offset, np.float32)


_LONGEST_STRIP = 40
"""Sides of a picture differ less than this: a hair of one pixel would be enlarged to gigabytes."""
