"""The hashes of all images of a caption set, kept beside it.

SET/hashes/hashes.npy        uint64 [N, 8], see `hashes.py`; zero where an image could not be read
SET/hashes/unreadable.json   row to reason
SET/hashes/hashes.json       `HashesMarker`; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grafalign import console, engine
from grafalign.artefacts import Marker
from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.hashes import Hashes, symmetric_hashes
from grafalign.captions.pictures import Pictures
from grafalign.errors import DamagedError, naming_full_disk
from grafalign.files import replacing, write_atomically
from grafalign.locks import exclusive
from grafalign.photos.exif import PhotoError

_CHUNK = 512
_LOOK_PX = 144
"""Pictures may be decoded at a reduced scale of at least this: their hash needs 72 px."""


class HashesMarker(Marker):
    """`hashes.json`."""

    REMEDY: ClassVar[str] = 'delete its folder and run the same command again'

    format: int
    images: str
    """Digest of images.parquet."""


@dataclass(frozen=True)
class SetHashes:
    """Hashes of N images."""

    hashes: Hashes
    """[N, 8], memory-mapped."""
    unreadable: dict[int, str]
    """Row to reason."""


def set_hashes(captions: CaptionSet, workers: int | None = None) -> SetHashes:
    """Hash all images of a set, or open what an earlier pass made.

    Args:
        captions: the set; one of pictures.
        workers: threads that decode.

    Raises:
        GrafalignError: the images are gone.
    """
    folder = captions.path / 'hashes'
    marker = HashesMarker(format=HashesMarker.NEWEST, images=captions.marker.files['images.parquet'])
    if not (folder / 'hashes.json').is_file() or HashesMarker.read(folder / 'hashes.json') != marker:
        pictures = Pictures(captions)
        hashes = np.zeros((len(captions), 8), dtype=np.uint64)
        unreadable: dict[int, str] = {}

        def look(row: int) -> None:
            try:
                hashes[row] = symmetric_hashes(pictures.read(row, _LOOK_PX))
            except PhotoError as error:
                unreadable[row] = str(error)

        with (
            ThreadPoolExecutor(workers or engine.default_workers(), thread_name_prefix='images') as pool,
            console.progress('hashing images', len(captions)) as bar,
        ):
            for first in range(0, len(captions), _CHUNK):
                rows = range(first, min(first + _CHUNK, len(captions)))
                before = len(unreadable)
                list(pool.map(look, rows))
                bar.advance(len(rows), rejected=len(unreadable) - before)
        pictures.close()
        save_hashes(captions, hashes, unreadable)
    try:
        kept = np.load(folder / 'hashes.npy', mmap_mode='r')
        reasons = json.loads((folder / 'unreadable.json').read_text())
        if kept.shape != (len(captions), 8):
            raise ValueError(f'{len(kept)} rows for {len(captions)} images')
    except (OSError, ValueError) as error:
        raise DamagedError(f'{folder} is damaged ({error}); {HashesMarker.REMEDY}.') from None
    return SetHashes(kept, {int(row): reason for row, reason in reasons.items()})


def save_hashes(captions: CaptionSet, hashes: Hashes, unreadable: Mapping[int, str]) -> None:
    """Keep the hashes that a pass over all images of a set made.

    Args:
        captions: the set.
        hashes: [N, 8].
        unreadable: row to reason.
    """
    folder = captions.path / 'hashes'
    with naming_full_disk(folder), exclusive(folder):
        (folder / 'hashes.json').unlink(missing_ok=True)
        with replacing(folder / 'hashes.npy') as part, part.open('wb') as file:
            np.save(file, hashes)
        write_atomically(folder / 'unreadable.json', json.dumps({str(k): v for k, v in unreadable.items()}).encode())
        marker = HashesMarker(format=HashesMarker.NEWEST, images=captions.marker.files['images.parquet'])
        marker.write(folder / 'hashes.json')
