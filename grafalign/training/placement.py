"""Where in a tile is the ground that a photo shows? Weights over the patches of the tile, for every photo.

`point`      all weight on the patch that holds the geotag (GRAFT).
`gaussian`   a normal distribution about the geotag, as wide as its stated accuracy.
`view_cone`  the ground in the field of view, fading with distance, where the heading is known; else as `gaussian`.

`attention` then asks a finished run which of these patches the photo shows: where it looks is not all that it shows.

Geotags are off by metres to tens of metres, and a camera looks *somewhere*: a photo is no statement about the ground
under the photographer's feet. Weights of a photo always add up to 1 over the patches of its tile: what a distribution
would put outside the tile is shared out inside it, and `mass_inside` says how much was inside before.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grafalign.config import Settings

RADIUS_PER_SIGMA = 1.515
"""Radius of the circle that holds 68 % of a round normal distribution: what phones report as accuracy."""
_SAMPLES = 2
"""Points along each side of a patch at which the field of view is looked at."""
_PHOTOS = 256
"""Photos whose fields of view are computed at a time: at 14 x 14 patches each takes a few hundred kilobytes."""
_COMPASS_DEG = 10.0
"""Softness of the sides of the field of view: the error of a phone's compass."""


class AttentionSettings(Settings):
    """A finished run that tells which patches a photo shows (ours: one E-step of EM, see `attend`)."""

    run: Path
    """At level patch or both, on tiles of the same kind."""
    tau: float = Field(default=0.1, gt=0)
    """Temperature of the attention: less is sharper (our choice)."""


class PlacementSettings(Settings):
    """How photos are placed (ours, except `point`)."""

    kind: Literal['point', 'gaussian', 'view_cone'] = 'point'
    unknown_accuracy_m: float = Field(default=10.0, gt=0)
    """Accuracy of photos that state none: radius that holds the true place in 68 % of cases."""
    field_of_view_deg: float = Field(default=65.0, gt=0, le=360)
    """Width of the field of view of photos whose camera tells none (EXIF's focal length as of 35-mm film)."""
    reach_m: float = Field(default=60.0, gt=0)
    """Distance over which the weight of what is seen falls to 1/e."""
    attention: AttentionSettings | None = None
    """Weigh patches besides by how much a finished run finds them to look like the photo. Costs its forward pass."""

    @model_validator(mode='after')
    def _has_a_choice(self) -> Self:
        if self.attention is not None and self.kind == 'point':
            raise ValueError('`attention` chooses among patches; use `kind: gaussian` or `view_cone`')
        return self


class Where(NamedTuple):
    """Places of N photos in their views."""

    row: Tensor
    """In pixels, [N]."""
    col: Tensor
    sigma_px: Tensor
    """Standard deviation of the place along each axis, [N]."""
    heading: Tensor
    """Radians clockwise from the top of the view, NaN where unknown, [N]."""
    field_of_view: Tensor
    """Radians across the photo, NaN where unknown, [N]."""
    reach_px: Tensor
    """[N]"""


class Weights(NamedTuple):
    """Weights over patches."""

    patches: Tensor
    """[N, side, side], adding up to 1 for every photo."""
    mass_inside: Tensor
    """Share that lay inside the tile before, [N]; 1 for points."""


def place(
    where: Where, settings: PlacementSettings, side: int, patch_px: float, covered: Tensor | None = None
) -> Weights:
    """Weights over patches of N photos.

    Args:
        where: their places, inside the view.
        settings: which placement.
        side: patches along each side of the tile.
        patch_px: side of a patch in pixels of the view.
        covered: share of every patch that is real ground, [N, side, side]; everything by default.
    """
    if settings.kind == 'point':
        weights = point(where, side, patch_px)
        inside = torch.ones_like(where.row)
    else:
        weights = gaussian(where, side, patch_px)
        inside = weights.sum((1, 2))
        if settings.kind == 'view_cone':
            cone, seen = view_cone(where, settings.field_of_view_deg, side, patch_px)
            known = where.heading.isfinite() & (seen > 1e-3)
            weights = torch.where(known[:, None, None], cone, weights)
            inside = torch.where(known, seen, inside)
    if covered is not None:
        weights = weights * covered.clamp_min(1e-6)  # a photo at the very edge of the ground keeps its patch
    return Weights(weights / weights.sum((1, 2), keepdim=True), inside)


def attend(weights: Tensor, cosines: Tensor, tau: float) -> Tensor:
    """Weights times how much each patch looks like the photo, adding up to 1 again:  w_i exp(cos_i / tau).

    One E-step of expectation-maximization: w is what is known beforehand of the patch that a photo shows, the rest its
    likelihood in a model that was trained with w alone (as Papandreou et al., ICCV 2015, find the pixels of image
    labels). In the sandbox an attention that learns as it goes along gains nothing (`experiments/levers`).

    Args:
        weights: of N photos, [N, side, side].
        cosines: of the angles between each photo and its tile's patches, as the run embeds them, [N, side, side].
        tau: temperature.

    Worked example: a photo with weights (0.5, 0.5) on two patches, one of a cosine 0.1 higher than the other's, has
    (0.73, 0.27) at a temperature of 0.1.
    """
    scores = cosines / tau + weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return scores.flatten(1).softmax(1).view_as(weights)


def patch_of(rows: Tensor, cols: Tensor, patch_px: float, side: int) -> tuple[Tensor, Tensor]:
    """Patch row and column that hold positions in pixels: floor(row / patch), kept inside the grid."""
    return tuple((v / patch_px).floor().long().clamp(0, side - 1) for v in (rows, cols))  # type: ignore[return-value]


def point(where: Where, side: int, patch_px: float) -> Tensor:
    """1 on the patch that holds the place, [N, side, side]."""
    row, col = patch_of(where.row, where.col, patch_px, side)
    weights = torch.zeros(len(row), side * side, device=row.device, dtype=where.row.dtype)
    return weights.scatter_(1, (row * side + col)[:, None], 1).view(-1, side, side)


def gaussian(where: Where, side: int, patch_px: float) -> Tensor:
    """Probability of each patch under a round normal distribution about the place, [N, side, side]."""
    rows, cols = (_share(v, where.sigma_px, side, patch_px) for v in (where.row, where.col))
    return rows[:, :, None] * cols[:, None, :]


def _share(centre: Tensor, sigma: Tensor, side: int, patch_px: float) -> Tensor:
    """Integral of a normal distribution over the `side` patches of one axis, [N, side]."""
    edges = torch.arange(side + 1, device=centre.device, dtype=centre.dtype) * patch_px
    at = (edges - centre[..., None]) / sigma.clamp_min(1e-3)[..., None]
    cumulative = torch.special.ndtr(at.double()).to(centre.dtype)
    return cumulative.diff(dim=-1)


def view_cone(where: Where, field_of_view_deg: float, side: int, patch_px: float) -> tuple[Tensor, Tensor]:
    """Weight of the ground in the field of view, blurred by the uncertainty of the place.

    At distance d the weight is exp(-d / reach) / max(d, one patch): a camera shows the near ground larger. A photo that
    tells its own field of view has that one.

    Returns:
        [N, side, side], and the share of all weight (over three tiles by three) that lies inside the tile, [N].
    """
    parts = [
        _cones(Where(*part), field_of_view_deg, side, patch_px)
        for part in zip(*(v.split(_PHOTOS) for v in where), strict=True)
    ]
    seen = torch.cat(parts)
    return seen, seen.sum((1, 2))


def _cones(where: Where, field_of_view_deg: float, side: int, patch_px: float) -> Tensor:
    points = (torch.arange(3 * side * _SAMPLES, device=where.row.device) + 0.5) * (patch_px / _SAMPLES)
    points = points.to(where.row.dtype) - side * patch_px
    down = points[None, :, None] - where.row[:, None, None]
    right = points[None, None, :] - where.col[:, None, None]
    far = (down.square() + right.square()).sqrt()
    off = torch.atan2(right, -down) - where.heading.nan_to_num()[:, None, None]
    off = torch.atan2(off.sin(), off.cos()).abs()
    known = where.field_of_view.isfinite()
    half = torch.where(known, where.field_of_view, math.radians(field_of_view_deg))[:, None, None] / 2
    soft = math.radians(_COMPASS_DEG)
    weight = torch.special.ndtr((half - off) / soft) * torch.exp(-far / where.reach_px[:, None, None])
    weight = weight / far.clamp_min(patch_px)
    n = 3 * side
    cells = weight.view(-1, n, _SAMPLES, n, _SAMPLES).mean((2, 4))
    cells = cells / cells.sum((1, 2), keepdim=True)
    centres = (torch.arange(n, device=points.device, dtype=points.dtype) + 0.5 - side) * patch_px
    sigma = where.sigma_px[:, None].expand(-1, n)
    blur = _share(centres.expand(len(where.row), -1), sigma, side, patch_px)  # [N, from, to]
    return torch.einsum('nab,nac,nbd->ncd', cells, blur, blur)
