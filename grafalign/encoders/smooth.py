"""Smooth attention pooling: a patch embedding from what the model's own pooling sees of the patch's surroundings.

Barzilai et al. (2025) call their Smooth-Attention-Operation an attention-pooling mechanism with sliding windows; its
equation could not be read. Our reading: for every window of w x w tokens the class token of the last block attends to
the tokens of that window alone, and goes on through the rest of the model as ever; a patch gets the mean of the windows
that contain it, and these are averaged over some w.

    s_p = q . k_p / sqrt(d)     of each head, with the class token's query of the last block
    z_W = sum over p in W of softmax_W(s)_p v_p
    e_W = what the last block, norm and projection make of z_W, of unit length
    patch p: mean over w of the mean over the windows W that contain p of e_W

A text's score is linear in the patch's embedding, so it is the mean of the windows' scores. Sums over windows are box
filters of exp(s) and exp(s) v. With w = 1 a token is attended to alone (as in MaskCLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders.satellite import SatelliteEncoder
from grafalign.encoders.towers import OpenClipTower
from grafalign.errors import InputError

_FAINTEST = -60.0
"""A token that scores less below the best one of its image counts as this: exp of much less is 0, and windows of such
tokens alone would have no mean."""


class Grid(NamedTuple):
    """What segmentation reads of an encoder."""

    patches: Tensor
    """[B, h, w, D]"""


class SmoothAttention:
    """An encoder's patches by smooth attention pooling.

    Args:
        encoder: with a class token that pools, and no padding.
        widths: the w, averaged; those larger than the grid are the whole grid. By default a quarter of the grid's side:
            2 did best on a grid of 8 tokens (`experiments/recipe`).
        residual: whether the class token itself is added to what it reads, as the model does.

    Raises:
        GrafalignError: the encoder's image tower pools otherwise.
    """

    def __init__(
        self, encoder: SatelliteEncoder, widths: Sequence[int] | None = None, *, residual: bool = True
    ) -> None:
        if not _pools_by_class_token(encoder):
            raise InputError(
                f'{encoder.model} does not pool by a class token over the tile alone, which smooth attention needs; '
                'use a ViT of open_clip such as ViT-B-16, not padded (or, for a map, --of windows).'
            )
        self._encoder, self._residual = encoder, residual
        self._widths = tuple(widths) if widths is not None else (max(1, encoder.side // 4),)
        self.size_px, self.patch_px = encoder.size_px, encoder.patch_px

    def __call__(self, images: Tensor) -> Grid:
        """Embeddings of patches, of normalised images [B, C, S, S]."""
        visual: Any = self._encoder.visual
        *before, last = visual.transformer.resblocks
        tokens = visual._embeds(images)
        for block in before:
            tokens = block(tokens)
        queries, keys, values = _projected(last.attn, last.ln_1(tokens))
        side = self._encoder.side
        scores = (queries[:, :, :1] * keys[:, :, 1:]).sum(-1) * keys.shape[-1] ** -0.5  # [B, heads, N]
        below = (scores - scores.amax(-1, keepdim=True)).clamp_min(_FAINTEST)
        weight = rearrange(below.exp(), 'b m (h w) -> b m 1 h w', h=side)
        grid = rearrange(values[:, :, 1:], 'b m (h w) d -> b m d h w', h=side)
        own = tokens[:, 0] if self._residual else torch.zeros_like(tokens[:, 0])
        means = [self._pooled(weight, grid, own, width, last) for width in self._widths]
        return Grid(torch.stack(means).mean(0))

    def _pooled(self, weight: Tensor, grid: Tensor, own: Tensor, width: int, last: Any) -> Tensor:
        """Mean embedding [B, h, w, D] of the windows of one width that contain a patch."""
        visual: Any = self._encoder.visual
        width = min(width, self._encoder.side)
        both = torch.cat([weight * grid, weight], dim=2).flatten(0, 1)  # [B * heads, d + 1, h, w]
        sums = functional.avg_pool2d(both, width, 1)
        read = rearrange(sums[:, :-1] / sums[:, -1:], '(b m) d h w -> b h w (m d)', b=len(own))
        hidden = own[:, None, None] + last.ls_1(last.attn.out_proj(read))
        hidden = hidden + last.ls_2(last.mlp(last.ln_2(hidden)))
        pooled = visual.ln_post(hidden)
        of_windows = functional.normalize(pooled if visual.proj is None else pooled @ visual.proj, dim=-1)
        return containing(of_windows, width)


def _pools_by_class_token(encoder: SatelliteEncoder) -> bool:
    """Whether it is open_clip's plain vision transformer, not padded: its last block is what this file takes apart."""
    tower = encoder.tower
    if not isinstance(tower, OpenClipTower) or encoder.canvas_px != encoder.size_px:
        return False
    if tower.visual.pool_type != 'tok' or tower.visual.attn_pool is not None:
        return False
    last: Any = tower.blocks()[-1]
    return isinstance(last, ResidualAttentionBlock) and isinstance(last.attn, nn.MultiheadAttention)


def _projected(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, 1 + N, d] of an attention of torch."""
    every = functional.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = rearrange(every, 'b n (three m d) -> three b m n d', three=3, m=attention.num_heads)
    return q, k, v


def containing(windows: Tensor, width: int) -> Tensor:
    """For every token of a grid the mean over the windows that contain it.

    Args:
        windows: values [B, h - width + 1, w - width + 1, D] of windows by their upper left token.
        width: tokens along a side of a window.

    Worked example, of one row: windows of two tokens with the values 1 and 3 over three tokens give 1, 2, 3.
    """
    ones = torch.ones_like(windows[:1, :, :, :1])
    kernel = torch.ones(1, 1, width, width, dtype=windows.dtype, device=windows.device)

    def spread(values: Tensor) -> Tensor:
        flat = rearrange(values, 'b h w d -> (b d) 1 h w')
        return rearrange(functional.conv_transpose2d(flat, kernel), '(b d) 1 h w -> b h w d', b=len(values))

    return spread(windows) / spread(ones)
