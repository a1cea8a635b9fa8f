"""MaMMUT's text decoder: one stack of layers that embeds texts in one pass and writes captions in another.

    contrastive pass   every token sees every other; no image; mean over the tokens, projected to CLIP's space
    captioning pass    a token sees those before it and, after every second layer, the image's patch tokens; each
                       position says which token comes next

After Kuo et al., "MaMMUT: A Simple Architecture for Joint Learning for MultiModal Tasks", 2023. Ours: the mean has a
linear projection, so that the decoder may have another width than CLIP's space; the vocabulary head starts from the
token embeddings (from a random start, and with one matrix for both, the loss of captions fell more slowly); the image
vector is the tower's own, not the mean of its patches. Where there is no token (id -1, `marked_tokens.py`) nothing
attends, counts or is predicted.

Names of weights are those of open_clip 4's `mammut` layout. In the shapes n is texts, L tokens, W the decoder's width,
h its heads, b images, N patches, V the vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from grafalign.config import Settings
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.text_tower import full_precision
from grafalign.errors import InputError

KeysValues = tuple[Tensor, Tensor]
"""What an attention looks at: keys and values, [n, h, L, W / h] each."""


class DecoderSettings(Settings):
    """The text decoder of `text_tower: decoder`."""

    start: Literal['clip', 'scratch'] = 'clip'
    """`clip`: layers, embeddings and projection of CLIP's text tower; `scratch`: random, of the sizes below."""
    layers: int | None = Field(default=None, ge=1)
    """Layers; CLIP's by default."""
    width: int | None = Field(default=None, ge=8)
    """Width of the tokens; CLIP's by default."""
    heads: int | None = Field(default=None, ge=1)
    """Heads of every attention; CLIP's by default."""
    cross_every: int = Field(default=2, ge=1)
    """The first of so many layers looks at the image when captions are written (2 in MaMMUT)."""


class TextDecoder(nn.Module):
    """A text decoder for a CLIP; token ids become unit vectors, or captions of images.

    Args:
        clip: the CLIP whose vocabulary, context and space it has; its weights are copied, not shared.
        image_width: width of the image tower's patch tokens.
        settings: start and sizes.

    Raises:
        GrafalignError: the sizes do not fit together, or CLIP's text tower cannot be taken apart.
    """

    resblocks: Any
    cross_attn: Any

    def __init__(self, clip: FrozenClip, image_width: int, settings: DecoderSettings) -> None:
        super().__init__()
        from open_clip.transformer import ResidualAttentionBlock

        text: Any = getattr(clip.model, 'text', clip.model)
        self.heads, layers = _sizes(text, clip.settings.model, settings)
        if settings.start == 'clip':
            self.token_embedding = copy.deepcopy(text.token_embedding)
            self.positional_embedding = nn.Parameter(text.positional_embedding.detach().clone())
            self.resblocks = copy.deepcopy(text.transformer.resblocks[:layers])
            self.ln_final = copy.deepcopy(text.ln_final)
            width = self.token_embedding.embedding_dim
            self.text_projection = nn.Parameter(_matrix(text.text_projection, width).clone())
        else:
            width = settings.width or 8
            vocabulary, length, space = _spaces(text, clip)
            self.token_embedding = nn.Embedding(vocabulary, width)
            self.positional_embedding = nn.Parameter(torch.empty(length, width))
            self.resblocks = nn.ModuleList([ResidualAttentionBlock(width, self.heads) for _ in range(layers)])
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.empty(width, space))
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            nn.init.normal_(self.positional_embedding, std=0.01)
            nn.init.normal_(self.text_projection, std=width**-0.5)
            _start(self.resblocks, width)
        kind = type(self.resblocks[0].mlp.gelu)
        self.cross_every = settings.cross_every
        self.cross_attn = nn.ModuleList(
            [
                ResidualAttentionBlock(width, self.heads, act_layer=kind, is_cross_attention=True)
                for _ in range(0, layers, settings.cross_every)
            ]
        )
        _start(self.cross_attn, width)
        words = self.token_embedding.weight.detach()
        size = words.square().mean().sqrt() * width**0.5  # of the logits: nobody is sure of a token at the start
        self.lm_head = nn.Parameter((words / size.clamp(min=1)).T.contiguous())
        self.map_viz2txt_kv = nn.Parameter(torch.randn(image_width, width) * image_width**-0.5)
        self.to(clip.device)
        self.requires_grad_(True)

    def writing_parameters(self) -> list[nn.Parameter]:
        """Those that only the captioning pass reaches."""
        return [*self.cross_attn.parameters(), self.map_viz2txt_kv, self.lm_head]

    @property
    def context_length(self) -> int:
        """Tokens of the longest text."""
        return len(self.positional_embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """The contrastive pass: unit vectors [n, D] of texts, ids [n, L]."""
        there = tokens >= 0
        mask = there[:, None, None]
        hidden = self._embed(tokens, 0)
        for block in self.resblocks:
            hidden = _through(block, hidden, None, mask)
        hidden = full_precision(self.ln_final(hidden))
        count = there.sum(1, keepdim=True).clamp(min=1)
        mean = (hidden * there[..., None]).sum(1) / count
        return functional.normalize(full_precision(mean @ self.text_projection), dim=-1)

    def look(self, image_tokens: Tensor) -> list[KeysValues]:
        """What every cross-attention makes of images' patch tokens [b, N, image width], normed by their tower."""
        seen = image_tokens @ self.map_viz2txt_kv
        return [_keys_values(block.attn, block.ln_1_kv(seen), self.heads) for block in self.cross_attn]

    def caption_loss(self, tokens: Tensor, seen: list[KeysValues], image: Tensor) -> Tensor:
        """The captioning pass: sum of the cross entropies of all next tokens.

        Args:
            tokens: captions, ids [n, L].
            seen: what `look` made of b images.
            image: which of them each caption is of, int64 [n].
        """
        given, wanted = tokens[:, :-1], tokens[:, 1:]
        length = given.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        hidden = self._embed(given, 0)
        for number, block in enumerate(self.resblocks):
            hidden = _through(block, hidden, None, mask)
            if number % self.cross_every == 0:
                keys, values = seen[number // self.cross_every]
                hidden = _through(self.cross_attn[number // self.cross_every], hidden, (keys[image], values[image]))
        counts = wanted >= 0  # pads come last, so no real token looks at one
        logits = self.vocabulary_logits(hidden[counts])
        return functional.cross_entropy(full_precision(logits), wanted[counts], reduction='sum')

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of the token that follows each of the tokens [..., W] of the last layer."""
        found: Tensor = self.ln_final(hidden) @ self.lm_head
        return found

    def next_logits(self, token: Tensor, place: int, cache: list[KeysValues], seen: list[KeysValues]) -> Tensor:
        """One step of writing: scores [n, V] of what follows, and the cache one token longer, in place.

        Args:
            token: the last token of each text, int64 [n].
            place: its place in the text; the same for all.
            cache: keys and values of the tokens before it for every layer; empty at the start.
            seen: what `look` made of the image of each text, n rows.
        """
        hidden = self._embed(token[:, None], place)
        for number, block in enumerate(self.resblocks):
            new = _keys_values(block.attn, block.ln_1(hidden), self.heads)
            if number == len(cache):
                cache.append(new)
            else:
                cache[number] = tuple(torch.cat(pair, dim=2) for pair in zip(cache[number], new, strict=True))  # type: ignore[assignment]
            hidden = _through(block, hidden, cache[number])
            if number % self.cross_every == 0:
                hidden = _through(self.cross_attn[number // self.cross_every], hidden, seen[number // self.cross_every])
        return full_precision(self.vocabulary_logits(hidden[:, 0]))

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        places = self.positional_embedding[first : first + tokens.shape[1]]
        hidden: Tensor = self.token_embedding(tokens.clamp(min=0)) + places
        return hidden


def _through(block: Any, hidden: Tensor, others: KeysValues | None, mask: Tensor | None = None) -> Tensor:
    """Tokens [n, L, W] after a block of open_clip that attends to `others`, or to the tokens themselves.

    Args:
        block: a `ResidualAttentionBlock`.
        hidden: the tokens.
        others: keys and values.
        mask: bool, broadcast to [n, h, L, keys]: who may look at whom.
    """
    attention, normed = block.attn, block.ln_1(hidden)
    keys, values = others or _keys_values(attention, normed, attention.num_heads)
    width = hidden.shape[-1]
    queries = functional.linear(normed, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    queries = rearrange(queries, 'n l (h d) -> n h l d', h=attention.num_heads)
    found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    hidden = hidden + block.ls_1(attention.out_proj(rearrange(found, 'n h l d -> n l (h d)')))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def _keys_values(attention: nn.MultiheadAttention, tokens: Tensor, heads: int) -> KeysValues:
    width = tokens.shape[-1]
    both = functional.linear(tokens, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = rearrange(both, 'n l (two h d) -> two n h l d', two=2, h=heads)
    return keys, values


def _start(blocks: Any, width: int) -> None:
    """Random weights as CLIP's text tower has them at its start (Radford et al. 2021, open_clip)."""
    inner = width**-0.5 * (2 * max(1, len(blocks))) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=inner)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=inner)


def _sizes(text: Any, model: str, settings: DecoderSettings) -> tuple[int, int]:
    """Heads and layers of the decoder.

    Raises:
        GrafalignError: see `TextDecoder`.
    """
    from open_clip.transformer import ResidualAttentionBlock

    given = {'layers': settings.layers, 'width': settings.width, 'heads': settings.heads}
    if settings.start == 'scratch':
        lacking = next((name for name, value in given.items() if value is None), None)
        if lacking is not None:
            raise InputError(f'decoder.{lacking} is missing; a decoder from scratch needs layers, width and heads.')
        if (settings.width or 0) % (settings.heads or 1):
            raise InputError(
                f'decoder.width {settings.width} is no multiple of decoder.heads {settings.heads}; give heads that '
                'divide the width.'
            )
        return settings.heads or 1, settings.layers or 1
    blocks = list(getattr(getattr(text, 'transformer', None), 'resblocks', ()))
    if not blocks or any(type(b) is not ResidualAttentionBlock or b.attn.in_proj_weight is None for b in blocks):
        raise InputError(
            f"The text tower of {model} is none of CLIP's and cannot become a decoder; set decoder.start: scratch, "
            'with layers, width and heads.'
        )
    attention = blocks[0].attn
    theirs = {'layers': len(blocks), 'width': int(attention.embed_dim), 'heads': int(attention.num_heads)}
    for name, value in given.items():
        if value is not None and (value > theirs[name] if name == 'layers' else value != theirs[name]):
            raise InputError(
                f'decoder.{name} is {value} and the text tower of {model} has {theirs[name]}; leave it out, or set '
                'decoder.start: scratch.'
            )
    return theirs['heads'], settings.layers or theirs['layers']


def _spaces(text: Any, clip: FrozenClip) -> tuple[int, int, int]:
    """Vocabulary, longest text and width of a CLIP's space."""
    embedding = getattr(text, 'token_embedding', None)
    inner = getattr(clip.tokenizer, 'tokenizer', None)
    vocabulary = len(embedding.weight) if embedding is not None else len(inner or ()) or 49408
    space = clip.encode_text(['a']).shape[1]
    return vocabulary, int(getattr(clip.tokenizer, 'context_length', 77) or 77), space


def _matrix(projection: Any, width: int) -> Tensor:
    """A text projection [W, D], which is a matrix, a linear layer, or none."""
    if projection is None:
        return torch.eye(width)
    if isinstance(projection, nn.Linear):
        return projection.weight.detach().T
    found: Tensor = projection.detach()
    return found
