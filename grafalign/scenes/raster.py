"""One raster file: its grid, the byte ranges of its blocks, and their pixels.

What is requested of a remote file follows from the plan of blocks (`grafalign.scenes.blocks`), not from the order in
which windows happen to be read: GDAL gets the bytes of a block when it is about to decode it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from grafalign.engine import default_workers
from grafalign.geo import unit_metres
from grafalign.scenes.mask_file import MaskFile, mask_beside
from grafalign.scenes.opening import HEADER_BYTES, Handle, SceneReadError, open_local, open_remote, read_failure
from grafalign.web.ranges import RangeError, RangeReader

_DECODING = threading.BoundedSemaphore(default_workers())
"""Many threads wait for servers, but decoding in more of them than there are cores only wears out the caches."""
_BLOCK_BYTES = 256 << 20
"""Largest decoded block: a file in one piece would have to be in memory whole, in every thread."""
_BLOCK_SLACK = 1 << 16
"""Bytes by which a stored block may exceed twice its decoded size: no codec makes more of it."""


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
        self._mask_file: MaskFile | None = None
        self._level: int | None = None
        self._idle: queue.LifoQueue[Handle] = queue.LifoQueue()
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
            raise SceneReadError(f'{href}: {read_failure(error)}') from None
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
        self.decoded_bytes = self.block_height * self.block_width * bands * np.dtype(dataset.dtypes[0]).itemsize
        if self.decoded_bytes > _BLOCK_BYTES:
            raise SceneReadError(
                f'{href}: one block has {self.decoded_bytes >> 20} MB when decoded; make a tiled copy '
                '(gdal_translate -of COG)'
            )
        nodata = nodata or self.nodata is not None
        self.masked = mask and self._has_mask(dataset, data_bands)
        """Whether a mask or alpha band inside the file says which pixels are valid; or one beside it, where no nodata
        value does."""
        if mask and not self.masked and not nodata:
            # asked for only where nothing else says which pixels are missing: most scenes state a nodata value
            self._mask_file = mask_beside(href, reader, dataset.width, dataset.height)
            self.masked = self._mask_file is not None

    def _has_mask(self, dataset: DatasetReader, data_bands: Sequence[int]) -> bool:
        flags = dataset.mask_flag_enums[0]
        if MaskFlags.alpha in flags:
            colours = [colour.name for colour in dataset.colorinterp]
            return all(colours[band - 1] != 'alpha' for band in data_bands if band <= len(colours))
        return MaskFlags.per_dataset in flags

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
        return Block(band, row, col, start, min(nbytes, 2 * self.decoded_bytes + _BLOCK_SLACK))

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
            raise BlockError(f'{self.href}: {read_failure(error)}') from None

    def _read(
        self, handle: Handle, bands: list[int], window: Window
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_] | None]:
        pixels = handle.dataset.read(bands, window=window, out=handle.scratch(bands, window))
        if self._mask_file is not None:
            return pixels, self._mask_file.valid(window)
        return pixels, handle.dataset.read_masks(1, window=window) != 0 if self.masked else None

    @contextlib.contextmanager
    def handle(self) -> Iterator[Handle]:
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

    def _open(self) -> Handle:
        options: dict[str, Any] = {} if self._level is None else {'overview_level': self._level}
        if self._remote:
            with self._lock:
                return open_remote(self.href, self._reader, self._header, **options)
        return open_local(self.href, self._reader, **options)


def _overview(dataset: DatasetReader, gsd_m: float) -> int | None:
    """Index of the coarsest overview whose pixels are no larger than `gsd_m`; None for the full resolution."""
    if dataset.crs is None:
        return None
    own = pixel_metres(dataset.transform, dataset.width, dataset.height, dataset.crs.to_wkt())
    best = None
    for index, factor in enumerate(dataset.overviews(1)):
        if own * factor <= gsd_m * 1.001:
            best = index
    return best


def pixel_metres(transform: Affine, width: int, height: int, wkt: str) -> float:
    """Side of a raster's pixels on the ground, in its middle; of those in degrees along a meridian."""
    return math.hypot(transform.a, transform.d) * unit_metres(wkt, *(transform * (width / 2, height / 2)))


def _no_grid(dataset: DatasetReader) -> str:
    """Why a file's pixels have no place, and what mends it."""
    if dataset.gcps[0]:
        return (
            'has ground control points and no grid; warp it first (gdalwarp -t_srs EPSG:CODE IN OUT), or take a '
            'product that is terrain-corrected (RTC)'
        )
    return 'has no coordinate reference system; give it one (gdal_edit.py -a_srs EPSG:CODE FILE)'
