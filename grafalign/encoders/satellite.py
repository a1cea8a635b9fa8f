"""The satellite encoder: CLIP's own vision transformer with an image embedding and one embedding per patch.

Image embedding: CLIP's class token through its final norm and projection. Patch embeddings, as in GRAFT's released
checkpoints: LayerNorm and a bias-free Linear on the patch tokens of the last block, started from CLIP's own final norm
and projection. Both live in CLIP's space and have unit length.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders.clip import FrozenClip
from grafalign.errors import GrafalignError
from grafalign.store import Sensor


class Embeddings(NamedTuple):
    """Unit vectors of B tiles in CLIP's space."""

    image: Tensor
    """[B, D]"""
    patches: Tensor
    """[B, h, w, D]"""


class SatelliteEncoder(nn.Module):
    """Embeds satellite tiles.

    Args:
        clip: the CLIP to start from; its weights are copied, not shared.
        bands: bands of the input; extra bands start from the mean of CLIP's colour filters.
        size_px: side of the input; position embeddings are resampled where it is not CLIP's own.

    Raises:
        GrafalignError: CLIP's image tower is no open_clip vision transformer, or the size is no multiple of its patch.
    """

    def __init__(self, clip: FrozenClip, bands: int = 3, size_px: int | None = None) -> None:
        super().__init__()
        from open_clip.transformer import VisionTransformer

        visual: Any = clip.model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != 'tok' or visual.proj is None:
            raise GrafalignError(
                f'{clip.settings.model} has no plain vision transformer as image tower; use a ViT such as ViT-B-16.'
            )
        self.visual: Any = copy.deepcopy(visual).requires_grad_(True)
        self.patch_px = int(visual.patch_size[0])
        self.size_px = size_px or clip.image_px
        if self.size_px % self.patch_px:
            raise GrafalignError(
                f'Tiles of {self.size_px} px are no multiple of the {self.patch_px}-px patches of '
                f'{clip.settings.model}; '
                f'pair with sensor.size_px {self.size_px // self.patch_px * self.patch_px or self.patch_px}.'
            )
        side = self.size_px // self.patch_px
        if self.size_px != clip.image_px:
            self.visual.positional_embedding = nn.Parameter(_resample(visual.positional_embedding.detach(), side))
            self.visual.grid_size = (side, side)
            self.visual.image_size = (self.size_px, self.size_px)
        if bands != 3:
            self.visual.conv1 = _inflate(self.visual.conv1, bands)
        width, depth = visual.proj.shape
        self.patch_norm = copy.deepcopy(visual.ln_post).requires_grad_(True)
        self.patch_proj = nn.Linear(width, depth, bias=False)
        with torch.no_grad():
            self.patch_proj.weight.copy_(visual.proj.T)

    def forward(self, images: Tensor) -> Embeddings:
        """Embed normalised tiles [B, C, H, W]."""
        out = self.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=False, output_fmt='NLC', output_extra_tokens=False
        )
        tokens = self.patch_proj(self.patch_norm(out['image_intermediates'][-1]))
        side = self.size_px // self.patch_px
        patches = rearrange(functional.normalize(tokens, dim=-1), 'b (h w) d -> b h w d', h=side, w=side)
        return Embeddings(functional.normalize(out['image_features'], dim=-1), patches)


def _resample(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1 + g * g, width] of the class token and a grid, for a grid of another size."""
    old = round((len(positions) - 1) ** 0.5)
    grid = rearrange(positions[1:], '(h w) d -> 1 d h w', h=old)
    grid = functional.interpolate(grid, (side, side), mode='bicubic', antialias=True, align_corners=False)
    return torch.cat([positions[:1], rearrange(grid, '1 d h w -> (h w) d')])


def _inflate(conv: nn.Conv2d, bands: int) -> nn.Conv2d:
    """A patch embedding for any number of bands whose output keeps its scale: RGB filters first, then their mean."""
    wide = nn.Conv2d(bands, conv.out_channels, conv.kernel_size, conv.stride, bias=conv.bias is not None)  # type: ignore[arg-type]
    with torch.no_grad():
        extra = conv.weight.mean(1, keepdim=True).expand(-1, max(0, bands - 3), -1, -1)
        wide.weight.copy_(torch.cat([conv.weight, extra], dim=1)[:, :bands] * (3 / bands))
        if conv.bias is not None and wide.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide


class PixelRule(nn.Module):
    """From stored numbers to the encoder's input: one fixed rule per sensor, never a per-tile stretch.

    physical = stored * scale + offset; x = (physical - low) / (high - low), clipped to [0, 1]; then CLIP's mean and
    standard deviation (their averages for bands beyond three).

    Args:
        sensor: gives the value range and the number of bands.
        clip: gives mean and standard deviation.
    """

    def __init__(self, sensor: Sensor, clip: FrozenClip) -> None:
        super().__init__()
        bands = len(sensor.bands)
        self.low, self.high = sensor.value_range
        for name, three in (('mean', clip.mean), ('std', clip.std)):
            values = (list(three) + [sum(three) / 3] * bands)[:bands]
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Stored pixels [B, C, H, W] with scale and offset [B, C] to the normalised input."""
        mean, std = self.get_buffer('mean'), self.get_buffer('std')
        unit = self.unit(pixels, scale, offset)
        return (unit - mean) / std

    def unit(self, pixels: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """The same before mean and standard deviation: [B, C, H, W] in [0, 1], fit to be looked at."""
        physical = pixels.float() * scale[:, :, None, None] + offset[:, :, None, None]
        return ((physical - self.low) / (self.high - self.low)).clamp(0, 1)
