"""The photo bank: photos from anywhere, each read once, and nothing lost by kills, hosts or damaged files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from grafalign.encoders import FrozenClip, PhotoBank, embed, load_bank, reading
from grafalign.encoders.reading import read_chunks
from grafalign.errors import GrafalignError
from grafalign.photos.exif import read_metadata
from grafalign.photos.fetch import RemoteSettings
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from tests.commands import contents, interrupted
from tests.photo_server import PhotoServer, serving
from tests.test_exif import encoded, phone_exif, picture
from tests.test_fetch import tar_of

HERE = RemoteSettings(private_addresses=True, timeout_s=10, retries=0)


def with_uris(store: Path, uris: list[str], remote: RemoteSettings | None = HERE) -> PairStore:
    """Let the photos of a copied store lie elsewhere, and take its bank away."""
    shutil.rmtree(store / 'bank', ignore_errors=True)
    photos = PairStore(store).photos
    photos['uri'] = pd.array(uris, dtype='string')
    photos.to_parquet(store / 'photos.parquet', index=False)
    metadata = json.loads((store / 'dataset.json').read_text())
    metadata['recipe']['photos']['remote'] = None if remote is None else remote.model_dump()
    (store / 'dataset.json').write_text(json.dumps(metadata))
    return PairStore(store)


@pytest.fixture
def server(store: PairStore) -> Iterator[PhotoServer]:
    """Serves the photos of the store by their number."""
    with serving({f'{i}.jpg': Path(u).read_bytes() for i, u in enumerate(store.photos['uri'])}) as running:
        yield running


@pytest.fixture
def remote_store(own_store: Path, server: PhotoServer) -> PairStore:
    """The store, its photos on the server."""
    count = len(PairStore(own_store).photos)
    return with_uris(own_store, [server.url(f'/photo/{i}.jpg') for i in range(count)])


def test_a_bank_of_remote_photos_is_that_of_local_ones(
    remote_store: PairStore, bank: PhotoBank, clip: FrozenClip, server: PhotoServer, tmp_path: Path, monkeypatch
) -> None:
    """Fetched photos give the same bank bit for bit, each is fetched once, and nothing of them is written to disk."""
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    monkeypatch.setenv('TMPDIR', str(scratch))
    found = embed(remote_store, clip)
    assert np.array_equal(found.embeddings, bank.embeddings)
    pd.testing.assert_frame_equal(
        found.photos.drop(columns=['uri', 'paired_digest']), bank.photos.drop(columns=['uri', 'paired_digest'])
    )
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == len(bank.photos)
    written = contents(Path(str(remote_store.path)) / 'bank')
    assert set(written) == {'embeddings.npy', 'photos.parquet', 'bank.json'}
    assert not any(photo in content for photo in server.photos.values() for content in written.values())
    assert not any(scratch.iterdir())


def test_the_bank_knows_what_each_photo_looks_like(store: PairStore, bank: PhotoBank) -> None:
    """Size, digest and hash of every photo are those of its file, in the order of the store."""
    assert bank.photos['photo_id'].tolist() == store.photos['photo_id'].tolist()
    for row in range(0, len(bank.photos), 40):
        metadata, kept = read_metadata(Path(store.photos['uri'].iloc[row])), bank.photos.iloc[row]
        assert (kept['width'], kept['height'], kept['digest']) == (metadata.width, metadata.height, metadata.digest)
        assert (int(kept['dhash']) ^ (metadata.dhash or 0)).bit_count() <= 4
    assert bank.photos['reason'].isna().all()
    assert bank.valid.all()
    assert not len(bank.rejected)


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='signals are POSIX')
def test_a_killed_embedding_of_remote_photos_goes_on(remote_store: PairStore, clip: FrozenClip, tmp_path: Path) -> None:
    """Killed outright twice, a bank of fetched photos ends byte for byte as if it had not been."""
    whole = tmp_path / 'whole'
    embed(remote_store, clip, whole)
    folder = Path(str(remote_store.path)) / 'bank'
    moments = [('parts-*/*.parquet', signal.SIGKILL), ('parts-*/*.parquet', signal.SIGKILL)]
    interrupted(folder, moments, 'embed', remote_store.path, '--model', TINY_CLIP_DIR)
    assert contents(folder) == contents(whole)


def test_photos_that_fail_are_told_and_tried_again(
    remote_store: PairStore, bank: PhotoBank, clip: FrozenClip, server: PhotoServer
) -> None:
    """A host that was busy is asked again for its photos only, and the bank is then what it would have been."""
    server.broken = {'3.jpg', '77.jpg', '200.jpg'}
    gone = server.photos.pop('5.jpg')
    server.photos['6.jpg'] = b'<html>'
    first = embed(remote_store, clip)
    assert np.flatnonzero(~first.valid).tolist() == [3, 5, 6, 77, 200]
    assert first.photos['reason'].dropna().to_dict() == {
        3: 'HTTP 503', 77: 'HTTP 503', 200: 'HTTP 503', 5: 'HTTP 404', 6: 'not an image',
    }  # fmt: skip
    assert np.flatnonzero(first.photos['transient']).tolist() == [3, 77, 200]
    assert set(first.rejected['id']) == set(first.photos['photo_id'][~first.valid])
    assert set(first.rejected['reason']) == {'HTTP 503', 'HTTP 404', 'not an image'}
    assert not first.embeddings[~first.valid].any()

    server.asked.clear()
    again = embed(remote_store, clip)
    assert not server.asked
    assert np.array_equal(again.valid, first.valid)

    server.broken = {'200.jpg'}
    server.photos['5.jpg'] = gone
    second = embed(remote_store, clip, retry_failed=True)
    assert set(server.asked) == {f'/photo/{i}.jpg' for i in (3, 77, 200)}
    assert np.flatnonzero(~second.valid).tolist() == [5, 6, 200]
    server.broken = set()
    third = embed(remote_store, clip, retry_failed=True)
    assert np.flatnonzero(~third.valid).tolist() == [5, 6]
    np.testing.assert_allclose(
        np.asarray(third.embeddings)[third.valid], np.asarray(bank.embeddings)[third.valid], atol=1e-3
    )
    theirs, ours = (
        photos[third.valid].drop(columns=['uri', 'paired_digest']) for photos in (third.photos, bank.photos)
    )
    pd.testing.assert_frame_equal(theirs, ours)
    assert set(contents(Path(str(remote_store.path)) / 'bank')) == {'embeddings.npy', 'photos.parquet', 'bank.json'}
    server.asked.clear()
    embed(remote_store, clip, retry_failed=True)
    assert not server.asked


@pytest.mark.parametrize('done', range(5))
def test_a_kill_while_a_bank_is_replaced_loses_neither(
    own_store: Path, clip: FrozenClip, server: PhotoServer, tmp_path: Path, done: int
) -> None:
    """Whichever of the four files had moved when it was killed, the next run has the new bank and asks for no photo."""
    count = len(PairStore(own_store).photos)
    store = with_uris(own_store, [server.url(f'/photo/{i}.jpg') for i in range(count)])
    server.broken = {'3.jpg'}
    embed(store, clip)
    folder, old = own_store / 'bank', contents(own_store / 'bank')
    server.broken = set()
    embed(store, clip, retry_failed=True)
    new = contents(folder)
    shutil.rmtree(folder)
    (folder / 'next').mkdir(parents=True)
    moved = ['', 'embeddings.npy', 'photos.parquet', 'bank.json'][:done]  # first of all the old marker goes
    for name in new:
        (folder / name if name in moved else folder / 'next' / name).write_bytes(new[name])
        if name not in moved and not (name == 'bank.json' and done):
            (folder / name).write_bytes(old[name])
    server.asked.clear()
    assert embed(store, clip).valid.all()
    assert not server.asked and contents(folder) == new


def test_a_bank_without_any_photo_is_refused_and_then_made(
    remote_store: PairStore, clip: FrozenClip, server: PhotoServer
) -> None:
    """If no photo can be read that is one sentence, and the next run does not remember the failure."""
    server.broken = set(server.photos)
    with pytest.raises(GrafalignError, match=r'None of the \d+ photos could be read .*503'):
        embed(remote_store, clip)
    server.broken = set()
    assert embed(remote_store, clip).valid.all()


def test_photos_in_shards_are_embedded(
    own_store: Path, store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """Photos inside a tar give the same bank as their files."""
    shard = tmp_path / 'shard.tar'
    shard.write_bytes(tar_of({f'{i}.jpg': Path(u).read_bytes() for i, u in enumerate(store.photos['uri'])}))
    inside = with_uris(own_store, [f'tar://{i}.jpg::{shard}' for i in range(len(store.photos))])
    assert np.array_equal(embed(inside, clip).embeddings, bank.embeddings)


def test_private_addresses_are_refused_unless_the_recipe_allows_them(
    own_store: Path, clip: FrozenClip, server: PhotoServer
) -> None:
    """Without the recipe's word no photo is fetched from this machine, and the caller's settings come first."""
    uris = [server.url(f'/photo/{i}.jpg') for i in range(len(PairStore(own_store).photos))]
    store = with_uris(own_store, uris, None)
    with pytest.raises(GrafalignError, match='private address'):
        embed(store, clip)
    assert not server.connections
    assert embed(store, clip, remote=HERE).valid.all()


def test_wrong_remote_settings_name_the_store(own_store: Path, clip: FrozenClip) -> None:
    """A key that the store's recipe should not hold ends in one sentence with its place."""
    store = PairStore(own_store)
    shutil.rmtree(own_store / 'bank')
    store.marker.recipe['photos']['remote'] = {'timeout': 3}
    with pytest.raises(GrafalignError, match=r'dataset\.json, photos\.remote: unknown key .timeout.'):
        embed(store, clip)


def test_a_store_on_a_url_needs_a_folder_for_its_bank(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """The bank of a remote store goes to a folder that is given, and its absence is one sentence."""
    memory = fsspec.filesystem('memory')
    memory.put(str(store.path), '/elsewhere', recursive=True)
    try:
        remote = PairStore('memory://elsewhere')
        for function in (lambda: embed(remote, clip), lambda: load_bank(remote)):
            with pytest.raises(GrafalignError, match='needs a folder on this machine'):
                function()
        assert np.array_equal(embed(remote, clip, tmp_path / 'bank').embeddings, bank.embeddings)
        assert load_bank(remote, tmp_path / 'bank', clip).valid.all()
    finally:
        memory.rm('/elsewhere', recursive=True)


def test_photos_stand_upright_before_clip(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A photo that is stored on its side is embedded as it is seen."""
    for name, orientation in (('upright', 1), ('side', 6)):
        turned = picture(90, 120) if orientation == 1 else picture(90, 120).transpose(Image.Transpose.ROTATE_90)
        (tmp_path / f'{name}.png').write_bytes(encoded(turned, 'PNG', exif=phone_exif(orientation)))
    count = len(PairStore(own_store).photos)
    uris = [str(tmp_path / ('side.png' if i % 2 else 'upright.png')) for i in range(count)]
    found = embed(with_uris(own_store, uris), clip)
    np.testing.assert_allclose(found.embeddings[0], found.embeddings[1], atol=1e-3)
    assert found.photos['width'].unique().tolist() == [90]
    assert found.photos['dhash'].nunique() == 1


def test_a_hair_of_pixels_costs_no_memory(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """An image of one pixel's width, which CLIP's resizing would blow up, is left out with its reason."""
    Image.new('RGB', (1, 60_000)).save(tmp_path / 'hair.png')
    uris = PairStore(own_store).photos['uri'].tolist()
    found = embed(with_uris(own_store, [str(tmp_path / 'hair.png'), *uris[1:]]), clip)
    assert found.photos['reason'].dropna().to_dict() == {0: 'a strip, not a photo'}


def test_reading_runs_ahead_but_not_away(
    store: PairStore, clip: FrozenClip, server: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody takes chunks the next ones are read, and no more than fit the memory that is set aside."""
    monkeypatch.setattr(reading, 'AHEAD_BYTES', 3 * 8 * 3 * 64 * 64 * 4)
    uris = [server.url(f'/photo/{i}.jpg') for i in range(80)]
    chunks = [np.arange(start, start + 8) for start in range(0, 80, 8)]
    taken = read_chunks(uris, clip, HERE, chunks, 2)
    numbers = {next(taken).rows[0] // 8}
    time.sleep(1)
    assert 8 < sum(server.asked.values()) <= 4 * 8
    numbers |= {chunk.rows[0] // 8 for chunk in taken}
    assert numbers == set(range(10))
    assert sum(server.asked.values()) == 80


def test_a_slow_photo_does_not_hold_up_others(store: PairStore, clip: FrozenClip, server: PhotoServer) -> None:
    """Chunks come as they are complete; one whose host stalls comes last, with its reason."""
    uris = [server.url(f'/photo/{i}.jpg') for i in range(40)]
    uris[3] = server.url('/drip-body')
    settings = HERE.model_copy(update={'timeout_s': 2})
    chunks = [np.arange(start, start + 8) for start in range(0, 40, 8)]
    order = list(read_chunks(uris, clip, settings, chunks, 2))
    assert order[-1].rows.tolist() == list(range(8))
    assert order[-1].metadata['reason'].dropna().to_dict() == {3: 'timed out'}


def test_leaving_early_stops_the_readers(store: PairStore, clip: FrozenClip, server: PhotoServer) -> None:
    """Whoever stops taking chunks leaves no thread behind that goes on fetching."""
    uris = [server.url(f'/photo/{i % 200}.jpg') for i in range(2000)]
    taken = read_chunks(uris, clip, HERE, [np.arange(s, s + 8) for s in range(0, 2000, 8)], 2)
    next(taken)
    taken.close()
    deadline = time.monotonic() + 10
    while any(t.name.startswith('photos_') for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sum(server.asked.values()) < 500


def test_a_missing_package_is_named(own_store: Path, clip: FrozenClip) -> None:
    """A photo that needs it is one photo less; where all do, the sentence names the package."""
    count = len(PairStore(own_store).photos)
    with pytest.raises(GrafalignError, match='needs a package that is not installed'):
        embed(with_uris(own_store, [f'oss://bucket/{i}.jpg' for i in range(count)]), clip)


def test_a_bank_of_another_version_is_named(own_store: Path) -> None:
    """A bank without the format's number asks to be made anew."""
    marker = own_store / 'bank' / 'bank.json'
    metadata = json.loads(marker.read_text())
    del metadata['format']
    marker.write_text(json.dumps(metadata))
    with pytest.raises(GrafalignError, match='another version'):
        load_bank(PairStore(own_store))


@pytest.mark.parametrize('name', ['bank.json', 'photos.parquet', 'embeddings.npy'])
def test_a_damaged_bank_is_named(own_store: Path, name: str) -> None:
    """A file of the bank that is cut short ends in one sentence with the remedy."""
    path = own_store / 'bank' / name
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(GrafalignError, match=r'is damaged .*delete it'):
        load_bank(PairStore(own_store))
