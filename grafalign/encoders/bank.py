"""The photo bank: every photo of a store embedded once by the frozen CLIP.

    STORE/bank/embeddings.npy    float16 [P, D], unit length, rows in the order of photos.parquet; memory-mapped
    STORE/bank/photos.parquet    one row a photo, in the same order: photo_id, uri and paired_digest (as the store had
                                 them), width, height, digest (of what was embedded), dhash, problem (missing when
                                 fine), transient
    STORE/bank/filtered.parquet  photos left out by what they show, if `grafalign filter` was run: see content.py
    STORE/bank/bank.json         `BankMarker`; written last

The photo side never changes, so training needs neither the photos nor CLIP's image encoder again. A bank belongs to its
photos and to a CLIP, not to the rest of the store: pairing again with other scenes leaves it whole. It is made, and
brought up to date, by `grafalign.encoders.embedding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.artefacts import Marker
from grafalign.encoders.clip import FrozenClip
from grafalign.errors import DamagedError, InputError, StaleError
from grafalign.files import file_digest, write_atomically
from grafalign.store import MARKER as STORE_MARKER
from grafalign.store import PairStore

MARKER = 'bank.json'
FILTERED = 'filtered.parquet'
_MADE_FOR = b'bank_photos'


class BankMarker(Marker):
    """`bank.json`."""

    NEWEST: ClassVar[int] = 3
    OLDEST: ClassVar[int] = 2
    REMEDY: ClassVar[str] = 'delete its folder and run `grafalign embed` again'

    format: int
    clip: str
    """Content digest of the CLIP."""
    clip_settings: dict[str, Any]
    """Which CLIP it was, for a sentence."""
    photos: int
    """Rows."""
    store: str | None = None
    """Format 2 only, whose photos.parquet has no `uri`: digest of the store that it was made for."""


@dataclass(frozen=True)
class PhotoBank:
    """Embeddings of all photos of a store."""

    embeddings: npt.NDArray[np.float16]
    """[P, D], memory-mapped; zero where a photo could not be read."""
    valid: npt.NDArray[np.bool_]
    """[P]; False where the photo could not be read or was filtered out."""
    clip_digest: str
    photos: pd.DataFrame
    """`photos.parquet`."""
    rejected: pd.DataFrame
    """kind, id, reason, detail of the photos that are not valid."""

    def left_out(self) -> str | None:
        """How many photos are not valid, and why; None if all are."""
        if self.valid.all():
            return None
        reasons = ', '.join(f'{reason}: {count:,}' for reason, count in self.rejected['reason'].value_counts().items())
        return f'{int((~self.valid).sum()):,} of {len(self.valid):,} photos are left out ({reasons})'


@dataclass(frozen=True)
class BankRows:
    """What a bank's folder holds, whatever store it is asked for."""

    embeddings: npt.NDArray[np.float16]
    """[P, D], memory-mapped."""
    photos: pd.DataFrame
    marker: BankMarker


def load_bank(store: PairStore, path: Path | None = None, clip: FrozenClip | None = None) -> PhotoBank:
    """Open a finished bank.

    Raises:
        GrafalignError: there is none, it is of another CLIP, the store has photos that it lacks or lacks some that it
            has, or photos were added after it was filtered.
    """
    bank = open_bank(store, path, clip)
    folder = bank_folder(store, path)
    if not _filter_is_current(folder):
        raise StaleError(
            f'{folder} was filtered before photos were added to it; run `grafalign filter {store.path}` again '
            f'(or delete {folder / FILTERED}).'
        )
    return bank


def open_bank(
    store: PairStore, path: Path | None = None, clip: FrozenClip | None = None, filtered: bool = True
) -> PhotoBank:
    """As `load_bank`, but also where its filtering is out of date; `filtered=False` leaves filtering out altogether."""
    path = bank_folder(store, path)
    rows = bank_rows(path, store, clip)
    positions = rows_of(store.photos, rows.photos)
    missing, gone = int((positions < 0).sum()), len(rows.photos) - int((positions >= 0).sum())
    if missing or gone:
        raise StaleError(
            f'{path} lacks {missing:,} photos of {store.path} and holds {gone:,} that are not in it (any more); run '
            f'`grafalign embed {store.path}` again: it embeds the new ones only.'
        )
    if (positions[1:] < positions[:-1]).any():
        raise DamagedError(f'{path} is damaged (its rows are in another order); {BankMarker.REMEDY}.')
    try:
        left_out = pd.read_parquet(path / FILTERED) if filtered and (path / FILTERED).is_file() else None
        valid, rejected = _judged(rows.photos, left_out)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f'{path / FILTERED} is damaged ({error}); run `grafalign filter` again.') from None
    return PhotoBank(rows.embeddings, valid, rows.marker.clip, rows.photos, rejected)


def bank_rows(path: Path, store: PairStore, clip: FrozenClip | None = None) -> BankRows:
    """The rows of a bank, whether or not they are those of the store.

    Args:
        path: the bank's folder.
        store: the store that it lies beside.
        clip: raise if the bank is of another one.

    Raises:
        GrafalignError: there is no finished bank, it is damaged, or of another CLIP.
    """
    if not (path / MARKER).is_file():
        raise DamagedError(f'{path} holds no finished photo bank; run `grafalign embed {store.path}` first.')
    marker = BankMarker.read(path / MARKER)
    try:
        embeddings = np.load(path / 'embeddings.npy', mmap_mode='r')
        photos = pd.read_parquet(path / 'photos.parquet').rename(columns={'problem': 'reason'})  # its earlier name
        for rows in (len(embeddings), len(photos)):
            if rows != marker.photos:
                raise ValueError(f'{rows} rows for {marker.photos} photos')
        if marker.format == 2:
            photos = _with_uris(photos, path, marker, store)
        lacking = {'photo_id', *IDENTITY, 'reason', 'transient'} - set(photos)
        if lacking:
            raise ValueError(f'photos.parquet has no column {min(lacking)}')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f'{path} is damaged ({error}); {BankMarker.REMEDY}.') from None
    if clip is not None and marker.clip != clip.digest:
        theirs = marker.clip_settings
        raise StaleError(
            f'{path} was embedded by another CLIP ({theirs.get("model")}, {theirs.get("pretrained")}) than '
            f'{clip.settings.model} ({clip.settings.pretrained}); use that CLIP or embed into another folder.'
        )
    return BankRows(embeddings, photos, marker)


def _with_uris(photos: pd.DataFrame, path: Path, marker: BankMarker, store: PairStore) -> pd.DataFrame:
    """The photos of a bank of format 2, which belongs to the very store that it was made for."""
    if marker.store != store.digest:
        raise StaleError(
            f'{path} is the bank of another pair store, by an earlier grafalign; delete it and run `grafalign embed` '
            'again.'
        )
    return photos.assign(**identity_of(store.photos))


IDENTITY = ('uri', 'paired_digest')


def identity_of(photos: pd.DataFrame) -> dict[str, Any]:
    """What besides its id says which photo it is, as columns of a bank.

    Args:
        photos: table of a store; `digest` is that of the file when it was paired, missing where the photo is remote.
    """
    digest = photos['digest'] if 'digest' in photos else pd.Series(pd.NA, index=photos.index)
    return {'uri': photos['uri'].astype('string').array, 'paired_digest': digest.astype('string').array}


def rows_of(photos: pd.DataFrame, bank_photos: pd.DataFrame) -> npt.NDArray[np.int64]:
    """For every photo of a store its row in a bank, -1 where there is none, [P].

    A photo is the same if its id is, and its content where the store knew its digest both times; else its uri.

    Args:
        photos: table of the store, [P].
        bank_photos: table of the bank.

    Example:
        >>> store = pd.DataFrame({'photo_id': ['a', 'b', 'c'], 'uri': ['1', '2', '3'], 'digest': ['x', 'y', None]})
        >>> bank = store[['photo_id']].assign(uri=['9', '2', '3'], paired_digest=['x', 'z', 'w'])
        >>> rows_of(store, bank).tolist()  # a moved, b was changed, c is known by its uri
        [0, -1, 2]
    """
    row = pd.Index(bank_photos['photo_id'].astype(str)).get_indexer(photos['photo_id'].astype(str))
    there = np.flatnonzero(row >= 0)
    ours, theirs = identity_of(photos), bank_photos.iloc[row[there]]
    uri, digest = (pd.Series(ours[k]).fillna('').to_numpy(dtype=object)[there] for k in IDENTITY)
    their_uri, their_digest = (theirs[k].astype('string').fillna('').to_numpy(dtype=object) for k in IDENTITY)
    both = (digest != '') & (their_digest != '')
    row[there[~np.where(both, digest == their_digest, uri == their_uri)]] = -1
    return np.asarray(row, dtype=np.int64)


def _judged(photos: pd.DataFrame, out: pd.DataFrame | None) -> tuple[npt.NDArray[np.bool_], pd.DataFrame]:
    """Which photos are valid, and the table of those that are not."""
    valid = photos['reason'].isna().to_numpy(dtype=bool)
    unread = photos[~valid]
    detail = np.where(unread['transient'], 'could not be read; may pass', 'could not be read')
    parts = [pd.DataFrame({'id': unread['photo_id'], 'reason': unread['reason'], 'detail': detail})]
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
        if (out / STORE_MARKER).is_file():
            raise InputError(f'{out} is a pair store, whose photos.parquet a bank would replace; give another folder.')
        return out
    if not isinstance(store.path, Path):
        raise InputError(f'The bank of {store.path} needs a folder on this machine, as it is memory-mapped; give one.')
    return store.path / 'bank'
