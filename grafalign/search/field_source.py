"""The tiles of a field as items of an index: a search answers with places in the scene, and nothing is encoded anew."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine

from grafalign import console
from grafalign.fields import MARKER, Field, open_field
from grafalign.files import file_digest
from grafalign.models.model import Vectors
from grafalign.scenes.regions import across_antimeridian

_FEWEST = 0.5
"""Share of a tile's cells that must be known."""


class FieldTiles:
    """A field cut into tiles as wide as the model's windows, side by side from the top left corner.

    Args:
        path: the field's folder.
    """

    def __init__(self, path: Path) -> None:
        self.field: Field = open_field(path)
        self.stamp = file_digest(path / MARKER)
        self.side = self.field.plan.window // self.field.plan.cell
        """Cells along a side of a tile."""
        rows, columns = self.field.shape
        starts = [np.arange(0, length, self.side) for length in (rows, columns)]
        known = self.field.agreement(slice(0, rows)) > 0
        share = np.add.reduceat(np.add.reduceat(known.astype(int), starts[0], axis=0), starts[1], axis=1)
        self.places = np.argwhere(share >= _FEWEST * self.side**2)
        """Row and column of each tile among tiles, [N, 2], in reading order."""

    @property
    def names(self) -> list[str]:
        """Names of the tiles: row and column among the pixels of the scene."""
        px = self.field.plan.window
        return [f'{row * px}_{column * px}' for row, column in self.places.tolist()]

    def items(self, source: str) -> gpd.GeoDataFrame:
        """The tiles as a table of items.

        Args:
            source: name of the field among the sources of an index.
        """
        plan, box = self.field.plan, self.field.geobox
        grid = box.affine @ Affine.scale(plan.window)
        row, column = self.places.T.astype(float)
        corners = [grid @ (column + dx, row + dy) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))]
        squares = shapely.polygons(np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1))
        outlines = gpd.GeoSeries(squares, crs=box.crs.to_wkt()).to_crs('EPSG:4326')
        return gpd.GeoDataFrame(
            {
                'item_id': self.names,
                'datetime': pd.to_datetime([plan.scenes[0].datetime] * len(row), utc=True),
                'source': source,
                'stamp': self.stamp,
            },
            geometry=[across_antimeridian(outline) for outline in outlines],
            crs='EPSG:4326',
        )

    def vectors(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[list[int], Vectors]]:
        """Unit means of the cells of tiles, by rows of tiles.

        Args:
            rows: tiles, rising.

        Yields:
            Positions in `rows`, and their embeddings.
        """
        line = self.places[rows, 0]
        with console.progress('reading tiles of the field', len(rows)) as bar:
            for number in np.unique(line).tolist():
                cells = self.field.embeddings(
                    slice(number * self.side, min((number + 1) * self.side, self.field.shape[0]))
                )
                mine = np.flatnonzero(line == number)
                means = []
                for column in self.places[rows[mine], 1].tolist():
                    mean = cells[:, column * self.side : (column + 1) * self.side].sum(axis=(0, 1))
                    means.append(mean / np.linalg.norm(mean))
                yield mine.tolist(), np.asarray(means, dtype=np.float32)
                bar.advance(len(mine))

    def picture(self, name: str) -> npt.NDArray[Any]:
        """The preview of a tile, [3, rows, columns] in 0 to 255."""
        px = self.field.plan.window
        row, column = (int(part) // px * self.side for part in name.split('_'))
        return self._preview[row : row + self.side, column : column + self.side].transpose(2, 0, 1)

    @cached_property
    def _preview(self) -> npt.NDArray[np.uint8]:
        """The whole preview: a page shows many tiles."""
        return self.field.preview()
