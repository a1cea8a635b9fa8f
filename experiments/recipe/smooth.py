"""Our reading of smooth attention pooling, and its controls: grids of embeddings for `grafalign.zeroshot.segment`.

The paper calls its Smooth-Attention-Operation an attention-pooling mechanism with sliding windows and gives no equation
that we could read. Ours: for every window of w x w tokens, the pooling query of the model attends to the tokens of that
window alone, and goes on through the rest of the model as ever; a patch gets the mean of the windows that contain it,
and these are averaged over some w.

    s_p = q . k_p / sqrt(d)     of each head, with the class token's query of the last block
    z_W = sum over p in W of softmax_W(s)_p v_p
    e_W = what the last block, norm and projection make of z_W, of unit length
    patch p: mean over w of the mean over the windows W that contain p of e_W

A text's score is linear in the patch's embedding, so it is the mean of the windows' scores. Sums over windows are box
filters of exp(s) and exp(s) v. With w = 1 a token is attended to alone (as in MaskCLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from grafalign.encoders import SatelliteEncoder


@dataclass(frozen=True)
class Grid:
    """What `segment` reads: embeddings [B, h, w, D]."""

    patches: Tensor


class Patches:
    """Patch embeddings, or their means over w x w neighbours."""

    def __init__(self, encoder: SatelliteEncoder, width: int = 1) -> None:
        self._encoder, self._width = encoder, width
        self.size_px, self.patch_px = encoder.size_px, encoder.patch_px

    def __call__(self, images: Tensor) -> Grid:
        """Embeddings of patches."""
        patches = self._encoder(images).patches
        return Grid(functional.normalize(mean_filter(patches, self._width), dim=-1))


class Windows:
    """The image embedding of a window, for all of it."""

    def __init__(self, encoder: SatelliteEncoder) -> None:
        self._encoder = encoder
        self.size_px, self.patch_px = encoder.size_px, encoder.size_px

    def __call__(self, images: Tensor) -> Grid:
        """One embedding a window."""
        return Grid(self._encoder(images).image[:, None, None])


class Smooth:
    """Windows of tokens pooled by the class token's own attention; open_clip's vision transformers only.

    Args:
        encoder: with a class token.
        widths: the w, averaged.
        residual: whether the class token itself is added to what it reads, as the model does.
    """

    def __init__(self, encoder: SatelliteEncoder, widths: Sequence[int], *, residual: bool) -> None:
        self._encoder, self._widths, self._residual = encoder, tuple(widths), residual
        self.size_px, self.patch_px = encoder.size_px, encoder.patch_px

    def __call__(self, images: Tensor) -> Grid:
        """Embeddings of patches."""
        visual: Any = self._encoder.visual
        *before, last = visual.transformer.resblocks
        tokens = visual._embeds(images)
        for block in before:
            tokens = block(tokens)
        queries, keys, values = projected(last.attn, last.ln_1(tokens))
        side = self._encoder.side
        scores = (queries[:, :, :1] * keys[:, :, 1:]).sum(-1) * keys.shape[-1] ** -0.5  # [B, heads, N]
        weight = rearrange((scores - scores.amax(-1, keepdim=True)).exp(), 'b m (h w) -> b m 1 h w', h=side)
        grid = rearrange(values[:, :, 1:], 'b m (h w) d -> b m d h w', h=side)
        own = tokens[:, 0] if self._residual else torch.zeros_like(tokens[:, 0])
        means = [self._pooled(weight, grid, own, width, last) for width in self._widths]
        return Grid(torch.stack(means).mean(0))

    def _pooled(self, weight: Tensor, grid: Tensor, own: Tensor, width: int, last: Any) -> Tensor:
        """Mean embedding [B, h, w, D] of the windows of one width that contain a patch."""
        visual: Any = self._encoder.visual
        side = self._encoder.side
        width = min(width, side)
        both = torch.cat([weight * grid, weight], dim=2).flatten(0, 1)  # [B * heads, d + 1, h, w]
        sums = functional.avg_pool2d(both, width, 1)
        read = rearrange(sums[:, :-1] / sums[:, -1:], '(b m) d h w -> b h w (m d)', b=len(own))
        hidden = own[:, None, None] + last.ls_1(last.attn.out_proj(read))
        hidden = hidden + last.ls_2(last.mlp(last.ln_2(hidden)))
        pooled = visual.ln_post(hidden)
        found = functional.normalize(pooled if visual.proj is None else pooled @ visual.proj, dim=-1)
        return containing(found, width)


def projected(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def mean_filter(grid: Tensor, width: int) -> Tensor:
    """Mean over the width x width neighbours of each token that are there, [B, h, w, D]."""
    moved = grid.permute(0, 3, 1, 2)
    found = functional.avg_pool2d(moved, width, 1, width // 2, count_include_pad=False)
    return found.permute(0, 2, 3, 1)
