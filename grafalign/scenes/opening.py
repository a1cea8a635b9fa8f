"""Open datasets that pass from thread to thread, over bytes that are at hand.

GDAL parses and decodes, but fetches nothing of a remote file by itself: it is given a file object that holds the
header, read with one request, and the bytes of the blocks about to be decoded.
"""

from __future__ import annotations

import contextvars
import io
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from grafalign.foreign import ForeignFileError
from grafalign.foreign.rasters import ALONE, check_references, open_raster, raster_driver
from grafalign.web.ranges import RangeError, RangeReader

HEADER_BYTES = 32_768
"""First request for a file: the directories of a COG of 10,980 x 10,980 pixels with its overviews take 10 to 20 kB."""
_ON_DEMAND_BYTES = 65_536
"""Least bytes fetched when GDAL asks for something that was not planned (a mask, a long header)."""
_READ_BYTES = 64 << 20
"""Largest piece of a remote file that GDAL may ask for besides blocks: what it says of itself may be wrong."""
_names = itertools.count()
_SETTINGS = {'GDAL_CACHEMAX': 64, **ALONE}
"""A small block cache, as every block is read once; GDAL looks for no files beside an asset; a mask there is
`grafalign.scenes.mask_file`'s."""


class SceneReadError(Exception):
    """An asset could not be opened or read; the text says which and why."""


def read_failure(error: Exception) -> str:
    """Why reading failed: what GDAL said first, where rasterio only says that something did."""
    return str(error.__cause__ or error)


@dataclass(frozen=True)
class Handle:
    """An open dataset, the file under it, and the context that it was opened in.

    rasterio notes a file's opener in context variables, which are a thread's own; so the context goes with the dataset
    from thread to thread, and whatever may look for files runs in it.
    """

    dataset: DatasetReader
    file: _HeldBytes
    context: contextvars.Context
    _scratch: list[npt.NDArray[np.generic]] = field(default_factory=list)

    def scratch(self, bands: list[int], window: Window) -> npt.NDArray[np.generic]:
        """An array for a block, the same memory each time: fresh pages for every block take as long as its decoding."""
        count = len(bands) * window.height * window.width
        if not self._scratch or self._scratch[0].size < count:
            self._scratch[:] = [np.empty(count, dtype=self.dataset.dtypes[bands[0] - 1])]
        return self._scratch[0][:count].reshape(len(bands), window.height, window.width)

    def close(self) -> None:
        """Close the dataset."""
        self.context.run(self.dataset.close)


def open_local(path: str, reader: RangeReader, **options: Any) -> Handle:
    """Open a file of this machine.

    Args:
        path: of the file.
        reader: not asked for anything; a handle has one.
        options: rasterio's.
    """
    with rasterio.Env(**_SETTINGS):
        dataset = open_raster(Path(path), **options)
        return Handle(dataset, _HeldBytes(path, reader, b''), contextvars.copy_context())


def open_remote(href: str, reader: RangeReader, header: bytes, **options: Any) -> Handle:
    """Open a remote file.

    Args:
        href: URL that `reader` understands.
        reader: fetches bytes that are not at hand.
        header: the file's first bytes.
        options: rasterio's.

    Raises:
        ForeignFileError: the file is of no kind that is read, or refers to others.
        RangeError: its bytes could not be had.
        SceneReadError: it is damaged.
    """
    driver = raster_driver(header)
    file = _HeldBytes(href, reader, header)
    name = f'/{next(_names)}/asset.tif'  # rasterio keeps openers by folder: one of its own for every handle

    def opener(path: str, mode: str = 'r') -> _HeldBytes:
        if path != name:  # GDAL looks for side-car files; a STAC asset has none
            raise FileNotFoundError(path)
        return file

    with rasterio.Env(**_SETTINGS):
        context = contextvars.copy_context()
        try:
            dataset = context.run(rasterio.open, name, opener=opener, driver=driver, **options)
        except RasterioError:
            raise file.problem or SceneReadError('is damaged') from None
        handle = Handle(dataset, file, context)
        try:
            context.run(check_references, dataset)
        except ForeignFileError:
            handle.close()
            raise
        return handle


class _HeldBytes(io.RawIOBase):
    """A remote file of which the header and one stretch are at hand; anything else is fetched when asked for."""

    def __init__(self, href: str, reader: RangeReader, header: bytes) -> None:
        self._href, self._reader = href, reader
        self._header, self._held, self._extra = (0, header), (0, b''), (0, b'')
        self._at = 0
        self.problem: RangeError | None = None
        """Why reading failed; GDAL can only be told that it did."""

    def hold(self, start: int, content: bytes) -> None:
        """Have these bytes at hand, and no longer those of the last call."""
        self._held, self.problem = (start, content), None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            try:
                offset += self._reader.size(self._href)
            except RangeError as error:
                self.problem = error
        self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self._reader.size(self._href) - self._at)
        for start, content in (self._held, self._header, self._extra):
            if start <= self._at and self._at + size <= start + len(content):
                found = content[self._at - start : self._at - start + size]  # no copy where it is all of it
                break
        else:
            try:
                if size > _READ_BYTES:
                    raise RangeError(f'it claims a piece of {size >> 20} MB, so it is damaged')
                content = self._reader.read(self._href, self._at, max(size, _ON_DEMAND_BYTES))
            except RangeError as error:
                self.problem = error
                return b''
            self._extra = (self._at, content)
            found = content[:size]
        self._at += len(found)
        return found

    def close(self) -> None:
        """Nothing to close: GDAL opens and closes a file several times while it recognises it."""
