"""Embeddings of the windows of an image, row of windows by row of windows.

Missing pixels: a window without any pixel is not encoded; in others what is missing gets the window's own mean before
normalisation, and a patch that is mostly missing has no weight. At the lower and right edge windows are filled up by
reflection of their own pixels.

The windows of one row are cut into batches of about equal size, and no batch goes over two rows: whoever computes a row
computes the same batches, so its last bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grafalign.encoders.lattice import Blend, Lattice

Encode = Callable[[Tensor], Tensor]
"""Normalised windows [B, C, S, S] to embeddings [B, h, w, D]."""
_MOSTLY = 0.5
"""Share of a patch's pixels that must be there."""


@dataclass(frozen=True)
class WindowEncoder:
    """What makes embeddings of windows: the model, its normalisation, and how many windows it takes at a time."""

    encode: Encode
    mean: Tensor
    std: Tensor
    """[C]; input = (value - mean) / std."""
    width: int
    """D."""
    batch: int
    device: torch.device


def blended_rows(
    lattice: Lattice,
    encoder: WindowEncoder,
    pixels: Callable[[int, int], tuple[Tensor, Tensor]],
    first: int = 0,
    last: int | None = None,
) -> Iterator[tuple[int, Tensor, int]]:
    """Blend the windows of an image, from the top down, holding one row of windows at a time.

    Args:
        lattice: where windows lie.
        encoder: what encodes them.
        pixels: rows `start` to `stop` of the image as float32 [C, rows, W] in 0 to 1 and what is there as bool
            [rows, W], on the CPU; asked for with rising `start`.
        first: first row of cells wanted.
        last: row of cells to end before; all by default.

    Yields:
        For each row of windows its first pixel row, the mean embeddings [rows, columns, D] of the rows of cells that
        are finished by it (0 where nothing is known), and how many windows were encoded.
    """
    rows = lattice.shape[0]
    last = rows if last is None else last
    blend = Blend(lattice, encoder.width, first, encoder.device)
    starts = lattice.starts(lattice.height)
    ends = [start // lattice.cell for start in starts[1:]] + [rows]  # rows that no later window touches
    for start, end in zip(starts, ends, strict=True):
        if start // lattice.cell + lattice.window_cells <= first:
            continue
        if start // lattice.cell >= last:
            break
        encoded = _encode_row(
            lattice, encoder, blend, start, *pixels(start, min(start + lattice.window, lattice.height))
        )
        yield start, blend.finished(max(first, min(end, last))), encoded


def _encode_row(
    lattice: Lattice, encoder: WindowEncoder, blend: Blend, start: int, values: Tensor, present: Tensor
) -> int:
    """Encode the windows of one row into the blend; how many there were."""
    columns = lattice.starts(lattice.width)
    windows, masks = windows_of(lattice, values), windows_of(lattice, present[None])[:, 0]
    used = [i for i in range(len(columns)) if bool(masks[i].any())]
    for batch in np.array_split(np.asarray(used), -(-len(used) // encoder.batch)) if used else []:
        mask = masks[batch]
        inputs = _normalised(windows[batch].to(encoder.device), mask.to(encoder.device), encoder)
        with torch.no_grad():
            patches = encoder.encode(inputs)
        share = functional.avg_pool2d(mask[:, None].float(), lattice.patch, ceil_mode=True, count_include_pad=False)
        keep = (share[:, 0] > _MOSTLY).to(encoder.device)
        blend.add(start, [columns[i] for i in batch], patches, keep)
    return len(used)


def windows_of(lattice: Lattice, rows: Tensor) -> Tensor:
    """The windows [n, C, S, S] of a row of windows, from left to right, as views where nothing has to be reflected.

    Args:
        lattice: where windows lie.
        rows: the pixels of the row, [C, S, W]; fewer than S rows at the lower edge.
    """
    last = lattice.starts(lattice.width)[-1]
    if rows.shape[1] < lattice.window:
        rows = rows[:, _reflected(rows.shape[1], lattice.window, 0)]
    if last + lattice.window > lattice.width:
        rows = rows[:, :, _reflected(lattice.width, last + lattice.window, last)]
    return rows.unfold(2, lattice.window, lattice.stride).permute(2, 0, 1, 3)


def _normalised(windows: Tensor, mask: Tensor, encoder: WindowEncoder) -> Tensor:
    """The encoder's input; missing pixels are the mean of those of their window that are there."""
    if not bool(mask.all()):
        there = mask[:, None]
        mean = (windows * there).sum((2, 3), keepdim=True) / there.sum((2, 3), keepdim=True)
        windows = torch.where(there, windows, mean)
    return (windows - encoder.mean[:, None, None]) / encoder.std[:, None, None]


def _reflected(length: int, count: int, first: int) -> Tensor:
    """Indexes of `count` pixels of an axis of `length`: beyond the end they go back and forth, not below `first`.

    Example:
        >>> _reflected(4, 9, 1).tolist()
        [0, 1, 2, 3, 2, 1, 2, 3, 2]
    """
    index = torch.arange(count)
    span = length - 1 - first
    if span == 0:
        return index.clamp(max=length - 1)
    beyond = (index - first).remainder(2 * span)
    return torch.where(index < length, index, first + torch.minimum(beyond, 2 * span - beyond))
