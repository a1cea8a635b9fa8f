"""Make a map: every band of a field is asked for the classes, and written from the top down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign import console
from grafalign.calibration import Calibration, Question
from grafalign.encoders.lattice import to_pixels
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.maps.classes import NONE, MapClass, MapClasses, question_of
from grafalign.maps.cog import Copies, as_bytes, write_class_names, writing_cog
from grafalign.maps.labels import UNKNOWN, CellScores, pixel_labels
from grafalign.maps.outlines import Outlines

_SCORES_BYTES = 256 << 20
"""Scores of cells that are held at a time, whatever the number of classes and the width of the scene."""
_PIXELS = 12 << 20
"""Pixels of the map that are held at a time, each in several numbers of 4 bytes."""
_MOST_ROWS = 64
SCORE_SCALE, ODDS_SCALE = 1e-4, 1e-2
"""Cosines are written as whole numbers of this size, and log odds of tuned words."""
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
    calibration: Calibration,
    *,
    confidence: Path | None = None,
    scores: Path | None = None,
    outlines: Outlines | None = None,
) -> MapSummary:
    """Write the class map of a field, and what goes with it.

    Args:
        field: the field.
        classes: what to look for, in the space of the field's model.
        out: the class map, a COG: uint8 and a palette up to 254 classes, uint16 beyond.
        calibration: how scores become probabilities; where it has contrasting words, pixels that are none of the
            classes get a value of their own, after those of the classes.
        confidence: COG of the probability of each pixel's class, 0 to 250.
        scores: COG with one band a class, on the grid of cells: scores are linear between their middles. They are
            cosines, or log odds of tuned words.
        outlines: makes the outlines of classes follow the scene's pixels; their scores' alone by default.

    Raises:
        GrafalignError: the classes are of another model, a chunk is damaged, or the disk is full.
    """
    plan = field.plan
    if classes.vectors.shape[1] != plan.dimensions:
        raise InputError(
            f'The words have {classes.vectors.shape[1]} dimensions and {field.path} has {plan.dimensions}; it was made '
            f'by {field.marker.model}, give that model.'
        )
    shown = shown_classes(classes, calibration)
    count = len(shown)
    nodata = nodata_of(count)
    small = nodata == 255
    scale = SCORE_SCALE if classes.offsets is None else ODDS_SCALE
    dtype = np.dtype(np.uint8 if small else np.uint16)
    palette = {i: c.colour for i, c in enumerate(shown)} if small else None
    pixels = np.zeros(count, dtype=np.int64)
    missing = 0
    with Copies() as copies, contextlib.ExitStack() as files:
        labels_file = files.enter_context(
            writing_cog(copies, out, field.geobox, dtype.name, nodata, 'MODE', palette=palette)
        )
        sure_file = scores_file = None
        if confidence is not None:
            sure_file = files.enter_context(
                writing_cog(copies, confidence, field.geobox, 'uint8', 255, 'AVERAGE', scale=1 / 250)
            )
        if scores is not None:
            scores_file = files.enter_context(
                writing_cog(
                    copies,
                    scores,
                    field.cells,
                    'int16',
                    _SCORE_NODATA,
                    'AVERAGE',
                    names=classes.names,
                    scale=scale,
                )
            )
        bar = files.enter_context(console.progress('classifying rows of pixels', plan.height))
        for part in map_rows(field, question_of(classes), calibration, outlines):
            bar.advance(len(part.labels))
            done = np.where(part.labels == UNKNOWN, nodata, part.labels).astype(dtype)
            labels_file.write(done)
            counts = torch.bincount(torch.from_numpy(part.labels).flatten() - UNKNOWN, minlength=count + 1)
            pixels += counts[1:].numpy()
            missing += int(counts[0])
            if sure_file is not None:
                sure_file.write(as_bytes(part.chance, part.labels == UNKNOWN))
            if scores_file is not None:
                scores_file.write(_as_numbers(part.scores, part.known, scale))
    write_class_names(out, shown)
    return MapSummary(dict(zip((c.name for c in shown), pixels.tolist(), strict=True)), missing, plan.pixel_m**2)


def shown_classes(classes: MapClasses, calibration: Calibration) -> tuple[MapClass, ...]:
    """All classes that a map has values for, in their order: its own, and `none of these` where it is asked for.

    Raises:
        GrafalignError: a class has that name.
    """
    if calibration.contrast is None:
        return classes.classes
    if NONE.name in classes.names:
        raise InputError(f'A class is called {NONE.name!r}, which is what is left out; give it another name.')
    return (*classes.classes, NONE)


def nodata_of(count: int) -> int:
    """The value of pixels without a class on a map of so many classes."""
    return 255 if count <= 254 else 65_535


@dataclass(frozen=True)
class MapRows:
    """Some rows of a map."""

    labels: npt.NDArray[np.int32]
    """[rows, W]"""
    chance: npt.NDArray[np.float32]
    """[rows, W]; 0 for none of the classes."""
    scores: Tensor
    """Of the cells that these pixels are of, [r, c, K]."""
    known: Tensor
    """bool [r, c]"""


def map_rows(
    field: Field, question: Question, calibration: Calibration, outlines: Outlines | None = None
) -> Iterator[MapRows]:
    """Rows of the map from the top down; each is computed with as many rows of cells above and below as it needs."""
    plan = field.plan
    rows, columns = field.shape
    numbers = max(plan.dimensions, _vectors(question, calibration))
    if outlines is None:
        step, beyond = min(_MOST_ROWS, _SCORES_BYTES // (4 * columns * numbers), _PIXELS // (columns * plan.cell**2)), 1
    else:
        step, beyond = outlines.step(plan.cell), outlines.beyond(plan.cell)
    step = max(1, step)
    offsets = torch.from_numpy(calibration.offsets)
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        first, last = max(0, top - beyond), min(rows, bottom + beyond)
        embeddings = torch.from_numpy(field.embeddings(slice(first, last)))
        known = (embeddings != 0).any(-1)
        scores = question.scores(embeddings)
        cells = CellScores(scores + offsets, known, calibration.temperature)
        if outlines is None:
            labels, chance = pixel_labels(cells, plan.cell)
        else:
            labels, chance = outlines.labels(cells, plan.cell, first * plan.cell)
        if calibration.contrast is not None:
            margins = to_pixels(calibration.margins(scores, embeddings)[None], known, plan.cell)[0].numpy()
            margins = margins[: labels.shape[0], : labels.shape[1]]
            none = (margins < calibration.contrast.least) & (labels != UNKNOWN)
            labels[none], chance[none] = question.classes, 0
        pixels = slice(top * plan.cell, min(bottom * plan.cell, plan.height))
        inner = slice((top - first) * plan.cell, (top - first) * plan.cell + pixels.stop - pixels.start)
        labels, chance = labels[inner, : plan.width], chance[inner, : plan.width]
        labels[field.source(pixels) == 0] = UNKNOWN
        inside = slice(top - first, bottom - first)
        yield MapRows(labels, chance, scores[inside], known[inside])


def _vectors(question: Question, calibration: Calibration) -> int:
    """How many scores a cell has."""
    return len(question.vectors) + (0 if calibration.contrast is None else len(calibration.contrast.vectors))


def _as_numbers(scores: Tensor, known: Tensor, scale: float) -> npt.NDArray[np.int16]:
    numbers = np.rint(scores.permute(2, 0, 1).numpy() / scale).clip(-32767, 32767)
    return np.where(known.numpy(), numbers, _SCORE_NODATA).astype(np.int16)
