"""Cut many tiles of one scene, touching every block of its files once.

A file's pixels lie in blocks that can only be fetched and decoded whole, and a tile of 224 pixels covers parts of one
to four (or more) of them. Reading tile by tile therefore fetches most blocks several times, and a cache helps only
while neighbouring tiles happen to be read close together. Here the blocks are planned: all that any tile needs are
listed once, those that lie side by side in the file are fetched with one request, each is decoded once, its parts are
copied to all tiles that want them, and it is forgotten. Runs of blocks go in the order of the tiles, so tiles are
completed in about that order and only a few are open at a time.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from grafalign.scenes.opening import SceneReadError
from grafalign.scenes.radiometry import BandSource
from grafalign.scenes.raster import Block, BlockError, Grid, Raster
from grafalign.scenes.tiles import Footprints, TilePart, footprints
from grafalign.web.ranges import RangeReader

_GAP_BYTES = 1024
"""Blocks that are no further apart in their file are fetched together (COGs have 8 bytes between blocks)."""
RUN_BYTES = 32 << 20
"""Largest single request: what a thread holds at a time."""
_SCENES_AHEAD = 4
"""Scenes whose headers are fetched while an earlier one is read."""


@dataclass(frozen=True)
class Cut:
    """One tile cut out of a scene."""

    number: int
    """Which of the scene's boxes."""
    pixels: npt.NDArray[np.generic]
    """[C, H, W] as stored (scale and offset not applied, missing pixels 0)."""
    missing: npt.NDArray[np.bool_]
    """[H, W]: pixels that are missing in any of the files."""
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    """[C]: physical = stored * scale + offset."""
    not_finite: float = 0.0
    """Share of the pixels that the files hold there and that are NaN or infinite in any band; all of them missing."""


@dataclass(frozen=True)
class Uncut:
    """A tile for which the scene could not be read."""

    number: int
    """Which of the scene's boxes."""
    reason: str


@dataclass
class _File:
    """One file of the scene, the bands wanted of it, and where they go in the tile."""

    raster: Raster
    bands: list[int]
    places: list[int]
    nodata: tuple[float, ...]
    scales: list[float]
    offsets: list[float]
    """What the numbers of each band mean."""
    parts: dict[int, TilePart] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Blocks that are fetched together."""

    file: int
    blocks: list[Block]
    first: int
    """Number of the first tile that wants one of them."""


def merge_blocks(blocks: Sequence[Block], most: int | None = None) -> list[list[Block]]:
    """Group blocks that lie side by side in their file, in the order of their bytes; `most` of them in a group."""
    runs: list[list[Block]] = []
    for block in sorted(blocks, key=lambda b: (b.start, b.band, b.row, b.col)):
        last = runs[-1] if runs else None
        if (
            last
            and block.nbytes
            and last[-1].nbytes
            and block.start - (last[-1].start + last[-1].nbytes) <= _GAP_BYTES
            and block.start + block.nbytes - last[0].start <= RUN_BYTES
            and (most is None or len(last) < most)
        ):
            last.append(block)
        else:
            runs.append([block])
    return runs


@dataclass(frozen=True)
class SceneTiles:
    """Bands of one scene, and the tiles to cut out of them."""

    bands: Sequence[BandSource]
    """C bands; all of one data type."""
    boxes: Sequence[GeoBox]
    """Tiles of one shape, in reading order."""


class SceneCutter:
    """Cuts tiles of scenes with a pool of threads.

    Args:
        pool: runs fetching and decoding.
        reader: fetches bytes of remote files.
        ahead: runs of blocks in flight at most, which bounds memory.
        resampling: how tiles are warped that are not on a file's grid.
        decoded_bytes: largest run once it is decoded; by default only its stored bytes count (`RUN_BYTES`).
    """

    def __init__(
        self,
        pool: Executor,
        reader: RangeReader,
        ahead: int,
        resampling: Resampling = Resampling.bilinear,
        decoded_bytes: int | None = None,
    ) -> None:
        self._pool, self._reader, self._ahead, self._resampling = pool, reader, ahead, resampling
        self._decoded_bytes = decoded_bytes

    def cut(self, scenes: Sequence[SceneTiles]) -> Generator[tuple[int, Cut | Uncut], None, None]:
        """Cut tiles from several scenes; while one is read, the files of the next ones are opened.

        Args:
            scenes: what is wanted of each.

        Yields:
            Number of the scene and one `Cut` or `Uncut` for each of its tiles, in the order in which they are complete.
        """
        opening: deque[tuple[int, list[Future[_File]]]] = deque()
        waiting = iter(enumerate(scenes))
        active: dict[int, _Cutting] = {}
        pending: dict[Future[None], int] = {}
        runs: Iterator[tuple[int, Run]] = iter(())
        try:
            while True:
                while len(opening) < _SCENES_AHEAD and (following := next(waiting, None)) is not None:
                    opening.append((following[0], self._open(following[1])))
                while len(pending) < self._ahead:
                    if (run := next(runs, None)) is not None:
                        pending[self._pool.submit(active[run[0]].read, run[1])] = run[0]
                    elif opening:
                        number, files = opening.popleft()
                        cutting = active[number] = _Cutting(
                            files, scenes[number], self._resampling, self._decoded_bytes
                        )
                        runs = iter([(number, r) for r in cutting.runs])
                        if following is not None:
                            break  # open another one before going on
                    else:
                        break
                busy = set(pending.values())
                for number, cutting in list(active.items()):
                    yield from ((number, done) for done in cutting.take())
                    if number not in busy and cutting.finished:
                        active.pop(number).close()
                if not pending:
                    if not opening and following is None:
                        if active:
                            raise RuntimeError('tiles were left over')  # a tile waits for a block that nobody reads
                        return
                    continue
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    del pending[future]
                    future.result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)
            for _, files in opening:
                for file in wait(files).done:
                    if file.exception() is None:
                        file.result().raster.close()
            for cutting in active.values():
                cutting.close()

    def _open(self, scene: SceneTiles) -> list[Future[_File]]:
        """Start to open the scene's files, all at once."""
        by_href: dict[str, list[int]] = defaultdict(list)
        for place, band in enumerate(scene.bands):
            by_href[band.href].append(place)
        gsd_m = abs(scene.boxes[0].affine.a)

        def open_file(href: str, places: list[int]) -> _File:
            sources = [scene.bands[p] for p in places]
            stated = tuple(dict.fromkeys(value for s in sources for value in s.nodata))
            raster = Raster(
                href,
                self._reader,
                gsd_m,
                data_bands=sorted({band for s in sources for band in (*s.data_bands, s.index)}),
                nodata=bool(stated),
                mask=all(s.mask for s in sources),
            )
            bands = [s.index for s in sources]
            if max(bands) > raster.count:
                raise SceneReadError(f'{href}: has {raster.count} bands, no band {max(bands)}')
            scales, offsets = zip(*(_radiometry(raster, s) for s in sources), strict=True)
            nodata = stated if raster.nodata is None else (*stated, raster.nodata)
            return _File(raster, bands, places, nodata, list(scales), list(offsets))

        return [self._pool.submit(open_file, href, places) for href, places in by_href.items()]


def _radiometry(raster: Raster, band: BandSource) -> tuple[float, float]:
    """Scale and offset of a band: as its item or recipe states them, else as its file does.

    Raises:
        SceneReadError: those of the file make no sense.
    """
    if band.scale is not None and band.offset is not None:
        return band.scale, band.offset
    scale, offset = raster.scales[band.index - 1], raster.offsets[band.index - 1]
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise SceneReadError(
            f'{raster.href}: scale {scale:g} and offset {offset:g} of band {band.index} make no sense; set them in '
            'sensor.overrides'
        )
    return scale, offset


class _Cutting:
    """The state of cutting one scene's tiles; blocks arrive from several threads."""

    def __init__(
        self, opening: list[Future[_File]], scene: SceneTiles, resampling: Resampling, decoded_bytes: int | None
    ) -> None:
        self._tiles, self._bands = scene.boxes, len(scene.bands)
        self._lock = threading.Lock()
        self._planes: dict[int, list[tuple[_File, npt.NDArray[np.generic], npt.NDArray[np.bool_]]]] = defaultdict(list)
        self._wanting: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        self._done: list[Cut | Uncut] = []
        self._not_finite: dict[int, float] = {}
        self._problems: dict[int, list[tuple[int, int, int, str]]] = defaultdict(list)
        self._left = len(scene.boxes)
        self.runs: list[Run] = []
        """What to read, in reading order."""
        self._files, problem = [], ''
        for future in opening:
            try:
                self._files.append(future.result())
            except SceneReadError as error:
                problem = problem or str(error)
        kinds = {file.raster.dtypes[b - 1] for file in self._files for b in file.bands}
        if not problem and len(kinds) > 1:
            problem = f'{scene.bands[0].href}: bands are stored as {", ".join(sorted(kinds))}'
        by_band = sorted(b for f in self._files for b in zip(f.places, f.scales, f.offsets, strict=True))
        self._radiometry = tuple(scale for _, scale, _ in by_band), tuple(offset for *_, offset in by_band)
        self._parts_left = dict.fromkeys(range(len(scene.boxes)), len(self._files))
        if not problem:
            try:
                self._plan(resampling, decoded_bytes)
            except (SceneReadError, ProjError, RasterioError, ValueError) as error:
                problem = f'{scene.bands[0].href}: its grid cannot be used ({error})'
                self.runs = []
        if problem:
            self._done = [Uncut(number, problem) for number in range(len(scene.boxes))]

    def _plan(self, resampling: Resampling, decoded_bytes: int | None) -> None:
        known: dict[Grid, Footprints] = {}
        beside = []
        for index, file in enumerate(self._files):
            raster = file.raster
            if raster.grid not in known:
                known[raster.grid] = footprints(raster.grid, self._tiles, resampling)
            place = known[raster.grid]
            columns = (place.aligned.tolist(), map(tuple, place.windows.tolist()), map(tuple, place.scale.tolist()))
            for number, (aligned, window, scale) in enumerate(zip(*columns, strict=True)):
                file.parts[number] = TilePart(
                    raster, self._tiles[number], file.bands, file.nodata, resampling, aligned, window, scale
                )
            numbers = [n for n, part in file.parts.items() if not part.empty]
            beside += [(index, n) for n, part in file.parts.items() if part.empty]
            windows = [file.parts[n].window for n in numbers]
            distinct: dict[Block, int] = {}
            for number, blocks in zip(numbers, raster.blocks(sorted(set(file.bands)), windows), strict=True):
                file.parts[number].waiting = len(blocks)
                for block in blocks:
                    distinct.setdefault(block, number)
                    self._wanting[index, block.band, block.row, block.col].append(number)
            most = None if decoded_bytes is None else max(1, decoded_bytes // raster.decoded_bytes)
            runs = merge_blocks(list(distinct), most)
            self.runs += [Run(index, run, min(distinct[b] for b in run)) for run in runs]
        self.runs.sort(key=lambda r: (r.first, r.file))
        for index, number in beside:
            self._finish(index, number)

    @property
    def finished(self) -> bool:
        """Whether all tiles were taken."""
        return not self._left

    def take(self) -> list[Cut | Uncut]:
        """Tiles that are complete and were not taken yet."""
        with self._lock:
            taken, self._done = self._done, []
        self._left -= len(taken)
        return taken

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.raster.close()

    def read(self, run: Run) -> None:
        """Read one run of blocks and hand its pixels to the tiles that want them."""
        raster, bands = self._files[run.file].raster, self._files[run.file].bands
        left = run.blocks
        while left:
            try:
                for block, pixels, valid in raster.decode(left, bands):
                    self._hand_out(run.file, block, pixels, valid)
                    left = left[1:]
            except BlockError as error:  # this one is damaged; those behind it need not be
                self._hand_out(run.file, left[0], None, None, str(error))
                left = left[1:]
            except SceneReadError as error:
                for block in left:
                    self._hand_out(run.file, block, None, None, str(error))
                return

    def _hand_out(
        self,
        index: int,
        block: Block,
        pixels: npt.NDArray[np.generic] | None,
        valid: npt.NDArray[np.bool_] | None,
        problem: str = '',
    ) -> None:
        """Copy a block to the tiles that want it, or note why it could not be read."""
        file = self._files[index]
        col, row = block.col * file.raster.block_width, block.row * file.raster.block_height
        for number in self._wanting[index, block.band, block.row, block.col]:
            part = file.parts[number]
            with self._lock:  # the first block makes the array; copying is quick
                if pixels is None:
                    self._problems[number].append((index, block.row, block.col, problem))
                else:
                    part.paste(block.band, col, row, pixels, valid)
                part.waiting -= 1
                complete = part.waiting == 0
            if complete:
                self._finish(index, number)

    def _finish(self, index: int, number: int) -> None:
        """One file's share of a tile is through; with the last share the tile is decided."""
        file = self._files[index]
        part = file.parts.pop(number)
        plane = None
        if number not in self._problems:
            try:
                plane = part.finish()
            except (RasterioError, ProjError, ValueError) as error:
                with self._lock:
                    self._problems[number].append((index, -1, -1, f'{file.raster.href}: cannot be warped ({error})'))
        with self._lock:
            if plane is not None:
                self._planes[number].append((file, *plane))
                self._not_finite[number] = max(self._not_finite.get(number, 0.0), part.not_finite)
            self._parts_left[number] -= 1
            if self._parts_left[number]:
                return
            planes, problems = self._planes.pop(number, []), self._problems.get(number)
        if problems:  # whichever thread came first, the same one is told
            result: Cut | Uncut = Uncut(number, min(problems)[-1])
        else:
            tile = np.zeros((self._bands, *self._tiles[number].shape), dtype=planes[0][1].dtype)
            holes = np.zeros(self._tiles[number].shape, dtype=bool)
            for source, pixels, missing in planes:
                tile[source.places] = pixels
                holes |= missing
            tile[:, holes] = 0
            scale, offset = self._radiometry
            result = Cut(number, tile, holes, scale, offset, self._not_finite.pop(number, 0.0))
        with self._lock:
            self._done.append(result)
