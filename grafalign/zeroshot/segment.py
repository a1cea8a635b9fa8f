"""Dense zero-shot segmentation of images that fit into memory; scenes of any size are what fields are for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign.encoders import SatelliteEncoder
from grafalign.encoders.lattice import Blend, Lattice, to_pixels
from grafalign.encoders.windows import windows_of
from grafalign.errors import InputError


def segment(
    encoder: SatelliteEncoder,
    images: Tensor,
    classes: npt.NDArray[np.floating],
    stride_px: int | None = None,
    batch: int = 256,
) -> Tensor:
    """Score every pixel for every class.

    Windows of the encoder's size are blended as embeddings on a lattice of cells (`encoders.lattice`), and scores of
    cells are enlarged bilinearly.

    Args:
        encoder: satellite encoder with windows of S pixels.
        images: normalised images [B, C, H, W], H and W at least S.
        classes: unit class vectors [K, D].
        stride_px: how far windows move; one and a half patches by default, so that two windows never share a grid.
        batch: windows embedded at a time.

    Returns:
        Cosine scores [B, K, H, W].

    Raises:
        GrafalignError: the images are smaller than a window.
    """
    size = encoder.size_px
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise InputError(f"Images of {height} x {width} px are smaller than the encoder's {size} px; pad them.")
    lattice = Lattice(height, width, size, encoder.patch_px, stride_px or max(1, encoder.patch_px * 3 // 2))
    vectors = torch.as_tensor(classes, dtype=torch.float32, device=images.device)
    blends = [Blend(lattice, vectors.shape[1], 0, images.device) for _ in images]
    rows: list[list[Tensor]] = [[] for _ in images]
    starts, columns = lattice.starts(height), lattice.starts(width)
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        windows = torch.cat([windows_of(lattice, image[:, start : start + size]) for image in images])
        with torch.no_grad():
            patches = torch.cat([encoder(part).patches for part in windows.split(batch)])
        end = lattice.shape[0] if following is None else following // lattice.cell
        for own, blend, part in zip(rows, blends, patches.split(len(columns)), strict=True):
            blend.add(start, columns, part, torch.ones(part.shape[:3], device=images.device))
            own.append(blend.finished(end))
    return torch.stack([_scores(torch.cat(own), vectors, lattice) for own in rows])[..., :height, :width]


def _scores(means: Tensor, vectors: Tensor, lattice: Lattice) -> Tensor:
    """Scores of pixels, of mean embeddings [r, c, D]."""
    known = torch.ones(means.shape[:2], dtype=torch.bool, device=means.device)
    return to_pixels((means @ vectors.T).permute(2, 0, 1), known, lattice.cell)
