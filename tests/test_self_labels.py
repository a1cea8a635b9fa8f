"""Self-labels: the loss is its formula, micro-batches do not matter, and patches learn what the run says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from grafalign.encoders import PhotoBank
from grafalign.encoders.smooth import SmoothAttention
from grafalign.errors import GrafalignError, InputError, StaleError
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.self_labels import NONE, label_loss, surest
from grafalign.zeroshot import class_vectors
from tests.launched import ended, start

WORDS = ['forest', 'water', 'cropland', 'suburb', 'beach']


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6), st.integers(0, 30))
def test_the_loss_is_its_formula_in_value_and_gradient(images: int, side: int, words: int, seed: int) -> None:
    """Patches without a label take no part, and the mean is over the labels of the whole batch."""
    g = torch.Generator().manual_seed(seed)
    patches = functional.normalize(torch.randn(images, side, side, 5, generator=g, dtype=torch.float64), dim=-1)
    vectors = functional.normalize(torch.randn(words, 5, generator=g, dtype=torch.float64), dim=-1)
    labels = torch.randint(NONE, words, (images, side, side), generator=g)
    patches.requires_grad_()
    count = torch.tensor(7.0, dtype=torch.float64)  # with those of other micro-batches
    loss = label_loss(patches, labels, vectors, 0.2, count)
    expected = torch.zeros((), dtype=torch.float64)
    for i, r, c in np.argwhere(labels.numpy() != NONE):
        scores = torch.stack([patches[i, r, c] @ v / 0.2 for v in vectors])
        expected = expected - torch.log(torch.exp(scores[labels[i, r, c]]) / torch.exp(scores).sum()) / 7
    torch.testing.assert_close(loss, expected)
    if (labels != NONE).any():
        torch.testing.assert_close(*(torch.autograd.grad(v, patches)[0] for v in (loss, expected)))


@given(st.integers(0, 50), st.sampled_from([0.1, 0.5, 1.0]))
def test_of_each_word_the_patches_with_the_largest_lead_keep_it(seed: int, share: float) -> None:
    """As many as the share says, one at least, and none of another word."""
    rng = np.random.default_rng(seed)
    best, lead = rng.integers(NONE, 3, (4, 3, 3)).astype(np.int16), rng.random((4, 3, 3))
    labels = surest(best, lead, share)
    for word in range(3):
        mine = best == word
        kept = labels == word
        assert not (kept & ~mine).any()
        if mine.any():
            assert kept.sum() == max(1, round(share * int(mine.sum())))
            assert not (mine & ~kept).any() or lead[kept].min() >= lead[mine & ~kept].max()


def settings_of(store: PairStore, out: Path, **changes: Any) -> TrainSettings:
    """A short training at image level."""
    values = {
        'store': store.path, 'out': out, 'clip': {'model': str(TINY_CLIP_DIR)}, 'steps': 30, 'batch_tiles': 16,
        'lr': 1e-3, 'log_every': 1, 'trackers': (),
    }  # fmt: skip
    return TrainSettings.model_validate(values | changes)


@pytest.fixture(scope='module')
def run(store: PairStore, bank: PhotoBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at image level, and beside it a list of words."""
    folder = tmp_path_factory.mktemp('first')
    train(settings_of(store, folder / 'run', tau=0.3))
    (folder / 'words.txt').write_text('\n'.join(WORDS) + '\n')
    return folder / 'run'


def labels_of(run: Path, **changes: Any) -> dict[str, Any]:
    """The setting, of a run and its words."""
    return {'self_labels': {'run': run, 'words': run.parent / 'words.txt', **changes}}


def test_patches_learn_what_the_run_says_of_them(store: PairStore, run: Path, tmp_path: Path) -> None:
    """Their argmax agrees with the run's smooth attention far more often than before, and the run counts as both."""
    marker = train(settings_of(store, tmp_path / 'second', tau=0.3, **labels_of(run, share=0.5)))
    assert marker.level == 'both'
    first, second = load_satellite(run), load_satellite(tmp_path / 'second')
    rows = store.tiles_of('train')[:60]
    scale, offset = store.radiometry
    pixels = torch.from_numpy(np.stack([store.read_tile(int(row)) for row in rows]))
    inputs = first.preprocess(pixels, torch.from_numpy(scale[rows]), torch.from_numpy(offset[rows]))
    vectors = torch.from_numpy(class_vectors(first.clip, WORDS))
    with torch.no_grad():
        wanted = (SmoothAttention(first.encoder)(inputs).patches @ vectors.T).argmax(-1)
        before, after = ((m.embed_patches(inputs) @ vectors.T).argmax(-1) for m in (first, second))
    agree = [float((guess == wanted).float().mean()) for guess in (before, after)]
    assert agree[1] > agree[0] + 0.15
    log = [json.loads(line) for line in (tmp_path / 'second' / 'log.jsonl').read_text().splitlines()]
    assert log[-1]['label_loss'] < log[0]['label_loss']


def test_micro_batches_take_the_steps_of_the_whole_batch(store: PairStore, run: Path, tmp_path: Path) -> None:
    """With symmetries of the views, and labels that are unevenly spread over them."""
    losses = []
    for micro in (16, 5):
        out = tmp_path / str(micro)
        train(settings_of(store, out, steps=3, micro_batch=micro, **labels_of(run)))
        losses.append([json.loads(line)['loss'] for line in (out / 'log.jsonl').read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_processes_that_share_the_labelling_take_the_steps_of_one(store: PairStore, run: Path, tmp_path: Path) -> None:
    """Each labels its share of the images, and all train on the labels of all."""
    losses = []
    for processes in (1, 2):
        wanted = settings_of(store, tmp_path / f'of{processes}', steps=3, **labels_of(run))
        (tmp_path / 'train.yaml').write_text(yaml.safe_dump(wanted.model_dump(mode='json')))
        code, said = ended(start('train', tmp_path / 'train.yaml', '--processes', processes))
        assert code == 0, said
        log = (tmp_path / f'of{processes}' / 'log.jsonl').read_text().splitlines()
        losses.append([json.loads(line)['loss'] for line in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_labels_turn_with_their_tiles(store: PairStore, run: Path, tmp_path: Path) -> None:
    """A training of symmetries alone gives patches that say the same of a tile and, turned, of the turned tile."""
    train(settings_of(store, tmp_path / 'second', tau=0.3, **labels_of(run, share=1.0)))
    model = load_satellite(tmp_path / 'second')
    rows = store.tiles_of('train')[:60]
    scale, offset = store.radiometry
    pixels = torch.from_numpy(np.stack([store.read_tile(int(row)) for row in rows]))
    inputs = model.preprocess(pixels, torch.from_numpy(scale[rows]), torch.from_numpy(offset[rows]))
    vectors = torch.from_numpy(class_vectors(model.clip, WORDS))
    upright = (model.embed_patches(inputs) @ vectors.T).argmax(-1)
    turned = (model.embed_patches(inputs.rot90(1, (2, 3))) @ vectors.T).argmax(-1)
    same = float((turned == upright.rot90(1, (1, 2))).float().mean())
    assert same > float((turned == upright).float().mean()) and same > 0.6


def test_what_does_not_fit_is_one_sentence(store: PairStore, run: Path, tmp_path: Path) -> None:
    """No run, other bands, one word, a word twice; another level, padding, views that resample."""
    words = run.parent / 'words.txt'
    with pytest.raises(GrafalignError, match='not a finished run'):
        train(settings_of(store, tmp_path / 'a', self_labels={'run': tmp_path, 'words': words}))
    with pytest.raises(InputError, match=r"bands \('red', 'green', 'blue'\)"):
        train(settings_of(store, tmp_path / 'a', bands=('blue', 'green', 'red'), **labels_of(run)))
    few = tmp_path / 'few.txt'
    for text, told in (('forest\n', 'holds 1 word,'), ('a\nb\na\n', "lists 'a' twice")):
        few.write_text(text)
        with pytest.raises(InputError, match=told):
            train(settings_of(store, tmp_path / 'a', self_labels={'run': run, 'words': few}))
    with pytest.raises(InputError, match='cannot be read'):
        train(settings_of(store, tmp_path / 'a', self_labels={'run': run, 'words': tmp_path / 'no.txt'}))
    for changes, told in (
        ({'level': 'patch'}, 'level: image'),
        ({'fit': 'pad'}, 'not padded'),
        ({'augment': {'zoom': 1.2}}, 'leave turn, zoom'),
    ):
        with pytest.raises(ValueError, match=told):
            settings_of(store, tmp_path / 'a', **changes, **labels_of(run))


def test_a_run_knows_its_words_by_their_content(store: PairStore, run: Path, tmp_path: Path) -> None:
    """Words that moved are the same run, others another."""
    moved = tmp_path / 'moved.txt'
    moved.write_text('\n'.join(WORDS) + '\n')
    train(settings_of(store, tmp_path / 'b', steps=2, **labels_of(run)))
    train(settings_of(store, tmp_path / 'b', steps=2, self_labels={'run': run, 'words': moved}))
    moved.write_text('\n'.join(WORDS[:-1]) + '\n')
    with pytest.raises(StaleError, match='other settings'):
        train(settings_of(store, tmp_path / 'b', steps=2, self_labels={'run': run, 'words': moved}))
