"""Make a map: every band of a field is asked for the classes, and written from the top down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grafalign import console
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.maps.classes import MapClasses
from grafalign.maps.cog import as_bytes, write_class_names, writing_cog
from grafalign.maps.labels import UNKNOWN, CellScores, pixel_labels

_SCORES_BYTES = 256 << 20
"""Scores of cells that are held at a time, whatever the number of classes and the width of the scene."""
_MOST_ROWS = 64
SCORE_SCALE = 1e-4
"""Scores are written as whole numbers of this size."""
_SCORE_NODATA = -32768


@dataclass(frozen=True)
class MapSummary:
    """What a map shows."""

    pixels: dict[str, int]
    """Of each class, in the order of the classes."""
    missing: int
    """Pixels without a class."""
    pixel_area_m2: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class in all pixels that have one."""
        total = max(1, sum(self.pixels.values()))
        return {name: count / total for name, count in self.pixels.items()}


def make_map(
    field: Field,
    classes: MapClasses,
    out: Path,
    temperature: float,
    *,
    confidence: Path | None = None,
    scores: Path | None = None,
) -> MapSummary:
    """Write the class map of a field, and what goes with it.

    Args:
        field: the field.
        classes: what to look for, in the space of the field's model.
        out: the class map, a COG: uint8 and a palette up to 254 classes, uint16 beyond.
        temperature: probabilities are softmax(scores / temperature).
        confidence: COG of the probability of each pixel's class, 0 to 250.
        scores: COG with one band a class, on the grid of cells: scores are linear between their middles.

    Raises:
        GrafalignError: the classes are of another model, a chunk is damaged, or the disk is full.
    """
    plan = field.plan
    if classes.vectors.shape[1] != plan.dimensions:
        raise InputError(
            f'The words have {classes.vectors.shape[1]} dimensions and {field.path} has {plan.dimensions}; it was made '
            f'by {field.marker.model}, give that model.'
        )
    count = len(classes.classes)
    nodata = nodata_of(count)
    small = nodata == 255
    dtype = np.dtype(np.uint8 if small else np.uint16)
    palette = {i: c.colour for i, c in enumerate(classes.classes)} if small else None
    pixels = np.zeros(count, dtype=np.int64)
    missing = 0
    with contextlib.ExitStack() as files:
        labels_file = files.enter_context(writing_cog(out, field.geobox, dtype.name, nodata, 'MODE', palette=palette))
        sure_file = scores_file = None
        if confidence is not None:
            sure_file = files.enter_context(
                writing_cog(confidence, field.geobox, 'uint8', 255, 'AVERAGE', scale=1 / 250)
            )
        if scores is not None:
            scores_file = files.enter_context(
                writing_cog(
                    scores, field.cells, 'int16', _SCORE_NODATA, 'AVERAGE', names=classes.names, scale=SCORE_SCALE
                )
            )
        bar = files.enter_context(console.progress('classifying rows of pixels', plan.height))
        for part in _parts(field, classes, temperature):
            bar.advance(len(part.labels))
            done = np.where(part.labels == UNKNOWN, nodata, part.labels).astype(dtype)
            labels_file.write(done)
            counts = np.bincount(part.labels[part.labels != UNKNOWN], minlength=count)
            pixels += counts
            missing += part.labels.size - int(counts.sum())
            if sure_file is not None:
                sure_file.write(as_bytes(part.chance, part.labels == UNKNOWN))
            if scores_file is not None:
                scores_file.write(_as_numbers(part.cells))
    write_class_names(out, classes.classes)
    return MapSummary(dict(zip(classes.names, pixels.tolist(), strict=True)), missing, plan.pixel_m**2)


def nodata_of(count: int) -> int:
    """The value of pixels without a class on a map of so many classes."""
    return 255 if count <= 254 else 65_535


@dataclass(frozen=True)
class _Part:
    """Some rows of a map."""

    labels: npt.NDArray[np.int32]
    """[rows, W]"""
    chance: npt.NDArray[np.float32]
    """[rows, W]"""
    cells: CellScores
    """Of the rows of cells that these pixels are of."""


def _parts(field: Field, classes: MapClasses, temperature: float) -> Iterator[_Part]:
    """Rows of the map from the top down; each is computed with one row of cells more above and below."""
    plan = field.plan
    rows, columns = field.shape
    step = max(1, min(_MOST_ROWS, _SCORES_BYTES // (4 * columns * max(len(classes.vectors), plan.dimensions))))
    vectors = torch.from_numpy(classes.vectors)
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        first, last = max(0, top - 1), min(rows, bottom + 1)
        embeddings = torch.from_numpy(field.embeddings(slice(first, last)))
        known = (embeddings != 0).any(-1)
        cells = CellScores(_by_class(embeddings @ vectors.T, classes), known, temperature)
        labels, chance = pixel_labels(cells, plan.cell)
        pixels = slice(top * plan.cell, min(bottom * plan.cell, plan.height))
        inner = slice((top - first) * plan.cell, (top - first) * plan.cell + pixels.stop - pixels.start)
        labels, chance = labels[inner, : plan.width], chance[inner, : plan.width]
        labels[field.source(pixels) == 0] = UNKNOWN
        inside = slice(top - first, bottom - first)
        yield _Part(labels, chance, CellScores(cells.scores[inside], known[inside], temperature))


def _by_class(scores: torch.Tensor, classes: MapClasses) -> torch.Tensor:
    """Scores of prompts [r, c, P] as scores of classes [r, c, K]: the highest of each class's."""
    count = len(classes.classes)
    if scores.shape[-1] == count:
        return scores
    index = torch.from_numpy(classes.class_of).expand(scores.shape)
    empty = torch.full((*scores.shape[:2], count), -torch.inf)
    return empty.scatter_reduce(2, index, scores, 'amax')


def _as_numbers(cells: CellScores) -> npt.NDArray[np.int16]:
    numbers = np.rint(cells.scores.permute(2, 0, 1).numpy() / SCORE_SCALE).clip(-32767, 32767)
    return np.where(cells.known.numpy(), numbers, _SCORE_NODATA).astype(np.int16)
