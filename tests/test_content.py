"""Photos that show no place are found by CLIP's own words, and left out of the bank without reading them again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from grafalign.config import load_settings
from grafalign.encoders import ContentFilters, FrozenClip, PhotoBank, embed, filter_bank, load_bank
from grafalign.encoders.content import (
    SHIPPED_PROMPTS,
    ContentPrompts,
    reject_scores,
    vectors_of,
)
from grafalign.errors import GrafalignError
from grafalign.photos.exif import open_photo
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.store import PairStore
from grafalign.training.data import PairSteps
from tests.commands import contents, write_yaml
from tests.photo_server import PhotoServer, serving
from tests.test_bank import HERE, with_uris
from tests.test_exif import encoded, picture
from tests.training_world import settings

TINY_PROMPTS = {
    'keep': {name: [f'a photo of {name}.'] for name in CLASS_NAMES},
    'reject': {
        'indoor': ['a photo taken indoors.', 'a room with furniture.', 'an indoor photo.'],
        'lunch or screen': ['a photo of food.', 'a screenshot of text.', 'not a photo of a place.'],
    },
}
"""What the sandbox's CLIP can be asked: it has read a few dozen captions, and its captions say `food`, `screenshot` and
`not a place` of lunch and of screens alike, so that it cannot tell these two apart."""


@pytest.fixture(scope='module')
def filters(tmp_path_factory: pytest.TempPathFactory) -> ContentFilters:
    """Filters with prompts for the tiny CLIP."""
    return ContentFilters(prompts=write_yaml(tmp_path_factory.mktemp('prompts') / 'tiny.yaml', TINY_PROMPTS))


@pytest.fixture
def kind(store: PairStore, world: Path) -> pd.Series:
    """What the world's truth says of each photo of the store: outdoor, indoor or junk."""
    truth = pd.read_parquet(world / 'truth' / 'photos.parquet').set_index('photo_id')['kind']
    return truth.reindex(store.photos['photo_id'].to_numpy())


def test_rooms_lunch_and_screens_are_found(
    own_store: Path, kind: pd.Series, clip: FrozenClip, filters: ContentFilters
) -> None:
    """In the sandbox, whose truth is known, nine of ten photos of no place go and of a hundred others at most two."""
    store = PairStore(own_store)
    counts = filter_bank(store, clip, filters)
    reason = load_bank(store).rejected.set_index('id')['reason'].reindex(kind.index)
    assert counts == reason.value_counts().to_dict()
    for truth, name in (('indoor', 'indoor'), ('junk', 'lunch or screen')):
        true, said = (kind == truth).to_numpy(), (reason == name).fillna(False).to_numpy(dtype=bool)
        assert true.sum() >= 5
        assert (true & said).sum() >= 0.9 * true.sum()
        assert (true & said).sum() >= 0.9 * said.sum()
    assert reason[kind == 'outdoor'].notna().mean() <= 0.02


def test_the_decision_is_that_of_a_naive_softmax(bank: PhotoBank, clip: FrozenClip) -> None:
    """A score is the softmax of one reject class and the best keep class at CLIP's own temperature."""
    prompts = ContentPrompts.model_validate(TINY_PROMPTS)
    keep, reject = vectors_of(clip, prompts.keep), vectors_of(clip, prompts.reject)
    photos = np.asarray(bank.embeddings[:40], dtype=np.float32)
    scale = float(clip.model.logit_scale.exp())
    found = reject_scores(photos, keep, reject, scale)
    for photo, row in zip(photos, found, strict=True):
        best = max(scale * float(photo @ k) for k in keep)
        for vector, score in zip(reject, row, strict=True):
            mine = np.exp(scale * float(photo @ vector))
            assert score == pytest.approx(mine / (mine + np.exp(best)), abs=1e-4)
    words = [clip.encode_text([p])[0].numpy() for p in prompts.reject['indoor']]
    mean = np.mean(words, axis=0)
    np.testing.assert_allclose(reject[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_filtering_reads_no_photo(own_store: Path, clip: FrozenClip, filters: ContentFilters, bank: PhotoBank) -> None:
    """With all photos gone the bank is filtered just the same, and only `filtered.parquet` is written."""
    store = PairStore(own_store)
    with_photos = filter_bank(store, clip, filters)
    (own_store / 'bank' / 'filtered.parquet').unlink()
    before = contents(own_store)
    photos = store.photos
    photos['uri'] = pd.array(['/nowhere/photo.jpg'] * len(photos), dtype='string')
    photos.to_parquet(own_store / 'photos.parquet', index=False)
    assert filter_bank(PairStore(own_store), clip, filters) == with_photos
    after = contents(own_store)
    assert set(after) - set(before) == {'bank/filtered.parquet'}
    assert [name for name in before if before[name] != after[name]] == ['photos.parquet']


def test_a_filtered_bank_says_why(own_store: Path, clip: FrozenClip, filters: ContentFilters) -> None:
    """Photos that are left out are not valid, keep their embeddings, and stand in `rejected` with reason and score."""
    store = PairStore(own_store)
    filter_bank(store, clip, filters)
    found, table = load_bank(store), pd.read_parquet(own_store / 'bank' / 'filtered.parquet')
    assert table.columns.tolist() == ['photo_id', 'reason', 'score', 'detail']
    assert table['score'].between(0.6, 1).all()
    assert found.rejected.columns.tolist() == ['kind', 'id', 'reason', 'detail']
    assert set(found.rejected['id']) == set(table['photo_id']) == set(found.photos['photo_id'][~found.valid])
    assert found.embeddings[~found.valid].any(axis=1).all()


def test_filtering_again_replaces_what_was_decided(
    own_store: Path, clip: FrozenClip, filters: ContentFilters, bank: PhotoBank
) -> None:
    """Other thresholds or classes give another result, the same ones the same bytes, and no class gives all back."""
    store, path = PairStore(own_store), own_store / 'bank' / 'filtered.parquet'
    counts = filter_bank(store, clip, filters)
    first = path.read_bytes()
    middle = float(pd.read_parquet(path)['score'].median())
    strict = filter_bank(store, clip, filters.model_copy(update={'threshold': middle}))
    assert 0 < sum(strict.values()) < sum(counts.values())
    half = filter_bank(store, clip, filters.model_copy(update={'off': ('indoor',)}))
    assert 'indoor' not in half
    assert half['lunch or screen'] >= counts['lunch or screen']
    single = filter_bank(store, clip, filters.model_copy(update={'thresholds': {'indoor': middle}}))
    assert single.get('indoor', 0) < counts['indoor']
    assert single['lunch or screen'] >= counts['lunch or screen']
    assert filter_bank(store, clip, filters.model_copy(update={'off': ('indoor', 'lunch or screen')})) == {}
    assert load_bank(store).valid.all()
    filter_bank(store, clip, filters)
    assert path.read_bytes() == first
    assert np.array_equal(embed(store, clip).valid, load_bank(store).valid)


def test_training_sees_no_photo_that_was_left_out(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """Steps take valid photos only; a tile whose photos are all left out is not visited, and none left is named."""
    pairs = store.pairs
    tile = int(store.tiles_of('train')[0])
    valid = bank.valid.copy()
    valid[pairs['photo'].to_numpy()[pairs['tile'].to_numpy() == tile]] = False
    valid[::3] = False
    filtered = dataclasses.replace(bank, valid=valid)
    wanted = settings(store, clip, batch_tiles=8)
    steps = PairSteps.of_store(store, filtered, wanted)
    assert tile not in steps.tiles
    for number in range(steps.steps_per_epoch):
        batch = steps[number]
        assert valid[batch['candidates'].numpy()].all()
        assert len(batch['pixels']) == len(np.unique(batch['tile'].numpy()))
    with pytest.raises(GrafalignError, match='no train tile with a usable photo'):
        PairSteps.of_store(store, dataclasses.replace(bank, valid=np.zeros_like(valid)), wanted)


@pytest.fixture
def server(store: PairStore) -> Iterator[PhotoServer]:
    """Serves the photos of the store by their number."""
    with serving({f'{i}.jpg': Path(u).read_bytes() for i, u in enumerate(store.photos['uri'])}) as running:
        yield running


def test_remote_photos_are_compared_when_they_are_there(
    own_store: Path, store: PairStore, clip: FrozenClip, server: PhotoServer
) -> None:
    """The same bytes, and the same picture saved anew, are left out once they are fetched; local photos come first."""
    local = store.photos['uri'].tolist()
    bright = [i for i, u in enumerate(local) if np.asarray(open_photo(Path(u))).std() > 40][:1]
    server.photos['10.jpg'] = server.photos[f'{bright[0]}.jpg']  # a remote copy of a local photo
    server.photos['12.jpg'] = server.photos['11.jpg']  # two remote photos
    server.photos['13.jpg'] = encoded(picture(200, 150))
    server.photos['14.jpg'] = encoded(picture(200, 150).resize((80, 60)), quality=60)
    uris = [server.url(f'/photo/{i}.jpg') if 10 <= i <= 14 else u for i, u in enumerate(local)]
    remote = with_uris(own_store, uris)
    embed(remote, clip, remote=HERE)
    ids = remote.photos['photo_id']
    only = ContentFilters(off=tuple(load_settings(SHIPPED_PROMPTS, ContentPrompts).reject), duplicates='bytes')

    def left_out(**change: object) -> dict[str, str]:
        filter_bank(remote, clip, only.model_copy(update=change))
        return load_bank(remote).rejected.set_index('id')['detail'].to_dict()

    same = {ids[10]: f'same picture as {ids[bright[0]]}', ids[12]: f'same picture as {ids[11]}'}
    assert left_out() == same
    assert left_out(duplicates='perceptual', max_distance=4) == same | {ids[14]: f'same picture as {ids[13]}'}
    assert left_out(duplicates='none') == {}
    assert left_out(duplicates='none', min_px=61) == {ids[14]: '80 x 60'}
    assert left_out(duplicates=None) == {}
    remote.marker.recipe['photos']['filters'] = {'duplicates': 'bytes', 'min_px': 61}
    assert left_out(duplicates=None) == same | {ids[14]: '80 x 60'}
    assert set(load_bank(remote).rejected['reason']) == {'duplicate photo', 'too few pixels'}


def test_photos_added_after_filtering_are_not_used_unjudged(
    own_store: Path, store: PairStore, clip: FrozenClip, server: PhotoServer, filters: ContentFilters
) -> None:
    """After a retry that brought photos a filtered bank asks to be filtered again before it can be used."""
    uris = [server.url(f'/photo/{i}.jpg') for i in range(len(store.photos))]
    remote = with_uris(own_store, uris)
    server.broken = {'3.jpg'}
    embed(remote, clip, remote=HERE)
    filter_bank(remote, clip, filters)
    load_bank(remote)
    server.broken = set()
    embed(remote, clip, remote=HERE, retry_failed=True)
    with pytest.raises(GrafalignError, match=r'filtered before photos were added .* `grafalign filter'):
        load_bank(remote)
    filter_bank(remote, clip, filters)
    assert load_bank(remote).photos['reason'].isna().all()


def test_the_shipped_prompts_are_whole() -> None:
    """They name the classes of the documentation, and every prompt is different."""
    prompts = load_settings(SHIPPED_PROMPTS, ContentPrompts)
    assert list(prompts.reject) == ['indoor', 'food', 'person', 'pet', 'screen', 'night', 'aerial']
    every = [p for classes in (prompts.keep, prompts.reject) for ps in classes.values() for p in ps]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'prompts': {'keep': {'a': ['b']}}}, r"'reject' is missing"),
        ({'prompts': {'keep': {'a': []}, 'reject': {'c': ['d']}}}, 'at least one prompt'),
        ({'prompts': {'keep': {'a': ['b']}, 'reject': {'c': ['d']}, 'keeps': {}}}, "did you mean 'keep'"),
        ({'off': ('rooms',)}, "no class 'rooms' to reject; its classes are indoor"),
        ({'thresholds': {'rooms': 0.5}}, "no class 'rooms'"),
    ],
)
def test_wrong_prompts_are_one_sentence(
    change: dict[str, object], words: str, own_store: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """A prompt file that lacks a part, or a class that is not in it, is named, and nothing is filtered."""
    if 'prompts' in change:
        path = tmp_path / 'own.yaml'
        path.write_text(yaml.safe_dump(change['prompts']))
        change = {'prompts': path}
    with pytest.raises(GrafalignError, match=words):
        filter_bank(PairStore(own_store), clip, ContentFilters(**change))
    assert not (own_store / 'bank' / 'filtered.parquet').exists()


def test_a_filter_that_leaves_nothing_is_refused(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """If every photo would go, the bank stays as it was and the sentence names the most frequent reason."""
    same = {'keep': {'a': ['a photo of food.']}, 'reject': {'b': ['a photo of water.', 'a photo of meadow.']}}
    path = write_yaml(tmp_path / 'own.yaml', same)
    with pytest.raises(GrafalignError, match=r'all \d+ photos would be left out \(b most often\)'):
        filter_bank(PairStore(own_store), clip, ContentFilters(prompts=path, threshold=1e-9))
    assert load_bank(PairStore(own_store)).valid.all()


def test_there_must_be_a_bank(own_store: Path, clip: FrozenClip) -> None:
    """Filtering a store that was not embedded names the command to run first."""
    shutil.rmtree(own_store / 'bank')
    with pytest.raises(GrafalignError, match='grafalign embed'):
        filter_bank(PairStore(own_store), clip)
    assert not (own_store / 'bank' / 'bank.json').exists()


def test_a_damaged_filter_is_named(own_store: Path, clip: FrozenClip, filters: ContentFilters) -> None:
    """A `filtered.parquet` that was cut short ends in one sentence, and filtering again mends it."""
    store, path = PairStore(own_store), own_store / 'bank' / 'filtered.parquet'
    filter_bank(store, clip, filters)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GrafalignError, match='is damaged'):
        load_bank(store)
    filter_bank(store, clip, filters)
    assert json.loads((own_store / 'bank' / 'bank.json').read_text())['photos'] == len(load_bank(store).valid)
