"""Any model behind one interface: the same embeddings as the library that it comes from, the same way of the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from grafalign.encoders import FrozenClip, PhotoBank, SatelliteEncoder
from grafalign.errors import GrafalignError
from grafalign.exchange import publish
from grafalign.models import Preprocessing, load_model, to_input
from grafalign.models.load import split_name
from grafalign.models.pixels import band_places
from grafalign.store import PairStore
from grafalign.training import load_satellite, train
from tests.test_graft_checkpoint import Graft
from tests.training_world import settings

WORDS = ['a photo of a forest', 'A harbour, seen from above!']


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random 8-bit colours [3, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


@pytest.mark.parametrize('size', [(64, 64), (150, 150), (100, 333), (333, 100), (20, 31)])
def test_a_picture_becomes_what_open_clips_own_preprocessing_makes(size: tuple[int, int], clip: FrozenClip) -> None:
    """To the bit, for pictures of any size and shape."""
    pixels = picture(*size)
    preprocessing = Preprocessing(('red', 'green', 'blue'), clip.image_px, clip.mean, clip.std)
    theirs = clip.preprocess(Image.fromarray(np.moveaxis(pixels, 0, -1)))
    torch.testing.assert_close(to_input(pixels, preprocessing, 'resize', (0, 255)), theirs, atol=1e-6, rtol=0)


def test_padding_keeps_the_pixels_and_puts_black_around(clip: FrozenClip) -> None:
    """A small picture lies in the middle as it is; a large one is made to fit, its sides in proportion."""
    preprocessing = Preprocessing(('red', 'green', 'blue'), 64, (0.0,) * 3, (1.0,) * 3)
    small = picture(20, 30)
    found = to_input(small, preprocessing, 'pad', (0, 255)).numpy()
    np.testing.assert_allclose(found[:, 22:42, 17:47], small / 255, atol=1e-6)
    found[:, 22:42, 17:47] = 0
    assert not found.any()
    wide = to_input(np.full((3, 50, 100), 255, np.uint8), preprocessing, 'pad', (0, 255)).numpy()
    assert wide[:, 16:48].min() == 1 and wide[:, :16].max() == 0 and wide[:, 48:].max() == 0


def test_physical_values_are_stretched_by_one_rule(clip: FrozenClip) -> None:
    """Values of the range become 0 to 1 and are clipped; missing ones are black; nothing depends on the picture."""
    preprocessing = Preprocessing(('red', 'green', 'blue'), 2, (0.0,) * 3, (1.0,) * 3)
    values = np.array([[[0, 1500], [3000, 9999]]], dtype=np.uint16).repeat(3, 0)
    expected = torch.tensor([[0.0, 0.5], [1.0, 1.0]])
    torch.testing.assert_close(to_input(values, preprocessing, 'resize', (0, 3000))[0], expected)
    missing = values.astype(np.float32)
    missing[:, 0, 1] = np.nan
    assert to_input(missing, preprocessing, 'resize', (0, 3000))[0, 0, 1] == 0


def test_bands_are_found_by_name_and_grey_serves_as_all() -> None:
    """Red is B04 wherever it stands; one band is taken three times; a missing one is named."""
    preprocessing = Preprocessing(('red', 'green', 'blue'), 2, (0.0,) * 3, (1.0,) * 3)
    assert band_places(preprocessing, ('B01', 'B02', 'B03', 'B04')) == [3, 2, 1]
    assert band_places(preprocessing, ('grey',)) == [0, 0, 0]
    with pytest.raises(GrafalignError, match='has no band'):
        band_places(preprocessing, ('nir', 'swir'))


@pytest.mark.parametrize('layout', ['plain', 'trained by open_clip', 'safetensors'])
def test_checkpoint_files_of_open_clip_load_by_path(layout: str, builtin: FrozenClip, tmp_path: Path) -> None:
    """A plain state dict (RemoteCLIP, GeoRSCLIP), a trainer's with `module.` (SkyCLIP), safetensors: the same model."""
    state = dict(builtin.model.state_dict())
    path = tmp_path / 'RemoteCLIP-ViT-tiny.pt'
    if layout == 'plain':
        torch.save(state, path)
    elif layout == 'safetensors':
        path = Path(str(builtin.settings.pretrained))
    else:
        renamed = {f'module.{k}': v for k, v in state.items()}
        torch.save({'epoch': 20, 'name': 'it', 'state_dict': renamed, 'optimizer': {'state': {}}}, path)
    model = load_model(f'ViT-tiny-16:{path}')
    images = torch.rand(2, 3, 64, 64)
    np.testing.assert_allclose(model.embed_images(images), builtin.encode_images(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(WORDS), builtin.encode_text(WORDS).numpy(), atol=1e-6)
    assert model.digest == builtin.digest and model.metadata['activation'] == 'gelu'


def test_a_checkpoint_of_another_architecture_is_refused(builtin: FrozenClip, tmp_path: Path) -> None:
    """Weights that do not fit, weights alone and names that do not exist are one sentence each."""
    state = dict(builtin.model.state_dict())
    state.pop('visual.proj')
    torch.save(state, tmp_path / 'other.pt')
    for spec, said in (
        (f'ViT-tiny-16:{tmp_path / "other.pt"}', 'cannot be loaded'),
        (f'ViT-tiny-16:{tmp_path / "missing.pt"}', 'There is no file'),
        (str(tmp_path / 'other.pt'), 'which architecture'),
        ('ViT-nothing:openai', 'knows no model'),
        ('ViT-B-32', 'pretrained is missing'),
        (str(tmp_path / 'nowhere' / 'run'), 'There is no folder'),
        (str(tmp_path), 'holds no model'),
    ):
        with pytest.raises(GrafalignError, match=said):
            load_model(spec)


def test_clip_of_transformers_gives_its_own_embeddings(clip: FrozenClip, tmp_path: Path) -> None:
    """A CLIP folder embeds pictures and words as transformers' model does."""
    from transformers import CLIPModel

    folder = transformers_clip(clip, tmp_path)
    model, theirs = load_model(str(folder)), CLIPModel.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = theirs.get_image_features(pixel_values=images)
        expected = functional.normalize(getattr(found, 'pooler_output', found), dim=-1)
    np.testing.assert_allclose(model.embed_images(images), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(WORDS), clip.encode_text(WORDS).numpy(), atol=1e-4)
    with pytest.raises(GrafalignError, match='--format open_clip'):
        model.encoder()


def transformers_clip(clip: FrozenClip, folder: Path) -> Path:
    """The tiny CLIP in transformers' layout."""
    from grafalign.exchange.exportable import Exportable
    from grafalign.exchange.transformers_layout import write_transformers

    out = folder / 'clip'
    out.mkdir()
    bands = ('red', 'green', 'blue')
    write_transformers(Exportable(SatelliteEncoder(clip), clip, bands, clip.mean, clip.std, None), out)
    return out


def test_siglip_of_transformers_is_padded_and_lower_case(tmp_path: Path) -> None:
    """Texts go in as SigLIP was trained: padded to its length without a mask, in lower case."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    words = {w: i for i, w in enumerate(['[PAD]', '[UNK]', 'a', 'photo', 'of', 'forest', 'harbour', 'A', 'Forest'])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='[PAD]', unk_token='[UNK]')
    small = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    config = SiglipConfig(
        vision_config={**small, 'image_size': 32, 'patch_size': 16},
        text_config={**small, 'vocab_size': 16, 'max_position_embeddings': 12, 'projection_size': 32},
    )
    theirs = SiglipModel(config).eval()
    for part in (theirs, fast, SiglipImageProcessor(size={'height': 32, 'width': 32})):
        part.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    ids = fast(['a photo of a forest'], padding='max_length', max_length=12, return_tensors='pt')['input_ids']
    with torch.no_grad():
        found = theirs.get_text_features(input_ids=ids)
    expected = functional.normalize(getattr(found, 'pooler_output', found), dim=-1).numpy()
    np.testing.assert_allclose(model.embed_texts(['A photo of a Forest']), expected, atol=1e-5)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5) and model.preprocessing.size_px == 32
    assert model.embed_images(torch.rand(2, 3, 32, 32)).shape == (2, 32)


@pytest.fixture(scope='module')
def trained(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on three of the store's bands."""
    out = tmp_path_factory.mktemp('run') / 'mine'
    train(settings(store, clip, out, bands=['red', 'green', 'blue']))
    return out


def test_a_run_and_its_exports_are_one_model(trained: Path, tmp_path: Path) -> None:
    """A run, its open_clip export and its transformers export give the same images, words and patches."""
    run = load_model(str(trained))
    publish(trained, tmp_path / 'oc')
    publish(trained, tmp_path / 'hf', 'transformers')
    images = torch.rand(3, 3, 64, 64)
    for folder in ('oc', 'hf'):
        export = load_model(f'{folder}={tmp_path / folder}')
        assert export.name == folder and export.preprocessing.bands == run.preprocessing.bands
        np.testing.assert_allclose(export.preprocessing.mean, run.preprocessing.mean, atol=1e-6)
        np.testing.assert_allclose(export.embed_images(images), run.embed_images(images), atol=1e-4)
        np.testing.assert_allclose(export.embed_texts(WORDS), run.embed_texts(WORDS), atol=1e-4)
    export = load_model(str(tmp_path / 'oc'))
    with torch.no_grad():
        torch.testing.assert_close(export.encoder()(images).patches, run.encoder()(images).patches, atol=1e-4, rtol=0)
    assert load_model(str(trained)).digest == run.digest != load_satellite(trained).clip.digest


def test_a_graft_checkpoint_needs_only_its_clip(clip: FrozenClip, tmp_path: Path) -> None:
    """It embeds tiles by its own weights and words by the CLIP that is named."""
    torch.manual_seed(0)
    graft = Graft().eval()
    torch.save({'state_dict': graft.state_dict()}, tmp_path / 'graft.ckpt')
    model = load_model(str(tmp_path / 'graft.ckpt'), clip=clip.settings.model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(model.embed_images(images), graft(images)[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(WORDS), clip.encode_text(WORDS).numpy(), atol=1e-6)
    assert model.clip_digest == clip.digest


def test_names_are_told_from_paths() -> None:
    """`mine=runs/image` has a name; a path or a tag with `=` in it has none."""
    assert split_name('mine=runs/image') == ('mine', 'runs/image')
    assert split_name('runs/a=b') == (None, 'runs/a=b')
    assert split_name('ViT-B-32:openai') == (None, 'ViT-B-32:openai')


def test_weights_that_are_not_finite_are_named(builtin: FrozenClip, tmp_path: Path) -> None:
    """A model whose embeddings are not finite says that its weights are damaged."""
    state: dict[str, Any] = {k: v.clone() for k, v in builtin.model.state_dict().items()}
    state['visual.proj'][:] = float('nan')
    torch.save(state, tmp_path / 'nan.pt')
    model = load_model(f'ViT-tiny-16:{tmp_path / "nan.pt"}')
    with pytest.raises(GrafalignError, match='weights are damaged'):
        model.embed_images(torch.rand(1, 3, 64, 64))
    with pytest.raises(GrafalignError, match='Text 1 is empty'):
        model.embed_texts(['a', ' '])


def test_a_damaged_export_says_which_file(trained: Path, tmp_path: Path) -> None:
    """A patch head that is cut short is named when it is needed."""
    publish(trained, tmp_path / 'oc')
    head = tmp_path / 'oc' / 'patch_head.safetensors'
    head.write_bytes(head.read_bytes()[:100])
    with pytest.raises(GrafalignError, match=r'patch_head.safetensors'):
        load_model(str(tmp_path / 'oc')).encoder()
    (tmp_path / 'oc' / 'grafalign_export.json').write_text(json.dumps({'files': {}})[:-1])
    with pytest.raises(GrafalignError, match=r'grafalign_export.json is damaged'):
        load_model(str(tmp_path / 'oc'))
