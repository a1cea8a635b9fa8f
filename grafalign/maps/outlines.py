"""Outlines that follow the scene's own pixels: by a guided filter, by superpixels, or by SAM (`sam.py`).

A field's scores are as blurred as its cells are wide. `guided` (He, Sun and Tang, 2013) fits the scores of a class in
every square around a pixel as a linear function of the scene's bands, and gives a pixel the mean of the fits of all
squares that hold it. `superpixels` (Felzenszwalb and Huttenlocher, 2004) cuts the scene into pieces of one colour and
gives all pixels of a piece its mean scores.

All work on blocks of the scene with a margin around them, so that memory does not grow with the scene, and the result
not with what is held. The guided filter's margin is all that a pixel depends on, so its blocks leave no trace; a
superpixel or a thing ends at the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter

from grafalign.encoders.lattice import to_pixels
from grafalign.errors import MachineError
from grafalign.fields.strips import Strips
from grafalign.maps.labels import UNKNOWN, CellScores, best_of
from grafalign.maps.sam import MARGIN, Sam, refined

EPSILON = 1e-3
"""Added to the variances of the bands, which go from 0 to 1: texture that is weaker makes no outline."""
_RADIUS = 0.5
"""Half the side of the guided filter's squares, in cells."""
_SCALE = 50
"""Felzenszwalb's k for colours of 0 to 255: larger ones make larger pieces."""
_SMALLEST = 1 / 8
"""Of a cell: the smallest superpixel."""
_MARGIN = 64
"""Pixels around a block in which its superpixels may go on."""
_BLOCK = 512
Refine = Literal['guided', 'superpixels', 'sam']
Floats = npt.NDArray[np.float32]
Filter: TypeAlias = Callable[[Floats, Floats, npt.NDArray[np.bool_], npt.NDArray[np.int64]], Floats]
"""Bands [C, H, W] in 0 to 1, scores [K, H, W], where both are known [H, W], and numbers of the classes [K] to scores
[K, H, W]."""


@dataclass(frozen=True)
class Outlines:
    """Classes of pixels by scores that follow the scene."""

    pixels: Strips
    """Rows of the scene that the field was made of, from the top down."""
    filter: Filter
    margin: int
    """Pixels around a block that it depends on."""
    block: int = _BLOCK
    """Pixels along a side of a block, or as many whole cells as fit."""

    def beyond(self, cell: int) -> int:
        """Rows and columns of cells around a block that it depends on."""
        return 1 - (-self.margin // cell)

    def step(self, cell: int) -> int:
        """Rows and columns of cells of a block."""
        return max(1, self.block // cell)

    def labels(self, cells: CellScores, cell: int, top: int) -> tuple[npt.NDArray[np.int32], Floats]:
        """Classes of the pixels of some rows of cells, and how probable they are, [rows, W].

        Args:
            cells: their scores.
            cell: pixels along a side of one.
            top: first row of pixels.
        """
        rows, columns = cells.known.shape
        height = min(rows * cell, self.pixels.last - top)
        bands, present = (part.numpy() for part in self.pixels.rows(top, top + height))
        self.pixels.drop(top)
        width = bands.shape[2]
        labels, chance = np.full((height, width), UNKNOWN, np.int32), np.zeros((height, width), np.float32)
        step, beyond = self.step(cell), self.beyond(cell)
        for left in range(0, columns, step):
            first, last = max(0, left - beyond), min(columns, left + step + beyond)
            part = CellScores(cells.scores[:, first:last], cells.known[:, first:last], cells.temperature)
            with_margin = slice(first * cell, min(last * cell, width))
            refined = self._block(part, cell, bands[:, :, with_margin], present[:, with_margin])
            core = slice(left * cell, min((left + step) * cell, width))
            inner = slice(core.start - with_margin.start, core.stop - with_margin.start)
            labels[:, core], chance[:, core] = (plane[:, inner] for plane in refined)
        return labels, chance

    def _block(
        self, cells: CellScores, cell: int, bands: Floats, present: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """Classes and probabilities of a block.

        Only classes that win in one of its cells are filtered; the others count in the probabilities.
        """
        best, _ = best_of(cells)
        wins = torch.unique(best[cells.known])
        rest = torch.ones(cells.scores.shape[2], dtype=torch.bool)
        rest[wins] = False
        planes = cells.scores[..., wins].permute(2, 0, 1)
        if bool(rest.any()):
            others = torch.logsumexp(cells.scores[..., rest] / cells.temperature, dim=-1)
            planes = torch.cat([planes, others[None]])
        height, width = present.shape
        enlarged = to_pixels(planes, cells.known, cell)[:, :height, :width].numpy()
        there = present & ~np.isnan(enlarged).any(0)
        if not len(wins) or not there.any():
            return np.full(there.shape, UNKNOWN, np.int32), np.zeros(there.shape, np.float32)
        scores = self.filter(bands, np.nan_to_num(enlarged[: len(wins)]), there, wins.numpy())
        which = scores.argmax(0)
        logs = scores / cells.temperature
        with np.errstate(invalid='ignore'):  # where nothing is known
            total = np.logaddexp.reduce([*logs, *enlarged[len(wins) :]])
        chance = np.exp(np.take_along_axis(logs, which[None], 0)[0] - total)
        labels = np.where(there, wins.numpy()[which], UNKNOWN).astype(np.int32)
        return labels, np.where(there, chance, 0).astype(np.float32)


def outlines_of(
    kind: Refine,
    pixels: Strips,
    cell: int,
    *,
    sam: Sam | None = None,
    things: Collection[int] = (),
    colours: Sequence[int] = (0, 1, 2),
) -> Outlines:
    """The outlines of a kind.

    Args:
        kind: which.
        pixels: the scene.
        cell: pixels along a side of the field's cells.
        sam: the model, for `sam`.
        things: numbers of the classes that it outlines.
        colours: which bands of the scene are red, green and blue.

    Raises:
        MachineError: a library is lacking.
    """
    if kind == 'guided':
        radius = max(1, round(_RADIUS * cell))
        return Outlines(pixels, lambda bands, planes, present, _: guided(bands, planes, present, radius), 2 * radius)
    if kind == 'sam' and sam is not None:
        shown = list(colours)
        return Outlines(
            pixels,
            lambda bands, planes, present, classes: refined(sam, bands[shown], planes, present, classes, things),
            MARGIN,
            sam.core,
        )
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError:
        raise MachineError("Superpixels need scikit-image; `pip install 'grafalign[refine]'`.") from None
    smallest = max(1, round(_SMALLEST * cell**2))
    return Outlines(pixels, lambda bands, planes, present, _: superpixels(bands, planes, present, smallest), _MARGIN)


def guided(bands: Floats, planes: Floats, present: npt.NDArray[np.bool_], radius: int) -> Floats:
    """Scores by the guided filter.

    Args:
        bands: 0 to 1, [C, H, W].
        planes: scores of K classes, [K, H, W].
        present: where both are known, [H, W]; nothing else takes part.
        radius: squares have a side of 2 * radius + 1 pixels. A pixel depends on those up to 2 * radius away.

    Returns:
        [K, H, W]; 0 where they are not known.

    Example: an edge in the scores three pixels off an edge in the scene comes back to it
        >>> bands = np.repeat([0.2, 0.8], 8)[None, None].repeat(9, 1).astype(np.float32)
        >>> scores = np.repeat([0, 1], [11, 5])[None, None].repeat(9, 1).astype(np.float32)
        >>> out = guided(bands, scores, np.ones((9, 16), bool), 4)[0, 4]
        >>> bool((out[:8] < out[8:].min()).all())
        True
    """
    weight = np.maximum(_mean(present.astype(np.float32), radius), 1e-9)

    def mean(plane: Floats) -> Floats:
        """Over the known pixels of each pixel's square."""
        return np.asarray(_mean(np.where(present, plane, 0), radius) / weight)

    channels = len(bands)
    means = np.stack([mean(band) for band in bands])
    covariance = np.empty((*present.shape, channels, channels), np.float32)
    for i in range(channels):
        for j in range(i, channels):
            covariance[..., i, j] = covariance[..., j, i] = mean(bands[i] * bands[j]) - means[i] * means[j]
    inverse = np.linalg.inv(covariance + EPSILON * np.eye(channels, dtype=np.float32))
    out = np.empty_like(planes)
    for number, plane in enumerate(planes):
        middle = mean(plane)
        along = np.stack([mean(band * plane) - m * middle for band, m in zip(bands, means, strict=True)], axis=-1)
        slope = (inverse @ along[..., None])[..., 0]
        offset = middle - (slope * means.transpose(1, 2, 0)).sum(-1)
        out[number] = mean(offset) + sum(mean(slope[..., i]) * bands[i] for i in range(channels))
    out[:, ~present] = 0
    return out


def _mean(plane: Floats, radius: int) -> Floats:
    """Mean over squares; beyond the edge lies nothing, which the caller's weights make good."""
    return np.asarray(uniform_filter(plane, 2 * radius + 1, mode='constant'), dtype=np.float32)


def superpixels(bands: Floats, planes: Floats, present: npt.NDArray[np.bool_], smallest: int) -> Floats:
    """Mean scores over pieces of one colour; arguments as those of `guided`.

    Args:
        bands: 0 to 1, [C, H, W].
        planes: scores of K classes, [K, H, W].
        present: where both are known, [H, W]; nothing else takes part.
        smallest: pixels of the smallest piece.

    Returns:
        [K, H, W]; 0 where they are not known.
    """
    from skimage.segmentation import felzenszwalb

    colours = np.where(present, bands, 0).transpose(1, 2, 0)
    piece = felzenszwalb(colours, scale=_SCALE, sigma=0.7, min_size=smallest, channel_axis=-1).ravel()
    weight = present.ravel().astype(np.float64)
    count = np.maximum(np.bincount(piece, weight), 1)
    out = np.empty_like(planes)
    for number, plane in enumerate(planes):
        out[number] = (np.bincount(piece, plane.ravel() * weight) / count)[piece].reshape(present.shape)
    out[:, ~present] = 0
    return out
