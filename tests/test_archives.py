"""Photos in tar archives are embedded in one reading from front to back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from grafalign.encoders import FrozenClip, PhotoBank, embed
from grafalign.store import PairStore
from tests.photo_server import PhotoServer, serving
from tests.test_bank import with_uris
from tests.test_fetch import tar_of


@pytest.fixture
def photos(store: PairStore) -> dict[str, bytes]:
    """The photos of the store by the name that they have in archives."""
    return {f'{row:05d}.jpg': Path(uri).read_bytes() for row, uri in enumerate(store.photos['uri'])}


@pytest.fixture
def server() -> Iterator[PhotoServer]:
    """Serves archives."""
    with serving({}) as running:
        yield running


def in_archives(own_store: Path, photos: dict[str, bytes], place: str) -> PairStore:
    """A store whose photos lie in three archives, by turns."""
    return with_uris(own_store, [f'tar://{name}::{place}/{row % 3}.tar' for row, name in enumerate(photos)])


def third(photos: dict[str, bytes], which: int) -> dict[str, bytes]:
    """What one of the three archives holds."""
    return {name: content for row, (name, content) in enumerate(photos.items()) if row % 3 == which}


def test_archives_on_a_host_are_read_once(
    own_store: Path, photos: dict[str, bytes], server: PhotoServer, bank: PhotoBank, clip: FrozenClip
) -> None:
    """Their bytes come once, in large parts, whatever the order of the photos; the bank is that of the files."""
    rng = np.random.default_rng(0)
    for which in range(3):
        members = third(photos, which)
        shuffled = {name: members[name] for name in rng.permutation(list(members))}
        server.photos[f'{which}.tar'] = tar_of(shuffled)
    total = sum(map(len, server.photos.values()))
    made = embed(in_archives(own_store, photos, server.url('/photo')), clip)
    assert np.abs(np.asarray(made.embeddings, np.float32) - np.asarray(bank.embeddings, np.float32)).max() < 1e-3
    assert made.photos['digest'].tolist() == bank.photos['digest'].tolist()
    requests = sum(count for path, count in server.asked.items() if path.endswith('.tar'))
    assert requests <= 3 + total / 4e6
    assert server.sent <= total


def test_of_a_photo_that_is_there_twice_the_last_holds(
    own_store: Path, photos: dict[str, bytes], bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """As appending to a tar leaves it; what is missing, and what comes after a damage, has its reason."""
    names = list(photos)
    for which in range(3):
        members = third(photos, which)
        other = photos[names[0]]
        whole = tar_of(dict.fromkeys(list(members)[:2], other))
        first = whole[: 2 * (512 + -(-len(other) // 512) * 512)]  # without the end of the archive
        (tmp_path / f'{which}.tar').write_bytes(first + tar_of(members))
    (tmp_path / '2.tar').write_bytes((tmp_path / '2.tar').read_bytes()[:-200_000])
    gone = [name for row, name in enumerate(names) if row % 3 == 1][5]
    members = third(photos, 1)
    del members[gone]
    (tmp_path / '1.tar').write_bytes(tar_of(members))
    made = embed(in_archives(own_store, photos, str(tmp_path)), clip)
    reasons = made.photos['reason']
    assert reasons[[row for row in range(len(names)) if row % 3 == 0]].isna().all()
    assert reasons[names.index(gone)] == 'not in the tar'
    assert reasons[len(names) - len(names) % 3 - 1] in ('not in the tar', 'the tar ends before this file does')
    valid = made.valid
    assert valid.sum() > 0.6 * len(names)
    difference = np.abs(np.asarray(made.embeddings, np.float32) - np.asarray(bank.embeddings, np.float32))
    assert difference[valid].max() < 1e-3
    assert made.photos['digest'][valid].tolist() == bank.photos['digest'][valid].tolist()
