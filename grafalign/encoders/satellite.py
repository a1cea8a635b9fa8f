"""The satellite encoder: CLIP's own image tower with an image embedding and one embedding per patch.

Image embedding: as CLIP makes it. Patch embeddings, as in GRAFT's released checkpoints: LayerNorm and a bias-free
Linear on the patch tokens of the last block, started from CLIP's own final norm and projection (`towers.py` says what
that is for each kind of tower). Both live in CLIP's space and have unit length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders.bands import colours, inflate, zero_input
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.towers import tower_of
from grafalign.errors import InputError


class Embeddings(NamedTuple):
    """Unit vectors of B tiles in CLIP's space, and the tokens that they come from."""

    image: Tensor
    """[B, D]"""
    patches: Tensor
    """[B, h, w, D]; with patch dropout [B, 1, n, D], the n kept patches in the order they were asked for."""
    tokens: Tensor
    """What the patches are before any head, as the last block leaves them, [B, h * w, W] or [B, n, W]; not of unit
    length."""


class SatelliteEncoder(nn.Module):
    """CLIP's image tower for satellite tiles: one embedding a tile and one a patch, in CLIP's space.

    Args:
        clip: the CLIP to start from; its weights are copied, not shared.
        bands: bands of the input, by name or number. A band named red, green or blue takes CLIP's filters of that
            colour wherever it stands, others start from the mean of the filters (`bands.py`).
        size_px: side of the input; CLIP's own by default.
        fit: what happens to another size than CLIP's. `resample`: the position embeddings are resampled. `pad`: the
            tile is zero-padded to CLIP's size. With GRAFT's released models it lies in the middle (EuroSAT's 64
            px after 80 of padding, BigEarthNet's 120 after 52); ours starts where a patch of CLIP starts, as near the
            middle as that allows (after 80, and after 48), so that patches of the tile are patches of CLIP.

    Raises:
        GrafalignError: CLIP's image tower gives no patch tokens, there are no bands, the size is no multiple of its
            patch (`resample`), or larger than CLIP's (`pad`).
    """

    inside: Tensor
    outside: Tensor
    zero: Tensor

    def __init__(
        self,
        clip: FrozenClip,
        bands: Sequence[str] | int = 3,
        size_px: int | None = None,
        fit: Literal['resample', 'pad'] = 'resample',
    ) -> None:
        super().__init__()
        self.visual: Any = copy.deepcopy(clip.model.visual).requires_grad_(True)
        self.model = clip.settings.model
        self.tower = tower_of(self.visual, self.model)
        self.patch_px = self.tower.patch_px
        self.size_px = size_px or clip.image_px
        self.side = -(-self.size_px // self.patch_px)
        """Patches along a side of the tile."""
        self.bands = len(colours(bands))
        self.grad_checkpointing = False
        """Whether blocks are computed again in the backward pass instead of kept; see `tuning.py`."""
        if fit == 'pad' and self.size_px != clip.image_px:
            self._make_padding(clip, bands)
        else:
            self.canvas_px = self.size_px
            self._fit_positions(clip)
        inflate(self.tower.first_conv(), bands)
        start = self.tower.patch_start()
        self.patch_norm = copy.deepcopy(self.tower.token_norm()).requires_grad_(True)
        self.patch_proj = nn.Linear(start.shape[1], start.shape[0], bias=False, device=clip.device)
        with torch.no_grad():
            self.patch_proj.weight.copy_(start)

    @property
    def image_head(self) -> list[nn.Parameter]:
        """What only the image embedding goes through: without gradient where patches alone are trained."""
        return self.tower.head()

    @property
    def patch_head(self) -> list[nn.Parameter]:
        """What only the patch embeddings go through: without gradient where the image embedding alone is trained."""
        return [*self.patch_norm.parameters(), *self.patch_proj.parameters()]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Embeddings:
        """Embed normalised tiles [B, C, H, W].

        Args:
            images: what `TilePreprocessing` makes of tiles of `size_px`.
            keep: int64 [B, n], patches of the tile that are looked at, counted in reading order from 0 to side * side;
                the others never enter the blocks (Li et al., "Scaling Language-Image Pre-training via Masking", CVPR
                2023). Of a padded tile the patches of the padding always do, as without `keep`.

        Raises:
            GrafalignError: the images have other bands or another size, or this tower has no patch dropout.
        """
        self._check(images, keep)
        padded, entering = self.canvas_px != self.size_px, keep
        if padded:
            images = self._canvas(images)
            if keep is not None:
                entering = torch.cat([self.inside[keep], self.outside.expand(len(keep), -1)], dim=1)
        saving = self.grad_checkpointing and torch.is_grad_enabled()
        image, tokens = self.tower.run(images, entering, saving)
        if padded:
            tokens = tokens[:, self.inside] if keep is None else tokens[:, : keep.shape[1]]
        vectors = functional.normalize(self.patch_proj(self.patch_norm(tokens)), dim=-1)
        patches = rearrange(vectors, 'b (h w) d -> b h w d', h=self.side if keep is None else 1)
        return Embeddings(functional.normalize(image, dim=-1), patches, tokens)

    def _check(self, images: Tensor, keep: Tensor | None) -> None:
        bands, *size = images.shape[1:]
        if bands != self.bands:
            raise InputError(
                f'The encoder takes {self.bands} bands and the images have {bands}; '
                'give the bands it was made for (`select_bands` finds them by name).'
            )
        if tuple(size) != (self.size_px, self.size_px):
            raise InputError(
                f'The encoder takes tiles of {self.size_px} x {self.size_px} px and the images are '
                f'{size[0]} x {size[1]}; cut tiles of that size, or make an encoder with size_px {size[0]}.'
            )
        if keep is not None and not self.tower.drops:
            raise InputError(
                f'Patch dropout is not available for {self.model}, whose blocks place patches by the whole grid; '
                'switch it off, or use a ViT such as ViT-B-16 or ViT-B-16-SigLIP.'
            )

    def _fit_positions(self, clip: FrozenClip) -> None:
        if self.size_px % self.patch_px:
            raise InputError(
                f'Tiles of {self.size_px} px are no multiple of the {self.patch_px}-px patches of {self.model}; '
                f'pair with sensor.size_px {self.size_px // self.patch_px * self.patch_px or self.patch_px}.'
            )
        if self.size_px != clip.image_px:
            self.tower.resize(self.size_px)

    def _make_padding(self, clip: FrozenClip, bands: Sequence[str] | int) -> None:
        self.canvas_px = clip.image_px
        grid = clip.image_px // self.patch_px
        if self.side > grid:
            raise InputError(
                f'Tiles of {self.size_px} px are larger than the {grid * self.patch_px} px of {self.model} and cannot '
                f'be padded; resample the position embeddings, or pair with sensor.size_px {grid * self.patch_px}.'
            )
        first = min(int((self.canvas_px - self.size_px) / 2 / self.patch_px + 0.5), grid - self.side)
        self.start_px = first * self.patch_px
        is_tile = torch.zeros(grid, grid, dtype=torch.bool)
        is_tile[first : first + self.side, first : first + self.side] = True
        self.register_buffer('inside', is_tile.flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer('outside', (~is_tile.flatten()).nonzero()[:, 0], persistent=False)
        self.register_buffer('zero', zero_input(clip.mean, clip.std, bands), persistent=False)
        self.to(clip.device)

    def _canvas(self, images: Tensor) -> Tensor:
        """Tiles zero-padded to CLIP's size."""
        first, last = self.start_px, self.start_px + self.size_px
        padded = self.zero.to(images.dtype).expand(len(images), -1, self.canvas_px, self.canvas_px).clone()
        padded[:, :, first:last, first:last] = images
        return padded
