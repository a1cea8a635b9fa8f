"""Filters say per kind what they let through; copies are found whatever their turn; training refuses what leaks."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.stats import binom

from grafalign.captions import CaptionSet
from grafalign.captions.hashes import LEAST_CORRELATION, alike, same_picture, symmetric_hashes, symmetries
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.leaks import leaking_rows
from grafalign.curation import FilterLabels, filter_set, find_copies, fit_filter, load_filter
from grafalign.curation.features import image_features
from grafalign.curation.heads import FOLDS, Labelled, fit_head, folds, precision_at, threshold_at, upper_bound
from grafalign.encoders import FrozenClip, embed_texts
from grafalign.errors import DamagedError, GrafalignError, InputError, StaleError
from grafalign.models import Model
from grafalign.photos.exif import difference_hash
from grafalign.store import PairStore
from grafalign.training import train
from grafalign.training.gather_data import gather_data
from tests.caption_world import folder, picture
from tests.test_caption_training import settings


@pytest.fixture(scope='module')
def kinds(tmp_path_factory: pytest.TempPathFactory, store: PairStore, world: Path) -> Path:
    """Folders of tiles, ground photos and charts, 40 each, and the file that names them."""
    out = tmp_path_factory.mktemp('kinds')
    low, high = store.sensor.value_range
    scale, offset = store.radiometry
    photos = sorted((world / 'photos').rglob('*.jpg'))
    for name in ('tile', 'photo', 'chart'):
        (out / name).mkdir()
    for number in range(40):
        stored = store.read_tile(number)[:3] * scale[number][:3, None, None] + offset[number][:3, None, None]
        unit = np.clip((stored - low) / (high - low), 0, 1)
        Image.fromarray((unit * 255).astype(np.uint8).transpose(1, 2, 0)).save(out / 'tile' / f'{number}.png')
        (out / 'photo' / f'{number}.jpg').write_bytes(photos[number].read_bytes())
        chart = Image.new('RGB', (80, 60), 'white')
        bars = np.random.default_rng(number).integers(5, 55, 6)
        for place, bar in enumerate(bars.tolist()):
            ImageDraw.Draw(chart).rectangle((8 + 12 * place, 58 - bar, 16 + 12 * place, 58), fill='steelblue')
        chart.save(out / 'chart' / f'{number}.png')
    content = {'positive': {'tile': 'tile'}, 'negative': {'photo': 'photo', 'chart': 'chart'}}
    sides = {side: {k: str(out / v) for k, v in folders.items()} for side, folders in content.items()}
    (out / 'kinds.yaml').write_text(yaml.safe_dump({'aerial': sides}))
    return out


def labels_of(kinds: Path) -> FilterLabels:
    """The labels of the fixture."""
    return FilterLabels.model_validate(yaml.safe_load((kinds / 'kinds.yaml').read_text()))


def web_set(kinds: Path, out: Path) -> CaptionSet:
    """Ten images of each kind as a set, with a caption each; the photos' say satellite."""
    words = {'tile': 'fields and a village', 'photo': 'satellite dish in a garden', 'chart': 'sales of the year'}
    rows = [
        {'file': str(next((kinds / kind).glob(f'{n}.*'))), 'image_id': f'{kind}{n}', 'text': text}
        for kind, text in words.items()
        for n in range(10)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / 'web.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    import_captions(out.parent / 'web.jsonl', out)
    return CaptionSet(out)


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


def noisy(seed: int, size: int = 64) -> Image.Image:
    """A picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size, size, 3))
    for cells in (4, 8, 16):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=float) / 3
    return Image.fromarray(pixels.astype(np.uint8))


def copy_of(image: Image.Image, form: int, size: int = 48, quality: int = 60) -> Image.Image:
    """A turned or mirrored, smaller copy as JPEG."""
    pixels = np.ascontiguousarray(list(symmetries(np.asarray(image)))[form])
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize('form', range(8))
def test_a_turned_smaller_copy_is_found_among_strangers(form: int) -> None:
    """By hash and pixels, whichever of the eight forms it has."""
    images = [noisy(seed) for seed in range(30)]
    copies = [copy_of(image, form) for image in images[:5]]
    pairs = alike(
        np.stack([symmetric_hashes(i) for i in images]), np.stack([symmetric_hashes(i) for i in copies]), most_bits=6
    )
    real = {(a, b) for a, b in pairs.tolist() if same_picture(images[a], copies[b]) >= LEAST_CORRELATION}
    assert real == {(n, n) for n in range(5)}


@hypothesis.settings(max_examples=40)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(0, 6))
def test_pairs_of_hashes_are_those_of_comparing_all(values: list[int], seed: int, most: int) -> None:
    """Every pair of which a form of one is near the other as it is, and no other."""
    rng = np.random.default_rng(seed)
    base = rng.choice(np.array(values, dtype=np.uint64), (6, 8))
    flips = rng.integers(0, 64, (6, 8, 2), dtype=np.uint64)
    hashes = base ^ (np.uint64(1) << flips[..., 0]) ^ (np.uint64(1) << flips[..., 1])
    expected = {
        (min(i, j), max(i, j))
        for i in range(6)
        for j in range(6)
        if i != j and any(hashes[i, 0] and f and int(hashes[i, 0] ^ f).bit_count() <= most for f in hashes[j])
    }
    assert set(map(tuple, alike(hashes, most_bits=most).tolist())) == expected


def test_the_first_hash_is_that_of_the_picture_as_it_is() -> None:
    """But for rounding it is the difference hash of the photos, of a square picture."""
    image = noisy(3, 72)
    assert int(symmetric_hashes(image)[0] ^ np.uint64(difference_hash(image))).bit_count() <= 2


def test_copies_inside_and_leaks_are_reported_and_left_out(tmp_path: Path) -> None:
    """The first of a group of copies stays, and nothing that is in the other set does."""
    web, test = tmp_path / 'web', tmp_path / 'test'
    for place, seeds in ((web, range(12)), (test, range(20, 26))):
        place.mkdir()
        for seed in seeds:
            noisy(seed).save(place / f'{seed:02d}.png')
    copy_of(noisy(3), 5).save(web / '30.png')  # inside, turned
    (web / '31.png').write_bytes((web / '04.png').read_bytes())  # inside, the same bytes
    copy_of(noisy(22), 2).save(web / '32.png')  # in the test set
    for place in (web, test):
        rows = [{'image': p.name, 'captions': [f'place {p.stem}x']} for p in sorted(place.glob('*.png'))]
        (place / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        import_captions(place / 't.jsonl', tmp_path / f'{place.name}_set')
    captions = CaptionSet(tmp_path / 'web_set')
    done = find_copies(
        captions, [f'held={tmp_path / "test_set"}', f'jsonl=captions:{test / "t.jsonl"}'], tmp_path / 'clean'
    )
    assert (done.images, done.inside, done.leaks, done.kept) == (15, 2, {'held': 1, 'jsonl': 1}, 12)
    ids = captions.images['image_id'].to_pylist()
    assert [ids[r] for r in leaking_rows(captions, 'held')] == ['32.png']
    rejected = {r['id']: r['reason'] for r in CaptionSet(tmp_path / 'clean').rejected.to_pylist()}
    assert rejected == {
        '30.png': 'copy of another image of the set',
        '31.png': 'copy of another image of the set',
        '32.png': 'also in jsonl',
    }
    ways = pq.read_table(tmp_path / 'web_set' / 'leaks' / 'pairs.parquet')['how'].to_pylist()
    assert sorted(ways) == ['bytes', 'picture', 'picture', 'picture']
    with pytest.raises(InputError, match='not with other'):
        leaking_rows(captions, 'other')


def test_near_embeddings_are_copies_where_a_model_is_asked(model: Model, tmp_path: Path) -> None:
    """A crop with other colours is found by its embedding alone."""
    rows = []
    for number in range(6):
        noisy(number, 96).save(tmp_path / f'{number}.png')
        rows.append({'file': f'{number}.png', 'text': 'a place'})
    noisy(2, 96).point(lambda v: min(255, int(v * 1.1))).save(tmp_path / '9.png')
    rows.append({'file': '9.png', 'text': 'a place'})
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    vectors = image_features(captions, model).vectors.astype(np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    cosine = vectors @ vectors.T - 2 * np.eye(len(vectors))
    found = find_copies(captions, model=model, closer_than=float(cosine.max()) - 1e-3)
    assert found.inside >= 1


def test_training_refuses_a_set_that_leaks_or_drops_what_does(clip: FrozenClip, tmp_path: Path) -> None:
    """Nobody looked: refused. Leaks: refused. Told to drop them: they are not trained on."""
    import_captions(folder(tmp_path / 'web'), tmp_path / 'set', ImportOptions())
    test = tmp_path / 'test'
    test.mkdir()
    rows = []
    for number in (3, 7):
        (test / f'{number}.png').write_bytes(picture(number))
        rows.append({'image': f'{number}.png', 'captions': ['a test']})
    (test / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    captions = CaptionSet(tmp_path / 'set')
    embed_texts(captions, clip)
    wanted = settings(clip, data=tmp_path / 'set', tested_on=('held',), out=tmp_path / 'run')
    with pytest.raises(InputError, match=r'captions leaks .* --against held='):
        train(wanted)
    find_copies(captions, [f'held=captions:{test / "t.jsonl"}'])
    with pytest.raises(InputError, match=r'2 images of .* \(2 in held\)'):
        train(wanted)
    data = gather_data(wanted.model_copy(update={'leaks': 'drop'}), clip)
    assert sorted(set(range(24)) - set(data.sources[0].rows.tolist())) == [3, 7]
    (tmp_path / 'web' / '024.png').write_bytes(picture(24))
    with (tmp_path / 'web' / 'captions.jsonl').open('a') as table:
        table.write('{"image": "024.png", "captions": ["a test"]}\n')
    import_captions(tmp_path / 'web' / 'captions.jsonl', tmp_path / 'set')
    embed_texts(CaptionSet(tmp_path / 'set'), clip)
    with pytest.raises(StaleError, match='has changed since'):
        train(wanted)


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
    """Features are those of a pass without kills, and blocks that were done are not done again."""
    import_captions(folder(tmp_path / 'web', 60), tmp_path / 'set')
    import_captions(tmp_path / 'web' / 'captions.jsonl', tmp_path / 'whole')
    monkeypatch.setattr('grafalign.curation.features._BLOCK', 8)
    whole = image_features(CaptionSet(tmp_path / 'whole'), model)
    code = (
        'import sys, grafalign.curation.features as f; f._BLOCK = 8\n'
        'from grafalign.captions import CaptionSet; from grafalign.models import load_model\n'
        'f.image_features(CaptionSet(sys.argv[1]), load_model(sys.argv[2]))'
    )
    args = [sys.executable, '-c', code, str(tmp_path / 'set'), 'grafalign/sandbox/tiny_clip']
    process = subprocess.Popen(args, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / 'set').glob('features/*/progress.json')):
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
