"""Models that open_clip loads: its names and tags, checkpoint files (RemoteCLIP, GeoRSCLIP, SkyCLIP), folders, exports.

The three checkpoints are plain state dictionaries of open_clip, or its trainer's (`state_dict`, names beginning with
`module.`), which open_clip reads by path. Whether weights continue OpenAI's, and so need QuickGELU, is not written in
them: the architecture says it (`ViT-B-32-quickgelu`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from grafalign import console
from grafalign.encoders import ClipSettings, FrozenClip, SatelliteEncoder, load_clip
from grafalign.errors import DamagedError
from grafalign.exchange.exportable import PATCH_HEAD
from grafalign.exchange.marker import ExportInput, ExportMarker
from grafalign.files import file_digest
from grafalign.models.model import Model
from grafalign.models.pixels import Preprocessing

RGB = ('red', 'green', 'blue')


def from_settings(settings: ClipSettings, name: str, device: torch.device) -> Model:
    """A model by open_clip's name and tag or file, or a folder.

    Raises:
        GrafalignError: it cannot be loaded.
    """
    clip = load_clip(settings, device)
    metadata: dict[str, Any] = {
        'model': settings.model,
        'pretrained': settings.pretrained,
        'activation': clip.activation,
    }
    if settings.pretrained and Path(settings.pretrained).is_file() and _has_both_activations(settings.model):
        metadata['activation_is_a_guess'] = True
        console.log(
            f'{settings.pretrained} does not say its activation: {settings.model} means {clip.activation}; weights '
            "that continue OpenAI's need quickgelu, others gelu"
        )
    folder = Path(settings.model)
    head = folder / PATCH_HEAD
    export = ExportMarker.of(folder)
    given = None if export is None else export.input
    by_patches = given is not None and given.level == 'patch'
    bands, size_px = (RGB, clip.image_px) if given is None else (given.bands, given.size_px)
    preprocessing = Preprocessing(bands, size_px, clip.mean, clip.std, _filter(clip))
    padded = preprocessing.size_px != clip.image_px

    def dense() -> SatelliteEncoder:
        encoder = SatelliteEncoder(
            clip, preprocessing.bands, preprocessing.size_px, 'pad' if padded else 'resample'
        ).to(device)
        if head.is_file():
            load_patch_head(encoder, head)
        return encoder.eval()

    whole = dense() if padded or by_patches else None

    def images(inputs: torch.Tensor) -> torch.Tensor:
        if whole is None:
            return clip.encode_images(inputs)
        found = whole(inputs)
        return found.patches.mean((1, 2)) if by_patches else found.image  # as the run itself

    return Model(
        name=name,
        kind='export' if export else 'open_clip',
        digest=clip.digest if not export else _digest(clip, head, given),
        preprocessing=preprocessing,
        images=images,
        texts=clip.encode_text,
        device=device,
        dense=dense,
        clip_digest=None if export else clip.digest,
        level=None if given is None else given.level,
        value_range=None if given is None else given.value_range,
        metadata=metadata,
        count_cut=clip.count_cut,
    )


def _digest(clip: FrozenClip, head: Path, given: ExportInput | None) -> str:
    """Of an export: weights, patch head, and what its input is."""
    content = json.dumps({} if given is None else given.model_dump(mode='json'), sort_keys=True)
    parts = f'{clip.digest} {file_digest(head) if head.is_file() else ""} {content}'
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def load_patch_head(encoder: SatelliteEncoder, path: Path) -> None:
    """Load `patch_head.safetensors` of an export.

    Raises:
        GrafalignError: it is damaged or belongs to another model.
    """
    try:
        head = load_file(path)
        wanted = {k for k in encoder.state_dict() if k.startswith(('patch_norm.', 'patch_proj.'))}
        if wanted != set(head):
            raise ValueError(f'it holds {", ".join(sorted(head))}')
        encoder.load_state_dict(head, strict=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise DamagedError(f'{path} is damaged or of another model ({reason}); export again.') from None


def _filter(clip: FrozenClip) -> str:
    """The interpolation of a CLIP's preprocessing."""
    known = getattr(clip.model.visual, 'preprocess_cfg', {})
    return str(known.get('interpolation', 'bicubic'))


def _has_both_activations(architecture: str) -> bool:
    """Whether open_clip has an architecture with QuickGELU and without."""
    import open_clip

    plain = architecture.removesuffix('-quickgelu')
    return {plain, f'{plain}-quickgelu'} <= set(open_clip.list_models())
