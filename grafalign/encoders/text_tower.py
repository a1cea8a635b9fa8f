"""CLIP's text tower by itself, to be trained, and put back into its CLIP when it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders.clip import FrozenClip
from grafalign.errors import DamagedError

TEXT_WEIGHTS = 'text.safetensors'
"""File of a run with the weights of its text tower, under open_clip's names."""


class TextTower(nn.Module):
    """A copy of CLIP's text tower: token ids [n, L] become unit vectors [n, D].

    Args:
        clip: the CLIP to start from; its weights are copied, not shared.
    """

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        model: Any = copy.deepcopy(clip.model)
        model.visual = nn.Identity()
        self.model = model.requires_grad_(True)
        for name in ('logit_scale', 'logit_bias'):  # the task has its own
            if getattr(model, name, None) is not None:
                getattr(model, name).requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit vectors [n, D] of texts."""
        vectors: Tensor = self.model.encode_text(tokens)
        return functional.normalize(full_precision(vectors), dim=-1)


def full_precision(vectors: Tensor) -> Tensor:
    """Vectors in float32 where they were shorter."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def text_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The own weights of a text tower or decoder, under open_clip's names, of those of a task that has it as `text`."""
    mine = {k.removeprefix('text.').removeprefix('model.'): v for k, v in state.items() if k.startswith('text.')}
    return {k: v for k, v in mine.items() if k not in ('logit_scale', 'logit_bias')}


def with_text_weights(clip: FrozenClip, path: Path) -> FrozenClip:
    """The same CLIP with another text tower.

    Args:
        clip: the CLIP that training started from.
        path: what `text_weights` gave, in a file.

    Raises:
        DamagedError: the file is missing, damaged or of another CLIP.
    """
    model = copy.deepcopy(clip.model)
    try:
        missing, unknown = model.load_state_dict(load_file(path), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DamagedError(f'{path} is missing or damaged ({error}); train again.') from None
    left = [k for k in missing if not k.startswith('visual.') and k not in ('logit_scale', 'logit_bias')]
    if unknown or left:
        raise DamagedError(f'{path} does not fit {clip.settings.model} ({(unknown or left)[0]}); train again.')
    return replace(clip, model=model)
