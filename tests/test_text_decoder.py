"""MaMMUT's text decoder: two passes as open_clip's own blocks compute them, and captions as a search of all would."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from open_clip.transformer import LayerNorm, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from grafalign.captions.cider import cider
from grafalign.encoders import FrozenClip
from grafalign.encoders.captioning import CaptionOptions, write_captions, write_ids
from grafalign.encoders.mammut import marked_tokenizer
from grafalign.encoders.marked_tokens import MarkedTokenizer
from grafalign.encoders.text_decoder import DecoderSettings, TextDecoder
from grafalign.errors import GrafalignError, InputError

IMAGE_WIDTH, PATCHES = 20, 5
TEXTS = ['a lake', 'many green trees beside a road with cars', 'snow', 'a red roof']
FROM_CLIP = DecoderSettings()
SCRATCH = DecoderSettings(start='scratch', layers=3, width=24, heads=4)


def decoder_of(clip: FrozenClip, settings: DecoderSettings = FROM_CLIP) -> TextDecoder:
    """A decoder in double precision with random weights wherever CLIP's do not fill them."""
    torch.manual_seed(0)
    return TextDecoder(clip, IMAGE_WIDTH, settings).double()


def images(count: int) -> Tensor:
    """Patch tokens of some images."""
    return torch.randn(count, PATCHES, IMAGE_WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_open_clip(decoder: TextDecoder, ids: list[int], image: Tensor | None) -> Tensor:
    """The last layer [L, W] of one text without pads, by open_clip's blocks: written from MaMMUT's paper."""
    hidden = decoder.token_embedding(torch.tensor([ids])) + decoder.positional_embedding[: len(ids)]
    mask = torch.full((len(ids), len(ids)), float('-inf'), dtype=hidden.dtype).triu(1)
    for number, block in enumerate(decoder.resblocks):
        hidden = block(hidden, attn_mask=None if image is None else mask)
        if image is not None and number % decoder.cross_every == 0:
            seen = (image @ decoder.map_viz2txt_kv)[None]
            hidden = decoder.cross_attn[number // decoder.cross_every](hidden, k_x=seen, v_x=seen)
    found: Tensor = decoder.ln_final(hidden)[0]
    return found


@pytest.mark.parametrize('settings', [DecoderSettings(), SCRATCH, DecoderSettings(cross_every=1, layers=1)])
def test_both_passes_are_those_of_open_clips_blocks_text_by_text(settings: DecoderSettings, clip: FrozenClip) -> None:
    """In values and gradients, to double precision, for texts of uneven length at once."""
    decoder = decoder_of(clip, settings)
    tokens = marked_tokenizer(clip, decoder)(TEXTS)
    pictures, of = images(2), torch.tensor([1, 0, 0, 1])
    vectors = decoder(tokens)
    loss = decoder.caption_loss(tokens, decoder.look(pictures), of)
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2), dtype=vectors.dtype)
    ((vectors * weight).sum() + loss).backward()
    found = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    expected_vectors, expected = [], torch.zeros((), dtype=torch.float64)
    for row, image in zip(tokens.tolist(), of, strict=True):
        ids = [i for i in row if i >= 0]
        mean = by_open_clip(decoder, ids, None).mean(0)
        expected_vectors.append(functional.normalize(mean @ decoder.text_projection, dim=0))
        logits = by_open_clip(decoder, ids[:-1], pictures[image]) @ decoder.lm_head
        expected = expected + functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction='sum')
    reference = torch.stack(expected_vectors)
    torch.testing.assert_close(vectors, reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ((reference * weight).sum() + expected).backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@hypothesis_settings(max_examples=20)
@given(pads=st.integers(0, 9), id_of_pads=st.just(-1))
def test_pads_take_no_part(pads: int, id_of_pads: int, clip: FrozenClip) -> None:
    """More columns without a token change neither vectors nor loss."""
    decoder = decoder_of(clip)
    tokens = marked_tokenizer(clip, decoder)(TEXTS)
    padded = functional.pad(tokens, (0, pads), value=id_of_pads)
    seen, of = decoder.look(images(1)), torch.zeros(len(TEXTS), dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(decoder(padded), decoder(tokens), rtol=0, atol=1e-13)
        loss = decoder.caption_loss(tokens, seen, of)
        torch.testing.assert_close(decoder.caption_loss(padded, seen, of), loss, rtol=1e-13, atol=0)


def test_only_the_captioning_pass_sees_images(clip: FrozenClip) -> None:
    """Texts have one vector whatever the image, and their captions' loss follows from it."""
    decoder = decoder_of(clip)
    tokens, of = marked_tokenizer(clip, decoder)(TEXTS[:1]), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        first, second = (float(decoder.caption_loss(tokens, decoder.look(images(2)[[i]]), of)) for i in (0, 1))
    assert abs(first - second) > 1e-6
    decoder(tokens).sum().backward()
    assert all(p.grad is None for p in decoder.cross_attn.parameters()) and decoder.map_viz2txt_kv.grad is None


def test_writing_with_a_cache_gives_the_scores_of_the_whole_pass(clip: FrozenClip) -> None:
    """Token by token, in every layer."""
    decoder = decoder_of(clip, SCRATCH)
    ids = marked_tokenizer(clip, decoder)(['many green trees beside a road'])[0]
    pictures = images(1)
    with torch.no_grad():
        whole = by_open_clip(decoder, ids.tolist(), pictures[0]) @ decoder.lm_head
        seen, cache = decoder.look(pictures), []
        for place, token in enumerate(ids):
            scores = decoder.next_logits(token[None], place, cache, seen)
            torch.testing.assert_close(scores[0], whole[place], rtol=0, atol=1e-11)


def test_large_token_embeddings_start_no_surer_than_small_ones(clip: FrozenClip) -> None:
    """The loss of an untrained captioner is about the logarithm of the vocabulary, whatever CLIP's embeddings are."""
    losses = []
    for factor in (1, 100):
        model = copy.deepcopy(clip.model)
        with torch.no_grad():
            model.token_embedding.weight.mul_(factor)  # type: ignore[union-attr,operator]
        decoder = TextDecoder(replace(clip, model=model), IMAGE_WIDTH, DecoderSettings())
        tokens = marked_tokenizer(clip, decoder)(TEXTS)
        of = torch.zeros(len(TEXTS), dtype=torch.int64)
        with torch.no_grad():
            loss = decoder.caption_loss(tokens, decoder.look(images(1).float()), of)
        losses.append(float(loss) / int((tokens[:, 1:] >= 0).sum()))
    assert all(loss < 2 * math.log(49408) for loss in losses)


BEGIN, END, WORDS = 0, 1, 6


@pytest.fixture
def small(clip: FrozenClip) -> TextDecoder:
    """A decoder that knows six tokens and texts of four, so that all captions can be tried."""
    decoder = decoder_of(clip, SCRATCH)
    decoder.token_embedding = nn.Embedding(WORDS, 24).double()
    nn.init.normal_(decoder.token_embedding.weight, std=0.5)
    decoder.lm_head = nn.Parameter(torch.randn(24, WORDS).double() * 0.5)
    decoder.positional_embedding = nn.Parameter(decoder.positional_embedding[:4].detach().clone())
    return decoder.requires_grad_(False)


def chances(decoder: TextDecoder, image: Tensor) -> dict[tuple[int, ...], float]:
    """Mean logarithm of the probability per token of every caption of at most three tokens that may be written."""
    found = {}
    for caption in itertools.product([i for i in range(WORDS) if i != BEGIN], repeat=3):
        ids = list(itertools.takewhile(lambda i: i != END, caption))
        ids += [END] if len(ids) < 3 else []
        if ids == [END]:
            continue
        logits = by_open_clip(decoder, [BEGIN, *ids[:-1]], image) @ decoder.lm_head
        # the chance of `begin` is nobody's: it is never written, but it is not shared out either
        logs = logits.log_softmax(-1)
        found[tuple(ids)] = float(sum(logs[place, i] for place, i in enumerate(ids)) / len(ids))
    return found


def test_a_wide_beam_finds_the_likeliest_of_all_captions(small: TextDecoder) -> None:
    """By the mean over its tokens, as trying every one of them does; greedy follows the likeliest token."""
    pictures = images(4)
    wide = write_ids(small, BEGIN, END, pictures, CaptionOptions(beam=WORDS**3))
    greedy = write_ids(small, BEGIN, END, pictures, CaptionOptions())
    for image, row, first in zip(pictures, wide.tolist(), greedy.tolist(), strict=True):
        every = chances(small, image)
        best = max(every, key=lambda ids: every[ids])
        assert tuple(row[: len(best)]) == best and all(i == END for i in row[len(best) :])
        ids: list[int] = []
        while len(ids) < 3 and END not in ids:
            scores = (by_open_clip(small, [BEGIN, *ids], image) @ small.lm_head)[-1]
            scores[[BEGIN, *([] if ids else [END])]] = float('-inf')
            ids.append(int(scores.argmax()))
        assert first[: len(ids)] == ids


def test_captions_end_where_one_mark_begins_and_ends_them(small: TextDecoder) -> None:
    """As with SigLIP's tokenizer: a decoder that always ends after a word does so."""
    with torch.no_grad():
        small.ln_final.weight.zero_()
        small.ln_final.bias.copy_(4 * small.lm_head[:, END])  # every token is followed by the end
    written = write_ids(small, END, END, images(2), CaptionOptions())
    assert written.shape[1] == 2 and (written[:, 0] != END).all() and (written[:, 1] == END).all()


def test_captions_do_not_depend_on_those_beside_them(small: TextDecoder) -> None:
    """One at a time they are the same, drawn ones by their number."""
    pictures = images(5)
    for options in (CaptionOptions(beam=3), CaptionOptions(nucleus=0.9, seed=4)):
        together = write_ids(small, BEGIN, END, pictures, options)
        for number in range(5):
            alone = write_ids(small, BEGIN, END, pictures[[number]], options, first=number)
            assert (together[number, : alone.shape[1]] == alone[0]).all()


def test_a_nucleus_draws_by_probability_from_the_likeliest_tokens(small: TextDecoder) -> None:
    """Of 4,000 first tokens each of the nucleus comes as often as its share says, and no other at all."""
    pictures = images(1).expand(4000, -1, -1)
    drawn = write_ids(small, BEGIN, END, pictures, CaptionOptions(nucleus=0.7, most_tokens=1))[:, 0]
    chance = (by_open_clip(small, [BEGIN], pictures[0]) @ small.lm_head)[-1].softmax(0)
    chance[[BEGIN, END]] = 0
    order = chance.argsort(descending=True).tolist()
    kept, total = [], 0.0
    for token in order:
        if total < 0.7:
            kept.append(token)
        total += float(chance[token])
    shares = {token: float(chance[token]) / sum(float(chance[k]) for k in kept) for token in kept}
    for token in range(WORDS):
        found = float((drawn == token).double().mean())
        expected = shares.get(token, 0.0)
        assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5 + 1e-9)


def test_captions_come_back_as_words(clip: FrozenClip) -> None:
    """A decoder that was made to say one sentence says it, whatever the image."""
    decoder = decoder_of(clip)
    tokenizer = marked_tokenizer(clip, decoder)
    tokens, of = tokenizer(['two tennis courts']), torch.zeros(1, dtype=torch.int64)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        decoder.caption_loss(tokens, decoder.look(images(1)), of).backward()
        optimizer.step()
    for options in (CaptionOptions(), CaptionOptions(beam=3), CaptionOptions(nucleus=0.5)):
        assert write_captions(decoder, tokenizer, images(2), options) == ['two tennis courts'] * 2


def test_cut_captions_have_no_end(clip: FrozenClip) -> None:
    """What is longer than the context is not taught to end there; what fits is."""
    tokenizer = MarkedTokenizer(clip.tokenizer, 6, 49408)
    short, cut = tokenizer(['a lake', 'many green trees beside a road']).tolist()
    assert short == [tokenizer.begin, *tokenizer.encode('a lake'), tokenizer.end, -1, -1]
    assert cut == [tokenizer.begin, *tokenizer.encode('many green trees beside a road')[:5]]


def test_a_foreign_tokenizer_is_refused(clip: FrozenClip) -> None:
    """One that gives ids which the decoder has no embedding for."""
    with pytest.raises(InputError, match='belongs to another model'):
        MarkedTokenizer(clip.tokenizer, 24, 1000)(['a lake'])


def test_empty_texts_and_single_tokens_have_finite_gradients(clip: FrozenClip) -> None:
    """A text without a word is its begin and end; one of a single token predicts nothing."""
    decoder = decoder_of(clip)
    for tokens in (marked_tokenizer(clip, decoder)(['', 'a lake', '']), torch.tensor([[49406], [320]])):
        of = torch.zeros(len(tokens), dtype=torch.int64)
        loss = decoder.caption_loss(tokens, decoder.look(images(1)), of)
        (decoder(tokens).sum() + loss).backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in decoder.parameters())
    assert float(loss.detach()) == 0


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'width': 96}, 'decoder.width is 96 and the text tower of .* has 48; leave it out'),
        ({'layers': 3}, 'decoder.layers is 3 and the text tower'),
        ({'start': 'scratch', 'layers': 2, 'width': 64}, 'decoder.heads is missing'),
        ({'start': 'scratch', 'layers': 2, 'width': 64, 'heads': 5}, 'no multiple of decoder.heads'),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(changes: dict[str, Any], sentence: str, clip: FrozenClip) -> None:
    """A decoder wider or deeper than its tower, or from scratch without a size."""
    with pytest.raises(InputError, match=sentence):
        TextDecoder(clip, IMAGE_WIDTH, DecoderSettings(**changes))


def test_a_decoder_from_scratch_may_be_wider_than_its_tower(clip: FrozenClip) -> None:
    """Its projection leads to CLIP's space all the same."""
    decoder = decoder_of(clip, DecoderSettings(start='scratch', layers=1, width=96, heads=4))
    assert decoder(marked_tokenizer(clip, decoder)(TEXTS)).shape == clip.encode_text(TEXTS).shape


def test_a_text_tower_that_is_not_clips_is_refused(clip: FrozenClip) -> None:
    """It cannot become a decoder, and the sentence says what to set."""
    model = copy.deepcopy(clip.model)
    model.transformer.resblocks[0] = nn.Identity()  # type: ignore[union-attr,index,operator]
    with pytest.raises(InputError, match=r'set decoder\.start: scratch'):
        TextDecoder(replace(clip, model=model), IMAGE_WIDTH, DecoderSettings())


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'beam': 0}, 'A beam of 0 follows no caption'),
        ({'nucleus': 0.0}, 'no share of the tokens'),
        ({'nucleus': 0.5, 'beam': 2}, 'give one of the two'),
        ({'most_tokens': 0}, 'say nothing'),
    ],
)
def test_ways_of_writing_that_are_none_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    """A beam of nothing, an empty nucleus, both at once."""
    with pytest.raises(GrafalignError, match=sentence):
        CaptionOptions(**options)


def test_cider_is_coco_captions() -> None:
    """Values of pycocoevalcap 1.2 for the same words."""
    captions = [
        'many planes are parked near a terminal',
        'a red roof beside a lake',
        'the river runs through a green forest',
        'a a a a',
        'two tennis courts',
    ]
    references = [
        ['many planes are parked near a large terminal in an airport', 'some planes near several buildings'],
        ['a lake beside a red roof', 'a house with a red roof near the lake'],
        ['a river goes through the green forest'],
        ['a piece of green land', 'many green trees'],
        [
            'two tennis courts are near a road',
            'two tennis courts surrounded by trees',
            'there are two courts',
        ],
    ]
    expected = [2.770094672681562, 3.8302355072625955, 2.378830814023295, 0.0, 3.1621904349492898]
    assert cider(captions, references) == pytest.approx(expected, rel=1e-12)


def test_open_clips_blocks_have_no_dropout_of_their_own() -> None:
    """The decoder's attention is written here, and would not know of one."""
    block = ResidualAttentionBlock(8, 2)
    assert block.attn.dropout == 0 and isinstance(block.ln_1, LayerNorm)
