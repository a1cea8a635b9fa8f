"""Augmentation: each tile is seen through one linear map, and its photos' places and headings go through the same map.

A satellite has no up: the eight symmetries of the square are all equally likely views of a place, and they are exact.
Any other turn, zoom or shift is one bilinear resampling. All random numbers are drawn from the step (numpy, on the
host); pixels are moved for the whole batch at once, on the device.

Places are (row, column) in pixels from the top left corner; headings are radians clockwise from the top of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from grafalign.config import Settings

Floats = npt.NDArray[np.float32]
_AIRLIGHT = 0.8
"""What haze looks like, in the encoder's [0, 1]."""


class AugmentSettings(Settings):
    """How tiles are changed from step to step (all our choice; GRAFT's is not known)."""

    symmetry: bool = True
    """Flips and quarter turns; exact."""
    turn: bool = False
    """Any angle."""
    zoom: float = Field(default=1.0, ge=1)
    """Scale between 1/zoom and zoom, drawn evenly in its logarithm."""
    shift: float = Field(default=0.0, ge=0, lt=1)
    """Largest shift as a share of the side; with `zoom` this is a random crop."""
    gain: float = Field(default=0.1, ge=0)
    """Standard deviation of the brightness jitter; half as much again per band."""
    haze: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of a veil of haze, drawn evenly from 0."""
    band_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each band to be missing (set to its mean); one band is always left."""

    @property
    def resamples(self) -> bool:
        """Whether views are more than symmetries."""
        return self.turn or self.zoom > 1 or self.shift > 0


NO_AUGMENTATION = AugmentSettings(symmetry=False, gain=0)


@dataclass(frozen=True)
class Views:
    """How each of B tiles is seen."""

    code: npt.NDArray[np.int64]
    """Symmetry, [B]: bits 0 and 1 count quarter turns anticlockwise, bit 2 flips left and right first."""
    matrix: Floats
    """[B, 2, 2]: from a place to its place in the view, both relative to the centre, in (row, column)."""
    shift: Floats
    """[B, 2]: the place that comes to the centre, relative to the centre, in pixels."""
    gain: Floats
    """[B, C]"""
    haze: Floats
    """[B]"""
    band: npt.NDArray[np.bool_]
    """[B, C]: bands that are there."""


def draw_views(rng: np.random.Generator, count: int, bands: int, size_px: int, settings: AugmentSettings) -> Views:
    """Draw how `count` tiles are seen."""
    code = rng.integers(0, 8, count) if settings.symmetry else np.zeros(count, dtype=np.int64)
    matrix = _SYMMETRIES[code]
    shift = np.zeros((count, 2))
    if settings.resamples:
        angle = rng.uniform(0, 2 * np.pi, count) if settings.turn else np.zeros(count)
        scale = np.exp(rng.uniform(-1, 1, count) * np.log(settings.zoom))
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2) @ matrix
        shift = rng.uniform(-1, 1, (count, 2)) * settings.shift * size_px
    noise = rng.normal(size=(count, 1)) + 0.5 * rng.normal(size=(count, bands))
    band = rng.random((count, bands)) >= settings.band_dropout
    band[np.arange(count), rng.integers(0, bands, count)] = True
    return Views(
        code,
        matrix.astype(np.float32),
        shift.astype(np.float32),
        (1 + settings.gain * noise).astype(np.float32),
        (settings.haze * rng.random(count)).astype(np.float32),
        band,
    )


def _turned(code: int) -> Floats:
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), code & 3)
    return np.asarray(turn @ np.diag([1, -1 if code & 4 else 1]), dtype=np.float32)


_SYMMETRIES = np.stack([_turned(code) for code in range(8)])


def move(rows: Floats, cols: Floats, matrix: Floats, shift: Floats, size_px: int) -> tuple[Floats, Floats]:
    """Where places of a tile are in its view.

    Args:
        rows: [N]
        cols: [N]
        matrix: of the view that each place is seen through, [N, 2, 2].
        shift: the same, [N, 2].
        size_px: side of the tile and of the view.
    """
    half = size_px / 2
    from_centre = np.stack([rows, cols], -1) - half - shift
    moved = np.einsum('nij,nj->ni', matrix, from_centre) + half
    return moved[:, 0].astype(np.float32), moved[:, 1].astype(np.float32)


def turn_headings(headings: Floats, matrix: Floats) -> Floats:
    """Headings [N] (radians, NaN where unknown) as seen in the view."""
    ahead = np.stack([-np.cos(headings), np.sin(headings)], -1)
    moved = np.einsum('nij,nj->ni', matrix, ahead)
    return np.arctan2(moved[:, 1], -moved[:, 0]).astype(np.float32)


def zoom_of(matrix: Floats) -> Floats:
    """Pixels of the view for each pixel of the tile, [N]."""
    return np.sqrt(np.abs(np.linalg.det(matrix))).astype(np.float32)


def symmetry(images: Tensor, code: Tensor) -> Tensor:
    """Apply one of the eight symmetries of the square to every image, without resampling.

    Args:
        images: [B, C, S, S].
        code: int64 [B], as `Views.code`.
    """
    out = images.clone()
    for one in torch.unique(code).tolist():
        here = code == one
        part = images[here]
        if one & 4:
            part = part.flip(-1)
        out[here] = torch.rot90(part, one & 3, dims=(-2, -1))
    return out


def look(images: Tensor, matrix: Tensor, shift: Tensor, padding: str = 'reflection') -> Tensor:
    """See images [B, C, S, S] through their views (bilinear).

    Args:
        images: square images.
        matrix: [B, 2, 2], as `Views.matrix`.
        shift: [B, 2], as `Views.shift`.
        padding: what lies outside: `reflection`, or `zeros`.
    """
    size = images.shape[-1]
    back = torch.linalg.inv(matrix.float())  # from the view to the tile, (row, column)
    back = back.flip(-1, -2)  # grid_sample speaks of (x, y), in units of half the side
    offset = (shift.float() * 2 / size).flip(-1)
    with torch.autocast(images.device.type, enabled=False):  # in bfloat16 pixels would land up to one pixel off
        grid = functional.affine_grid(torch.cat([back, offset[..., None]], -1), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid.to(images.dtype), padding_mode=padding, align_corners=False)


def footprint(matrix: Tensor, shift: Tensor, size_px: int, patch_px: int) -> Tensor:
    """Share of every patch of a view that the tile covers, [B, side, side]: the rest is filling."""
    whole = torch.ones(len(matrix), 1, size_px, size_px, device=matrix.device)
    seen = look(whole, matrix, shift, 'zeros')
    beyond = -size_px % patch_px  # the last patches of a padded tile
    return functional.avg_pool2d(functional.pad(seen, (0, beyond, 0, beyond)), patch_px)[:, 0]


def veil(unit: Tensor, haze: Tensor) -> Tensor:
    """Images [B, C, H, W] in [0, 1] behind a share [B] of haze."""
    share = haze.view(-1, 1, 1, 1)
    return unit * (1 - share) + _AIRLIGHT * share
