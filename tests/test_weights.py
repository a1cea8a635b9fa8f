"""The right weights, or none: what is loaded is what was named, prepared as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from grafalign.encoders import ClipSettings, FrozenClip, load_clip
from grafalign.encoders.clip import published_preprocessing
from grafalign.errors import GrafalignError
from grafalign.models import load_model
from grafalign.sandbox import TINY_CLIP_DIR

WEIGHTS = 'open_clip_model.safetensors'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny CLIP."""
    return shutil.copytree(TINY_CLIP_DIR, tmp_path / 'clip')


def load(model: Path | str, pretrained: Path | str | None = None) -> FrozenClip:
    """The CLIP of these settings."""
    return load_clip(ClipSettings(model=str(model), pretrained=None if pretrained is None else str(pretrained)))


@pytest.mark.parametrize('left', ['nothing', 'foreign suffix', 'git-lfs pointer', 'cut'])
def test_a_folder_without_weights_is_no_random_model(folder: Path, left: str) -> None:
    """One sentence that names the folder; a checkpoint of another suffix is named as the remedy."""
    path = folder / WEIGHTS
    if left == 'foreign suffix':
        path.rename(folder / 'epoch_5.pt')
    elif left == 'git-lfs pointer':
        path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n')
    elif left == 'cut':
        path.write_bytes(path.read_bytes()[:10_000])
    else:
        path.unlink()
    for loading in (lambda: load(folder), lambda: load_model(str(folder))):
        with pytest.raises(GrafalignError) as error:
            loading()
        assert str(folder) in str(error.value)
    assert ('epoch_5.pt' in str(error.value)) == (left == 'foreign suffix')


def test_a_checkpoint_beside_a_folder_is_loaded_into_its_architecture(folder: Path, tmp_path: Path) -> None:
    """By `--pretrained`, and by `FOLDER:FILE` of evaluate; a file that is not there is an error."""
    changed = {k: v + 0.01 if v.is_floating_point() else v for k, v in load_file(folder / WEIGHTS).items()}
    save_file(changed, tmp_path / 'tuned.safetensors')
    own, tuned = load(folder), load(folder, tmp_path / 'tuned.safetensors')
    assert own.digest != tuned.digest
    name = next(n for n, _ in tuned.model.named_parameters())
    torch.testing.assert_close(tuned.model.state_dict()[name], changed[name].float())
    assert load_model(f'{folder}:{tmp_path / "tuned.safetensors"}').digest == tuned.digest
    with pytest.raises(GrafalignError, match='There is no file'):
        load(folder, tmp_path / 'missing.pt')


@pytest.mark.parametrize(('tensor', 'size'), [('visual.positional_embedding', 37), ('positional_embedding', 80)])
def test_a_checkpoint_of_another_size_is_refused(folder: Path, tensor: str, size: int) -> None:
    """open_clip would bend the positions of another image size or text length to fit."""
    weights = load_file(folder / WEIGHTS)
    name = tensor if tensor in weights else f'text.{tensor}'
    weights[name] = torch.zeros(size, weights[name].shape[1])
    save_file(weights, folder / 'other.safetensors')
    with pytest.raises(GrafalignError, match='of another size than the architecture'):
        load(folder, folder / 'other.safetensors')


@pytest.mark.parametrize('name', ['ViT-B-16-SigLIP', 'MobileCLIP-S1', 'ViT-H-14-CLIPA', 'ViT-B-16', 'PE-Core-B-16'])
def test_the_preprocessing_of_a_file_is_that_of_the_published_weights(name: str) -> None:
    """Where all tags of an architecture agree."""
    if name not in open_clip.list_models():
        pytest.skip(f'this open_clip has no {name}')
    rules = [open_clip.get_pretrained_cfg(name, t) for t in open_clip.list_pretrained_tags_by_model(name)]
    kept = [{k: r[k] for k in ('mean', 'std', 'interpolation', 'resize_mode') if r.get(k)} for r in rules]
    assert published_preprocessing(name) == (kept[0] if all(k == kept[0] for k in kept) else None)
    if name == 'ViT-B-16-SigLIP':
        assert tuple(published_preprocessing(name)['mean']) == (0.5, 0.5, 0.5)
    if name == 'MobileCLIP-S1':
        assert tuple(published_preprocessing(name)['mean']) == (0.0, 0.0, 0.0)


def test_captions_that_are_cut_are_counted(clip: FrozenClip) -> None:
    """What stands behind the cut says nothing to the model."""
    length = clip.tokenizer.context_length
    texts = [' '.join(['forest'] * n) for n in (1, length - 2, length - 1, 3 * length)]
    assert clip.count_cut(texts) == 2
    vectors = clip.encode_text(texts).numpy()
    assert np.allclose(vectors[2], vectors[3], atol=1e-5)


def test_a_pickle_with_code_is_named_as_that(folder: Path, tmp_path: Path) -> None:
    """And nothing of it runs."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / 'ran',))  # type: ignore[return-value]

    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pt')
    with pytest.raises(GrafalignError, match='holds Python code'):
        load(folder, tmp_path / 'evil.pt')
    assert not (tmp_path / 'ran').exists()


def test_exports_and_folders_keep_their_own_preprocessing(folder: Path) -> None:
    """What a folder's configuration says comes before what is published of its architecture."""
    path = folder / 'open_clip_config.json'
    config = json.loads(path.read_text())
    config['preprocess_cfg'] = {**config.get('preprocess_cfg', {}), 'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.6, 0.7]}
    path.write_text(json.dumps(config))
    assert load(folder).mean == (0.1, 0.2, 0.3) and load(folder, folder / WEIGHTS).std == (0.5, 0.6, 0.7)
