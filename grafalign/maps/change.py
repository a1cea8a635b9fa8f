"""Where a word has come or gone between two fields of one grid: gain and loss.

Of each word the score of a cell at the second date, less that at the first, less the median of all cells: haze, light
and season move the whole scene. How large a difference may be by chance is read off pairs of fields between which
nothing changed, so that a wanted share of unchanged land is called changed. No threshold is taken from the shape of the
scene's own differences, as Otsu's would be, which always finds two kinds.

Where several words are asked for, a gain is also where the word wins over the others at the second date, and a loss
where it won at the first: whatever is built moves the scores of many words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign import console
from grafalign.calibration import Question
from grafalign.encoders.lattice import to_pixels
from grafalign.errors import InputError, StaleError
from grafalign.fields import Field
from grafalign.fields.arrays import CHUNK
from grafalign.fields.source import LATTICE
from grafalign.maps.labels import CellScores, pixel_labels

GAIN, LOSS, UNKNOWN = 1, 2, 255
"""Numbers of pixels; 0 where nothing changed."""
_SEASON_DAYS = 45
_MOST_SCORES = 4_000_000
"""Differences that a threshold is read off."""
_MAD = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations."""
_BYTES = 128 << 20
"""Differences of pixels that are held at a time."""
Floats = npt.NDArray[np.float32]


def check_pair(before: Field, after: Field) -> None:
    """Refuse fields whose cells do not lie on each other; tell where their seasons differ.

    Raises:
        GrafalignError: they are of different models, of different grids, or do not overlap.
    """
    if before.plan.model_digest != after.plan.model_digest:
        raise StaleError(
            f'{before.path} was made by {before.marker.model} and {after.path} by another model, '
            f'{after.marker.model}; make both by one.'
        )
    if any(getattr(before.plan, name) != getattr(after.plan, name) for name in LATTICE):
        apart = not after.geobox.extent.to_crs(before.geobox.crs).intersects(before.geobox.extent)
        raise InputError(
            f'{before.path} and {after.path} do not overlap; give fields of the same land.'
            if apart
            else f'{before.path} and {after.path} have different grids; make the second one with --like {before.path}.'
        )
    days = [datetime.fromisoformat(field.plan.scenes[0].datetime).timetuple().tm_yday for field in (before, after)]
    off = abs(days[0] - days[1])
    if min(off, 365 - off) > _SEASON_DAYS:
        console.log(
            f'{before.path} and {after.path} are of different seasons ({min(off, 365 - off)} days apart in the year): '
            'plants and light change as well; pairs without change (--unchanged) should be of these seasons too'
        )


@dataclass(frozen=True)
class Thresholds:
    """What is taken off differences, and what they must reach; K words."""

    shift: Floats
    """Median difference of the scene, [K]."""
    least: Floats
    """[K]"""
    pairs: int
    """Pairs without change that `least` was read off; 0 where a normal distribution was assumed."""


def thresholds(
    before: Field, after: Field, question: Question, unchanged: Sequence[tuple[Field, Field]], false_alarms: float
) -> Thresholds:
    """How large a difference must be.

    Args:
        before: the first date.
        after: the second.
        question: the words.
        unchanged: pairs of fields between which nothing changed. Without any, the scene's own differences are taken for
            a normal distribution whose width is their median absolute deviation.
        false_alarms: share of unchanged land that may be called changed, for each word.
    """
    own = _sampled(before, after, question)
    shift = np.median(own, axis=0)
    if unchanged:
        calm = np.concatenate([abs(d - np.median(d, axis=0)) for d in (_sampled(*p, question) for p in unchanged)])
        least = np.quantile(calm, 1 - false_alarms, axis=0)
    else:
        width = _MAD * np.median(abs(own - shift), axis=0)
        least = width * NormalDist().inv_cdf(1 - false_alarms / 2)
    return Thresholds(shift.astype(np.float32), least.astype(np.float32), len(unchanged))


@dataclass(frozen=True)
class ChangeRows:
    """Some rows of pixels of all words."""

    difference: Floats
    """Less the shift, [K, rows, W]; NaN where one of the fields knows nothing."""
    kind: npt.NDArray[np.uint8]
    """`GAIN`, `LOSS`, 0, or `UNKNOWN`, [K, rows, W]."""


def change_rows(before: Field, after: Field, question: Question, limits: Thresholds) -> Iterator[ChangeRows]:
    """Changes from the top down."""
    plan = before.plan
    rows, columns = before.shape
    words = question.classes
    step = max(1, _BYTES // (4 * words * columns * plan.cell**2))
    least = torch.from_numpy(limits.least)[:, None, None]
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        first, last = max(0, top - 1), min(rows, bottom + 1)
        two = [torch.from_numpy(field.embeddings(slice(first, last))) for field in (before, after)]
        known = (two[0] != 0).any(-1) & (two[1] != 0).any(-1)
        scores = [question.scores(embeddings) for embeddings in two]
        moved = scores[1] - scores[0] - torch.from_numpy(limits.shift)
        difference = to_pixels(moved.permute(2, 0, 1), known, plan.cell)
        gain, loss = difference >= least, difference <= -least
        if words > 1:
            wins = [torch.from_numpy(pixel_labels(CellScores(s, known, 1.0), plan.cell)[0]) for s in scores]
            number = torch.arange(words)[:, None, None]
            gain, loss = gain & (wins[1] == number), loss & (wins[0] == number)
        kind = gain * GAIN + loss * LOSS
        pixels = slice(top * plan.cell, min(bottom * plan.cell, plan.height))
        inner = slice((top - first) * plan.cell, (top - first) * plan.cell + pixels.stop - pixels.start)
        difference, kind = difference[:, inner, : plan.width], kind[:, inner, : plan.width].to(torch.uint8)
        missing = torch.from_numpy((before.source(pixels) == 0) | (after.source(pixels) == 0))
        difference[:, missing] = torch.nan
        kind[difference.isnan()] = UNKNOWN
        yield ChangeRows(difference.numpy(), kind.numpy())


def _sampled(before: Field, after: Field, question: Question) -> Floats:
    """Differences of cells that both fields know, from all over them, [N, K].

    Raises:
        InputError: there is none.
    """
    rows, columns = before.shape
    share = _MOST_SCORES / (rows * columns * question.classes)
    rng = np.random.default_rng(0)
    parts: list[Tensor] = []
    for top in range(0, rows, CHUNK):
        span = slice(top, min(top + CHUNK, rows))
        two = [torch.from_numpy(field.embeddings(span)) for field in (before, after)]
        taken = (two[0] != 0).any(-1) & (two[1] != 0).any(-1)
        taken &= torch.from_numpy(rng.random(taken.shape) < share)
        parts.append(question.scores(two[1][taken]) - question.scores(two[0][taken]))
    differences = torch.cat(parts).numpy()
    if not len(differences):
        raise InputError(f'{before.path} and {after.path} show no land in common; give fields of the same land.')
    return np.asarray(differences, dtype=np.float32)
