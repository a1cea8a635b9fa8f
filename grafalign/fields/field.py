"""A finished field: scores of any words for any part of it.

Example:
    >>> field = open_field(Path('runs/field'))                                   # doctest: +SKIP
    >>> vectors = class_vectors(clip, ['forest', 'water'])                       # doctest: +SKIP
    >>> scores = field.scores(vectors, rows=slice(0, 512), columns=slice(0, 512))  # doctest: +SKIP
    >>> scores.values.shape, scores.geobox.resolution                            # doctest: +SKIP
    ((2, 512, 512), Resolution(x=10, y=-10))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from odc.geo.geobox import GeoBox

from grafalign.encoders.lattice import to_pixels
from grafalign.errors import DamagedError, InputError, StaleError
from grafalign.fields import arrays
from grafalign.fields.build import geobox_of
from grafalign.fields.marker import MARKER, FieldMarker

_SAMPLED_CHUNKS = 16
"""Chunks that a sample of cells is drawn from, at least; reading more takes longer."""


@dataclass(frozen=True)
class Scores:
    """Scores of K words for some pixels."""

    values: npt.NDArray[np.float32]
    """[K, rows, columns]: cosine of a word with the mean embedding; NaN where nothing is known."""
    source: npt.NDArray[np.uint8]
    """[rows, columns]: which scene a pixel is from, from 1; 0 if missing."""
    geobox: GeoBox


class Field:
    """A field on disk; nothing is held in memory.

    Args:
        path: its folder.

    Raises:
        GrafalignError: there is no finished field, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not (path / MARKER).is_file():
            raise DamagedError(f'{path} holds no finished field; run `grafalign field SCENE {path} --model MODEL`.')
        self.path = path
        self.marker = FieldMarker.read(path / MARKER)
        self.plan = self.marker.plan

    def check_model(self, digest: str, name: str) -> None:
        """Refuse another model than the one that made the field.

        Raises:
            StaleError: it is another one.
        """
        if digest != self.plan.model_digest:
            raise StaleError(
                f'{self.path} was made by another model ({self.marker.model}) than {name}; give that model, or make '
                'the field anew.'
            )

    @cached_property
    def geobox(self) -> GeoBox:
        """The grid of its pixels."""
        return geobox_of(self.plan)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return arrays.shape_of(self.plan)

    @property
    def cells(self) -> GeoBox:
        """The grid of its cells; the last ones may reach beyond the pixels."""
        grid = self.geobox
        return GeoBox(self.shape, grid.affine * grid.affine.scale(self.plan.cell), grid.crs)

    def embeddings(self, rows: slice, columns: slice | None = None) -> npt.NDArray[np.float32]:
        """Mean embeddings of cells, [rows, columns, D]; 0 where nothing is known."""
        return arrays.read_embeddings(self.path, self.plan, rows, columns or slice(0, self.shape[1]))

    def sample(self, count: int = 20_000, seed: int = 0) -> npt.NDArray[np.float32]:
        """Mean embeddings of about so many cells that are known, from chunks all over the field, [N, D].

        Args:
            count: of cells.
            seed: of the choice.
        """
        rows, columns = (-(-side // arrays.CHUNK) for side in self.shape)
        rng = np.random.default_rng(seed)
        parts: list[npt.NDArray[np.float32]] = []
        for number in rng.permutation(rows * columns).tolist():
            top, left = (arrays.CHUNK * i for i in divmod(number, columns))
            cells = self.embeddings(
                slice(top, min(top + arrays.CHUNK, self.shape[0])), slice(left, min(left + arrays.CHUNK, self.shape[1]))
            ).reshape(-1, self.plan.dimensions)
            cells = cells[(cells != 0).any(axis=1)]
            parts.append(rng.permutation(cells)[: max(1, count // _SAMPLED_CHUNKS)])
            if sum(len(part) for part in parts) >= count:
                break
        return np.concatenate(parts)

    def agreement(self, rows: slice, columns: slice | None = None) -> npt.NDArray[np.float32]:
        """How far overlapping windows agree about cells: 1 where all say the same, 0 where nothing is known."""
        return arrays.read_norm(self.path, self.plan, rows, columns or slice(0, self.shape[1]))

    def preview(self) -> npt.NDArray[np.uint8]:
        """A picture of the scene, a pixel a cell, [rows, columns, 3]; black where it is missing."""
        return arrays.read_preview(self.path, self.plan)

    def source(self, rows: slice) -> npt.NDArray[np.uint8]:
        """Which scene each pixel of some rows is from, from 1, [rows, W]; 0 if missing."""
        return arrays.read_source(self.path, self.plan, rows)

    def scores(
        self, vectors: npt.NDArray[np.floating], rows: slice | None = None, columns: slice | None = None
    ) -> Scores:
        """Scores of words for pixels, enlarged bilinearly from cells.

        Args:
            vectors: unit vectors of K words in the space of the model, [K, D].
            rows: rows of pixels; all by default.
            columns: columns of pixels; all by default.

        Raises:
            GrafalignError: the vectors have another width, or a chunk is damaged.
        """
        plan, cell = self.plan, self.plan.cell
        if vectors.shape[-1] != plan.dimensions:
            raise InputError(
                f'The words have {vectors.shape[-1]} dimensions and {self.path} has {plan.dimensions}; it was made by '
                f'{self.marker.model}, give words of that model.'
            )
        rows, columns = rows or slice(0, plan.height), columns or slice(0, plan.width)
        # one cell more on each side, as pixels near the edge lie between two cells
        spans = [
            slice(max(0, span.start // cell - 1), min(count, -(-span.stop // cell) + 1))
            for span, count in zip((rows, columns), self.shape, strict=True)
        ]
        embeddings = torch.from_numpy(self.embeddings(*spans))
        known = (embeddings != 0).any(-1)
        scores = torch.einsum('rcd,kd->krc', embeddings, torch.as_tensor(np.asarray(vectors, np.float32)))
        inside = [
            slice(span.start - first.start * cell, span.stop - first.start * cell)
            for span, first in zip((rows, columns), spans, strict=True)
        ]
        values = to_pixels(scores, known, cell)[:, inside[0], inside[1]].numpy()
        source = self.source(rows)[:, columns]
        values[:, source == 0] = np.nan
        grid = self.geobox[rows, columns]
        return Scores(values, source, grid)


def open_field(path: Path | str) -> Field:
    """Open a finished field.

    Raises:
        GrafalignError: there is none, or it is damaged.
    """
    return Field(Path(path))
