"""GRAFT's published layout loads as a satellite encoder, and nothing of its pickle runs."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from grafalign.encoders import ClipSettings, FrozenClip, SatelliteEncoder, load_clip
from grafalign.errors import GrafalignError
from grafalign.exchange.graft_checkpoint import load_graft
from grafalign.sandbox import TINY_CLIP_DIR
from tests.commands import Command, refused


class Graft(nn.Module):
    """The published module layout on transformers' own tower, in the sizes of the tiny CLIP: the reference."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        sizes = {'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 4, 'num_attention_heads': 4}
        config = {**sizes, 'image_size': 64, 'patch_size': 16, 'projection_dim': 96, 'hidden_act': 'gelu', **changes}
        self.satellite_image_backbone = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
        width, depth = config['hidden_size'], config['projection_dim']
        self.projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, depth, bias=False))
        self.patch_mlp = nn.Identity()
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        for weight in self.parameters():  # norms and biases too: a fresh one says nothing
            weight.data.add_(0.05 * torch.randn(weight.shape))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit image embeddings [B, D] and patch embeddings [B, N, D]."""
        found = self.satellite_image_backbone(pixel_values=images)
        patches = self.projector(self.patch_mlp(found.last_hidden_state[:, 1:]))
        return functional.normalize(found.image_embeds, dim=-1), functional.normalize(patches, dim=-1)


@pytest.fixture(scope='module')
def graft() -> Graft:
    """A checkpoint's model with random weights."""
    torch.manual_seed(0)
    return Graft().eval()


def omegaconf_like(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object that pickles as omegaconf's containers do: a class of that module with a state."""
    module = types.ModuleType('omegaconf.dictconfig')
    kind = type('DictConfig', (), {'__module__': 'omegaconf.dictconfig'})
    module.DictConfig = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'omegaconf', types.ModuleType('omegaconf'))
    monkeypatch.setitem(sys.modules, 'omegaconf.dictconfig', module)
    value = kind()
    value.__dict__.update(_content={'lr': 1e-5}, _metadata=Any)
    return value


@pytest.fixture
def checkpoint(graft: Graft, tmp_path: Path) -> Path:
    """A Lightning checkpoint of that model, with what Lightning, omegaconf and numpy leave in one."""
    path = tmp_path / 'graft_sentinel.ckpt'
    with pytest.MonkeyPatch.context() as patch:
        content = {
            'epoch': 9,
            'pytorch-lightning_version': '2.0.4',
            'state_dict': graft.state_dict(),
            'hyper_parameters': omegaconf_like(patch),
            'optimizer_states': [defaultdict(dict, {0: {'step': np.float64(7), 'kind': dict}})],
            'callbacks': {'best': Path('runs/best')},
        }
        torch.save(content, path)
    assert 'omegaconf' not in sys.modules
    return path


def save(path: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint with this state dict and nothing else."""
    torch.save({'state_dict': state}, path)
    return path


def test_it_gives_the_embeddings_of_the_published_modules(graft: Graft, checkpoint: Path, clip: FrozenClip) -> None:
    """Image and patch embeddings are those of transformers' tower and the projector."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image, patches = graft(images)
        found = load_graft(checkpoint, clip)(images)
    torch.testing.assert_close(found.image, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.patches.flatten(1, 2), patches, atol=1e-5, rtol=0)


def test_another_image_size_is_taken_from_the_checkpoint(clip: FrozenClip, tmp_path: Path) -> None:
    """The grid of its position embeddings decides, and they stay as trained."""
    torch.manual_seed(1)
    model = Graft(image_size=96).eval()
    encoder = load_graft(save(tmp_path / 'a.ckpt', model.state_dict()), clip)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).image, model(images)[0], atol=1e-5, rtol=0)
    assert encoder.size_px == 96


def test_older_checkpoints_and_safetensors_load_too(graft: Graft, clip: FrozenClip, tmp_path: Path) -> None:
    """The position ids of older transformers are passed over, and the same weights load from safetensors."""
    from safetensors.torch import save_file

    state = graft.state_dict()
    ids = 'satellite_image_backbone.vision_model.embeddings.position_ids'
    old = load_graft(save(tmp_path / 'old.ckpt', {**state, ids: torch.arange(17)[None]}), clip)
    save_file(state, tmp_path / 'a.safetensors')
    new = load_graft(tmp_path / 'a.safetensors', clip)
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name


def test_the_process_keeps_its_own_list_of_safe_classes(checkpoint: Path, clip: FrozenClip) -> None:
    """What torch may unpickle elsewhere is the same after loading as before."""
    before = set(torch.serialization.get_safe_globals())
    load_graft(checkpoint, clip)
    assert set(torch.serialization.get_safe_globals()) == before


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_named_and_not_run(graft: Graft, clip: FrozenClip, tmp_path: Path) -> None:
    """A checkpoint that would run something is refused with the name of it."""
    path = tmp_path / 'evil.ckpt'
    torch.save({'state_dict': graft.state_dict(), 'callbacks': Evil(tmp_path / 'ran')}, path)
    with pytest.raises(GrafalignError, match=r'evil\.ckpt holds code, .*mkdir'):
        load_graft(path, clip)
    assert not (tmp_path / 'ran').exists()


def test_a_damaged_file_is_one_sentence(checkpoint: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Cut short, no archive, a bare pickle, empty or missing: each is named."""
    whole = checkpoint.read_bytes()
    for name, content in {
        'short.ckpt': whole[: len(whole) // 2],
        'text.ckpt': b'no checkpoint at all',
        'pickle.ckpt': pickle.dumps({'state_dict': {}}),
        'empty.ckpt': b'',
        'bad.safetensors': b'12',
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GrafalignError, match=f'{name} is damaged or no checkpoint'):
            load_graft(tmp_path / name, clip)
    with pytest.raises(GrafalignError, match='There is no file'):
        load_graft(tmp_path / 'none.ckpt', clip)


def test_another_layout_names_what_is_missing(graft: Graft, clip: FrozenClip, tmp_path: Path) -> None:
    """Missing keys, keys that change the result, and files without a state dict are said by name."""
    state = graft.state_dict()
    without = {k: v for k, v in state.items() if not k.startswith('projector')}
    mlp = {**state, 'patch_mlp.0.weight': torch.zeros(2, 2)}
    for content, words in (
        (without, r'missing: projector\.0\.weight, projector\.0\.bias, projector\.1\.weight'),
        (mlp, r'patch_mlp\.0\.weight, which the published ones have not'),
        (clip.model.state_dict(), 'it has no satellite_image_backbone'),
        ({'a': 1}, 'no state_dict of tensors'),
    ):
        with pytest.raises(GrafalignError, match=words):
            load_graft(save(tmp_path / 'other.ckpt', dict(content)), clip)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'hidden_size': 64, 'intermediate_size': 256}, r'\[64\] against \[128\]'),
        ({'num_hidden_layers': 3}, '3 blocks against 4'),
        ({'patch_size': 8}, 'against'),
        ({'projection_dim': 64}, 'against'),
    ],
)
def test_a_clip_of_another_size_is_one_sentence(
    changes: dict[str, int], words: str, clip: FrozenClip, tmp_path: Path
) -> None:
    """Width, depth, patches or embeddings of another size name the file, the CLIP and both sizes."""
    path = save(tmp_path / 'other.ckpt', Graft(**changes).state_dict())
    with pytest.raises(GrafalignError, match=f'other.ckpt does not fit .*{words}.*--model'):
        load_graft(path, clip)


def test_a_clip_without_the_activation_of_its_weights_is_refused(checkpoint: Path, clip: FrozenClip) -> None:
    """open_clip builds ViT-B-16 without QuickGELU even for openai's weights, which would answer wrongly."""
    from dataclasses import replace

    wrong = replace(clip, settings=ClipSettings(model='ViT-B-16', pretrained='openai'))
    with pytest.raises(GrafalignError, match='--model ViT-B-16-quickgelu'):
        load_graft(checkpoint, wrong)


def test_weights_of_another_clip_are_remarked(
    checkpoint: Path, clip: FrozenClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that show no trace of the given CLIP load with a remark; those that started from it, without."""
    load_graft(checkpoint, clip)
    assert 'no trace' in ' '.join(capsys.readouterr().err.split())
    from grafalign.exchange.graft_checkpoint import _places

    own = {k: v.clone() for k, v in _places(SatelliteEncoder(clip)).items()}
    load_graft(save(tmp_path / 'own.ckpt', own), clip)
    assert 'no trace' not in capsys.readouterr().err


def test_the_command_exports_a_checkpoint(
    graft: Graft, checkpoint: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """`grafalign export FILE.ckpt OUT --model CLIP` gives a whole CLIP with the checkpoint's tower."""
    from transformers import CLIPModel

    refused(command('export', checkpoint, tmp_path / 'out'), checkpoint, '--model')
    for kind in ('open_clip', 'transformers'):
        code, err = command('export', checkpoint, tmp_path / kind, '--model', TINY_CLIP_DIR, '--format', kind)
        assert code == 0, err
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    frozen = load_clip(ClipSettings(model=str(tmp_path / 'open_clip')))
    theirs = CLIPModel.from_pretrained(tmp_path / 'transformers').eval()
    with torch.no_grad():
        expected = graft(images)[0]
        found = functional.normalize(theirs.visual_projection(theirs.vision_model(images).pooler_output), dim=-1)
    torch.testing.assert_close(frozen.encode_images(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    card = (tmp_path / 'open_clip' / 'README.md').read_text()
    assert 'graft_sentinel.ckpt' in card and 'does not say which values' in card
