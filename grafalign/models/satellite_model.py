"""Models that are satellite encoders of ours: finished runs, and checkpoints of GRAFT's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grafalign.encoders import ClipSettings, FrozenClip, SatelliteEncoder, load_clip
from grafalign.exchange.graft_checkpoint import load_graft
from grafalign.files import file_digest
from grafalign.models.model import Model
from grafalign.models.pixels import InputRule
from grafalign.training import load_satellite


def from_run(run: Path, name: str, clip: ClipSettings | None, device: torch.device) -> Model:
    """A finished run.

    A run that was trained at level `patch` has no image embedding of its own: the mean of its patches, brought to unit
    length, stands for the image, as in its validation.

    Raises:
        GrafalignError: the run is unfinished or damaged, or its CLIP cannot be loaded.
    """
    model = load_satellite(run, None if clip is None else load_clip(clip, device))
    mean, std = (tuple(float(v) for v in model.rule.get_buffer(n).flatten()) for n in ('mean', 'std'))
    rule = InputRule(model.sensor.bands, model.sensor.size_px, mean, std)
    facts = {k: model.facts.get(k) for k in ('level', 'tau', 'steps', 'store_digest')}
    return _model(
        model.encoder.to(device), model.clip, rule, name, 'run', str(model.facts['digest']), device,
        by_patches=model.facts.get('level') == 'patch', facts={'run': run.name, **facts},
    )  # fmt: skip


def from_graft(path: Path, name: str, clip: ClipSettings, device: torch.device) -> Model:
    """A checkpoint of GRAFT's published layout; its file decides nothing but weights, so it takes red, green and blue.

    Raises:
        GrafalignError: the file or its CLIP cannot be loaded.
    """
    frozen = load_clip(clip, device)
    encoder = load_graft(path, frozen).to(device)
    rule = InputRule(('red', 'green', 'blue'), encoder.size_px, frozen.mean, frozen.std)
    facts: dict[str, Any] = {'file': path.name, 'clip': clip.model_dump()}
    return _model(encoder, frozen, rule, name, 'graft', file_digest(path), device, by_patches=False, facts=facts)


def _model(
    encoder: SatelliteEncoder,
    clip: FrozenClip,
    rule: InputRule,
    name: str,
    kind: str,
    digest: str,
    device: torch.device,
    *,
    by_patches: bool,
    facts: dict[str, Any],
) -> Model:
    def images(inputs: torch.Tensor) -> torch.Tensor:
        found = encoder(inputs)
        out: torch.Tensor = found.patches.mean((1, 2)) if by_patches else found.image
        return out

    return Model(
        name=name,
        kind=kind,
        digest=digest,
        rule=rule,
        images=images,
        texts=clip.encode_text,
        device=device,
        dense=lambda: encoder,
        clip_digest=clip.digest,
        facts=facts,
    )
