"""From scores of cells to classes of pixels, in time that depends on borders rather than on pixels.

A pixel's scores lie between those of the four cells whose middles surround it, and are linear in each of them. Where
one class wins in all four, it wins everywhere between them: nothing has to be computed there. Only blocks whose corners
differ are enlarged, class slice by class slice, so that memory does not grow with the classes.

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
_BLOCKS = 2048
"""Blocks that are enlarged at a time."""
_CLASSES = 64
"""Classes whose scores are enlarged at a time."""


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
    flat_scores, flat_known, flat_total = cells.scores.view(-1, classes), cells.known.view(-1), total.view(-1)
    for start in range(0, len(mixed), _BLOCKS):
        blocks = mixed[start : start + _BLOCKS]
        four = corners[blocks]
        there = flat_known[four].float()
        mass = there @ weights  # [n, pixels]
        winner, best = (
            torch.zeros(len(blocks), cell * cell, dtype=torch.long),
            torch.full((len(blocks), cell * cell), -torch.inf),
        )
        for first in range(0, classes, _CLASSES):
            part = flat_scores[four, first : first + _CLASSES] * there[..., None]  # [n, 4, k]
            values = (part.transpose(1, 2) @ weights).div_(mass.clamp_min(_ROUNDING)[:, None])  # [n, k, pixels]
            high, which = values.max(1)
            better = high > best
            winner, best = torch.where(better, which + first, winner), torch.where(better, high, best)
        logs = torch.gather(flat_scores[four], 2, winner[:, None, :].expand(-1, 4, -1)) / cells.temperature
        probability = torch.exp(logs - flat_total[four][..., None]) * there[..., None]  # [n, 4, pixels]
        block_labels[blocks] = torch.where(mass > _ROUNDING, winner, UNKNOWN).to(torch.int32)
        block_chance[blocks] = (probability * weights).sum(1) / mass.clamp_min(_ROUNDING)
    return _as_image(block_labels, rows, columns, cell), _as_image(block_chance, rows, columns, cell)


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
