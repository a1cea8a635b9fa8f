"""The frozen CLIP: its image encoder places photos, its text encoder places words; neither is ever trained."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from grafalign import console
from grafalign.config import Settings
from grafalign.errors import GrafalignError, InputError


class ClipSettings(Settings):
    """Which CLIP: an open_clip name with a pretrained tag or a checkpoint file, or a folder saved by open_clip."""

    model: str
    """open_clip architecture (`ViT-B-16`), `hf-hub:NAME`, or a folder with `open_clip_config.json`."""
    pretrained: str | None = None
    """open_clip tag (`openai`) or path of a checkpoint; beside a folder or a hub name a checkpoint of that
    architecture, in place of the folder's own weights."""


@dataclass(frozen=True)
class FrozenClip:
    """A CLIP model that is not trained; D is its embedding width."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    settings: ClipSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_px: int

    @cached_property
    def digest(self) -> str:
        """Digest of weights and preprocessing: equal digests mean interchangeable embeddings."""
        state = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            state.update(name.encode())
            state.update(value.detach().cpu().contiguous().numpy().tobytes())
        steps = re.sub(r' at 0x[0-9a-f]+', '', str(self.preprocess))  # where a function lies differs by process
        state.update(repr((self.mean, self.std, self.image_px, steps)).encode())
        if any(type(m).__name__ == 'QuickGELU' for m in self.model.modules()):
            state.update(b'quick_gelu')
        return state.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def scale(self) -> float:
        """The inverse temperature that images and texts were trained with; CLIP's 100 where the model keeps none."""
        learned = getattr(self.model, 'logit_scale', None)
        return 100.0 if learned is None else float(learned.exp())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit text embeddings [len(texts), D]."""
        with torch.no_grad():
            return functional.normalize(self._call('encode_text', self.tokenizer(list(texts)).to(self.device)), dim=-1)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the model reads: what is behind the cut says nothing to it."""
        length = int(getattr(self.tokenizer, 'context_length', 77) or 77)
        encode = getattr(self.tokenizer, 'encode', None)
        if encode is not None:
            return sum(len(encode(text)) + 2 > length for text in texts)
        inner = getattr(self.tokenizer, 'tokenizer', None)
        return 0 if inner is None else sum(len(ids) > length for ids in inner(list(texts))['input_ids'])

    @property
    def activation(self) -> str:
        """Which activation the weights run with: nothing in a checkpoint says which one they were trained with."""
        return 'quickgelu' if any(type(m).__name__ == 'QuickGELU' for m in self.model.modules()) else 'gelu'

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings [B, D] of preprocessed images [B, 3, H, W]; on a GPU in TF32."""
        with torch.no_grad(), _tensor_cores(self.device):
            return functional.normalize(self._call('encode_image', images.to(self.device)), dim=-1)

    def _call(self, name: str, value: Tensor) -> Tensor:
        out: Tensor = getattr(self.model, name)(value)
        return out.float()


def load_clip(settings: ClipSettings, device: str | torch.device = 'cpu') -> FrozenClip:
    """Load a CLIP model, frozen and in evaluation mode; one without weights never is.

    Raises:
        GrafalignError: the architecture, tag or file is unknown or does not fit, or there are no weights; the sentence
            says what to give.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, file = _named(settings)
    preprocess_cfg = None if file is None or ':' in name else published_preprocessing(name)
    try:
        with _quiet():
            model = open_clip.create_model(
                name,
                pretrained=None if file is not None else settings.pretrained,
                load_weights=file is None,
                require_pretrained=file is None,
                force_quick_gelu=needs_quick_gelu(name, settings.pretrained),
                force_preprocess_cfg=preprocess_cfg,
                pretrained_text=False,
            )
            if file is not None:
                load_weights(model, file)
            tokenizer = open_clip.get_tokenizer(name)
    except GrafalignError:
        raise
    except Exception as error:  # open_clip, safetensors, torch and the hub raise types of their own
        raise _not_loaded(settings, error) from None
    config = open_clip.get_model_preprocess_cfg(model)
    preprocess = image_transform_v2(PreprocessCfg(**config), is_train=False)
    model = model.to(device).eval().requires_grad_(False)
    size: Any = model.visual.image_size
    return FrozenClip(
        model,
        preprocess,
        tokenizer,
        settings,
        tuple(config['mean']),
        tuple(config['std']),
        int(size[0] if isinstance(size, tuple) else size),
    )


def _named(settings: ClipSettings) -> tuple[str, Path | None]:
    """open_clip's name of a model, and the file of its weights where one was given.

    Raises:
        GrafalignError: there is no such model, or no weights for it.
    """
    import open_clip

    folder, name, tag = Path(settings.model), settings.model, settings.pretrained
    if (folder / 'open_clip_config.json').is_file():
        _refuse_mammut(folder)
        name = f'local-dir:{folder.resolve()}'
        if tag is None and not any(p.suffix in _FOLDER_SUFFIXES for p in folder.iterdir()):
            others = [p.name for p in folder.iterdir() if p.suffix in _CHECKPOINTS]
            remedy = (
                f'name its checkpoint, such as --pretrained {folder / others[0]}'
                if others
                else 'copy the weights there'
            )
            raise InputError(
                f'{folder} holds a configuration and no weights (open_clip_model.safetensors); without them CLIP would '
                f'be random: {remedy}.'
            )
    elif folder.is_dir():
        raise InputError(f'{folder} holds no open_clip_config.json; give a folder saved by open_clip.')
    elif '/' in settings.model and ':' not in settings.model:
        raise InputError(f'There is no folder {folder}; set clip.model to an open_clip name or an existing folder.')
    elif ':' not in name and name not in open_clip.list_models():
        raise InputError(f'open_clip knows no model {name!r}; `open_clip.list_models()` lists the names.')
    elif ':' not in name and tag is None:
        raise InputError(
            f'clip.pretrained is missing for {name}: without it CLIP would be random; '
            'give a tag such as `openai` or the path of a checkpoint.'
        )
    if tag is None:
        return name, None
    if Path(tag).is_file():
        return name, Path(tag)
    if ':' in name or Path(tag).suffix in _CHECKPOINTS or '/' in tag:
        raise InputError(f'There is no file {tag}; beside {settings.model} give the path of a checkpoint.')
    return name, None


def _refuse_mammut(folder: Path) -> None:
    """Check that a folder holds a CLIP and no MaMMUT, which open_clip 3 would fail to build without a clear word.

    Raises:
        GrafalignError: it is one.
    """
    try:
        content = json.loads((folder / 'open_clip_config.json').read_text(encoding='utf-8'))['model_cfg']
    except (OSError, ValueError, KeyError, TypeError):
        return  # open_clip says what is wrong with it
    if 'multimodal_cfg' in content and 'text_cfg' not in content:
        raise InputError(
            f'{folder} is a MaMMUT, whose text decoder this open_clip cannot load; give the run that it was exported '
            'from, or use the folder with open_clip 4.'
        )


_FOLDER_SUFFIXES = ('.safetensors', '.bin', '.pth')
"""Files that open_clip takes for the weights of a folder."""
_CHECKPOINTS = (*_FOLDER_SUFFIXES, '.pt', '.ckpt', '.npz')


def _not_loaded(settings: ClipSettings, error: Exception) -> GrafalignError:
    """One sentence from what the libraries say, which may be a page with colours."""
    text = ' '.join(re.sub(r'\x1b\[[0-9;]*m', '', str(error)).split())
    if 'weights_only' in text or 'Unsupported global' in text:
        text = 'the file holds Python code, which is not run; save the plain weights, or use safetensors'
    elif len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON].rpartition(' ')[0] + ' ...'
    return InputError(
        f'The CLIP {settings.model} ({settings.pretrained or "no pretrained tag"}) cannot be loaded: '
        f'{text.rstrip(".")}. '
        'Check the name and tag, or give the path of a whole checkpoint of this architecture.'
    )


_LONGEST_REASON = 300


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a checkpoint into a model of its very size.

    open_clip would bend position embeddings of another image size or text length to fit, without a word.

    Raises:
        GrafalignError: the sizes differ.
        Exception: what torch, safetensors and open_clip raise on files that do not fit.
    """
    from open_clip.factory import load_checkpoint, load_state_dict

    if file.suffix not in ('.npz', '.npy'):
        ours = model.state_dict()
        theirs = load_state_dict(str(file), device='cpu', weights_only=True)
        for name, tensor in theirs.items():
            place = name if name in ours else f'text.{name}'
            if _POSITIONS.search(name) and place in ours and tensor.shape != ours[place].shape:
                raise InputError(
                    f'{file} is of another size than the architecture: {name} is {list(tensor.shape)} there and '
                    f'{list(ours[place].shape)} here (image size or text length); name the architecture of that size.'
                )
    load_checkpoint(model, str(file), strict=True, weights_only=True)


_POSITIONS = re.compile(r'(^|\.)(positional_embedding|pos_embed)$')


def published_preprocessing(name: str) -> dict[str, Any] | None:
    """Mean, deviation, interpolation and resizing that all published weights of an architecture want.

    A checkpoint file says nothing of them, and 45 architectures (SigLIP, MobileCLIP, CLIPA ...) have others than CLIP.

    Returns:
        None where nothing is published, or the published weights differ: then CLIP's own rule is used, and said.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    rules = []
    for tag in tags:
        known = open_clip.get_pretrained_cfg(name, tag)
        rules.append({key: known[key] for key in ('mean', 'std', 'interpolation', 'resize_mode') if known.get(key)})
    if not rules:
        return None
    if any(rule != rules[0] for rule in rules):
        console.log(
            f"the published weights of {name} want different preprocessing; CLIP's own (bicubic, OpenAI's mean) "
            'is used for this file'
        )
        return None
    return rules[0]


@contextlib.contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply in TF32 meanwhile: eight times as fast on an A100, and as precise as the bank's float16."""
    before = torch.get_float32_matmul_precision()
    if device.type == 'cuda':
        torch.set_float32_matmul_precision('high')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def best_device() -> torch.device:
    """A GPU where there is one; of several processes on a machine each has its own (LOCAL_RANK)."""
    if not torch.cuda.is_available():
        return torch.device('cpu')
    return torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count())


def needs_quick_gelu(name: str, tag: str | None) -> bool:
    """Whether pretrained weights were trained with OpenAI's approximate GELU, which open_clip only warns of."""
    import open_clip

    return bool(tag and open_clip.get_pretrained_cfg(name, tag).get('quick_gelu', False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's loading remarks out of our log."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
