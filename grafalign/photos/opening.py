"""Find and open the files of a photo table: local paths, globs and URLs, compressed or not."""

from __future__ import annotations

import glob
import io
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
from urllib3.exceptions import HTTPError

from grafalign.errors import InputError, MachineError, RemoteError
from grafalign.foreign import open_plain
from grafalign.web.addresses import WebError
from grafalign.web.connections import LIMITS
from grafalign.web.follow import open_url

KINDS = {
    '.csv': 'csv',
    '.tsv': 'tsv',
    '.jsonl': 'jsonl',
    '.ndjson': 'jsonl',
    '.geojsonl': 'jsonl',
    '.parquet': 'parquet',
    '.geoparquet': 'parquet',
    '.geojson': 'geojson',
    '.json': 'json',
}
COMPRESSIONS = {'.gz': 'gzip', '.bz2': 'bz2', '.zst': 'zstd'}
TIMEOUT_S = 60
"""Seconds without a byte after which a web server counts as silent."""


def is_url(path: str) -> bool:
    """Whether a path names a scheme (`https://...`, `s3://...`)."""
    return '://' in path


def name_of(path: str) -> str:
    """The last part of a path or URL."""
    return PurePosixPath(path.split('?')[0]).name


def kind_of(path: str) -> tuple[str | None, str | None]:
    """Kind of table (see `KINDS`) and compression that the name's suffixes tell; None where they tell nothing."""
    suffixes = [s.lower() for s in PurePosixPath(name_of(path)).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes = suffixes[:-1]
    return (KINDS.get(suffixes[-1]) if suffixes else None), compression


def files_of(table: str | Path | list[str | Path]) -> list[str]:
    """The files that a path, a glob, a folder or a list of them stands for, in a fixed order.

    Raises:
        GrafalignError: one of them stands for no file.
    """
    parts = table if isinstance(table, list) else [table]
    if not parts:
        raise InputError('photos.table is an empty list; name at least one table.')
    return [file for part in parts for file in _expand(str(part))]


def _expand(part: str) -> list[str]:
    if is_url(part):
        if '*' not in part or part.startswith(('http://', 'https://')):
            return [part]
        with _naming(part):
            fs, path = fsspec.core.url_to_fs(part)
            found = sorted(fs.unstrip_protocol(p) for p in fs.glob(path))
    elif Path(part).is_dir():
        found = sorted(str(p) for p in Path(part).iterdir() if p.is_file() and not p.name.startswith(('.', '_')))
    elif Path(part).exists():
        return [part]
    else:
        found = sorted(f for f in glob.glob(part, recursive=True) if Path(f).is_file())  # noqa: PTH207, absolute globs too
    if not found:
        raise InputError(
            f'There is no file {part}; set photos.table to a CSV, JSONL, Parquet, GeoParquet or GeoJSON file.'
        )
    return found


@contextmanager
def open_stream(path: str, compression: str | None = None) -> Iterator[Any]:
    """A table's bytes from the first to the last, decompressed, as a pyarrow stream.

    Raises:
        GrafalignError: the file cannot be found or opened.
    """
    with _naming(path):
        raw = _open(path)
    try:
        stream = pa.PythonFile(raw, mode='r')
        yield pa.CompressedInputStream(stream, compression) if compression else stream
    finally:
        raw.close()


@contextmanager
def open_seekable(path: str, compression: str | None = None) -> Iterator[IO[bytes]]:
    """The same as a file that can be read from anywhere; a temporary copy of what is compressed or on the web."""
    if compression is None and not path.startswith(('http://', 'https://')):
        with _naming(path):
            raw = _open(path)
        try:
            yield raw
        finally:
            raw.close()
        return
    with tempfile.TemporaryFile() as copy:
        with open_stream(path, compression) as stream, _naming(path):
            while block := stream.read(1 << 22):
                copy.write(block)
        copy.seek(0)
        yield copy


@contextmanager
def local_copy(path: str, compression: str | None = None) -> Iterator[str]:
    """A path on this machine with a table's content, for readers that take nothing else."""
    if compression is None and not is_url(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name_of(path)).suffixes[0]) as copy:
        with open_seekable(path, compression) as source:
            shutil.copyfileobj(source, copy, 1 << 22)
        copy.flush()
        yield copy.name


def _open(path: str) -> IO[bytes]:
    if path.startswith(('http://', 'https://')):
        body: IO[bytes] = _Body(open_url(path, private=True, timeout_s=TIMEOUT_S))  # type: ignore[assignment]
        return body
    if is_url(path):
        opened: IO[bytes] = fsspec.open(path, 'rb').open()
        return opened
    return open_plain(path)


class _Body(io.RawIOBase):
    """The body of an answer, which may be large: it ends where the server falls silent, not at a deadline."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        LIMITS.start(math.inf, False, TIMEOUT_S)
        piece: bytes = self._response.read(None if size < 0 else size, decode_content=True)
        return piece

    def close(self) -> None:
        self._response.close()
        super().close()


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn the many errors of opening into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f'There is no file {path}; set photos.table to a CSV, JSONL, Parquet, GeoParquet or GeoJSON file.'
        ) from None
    except (WebError, HTTPError) as error:
        reason = ' '.join(str(error).split())
        raise RemoteError(f'{path} cannot be read ({reason}); check the address and the rights.') from None
    except ImportError as error:
        raise MachineError(f'{path} cannot be read ({error}); install that package or copy the table here.') from None
    except (OSError, ValueError) as error:
        reason = ' '.join(str(error).split())
        kind = RemoteError if '://' in path else InputError
        raise kind(f'{path} cannot be read ({reason}); check the path, the rights and the network.') from None
