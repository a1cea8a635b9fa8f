"""Make a photo bank, or bring one up to date: what is new is embedded, what is gone dropped, the rest kept.

Chunks of photos leave their embeddings in `bank/parts-...`, named after what they are parts of, so that a killed run
goes on. The new state of the bank is written beside the old one, in `bank/next`, its marker last; then its files take
the place of the old ones. A kill between leaves the old bank, or is made good by the next run.

Photos that are fetched from elsewhere are embedded and forgotten: nothing of them but their rows is ever on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign import console
from grafalign.config import parse_settings
from grafalign.encoders.bank import (
    MARKER,
    BankMarker,
    BankRows,
    PhotoBank,
    bank_folder,
    bank_rows,
    identity_of,
    open_bank,
    rows_of,
)
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.reading import metadata_table, read_chunks
from grafalign.errors import DamagedError, InputError, naming_full_disk
from grafalign.files import replacing, write_table
from grafalign.locks import exclusive
from grafalign.photos.fetch import RemoteSettings
from grafalign.store import MARKER as STORE_MARKER
from grafalign.store import PairStore

_CHUNK = 128
"""Photos that go through CLIP together, and what a killed run loses at most a few of; 77 MB at 224 px."""
_BLOCK = 1 << 16
NEXT = 'next'
"""Below a bank: its next state, while it is written."""


def embed(
    store: PairStore,
    clip: FrozenClip,
    out: Path | None = None,
    workers: int | None = None,
    *,
    retry_failed: bool = False,
    remote: RemoteSettings | None = None,
) -> PhotoBank:
    """Embed all photos of a store, keeping what an earlier run did.

    A bank that is there is brought up to date: photos that it lacks are embedded, those that the store no longer has
    are dropped. A photo is the same if its id is, and its content (or, where nobody knows that, its uri).

    Args:
        store: the pair store.
        clip: the frozen CLIP.
        out: the bank's folder on this machine; `STORE/bank` by default.
        workers: threads that decode photos.
        retry_failed: also try those photos again whose problem may have passed (time-outs, busy hosts).
        remote: how photos are fetched; by default as the store's recipe says.

    Raises:
        GrafalignError: the folder holds the bank of another CLIP, another process is writing to it, the disk is full,
            no photo could be read, or the store is on a URL and no folder is given.
    """
    out = bank_folder(store, out)
    remote = remote or remote_settings(store)
    with naming_full_disk(out), exclusive(out):
        move_in(out)
        existing = bank_rows(out, store, clip) if (out / MARKER).is_file() else None
        _bring_up_to_date(store, clip, out, existing, workers, remote, retry_failed)
    return open_bank(store, out, clip)


def _bring_up_to_date(
    store: PairStore,
    clip: FrozenClip,
    out: Path,
    existing: BankRows | None,
    workers: int | None,
    remote: RemoteSettings,
    retry_failed: bool,
) -> None:
    photos = store.photos
    kept = np.full(len(photos), -1) if existing is None else rows_of(photos, existing.photos)
    gone = 0 if existing is None else len(existing.photos) - int((kept >= 0).sum())
    if retry_failed and existing is not None:
        known = np.flatnonzero(kept >= 0)
        kept[known[existing.photos['transient'].to_numpy(dtype=bool)[kept[known]]]] = -1
    todo = np.flatnonzero(kept < 0)
    parts_folder = out / f'parts-{_question(store, clip, todo)}'
    current = existing is not None and existing.marker.format == BankMarker.NEWEST
    if current and not len(todo) and not gone:
        _remove_parts(out)  # of a run that was killed right after it had finished
        return
    if existing is not None and (gone or (len(todo) and not retry_failed)):
        console.log(f'{out}: {len(todo):,} photos to embed, {gone:,} are gone, {len(photos) - len(todo):,} are kept')
    parts = _compute(photos['uri'].tolist(), todo, clip, parts_folder, workers, remote)
    read = [_rows_of_part(part) for part in parts] or [metadata_table([])]
    fresh = pd.concat(read, ignore_index=True)
    fresh.insert(0, 'photo_id', photos['photo_id'].astype('string').array[todo])
    for number, (name, values) in enumerate(identity_of(photos).items(), start=1):
        fresh.insert(number, name, values[todo])
    if existing is None and fresh['reason'].notna().all():
        shutil.rmtree(parts_folder)  # or the next run would believe them, whatever was mended meanwhile
        raise InputError(
            f'None of the {len(photos)} photos could be read (first: {fresh["uri"][0]}: {fresh["reason"][0]}); '
            'are they still there?'
        )
    table = _joined(kept, todo, existing, fresh)
    following = out / NEXT
    shutil.rmtree(following, ignore_errors=True)
    following.mkdir()
    _write_embeddings(following / 'embeddings.npy', kept, existing, parts, width_of(clip))
    write_table(table, following / 'photos.parquet')
    marker = BankMarker(
        format=BankMarker.NEWEST, clip=clip.digest, clip_settings=clip.settings.model_dump(), photos=len(photos)
    )
    marker.write(following / MARKER)
    move_in(out)
    _remove_parts(out)
    _log_unreadable(table)


def move_in(out: Path) -> None:
    """Let the next state of a bank, if it is whole, take the place of the one before; may be killed and repeated."""
    following = out / NEXT
    if not (following / MARKER).is_file():
        return
    (out / MARKER).unlink(missing_ok=True)  # from here on there is no bank, until all files are those of the next one
    for name in ('embeddings.npy', 'photos.parquet', MARKER):
        if (following / name).is_file():
            (following / name).replace(out / name)
    following.rmdir()


def _remove_parts(out: Path) -> None:
    for folder in (*out.glob('parts-*'), out / NEXT):
        shutil.rmtree(folder, ignore_errors=True)


def _question(store: PairStore, clip: FrozenClip, todo: npt.NDArray[np.int64]) -> str:
    """Names the parts of one run: the same CLIP, the same photos."""
    identities = store.photos[['photo_id']].assign(**identity_of(store.photos)).fillna('').astype(str).iloc[todo]
    rows = pd.util.hash_pandas_object(identities, index=False).to_numpy().tobytes()
    return hashlib.blake2b(clip.digest.encode() + b'reason' + rows, digest_size=6).hexdigest()


def remote_settings(store: PairStore) -> RemoteSettings:
    """How the photos of a store are fetched, as its recipe says."""
    photos = store.marker.recipe.get('photos') or {}
    return parse_settings(photos.get('remote') or {}, RemoteSettings, f'{store.path / STORE_MARKER}, photos.remote')


def _joined(
    kept: npt.NDArray[np.int64], todo: npt.NDArray[np.int64], existing: BankRows | None, fresh: pd.DataFrame
) -> pd.DataFrame:
    """`photos.parquet`: the rows that are kept and those that are new, in the order of the store."""
    if existing is None:
        return fresh
    place = kept.copy()
    place[todo] = len(existing.photos) + np.arange(len(todo))
    before = existing.photos[fresh.columns].astype(fresh.dtypes.to_dict())
    return pd.concat([before, fresh], ignore_index=True).iloc[place].reset_index(drop=True)


def _write_embeddings(
    path: Path, kept: npt.NDArray[np.int64], existing: BankRows | None, parts: list[Path], width: int
) -> None:
    """Write the rows block by block: banks are larger than memory.

    Args:
        path: file to write.
        kept: for every photo its row in the bank that is there, -1 where it comes from the parts, [P].
        existing: that bank.
        parts: files with the other rows, in their order.
        width: D.
    """
    fresh = (row for part in parts for row in _embeddings_of_part(part))
    with path.open('wb') as file:
        shape = (len(kept), width)
        np.lib.format.write_array_header_1_0(file, {'descr': '<f2', 'fortran_order': False, 'shape': shape})
        for start in range(0, len(kept), _BLOCK):
            rows = kept[start : start + _BLOCK]
            block = np.empty((len(rows), width), dtype='<f2')
            if existing is not None:
                block[rows >= 0] = existing.embeddings[rows[rows >= 0]]
            for row in np.flatnonzero(rows < 0):
                block[row] = next(fresh)
            file.write(block.tobytes())


def _rows_of_part(part: Path) -> pd.DataFrame:
    path = part.with_suffix('.parquet')
    with _naming_damage(path):
        return pd.read_parquet(path)


def _embeddings_of_part(part: Path) -> npt.NDArray[np.float16]:
    with _naming_damage(part), np.load(part, allow_pickle=False) as file:
        embeddings: npt.NDArray[np.float16] = file['embeddings']
    return embeddings


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Say what to do about a part that a disk has spoilt; a killed run leaves none, as parts move in whole."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # pyarrow's among them
        reason = ' '.join(str(error).split())[:160]
        raise DamagedError(
            f'{path} is damaged ({reason}); delete {path.with_suffix(".npz")} and run the same command again: its '
            'photos are embedded anew.'
        ) from None


def _compute(
    uris: list[str],
    todo: npt.NDArray[np.int64],
    clip: FrozenClip,
    parts: Path,
    workers: int | None,
    remote: RemoteSettings,
) -> list[Path]:
    """Embed photos in chunks into one pair of files each, leaving out those that are there; return the files.

    CLIP always sees the whole chunk, with zeros for photos that failed: a row's last bits may depend on the size of the
    batch, but not on its other rows.

    Args:
        uris: of all photos of the store.
        todo: rows of those to embed.
        clip: the CLIP.
        parts: folder for the files.
        workers: threads that decode.
        remote: how photos are fetched.
    """
    parts.mkdir(parents=True, exist_ok=True)
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    files = [parts / f'{number:07d}.npz' for number in range(len(chunks))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    width = width_of(clip)
    read = read_chunks(uris, clip, remote, [chunks[number] for number in missing], workers)
    for number, chunk in console.track(read, 'embedding photos', len(todo), step=_CHUNK):
        fine = chunk.metadata['reason'].isna().to_numpy(dtype=bool)
        embeddings = np.zeros((len(fine), width), dtype=np.float16)
        if fine.any():
            embeddings[fine] = clip.encode_images(chunk.images).cpu().numpy().astype(np.float16)[fine]
        file = files[missing[number]]
        write_table(chunk.metadata, file.with_suffix('.parquet'))
        # the last of the two: it says that both are there
        with replacing(file, sync=False) as part, part.open('wb') as sink:
            np.savez(sink, embeddings=embeddings)
    return files


def _log_unreadable(photos: pd.DataFrame) -> None:
    """Say how many photos could not be read, and why."""
    bad = photos[photos['reason'].notna()]
    if not len(bad):
        return
    often, times = bad['reason'].value_counts().index[0], int(bad['reason'].value_counts().iloc[0])
    later = int(bad['transient'].sum())
    console.log(
        f'{len(bad):,} of {len(photos):,} photos could not be read and are left out (most often: {often}, {times:,} '
        f'times; first: {bad["uri"].iloc[0]})'
        + (f'; {later:,} of them may work later: run `grafalign embed` with --retry-failed' if later else '')
    )


def width_of(clip: FrozenClip) -> int:
    """Numbers in an embedding."""
    return int(clip.encode_text(['']).shape[1])
