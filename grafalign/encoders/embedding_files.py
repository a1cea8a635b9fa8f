"""Embeddings of photos that somebody else made, part by part: clip-retrieval's folders, `.npz` and `.parquet`.

FOLDER/img_emb/img_emb_0.npy, ... [N, D] with FOLDER/metadata/metadata_0.parquet, ...    as clip-retrieval writes them
FILE.npz      arrays `embeddings` [N, D] and `ids` [N], and perhaps `model`, its name
FILE.parquet  a column of ids and a column `embedding` of lists; or a folder of such files
"""

from __future__ import annotations

import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grafalign.errors import GrafalignError, InputError
from grafalign.files import parquet_batches

ID_COLUMNS = ('photo_id', 'id', 'key', 'image_path', 'uri', 'url')
_VECTORS = ('embedding', 'embeddings', 'image_embedding', 'img_emb')
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, RuntimeError, MemoryError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, pa.ArrowException,
)  # fmt: skip
"""What numpy and pyarrow raise on damaged files."""
_ROWS = 1 << 14
_NUMBER = re.compile(r'(\d+)$')


@dataclass(frozen=True)
class Part:
    """Some rows."""

    file: Path
    ids: list[str]
    vectors: npt.NDArray[np.floating]
    """[N, D]"""
    model: str | None = None
    """What the file says it was made by."""


def read_parts(path: Path, id_column: str | None = None) -> Iterator[Part]:
    """The rows of a source, in its order.

    Args:
        path: file or folder, as above.
        id_column: the column of ids of Parquet files; the first of `ID_COLUMNS` that is there by default.

    Raises:
        GrafalignError: there is no such source, a file is damaged or lacks something, or ids and vectors are not
            equally many.
    """
    if not path.exists():
        raise InputError(f'There is no {path}; give a folder of clip-retrieval, an .npz or a .parquet file.')
    try:
        if path.suffix.lower() == '.npz':
            yield from _npz(path)
        elif path.is_file():
            yield from _parquet(path, id_column)
        elif vectors := sorted(path.glob('img_emb*/*.npy'), key=_number) or sorted(
            path.glob('img_emb*.npy'), key=_number
        ):
            for file in vectors:
                yield from _numpy(file, path, id_column)
        elif files := sorted(path.glob('*.parquet')):
            for file in files:
                yield from _parquet(file, id_column)
        else:
            raise InputError(f'{path} holds neither img_emb/*.npy nor *.parquet; give the folder that does.')
    except GrafalignError:
        raise
    except _DAMAGE as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as embeddings ({reason}); copy or save it again.') from None


def _number(path: Path) -> tuple[int, str]:
    """Files by the number in their name: `img_emb_10` after `img_emb_9`."""
    digits = _NUMBER.search(path.stem)
    return (int(digits[1]) if digits else -1), path.name


def _npz(path: Path) -> Iterator[Part]:
    with np.load(path, allow_pickle=False) as file:
        for name in ('embeddings', 'ids'):
            if name not in file:
                raise InputError(f'{path} holds no `{name}` but {", ".join(file)}; save `embeddings` and `ids`.')
        model = str(file['model']) if 'model' in file else None
        ids = _texts(path, file['ids'].tolist())
        yield _checked(path, ids, np.asarray(file['embeddings']), model)


def _numpy(file: Path, folder: Path, id_column: str | None) -> Iterator[Part]:
    number = _number(file)[0]
    beside = [p for p in folder.glob('metadata*/*.parquet') if _number(p)[0] == number]
    beside += [p for p in folder.glob('metadata*.parquet') if _number(p)[0] == number]
    if not beside:
        raise InputError(f'{file} has no metadata_{number}.parquet in {folder} that names its rows; copy it there.')
    vectors = np.load(file, mmap_mode='r', allow_pickle=False)
    names = _ids(beside[0], id_column)
    ids = _texts(beside[0], pq.read_table(beside[0], columns=[names])[names].to_pylist())
    if len(ids) != len(vectors):
        raise InputError(f'{file} has {len(vectors):,} rows and {beside[0]} {len(ids):,}; they do not belong together.')
    for at in range(0, len(ids), _ROWS):
        yield _checked(file, ids[at : at + _ROWS], np.asarray(vectors[at : at + _ROWS]), None)


def _parquet(path: Path, id_column: str | None) -> Iterator[Part]:
    names = pq.read_schema(path).names
    column = next((name for name in _VECTORS if name in names), None)
    if column is None:
        raise InputError(f'{path} has no column `embedding`; its columns are {", ".join(names[:40])}.')
    of_ids = _ids(path, id_column)
    for batch in parquet_batches(path, _ROWS, [of_ids, column]):
        lists: Any = batch.column(column)
        if lists.null_count:
            raise InputError(f'{path} has rows without an embedding; leave them out.')
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        if len(lengths) != 1:
            raise InputError(
                f'{path} has embeddings of {min(lengths)} and {max(lengths)} numbers; make them of one model.'
            )
        vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), lengths[0])
        yield _checked(path, _texts(path, batch.column(of_ids).to_pylist()), vectors, None)


def _ids(path: Path, id_column: str | None) -> str:
    """The column of ids."""
    names = pq.read_schema(path).names
    column = id_column if id_column is not None else next((name for name in ID_COLUMNS if name in names), None)
    if column is None or column not in names:
        raise InputError(
            f'{path} has no column {id_column or "of ids"}; name one with --id-column. Its columns are '
            f'{", ".join(names[:40])}.'
        )
    return column


def _texts(path: Path, ids: list[Any]) -> list[str]:
    """Ids as texts."""
    if any(i is None for i in ids):
        raise InputError(f'{path} has a row without an id (row {ids.index(None) + 1}); leave it out.')
    return [i.decode('utf-8', 'replace') if isinstance(i, bytes) else str(i) for i in ids]


def _checked(path: Path, ids: list[str], vectors: npt.NDArray[Any], model: str | None) -> Part:
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f'{path}: embeddings must be numbers [rows, D]; they are {vectors.dtype} {list(vectors.shape)}.'
        )
    if len(ids) != len(vectors):
        raise InputError(f'{path} has {len(vectors):,} embeddings and {len(ids):,} ids; save them together.')
    return Part(path, ids, vectors, model)
