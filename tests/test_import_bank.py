"""Photo embeddings that were made elsewhere become a bank; those of another CLIP do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grafalign.encoders import FrozenClip, PhotoBank, load_bank
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from tests.commands import Command, refused

CLIP = ('--model', TINY_CLIP_DIR)


@pytest.fixture
def bare(store: PairStore, bank: PhotoBank, tmp_path: Path) -> Path:
    """A copy of the store without its bank."""
    out = tmp_path / 'pairs'
    shutil.copytree(str(store.path), out)
    shutil.rmtree(out / 'bank')
    return out


def rows(store: PairStore, bank: PhotoBank) -> tuple[list[str], np.ndarray]:
    """Ids and embeddings in another order than the store's."""
    order = np.random.default_rng(0).permutation(len(store.photos))
    ids = store.photos['photo_id'].astype(str).to_numpy()[order]
    return ids.tolist(), np.asarray(bank.embeddings)[order]


def as_parquet(path: Path, ids: list[str], vectors: np.ndarray, name: str = 'photo_id') -> Path:
    """A table with a row a photo."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    pq.write_table(pa.table({name: ids, 'embedding': lists}), path)
    return path


def as_clip_retrieval(folder: Path, ids: list[str], vectors: np.ndarray) -> Path:
    """Eleven parts, as clip-retrieval's `inference` writes them."""
    (folder / 'img_emb').mkdir(parents=True)
    (folder / 'metadata').mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(ids)), 11)):
        np.save(folder / 'img_emb' / f'img_emb_{number}.npy', vectors[part])
        table = pd.DataFrame({'image_path': [ids[i] for i in part], 'caption': 'x'})
        table.to_parquet(folder / 'metadata' / f'metadata_{number}.parquet')
    return folder


@pytest.mark.parametrize('form', ['npz', 'parquet', 'clip-retrieval', 'file names', 'paths elsewhere'])
def test_every_form_gives_the_bank_that_embedding_gives(
    form: str, bare: Path, store: PairStore, bank: PhotoBank, clip: FrozenClip, command: Command, tmp_path: Path
) -> None:
    """Whatever the order of the rows, each photo has its own, and rows of other photos are left out."""
    ids, vectors = rows(store, bank)
    ids, vectors = [*ids, 'another'], np.concatenate([vectors, vectors[:1]])
    if form == 'npz':
        source = tmp_path / 'e.npz'
        np.savez(source, ids=np.array(ids), embeddings=vectors)
    elif form == 'parquet':
        source = as_parquet(tmp_path / 'e.parquet', ids, vectors)
    elif form == 'clip-retrieval':
        source = as_clip_retrieval(tmp_path / 'e', ids, vectors)
    else:
        folder = '' if form == 'file names' else 'D:\\data/shard.7/'
        source = as_parquet(tmp_path / 'e.parquet', [f'{folder}{Path(i).stem}' for i in ids], vectors, 'key')
    code, err = command('import-bank', bare, source, *CLIP)
    assert code == 0, err
    found = load_bank(PairStore(bare), None, clip)
    assert np.abs(np.asarray(found.embeddings, np.float32) - np.asarray(bank.embeddings, np.float32)).max() < 1e-3
    np.testing.assert_array_equal(found.valid, bank.photos['reason'].isna())


def test_photos_without_a_row_are_embedded_alone(
    bare: Path, store: PairStore, bank: PhotoBank, clip: FrozenClip, command: Command, tmp_path: Path
) -> None:
    """Until then they are left out, as are rows that are zero or not finite."""
    ids, vectors = rows(store, bank)
    vectors = vectors.astype(np.float32) * 7  # not of unit length
    vectors[0], vectors[1, 3] = 0, np.nan
    source = as_parquet(tmp_path / 'e.parquet', ids[:-5], vectors[:-5])
    code, err = command('import-bank', bare, source, *CLIP)
    assert code == 0 and 'not of unit length' in err
    left = load_bank(PairStore(bare), None, clip)
    out = set(store.photos['photo_id'].astype(str)[~left.valid])
    assert out == {*ids[-5:], *ids[:2]}
    assert sorted(left.rejected['reason'].unique()) == [
        'no embedding was given',
        'the embedding given is zero or not finite',
    ]
    code, err = command('embed', bare, *CLIP, '--retry-failed')
    assert code == 0, err
    whole = load_bank(PairStore(bare), None, clip)
    assert whole.valid.sum() == bank.photos['reason'].isna().sum()
    assert np.abs(np.asarray(whole.embeddings, np.float32) - np.asarray(bank.embeddings, np.float32)).max() < 1e-3


def test_embeddings_of_another_clip_are_refused(
    bare: Path, store: PairStore, bank: PhotoBank, command: Command, tmp_path: Path
) -> None:
    """By their width, by the name that their file states, and by a look at some photos."""
    ids, vectors = rows(store, bank)
    source = as_parquet(tmp_path / 'narrow.parquet', ids, vectors[:, :-1])
    refused(command('import-bank', bare, source, *CLIP), 'rows of 95 numbers', 'makes 96', 'another CLIP')
    np.savez(tmp_path / 'named.npz', ids=np.array(ids), embeddings=vectors, model=np.array('ViT-L-14'))
    refused(command('import-bank', bare, tmp_path / 'named.npz', *CLIP), 'made by ViT-L-14')
    turned = vectors @ np.linalg.qr(np.random.default_rng(0).normal(size=(96, 96)))[0]
    source = as_parquet(tmp_path / 'turned.parquet', ids, turned)
    refused(command('import-bank', bare, source, *CLIP), 'cosine below 0.9', 'name the CLIP that made them')
    mixed = as_parquet(tmp_path / 'mixed.parquet', ids, np.roll(vectors, 1, axis=0))  # each row of another photo
    refused(command('import-bank', bare, mixed, *CLIP), 'cosine below 0.9')
    shards = as_clip_retrieval(tmp_path / 'shards', ids, vectors)
    one = shards / 'img_emb' / 'img_emb_7.npy'
    np.save(one, np.load(one)[:, ::-1])  # one shard of eleven is of another model
    refused(command('import-bank', bare, shards, *CLIP), 'or not all of it')
    np.savez(tmp_path / 'spelled.npz', ids=np.array(ids), embeddings=vectors, model=np.array('Tiny_CLIP/x'))
    assert not (bare / 'bank' / 'next').exists()  # nothing of the size of a bank is left
    assert command('import-bank', bare, tmp_path / 'spelled.npz', *CLIP)[0] == 0
    shutil.rmtree(bare / 'bank')
    assert not (bare / 'bank' / 'bank.json').exists()


def test_a_folder_of_something_else_is_left_alone(
    bare: Path, store: PairStore, bank: PhotoBank, command: Command, tmp_path: Path
) -> None:
    """A store, or the embeddings themselves; and an import that was killed in its last step is finished."""
    ids, vectors = rows(store, bank)
    (tmp_path / 'emb').mkdir()
    source = as_parquet(tmp_path / 'emb' / 'photos.parquet', ids, vectors)
    refused(command('import-bank', bare, source, *CLIP, '--out', bare), 'is a pair store')
    refused(command('embed', bare, *CLIP, '--out', bare), 'is a pair store')
    before = source.read_bytes()
    refused(command('import-bank', bare, tmp_path / 'emb', *CLIP, '--out', tmp_path / 'emb'), 'holds photos.parquet')
    assert source.read_bytes() == before
    assert command('import-bank', bare, source, *CLIP)[0] == 0
    made = bare / 'bank'
    (made / 'next').mkdir()
    for name in ('embeddings.npy', 'photos.parquet', 'bank.json'):
        (made / name).rename(made / 'next' / name)
    code, err = command('import-bank', bare, source, *CLIP)
    assert code == 0 and 'killed in its last step' in err
    assert load_bank(PairStore(bare)).valid.all() == bank.photos['reason'].isna().all()


def test_rows_that_nothing_can_be_compared_with_are_refused(
    bare: Path, store: PairStore, bank: PhotoBank, command: Command, tmp_path: Path
) -> None:
    """Where no photo can be read: unless the user says so."""
    photos = gpd.read_parquet(bare / 'photos.parquet')
    photos.assign(uri=[f'{tmp_path}/gone/{i}.jpg' for i in range(len(photos))]).to_parquet(bare / 'photos.parquet')
    ids, vectors = rows(store, bank)
    source = as_parquet(tmp_path / 'e.parquet', ids, vectors)
    refused(command('import-bank', bare, source, *CLIP), 'can be read', '--unchecked')
    code, err = command('import-bank', bare, source, *CLIP, '--unchecked')
    assert code == 0, err


def test_rows_that_make_no_sense_are_named(
    bare: Path, store: PairStore, bank: PhotoBank, command: Command, tmp_path: Path
) -> None:
    """Ids that repeat or fit no photo, fewer vectors than ids, no column, a damaged file, a bank that is there."""
    ids, vectors = rows(store, bank)
    source = as_parquet(tmp_path / 'twice.parquet', [*ids, ids[0]], np.concatenate([vectors, vectors[:1]]))
    refused(command('import-bank', bare, source, *CLIP), f'the id {ids[0]!r} twice')
    source = as_parquet(tmp_path / 'other.parquet', [f'x{i}' for i in range(len(ids))], vectors)
    refused(command('import-bank', bare, source, *CLIP), 'No row of', '--id-column')
    source = as_parquet(tmp_path / 'none.parquet', [None, *ids[1:]], vectors)
    refused(command('import-bank', bare, source, *CLIP), 'without an id (row 1)')
    np.savez(tmp_path / 'few.npz', ids=np.array(ids), embeddings=vectors[:-2])
    refused(
        command('import-bank', bare, tmp_path / 'few.npz', *CLIP), f'{len(ids) - 2:,} embeddings and {len(ids):,} ids'
    )
    source = as_parquet(tmp_path / 'e.parquet', ids, vectors, 'name')
    refused(command('import-bank', bare, source, *CLIP), 'no column of ids', '--id-column')
    assert command('import-bank', bare, source, *CLIP, '--id-column', 'name')[0] == 0
    refused(command('import-bank', bare, source, *CLIP, '--id-column', 'name'), 'holds a bank already')
    shutil.rmtree(bare / 'bank')
    (tmp_path / 'bad.npz').write_bytes((tmp_path / 'few.npz').read_bytes()[:1000])
    refused(command('import-bank', bare, tmp_path / 'bad.npz', *CLIP), 'cannot be read as embeddings')
    refused(command('import-bank', bare, tmp_path / 'no.npz', *CLIP), 'There is no')
    folder = as_clip_retrieval(tmp_path / 'parts', ids, vectors)
    (folder / 'metadata' / 'metadata_10.parquet').unlink()
    refused(command('import-bank', bare, folder, *CLIP), 'has no metadata_10.parquet')
