"""Windows over an image of any height, and the weighted mean of their embeddings on one lattice of cells.

Blending is linear: the mean of class scores over overlapping windows is the score of the mean embedding. So windows are
blended once, as embeddings, and any words can be asked for afterwards.

A cell is g pixels wide, g = gcd(window, patch, stride), so that every edge of every patch of every window is an edge of
cells. Patch embeddings are enlarged bilinearly to cells, as dense scores usually are to pixels, and weighted by a slope
towards the window's edges that never reaches zero: patches there see the least around them, and at the edge of the
image there is nothing else.

Example: windows of 4 px, patches of 2 and a stride of 3 over 8 px
    >>> lattice = Lattice(8, 8, window=4, patch=2, stride=3)
    >>> lattice.cell, lattice.shape, lattice.starts(8)  # the last window reaches 2 px over the edge
    (1, (8, 8), [0, 3, 6])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from grafalign.errors import InputError

_ROUNDING = 1e-5
"""Shares below are what rounding leaves of a patch whose share is 0."""


@dataclass(frozen=True)
class Lattice:
    """Where windows lie over an image; all lengths in pixels."""

    height: int
    width: int
    window: int
    """Side of a window."""
    patch: int
    """Side of what has one embedding: a patch, or the window itself."""
    stride: int
    """From one window to the next, along both axes."""

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window:
            raise InputError(
                f'A stride of {self.stride} px leaves gaps between windows of {self.window} px; give at most '
                f'{self.window}.'
            )

    @property
    def cell(self) -> int:
        """Side g of a cell."""
        return math.gcd(self.window, self.patch, self.stride)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; the last ones may reach beyond the image."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    @property
    def window_cells(self) -> int:
        """Cells along a side of a window."""
        return self.window // self.cell

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.starts(self.height)) * len(self.starts(self.width))

    @property
    def passes(self) -> float:
        """How often an average pixel is encoded."""
        return self.windows * self.window**2 / (self.height * self.width)

    def starts(self, length: int) -> list[int]:
        """First pixels of the windows along an axis: every `stride`, until one reaches the end or beyond."""
        return [self.stride * i for i in range(max(0, math.ceil((length - self.window) / self.stride)) + 1)]

    def weights(self, device: torch.device) -> Tensor:
        """Weight of each cell of a window, [n, n].

        It rises from the edges over as many pixels as two windows share, half a window at most: where two windows lie
        over each other, their weights add up to one. It is the mean over the cell's pixels, and nowhere zero.

        Example: two windows of 4 px that share 2
            >>> Lattice(8, 8, window=4, patch=1, stride=2).weights(torch.device('cpu'))[1]
            tensor([0.1875, 0.5625, 0.5625, 0.1875])
        """
        rise = min(self.window / 2, self.window - self.stride)
        pixels = torch.arange(self.window, device=device, dtype=torch.float64) + 0.5
        edge = torch.minimum(pixels, self.window - pixels)
        heights = (edge / rise).clamp(max=1) if rise else torch.ones_like(edge)
        side = heights.view(self.window_cells, self.cell).mean(1)
        return (side[:, None] * side[None, :]).float()

    def enlarged(self, values: Tensor) -> Tensor:
        """Values of patches [B, h, w, D] as values of the window's cells [B, n, n, D]."""
        factor = self.patch // self.cell
        if factor == 1:
            return values[:, : self.window_cells, : self.window_cells]
        planes = functional.interpolate(
            values.permute(0, 3, 1, 2), scale_factor=float(factor), mode='bilinear', align_corners=False
        )
        return planes.permute(0, 2, 3, 1)[:, : self.window_cells, : self.window_cells]


def stride_of(window: int, patch: int, overlap: float) -> int:
    """The stride, in whole patches, that encodes an average pixel about `overlap` times.

    Example: windows of 224 px and patches of 16
        >>> [stride_of(224, 16, overlap) for overlap in (1.0, 1.8, 4.0)]
        [224, 160, 112]
    """
    if not 1 <= overlap <= (window / patch) ** 2:
        raise InputError(
            f'An overlap of {overlap:g} cannot be had with windows of {window} px and patches of {patch} px; give 1 to '
            f'{(window / patch) ** 2:g}.'
        )
    return patch * max(1, math.floor(window / math.sqrt(overlap) / patch + 1e-9))


class Blend:
    """The cells that windows still come over: a band as high as one window, whatever the height of the image.

    Windows are added row by row, from the top; sums are float32.

    Args:
        lattice: where windows lie.
        width: D.
        first: the first row of cells wanted; windows that reach it from above may be added.
        device: where the sums are kept.
    """

    def __init__(self, lattice: Lattice, width: int, first: int, device: torch.device) -> None:
        self._lattice = lattice
        self._top = first
        self._columns = max(lattice.starts(lattice.width)) // lattice.cell + lattice.window_cells
        self._sum = torch.zeros(lattice.window_cells, self._columns, width, device=device)
        self._mass = torch.zeros(lattice.window_cells, self._columns, device=device)
        self._weights = lattice.weights(device)

    def add(self, row_px: int, columns_px: list[int], patches: Tensor, shares: Tensor) -> None:
        """Add windows of one row.

        Args:
            row_px: first pixel row of the windows; no cell of theirs may have been taken by `finished`, but for rows
                above the first one wanted.
            columns_px: first pixel column of each, [B].
            patches: embeddings, [B, h, w, D].
            shares: weight of each patch, [B, h, w]; 0 leaves a patch out.
        """
        cell, side = self._lattice.cell, self._lattice.window_cells
        share = shares[..., None].float()
        enlarged = self._lattice.enlarged(share)[..., 0]
        weight = torch.where(enlarged > _ROUNDING, enlarged, 0.0) * self._weights
        values = self._lattice.enlarged(patches.float() * share) * self._weights[..., None]
        skip = max(0, self._top - row_px // cell)
        begin = row_px // cell + skip - self._top
        rows = slice(begin, begin + side - skip)
        for column, value, mass in zip(columns_px, values, weight, strict=True):
            columns = slice(column // cell, column // cell + side)
            self._sum[rows, columns] += value[skip:]
            self._mass[rows, columns] += mass[skip:]

    def finished(self, until: int) -> Tensor:
        """Mean embeddings [rows, columns, D] of the rows of cells before `until` that were not taken yet.

        Cells without any weight are 0. No window may be added over them any more.
        """
        count = min(until - self._top, len(self._sum))
        mass = self._mass[:count, :, None]
        mean = torch.where(mass > 0, self._sum[:count] / mass, 0.0)
        for band in (self._sum, self._mass):
            kept = band[count:].clone()
            band.zero_()
            band[: len(kept)] = kept
        self._top += count
        return mean[:, : self._lattice.shape[1]]


def to_pixels(scores: Tensor, known: Tensor, cell: int) -> Tensor:
    """Scores of cells as those of pixels, bilinearly between the middles of cells that are known.

    Args:
        scores: [K, r, c].
        known: bool [r, c]; others take no part.
        cell: side of a cell.

    Returns:
        [K, r * cell, c * cell]; NaN where no cell near is known.
    """
    if cell == 1:
        return torch.where(known, scores, torch.nan)
    if bool(known.all()):
        return _bilinear(scores, cell)
    mass = _bilinear(known[None].float(), cell)
    total = _bilinear(torch.where(known, scores, 0.0), cell)
    return torch.where(mass > _ROUNDING, total / mass.clamp_min(_ROUNDING), torch.nan)


def _bilinear(planes: Tensor, factor: int) -> Tensor:
    return functional.interpolate(planes[None], scale_factor=float(factor), mode='bilinear', align_corners=False)[0]
