"""Embeddings of the images of a caption set, kept beside it.

    SET/features/MODEL/vectors.npy       float16 [N, D], by image; zero where one could not be read
    SET/features/MODEL/unreadable.json   row to reason
    SET/features/MODEL/features.json     `FeaturesMarker`; written last

MODEL is the begin of the model's digest. Until all are there, they are in parts, which a killed pass goes on from and
several processes share (`models/parts.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from grafalign.artefacts import Marker
from grafalign.captions import CaptionSet
from grafalign.captions.pictures import Pictures
from grafalign.errors import DamagedError, InputError, naming_full_disk
from grafalign.files import replacing, write_atomically
from grafalign.locks import exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.models.model import Vectors
from grafalign.models.parts import embed_in_parts, read_part
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import RemoteSettings
from grafalign.processes import Team

_BANDS = ('red', 'green', 'blue')
_MARKER = 'features.json'


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
    team: Team | None = None,
) -> ImageFeatures:
    """Embed all images of a set, or go on where an earlier pass stopped.

    Args:
        captions: the set; one of pictures.
        model: any model.
        workers: threads that decode.
        remote: how addresses are fetched.
        wanted: images to look at, [N]; all by default. The others have zeros.
        team: processes that share the images, all of which call this.

    Raises:
        GrafalignError: the images are gone, or no single one can be read.
    """
    some = '' if wanted is None else hashlib.blake2b(np.packbits(wanted).tobytes(), digest_size=4).hexdigest()
    folder = captions.path / 'features' / f'{model.digest[:12]}{"-" if some else ""}{some}'
    chosen = np.arange(len(captions)) if wanted is None else np.flatnonzero(wanted)
    marker = FeaturesMarker(
        format=FeaturesMarker.NEWEST,
        model=model.digest,
        images=captions.marker.files['images.parquet'],
        rows=len(captions),
    )
    team = team or Team()
    with naming_full_disk(folder), exclusive(folder, team.first):
        team.agree(folder, f'features {folder.name} of {marker.images}')
        there = (folder / _MARKER).is_file() and FeaturesMarker.read(folder / _MARKER) == marker
        if team.exchange(there)[0]:
            return _open(folder, len(captions))
        if team.first:
            (folder / _MARKER).unlink(missing_ok=True)
        _embed(captions, model, folder, workers, remote, chosen, team)
        features = _open(folder, len(captions))
        if len(features.unreadable) == len(chosen) > 0:
            reason = next(iter(features.unreadable.values()))
            raise InputError(f'No image of {captions.path} can be read ({reason}); look at where they lie.')
        if team.first:
            marker.write(folder / _MARKER)
            for parts in folder.glob('parts-*'):
                shutil.rmtree(parts)
        return features


def _open(folder: Path, count: int) -> ImageFeatures:
    try:
        vectors = np.load(folder / 'vectors.npy', mmap_mode='r')
        unreadable = json.loads((folder / 'unreadable.json').read_text())
        if len(vectors) != count:
            raise ValueError(f'{len(vectors)} rows for {count} images')
    except (OSError, ValueError) as error:
        raise DamagedError(f'{folder} is damaged ({error}); {FeaturesMarker.REMEDY}.') from None
    return ImageFeatures(vectors, {int(row): reason for row, reason in unreadable.items()})


def _embed(
    captions: CaptionSet,
    model: Model,
    folder: Path,
    workers: int | None,
    remote: RemoteSettings | None,
    chosen: npt.NDArray[np.int64],
    team: Team,
) -> None:
    """Embed some images by all processes; the first one puts the vectors together."""
    pictures = Pictures(captions, remote)
    smallest = 2 * model.preprocessing.size_px
    width = model.embed_texts(['a place']).shape[1]
    images = captions.marker.files['images.parquet']

    def read(at: int) -> npt.NDArray[np.uint8]:
        try:
            image = pictures.read(int(chosen[at]), smallest)
        except PhotoError as error:
            raise InputError(str(error)) from None
        return np.asarray(image).transpose(2, 0, 1)

    def embed(some: range, reject: Callable[[int, str], None]) -> Iterator[tuple[list[int], Vectors]]:
        return embed_pictures(
            model, read, some, _BANDS, (0.0, 255.0), label='embedding images', workers=workers, reject=reject
        )

    parts = embed_in_parts(folder / f'parts-{images[:12]}', len(chosen), width, embed, team)
    pictures.close()

    def join() -> None:
        unreadable: dict[int, str] = {}
        with replacing(folder / 'vectors.npy', sync=False) as path:
            shape = (len(captions), width)
            vectors: Any = np.lib.format.open_memmap(path, mode='w+', dtype=np.float16, shape=shape)
            for part in parts:
                rows, embeddings, rejected = read_part(part)
                vectors[chosen[rows]] = embeddings
                unreadable |= {int(chosen[row]): reason for row, reason in rejected.items()}
            vectors.flush()
        write_atomically(folder / 'unreadable.json', json.dumps(unreadable).encode())

    team.alone(join)
