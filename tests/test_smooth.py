"""Smooth attention pooling is what a loop over windows would compute; its ends are the model's own pooling."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from experiments.recipe.ways import mean_filter
from grafalign.encoders import FrozenClip, SatelliteEncoder
from grafalign.encoders.smooth import SmoothAttention, containing
from grafalign.errors import InputError
from tests.small_clips import small_clip


@pytest.fixture(scope='module')
def encoder(clip: FrozenClip) -> SatelliteEncoder:
    """The tiny CLIP's image tower for tiles of 96 px: 6 x 6 tokens, in double precision."""
    return SatelliteEncoder(clip, 3, 96).double().eval()


@pytest.fixture(scope='module')
def images() -> Tensor:
    """Two images of noise."""
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def naive(encoder: SatelliteEncoder, images: Tensor, width: int, residual: bool) -> Tensor:
    """Window by window and patch by patch, with softmax over the tokens of the window."""
    visual: Any = encoder.visual
    *before, last = visual.transformer.resblocks
    tokens = visual._embeds(images)
    for block in before:
        tokens = block(tokens)
    heads, dim = last.attn.num_heads, last.attn.embed_dim // last.attn.num_heads
    q, k, v = functional.linear(last.ln_1(tokens), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, -1)
    side = encoder.side
    total = torch.zeros(len(images), side, side, 96, dtype=images.dtype)
    count = torch.zeros(side, side, 1)
    for row in range(side - width + 1):
        for col in range(side - width + 1):
            inside = [1 + r * side + c for r in range(row, row + width) for c in range(col, col + width)]
            read = []
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                scores = (q[:, 0, None, part] * k[:, inside, part]).sum(-1) / dim**0.5
                read.append((scores.softmax(-1)[..., None] * v[:, inside, part]).sum(1))
            x = last.attn.out_proj(torch.cat(read, -1)) + (tokens[:, 0] if residual else 0)
            x = x + last.mlp(last.ln_2(x))
            e = functional.normalize(visual.ln_post(x) @ visual.proj, dim=-1)
            total[:, row : row + width, col : col + width] += e[:, None, None]
            count[row : row + width, col : col + width] += 1
    return total / count


@pytest.mark.parametrize('width', [1, 2, 3, 6])
@pytest.mark.parametrize('residual', [True, False])
def test_box_filters_are_a_loop_over_windows(
    width: int, residual: bool, encoder: SatelliteEncoder, images: Tensor
) -> None:
    """To double precision, for every width up to the whole grid."""
    with torch.no_grad():
        found = SmoothAttention(encoder, [width], residual=residual)(images).patches
        torch.testing.assert_close(found, naive(encoder, images, width, residual), rtol=0, atol=1e-12)


def test_several_widths_are_averaged(encoder: SatelliteEncoder, images: Tensor) -> None:
    """Each with the same weight."""
    with torch.no_grad():
        both = SmoothAttention(encoder, [1, 3], residual=True)(images).patches
        one, three = (SmoothAttention(encoder, [w], residual=True)(images).patches for w in (1, 3))
    torch.testing.assert_close(both, (one + three) / 2)


def test_the_widest_window_is_the_image_but_for_the_class_tokens_own_key(
    encoder: SatelliteEncoder, images: Tensor
) -> None:
    """One window over all tokens gives every patch the same embedding, near the image's."""
    with torch.no_grad():
        found = SmoothAttention(encoder, [6], residual=True)(images).patches
        image = encoder(images).image
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))
    assert float((found[:, 0, 0] * image).sum(-1).min()) > 0.8


def test_a_patch_gets_the_mean_of_the_windows_that_contain_it() -> None:
    """As in the worked example: 1 and 3 over three tokens are 1, 2, 3; a mean filter counts what is there."""
    windows = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    row = containing(windows.expand(1, 2, 2, 1), 2)
    torch.testing.assert_close(row[0, :, :, 0], torch.tensor([1.0, 2.0, 3.0]).expand(3, 3))
    grid = torch.arange(9.0).view(1, 3, 3, 1)
    filtered = mean_filter(grid, 3)[0, :, :, 0]
    assert filtered[1, 1] == 4 and filtered[0, 0] == (0 + 1 + 3 + 4) / 4


@pytest.mark.parametrize('tower', ['mean', 'CoCa', 'SigLIP', 'normed attention'])
def test_towers_without_a_class_token_are_refused(tower: str) -> None:
    """What pools by the mean or by an attention pool has no query to narrow; other attentions have other scores."""
    with pytest.raises(InputError, match='does not pool by a class token'):
        SmoothAttention(SatelliteEncoder(small_clip(tower)))


def test_a_padded_tile_is_refused() -> None:
    """Its class token sees the padding, too."""
    with pytest.raises(InputError, match='not padded'):
        SmoothAttention(SatelliteEncoder(small_clip('class token'), size_px=32, fit='pad'))


def test_a_token_that_outshines_all_others_leaves_them_their_means(encoder: SatelliteEncoder, images: Tensor) -> None:
    """Where one score lies hundreds above the rest, windows without it are finite means, not 0 / 0."""
    single = copy.deepcopy(encoder).float()
    attention = single.visual.transformer.resblocks[-1].attn
    with torch.no_grad():
        attention.in_proj_weight[: 2 * attention.embed_dim] *= 60
        found = SmoothAttention(single, [2])(images.float()).patches
    assert torch.isfinite(found).all()
