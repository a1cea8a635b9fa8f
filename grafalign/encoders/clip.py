"""The frozen CLIP: its image encoder places photos, its text encoder places words; neither is ever trained."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from grafalign.config import Settings
from grafalign.errors import GrafalignError


class ClipSettings(Settings):
    """Which CLIP: an open_clip name with a pretrained tag or a checkpoint file, or a folder saved by open_clip."""

    model: str
    """open_clip architecture (`ViT-B-16`), `hf-hub:NAME`, or a folder with `open_clip_config.json`."""
    pretrained: str | None = None
    """open_clip tag (`openai`) or path of a checkpoint; not for folders and hub names."""


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
        state.update(repr((self.mean, self.std, self.image_px, str(self.preprocess))).encode())
        if any(type(m).__name__ == 'QuickGELU' for m in self.model.modules()):
            state.update(b'quick_gelu')
        return state.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit text embeddings [len(texts), D]."""
        with torch.no_grad():
            return functional.normalize(self._call('encode_text', self.tokenizer(list(texts)).to(self.device)), dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings [B, D] of preprocessed images [B, 3, H, W]; on a GPU in TF32."""
        with torch.no_grad(), _tensor_cores(self.device):
            return functional.normalize(self._call('encode_image', images.to(self.device)), dim=-1)

    def _call(self, name: str, value: Tensor) -> Tensor:
        out: Tensor = getattr(self.model, name)(value)
        return out.float()


def load_clip(settings: ClipSettings, device: str | torch.device = 'cpu') -> FrozenClip:
    """Load a CLIP model, frozen and in evaluation mode.

    Raises:
        GrafalignError: the architecture, tag or file is unknown or does not fit; the sentence says what to give.
    """
    import open_clip

    folder = Path(settings.model)
    name = settings.model
    if (folder / 'open_clip_config.json').is_file():
        name = f'local-dir:{folder.resolve()}'
    elif folder.is_dir():
        raise GrafalignError(f'{folder} holds no open_clip_config.json; give a folder saved by open_clip.')
    elif '/' in settings.model and ':' not in settings.model:
        raise GrafalignError(f'There is no folder {folder}; set clip.model to an open_clip name or an existing folder.')
    elif ':' not in name and name not in open_clip.list_models():
        raise GrafalignError(f'open_clip knows no model {name!r}; `open_clip.list_models()` lists the names.')
    elif ':' not in name and settings.pretrained is None:
        raise GrafalignError(
            f'clip.pretrained is missing for {name}: without it CLIP would be random; '
            'give a tag such as `openai` or the path of a checkpoint.'
        )
    try:
        with _quiet():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=settings.pretrained, force_quick_gelu=needs_quick_gelu(name, settings.pretrained)
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip, safetensors, torch and the hub raise types of their own
        reason = ' '.join(str(error).split())[:300]
        raise GrafalignError(
            f'The CLIP {settings.model} ({settings.pretrained or "no pretrained tag"}) cannot be loaded: {reason}. '
            'Check the name and tag, or give the path of a whole checkpoint of this architecture.'
        ) from None
    model = model.to(device).eval().requires_grad_(False)
    size: Any = model.visual.image_size
    config = open_clip.get_model_preprocess_cfg(model)
    return FrozenClip(
        model,
        preprocess,
        tokenizer,
        settings,
        tuple(config['mean']),
        tuple(config['std']),
        int(size[0] if isinstance(size, tuple) else size),
    )


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
    """A GPU where there is one: where the photos of a store are embedded."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def needs_quick_gelu(name: str, tag: str | None) -> bool:
    """Whether pretrained weights were trained with OpenAI's approximate GELU, which open_clip only warns of."""
    import open_clip

    return bool(tag and open_clip.get_pretrained_cfg(name, tag).get('quick_gelu', False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's loading remarks out of our log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
