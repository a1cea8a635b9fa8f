"""Word anchors against their formula, written out, in value and gradient; and what makes no list of words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.errors import InputError, StaleError
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import TrainSettings, objective, train
from grafalign.training.objective import Candidates, Pairs
from grafalign.training.word_anchors import WordAnchors, make_word_anchors
from grafalign.training.word_list import SHIPPED, read_words

D = 6


def unit(rows: int, seed: int) -> torch.Tensor:
    """Random unit vectors in float64."""
    g = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, D, generator=g, dtype=torch.float64), dim=-1)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(2, 12), st.integers(0, 20), st.sampled_from([1, 8, 1 << 20]))
def test_loss_and_gradient_are_the_formula(rows: int, photos: int, words: int, seed: int, block: int) -> None:
    """Whatever the sizes, a row without photos and blocks of any size included."""
    anchors = unit(rows, seed).requires_grad_()
    bank, vectors = unit(photos, seed + 1), unit(words, seed + 2)
    g = torch.Generator().manual_seed(seed)
    pairs = Pairs(
        torch.randint(0, rows, (photos,), generator=g),
        torch.randperm(photos, generator=g),
        torch.rand(photos, generator=g, dtype=torch.float64),
    )
    offset = torch.rand(words, generator=g, dtype=torch.float64)
    words_of = WordAnchors(vectors, offset, 7.0)
    kept, objective._BLOCK['cpu'] = objective._BLOCK['cpu'], block
    try:
        loss = words_of.loss(anchors, Candidates(bank, torch.arange(photos)), pairs)
    finally:
        objective._BLOCK['cpu'] = kept
    (gradient,) = torch.autograd.grad(loss, anchors)
    expected = torch.zeros((), dtype=torch.float64)
    for row, photo, weight in zip(*(v.tolist() for v in pairs), strict=True):
        says = torch.stack([torch.exp(7.0 * bank[photo] @ u - o) for u, o in zip(vectors, offset, strict=True)])
        tile = torch.stack([7.0 * anchors[row] @ u for u in vectors])
        expected = expected - weight * ((says / says.sum()) * (tile - torch.log(torch.exp(tile).sum()))).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, anchors)[0])


def test_a_tile_that_says_what_its_photo_says_has_no_gradient() -> None:
    """The least loss is the photos' own entropy."""
    bank, vectors = unit(1, 0), unit(9, 1)
    anchors = bank.clone().requires_grad_()
    words = WordAnchors(vectors, torch.zeros(9, dtype=torch.float64), 5.0)
    one = torch.zeros(1, dtype=torch.int64)
    loss = words.loss(anchors, Candidates(bank, one), Pairs(one, one, torch.ones(1, dtype=torch.float64)))
    (gradient,) = torch.autograd.grad(loss, anchors)
    share = (5.0 * bank @ vectors.T).softmax(1)
    torch.testing.assert_close(loss, -(share * share.log()).sum())
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_shares_are_those_of_the_photos(clip: FrozenClip, tmp_path: Path) -> None:
    """With all of them divided out, the mean photo is for no word more than for another."""
    (tmp_path / 'w.txt').write_text('forest\nwater  # a lake\n\nold town\n')
    bank = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 96)).astype(np.float32))
    bank = functional.normalize(bank, dim=-1)
    rows = np.arange(10, 40)
    whole = make_word_anchors(clip, tmp_path / 'w.txt', bank, rows, 1.0)
    says = (clip.scale * bank[10:40] @ whole.vectors.T).softmax(1)
    torch.testing.assert_close(whole.log_prior, says.mean(0).log())
    assert (make_word_anchors(clip, tmp_path / 'w.txt', bank, rows, 0.0).log_prior == 0).all()
    flat = bank[:1].expand(50, -1)
    with pytest.raises(InputError, match='All 30 photos have one embedding'):
        make_word_anchors(clip, tmp_path / 'w.txt', flat, rows, 1.0)


def test_lists_that_are_none_are_named(clip: FrozenClip, tmp_path: Path) -> None:
    """One word, a word twice, a word that CLIP's context cuts, no text, no list."""
    file = tmp_path / 'w.txt'
    for text, message in (
        ('forest\n', 'holds 1 word,'),
        ('# nothing\n', 'holds 0 words'),
        ('forest\nwater\nForest \n', "lists 'Forest' twice"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_words(file)
    file.write_text('forest\n' + 'very ' * 60 + 'long\n')
    with pytest.raises(InputError, match='longer than'):
        make_word_anchors(clip, file, torch.eye(96), np.arange(3), 1.0)
    file.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match='cannot be read'):
        read_words(file)
    (tmp_path / 'w.yaml').write_text('forest: 1\n')
    with pytest.raises(InputError, match='no list of words'):
        read_words(tmp_path / 'w.yaml')
    (tmp_path / 'w.yaml').write_text('[' * 3000)
    with pytest.raises(InputError, match='cannot be read'):
        read_words(tmp_path / 'w.yaml')
    file.write_bytes(b'\xef\xbb\xbfforest\r\nwater\r\n')
    assert read_words(file) == ['forest', 'water']
    (tmp_path / 'w.yaml').write_text('- forest\n- water\n')
    assert read_words(tmp_path / 'w.yaml') == ['forest', 'water']


def test_the_shipped_list_is_one() -> None:
    """A thousand words or more, none twice, none longer than a short phrase."""
    words = read_words(SHIPPED)
    assert SHIPPED.is_file() and len(words) >= 1000
    assert max(len(word.split()) for word in words) <= 4


def settings_of(store: PairStore, out: Path, words: dict[str, object] | None, **changes: object) -> TrainSettings:
    """A short training."""
    values = {
        'store': store.path, 'out': out, 'clip': {'model': str(TINY_CLIP_DIR)}, 'steps': 4, 'batch_tiles': 16,
        'lr': 1e-3, 'log_every': 1, 'trackers': (), 'word_anchors': words,
    }  # fmt: skip
    return TrainSettings.model_validate(values | changes)


@pytest.mark.parametrize('level', ['image', 'patch', 'both'])
def test_micro_batches_take_the_steps_of_the_whole_batch(
    level: str, store: PairStore, bank: PhotoBank, tmp_path: Path
) -> None:
    """As without words; and the words change what is learned."""
    logs = {}
    for name, words, micro in (('whole', {}, 16), ('parts', {}, 5), ('none', None, 16)):
        settings = settings_of(store, tmp_path / name, words, micro_batch=micro, level=level)
        train(settings)
        logs[name] = [json.loads(line)['loss'] for line in (tmp_path / name / 'log.jsonl').read_text().splitlines()]
    assert logs['whole'] == pytest.approx(logs['parts'], rel=1e-4)
    assert logs['whole'][0] != pytest.approx(logs['none'][0], rel=1e-3)


def test_a_run_knows_its_words_by_their_content(store: PairStore, bank: PhotoBank, tmp_path: Path) -> None:
    """A moved list is the same run, a changed one another."""
    file, moved = tmp_path / 'w.txt', tmp_path / 'v.txt'
    file.write_text('old town\nhall\n')
    moved.write_text('old town\nhall\n')
    train(settings_of(store, tmp_path / 'run', {'words': file}))
    train(settings_of(store, tmp_path / 'run', {'words': moved}))
    moved.write_text('old\ntown hall\n')
    with pytest.raises(StaleError, match='other settings'):
        train(settings_of(store, tmp_path / 'run', {'words': moved}))


def test_words_without_photos_are_refused(tmp_path: Path) -> None:
    """Captions have their own words, and text towers that move have none to be anchored to."""
    clip = {'model': 'x'}
    with pytest.raises(ValueError, match='give a `store`'):
        TrainSettings.model_validate(
            {'data': str(tmp_path / 'set'), 'out': tmp_path / 'o', 'clip': clip, 'word_anchors': {}}
        )
    moving = {'data': str(tmp_path / 'set'), 'store': None, 'text_tower': 'trained', 'word_anchors': {}}
    with pytest.raises(ValueError, match='word_anchors'):
        TrainSettings.model_validate({**moving, 'out': tmp_path / 'o', 'clip': clip})
