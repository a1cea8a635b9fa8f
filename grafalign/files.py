"""Files that are there whole or not at all, on disk or on any fsspec URL."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PlainSerializer, PlainValidator
from upath import UPath

from grafalign.errors import GrafalignError, InputError, MachineError, RemoteError
from grafalign.foreign.files import open_plain

Place: TypeAlias = Path | UPath
"""A local path, or a file or folder on a URL that fsspec knows (s3://, gs://, az://, memory://)."""


_OBJECT_STORES = ('s3', 'gs', 'gcs', 'az', 'abfs', 'abfss', 'memory')


def place(name: Any) -> Place:
    """The place that a name means: a URL where it holds `://`, else a local path.

    Raises:
        GrafalignError: no installed package reads such URLs.
    """
    if isinstance(name, UPath):
        return name
    text = os.fspath(name)
    if text.startswith('file://'):
        return Path(unquote(urlsplit(text).path))
    if '://' not in text:
        return Path(text)
    scheme = text.partition('://')[0].lower()
    if scheme not in _OBJECT_STORES:
        raise InputError(
            f'{text} cannot be used: {scheme}:// is no object store, where a file is there whole or not at all; give a '
            f'local folder or one of {", ".join(_OBJECT_STORES)}.'
        )
    try:
        return UPath(text, use_listings_cache=False)  # others write there too: what was listed once may be old
    except (ImportError, ValueError) as error:
        raise MachineError(
            f'{text} cannot be used ({error}); install the package for such URLs, for example grafalign[s3].'
        ) from None


PlaceSetting = Annotated[Place, PlainValidator(place), PlainSerializer(str)]
"""A `Place` in settings."""


@contextlib.contextmanager
def naming_url(where: Place) -> Iterator[None]:
    """Say which URL failed: the packages behind fsspec raise errors of their own that name none.

    Raises:
        GrafalignError: the store cannot be reached, or refuses.
    """
    try:
        yield
    except GrafalignError:
        raise
    except Exception as error:
        if isinstance(where, Path) or type(error).__module__.partition('.')[0] not in _STORE_PACKAGES:
            raise
        raise RemoteError(
            f'{where} cannot be used ({error}); check its address and your credentials, and run the same command again.'
        ) from None


_STORE_PACKAGES = ('botocore', 'aiobotocore', 'aiohttp', 's3fs', 'gcsfs', 'google', 'adlfs', 'azure')


def remove_parts(folder: Place) -> None:
    """Remove the part files that killed runs left in a store."""
    if isinstance(folder, Path):
        for part in (*folder.glob('*.part'), *folder.glob('*/*.part')):
            part.unlink(missing_ok=True)


def make_folder(folder: Place) -> None:
    """Make a folder where folders are things of their own; object stores have none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: Place) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)


ME = f'{os.getpid()}-{secrets.token_hex(3)}'
"""Names this process in part files that several may write at one time."""


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False, sync: bool = True) -> Iterator[Path]:
    """A path to write to; what is there when the context ends takes the place of `path`, whole or not at all.

    Args:
        path: the file.
        shared: several processes may write it at one time, as a worker may live on after it was given up for dead.
        sync: have it written through to the disk first, so that it is whole after a power failure, too. A kill does no
            harm without.
    """
    part = path.with_name(f'{path.name}.{ME}.part' if shared else f'{path.name}.part')
    try:
        yield part
        if sync:
            to_disk(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Make the system write a file, or the names in a folder, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Place, content: bytes, shared: bool = False) -> None:
    """Write a file so that it is there whole or not at all; `shared` as of `replacing`."""
    if not isinstance(path, Path):
        path.fs.pipe_file(path.path, content)  # an object appears when its upload is complete
        return
    with replacing(path, shared) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def writing(path: Place) -> Iterator[IO[bytes]]:
    """An open file whose content is at `path` when the context ends, whole or not at all."""
    if isinstance(path, Path):
        with replacing(path) as part, part.open('wb') as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as local:  # an upload that is given up would leave what came so far
        yield local.file
        local.flush()
        path.fs.put_file(local.name, path.path)


def write_table(frame: pd.DataFrame, path: Place) -> None:
    """Write a Parquet (or GeoParquet) table atomically."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_range(path: Place, start: int, length: int) -> bytes:
    """Bytes `start` to `start + length` of a file."""
    if isinstance(path, Path):
        with path.open('rb') as file:
            return os.pread(file.fileno(), length, start)
    content: bytes = path.fs.cat_file(path.path, start=start, end=start + length)
    return content


def file_digest(path: Place) -> str:
    """BLAKE2b digest of a file."""
    with open_plain(path) if isinstance(path, Path) else path.open('rb') as file:
        return stream_digest(file)


def changed_files(folder: Path, digests: Mapping[str, str]) -> tuple[str, ...]:
    """What is wrong with files of a folder, given the digests that they were written with: a sentence for each."""
    problems = []
    for name, digest in digests.items():
        try:
            if file_digest(folder / name) != digest:
                problems.append(f'{name} has other content than when it was written')
        except (OSError, ValueError) as error:
            problems.append(f'{name} cannot be read ({error})')
    return tuple(problems)


def stream_digest(file: Any) -> str:
    """BLAKE2b digest of an open binary file from where it stands."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def parquet_batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a local Parquet file, of which nothing is kept.

    pyarrow's own way reads all row groups ahead (`pre_buffer`), which is the whole file.

    Args:
        path: the file.
        rows: of a batch.
        columns: all by default.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(rows, columns=columns)


def vectors_column(vectors: npt.NDArray[Any]) -> pa.Array:
    """Vectors [N, D] as a column of a table, a list of D numbers a row."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_of(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """The vectors [N, D] of a column that `vectors_column` made.

    Example:
        >>> vectors_of(pa.table({'v': vectors_column(np.eye(2, dtype=np.float32))}), 'v').tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    chunk = table[column].combine_chunks()
    return np.asarray(chunk.flatten()).reshape(len(chunk), chunk.type.list_size)
