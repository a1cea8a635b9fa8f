"""The ground bank: every photo of a store embedded once by the frozen CLIP.

    STORE/bank/embeddings.npy    float16 [P, D], unit length, rows in the order of photos.parquet; memory-mapped
    STORE/bank/photos.parquet    one row a photo, in the same order: width, height, digest, dhash, problem, transient
    STORE/bank/filtered.parquet  photos left out by what they show, if `grafalign filter` was run: see content.py
    STORE/bank/bank.json         digests of CLIP and of the store; written last

The photo side never changes, so training needs neither the photos nor CLIP's image encoder again. Photos that are
fetched from elsewhere are embedded and forgotten: nothing of them but these rows is ever on disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign import console
from grafalign.config import parse_settings
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.reading import read_chunks
from grafalign.errors import GrafalignError, naming_full_disk
from grafalign.files import file_digest, write_atomically, write_table
from grafalign.locks import exclusive
from grafalign.photos.fetch import RemoteSettings
from grafalign.store import MARKER, PairStore

_CHUNK = 128
"""Photos that go through CLIP together, and what a killed run loses at most a few of; 77 MB at 224 px."""
_FORMAT = 2
_MADE_FOR = b'bank_photos'
FILTERED = 'filtered.parquet'


@dataclass(frozen=True)
class GroundBank:
    """Embeddings of all photos of a store."""

    embeddings: npt.NDArray[np.float16]
    """[P, D], memory-mapped; zero where a photo could not be read."""
    valid: npt.NDArray[np.bool_]
    """[P]; False where the photo could not be read or was filtered out."""
    clip_digest: str
    photos: pd.DataFrame
    """`photos.parquet`: photo_id, width, height, digest, dhash, problem (missing when fine), transient."""
    rejected: pd.DataFrame
    """kind, id, reason, detail of the photos that are not valid."""


def embed(
    store: PairStore,
    clip: FrozenClip,
    out: Path | None = None,
    workers: int | None = None,
    *,
    retry_failed: bool = False,
    remote: RemoteSettings | None = None,
) -> GroundBank:
    """Embed all photos of a store, resuming what an earlier run left.

    Args:
        store: the pair store.
        clip: the frozen CLIP.
        out: the bank's folder on this machine; `STORE/bank` by default.
        workers: threads that decode photos.
        retry_failed: then try those photos again whose problem may have passed (time-outs, busy hosts).
        remote: how photos are fetched; by default as the store's recipe says.

    Raises:
        GrafalignError: the folder holds the bank of another CLIP or of another store, another process is writing to it,
            the disk is full, no photo could be read, or the store is on a URL and no folder is given.
    """
    out = bank_folder(store, out)
    remote = remote or _remote_settings(store)
    if not (out / 'bank.json').is_file():
        with exclusive(out), naming_full_disk(out):
            _embed(store, clip, out, workers, remote)
    shutil.rmtree(out / 'parts', ignore_errors=True)  # here, as a kill may come right after the marker was written
    (out / 'begun.json').unlink(missing_ok=True)
    if retry_failed:
        with exclusive(out), naming_full_disk(out):
            _retry(store, clip, out, workers, remote)
    return open_bank(store, out, clip)


def load_bank(store: PairStore, path: Path | None = None, clip: FrozenClip | None = None) -> GroundBank:
    """Open a finished bank.

    Raises:
        GrafalignError: there is none, it belongs to another store or CLIP, or photos were added after it was filtered.
    """
    bank = open_bank(store, path, clip)
    folder = bank_folder(store, path)
    if not _filter_is_current(folder):
        raise GrafalignError(
            f'{folder} was filtered before photos were added to it; run `grafalign filter {store.path}` again '
            f'(or delete {folder / FILTERED}).'
        )
    return bank


def open_bank(
    store: PairStore, path: Path | None = None, clip: FrozenClip | None = None, filtered: bool = True
) -> GroundBank:
    """As `load_bank`, but also where its filtering is out of date; `filtered=False` leaves filtering out altogether."""
    path = bank_folder(store, path)
    if not (path / 'bank.json').is_file():
        raise GrafalignError(f'{path} holds no finished ground bank; run `grafalign embed {store.path}` first.')
    try:
        facts = json.loads((path / 'bank.json').read_text())
        if facts.get('format', 1) != _FORMAT:
            raise GrafalignError(
                f'{path} was made by another version of grafalign; delete it and run `grafalign embed` again.'
            )
        embeddings = np.load(path / 'embeddings.npy', mmap_mode='r')
        photos = pd.read_parquet(path / 'photos.parquet')
        for rows in (len(embeddings), len(photos)):
            if rows != facts['photos']:
                raise ValueError(f'{rows} rows for {facts["photos"]} photos')
        owner, theirs, digest = facts['store'], facts['clip_settings'], facts['clip']
        out = pd.read_parquet(path / FILTERED) if filtered and (path / FILTERED).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GrafalignError(f'{path} is damaged ({error}); delete it and run `grafalign embed` again.') from None
    if owner != store.digest:
        raise GrafalignError(f'{path} is the bank of another pair store; delete it and run `grafalign embed` again.')
    if clip is not None and digest != clip.digest:
        raise GrafalignError(
            f'{path} was embedded by another CLIP ({theirs["model"]}, {theirs["pretrained"]}) than '
            f'{clip.settings.model} ({clip.settings.pretrained}); use that CLIP or embed into another folder.'
        )
    valid, rejected = _judged(photos, out)
    return GroundBank(embeddings, valid, digest, photos, rejected)


def _judged(photos: pd.DataFrame, out: pd.DataFrame | None) -> tuple[npt.NDArray[np.bool_], pd.DataFrame]:
    """Which photos are valid, and the table of those that are not."""
    valid = photos['problem'].isna().to_numpy(dtype=bool)
    unread = photos[~valid]
    detail = np.where(unread['transient'], 'could not be read; may pass', 'could not be read')
    parts = [pd.DataFrame({'id': unread['photo_id'], 'reason': unread['problem'], 'detail': detail})]
    if out is not None:
        parts.append(pd.DataFrame({'id': out['photo_id'], 'reason': out['reason'], 'detail': out['detail']}))
        valid = valid & ~photos['photo_id'].isin(out['photo_id']).to_numpy()
    table = pd.concat(parts, ignore_index=True).astype('string')
    table.insert(0, 'kind', pd.Series(['photo'] * len(table), dtype='string'))
    return valid, table.sort_values('id', ignore_index=True)


def write_filtered(bank: Path, table: pd.DataFrame) -> None:
    """Write `filtered.parquet` (photo_id, reason, score, detail) for the photos that the bank holds now, atomically."""
    made = pa.Table.from_pandas(table, preserve_index=False)
    digest = file_digest(bank / 'photos.parquet').encode()
    sink = pa.BufferOutputStream()
    pq.write_table(made.replace_schema_metadata({**(made.schema.metadata or {}), _MADE_FOR: digest}), sink)
    write_atomically(bank / FILTERED, sink.getvalue().to_pybytes())


def _filter_is_current(bank: Path) -> bool:
    if not (bank / FILTERED).is_file():
        return True
    made_for = (pq.read_schema(bank / FILTERED).metadata or {}).get(_MADE_FOR)
    return bool(made_for == file_digest(bank / 'photos.parquet').encode())


def bank_folder(store: PairStore, out: Path | None = None) -> Path:
    """Where the bank of a store is.

    Raises:
        GrafalignError: the store is on a URL and no folder is given.
    """
    if out is not None:
        return out
    if not isinstance(store.path, Path):
        raise GrafalignError(
            f'The bank of {store.path} needs a folder on this machine, as it is memory-mapped; give one.'
        )
    return store.path / 'bank'


def _remote_settings(store: PairStore) -> RemoteSettings:
    photos = (store.facts.get('recipe') or {}).get('photos') or {}
    return parse_settings(photos.get('remote') or {}, RemoteSettings, f'{store.path / MARKER}, photos.remote')


def _embed(store: PairStore, clip: FrozenClip, out: Path, workers: int | None, remote: RemoteSettings) -> None:
    identity = {'clip': clip.digest, 'store': store.digest}
    begun = out / 'begun.json'
    if begun.is_file() and json.loads(begun.read_text()) != identity:
        raise GrafalignError(f'{out} was begun with another CLIP or store; give another folder or delete it.')
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, json.dumps(identity).encode())
    uris, count = store.photos['uri'].tolist(), len(store.photos)
    chunks = [np.arange(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    parts = _compute(uris, clip, chunks, out / 'parts', workers, remote)
    _write_rows(out / 'embeddings.npy', (count, _width(clip)), (np.load(part)['embeddings'] for part in parts))
    photos = pd.concat([pd.read_parquet(part.with_suffix('.parquet')) for part in parts], ignore_index=True)
    photos.insert(0, 'photo_id', store.photos['photo_id'].to_numpy())
    if photos['problem'].notna().all():
        shutil.rmtree(out / 'parts')  # or the next run would believe them, whatever was mended meanwhile
        raise GrafalignError(
            f'None of the {count} photos could be read (first: {uris[0]}: {photos["problem"][0]}); '
            'are they still there?'
        )
    write_table(photos, out / 'photos.parquet')
    facts = {**identity, 'format': _FORMAT, 'clip_settings': clip.settings.model_dump(), 'photos': count}
    write_atomically(out / 'bank.json', (json.dumps(facts, indent=2) + '\n').encode())
    _tell(photos, uris)


def _retry(store: PairStore, clip: FrozenClip, out: Path, workers: int | None, remote: RemoteSettings) -> None:
    """Read again what failed for now.

    Embeddings are replaced first: until `photos.parquet` says that a photo is fine nobody looks at its row, so a kill
    in between leaves a whole bank.
    """
    bank = open_bank(store, out, clip)
    rows = np.flatnonzero(bank.photos['transient'].to_numpy(dtype=bool))
    parts_folder = out / f'retry-{file_digest(out / "photos.parquet")[:12]}'
    for stale in out.glob('retry-*'):
        if stale != parts_folder:
            shutil.rmtree(stale)
    if not len(rows):
        return
    uris = store.photos['uri'].tolist()
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    parts = _compute(uris, clip, chunks, parts_folder, workers, remote)
    found = np.concatenate([np.load(part)['embeddings'] for part in parts])
    facts = pd.concat([pd.read_parquet(part.with_suffix('.parquet')) for part in parts], ignore_index=True)

    def blocks() -> Iterable[npt.NDArray[np.float16]]:
        for start in range(0, len(bank.embeddings), 1 << 16):
            block = np.array(bank.embeddings[start : start + (1 << 16)])
            here = (rows >= start) & (rows < start + len(block))
            block[rows[here] - start] = found[here]
            yield block

    _write_rows(out / 'embeddings.npy', bank.embeddings.shape, blocks())
    photos = bank.photos.copy()
    for column in facts:
        values = photos[column].astype(facts[column].dtype)
        values.iloc[rows] = facts[column].to_numpy(dtype=object) if values.dtype != bool else facts[column].to_numpy()
        photos[column] = values
    write_table(photos, out / 'photos.parquet')
    shutil.rmtree(parts_folder)
    _tell(photos, uris)


def _compute(
    uris: list[str],
    clip: FrozenClip,
    chunks: list[npt.NDArray[np.int64]],
    parts: Path,
    workers: int | None,
    remote: RemoteSettings,
) -> list[Path]:
    """Embed chunks of photos into one pair of files each, leaving out those that are there; return the files.

    CLIP always sees the whole chunk, with zeros for photos that failed: a row's last bits may depend on the size of the
    batch, but not on its other rows.
    """
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / f'{int(rows[0]):09d}.npz' for rows in chunks]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    width = _width(clip)
    read = read_chunks(uris, clip, remote, [chunks[i] for i in missing], workers)
    total = sum(len(rows) for rows in chunks)
    for number, chunk in console.track(read, 'embedding photos', total, step=_CHUNK):
        fine = chunk.facts['problem'].isna().to_numpy(dtype=bool)
        embeddings = np.zeros((len(fine), width), dtype=np.float16)
        if fine.any():
            embeddings[fine] = clip.encode_images(chunk.images).cpu().numpy().astype(np.float16)[fine]
        file = files[missing[number]]
        write_table(chunk.facts, file.with_suffix('.parquet'))
        part = file.with_suffix('.part')
        with part.open('wb') as sink:
            np.savez(sink, embeddings=embeddings)
        part.replace(file)  # the last of the two: it says that both are there
    return files


def _write_rows(path: Path, shape: tuple[int, ...], blocks: Iterable[npt.NDArray[np.float16]]) -> None:
    """Write a .npy file block by block, atomically: banks are larger than memory."""
    part = path.with_suffix('.part.npy')
    with part.open('wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '<f2', 'fortran_order': False, 'shape': shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block).tobytes())
    part.replace(path)


def _tell(photos: pd.DataFrame, uris: list[str]) -> None:
    """Say how many photos could not be read, and why."""
    bad = photos[photos['problem'].notna()]
    if not len(bad):
        return
    often, times = bad['problem'].value_counts().index[0], int(bad['problem'].value_counts().iloc[0])
    later = int(bad['transient'].sum())
    console.log(
        f'{len(bad):,} of {len(photos):,} photos could not be read and are left out (most often: {often}, {times:,} '
        f'times; first: {uris[bad.index[0]]})'
        + (f'; {later:,} of them may work later: run `grafalign embed` with --retry-failed' if later else '')
    )


def _width(clip: FrozenClip) -> int:
    return int(clip.encode_text(['']).shape[1])
