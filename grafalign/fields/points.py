"""What a field holds at points of the ground, between the middles of its cells as on a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from grafalign import console
from grafalign.fields.field import Field

_ROWS = 64
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Positions:
    """Where points lie in a field, in cells from the middle of the first one."""

    row: Floats
    column: Floats
    inside: npt.NDArray[np.bool_]


def positions_of(field: Field, lonlat: Floats) -> Positions:
    """Where points lie in a field.

    Args:
        field: the field.
        lonlat: degrees, [..., 2].
    """
    grid = field.geobox
    to_field = Transformer.from_crs('EPSG:4326', grid.crs.to_wkt(), always_xy=True)
    x, y = to_field.transform(lonlat[..., 0], lonlat[..., 1])
    inverse = ~grid.affine
    column = inverse.a * x + inverse.b * y + inverse.c
    row = inverse.d * x + inverse.e * y + inverse.f
    height, width = grid.shape
    inside = (row >= 0) & (column >= 0) & (row < height) & (column < width)  # False for infinite ones too
    cell = field.plan.cell
    return Positions(row / cell - 0.5, column / cell - 0.5, inside)


def embeddings_at(
    field: Field, row: Floats, column: Floats, label: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """Embeddings at positions, bilinear, [..., D]; and where all four cells around are known, [...].

    Args:
        field: the field.
        row: of `positions_of`, inside the field.
        column: the same.
        label: what the progress bar says.
    """
    rows, columns = field.shape
    row, column = row.clip(0, rows - 1), column.clip(0, columns - 1)
    out = np.zeros((*row.shape, field.plan.dimensions), dtype=np.float16)
    known = np.ones(row.shape, dtype=bool)
    above, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - above)[..., None], (column - left)[..., None]
    with console.progress(label, rows) as bar:
        for top in range(0, rows, _ROWS):
            last = min(top + _ROWS, rows)
            mine = (above >= top) & (above < last)
            if mine.any():
                cells = field.embeddings(slice(top, min(last + 1, rows)))
                r, c = above[mine] - top, left[mine]
                corners = [
                    (cells[rr, cc], wr * wc)
                    for rr, wr in ((r, 1 - down[mine]), (np.minimum(r + 1, len(cells) - 1), down[mine]))
                    for cc, wc in ((c, 1 - right[mine]), (np.minimum(c + 1, columns - 1), right[mine]))
                ]
                out[mine] = sum(vectors * weight for vectors, weight in corners)
                known[mine] = np.logical_and.reduce([(vectors != 0).any(-1) for vectors, _ in corners])
            bar.advance(last - top)
    return out, known
