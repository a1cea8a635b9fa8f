"""From photos to CLIP's input: fetched, decoded and prepared some chunks ahead, and then forgotten.

Photos of this machine are decoded by as many threads as there are workers. Where photos lie elsewhere more threads wait
for hosts, but no more than `workers` decode at a time. An archive is read once, from front to back, and its photos go
through CLIP in the archive's order. In memory are at most `AHEAD_BYTES` of prepared chunks (always two), and beside
them `workers` decoded photos and the files of those that are on their way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from grafalign import engine
from grafalign.encoders.clip import FrozenClip
from grafalign.photos.exif import MAX_PIXELS, PhotoError, PhotoMetadata, load_photo
from grafalign.photos.fetch import Fetcher, RemoteSettings, is_remote, split_tar

CHUNK = 128
"""Photos that go through CLIP together; 77 MB at 224 px."""
AHEAD_BYTES = 600_000_000
"""Prepared chunks that wait for CLIP; eight of 224 px."""
_MOST_AHEAD = 16
_ARCHIVES = 4
"""Archives that are read at a time."""
_LOOK_S = 0.2
"""How often a thread that waits looks whether it shall stop."""
_LONGEST_STRIP = 40
"""Sides of a photo differ less than this; CLIP's preprocessing would enlarge a hair of one pixel to gigabytes."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """N photos that go through CLIP together."""

    rows: Rows
    """Which they are, [N]."""
    images: Tensor
    """Preprocessed, [N, 3, H, W]; zero where a photo has a problem."""
    metadata: pd.DataFrame
    """What `metadata_table` makes of them."""


def read_chunks(
    uris: Sequence[str], clip: FrozenClip, remote: RemoteSettings, parts: Sequence[Rows], workers: int | None
) -> Iterator[Chunk]:
    """Read photos; yields them chunk by chunk as each is complete, in any order.

    Which photos make a chunk depends on nothing but the part and the archives that they are in. Where an archive holds
    a photo several times, its row comes again in a later chunk, and the last one holds; the last chunk of a part has a
    row that was in none before.

    Args:
        uris: of all photos.
        clip: gives the preprocessing.
        remote: how to fetch what is not on this machine.
        parts: rows of `uris`; no chunk has rows of two parts, and photos of an archive should be in one.
        workers: threads that decode; the number of cores by default.

    Raises:
        GrafalignError: a package for this kind of uri is not installed.
    """
    reader = _Reader(uris, clip, remote, max(map(len, parts), default=1), workers)
    try:
        yield from reader.chunks(parts)
    finally:
        reader.close()


class _Open:
    """A chunk that is being filled."""

    def __init__(self, most: int, size: int) -> None:
        self.rows: list[int] = []
        self.images = torch.zeros(most, 3, size, size)
        self.metadata: list[tuple[PhotoMetadata, bool]] = []
        self.pending = 1
        """Photos that are not decoded yet, and one while others may be added."""
        self.filled = threading.Event()


class _Stopped(Exception):
    """Nobody takes chunks any more."""


class _Reader:
    """Threads that read, and the chunks between them.

    `_room` counts chunks that were begun and not yet taken. One thread hands out plain photos, and archives to threads
    of their own. Whoever waits for room has no chunk open, so that whatever is open gets filled.
    """

    def __init__(
        self, uris: Sequence[str], clip: FrozenClip, remote: RemoteSettings, longest: int, workers: int | None
    ) -> None:
        self._uris, self._clip, self._remote, self._size = uris, clip, remote, clip.image_px
        self._most = min(longest, CHUNK)
        self._room = threading.Semaphore(max(2, min(_MOST_AHEAD, AHEAD_BYTES // (self._most * 12 * self._size**2))))
        self._streams = threading.Semaphore(_ARCHIVES)
        self._fetching = ThreadPoolExecutor(remote.connections, 'photos')
        self._decoding = ThreadPoolExecutor(workers or engine.default_workers(), 'photos')
        self._fetcher = Fetcher(remote)
        self._done: queue.SimpleQueue[_Open | BaseException | None] = queue.SimpleQueue()
        self._stopped, self._lock, self._busy = threading.Event(), threading.Lock(), 0

    def chunks(self, parts: Sequence[Rows]) -> Iterator[Chunk]:
        """All photos of some parts."""
        self._start(self._hand_out, parts)
        while (item := self._done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._room.release()
            count = len(item.rows)
            yield Chunk(np.array(item.rows, dtype=np.int64), item.images[:count], metadata_table(item.metadata))

    def close(self) -> None:
        """Stop; a thread that waits for a host must not hold up Ctrl-C."""
        self._stopped.set()
        for pool in (self._fetching, self._decoding):
            pool.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Let a thread of its own do something; the end is told when nothing is left to do."""
        with self._lock:
            self._busy += 1

        def run() -> None:
            try:
                work(*arguments)
            except _Stopped:
                return
            except BaseException as error:
                self._done.put(error)
            self._end()

        threading.Thread(target=run, name='photos_of', daemon=True).start()

    def _end(self) -> None:
        with self._lock:
            self._busy -= 1
            last = not self._busy
        if last:
            self._done.put(None)

    def _wait(self, semaphore: threading.Semaphore) -> None:
        while not semaphore.acquire(timeout=_LOOK_S):
            if self._stopped.is_set():
                raise _Stopped

    def _hand_out(self, parts: Sequence[Rows]) -> None:
        for rows in parts:
            plain, archives = _by_archive(self._uris, rows)
            for first in range(0, len(plain), CHUNK):
                chunk = self._open()
                for row in plain[first : first + CHUNK]:
                    self._add(chunk, row, None)
                self._finish(chunk)
            for archive, members in archives.items():
                self._wait(self._streams)
                self._start(self._stream, archive, members)

    def _stream(self, archive: str, members: dict[str, list[int]]) -> None:
        """The photos of an archive, in its order.

        The one that is new in the archive and comes last is kept back until all others are there: only then is the
        part complete, whatever was repeated.
        """
        left, again = dict.fromkeys(members), dict[str, bytes | PhotoError]()
        last: tuple[str, bytes | PhotoError] | None = None
        chunk: _Open | None = None
        filled: list[threading.Event] = []

        def put(name: str, content: bytes | PhotoError) -> None:
            nonlocal chunk
            for row in members[name]:
                if chunk is not None and len(chunk.rows) == self._most:
                    self._finish(chunk)
                    chunk = None
                if chunk is None:
                    chunk = self._open()
                    filled.append(chunk.filled)
                self._add(chunk, row, content)

        reason = PhotoError('not in the tar')
        try:
            for name, content in self._fetcher.members(archive, members):
                if name not in left:
                    again[name] = content
                    continue
                del left[name]
                if last is not None:
                    put(*last)
                last = name, content
        except PhotoError as error:
            reason = error
        if again and chunk is not None:
            self._finish(chunk)
            chunk = None
            for event in filled:
                while not event.wait(_LOOK_S):
                    if self._stopped.is_set():
                        raise _Stopped
        if last is not None:
            last = last[0], again.pop(last[0], last[1])
        for name, content in again.items():
            put(name, content)
        for name in left:
            put(name, reason)
        if last is not None:
            put(*last)
        if chunk is not None:
            self._finish(chunk)
        self._streams.release()

    def _open(self) -> _Open:
        self._wait(self._room)
        with self._lock:
            self._busy += 1
        return _Open(self._most, self._size)

    def _add(self, chunk: _Open, row: int, content: bytes | PhotoError | None) -> None:
        """Let a photo be fetched, unless its content is there, and decoded."""
        with self._lock:
            chunk.pending += 1
        place = len(chunk.rows)
        chunk.rows.append(row)
        chunk.metadata.append((PhotoMetadata(), False))
        pool = self._fetching if content is None and is_remote(self._uris[row]) else self._decoding
        try:
            pool.submit(self._read, chunk, place, content)
        except RuntimeError:  # it was shut down
            raise _Stopped from None

    def _read(self, chunk: _Open, place: int, content: bytes | PhotoError | None) -> None:
        uri = self._uris[chunk.rows[place]]
        try:
            try:
                if content is None:
                    content = self._fetcher.fetch(uri)
                    if is_remote(uri):  # others wait for hosts; as many as there are workers decode
                        self._decoding.submit(self._read, chunk, place, content)
                        return
                if isinstance(content, PhotoError):
                    raise content
                most = self._remote.max_pixels if is_remote(uri) else MAX_PIXELS
                image, metadata = load_photo(content, 2 * self._size, most, exif=False)
                if max(image.size) > _LONGEST_STRIP * min(image.size):
                    raise PhotoError('a strip, not a photo')
                chunk.images[place] = self._clip.preprocess(image)
                chunk.metadata[place] = metadata, False
            except PhotoError as error:
                chunk.metadata[place] = PhotoMetadata(problem=str(error)), error.transient
        except BaseException as error:
            self._done.put(error)
            return
        self._finish(chunk)

    def _finish(self, chunk: _Open) -> None:
        """One photo of a chunk is done, or no more are added."""
        with self._lock:
            chunk.pending -= 1
            complete = not chunk.pending
        if complete:
            self._done.put(chunk)
            chunk.filled.set()
            self._end()


def _by_archive(uris: Sequence[str], rows: Rows) -> tuple[list[int], dict[str, dict[str, list[int]]]]:
    """Rows of plain photos, and those of archives by archive and member."""
    plain: list[int] = []
    archives: dict[str, dict[str, list[int]]] = {}
    for row in rows.tolist():
        uri = uris[row]
        try:
            archive, member = split_tar(uri) if uri.startswith('tar://') else ('', '')
        except PhotoError:
            archive = ''  # fetching it says the same
        if archive:
            archives.setdefault(archive, {}).setdefault(member, []).append(row)
        else:
            plain.append(row)
    return plain, archives


def metadata_table(metadata: Sequence[tuple[PhotoMetadata, bool]]) -> pd.DataFrame:
    """Columns of the bank's `photos.parquet`, for photos and whether their problem may pass."""
    return pd.DataFrame(
        {
            'width': pd.array([f.width for f, _ in metadata], dtype='Int32'),
            'height': pd.array([f.height for f, _ in metadata], dtype='Int32'),
            'digest': pd.array([f.digest for f, _ in metadata], dtype='string'),
            'dhash': pd.array([f.dhash for f, _ in metadata], dtype='UInt64'),
            'reason': pd.array([f.problem for f, _ in metadata], dtype='string'),
            'transient': np.array([transient for _, transient in metadata], dtype=bool),
        }
    )
