"""Flips and quarter turns that move the photo positions with the pixels, and gain jitter.

A satellite has no up: the eight symmetries of the square are all equally likely views of a place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symmetry(images: Tensor, which: Tensor) -> Tensor:
    """Apply one of the eight symmetries of the square to every image.

    Args:
        images: [B, C, S, S].
        which: int64 [B]; bits 0 and 1 count quarter turns anticlockwise, bit 2 flips left and right first.
    """
    out = images.clone()
    for code in torch.unique(which).tolist():
        here = which == code
        part = images[here]
        if code & 4:
            part = part.flip(-1)
        out[here] = torch.rot90(part, code & 3, dims=(-2, -1))
    return out


def move(rows: Tensor, cols: Tensor, which: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
    """Positions in pixels after `symmetry`.

    Args:
        rows: fractional rows in [0, size_px), [N].
        cols: the same for columns.
        which: the symmetry of the image that each position lies in, [N].
        size_px: side of the images.
    """
    flipped = torch.where(which & 4 > 0, size_px - cols, cols)
    r, c = rows, flipped
    for turn in (1, 2, 3):
        again = (which & 3) >= turn
        r, c = torch.where(again, size_px - c, r), torch.where(again, r, c)
    return r, c
