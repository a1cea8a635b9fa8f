"""Captions of images, token by token: greedy, by beam search, or drawn from the nucleus.

Every step goes through the decoder with the last token alone; keys and values of those before it are kept, and so is
what the decoder makes of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grafalign.encoders.marked_tokens import MarkedTokenizer
from grafalign.encoders.text_decoder import KeysValues, TextDecoder
from grafalign.errors import InputError


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are written.

    Raises:
        GrafalignError: a value is out of its range, or beam and nucleus are both given.
    """

    beam: int = 1
    """Captions that are followed at a time for an image; the likeliest per token is taken. 1 is greedy."""
    nucleus: float | None = None
    """Draw every token from the likeliest ones that together have this share (Holtzman et al. 2020)."""
    most_tokens: int | None = None
    """Longest caption in tokens; the decoder's context by default."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise InputError(f'A beam of {self.beam} follows no caption; give 1 for greedy captions, or more.')
        if self.nucleus is not None and not 0 < self.nucleus <= 1:
            raise InputError(f'A nucleus of {self.nucleus:g} is no share of the tokens; give more than 0, at most 1.')
        if self.nucleus is not None and self.beam > 1:
            raise InputError('A caption is either drawn from a nucleus or searched by a beam; give one of the two.')
        if self.most_tokens is not None and self.most_tokens < 1:
            raise InputError(f'Captions of {self.most_tokens} tokens say nothing; give at least 1.')


def write_captions(
    decoder: TextDecoder,
    tokenizer: MarkedTokenizer,
    image_tokens: Tensor,
    options: CaptionOptions,
    first: int = 0,
) -> list[str]:
    """A caption for each image.

    Args:
        decoder: the text decoder.
        tokenizer: its tokenizer.
        image_tokens: patch tokens [b, N, W] of images, normed by their tower.
        options: how.
        first: number of the first image, so that what is drawn does not depend on how many are written at a time.
    """
    with torch.no_grad():
        ids = write_ids(decoder, tokenizer.begin, tokenizer.end, image_tokens, options, first)
    return [tokenizer.decode(row) for row in ids.tolist()]


def write_ids(
    decoder: TextDecoder, begin: int, end: int, image_tokens: Tensor, options: CaptionOptions, first: int = 0
) -> Tensor:
    """Token ids [b, L] of captions behind `begin`; behind a caption's end there are more ends."""
    images, beam, device = len(image_tokens), options.beam, image_tokens.device
    longest = min(options.most_tokens or decoder.context_length, decoder.context_length - 1)
    seen = [
        (keys.repeat_interleave(beam, 0), values.repeat_interleave(beam, 0))
        for keys, values in decoder.look(image_tokens)
    ]
    cache: list[KeysValues] = []
    drawn = _uniform(options, range(first, first + images), longest).to(device)
    last = torch.full((images * beam,), begin, device=device)
    ids = torch.zeros(images * beam, 0, dtype=torch.int64, device=device)
    score = torch.full((images, beam), float('-inf'), device=device)
    score[:, 0] = 0  # all begin alike: one of them is followed at first
    for place in range(longest):
        logs = decoder.next_logits(last, place, cache, seen).log_softmax(-1)
        if begin != end:  # SigLIP's tokenizer has one mark for both
            logs[:, begin] = float('-inf')
        if place:
            logs[last == end] = float('-inf')
            logs[last == end, end] = 0
        else:
            logs[:, end] = float('-inf')  # a caption has a token
        if options.nucleus is not None:
            last = _draw(logs, options.nucleus, drawn[:, place])
        else:
            total = (score[..., None] + logs.view(images, beam, -1)).view(images, -1)
            score, which = total.topk(beam)
            parent = (which // logs.shape[1] + torch.arange(images, device=device)[:, None] * beam).flatten()
            last = (which % logs.shape[1]).flatten()
            if beam > 1:
                ids = ids[parent]
                cache = [(keys[parent], values[parent]) for keys, values in cache]
        ids = torch.cat([ids, last[:, None]], dim=1)
        if bool((last == end).all()):
            break
    length = ((ids != end).sum(1) + (ids == end).any(1)).view(images, beam)
    best = (score / length).argmax(1)
    return ids.view(images, beam, -1)[torch.arange(images, device=device), best]


def _draw(logs: Tensor, nucleus: float, number: Tensor) -> Tensor:
    """A token for each row of logarithms of probabilities [n, V], by numbers of 0 to 1, [n]."""
    chance, token = logs.exp().sort(dim=1, descending=True)
    before = chance.cumsum(1) - chance
    kept = torch.where(before < nucleus, chance, 0)  # the first one always
    place = (kept.cumsum(1) <= number[:, None] * kept.sum(1, keepdim=True)).sum(1)
    last = (kept > 0).sum(1) - 1
    return token.gather(1, torch.minimum(place, last)[:, None])[:, 0]


def _uniform(options: CaptionOptions, images: range, count: int) -> Tensor:
    """Numbers of 0 to 1 for each image and place, [b, count]; an image's follow from its own number."""
    if options.nucleus is None:
        return torch.zeros(len(images), 0)
    return torch.from_numpy(np.stack([np.random.default_rng((options.seed, i)).random(count) for i in images])).float()
