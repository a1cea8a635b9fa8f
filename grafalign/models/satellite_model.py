"""Models that are satellite encoders of ours: finished runs, and checkpoints of GRAFT's layout."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grafalign.encoders import ClipSettings, FrozenClip, SatelliteEncoder, load_clip
from grafalign.encoders.captioning import CaptionOptions, write_captions
from grafalign.exchange.graft_checkpoint import load_graft
from grafalign.files import file_digest
from grafalign.models.model import Model
from grafalign.models.pixels import Preprocessing
from grafalign.training import load_satellite


def from_run(run: Path, name: str, clip: ClipSettings | None, device: torch.device) -> Model:
    """A finished run.

    A run that was trained at level `patch` has no image embedding of its own: the mean of its patches, brought to unit
    length, stands for the image, as in its validation.

    Raises:
        GrafalignError: the run is unfinished or damaged, or its CLIP cannot be loaded.
    """
    model = load_satellite(run, None if clip is None else load_clip(clip, device))
    mean, std = (tuple(float(v) for v in model.preprocess.get_buffer(n).flatten()) for n in ('mean', 'std'))
    preprocessing = Preprocessing(model.sensor.bands, model.sensor.size_px, mean, std)
    marker = model.marker
    digest = _digest(run / 'model.safetensors', marker.digest, model.clip)
    by_patches = marker.level == 'patch'
    metadata = {'run': run.name, **marker.model_dump(include={'level', 'tau', 'steps', 'store_digest'})}
    encoder = model.encoder.to(device)
    loaded = _model(
        encoder, model.clip, preprocessing, name, 'run', digest, device, by_patches=by_patches, metadata=metadata
    )
    sensor, decoder = model.sensor, model.decoder
    loaded = replace(loaded, level=marker.level, gsd_m=sensor.gsd_m, value_range=sensor.value_range)
    if decoder is None or not marker.writes_captions:
        return loaded
    decoder.to(device)
    tokenizer: Any = model.clip.tokenizer

    def captions(inputs: torch.Tensor, options: CaptionOptions, first: int) -> list[str]:
        with torch.no_grad():
            tokens = encoder.tower.token_norm()(encoder(inputs).tokens)
        return write_captions(decoder, tokenizer, tokens, options, first)

    return replace(loaded, captions=captions)


def from_graft(path: Path, name: str, clip: ClipSettings, device: torch.device) -> Model:
    """A checkpoint of GRAFT's published layout; its file decides nothing but weights, so it takes red, green and blue.

    Raises:
        GrafalignError: the file or its CLIP cannot be loaded.
    """
    frozen = load_clip(clip, device)
    encoder = load_graft(path, frozen).to(device)
    preprocessing = Preprocessing(('red', 'green', 'blue'), encoder.size_px, frozen.mean, frozen.std)
    metadata: dict[str, Any] = {'file': path.name, 'clip': clip.model_dump()}
    digest = _digest(path, '', frozen)
    return _model(encoder, frozen, preprocessing, name, 'graft', digest, device, by_patches=False, metadata=metadata)


def _digest(weights: Path, run: str, clip: FrozenClip) -> str:
    """Of the weights that are loaded, the settings they were trained by, and the CLIP whose words go with them."""
    parts = f'{file_digest(weights)} {run} {clip.digest}'
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _model(
    encoder: SatelliteEncoder,
    clip: FrozenClip,
    preprocessing: Preprocessing,
    name: str,
    kind: str,
    digest: str,
    device: torch.device,
    *,
    by_patches: bool,
    metadata: dict[str, Any],
) -> Model:
    def images(inputs: torch.Tensor) -> torch.Tensor:
        found = encoder(inputs)
        out: torch.Tensor = found.patches.mean((1, 2)) if by_patches else found.image
        return out

    return Model(
        name=name,
        kind=kind,
        digest=digest,
        preprocessing=preprocessing,
        count_cut=clip.count_cut,
        images=images,
        texts=clip.encode_text,
        device=device,
        dense=lambda: encoder,
        clip_digest=clip.digest,
        metadata=metadata,
    )
