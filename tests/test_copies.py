"""Copies are found whatever their turn; training refuses a set that leaks into its tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grafalign.captions import CaptionSet
from grafalign.captions.hashes import LEAST_CORRELATION, alike, same_picture, symmetric_hashes, symmetries
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.leaks import leaking_rows
from grafalign.curation import find_copies
from grafalign.curation.features import image_features
from grafalign.encoders import FrozenClip, embed_texts
from grafalign.errors import InputError, StaleError
from grafalign.models import Model
from grafalign.photos.exif import difference_hash
from grafalign.training import train
from grafalign.training.gather_data import gather_data
from tests.caption_world import folder, picture, settings


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
