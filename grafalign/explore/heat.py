"""Heat of words over a field, as tiles of a web map.

A tile that shows less than a cell a pixel reads the cells under it from disk. Coarser ones are read from means over
squares of cells, which are made once and kept in memory, at most `_KEPT_BYTES` of a field: a new word is one product
with them.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import map_coordinates

from grafalign import console
from grafalign.explore.grid import FieldGrid, tile_box
from grafalign.fields import Field

_KEPT_BYTES = 96 << 20
_KEPT_SCORES = 32
"""Words whose coarse scores are kept."""
_FADE = 0.7, 0.998
"""Quantiles of a field's scores between which heat goes from nothing to full."""
_RAMP = np.array([[59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], dtype=float)
"""Colours of heat from low to high (matplotlib's magma)."""
Floats = npt.NDArray[np.float32]


class Heat:
    """Heat over one field.

    Args:
        field: the field.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.grid = FieldGrid(field.cells)
        self._lock = threading.Lock()
        self._scores: OrderedDict[str, tuple[Floats, float, float]] = OrderedDict()
        rows, columns = field.shape
        self.factor = 1
        while rows * columns // self.factor**2 * field.plan.dimensions * 4 > _KEPT_BYTES:
            self.factor *= 2
        self._coarse = self._means()
        self._known = self._coarse.any(-1)

    def _means(self) -> Floats:
        """Mean embeddings of squares of cells, [r, c, D]; 0 where none is known."""
        factor, rows = self.factor, self.field.shape[0]
        step = max(factor, 64 // factor * factor)
        parts = []
        with console.progress(f'reading {self.field.path.name}', rows) as bar:
            for top in range(0, rows, step):
                cells = self.field.embeddings(slice(top, min(top + step, rows)))
                known = (cells != 0).any(-1)
                sums = _squares(cells, factor)
                count = _squares(known[..., None].astype(np.float32), factor)
                parts.append(sums / np.maximum(count, 1))
                bar.advance(len(cells))
        return np.concatenate(parts)

    def scores(self, key: str, vector: Floats) -> tuple[Floats, float, float]:
        """Scores of all squares [r, c], NaN where nothing is known, and those at which heat begins and is full.

        Args:
            key: of the vector.
            vector: [D]
        """
        with self._lock:  # several tiles of a new word are asked for at once, and need it computed once
            if key in self._scores:
                self._scores.move_to_end(key)
                return self._scores[key]
            scores = self._coarse @ np.asarray(vector, np.float32)
            scores[~self._known] = np.nan
            low, high = np.nanquantile(scores, _FADE) if self._known.any() else (0.0, 1.0)
            self._scores[key] = scores, float(low), float(max(high, low + 1e-6))
            while len(self._scores) > _KEPT_SCORES:
                self._scores.popitem(last=False)
            return self._scores[key]

    def tile(self, key: str, vector: Floats, z: int, x: int, y: int) -> bytes | None:
        """A tile as PNG; None where the field is not.

        Args:
            key: of the vector.
            vector: [D]
            z: zoom level.
            x: column of the tile.
            y: row of the tile.

        Raises:
            ValueError: there is no such tile.
        """
        places = self.grid.under(tile_box(z, x, y))
        if places is None:
            return None
        coarse, low, high = self.scores(key, vector)
        rows, columns = self.field.shape
        if self.factor == 1 or places.step > 1:
            values, factor, origin = coarse, self.factor, (0, 0)
        else:
            top, bottom = _span(places.rows, rows)
            left, right = _span(places.columns, columns)
            cells = self.field.embeddings(slice(top, bottom), slice(left, right))
            values, factor, origin = cells @ vector, 1, (top, left)
            values[~(cells != 0).any(-1)] = np.nan
        at = [(places.rows + 0.5 - origin[0]) / factor - 0.5, (places.columns + 0.5 - origin[1]) / factor - 0.5]
        known = np.isfinite(values)
        heat = map_coordinates(np.where(known, values, low), at, order=1, mode='nearest')
        there = map_coordinates(known.astype(np.float32), at, order=0, mode='nearest') > 0.5
        inside = (places.rows > -0.5) & (places.rows < rows - 0.5)
        inside &= (places.columns > -0.5) & (places.columns < columns - 0.5)
        return _png(np.clip((heat - low) / (high - low), 0, 1), there & inside)


def _span(places: npt.NDArray[np.float64], count: int) -> tuple[int, int]:
    """Rows, or columns, of cells that places lie between."""
    first = int(np.clip(np.floor(places.min()), 0, count - 1))
    return first, int(np.clip(np.ceil(places.max()) + 1, first + 1, count))


def _squares(values: Floats, factor: int) -> Floats:
    """Sums over squares of `factor` x `factor`, [r, c, D]; the last ones may be cut off.

    Example:
        >>> _squares(np.ones((3, 3, 1), np.float32), 2)[..., 0].tolist()
        [[4.0, 2.0], [2.0, 1.0]]
    """
    if factor == 1:
        return values
    down = np.add.reduceat(values, range(0, values.shape[0], factor), axis=0)
    return np.asarray(np.add.reduceat(down, range(0, values.shape[1], factor), axis=1))


def _palette() -> bytes:
    """Colours and opacity of heat, 0 for none and 1 to 255 for 0 to 1; opacity grows with it."""
    heat = np.linspace(0, 1, 255)
    stops = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(heat, stops, band) for band in _RAMP.T] + [255 * np.sqrt(heat)], axis=1)
    return np.concatenate([np.zeros((1, 4)), colours]).round().astype(np.uint8).tobytes()


_PALETTE = _palette()


def _png(heat: npt.NDArray[np.floating], there: npt.NDArray[np.bool_]) -> bytes:
    """Heat from 0 to 1 as a picture with a palette."""
    image = Image.fromarray(np.where(there, np.rint(1 + 254 * heat), 0).astype(np.uint8), mode='P')
    image.putpalette(_PALETTE, 'RGBA')
    buffer = io.BytesIO()
    image.save(buffer, 'PNG', compress_level=1)
    return buffer.getvalue()
