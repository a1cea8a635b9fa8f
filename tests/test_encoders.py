"""The satellite encoder starts as CLIP, and stored numbers become its input by one fixed rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from grafalign.encoders import ClipSettings, FrozenClip, PhotoBank, SatelliteEncoder, TilePreprocessing, load_clip
from grafalign.encoders.clip import needs_quick_gelu
from grafalign.errors import GrafalignError
from grafalign.photos import open_photo
from grafalign.store import PairStore
from grafalign.store_marker import Sensor


def test_an_untrained_encoder_is_clip(clip: FrozenClip) -> None:
    """Before training, image embeddings equal CLIP's own."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = SatelliteEncoder(clip).eval()(images)
    torch.testing.assert_close(found.image, clip.encode_images(images))


def test_patch_embeddings_start_from_clips_norm_and_projection(clip: FrozenClip) -> None:
    """Patches are the last block's tokens through CLIP's final norm and projection, in reading order, unit length."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    visual = clip.model.visual
    with torch.no_grad():
        tokens = visual.transformer(visual._embeds(images))[:, 1:]
        expected = functional.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1).view(2, 4, 4, -1)
        found = SatelliteEncoder(clip).eval()(images).patches
    torch.testing.assert_close(found, expected)


def test_the_frozen_clip_is_not_shared(clip: FrozenClip) -> None:
    """Changing the encoder's weights leaves CLIP as it was."""
    before = clip.model.visual.conv1.weight.clone()
    encoder = SatelliteEncoder(clip)
    with torch.no_grad():
        encoder.visual.conv1.weight.add_(1)
    assert torch.equal(clip.model.visual.conv1.weight, before)


def test_other_sizes_and_more_bands(clip: FrozenClip) -> None:
    """A larger input gives more patches; equal extra bands give what three bands give."""
    assert SatelliteEncoder(clip, size_px=96)(torch.randn(1, 3, 96, 96)).patches.shape == (1, 6, 6, 96)
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    three, five = SatelliteEncoder(clip).eval(), SatelliteEncoder(clip, bands=5).eval()
    torch.testing.assert_close(
        five(grey.expand(-1, 5, -1, -1)).image, three(grey.expand(-1, 3, -1, -1)).image, atol=1e-5, rtol=1e-4
    )


def test_a_size_that_is_no_multiple_of_the_patch_is_named(clip: FrozenClip) -> None:
    """Tiles that do not divide into patches end in one sentence with a size that would do."""
    with pytest.raises(GrafalignError, match=r'70 px are no multiple of the 16-px patches.*size_px 64'):
        SatelliteEncoder(clip, size_px=70)


def test_stored_numbers_become_reflectance_by_the_sensors_rule(clip: FrozenClip) -> None:
    """Scale and offset first, then the fixed range, clipped; then CLIP's mean and standard deviation."""
    sensor = Sensor('s', ('red', 'green', 'blue'), 10, 64, (0.0, 0.3))
    rule = TilePreprocessing(sensor, clip)
    pixels = torch.tensor([1000, 2500, 4000, 9000]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    unit = rule.unit(pixels, torch.full((1, 3), 1e-4), torch.full((1, 3), -0.1))
    torch.testing.assert_close(unit[0, 0].flatten(), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    normal = rule(pixels, torch.full((1, 3), 1e-4), torch.full((1, 3), -0.1))
    torch.testing.assert_close(normal[0, 1, 0, 1], torch.tensor((0.5 - clip.mean[1]) / clip.std[1]))


def test_the_bank_holds_what_clip_says_of_each_photo(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """A row of the bank is CLIP's embedding of that photo, to half precision."""
    for row in (0, len(store.photos) // 2, len(store.photos) - 1):
        image = clip.preprocess(open_photo(Path(store.photos['uri'].iloc[row])))
        np.testing.assert_allclose(bank.embeddings[row], clip.encode_images(image[None])[0].numpy(), atol=2e-3)


def test_the_digest_tells_clips_apart(clip: FrozenClip, tmp_path: Path) -> None:
    """Equal weights give equal digests; one changed weight gives another."""
    from safetensors.torch import load_file, save_file

    for file in Path(clip.settings.model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_clip(ClipSettings(model=str(tmp_path))).digest == clip.digest
    weights = load_file(tmp_path / 'open_clip_model.safetensors')
    weights['visual.proj'][0, 0] += 1
    save_file(weights, str(tmp_path / 'open_clip_model.safetensors'))
    assert load_clip(ClipSettings(model=str(tmp_path))).digest != clip.digest


@pytest.mark.parametrize(
    ('name', 'tag', 'quick'),
    [
        ('ViT-B-16', 'openai', True),
        ('ViT-B-16-quickgelu', 'openai', True),
        ('ViT-B-16', 'laion2b_s34b_b88k', False),
        ('ViT-B-16', 'some/file.pt', False),
        ('local-dir:somewhere', None, False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(name: str, tag: str | None, quick: bool) -> None:
    """OpenAI's weights want their own GELU, whichever name of the architecture is given."""
    assert needs_quick_gelu(name, tag) == quick


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'model': 'ViT-Z-99', 'pretrained': 'openai'}, 'knows no model'),
        ({'model': 'ViT-B-32'}, 'pretrained is missing'),
        ({'model': 'no/such/folder'}, 'no folder'),
        ({'model': 'ViT-B-32', 'pretrained': 'no_such_file.pt'}, 'There is no file'),
    ],
)
def test_a_clip_that_cannot_be_had_is_one_sentence(settings: dict[str, str], words: str) -> None:
    """Unknown names, missing tags, folders and files are each named with a remedy."""
    with pytest.raises(GrafalignError, match=words):
        load_clip(ClipSettings(**settings))


def test_a_damaged_checkpoint_folder_is_one_sentence(clip: FrozenClip, tmp_path: Path) -> None:
    """A folder whose weights are cut short is named."""
    (tmp_path / 'open_clip_config.json').write_text(
        json.dumps(json.loads((Path(clip.settings.model) / 'open_clip_config.json').read_text()))
    )
    whole = (Path(clip.settings.model) / 'open_clip_model.safetensors').read_bytes()
    (tmp_path / 'open_clip_model.safetensors').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GrafalignError, match='cannot be loaded'):
        load_clip(ClipSettings(model=str(tmp_path)))
