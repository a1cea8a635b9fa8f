"""The pixels of scenes as rows from the top down: every block of their files is fetched and decoded once.

Scenes lie over one grid; where the first has nothing, the next one's pixel is taken. Numbers are made physical before
they are mixed, and brought to 0 to 1 by the model's one value range: never a stretch of a scene or a part of one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from grafalign.encoders.preprocessing import to_unit
from grafalign.scenes import BandSource, Cut, RangeReader, SceneCutter, SceneTiles, Uncut

PIECE = 128, 512
"""Rows and columns of the pieces that are cut; rows of pieces are what is held in memory."""
_THREADS = 4
_AHEAD = 2
"""Requests in flight: what they decode waits in memory until the encoder has come so far."""
_REQUEST_BYTES = 64 << 20
"""What one request decodes at most: smooth scenes are stored in a tenth of their bytes."""


@dataclass
class Strip:
    """Rows of pixels of all scenes together."""

    row: int
    """The first one."""
    values: npt.NDArray[np.float32]
    """[C, rows, W] in 0 to 1; 0 where missing."""
    source: npt.NDArray[np.uint8]
    """[rows, W]: number of the scene that a pixel is from, counted from 1; 0 where all are missing."""


class Strips:
    """Reads rows of pixels, each once, with rising numbers.

    Args:
        box: the grid.
        scenes: bands of each scene, the one that goes first in front; C bands each.
        value_range: physical values that become 0 and 1.
        reader: fetches bytes of remote files.
        first: the first row that will be asked for.
        last: the row before which reading ends.
    """

    def __init__(
        self,
        box: GeoBox,
        scenes: Sequence[Sequence[BandSource]],
        value_range: tuple[float, float],
        reader: RangeReader,
        first: int,
        last: int,
    ) -> None:
        self._box, self._scenes, self._range = box, scenes, value_range
        self._begin = first // PIECE[0] * PIECE[0]
        self.last = last
        """The row before which reading ends."""
        self._held: list[Strip] = []
        self._strips = self._read(reader)
        self.failed: list[tuple[int, str]] = []
        """First row and reason of each piece of a scene that could not be read."""

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [C, rows, W] and where there are any [rows, W]."""
        strip = self.strip(start, stop)
        return torch.from_numpy(strip.values), torch.from_numpy(strip.source > 0)

    def strip(self, start: int, stop: int) -> Strip:
        """Some rows; read if they are not held yet."""
        while not self._held or self._held[-1].row + len(self._held[-1].source) < stop:
            self._held.append(next(self._strips))
        parts = [s for s in self._held if s.row < stop and s.row + len(s.source) > start]
        cuts = [slice(max(0, start - s.row), min(len(s.source), stop - s.row)) for s in parts]
        values = np.concatenate([s.values[:, cut] for s, cut in zip(parts, cuts, strict=True)], axis=1)
        source = np.concatenate([s.source[cut] for s, cut in zip(parts, cuts, strict=True)])
        return Strip(start, values, source)

    def drop(self, before: int) -> None:
        """Forget rows that will not be asked for again."""
        self._held = [s for s in self._held if s.row + len(s.source) > before]

    def close(self) -> None:
        """Stop reading."""
        self._strips.close()

    def _read(self, reader: RangeReader) -> Generator[Strip, None, None]:
        height, width = self._box.shape
        tops = range(self._begin, min(self.last, height), PIECE[0])
        lefts = range(0, width, PIECE[1])
        boxes = [_piece(self._box, top, left) for top in tops for left in lefts]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix='strips') as pool:
            cutter = SceneCutter(pool, reader, _AHEAD, Resampling.bilinear, _REQUEST_BYTES)
            readers = [_InOrder(cutter.cut([SceneTiles(bands, boxes)]), len(lefts)) for bands in self._scenes]
            try:
                for number, top in enumerate(tops):
                    rows = min(PIECE[0], height - top)
                    strip = Strip(
                        top,
                        np.zeros((len(self._scenes[0]), rows, width), np.float32),
                        np.zeros((rows, width), np.uint8),
                    )
                    for scene, pieces in enumerate(readers, start=1):
                        for column, piece in enumerate(pieces.row(number)):
                            self._lay(strip, piece, lefts[column], scene)
                    yield strip
            finally:
                for pieces in readers:
                    pieces.close()

    def _lay(self, strip: Strip, piece: Cut | str, left: int, scene: int) -> None:
        """Put a piece of a scene where nothing is yet."""
        if isinstance(piece, str):
            self.failed.append((strip.row, piece))
            return
        rows, width = strip.source.shape
        inside = slice(0, rows), slice(0, min(PIECE[1], width - left))
        columns = slice(left, left + inside[1].stop)
        take = ~piece.missing[inside] & (strip.source[:, columns] == 0)
        if not take.any():
            return
        scale, offset = (np.asarray(v, np.float32)[:, None, None] for v in (piece.scale, piece.offset))
        unit = to_unit(piece.pixels[:, *inside].astype(np.float32) * scale + offset, *self._range)
        strip.values[:, :, columns] = np.where(take, unit, strip.values[:, :, columns])
        strip.source[:, columns][take] = scene


def _piece(box: GeoBox, top: int, left: int) -> GeoBox:
    return GeoBox(PIECE, box.affine * Affine.translation(left, top), box.crs)


class _InOrder:
    """Pieces of one scene, row of pieces by row of pieces, though they are completed in another order."""

    def __init__(self, cuts: Generator[tuple[int, Cut | Uncut], None, None], columns: int) -> None:
        self._cuts, self._columns = cuts, columns
        self._waiting: dict[int, Cut | str] = {}

    def row(self, number: int) -> Iterator[Cut | str]:
        """The pieces of a row from left to right; a reason in place of one that could not be read."""
        first = number * self._columns
        for index in range(first, first + self._columns):
            while index not in self._waiting:
                _, cut = next(self._cuts)
                self._waiting[cut.number] = cut if isinstance(cut, Cut) else cut.reason
            yield self._waiting.pop(index)

    def close(self) -> None:
        """Stop reading."""
        self._cuts.close()
