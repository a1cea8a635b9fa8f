"""A photo bank of embeddings that somebody else made, so that ten million photos are not embedded twice.

Rows are matched by id, and a few photos are embedded here to see whether the rows are really of the CLIP that is named.
Photos that have no row are left for `grafalign embed --retry-failed`, which embeds them alone.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from grafalign import console
from grafalign.encoders.bank import MARKER, BankMarker, PhotoBank, bank_folder, identity_of, open_bank
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.embedding import NEXT, move_in, remote_settings, width_of
from grafalign.encoders.embedding_files import Part, read_parts
from grafalign.encoders.reading import metadata_table, read_chunks
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.files import write_table
from grafalign.locks import exclusive, refuse_other_files
from grafalign.photos.exif import PhotoMetadata
from grafalign.store import PairStore

NO_ROW, NO_NUMBER = 'no embedding was given', 'the embedding given is zero or not finite'
_LOOKED_AT, _OF_A_FILE = 64, 16
"""Photos that are embedded here as well, at most, in all and of each file: one shard may be of another model."""
_ALIKE, _MOST_UNLIKE = 0.9, 0.1
"""Cosine with one's own embedding above which both are of one CLIP (other decoders and resizers give 0.97 and more,
other models about 0), and the share of photos that may lie below it, as some may have changed at their address."""
_TOLERANCE = 0.01


@dataclass(frozen=True)
class ImportedBank:
    """What became of the rows."""

    bank: PhotoBank
    photos: int
    """Of the store."""
    matched: int
    missing: int
    """Photos without a row."""
    unusable: int
    """Rows that are not finite or zero."""
    others: int
    """Rows of photos that the store does not hold."""
    cosine: float | None
    """Median with the same photos' embeddings made here; None where none of them could be read (`unchecked`)."""


def import_bank(
    store: PairStore,
    source: Path,
    clip: FrozenClip,
    out: Path | None = None,
    id_column: str | None = None,
    unchecked: bool = False,
) -> ImportedBank:
    """Make the bank of a store from embeddings that somebody else made.

    Args:
        store: the pair store.
        source: see `embedding_files`.
        clip: the CLIP that the embeddings are of.
        out: the bank's folder; `STORE/bank` by default.
        id_column: the column of ids of Parquet files. Ids are those of photos, or their uris, or file names: whichever
            the first rows are found by.
        unchecked: take the rows even where no photo can be read here to compare them.

    Raises:
        GrafalignError: nothing matches, an id repeats, the width or the name of the model is another than the CLIP's,
            photos come out otherwise here or cannot be read, or there is a bank already.
    """
    out = bank_folder(store, out)
    with naming_full_disk(out), exclusive(out):
        following = out / NEXT
        if (following / MARKER).is_file():  # an import that was killed when all was written
            move_in(out)
            console.log(f'{out} is complete; it was killed in its last step.')
            return _counted(open_bank(store, out, clip))
        if (out / MARKER).is_file():
            raise InputError(f'{out} holds a bank already; delete it, or give another folder with --out.')
        refuse_other_files(out, (NEXT,), 'the bank')
        if following.is_dir():
            refuse_other_files(following, ('embeddings.npy', 'photos.parquet'), 'the bank')
        shutil.rmtree(following, ignore_errors=True)
        following.mkdir()
        try:
            others, cosine = _fill(store, source, clip, following, id_column, unchecked)
        except BaseException:
            shutil.rmtree(following, ignore_errors=True)  # nothing of the size of the bank is left behind
            raise
        move_in(out)
    return _counted(open_bank(store, out, clip), others, cosine)


def _counted(bank: PhotoBank, others: int = 0, cosine: float | None = None) -> ImportedBank:
    """A bank with the counts of its photos."""
    reason = bank.photos['reason']
    missing, unusable = int((reason == NO_ROW).sum()), int((reason == NO_NUMBER).sum())
    matched = len(reason) - missing - unusable
    return ImportedBank(bank, len(reason), matched, missing, unusable, others, cosine)


def _fill(
    store: PairStore, source: Path, clip: FrozenClip, following: Path, id_column: str | None, unchecked: bool
) -> tuple[int, float | None]:
    """Write a bank into a folder.

    Returns:
        How many rows are of other photos, and the median cosine with embeddings made here.
    """
    photos = store.photos
    names = _Names(photos)
    shape = len(photos), width_of(clip)
    rows = np.lib.format.open_memmap(following / 'embeddings.npy', mode='w+', dtype='<f2', shape=shape)
    state = np.zeros(len(photos), np.int8)  # 0: no row, 1: one, 2: one that is no vector
    file_of = np.zeros(len(photos), np.int32)
    files: dict[Path, int] = {}
    others = 0
    plain = True
    with console.progress('reading embeddings', len(photos)) as bar:
        for part in read_parts(source, id_column):
            _check_part(part, clip, shape[1])
            at = names.rows(part.ids)
            others += int((at < 0).sum())
            repeated = _repeated(part, at, state)
            if repeated is not None:
                raise InputError(f'{part.file} has the id {repeated!r} twice; leave one of the rows out.')
            matched = np.flatnonzero(at >= 0)
            vectors, good, unit = _normalised(part.vectors[matched])
            plain &= unit
            rows[at[matched]] = vectors
            state[at[matched]] = np.where(good, 1, 2)
            file_of[at[matched]] = files.setdefault(part.file, len(files))
            bar.advance(len(matched))
    if not (state == 1).any():
        raise InputError(
            f'No row of {source} is of a photo of {store.path} (one of them is {photos["photo_id"].iloc[0]!r}); '
            'name the column of their ids with --id-column.'
        )
    if not plain:
        console.log(f'{source}: rows are not of unit length; each was divided by its length')
    cosine = _compare(store, rows, np.where(state == 1, file_of, -1), clip, source, unchecked)
    rows.flush()
    write_table(_table(photos, state), following / 'photos.parquet')
    BankMarker(
        format=BankMarker.NEWEST, clip=clip.digest, clip_settings=clip.settings.model_dump(), photos=len(photos)
    ).write(following / MARKER)
    return others, cosine


class _Names:
    """Finds photos by one kind of name: ids, addresses, or names of files, as those of another machine's folders."""

    def __init__(self, photos: pd.DataFrame) -> None:
        uri = photos['uri'].astype(str)
        kinds = (photos['photo_id'], _whole), (uri, _whole), (uri, _file), (uri, _stem)
        self._kinds = [(pd.Index(spell(names.astype(str))), spell) for names, spell in kinds]
        self._chosen: int | None = None

    def rows(self, ids: list[str]) -> npt.NDArray[np.int64]:
        """Rows of photos, -1 where there is none; the kind of name that fits the first rows best is kept."""
        names = pd.Series(ids, dtype='object')
        if self._chosen is None:
            counts = [
                int((kind.get_indexer(spell(names)) >= 0).sum()) if kind.is_unique else 0 for kind, spell in self._kinds
            ]
            if not any(counts):
                return np.full(len(ids), -1)
            self._chosen = int(np.argmax(counts))
        kind, spell = self._kinds[self._chosen]
        return np.asarray(kind.get_indexer(spell(names)), dtype=np.int64)


def _whole(names: pd.Series) -> pd.Series:
    return names


def _file(names: pd.Series) -> pd.Series:
    """Names without their folders, of whichever system."""
    return names.str.rsplit('/', n=1).str[-1].str.rsplit('\\', n=1).str[-1]


def _stem(names: pd.Series) -> pd.Series:
    return _file(names).str.rsplit('.', n=1).str[0]


def _check_part(part: Part, clip: FrozenClip, width: int) -> None:
    model = clip.settings.model
    if part.model is not None and f'-{_spelled(Path(model).name)}-' not in f'-{_spelled(part.model)}-':
        raise StaleError(
            f'{part.file} says that it was made by {part.model}, not by {model}; name that model, or leave its name '
            'out of the file if both are one.'
        )
    if part.vectors.shape[1] != width:
        raise StaleError(
            f'{part.file} has rows of {part.vectors.shape[1]} numbers and {model} makes {width}: they are of another '
            'CLIP; name that one.'
        )


def _spelled(name: str) -> str:
    """A model's name in one spelling: OpenAI writes ViT-B/32 and open_clip ViT-B-32.

    Example:
        >>> _spelled('open_clip:ViT-B/32')
        'open-clip-vit-b-32'
    """
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')


def _repeated(part: Part, at: npt.NDArray[np.int64], state: npt.NDArray[np.int8]) -> str | None:
    """An id that came before, in this part or in one before it."""
    matched = np.flatnonzero(at >= 0)
    first = np.zeros(len(matched), bool)
    first[np.unique(at[matched], return_index=True)[1]] = True
    again = matched[~first | (state[at[matched]] > 0)]
    return part.ids[int(again[0])] if len(again) else None


def _normalised(vectors: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_], bool]:
    """Rows of unit length as a bank keeps them, which of them are vectors, and whether all had unit length."""
    exact = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(exact, axis=1)
    good = np.isfinite(length) & (length > 0)
    unit = bool((np.abs(length[good] - 1) < _TOLERANCE).all())
    exact = np.where(good[:, None], exact / np.where(good, length, 1)[:, None], 0)
    return exact.astype(np.float16), good, unit


def _compare(
    store: PairStore,
    rows: npt.NDArray[np.float16],
    file_of: npt.NDArray[np.int32],
    clip: FrozenClip,
    source: Path,
    unchecked: bool,
) -> float | None:
    """Median cosine of some rows of every file (-1: no row) with what the CLIP makes of their photos here.

    Raises:
        GrafalignError: they have little in common, or none of the photos can be read.
    """
    picked = _some_of_each(file_of)
    chunks = list(read_chunks(store.photos['uri'].tolist(), clip, remote_settings(store), [picked], None))
    picked, images = np.concatenate([c.rows for c in chunks]), torch.cat([c.images for c in chunks])
    reasons = pd.concat([c.metadata['reason'] for c in chunks])
    read = reasons.isna().to_numpy(dtype=bool)
    model = clip.settings.model
    if not read.any():
        if unchecked:
            return None
        raise InputError(
            f'None of {len(picked)} photos of {store.path} can be read, so nothing shows that {source} is of {model}; '
            'bring the photos back, or give --unchecked.'
        )
    own = clip.encode_images(images).cpu().numpy()[read]
    cosine = (own * rows[picked[read]].astype(np.float32)).sum(1)
    unlike, file = cosine < _ALIKE, file_of[picked[read]]
    of_file = np.bincount(file, unlike)
    if unlike.mean() > _MOST_UNLIKE or (of_file > np.maximum(np.bincount(file) / 2, 1)).any():
        worst = store.photos['photo_id'].iloc[int(picked[read][np.argmin(cosine)])]
        raise StaleError(
            f'{source} is not of {model} ({clip.settings.pretrained}), or not all of it: {unlike.sum()} of '
            f'{len(cosine)} rows have a cosine below {_ALIKE} with what it makes of their photos (photo {worst}: '
            f'{cosine.min():.2f}); name the CLIP that made them.'
        )
    return float(np.median(cosine))


def _some_of_each(file_of: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Photos to look at, spread over the files and over the rows of each."""
    order = np.argsort(file_of, kind='stable')
    order = order[file_of[order] >= 0]
    parts = np.split(order, np.unique(file_of[order], return_index=True)[1][1:])
    parts = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, _LOOKED_AT).astype(int))]
    count = min(_OF_A_FILE, _LOOKED_AT // len(parts))
    some = [part[np.unique(np.linspace(0, len(part) - 1, count).astype(int))] for part in parts]
    return np.sort(np.concatenate(some))


def _table(photos: pd.DataFrame, state: npt.NDArray[np.int8]) -> pd.DataFrame:
    """`photos.parquet`: nothing is known of the photos but whether there is a row."""
    problems = {0: PhotoMetadata(problem=NO_ROW), 1: PhotoMetadata(), 2: PhotoMetadata(problem=NO_NUMBER)}
    kinds = metadata_table([(problems[kind], kind != 1) for kind in (0, 1, 2)])
    table = kinds.iloc[state].reset_index(drop=True)
    table.insert(0, 'photo_id', photos['photo_id'].astype('string').array)
    for number, (name, values) in enumerate(identity_of(photos).items(), start=1):
        table.insert(number, name, values)
    return table
