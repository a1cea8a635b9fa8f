"""Embeddings of the images of a caption set, kept beside it.

    SET/features/MODEL/vectors.npy       float16 [N, D], by image; zero where one could not be read
    SET/features/MODEL/unreadable.json   row to reason
    SET/features/MODEL/features.json     `FeaturesMarker`; written last

MODEL is the begin of the model's digest. A killed pass goes on at its last block.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from grafalign.artefacts import Marker
from grafalign.captions import CaptionSet
from grafalign.captions.pictures import Pictures
from grafalign.errors import DamagedError, InputError, naming_full_disk
from grafalign.files import write_atomically
from grafalign.locks import exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import RemoteSettings

_BLOCK = 1 << 13
_BANDS = ('red', 'green', 'blue')
_MARKER, _PROGRESS = 'features.json', 'progress.json'


class FeaturesMarker(Marker):
    """`features.json`."""

    REMEDY: ClassVar[str] = 'delete its folder and run the same command again'

    format: int
    model: str
    """Digest of the model."""
    images: str
    """Digest of images.parquet."""
    rows: int


@dataclass(frozen=True)
class ImageFeatures:
    """What is known of the looks of N images."""

    vectors: npt.NDArray[np.float16]
    """[N, D], memory-mapped."""
    unreadable: dict[int, str]
    """Row to reason."""


def image_features(
    captions: CaptionSet,
    model: Model,
    workers: int | None = None,
    remote: RemoteSettings | None = None,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> ImageFeatures:
    """Embed all images of a set, or go on where an earlier pass stopped.

    Args:
        captions: the set; one of pictures.
        model: any model.
        workers: threads that decode.
        remote: how addresses are fetched.
        wanted: images to look at, [N]; all by default. The others have zeros.

    Raises:
        GrafalignError: the images are gone, or no single one can be read.
    """
    some = '' if wanted is None else hashlib.blake2b(np.packbits(wanted).tobytes(), digest_size=4).hexdigest()
    folder = captions.path / 'features' / f'{model.digest[:12]}{"-" if some else ""}{some}'
    count = len(captions)
    marker = FeaturesMarker(
        format=FeaturesMarker.NEWEST, model=model.digest, images=captions.marker.files['images.parquet'], rows=count
    )
    with naming_full_disk(folder), exclusive(folder):
        if (folder / _MARKER).is_file() and FeaturesMarker.read(folder / _MARKER) == marker:
            return _open(folder, count)
        (folder / _MARKER).unlink(missing_ok=True)
        _compute(captions, model, folder, marker, workers, remote, wanted)
        found = _open(folder, count)
        if found.unreadable and len(found.unreadable) == (count if wanted is None else int(wanted.sum())):
            reason = next(iter(found.unreadable.values()))
            raise InputError(f'No image of {captions.path} can be read ({reason}); look at where they lie.')
        marker.write(folder / _MARKER)
        (folder / _PROGRESS).unlink(missing_ok=True)
        return found


def _open(folder: Path, count: int) -> ImageFeatures:
    try:
        vectors = np.load(folder / 'vectors.npy', mmap_mode='r')
        unreadable = json.loads((folder / 'unreadable.json').read_text())
        if len(vectors) != count:
            raise ValueError(f'{len(vectors)} rows for {count} images')
    except (OSError, ValueError) as error:
        raise DamagedError(f'{folder} is damaged ({error}); {FeaturesMarker.REMEDY}.') from None
    return ImageFeatures(vectors, {int(row): reason for row, reason in unreadable.items()})


def _compute(
    captions: CaptionSet,
    model: Model,
    folder: Path,
    marker: FeaturesMarker,
    workers: int | None,
    remote: RemoteSettings | None,
    wanted: npt.NDArray[np.bool_] | None,
) -> None:
    count = len(captions)
    noted: dict[str, Any] = {}
    if (folder / _PROGRESS).is_file():
        noted = json.loads((folder / _PROGRESS).read_text())
    if noted.get('of') != marker.model_dump() or not (folder / 'vectors.npy').is_file():
        noted = {'of': marker.model_dump(), 'done': 0, 'unreadable': {}}
    vectors: Any = np.load(folder / 'vectors.npy', mmap_mode='r+') if noted['done'] else None
    pictures = Pictures(captions, remote)
    smallest = 2 * model.preprocessing.size_px

    def read(row: int) -> npt.NDArray[np.uint8]:
        try:
            image = pictures.read(row, smallest)
        except PhotoError as error:
            raise InputError(str(error)) from None
        return np.asarray(image).transpose(2, 0, 1)

    unreadable: dict[str, str] = noted['unreadable']
    for first in range(noted['done'], count, _BLOCK):
        rows = range(first, min(first + _BLOCK, count))
        chosen = rows if wanted is None else [row for row in rows if wanted[row]]
        for some, found in embed_pictures(
            model,
            read,
            chosen,
            _BANDS,
            (0.0, 255.0),
            label=f'embedding images {first:,} to {rows.stop:,} of {count:,}',
            workers=workers,
            reject=lambda row, reason: unreadable.__setitem__(str(row), reason),
        ):
            if vectors is None:
                vectors = np.lib.format.open_memmap(
                    folder / 'vectors.npy', mode='w+', dtype=np.float16, shape=(count, found.shape[1])
                )
            vectors[some] = found
        if vectors is not None:
            vectors.flush()
            noted |= {'done': rows.stop, 'unreadable': unreadable}
            write_atomically(folder / _PROGRESS, json.dumps(noted).encode())
    pictures.close()
    if vectors is None:
        np.lib.format.open_memmap(folder / 'vectors.npy', mode='w+', dtype=np.float16, shape=(count, 1))
    write_atomically(folder / 'unreadable.json', json.dumps(unreadable).encode())
