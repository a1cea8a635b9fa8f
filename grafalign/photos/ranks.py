"""The fixed pseudo-random order of photos: who comes first where only some can be kept."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_CHUNK = 1 << 18


def keyed_hashes(photo_ids: Any, seed: int) -> npt.NDArray[np.uint64]:
    """A keyed BLAKE2b hash of every id, which depends on the id and the seed alone.

    Compared as numbers they order as the eight bytes of `hashlib.blake2b(id, digest_size=8, key=seed)` do.

    Args:
        photo_ids: Arrow or pandas strings, or a list of str.
        seed: signed 64-bit key.
    """
    # without a type: with one, texts of pandas would be taken out as Python objects and put in again
    ids = photo_ids if isinstance(photo_ids, pa.Array | pa.ChunkedArray) else pa.array(photo_ids)
    if not isinstance(ids, pa.ChunkedArray):
        ids = pa.chunked_array([ids])
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, 'little', signed=True))
    found = np.empty(len(ids), dtype='>u8')
    for start in range(0, len(ids), _CHUNK):  # never all ids as Python objects
        digests = bytearray()
        part = ids.slice(start, _CHUNK).to_pylist()
        for photo_id in part:
            one = keyed.copy()
            one.update(photo_id.encode())
            digests += one.digest()
        found[start : start + len(part)] = np.frombuffer(digests, dtype='>u8')
    return found.astype(np.uint64)


def visiting_order(photo_ids: Any, seed: int) -> npt.NDArray[Any]:
    """Row numbers of photos by `keyed_hashes`, ties by id: the order in which they are visited.

    Numbers of 32 bits where they suffice: a hundred million photos take 0.4 GB.
    """
    hashes = keyed_hashes(photo_ids, seed)
    order = np.argsort(hashes, kind='stable')
    in_order = hashes[order]
    if (in_order[1:] == in_order[:-1]).any():  # two of 10 million ids share a hash once in 100,000 tables
        ids = np.array([str(i) for i in photo_ids], dtype=object)
        order = np.lexsort((ids, hashes))
    return order.astype(np.min_scalar_type(-max(len(order), 2**30)))


def ranks(photo_ids: Any, seed: int) -> npt.NDArray[np.int64]:
    """The rank of every photo in the `visiting_order`; the lowest comes first."""
    order = visiting_order(photo_ids, seed)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank
