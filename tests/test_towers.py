"""Every kind of image tower starts as CLIP, gives patch tokens, and takes other sizes and fewer patches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders import FrozenClip, SatelliteEncoder
from grafalign.encoders.lattice import to_pixels
from grafalign.errors import GrafalignError
from grafalign.zeroshot import segment
from tests.small_clips import TOWERS, WITHOUT_DROPOUT, make_clip, small_clip

every_tower = pytest.mark.parametrize('tower', TOWERS)
every_tower_that_drops = pytest.mark.parametrize('tower', [t for t in TOWERS if t not in WITHOUT_DROPOUT])


def noise(*shape: int) -> Tensor:
    """The same random numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@every_tower
def test_an_untrained_encoder_is_clip(tower: str) -> None:
    """Before training, image embeddings equal CLIP's own, in training as in evaluation mode."""
    clip, images = small_clip(tower), noise(3, 3, 64, 64)
    encoder = SatelliteEncoder(clip)
    for mode in (True, False):
        torch.testing.assert_close(encoder.train(mode)(images).image, clip.encode_images(images), atol=1e-5, rtol=0)


@every_tower
def test_a_patch_starts_as_what_clip_makes_of_that_patch_alone(tower: str) -> None:
    """Patch embeddings equal CLIP's head on a sequence of nothing but that token, where the head has no biases.

    A pool that attends to equal tokens gives their value, so this holds for class tokens, means and attention pools.
    """
    clip = copy.deepcopy(small_clip(tower))
    for module in clip.model.visual.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_bias.zero_()
        for name, parameter in module.named_parameters(recurse=False):
            if name == 'bias':
                parameter.zero_()
    _straighten(clip.model.visual)
    encoder = SatelliteEncoder(clip).eval()
    images = noise(2, 3, 64, 64)
    with torch.no_grad():
        _, tokens = encoder.tower.run(images, None, False)
        expected = [_head(encoder.visual, token.expand(5, -1)[None])[0] for token in tokens.flatten(0, 1)]
        found = encoder(images).patches
    assert found.shape == (2, 4, 4, clip.encode_images(images).shape[1])
    torch.testing.assert_close(found.flatten(0, 2), functional.normalize(torch.stack(expected), dim=-1))


def _straighten(visual: Any) -> None:
    """Take out of a head what is not linear: the MLP after an attention pool, the activation of an MLP projection."""
    if hasattr(visual, 'trunk'):
        pool = getattr(visual.trunk, 'attn_pool', None)
        if pool is not None:
            pool.mlp.fc2.weight.zero_()
        if hasattr(visual.head, 'mlp'):
            visual.head.mlp.act = nn.Identity()


def _head(visual: Any, tokens: Tensor) -> Tensor:
    """CLIP's image embedding of tokens [B, n, W] that come from the last block."""
    if hasattr(visual, 'trunk'):
        return visual.head(visual.trunk.forward_head(visual.trunk.norm(tokens)))
    return visual._pool(tokens)[0] @ visual.proj


@every_tower
def test_other_sizes_are_resampled(tower: str) -> None:
    """Tiles of another size give as many patches as fit, and the size of CLIP gives the same as no size."""
    clip, images = small_clip(tower), noise(2, 3, 96, 96)
    assert SatelliteEncoder(clip, size_px=96).eval()(images).patches.shape[:3] == (2, 6, 6)
    same, own = SatelliteEncoder(clip, size_px=64).eval(), SatelliteEncoder(clip).eval()
    assert torch.equal(same(images[..., :64, :64]).image, own(images[..., :64, :64]).image)


@every_tower
def test_a_flat_position_embedding_stays_flat_when_resampled(tower: str) -> None:
    """Where CLIP adds the same to every patch, it does so at any size; prefix tokens keep what they have."""
    clip = copy.deepcopy(small_clip(tower))
    visual: Any = clip.model.visual
    trunk = getattr(visual, 'trunk', None)
    positions = (visual.positional_embedding if trunk is None else trunk.pos_embed).data
    prefix = 1 if trunk is None else trunk.num_prefix_tokens
    positions[..., prefix:, :] = 0.5
    kept = positions[..., :prefix, :].clone()
    visual = SatelliteEncoder(clip, size_px=96).visual
    positions = visual.positional_embedding if trunk is None else visual.trunk.pos_embed
    assert positions.shape[-2] == prefix + 36
    torch.testing.assert_close(positions[..., prefix:, :], torch.full_like(positions[..., prefix:, :], 0.5))
    assert torch.equal(positions[..., :prefix, :], kept)


@every_tower_that_drops
@pytest.mark.parametrize('padded', [False, True])
def test_keeping_all_patches_drops_none(tower: str, padded: bool) -> None:
    """With all patches kept, in any order, image and patches are those of no patch dropout at all."""
    size = 40 if padded else 64
    encoder = SatelliteEncoder(small_clip(tower), size_px=size, fit='pad' if padded else 'resample').train()
    images = noise(2, 3, size, size)
    count = encoder.side**2
    order = torch.stack([torch.arange(count), torch.arange(count).flip(0)])
    with torch.no_grad():
        whole, kept = encoder(images), encoder(images, order)
    assert kept.patches.shape[:3] == (2, 1, count)
    torch.testing.assert_close(kept.image, whole.image, atol=1e-6, rtol=0)
    patches = whole.patches.flatten(1, 2)
    torch.testing.assert_close(kept.patches[0, 0], patches[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.patches[1, 0], patches[1].flip(0), atol=1e-6, rtol=0)


@every_tower_that_drops
def test_dropped_patches_are_not_seen(tower: str) -> None:
    """Pixels of a patch that is not kept change nothing; the image embedding is that of the kept ones."""
    encoder = SatelliteEncoder(small_clip(tower)).eval()
    images = noise(2, 3, 64, 64)
    keep = torch.tensor([[0, 5, 10], [3, 1, 2]])
    before = encoder(images, keep)
    assert before.patches.shape[:3] == (2, 1, 3)
    other = images.clone()
    other[:, :, 48:, 48:] += 1  # patch 15
    after = encoder(other, keep)
    assert torch.equal(before.image, after.image) and torch.equal(before.patches, after.patches)
    assert not torch.allclose(before.image, encoder(images).image, atol=1e-4)


@pytest.mark.parametrize('tower', WITHOUT_DROPOUT)
def test_a_tower_that_cannot_drop_patches_says_so(tower: str) -> None:
    """Towers with positions inside their blocks refuse patch dropout in one sentence."""
    with pytest.raises(GrafalignError, match='Patch dropout is not available'):
        SatelliteEncoder(small_clip(tower))(noise(1, 3, 64, 64), torch.tensor([[0]]))


@every_tower
@pytest.mark.parametrize('size', [20, 32, 48])
def test_a_padded_tile_is_clips_own_image_with_a_black_border(tower: str, size: int) -> None:
    """Padding is what CLIP sees of a picture with black around it, from a patch border on; patches are the tile's."""
    clip = small_clip(tower)
    encoder = SatelliteEncoder(clip, size_px=size, fit='pad').eval()
    unit = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (clip.mean, clip.std))
    picture = torch.zeros(2, 3, 64, 64)
    start = {20: 16, 32: 16, 48: 16}[size]  # the middle would be 22, 16 and 8: 20 px begin at a patch, 48 at either
    picture[:, :, start : start + size, start : start + size] = unit
    found, whole = encoder((unit - mean) / std), SatelliteEncoder(clip).eval()((picture - mean) / std)
    torch.testing.assert_close(found.image, clip.encode_images((picture - mean) / std), atol=1e-5, rtol=0)
    side = -(-size // 16)
    assert encoder.side == side
    torch.testing.assert_close(found.patches, whole.patches[:, 1 : 1 + side, 1 : 1 + side], atol=1e-5, rtol=0)


@pytest.mark.parametrize(('size', 'clip_px', 'start'), [(64, 224, 80), (120, 224, 48), (224, 224, 0), (1, 224, 112)])
def test_padding_begins_at_a_patch_as_near_the_middle_as_may_be(size: int, clip_px: int, start: int) -> None:
    """EuroSAT's 64 px begin at 80 as in GRAFT, BigEarthNet's 120 at 48 rather than 52."""
    clip = FrozenClip(**{**vars(_without_cache(small_clip('class token'))), 'image_px': clip_px})
    encoder = SatelliteEncoder(clip, size_px=size, fit='pad')
    assert getattr(encoder, 'start_px', 0) == start


def _without_cache(clip: FrozenClip) -> FrozenClip:
    vars(clip).pop('digest', None)
    return clip


def test_a_padded_tile_may_not_be_larger_than_clips() -> None:
    """Padding makes nothing smaller; the sentence names both sizes and the remedy."""
    with pytest.raises(GrafalignError, match=r'80 px are larger than the 64 px .* cannot be padded'):
        SatelliteEncoder(small_clip('class token'), size_px=80, fit='pad')


def test_padding_adds_nothing_to_the_state() -> None:
    """A padded encoder's weights load strictly into one without padding, and the other way."""
    clip = small_clip('class token')
    plain, padded = SatelliteEncoder(clip), SatelliteEncoder(clip, size_px=40, fit='pad')
    plain.load_state_dict(padded.state_dict())
    padded.load_state_dict(plain.state_dict())
    assert {n.split('.')[0] for n in plain.state_dict()} == {'visual', 'patch_norm', 'patch_proj'}


def test_windows_of_a_padded_encoder_cover_its_tile_alone() -> None:
    """Segmentation with windows that end inside a patch puts every patch where it lies: here at rows 0 and 16 of 24."""
    encoder = SatelliteEncoder(small_clip('class token'), size_px=24, fit='pad').eval()
    classes = functional.normalize(noise(5, 48), dim=-1)
    images = noise(1, 3, 24, 24)
    with torch.no_grad():
        scores = encoder(images).patches[0] @ classes.T
    share = torch.tensor([0, 0.25, 0.75])  # of the second patch, in the middles of cells of 8 px: at 4, 12 and 20
    share = torch.stack([1 - share, share])
    cells = torch.einsum('ijk,iy,jx->kyx', scores, share, share)
    expected = to_pixels(cells, torch.ones(3, 3, dtype=torch.bool), 8)
    torch.testing.assert_close(segment(encoder, images, classes.numpy())[0], expected)


@pytest.mark.parametrize(
    'tower', ['class token', *(pytest.param(tower, marks=pytest.mark.slow) for tower in ('CoCa', 'SigLIP', 'EVA'))]
)
def test_an_encoder_compiles_whole(tower: str) -> None:
    """torch.compile finds one graph, without breaks, and it gives the same."""
    encoder = SatelliteEncoder(small_clip(tower), size_px=40, fit='pad').eval()
    images = noise(2, 3, 40, 40)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend='aot_eager', fullgraph=True, dynamic=None)
    torch.testing.assert_close(compiled(images).image, encoder(images).image)
    if tower not in WITHOUT_DROPOUT:
        keep = torch.tensor([[0, 4], [8, 1]])
        torch.testing.assert_close(compiled(images, keep).patches, encoder(images, keep).patches)


@pytest.mark.parametrize(
    'vision',
    [
        {'layers': [1, 1, 1, 1], 'width': 16},
        {'timm_model_name': 'test_convnext', 'timm_pool': 'avg', 'timm_proj': 'linear'},
        {'layers': 1, 'width': 32, 'head_width': 16, 'attentional_pool': 'parallel', 'attn_pooler_queries': 4},
    ],
)
def test_towers_without_patch_tokens_are_refused(vision: dict[str, Any]) -> None:
    """Convolutional networks, and pools that give several vectors, end in one sentence."""
    with pytest.raises(GrafalignError, match='no plain vision transformer'):
        SatelliteEncoder(make_clip(vision))
