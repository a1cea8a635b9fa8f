"""A model as benchmarks, index and search see it: pictures and words in, unit vectors of one space out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from grafalign.encoders import SatelliteEncoder
from grafalign.encoders.captioning import CaptionOptions
from grafalign.encoders.fitting import Fitting
from grafalign.errors import DamagedError, InputError
from grafalign.models.pixels import Preprocessing

Vectors = npt.NDArray[np.float32]
_TEXTS = 256


@dataclass(frozen=True)
class Model:
    """A vision-language model; D is the width of its space."""

    name: str
    """What tables call it."""
    kind: str
    """run, export, open_clip, transformers or graft."""
    digest: str
    """Of its weights: equal digests mean equal embeddings."""
    preprocessing: Preprocessing
    images: Callable[[Tensor], Tensor]
    """Inputs [B, C, S, S] to embeddings [B, D]."""
    texts: Callable[[Sequence[str]], Tensor]
    """Texts to embeddings [T, D]."""
    device: torch.device
    dense: Callable[[], SatelliteEncoder] | None = None
    """Makes the encoder whose patch embeddings live in the space of the words, where the model has one."""
    clip_digest: str | None = None
    """Of the CLIP whose photo embeddings (a photo bank's) lie in this space."""
    level: Literal['image', 'patch', 'both'] | None = None
    """Which of its embeddings was trained on satellite images, where it says."""
    gsd_m: float | None = None
    """Metres a pixel of what it was trained on, where it says."""
    value_range: tuple[float, float] | None = None
    """Physical values that become 0 and 1 at its input, where it says."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Where it came from, for results."""
    captions: Callable[[Tensor, CaptionOptions, int], list[str]] | None = None
    """Writes a caption for each of some inputs [B, C, S, S], where it can; the number of the first decides what is
    drawn."""
    count_cut: Callable[[Sequence[str]], int] | None = None
    """How many texts are longer than the model reads, where it can tell."""

    def embed_images(self, inputs: Tensor) -> Vectors:
        """Unit embeddings [B, D] of inputs [B, C, S, S].

        Raises:
            GrafalignError: an embedding is not finite.
        """
        with torch.no_grad():
            return self._unit(self._fitting(inputs.to(self.device)), 'an image')

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting(self.images, 'pictures')

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit embeddings [T, D] of texts.

        Raises:
            GrafalignError: there is no text, one is empty, or an embedding is not finite.
        """
        if not texts:
            raise InputError('There are no texts to embed; give at least one.')
        empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
        if empty is not None:
            raise InputError(f'Text {empty} is empty; write something, or leave it out.')
        with torch.no_grad():
            parts = [self._unit(self.texts(texts[i : i + _TEXTS]), 'a text') for i in range(0, len(texts), _TEXTS)]
        return np.concatenate(parts)

    def _unit(self, vectors: Tensor, what: str) -> Vectors:
        found = functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        if not np.isfinite(found).all():
            raise DamagedError(f'{self.name} gives {what} an embedding that is not finite; its weights are damaged.')
        return found

    def write_captions(self, inputs: Tensor, options: CaptionOptions, first: int = 0) -> list[str]:
        """A caption for each of some inputs [B, C, S, S].

        Raises:
            GrafalignError: this model writes none.
        """
        return self.check_writes()(inputs.to(self.device), options, first)

    def check_writes(self) -> Callable[[Tensor, CaptionOptions, int], list[str]]:
        """What writes captions.

        Raises:
            GrafalignError: this model writes none.
        """
        if self.captions is None:
            raise InputError(f'{self.name} writes no captions; give a run that was trained with `text_tower: decoder`.')
        return self.captions

    def encoder(self) -> SatelliteEncoder:
        """The encoder with patch embeddings.

        Raises:
            GrafalignError: this model has none.
        """
        if self.dense is None:
            raise InputError(
                f'{self.name} gives no patch embeddings, so it cannot segment; give a run, an export, a checkpoint of '
                'GRAFT, or a vision transformer of open_clip.'
            )
        return self.dense()
