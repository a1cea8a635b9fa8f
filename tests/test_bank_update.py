"""A photo bank belongs to its photos: what else changes in a store leaves it whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from grafalign.encoders import FrozenClip, PhotoBank, embed, load_bank
from grafalign.errors import GrafalignError
from grafalign.files import write_table
from grafalign.store import PairStore
from tests.commands import contents


def without(store: Path, rows: list[int]) -> PairStore:
    """The store without some of its photos and their pairs."""
    opened = PairStore(store)
    photos, pairs = opened.photos, pd.read_parquet(store / 'pairs.parquet')
    gone = photos['photo_id'].iloc[rows]
    write_table(gpd.GeoDataFrame(photos[~photos['photo_id'].isin(gone)]), store / 'photos.parquet')
    write_table(pairs[~pairs['photo_id'].isin(gone)], store / 'pairs.parquet')
    return PairStore(store)


def marked(store: Path, **changes: object) -> None:
    """Change keys of a store's marker."""
    path = store / 'dataset.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_pairing_of_the_same_photos_keeps_the_bank(own_store: Path, clip: FrozenClip, bank: PhotoBank) -> None:
    """Whatever the store's digest is now, its photos are embedded."""
    before = contents(own_store / 'bank')
    marked(own_store, digest='0' * 32)
    assert np.array_equal(load_bank(PairStore(own_store), clip=clip).embeddings, bank.embeddings)
    embed(PairStore(own_store), clip)
    assert contents(own_store / 'bank') == before


def test_only_new_photos_are_embedded_and_those_that_are_gone_are_dropped(
    own_store: Path, clip: FrozenClip, bank: PhotoBank, tmp_path: Path
) -> None:
    """A bank of fewer photos says what it lacks; embedded again it has them all, having read none of the others."""
    whole = Path(shutil.copytree(own_store, tmp_path / 'whole'))
    fewer = without(own_store, [0, 5, 6, 200])
    with pytest.raises(GrafalignError, match=r'lacks 0 photos of .* and holds 4 that are not in it'):
        load_bank(fewer)
    assert len(embed(fewer, clip).valid) == len(bank.valid) - 4
    shutil.rmtree(whole / 'bank')
    shutil.copytree(own_store / 'bank', whole / 'bank')
    with pytest.raises(GrafalignError, match=r'lacks 4 photos of .* and holds 0 that are not in it'):
        load_bank(PairStore(whole))
    moved = gpd.read_parquet(whole / 'photos.parquet')  # the others' files are away: they are not asked for
    moved.loc[~moved.index.isin([0, 5, 6, 200]), 'uri'] = '/nowhere/' + moved['photo_id']
    write_table(moved, whole / 'photos.parquet')
    found = embed(PairStore(whole), clip)
    assert found.valid.all() and found.photos['photo_id'].tolist() == bank.photos['photo_id'].tolist()
    np.testing.assert_allclose(np.asarray(found.embeddings), np.asarray(bank.embeddings), atol=1e-3)


def test_a_photo_that_was_replaced_is_embedded_again(own_store: Path, clip: FrozenClip, bank: PhotoBank) -> None:
    """Under its old name and with another content, as pairing again saw it, a photo gets another row."""
    store = PairStore(own_store)
    photos = store.photos.copy()
    path = own_store / 'other.png'
    Image.new('RGB', (64, 64), (255, 0, 0)).save(path)
    photos.loc[7, ['uri', 'digest']] = [str(path), 'another']
    write_table(photos, own_store / 'photos.parquet')
    found = embed(PairStore(own_store), clip)
    changed = (np.asarray(found.embeddings) != np.asarray(bank.embeddings)).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [7]


def test_a_bank_of_the_format_before_is_read_beside_its_own_store(
    own_store: Path, clip: FrozenClip, bank: PhotoBank
) -> None:
    """Format 2 knew no uris and belonged to a whole store: there it is as good as before, elsewhere it is refused."""
    folder, store = own_store / 'bank', PairStore(own_store)
    photos = pd.read_parquet(folder / 'photos.parquet').drop(columns=['uri', 'paired_digest'])
    write_table(photos.rename(columns={'reason': 'problem'}), folder / 'photos.parquet')
    marker = json.loads((folder / 'bank.json').read_text())
    (folder / 'bank.json').write_text(json.dumps({**marker, 'format': 2, 'store': store.digest}))
    assert np.array_equal(load_bank(store, clip=clip).embeddings, bank.embeddings)
    before = contents(folder)
    marked(own_store, digest='0' * 32)
    with pytest.raises(GrafalignError, match='the bank of another pair store'):
        load_bank(PairStore(own_store))
    marked(own_store, digest=store.digest)
    assert contents(folder) == before
    embed(store, clip)  # it becomes one of today, without any photo being read
    marked(own_store, digest='0' * 32)
    assert np.array_equal(load_bank(PairStore(own_store), clip=clip).embeddings, bank.embeddings)
