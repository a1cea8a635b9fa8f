"""Make a photo bank, or bring one up to date: what is new is embedded, what is gone dropped, the rest kept.

Parts are left in `bank/parts-...` (`bank_parts.py`), named after what they are parts of, so that a killed run goes on,
and so that several processes can make them (`grafalign/processes.py`). The new state of the bank is written beside the
old one, in `bank/next`, its marker last; then its files take the place of the old ones. A kill between leaves the old
bank, or is made good by the next run.

Photos that are fetched from elsewhere are embedded and forgotten: nothing of them but their rows is ever on disk.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

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
from grafalign.encoders.bank_parts import OpenPart, finished_parts, part_file, plan_parts, read_part
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.cores import on_cores
from grafalign.encoders.fitting import Fitting
from grafalign.encoders.reading import Chunk, Rows, metadata_table, read_chunks
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import vectors_of, write_table
from grafalign.locks import exclusive
from grafalign.photos.fetch import RemoteSettings
from grafalign.processes import Team, this_team
from grafalign.store import MARKER as STORE_MARKER
from grafalign.store import PairStore

_TYPES = {pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.string(): pd.StringDtype()}
"""Of the columns of a part."""
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
    team = this_team()
    with naming_full_disk(out), exclusive(out, team.first):
        team.agree(out, f'a bank of {store.digest} by {clip.digest}')
        team.alone(lambda: move_in(out))
        existing = bank_rows(out, store, clip) if (out / MARKER).is_file() else None
        _bring_up_to_date(store, clip, out, existing, workers, remote, retry_failed, team)
    return open_bank(store, out, clip)


def _bring_up_to_date(
    store: PairStore,
    clip: FrozenClip,
    out: Path,
    existing: BankRows | None,
    workers: int | None,
    remote: RemoteSettings,
    retry_failed: bool,
    team: Team,
) -> None:
    photos = store.photos
    kept = np.full(len(photos), -1) if existing is None else rows_of(photos, existing.photos)
    gone = 0 if existing is None else len(existing.photos) - int((kept >= 0).sum())
    if retry_failed and existing is not None:
        known = np.flatnonzero(kept >= 0)
        kept[known[existing.photos['transient'].to_numpy(dtype=bool)[kept[known]]]] = -1
    todo = np.flatnonzero(kept < 0)
    current = existing is not None and existing.marker.format == BankMarker.NEWEST
    if current and not len(todo) and not gone:
        team.alone(lambda: _remove_parts(out))  # of a run that was killed right after it had finished
        return
    if team.first and existing is not None and (gone or (len(todo) and not retry_failed)):
        console.log(f'{out}: {len(todo):,} photos to embed, {gone:,} are gone, {len(photos) - len(todo):,} are kept')
    folder = out / f'parts-{_question(store, clip, todo)}'
    folder.mkdir(parents=True, exist_ok=True)
    uris = photos['uri'].tolist()
    parts = plan_parts(uris, todo)
    _make_parts(uris, parts, clip, folder, workers, remote, team)
    team.wait()
    files = [part_file(folder, number) for number in range(len(parts))]

    def put_together() -> None:
        team.see(files)
        _put_together(store, clip, out, existing, kept, files)

    team.alone(put_together)


def _put_together(
    store: PairStore, clip: FrozenClip, out: Path, existing: BankRows | None, kept: Rows, parts: list[Path]
) -> None:
    """Let a bank of the rows that are kept and of those of the parts take the place of the one before."""
    photos = store.photos
    todo = np.flatnonzero(kept < 0)
    fresh = _fresh_rows(photos, todo, parts)
    if existing is None and fresh['reason'].notna().all():
        _remove_parts(out)  # or the next run would believe them, whatever was mended meanwhile
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


def _fresh_rows(photos: pd.DataFrame, todo: Rows, parts: list[Path]) -> pd.DataFrame:
    """Rows of `photos.parquet` of the photos of all parts, in the order of the store."""
    columns = metadata_table([]).columns
    read = [read_part(part, ('row', *columns)) for part in parts]
    fresh = metadata_table([])
    if read:
        rows = pa.concat_tables(read)
        order = pa.array(np.argsort(rows['row'].to_numpy()))
        fresh = rows.drop_columns('row').take(order).to_pandas(types_mapper=_TYPES.get)
    fresh.insert(0, 'photo_id', photos['photo_id'].astype('string').array[todo])
    for number, (name, values) in enumerate(identity_of(photos).items(), start=1):
        fresh.insert(number, name, values[todo])
    return fresh


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
    return hashlib.blake2b(clip.digest.encode() + b'parts' + rows, digest_size=6).hexdigest()


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


def _write_embeddings(path: Path, kept: Rows, existing: BankRows | None, parts: list[Path], width: int) -> None:
    """Write the rows block by block and part by part: banks are larger than memory.

    Args:
        path: file to write.
        kept: for every photo its row in the bank that is there, -1 where it comes from the parts, [P].
        existing: that bank.
        parts: files with the other rows.
        width: D.
    """
    rows = np.lib.format.open_memmap(path, mode='w+', dtype='<f2', shape=(len(kept), width))
    for start in range(0, len(kept), _BLOCK) if existing is not None else ():
        block = kept[start : start + _BLOCK]
        there = np.flatnonzero(block >= 0)
        rows[start + there] = existing.embeddings[block[there]]  # type: ignore[union-attr]
    for part in parts:
        table = read_part(part, ('row', 'embedding'))
        rows[table['row'].to_numpy()] = vectors_of(table, 'embedding')
    rows.flush()


def _make_parts(
    uris: list[str],
    parts: list[Rows],
    clip: FrozenClip,
    folder: Path,
    workers: int | None,
    remote: RemoteSettings,
    team: Team,
) -> None:
    """Make this process's share of the parts, leaving out those that are there.

    CLIP always sees a whole chunk, with zeros for photos that failed: a row's last bits may depend on the size of the
    batch, but not on its other rows.

    Args:
        uris: of all photos of the store.
        parts: rows of the photos of each.
        clip: the CLIP.
        folder: for the files.
        workers: threads that decode.
        remote: how photos are fetched.
        team: the processes that share the work.
    """
    there = finished_parts(folder)
    missing = [number for number in team.share(len(parts)) if number not in there]
    width = width_of(clip)
    part_of_row = np.full(len(uris), -1)
    for number in missing:
        part_of_row[parts[number]] = number

    images_to_embeddings = Fitting(clip.encode_images, 'photos')

    def encode(chunk: Chunk) -> tuple[Chunk, npt.NDArray[np.float16]]:
        fine = chunk.metadata['reason'].isna().to_numpy(dtype=bool)
        embeddings = np.zeros((len(fine), width), dtype=np.float16)
        if fine.any():
            embeddings[fine] = images_to_embeddings(chunk.images).cpu().numpy().astype(np.float16)[fine]
        return chunk, embeddings

    begun: dict[int, OpenPart] = {}
    total = sum(len(parts[number]) for number in missing)
    read = read_chunks(uris, clip, remote, [parts[number] for number in missing], workers)
    with console.progress('embedding photos', total) as bar:
        for chunk, embeddings in on_cores(encode, read, clip.device):
            number = int(part_of_row[chunk.rows[0]])
            part = begun.setdefault(number, OpenPart(parts[number], width))
            if part.add(chunk, embeddings):
                part.write(part_file(folder, number))
                del begun[number]
            bar.advance(len(chunk.rows))


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
