"""A filter says per kind what it lets through, and keeps what it is sure of."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.captions.write_set import SetWriter
from grafalign.curation import filter_set, fit_filter, load_filter
from grafalign.curation.features import image_features
from grafalign.curation.heads import FOLDS, Labelled, fit_head, folds, precision_at, threshold_at, upper_bound
from grafalign.curation.select import select
from grafalign.errors import DamagedError, GrafalignError, InputError, StaleError
from grafalign.models import Model
from grafalign.store import PairStore
from tests.caption_world import folder, picture
from tests.curation_world import labels_of, make_kinds, web_set


@pytest.fixture(scope='module')
def kinds(tmp_path_factory: pytest.TempPathFactory, store: PairStore, world: Path) -> Path:
    """Folders of tiles, ground photos and charts, 40 each, and the file that names them."""
    return make_kinds(tmp_path_factory.mktemp('kinds'), store, world)


def test_a_filter_keeps_remote_sensing_and_names_what_it_does_not(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Tiles are kept, photos and charts are rows with their scores, and images stay where they are."""
    found = fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.05)
    question = found.marker.questions['aerial']
    assert question.recall > 0.8 and question.worst_rate <= 0.05
    assert {k.kind: k.images for k in question.kinds} == {'tile': 40, 'photo': 40, 'chart': 40}
    captions = web_set(kinds, tmp_path / 'web')
    done = filter_set(captions, tmp_path / 'kept', model, load_filter(tmp_path / 'filter', model))
    kept = CaptionSet(tmp_path / 'kept')
    names = set(kept.images['image_id'].to_pylist())
    assert sum(n.startswith('tile') for n in names) >= 7 and done.kept == len(names)
    assert sum(not n.startswith('tile') for n in names) <= 1
    assert {c['image_id'] for c in kept.captions.to_pylist()} == names
    assert all(c['image_id'] == kept.images['image_id'][c['image']].as_py() for c in kept.captions.to_pylist())
    rejected = {r['id']: r for r in kept.rejected.to_pylist()}
    assert set(rejected) | names == set(captions.images['image_id'].to_pylist())
    assert rejected['chart3']['reason'] == 'not remote sensing' and 'aerial -' in rejected['chart3']['detail']
    assert dict(kept.images['scores'][0].as_py())['aerial'] >= question.threshold
    assert 'Left out by the smallest margin' in (tmp_path / 'kept' / 'page.html').read_text()


def test_scores_of_an_earlier_filter_stay_beside_the_new_ones(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Some images have earlier scores, some none; rows of a block keep their own."""
    captions = web_set(kinds, tmp_path / 'web')
    with SetWriter(tmp_path / 'scored') as writer:
        for row, image in enumerate(captions.images.to_pylist()):
            earlier = [('old', float(row)), ('older', -1.0)][: row % 3] or None
            writer.add_image(**image | {'scores': earlier})
        writer.add_captions(captions.captions)
        writer.finish({}, captions.marker.root)
    scored = CaptionSet(tmp_path / 'scored')
    reasons = np.full(len(scored), None, dtype=object)
    reasons[[0, 7]] = 'gone'
    new = np.linspace(0, 1, len(scored)).astype(np.float32)
    select(scored, tmp_path / 'kept', reasons, {}, {'new': new})
    kept, rejected = CaptionSet(tmp_path / 'kept'), CaptionSet(tmp_path / 'kept').rejected.to_pylist()
    for image in kept.images.to_pylist():
        row = scored.images['image_id'].to_pylist().index(image['image_id'])
        expected = dict([('old', float(row)), ('older', -1.0)][: row % 3]) | {'new': float(new[row])}
        assert dict(image['scores']) == expected
    assert [(r['id'], r['reason'], r['detail']) for r in rejected] == [
        (scored.images['image_id'][n].as_py(), 'gone', f'new {new[n]:+.2f}') for n in (0, 7)
    ]
    assert [c['text'] for c in kept.captions.to_pylist()] == [
        c['text'] for c in captions.captions.to_pylist() if c['image'] not in (0, 7)
    ]


def test_keywords_never_accept(kinds: Path, model: Model, tmp_path: Path) -> None:
    """A dish is not kept for its caption, and with keywords tiles without one are not looked at."""
    web_filter = fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.05)
    captions = web_set(kinds, tmp_path / 'web')
    without = filter_set(captions, tmp_path / 'kept', model, web_filter)
    assert without.kept_without_keyword >= without.kept - 1
    with pytest.raises(InputError, match='passes the filter'):
        filter_set(captions, tmp_path / 'dishes', model, web_filter, keywords=['satellite'])


def test_images_without_a_keyword_are_not_opened(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Their files may be gone, and what is said of the others is what it was."""
    web_filter = fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.05)
    captions = web_set(kinds, tmp_path / 'web')
    filter_set(captions, tmp_path / 'all', model, web_filter)
    word = captions.captions['text'].to_pylist()[0].split()[-1]
    has = {c['image_id'] for c in captions.captions.to_pylist() if word in c['text'].lower().split()}
    for name, file in zip(*(captions.images[n].to_pylist() for n in ('image_id', 'file')), strict=True):
        if name not in has:
            (Path(captions.marker.root or '') / file).unlink()
    again = CaptionSet(tmp_path / 'web')
    filter_set(again, tmp_path / 'some', model, web_filter, keywords=[word])
    kept, before = (set(CaptionSet(tmp_path / n).images['image_id'].to_pylist()) for n in ('some', 'all'))
    assert kept == before & has and has != set(again.images['image_id'].to_pylist())
    assert not [r for r in CaptionSet(tmp_path / 'some').rejected.to_pylist() if 'cannot be read' in r['reason']]


def test_words_judge_without_labels_but_their_threshold_needs_them(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Prompts give scores; labels calibrate them and say what they are worth."""
    found = fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.1, by_words=True)
    assert found.marker.by == 'words' and found.marker.questions['aerial'].worst_rate <= 0.1
    again = load_filter(tmp_path / 'filter')
    vectors = np.eye(4, model.embed_texts(['x']).shape[1], dtype=np.float32)
    assert np.allclose(again.logits(vectors)['aerial'], found.logits(vectors)['aerial'])


def test_a_filter_is_for_its_model(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Embeddings of another model are refused."""
    fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.1)
    with pytest.raises(StaleError, match='fit it again'):
        load_filter(tmp_path / 'filter', dataclasses.replace(model, digest='another'))


def labelled(counts: dict[str, int], positive: set[str], seed: int = 0) -> Labelled:
    """Random features whose positive kinds lie apart."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.array(list(counts), dtype=object), list(counts.values()))
    is_positive = np.array([k in positive for k in kind])
    features = rng.normal(size=(len(kind), 6)).astype(np.float32) + is_positive[:, None] * 1.5
    return Labelled(features, kind, is_positive, [f'{i}' for i in range(len(kind))])


def test_scores_that_rates_are_read_off_are_out_of_fold() -> None:
    """Labels that say nothing give scores that say nothing, though there are more features than images."""
    rng = np.random.default_rng(0)
    data = Labelled(
        rng.normal(size=(80, 200)).astype(np.float32),
        np.array(['a'] * 40 + ['b'] * 40, dtype=object),
        np.array([True] * 40 + [False] * 40),
        [str(i) for i in range(80)],
    )
    fitted = fit_head(data)
    inside = fitted.head.logits(data.features)
    assert (inside[:40].mean() - inside[40:].mean()) > 5 * abs(fitted.logits[:40].mean() - fitted.logits[40:].mean())


def test_copies_are_in_one_fold_and_kinds_are_spread() -> None:
    """No fold is fitted on a copy of what it judges."""
    data = labelled({'a': 60, 'b': 40}, {'a'})
    twice = Labelled(data.features, data.kind, data.positive, [str(i // 2) for i in range(100)])
    fold = folds(twice)
    assert all(fold[i] == fold[i + 1] for i in range(0, 100, 2))
    assert {np.sum(fold[:60] == f) for f in range(FOLDS)} == {12} and {
        np.sum(fold[60:] == f) for f in range(FOLDS)
    } == {8}


def test_a_kind_weighs_the_same_whatever_its_size() -> None:
    """Ten times as many photos do not make charts matter less."""
    few, many = (labelled({'aid': 50, 'chart': 50, 'photo': n}, {'aid'}) for n in (50, 500))
    assert threshold_at(fit_head(few).logits, few, 0.1) == pytest.approx(
        threshold_at(fit_head(many).logits, many, 0.1), abs=1.5
    )


@given(
    st.lists(st.floats(-5, 5), min_size=10, max_size=40),
    st.lists(st.floats(-5, 5), min_size=10, max_size=40),
    st.floats(0.001, 0.5),
)
def test_at_a_threshold_no_kind_has_more_than_its_rate_and_a_lower_one_would(
    first: list[float], second: list[float], rate: float
) -> None:
    """The threshold is the smallest that every kind of negatives meets."""
    logits = np.array([9.0] * 10 + first + second)
    kind = np.array(['p'] * 10 + ['a'] * len(first) + ['b'] * len(second), dtype=object)
    data = Labelled(np.zeros((len(kind), 1), np.float32), kind, kind == 'p', ['x'] * len(kind))
    threshold = threshold_at(logits, data, rate)
    assert all((logits[kind == k] >= threshold).mean() <= rate for k in 'ab')
    lower = np.nextafter(threshold, -np.inf)
    assert any((logits[kind == k] >= lower).mean() > rate for k in 'ab')


@given(st.integers(0, 30), st.integers(1, 400))
def test_the_bound_of_a_rate_is_clopper_and_pearsons(hits: int, count: int) -> None:
    """At the bound so few hits or fewer come in one of twenty cases."""
    hits = min(hits, count - 1)
    assert binom.cdf(hits, count, upper_bound(hits, count)) == pytest.approx(0.05, abs=1e-6)


def test_precision_follows_from_the_prior() -> None:
    """At one in a thousand a false positive rate of one in a hundred leaves nine of a hundred right."""
    assert precision_at(0.001, 1.0, 0.01) == pytest.approx(0.001 / (0.001 + 0.999 * 0.01))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'negative': {}}, 'negative'),
        ({'negative': {'photo': 'nowhere'}}, 'There is no folder nowhere'),
        ({'negative': {'tile': 'photo'}}, 'both positive and negative'),
        ({'negative': {'empty': 'empty'}}, 'holds no picture'),
        ({'negative': {'few': 'few'}}, 'few has 3 readable images'),
    ],
)
def test_labels_that_cannot_be_fitted_are_one_sentence(
    change: dict[str, object], sentence: str, kinds: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """It names the kind or the folder."""
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'few').mkdir()
    for number in range(3):
        (tmp_path / 'few' / f'{number}.png').write_bytes(picture(number))
    places = {'photo': str(kinds / 'photo'), 'empty': str(tmp_path / 'empty'), 'few': str(tmp_path / 'few')}
    sides = yaml.safe_load((kinds / 'kinds.yaml').read_text())['aerial']
    sides |= {side: {k: places.get(str(v), v) for k, v in folders.items()} for side, folders in change.items()}  # type: ignore
    (tmp_path / 'kinds.yaml').write_text(yaml.safe_dump({'aerial': sides}))
    code, said = command(
        'captions', 'fit-filter', tmp_path / 'kinds.yaml', tmp_path / 'filter', '--model', 'grafalign/sandbox/tiny_clip'
    )
    assert code == 1 and sentence in said and 'Traceback' not in said


def test_unreadable_pictures_are_named_and_damage_is_one_sentence(model: Model, tmp_path: Path) -> None:
    """A cut file costs a row; a damaged table of features says what to delete."""
    import_captions(folder(tmp_path / 'web', 6), tmp_path / 'set')
    (tmp_path / 'web' / '002.png').write_bytes(picture(2)[:100])
    captions = CaptionSet(tmp_path / 'set')
    found = image_features(captions, model)
    assert list(found.unreadable) == [2] and not found.vectors[2].any() and found.vectors[3].any()
    vectors = next((tmp_path / 'set' / 'features').glob('*/vectors.npy'))
    vectors.write_bytes(b'x')
    with pytest.raises(DamagedError, match='delete its folder'):
        image_features(captions, model)


def test_a_killed_pass_over_the_images_goes_on(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are those of a pass without kills, and parts that were done are not done again."""
    import_captions(folder(tmp_path / 'web', 60), tmp_path / 'set')
    import_captions(tmp_path / 'web' / 'captions.jsonl', tmp_path / 'whole')
    for module in ('parts', 'embedding'):
        monkeypatch.setattr(f'grafalign.models.{module}.BATCH', 8)
    whole = image_features(CaptionSet(tmp_path / 'whole'), model)
    code = (
        'import sys; from grafalign.models import embedding, parts; embedding.BATCH = parts.BATCH = 8\n'
        'from grafalign.captions import CaptionSet; from grafalign.models import load_model\n'
        'from grafalign.curation.features import image_features\n'
        'image_features(CaptionSet(sys.argv[1]), load_model(sys.argv[2]))'
    )
    args = [sys.executable, '-c', code, str(tmp_path / 'set'), 'grafalign/sandbox/tiny_clip']
    process = subprocess.Popen(args, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / 'set').glob('features/*/parts-*/*.parquet')):
        time.sleep(0.005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = image_features(CaptionSet(tmp_path / 'set'), model)
    assert np.array_equal(found.vectors, whole.vectors)


def test_a_set_of_tiles_is_not_filtered(store: PairStore, model: Model, kinds: Path, tmp_path: Path) -> None:
    """It is remote sensing already."""
    import_captions(Path(str(store.path)), tmp_path / 'set')
    web_filter = fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.1)
    with pytest.raises(GrafalignError, match='is a set of tiles'):
        filter_set(CaptionSet(tmp_path / 'set'), tmp_path / 'out', model, web_filter)
