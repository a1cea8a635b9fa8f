"""Dense zero-shot segmentation: class scores of every pixel from patch embeddings, by overlapping windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from grafalign.encoders import SatelliteEncoder
from grafalign.errors import InputError


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover `length` pixels: every `stride`, and one flush with the end."""
    starts = list(range(0, length - window, stride))
    return [*starts, length - window]


def segment(
    encoder: SatelliteEncoder,
    images: Tensor,
    classes: npt.NDArray[np.floating],
    stride_px: int | None = None,
    batch: int = 256,
) -> Tensor:
    """Score every pixel for every class.

    Windows of the encoder's size slide over the image; each window's patch scores are enlarged bilinearly and summed
    with a weight that falls towards the window's edge, where patches see the least around them.

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
    reach = encoder.side * encoder.patch_px  # the last patches of a padded window reach beyond it
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise InputError(f"Images of {height} x {width} px are smaller than the encoder's {size} px; pad them.")
    stride = stride_px or max(1, encoder.patch_px * 3 // 2)
    vectors = torch.as_tensor(classes, dtype=torch.float32, device=images.device)
    ramp = 1 - (torch.linspace(-1, 1, size + 2, device=images.device)[1:-1]).abs()
    weight = ramp[:, None] * ramp[None, :]
    total = torch.zeros(len(images), len(vectors), height, width, device=images.device)
    mass = torch.zeros(height, width, device=images.device)
    per_pass = max(1, batch // len(images))
    places = [(r, c) for r in window_starts(height, size, stride) for c in window_starts(width, size, stride)]
    with torch.no_grad():
        for start in range(0, len(places), per_pass):
            part = places[start : start + per_pass]
            windows = torch.cat([images[..., r : r + size, c : c + size] for r, c in part])
            patches = encoder(windows).patches @ vectors.T
            scores = functional.interpolate(
                rearrange(patches, 'b h w k -> b k h w'), (reach, reach), mode='bilinear', align_corners=False
            )[..., :size, :size]
            for (r, c), score in zip(part, scores.split(len(images)), strict=True):
                total[..., r : r + size, c : c + size] += score * weight
                mass[r : r + size, c : c + size] += weight
    return total / mass
