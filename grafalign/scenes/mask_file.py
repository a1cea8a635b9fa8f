"""A mask in a file of its own beside a raster file (`FILE.tif.msk`, as GDAL finds it on a disk)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError
from rasterio.windows import Window

from grafalign.scenes.opening import HEADER_BYTES, SceneReadError, open_local, open_remote, read_failure
from grafalign.web.ranges import RangeError, RangeReader


class MaskFile:
    """The mask of a file that lies beside it: read when asked for, as masks inside files are.

    Args:
        href: path, or URL that `reader` understands.
        reader: fetches bytes of remote files.
        width: of the file, or of the overview of it that is read, in pixels; the mask may be finer or coarser.
        height: likewise.

    Raises:
        SceneReadError: the mask is damaged or no raster.
    """

    def __init__(self, href: str, reader: RangeReader, width: int, height: int) -> None:
        self._lock = threading.Lock()
        try:
            if '://' in href:
                self._handle = open_remote(href, reader, reader.read(href, 0, HEADER_BYTES))
            else:
                self._handle = open_local(href, reader)
        except (RasterioError, OSError, ValueError, SceneReadError) as error:
            raise SceneReadError(f'{href}: {read_failure(error)}') from None
        self._across, self._down = self._handle.dataset.width / width, self._handle.dataset.height / height

    def valid(self, window: Window) -> npt.NDArray[np.bool_]:
        """Which pixels [h, w] of a window of the file are there."""
        with self._lock:
            return self._handle.context.run(self._read, window)

    def _read(self, window: Window) -> npt.NDArray[np.bool_]:
        across, down = self._across, self._down
        same = Window(window.col_off * across, window.row_off * down, window.width * across, window.height * down)
        self._handle.file.hold(0, b'')  # an earlier failure says nothing of this read
        try:
            pixels = self._handle.dataset.read(1, window=same, out_shape=(round(window.height), round(window.width)))
        except RasterioError as error:
            raise self._handle.file.problem or error from None
        if self._handle.file.problem is not None:
            raise self._handle.file.problem
        return np.asarray(pixels != 0)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def mask_beside(href: str, reader: RangeReader, width: int, height: int) -> MaskFile | None:
    """The mask beside a file; None where there is no such file.

    Args:
        href: of the file, as in `MaskFile`.
        reader: fetches bytes of remote files.
        width: of the file as it is read, in pixels.
        height: likewise.

    Raises:
        SceneReadError: there may be one, and it cannot be read.
    """
    if '://' not in href:
        beside = f'{href}.msk'
        return MaskFile(beside, reader, width, height) if Path(beside).is_file() else None
    address, question, query = href.partition('?')
    beside = f'{address}.msk{question}{query}'
    try:
        reader.read(beside, 0, 1)
    except RangeError as error:
        if error.missing:
            return None
        raise SceneReadError(f'{beside}: {error}') from None
    return MaskFile(beside, reader, width, height)
