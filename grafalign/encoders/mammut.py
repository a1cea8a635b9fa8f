"""A MaMMUT for the rest of the house: a CLIP whose text tower is a text decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.marked_tokens import MarkedTokenizer
from grafalign.encoders.text_decoder import DecoderSettings, TextDecoder
from grafalign.errors import DamagedError


class Mammut(nn.Module):
    """CLIP's image tower beside a text decoder, with the two calls that a CLIP has."""

    def __init__(self, clip: FrozenClip, decoder: TextDecoder) -> None:
        super().__init__()
        model: Any = clip.model
        self.visual, self.text, self.logit_scale = model.visual, decoder, model.logit_scale

    def encode_image(self, images: Tensor) -> Tensor:
        """As CLIP does."""
        found: Tensor = self.visual(images)
        return found

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Vectors [n, D] of marked tokens [n, L]."""
        found: Tensor = self.text(tokens)
        return found


def marked_tokenizer(clip: FrozenClip, decoder: TextDecoder) -> MarkedTokenizer:
    """The tokenizer of a CLIP for a decoder."""
    tokenizer: Any = clip.tokenizer
    length = min(int(getattr(tokenizer, 'context_length', 77) or 77), decoder.context_length)
    return MarkedTokenizer(tokenizer, length, decoder.token_embedding.num_embeddings)


def with_decoder(clip: FrozenClip, decoder: TextDecoder) -> FrozenClip:
    """The same CLIP with a text decoder for its text tower."""
    model = Mammut(clip, decoder).eval().requires_grad_(False)
    return replace(clip, model=model, tokenizer=marked_tokenizer(clip, decoder))


def load_decoder(clip: FrozenClip, image_width: int, settings: DecoderSettings, path: Path) -> TextDecoder:
    """A decoder with its weights from a file.

    Args:
        clip: the CLIP that training started from.
        image_width: width of the encoder's patch tokens.
        settings: those of the training.
        path: the weights.

    Raises:
        DamagedError: the file is missing, damaged or of another decoder.
    """
    decoder = TextDecoder(clip, image_width, settings)
    try:
        decoder.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DamagedError(f'{path} is missing or damaged ({error}); train again.') from None
    return decoder.eval()
