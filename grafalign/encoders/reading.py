"""From photos to CLIP's input: fetched, decoded and prepared some chunks ahead, and then forgotten.

Photos of this machine are decoded by as many threads as there are workers. Where photos lie elsewhere more threads wait
for hosts, but no more than `workers` decode at a time. In memory are at most `AHEAD_BYTES` of prepared chunks (always
two), and beside them `workers` decoded photos and the files of those that are on their way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from grafalign import engine
from grafalign.encoders.clip import FrozenClip
from grafalign.photos.exif import MAX_PIXELS, PhotoError, PhotoMetadata, load_photo
from grafalign.photos.fetch import Fetcher, RemoteSettings, is_remote

AHEAD_BYTES = 600_000_000
"""Prepared chunks that wait for CLIP; eight chunks of 128 photos at 224 px."""
_MOST_AHEAD = 16
_LONGEST_STRIP = 40
"""Sides of a photo differ less than this; CLIP's preprocessing would enlarge a hair of one pixel to gigabytes."""


@dataclass(frozen=True)
class Chunk:
    """N photos that go through CLIP together."""

    images: Tensor
    """Preprocessed, [N, 3, H, W]; zero where a photo has a problem."""
    metadata: pd.DataFrame
    """What `metadata_table` makes of them."""


def read_chunks(
    uris: Sequence[str],
    clip: FrozenClip,
    remote: RemoteSettings,
    chunks: list[npt.NDArray[np.int64]],
    workers: int | None,
) -> Iterator[tuple[int, Chunk]]:
    """Read photos chunk by chunk; yields `(number of the chunk, its photos)` as each is complete, in any order.

    Args:
        uris: of all photos.
        clip: gives the preprocessing.
        remote: how to fetch what is not on this machine.
        chunks: rows of `uris` of each chunk.
        workers: threads that decode; the number of cores by default.

    Raises:
        GrafalignError: a package for this kind of uri is not installed.
    """
    workers = workers or engine.default_workers()
    size = clip.image_px
    longest = max(map(len, chunks), default=1)
    ahead = max(2, min(_MOST_AHEAD, AHEAD_BYTES // (longest * 3 * size * size * 4)))
    elsewhere = any(is_remote(uris[row]) for rows in chunks for row in rows)
    pool = ThreadPoolExecutor(max(workers, remote.connections if elsewhere else 0), thread_name_prefix='photos')
    decoding, lock = threading.BoundedSemaphore(workers), threading.Lock()
    images: dict[int, Tensor] = {}
    metadata: dict[int, list[tuple[PhotoMetadata, bool]]] = {}
    left: dict[int, int] = {}
    done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def read(chunk: int, place: int, uri: str) -> None:
        try:
            here = images[chunk]
            try:
                content = fetcher.fetch(uri)
                with decoding:
                    most = remote.max_pixels if is_remote(uri) else MAX_PIXELS
                    image, known = load_photo(content, 2 * size, most, exif=False)
                    if max(image.size) > _LONGEST_STRIP * min(image.size):
                        raise PhotoError('a strip, not a photo')
                    here[place] = clip.preprocess(image)
                metadata[chunk][place] = known, False
            except PhotoError as error:
                metadata[chunk][place] = PhotoMetadata(problem=str(error)), error.transient
        except BaseException as error:
            done.put(error)
            return
        with lock:
            left[chunk] -= 1
            last = not left[chunk]
        if last:
            done.put(chunk)

    def begin(chunk: int) -> None:
        rows = chunks[chunk]
        images[chunk] = torch.zeros(len(rows), 3, size, size)
        metadata[chunk] = [(PhotoMetadata(), False)] * len(rows)
        left[chunk] = len(rows)
        for place, row in enumerate(rows):
            pool.submit(read, chunk, place, uris[row])

    fetcher = Fetcher(remote)
    try:
        begun = 0
        for _ in chunks:
            while begun < len(chunks) and len(images) < ahead:
                begin(begun)
                begun += 1
            which = done.get()
            if isinstance(which, BaseException):
                raise which
            yield which, Chunk(images.pop(which), metadata_table(metadata.pop(which)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a thread that waits for a host must not hold up Ctrl-C
        fetcher.close()


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
