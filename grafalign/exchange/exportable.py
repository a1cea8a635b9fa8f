"""What an export is made of, and what its formats share: weights, patch head, and the way of the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.satellite import SatelliteEncoder
from grafalign.encoders.weights_file import save_tensors
from grafalign.errors import InputError
from grafalign.exchange.marker import ExportInput

PATCH_HEAD = 'patch_head.safetensors'


@dataclass(frozen=True)
class Exportable:
    """A satellite encoder, the CLIP whose text tower goes with it, and how pixels become its input."""

    encoder: SatelliteEncoder
    clip: FrozenClip
    bands: tuple[str, ...]
    """Names of the bands, in the order of the input."""
    mean: tuple[float, ...]
    """Subtracted from each band, after it was brought to 0..1."""
    std: tuple[float, ...]
    """Then each band is divided by it."""
    value_range: tuple[float, float] | None
    """Physical values that become 0 and 1; None where nobody has said."""
    level: Literal['image', 'patch', 'both'] = 'image'
    """What was trained: image, patch or both."""

    @property
    def image_px(self) -> int:
        """Side of the tower's input: the tile's, or that of the zero-padded image it lies in."""
        return self.encoder.canvas_px

    @property
    def input(self) -> ExportInput:
        """What a program must know to make the input."""
        encoder = self.encoder
        return ExportInput(
            bands=self.bands,
            level=self.level,
            value_range=self.value_range,
            size_px=encoder.size_px,
            canvas_px=encoder.canvas_px,
            start_px=encoder.start_px if encoder.canvas_px != encoder.size_px else 0,
        )

    @property
    def visual(self) -> Any:
        """The image tower, open_clip's own module."""
        return self.encoder.visual

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Mean, standard deviation, interpolation and resize mode, in open_clip's words."""
        known = getattr(self.visual, 'preprocess_cfg', {})
        kept = {k: known[k] for k in ('interpolation', 'resize_mode') if k in known}
        return {'mean': list(self.mean), 'std': list(self.std), **kept}


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, those that share their memory too.

    Raises:
        GrafalignError: the file cannot be written.
    """
    save_tensors({k: v.clone() for k, v in tensors.items()}, path)  # tied weights: each its own copy


def save_patch_head(encoder: SatelliteEncoder, folder: Path) -> None:
    """Write `patch_head.safetensors`: LayerNorm `patch_norm.*` [W] and `patch_proj.weight` [D, W].

    Neither open_clip nor transformers has a place for it; the model card says how to use it with each.

    Raises:
        GrafalignError: the norm before the patch projection is no LayerNorm.
    """
    if not isinstance(encoder.patch_norm, nn.LayerNorm | nn.Identity):
        raise InputError(
            f'The patch head of this run begins with {type(encoder.patch_norm).__name__}, which the exported files '
            'cannot express; train with a CLIP whose tower ends in a LayerNorm, such as ViT-B-16.'
        )
    state = encoder.state_dict()
    save_weights({k: v for k, v in state.items() if k.startswith(('patch_norm.', 'patch_proj.'))}, folder / PATCH_HEAD)
