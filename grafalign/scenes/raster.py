"""One raster file: its grid, the byte ranges of its blocks, and handles that decode blocks from bytes at hand.

GDAL parses and decodes, but fetches nothing of a remote file by itself: it is given a file object that holds the
header, read with one request, and the bytes of the blocks about to be decoded. So what is requested follows from the
plan of blocks (`grafalign.scenes.blocks`), not from the order in which windows happen to be read.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import itertools
import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from grafalign.engine import default_workers
from grafalign.foreign import ForeignFileError
from grafalign.foreign.rasters import ALONE, check_references, open_raster, raster_driver
from grafalign.geo import METRES_PER_DEGREE
from grafalign.scenes.ranges import RangeError, RangeReader

HEADER_BYTES = 32_768
"""First request for a file: the directories of a COG of 10,980 x 10,980 pixels with its overviews take 10 to 20 kB."""
_ON_DEMAND_BYTES = 65_536
"""Least bytes fetched when GDAL asks for something that was not planned (a mask, a long header)."""
_DECODING = threading.BoundedSemaphore(default_workers())
"""Many threads wait for servers, but decoding in more of them than there are cores only wears out the caches."""
_names = itertools.count()
_SETTINGS = {'GDAL_CACHEMAX': 64, **ALONE}
"""A small block cache, as every block is read once; GDAL looks for no files beside an asset, `Raster` itself for its
mask."""
_BLOCK_BYTES = 256 << 20
"""Largest decoded block: a file in one piece would have to be in memory whole, in every thread."""
_READ_BYTES = 64 << 20
"""Largest piece of a remote file that GDAL may ask for besides blocks: what it says of itself may be wrong."""
_BLOCK_SLACK = 1 << 16
"""Bytes by which a stored block may exceed twice its decoded size: no codec makes more of it."""


class SceneReadError(Exception):
    """An asset could not be opened or read; the text says which and why."""


class BlockError(SceneReadError):
    """One block of a file is damaged; others may be whole."""


@dataclass(frozen=True)
class Block:
    """One internal block of a file."""

    band: int
    """Band number from 1; 0 where a block holds all bands."""
    row: int
    col: int
    start: int
    nbytes: int
    """Where its bytes lie; 0 bytes where it is not stored (all nodata) or not known."""


@dataclass(frozen=True)
class Grid:
    """Where a file's pixels lie."""

    crs_name: str
    """`EPSG:CODE` where there is a code."""
    crs_wkt: str
    transform: Affine
    width: int
    height: int


class Raster:
    """A raster file at one of its resolutions.

    Args:
        href: path, or URL that `reader` understands.
        reader: fetches bytes of remote files.
        gsd_m: the finest resolution wanted, in metres; the coarsest overview that is no coarser is used. None for the
            file's own resolution.
        data_bands: bands that hold data, however they are tagged: an alpha band among them is no mask.
        nodata: whether nodata values are known from elsewhere.
        mask: whether masks and alpha bands of the file count.

    Raises:
        SceneReadError: the file is missing, damaged or no raster.
    """

    def __init__(
        self,
        href: str,
        reader: RangeReader,
        gsd_m: float | None = None,
        *,
        data_bands: Sequence[int] = (),
        nodata: bool = False,
        mask: bool = True,
    ) -> None:
        self.href = href
        self._reader = reader
        self._remote = '://' in href
        self._mask_file: _MaskFile | None = None
        self._level: int | None = None
        self._idle: queue.LifoQueue[_Handle] = queue.LifoQueue()
        self._header = b''
        self._lock = threading.Lock()
        try:
            self._header = reader.read(href, 0, HEADER_BYTES) if self._remote else b''
            handle = self._open()
            if gsd_m is not None and (level := _overview(handle.dataset, gsd_m)) is not None:
                handle.close()
                self._level = level
                handle = self._open()
        except (RasterioError, OSError, ValueError, SceneReadError) as error:
            raise SceneReadError(f'{href}: {_reason(error)}') from None
        self._idle.put(handle)
        dataset = handle.dataset
        if dataset.crs is None:
            raise SceneReadError(f'{href}: {_no_grid(dataset)}')
        self.grid = Grid(
            str(dataset.crs), dataset.crs.to_wkt(), dataset.transform, width=dataset.width, height=dataset.height
        )
        self.count: int = dataset.count
        self.nodata: float | None = dataset.nodata
        self.dtypes: tuple[str, ...] = dataset.dtypes
        self.scales: tuple[float, ...] = dataset.scales
        self.offsets: tuple[float, ...] = dataset.offsets
        self.block_height, self.block_width = dataset.block_shapes[0]
        self.pixel_interleaved = dataset.count == 1 or str(dataset.interleaving).lower().endswith('pixel')
        bands = dataset.count if self.pixel_interleaved else 1
        self._decoded_bytes = self.block_height * self.block_width * bands * np.dtype(dataset.dtypes[0]).itemsize
        if self._decoded_bytes > _BLOCK_BYTES:
            raise SceneReadError(
                f'{href}: one block has {self._decoded_bytes >> 20} MB when decoded; make a tiled copy '
                '(gdal_translate -of COG)'
            )
        nodata = nodata or self.nodata is not None
        self.masked = mask and self._has_mask(dataset, data_bands)
        """Whether a mask or alpha band inside the file says which pixels are valid; or one beside it, where no nodata
        value does."""
        if mask and not self.masked and not nodata:
            self._mask_file = self._mask_beside()
            self.masked = self._mask_file is not None

    def _has_mask(self, dataset: DatasetReader, data_bands: Sequence[int]) -> bool:
        flags = dataset.mask_flag_enums[0]
        if MaskFlags.alpha in flags:
            colours = [colour.name for colour in dataset.colorinterp]
            return all(colours[band - 1] != 'alpha' for band in data_bands if band <= len(colours))
        return MaskFlags.per_dataset in flags

    def _mask_beside(self) -> _MaskFile | None:
        """The file's mask in a file of its own (`FILE.tif.msk`, as GDAL finds it on a disk), where there is one.

        Asked for only where nothing else says which pixels are missing: most scenes state a nodata value.

        Raises:
            SceneReadError: there may be one, and it cannot be read.
        """
        if not self._remote:
            beside = f'{self.href}.msk'
            return _MaskFile(beside, self._reader) if Path(beside).is_file() else None
        address, question, query = self.href.partition('?')
        href = f'{address}.msk{question}{query}'
        try:
            self._reader.read(href, 0, 1)
        except RangeError as error:
            if error.missing:
                return None
            raise SceneReadError(f'{href}: {error}') from None
        return _MaskFile(href, self._reader)

    def blocks(self, bands: list[int], windows: Sequence[tuple[int, int, int, int]]) -> list[list[Block]]:
        """The blocks under each window (col, row, width, height in pixels); every block is one object."""
        known: dict[tuple[int, int, int], Block] = {}
        found: list[list[Block]] = []
        with self.handle() as handle:
            for col, row, width, height in windows:
                here = []
                rows = range(row // self.block_height, (row + height - 1) // self.block_height + 1)
                cols = range(col // self.block_width, (col + width - 1) // self.block_width + 1)
                for key in itertools.product([0] if self.pixel_interleaved else bands, rows, cols):
                    if key not in known:
                        known[key] = self._block(handle.dataset, *key)
                    here.append(known[key])
                found.append(here)
        return found

    def _block(self, dataset: DatasetReader, band: int, row: int, col: int) -> Block:
        place = [
            dataset.get_tag_item(f'BLOCK_{what}_{col}_{row}', 'TIFF', bidx=max(band, 1)) for what in ('OFFSET', 'SIZE')
        ]
        start, nbytes = (int(p) for p in place) if all(place) else (0, 0)
        # a file may claim any size; beyond this one it cannot be true, and decoding what was cut then fails
        return Block(band, row, col, start, min(nbytes, 2 * self._decoded_bytes + _BLOCK_SLACK))

    def window(self, block: Block) -> Window:
        """Pixels of a block that lie inside the raster."""
        col, row = block.col * self.block_width, block.row * self.block_height
        return Window(
            col, row, min(self.block_width, self.grid.width - col), min(self.block_height, self.grid.height - row)
        )

    def decode(
        self, blocks: list[Block], bands: list[int]
    ) -> Iterator[tuple[Block, npt.NDArray[np.generic], npt.NDArray[np.bool_] | None]]:
        """Fetch blocks that lie side by side with one request and decode them one by one.

        Args:
            blocks: in the order of their bytes, without gaps worth skipping.
            bands: band numbers wanted.

        Yields:
            The block, its pixels [bands, h, w] (one band where blocks hold one; valid until the next block), and where
            the file masks them valid [h, w] (None without a mask).

        Raises:
            SceneReadError: the bytes could not be had or decoded.
        """
        try:
            stored = [(b.start, b.nbytes) for b in blocks if b.nbytes]
            arriving = self._reader.stream(self.href, stored) if self._remote and stored else iter(())
            for block in blocks:
                content = next(arriving, b'') if block.nbytes else b''
                window = self.window(block)
                wanted = bands if block.band == 0 else [block.band]
                with _DECODING, self.handle() as handle:
                    handle.file.hold(block.start, content)
                    try:
                        pixels, valid = handle.context.run(self._read, handle, wanted, window)
                    except RasterioError as error:
                        raise handle.file.problem or error from None
                    if handle.file.problem is not None:
                        raise handle.file.problem
                    yield block, pixels, valid
        except RangeError as error:
            raise SceneReadError(f'{self.href}: {error}') from None
        except (RasterioError, OSError, ValueError) as error:
            raise BlockError(f'{self.href}: {_reason(error)}') from None

    def _read(
        self, handle: _Handle, bands: list[int], window: Window
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_] | None]:
        pixels = handle.dataset.read(bands, window=window, out=handle.scratch(bands, window))
        if self._mask_file is not None:
            return pixels, self._mask_file.valid(window, self.grid)
        return pixels, handle.dataset.read_masks(1, window=window) != 0 if self.masked else None

    @contextlib.contextmanager
    def handle(self) -> Iterator[_Handle]:
        """An open dataset that nobody else uses meanwhile."""
        try:
            handle = self._idle.get_nowait()
        except queue.Empty:
            handle = self._open()
        try:
            yield handle
        except BaseException:
            handle.close()
            raise
        handle.file.hold(0, b'')
        self._idle.put(handle)

    def close(self) -> None:
        """Close all idle handles."""
        if self._mask_file is not None:
            self._mask_file.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _open(self) -> _Handle:
        options: dict[str, Any] = {} if self._level is None else {'overview_level': self._level}
        if self._remote:
            with self._lock:
                return _open_remote(self.href, self._reader, self._header, **options)
        with rasterio.Env(**_SETTINGS):
            dataset = open_raster(Path(self.href), **options)
            return _Handle(dataset, _Bytes(self.href, self._reader, b''), contextvars.copy_context())


def _open_remote(href: str, reader: RangeReader, header: bytes, **options: Any) -> _Handle:
    """Open a remote file of which the header is at hand."""
    driver = raster_driver(header)
    file = _Bytes(href, reader, header)
    name = f'/{next(_names)}/asset.tif'  # rasterio keeps openers by folder: one of its own for every handle

    def opener(path: str, mode: str = 'r') -> _Bytes:
        if path != name:  # GDAL looks for side-car files; a STAC asset has none
            raise FileNotFoundError(path)
        return file

    with rasterio.Env(**_SETTINGS):
        context = contextvars.copy_context()
        try:
            dataset = context.run(rasterio.open, name, opener=opener, driver=driver, **options)
        except RasterioError:
            raise file.problem or SceneReadError('is damaged') from None
        handle = _Handle(dataset, file, context)
        try:
            context.run(check_references, dataset)
        except ForeignFileError:
            handle.close()
            raise
        return handle


class _MaskFile:
    """The mask of a file that lies beside it: read when asked for, as masks inside files are."""

    def __init__(self, href: str, reader: RangeReader) -> None:
        self._lock = threading.Lock()
        try:
            if '://' in href:
                self._handle = _open_remote(href, reader, reader.read(href, 0, HEADER_BYTES))
            else:
                context = contextvars.copy_context()
                self._handle = _Handle(open_raster(Path(href)), _Bytes(href, reader, b''), context)
        except (RasterioError, OSError, ValueError, SceneReadError) as error:
            raise SceneReadError(f'{href}: {_reason(error)}') from None

    def valid(self, window: Window, grid: Grid) -> npt.NDArray[np.bool_]:
        """Which pixels [h, w] of a window of the file's grid (or of one of its overviews) are there."""
        with self._lock:
            return self._handle.context.run(self._read, window, grid)

    def _read(self, window: Window, grid: Grid) -> npt.NDArray[np.bool_]:
        mask = self._handle.dataset
        across, down = mask.width / grid.width, mask.height / grid.height
        same = Window(window.col_off * across, window.row_off * down, window.width * across, window.height * down)
        self._handle.file.hold(0, b'')  # an earlier failure says nothing of this read
        try:
            pixels = mask.read(1, window=same, out_shape=(round(window.height), round(window.width)))
        except RasterioError as error:
            raise self._handle.file.problem or error from None
        if self._handle.file.problem is not None:
            raise self._handle.file.problem
        return np.asarray(pixels != 0)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


@dataclass(frozen=True)
class _Handle:
    """An open dataset, the file under it, and the context that it was opened in.

    rasterio notes a file's opener in context variables, which are a thread's own; so the context goes with the dataset
    from thread to thread, and whatever may look for files runs in it.
    """

    dataset: DatasetReader
    file: _Bytes
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


class _Bytes(io.RawIOBase):
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


def _overview(dataset: DatasetReader, gsd_m: float) -> int | None:
    """Index of the coarsest overview whose pixels are no larger than `gsd_m`; None for the full resolution."""
    if dataset.crs is None:
        return None
    own = math.hypot(dataset.transform.a, dataset.transform.d) * metres_per_unit(dataset.crs)
    best = None
    for index, factor in enumerate(dataset.overviews(1)):
        if own * factor <= gsd_m * 1.001:
            best = index
    return best


def metres_per_unit(crs: CRS) -> float:
    """Metres that one unit of a CRS is long: kilometres and feet as the CRS says, degrees along a meridian."""
    if crs.is_geographic:
        return METRES_PER_DEGREE
    return float(crs.linear_units_factor[1])


def _no_grid(dataset: DatasetReader) -> str:
    """Why a file's pixels have no place, and what mends it."""
    if dataset.gcps[0]:
        return (
            'has ground control points and no grid; warp it first (gdalwarp -t_srs EPSG:CODE IN OUT), or take a '
            'product that is terrain-corrected (RTC)'
        )
    return 'has no coordinate reference system; give it one (gdal_edit.py -a_srs EPSG:CODE FILE)'


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error)
