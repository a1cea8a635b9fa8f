"""From scores of cells to classes of pixels, in time that depends on borders rather than on pixels.

A pixel's scores lie between those of the four cells whose middles surround it, and are linear in each of them. Where
one class wins in all four, it wins everywhere between them: nothing has to be computed there. Where corners differ,
only classes are enlarged that may win between them: those that no corner's class beats at all four corners.

Confidence is the probability of the pixel's class: that of the four cells, weighted alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

UNKNOWN = -1
_ROUNDING = 1e-5
"""Weights below are what rounding leaves of 0."""
_SCORES = 1 << 20
"""Scores of corners that are looked at at a time."""
_GROUPS = 8
"""Blocks are enlarged in so many groups of about as many candidates."""


@dataclass(frozen=True)
class CellScores:
    """What is known of some rows of cells."""

    scores: Tensor
    """[r, c, K]"""
    known: Tensor
    """bool [r, c]"""
    temperature: float
    """Probabilities are softmax(scores / temperature)."""


def best_of(cells: CellScores) -> tuple[Tensor, Tensor]:
    """The class of each cell, `UNKNOWN` where nothing is known, and the log of the sum that its probabilities have."""
    labels = torch.where(cells.known, cells.scores.argmax(-1), UNKNOWN)
    return labels, torch.logsumexp(cells.scores / cells.temperature, dim=-1)


def pixel_labels(cells: CellScores, cell: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Classes [r * cell, c * cell] of all pixels of some cells, and how probable they are.

    Beyond the middles of the outermost cells their own scores hold. `UNKNOWN` where none of the four cells is known.

    Example: two cells, of which the first is 3 : 1 for class 0 and the second 2 : 1 for class 1; four pixels a cell
        >>> scores = torch.tensor([[[3.0, 1.0], [1.0, 2.0]]])
        >>> labels, _ = pixel_labels(CellScores(scores, torch.ones(1, 2, dtype=torch.bool), 1.0), 4)
        >>> labels[0].tolist()  # their middles lie at 2 and 6; they are equal at 4 + 2/3
        [0, 0, 0, 0, 0, 1, 1, 1]
    """
    rows, columns, classes = cells.scores.shape
    labels, total = best_of(cells)
    if cell == 1:
        chance = torch.exp(cells.scores.amax(-1) / cells.temperature - total)
        return labels.numpy().astype(np.int32), torch.where(cells.known, chance, 0.0).numpy()
    # corners of the blocks between middles: cells, with the outermost ones repeated
    index_r = torch.arange(-1, rows + 1).clamp(0, rows - 1)
    index_c = torch.arange(-1, columns + 1).clamp(0, columns - 1)
    flat = (index_r[:, None] * columns + index_c[None, :]).long()
    corners = torch.stack([flat[:-1, :-1], flat[:-1, 1:], flat[1:, :-1], flat[1:, 1:]], dim=-1).view(-1, 4)
    at_corners = labels.view(-1)[corners]
    uniform = (at_corners == at_corners[:, :1]).all(1)
    weights = _weights(cell)  # [4, cell * cell]
    chance = torch.where(
        cells.known.view(-1), torch.exp(cells.scores.amax(-1) / cells.temperature - total).view(-1), torch.zeros(())
    )
    block_labels = at_corners[:, :1].to(torch.int32).repeat(1, cell * cell)
    block_chance = chance[corners] @ weights
    mixed = torch.nonzero(~uniform)[:, 0]
    step = max(1, _SCORES // (4 * classes))
    for start in range(0, len(mixed), step):
        blocks = mixed[start : start + step]
        four = _Corners(
            cells.scores.view(-1, classes)[corners[blocks]], cells.known.view(-1)[corners[blocks]], at_corners[blocks]
        )
        sums = total.view(-1)[corners[blocks]]
        for part, candidates in four.candidates():
            winner, mass = four.winners(part, candidates, weights)
            inside = blocks[part]
            block_labels[inside] = torch.where(mass > _ROUNDING, winner, UNKNOWN).to(torch.int32)
            block_chance[inside] = four.chances(part, winner, sums[part], cells.temperature, weights, mass)
    return _as_image(block_labels, rows, columns, cell), _as_image(block_chance, rows, columns, cell)


@dataclass(frozen=True)
class _Corners:
    """Some blocks with their four corners."""

    scores: Tensor
    """[n, 4, K]"""
    known: Tensor
    """bool [n, 4]"""
    labels: Tensor
    """[n, 4]: the class of each corner."""

    def candidates(self) -> list[tuple[Tensor, Tensor]]:
        """Blocks [m], and the classes that may win anywhere between their corners, rising, [m, M].

        A class is out where a corner's class is no worse at any corner, as it then is no worse between them. Blocks of
        few candidates go together; where one has fewer than M its last one is repeated.
        """
        unknown = ~self.known[..., None]
        possible = torch.ones(len(self.scores), self.scores.shape[2], dtype=torch.bool)
        winners = self.labels.clamp_min(0)
        for corner in range(4):
            theirs = torch.gather(self.scores, 2, winners[:, corner, None, None].expand(-1, 4, 1))
            beaten = ((theirs >= self.scores) | unknown).all(1)
            possible &= ~beaten | ~self.known[:, corner, None]
        every = torch.arange(len(winners))
        for corner in range(4):  # two that are equal everywhere have beaten each other
            possible[every, winners[:, corner]] |= self.known[:, corner]
        counts = possible.sum(1)
        groups = []
        for part in torch.argsort(counts).tensor_split(_GROUPS):
            if len(part) and (most := int(counts[part].max())):
                row, which = torch.nonzero(possible[part], as_tuple=True)
                first = torch.cumsum(counts[part], 0) - counts[part]
                listed = which[(first + counts[part] - 1).clamp_min(0)][:, None].repeat(1, most)
                listed[row, torch.arange(len(row)) - first[row]] = which
                groups.append((part, listed))
        return groups

    def winners(self, part: Tensor, candidates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The best candidate of each pixel of some blocks, [m, pixels], and the weight of what is known there."""
        there = self.known[part].float()
        scores = torch.gather(self.scores[part], 2, candidates[:, None, :].expand(-1, 4, -1)) * there[..., None]
        which = (scores.transpose(1, 2) @ weights).max(1).indices  # all are to be divided by the same weight
        return torch.gather(candidates, 1, which), there @ weights

    def chances(
        self, part: Tensor, winner: Tensor, sums: Tensor, temperature: float, weights: Tensor, mass: Tensor
    ) -> Tensor:
        """The probability of each pixel's class: that of the corners, weighted, [m, pixels]."""
        logs = torch.gather(self.scores[part], 2, winner[:, None, :].expand(-1, 4, -1)).div_(temperature)
        chance = logs.sub_(sums[..., None]).exp_().mul_(self.known[part].float()[..., None])
        return chance.mul_(weights).sum(1) / mass.clamp_min(_ROUNDING)


def _weights(cell: int) -> Tensor:
    """How much each corner of a block counts at each of its pixels, [4, cell * cell]."""
    far = (torch.arange(cell) + 0.5) / cell
    if cell % 2:  # middles of cells are middles of pixels
        far = torch.arange(cell) / cell
    near = 1 - far
    return torch.stack([near[:, None] * near, near[:, None] * far, far[:, None] * near, far[:, None] * far]).view(4, -1)


def _as_image(blocks: Tensor, rows: int, columns: int, cell: int) -> npt.NDArray:  # type: ignore[type-arg]
    """Blocks [(r + 1) * (c + 1), cell * cell] between middles as pixels [r * cell, c * cell] of the cells."""
    image = blocks.view(rows + 1, columns + 1, cell, cell).permute(0, 2, 1, 3).reshape((rows + 1) * cell, -1)
    first = cell - cell // 2
    return image[first : first + rows * cell, first : first + columns * cell].contiguous().numpy()
