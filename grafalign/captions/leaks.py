"""The report of copies: which images of a caption set are in it twice, and which are in a set that tests are made on.

    SET/leaks/pairs.parquet   a row a pair; see `PAIRS`
    SET/leaks/leaks.json      `LeaksMarker`: what was compared; written last
    SET/leaks/page.html       the pairs as pictures

`grafalign.curation.copies` makes it. Training reads it: a set that leaks into what it will be tested on is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grafalign.artefacts import Marker
from grafalign.captions.caption_set import CaptionSet
from grafalign.errors import DamagedError, InputError, StaleError

PAIRS = pa.schema(
    [
        ('image', pa.int64()),  # row in images.parquet
        ('image_id', pa.string()),
        ('against', pa.string()),  # name of the other set; none for copies inside this one
        ('other', pa.int64()),  # row there
        ('other_id', pa.string()),
        ('how', pa.string()),  # bytes, picture or embedding
        ('correlation', pa.float64()),  # of thumbnails' slopes, for picture; cosine, for embedding
    ]
)


class LeaksMarker(Marker):
    """`leaks.json`."""

    REMEDY: ClassVar[str] = 'run `grafalign captions leaks` again'

    format: int
    images: str
    """Digest of the images' table."""
    against: dict[str, str]
    """Digest of each other set that was compared, by its name."""
    closer_than: float | None = None
    """Cosine from which on two images were taken for near copies; none if embeddings were not compared."""


def leaks_folder(captions: CaptionSet) -> Path:
    """Where the report of a set is."""
    return captions.path / 'leaks'


def leaking_rows(captions: CaptionSet, name: str) -> npt.NDArray[np.int64]:
    """Rows of the images of a set that are also in another one.

    Args:
        captions: the set.
        name: what the report calls the other set.

    Raises:
        GrafalignError: they were not compared, or the set has changed since.
    """
    folder = leaks_folder(captions)
    remedy = f'run `grafalign captions leaks {captions.path} --against {name}=...` first'
    if not (folder / 'leaks.json').is_file():
        raise InputError(f'{captions.path} was not compared with {name}; {remedy}.')
    marker = LeaksMarker.read(folder / 'leaks.json')
    if marker.images != captions.marker.files['images.parquet']:
        raise StaleError(f'{captions.path} has changed since it was compared with {name}; {remedy}.')
    if name not in marker.against:
        compared = ', '.join(marker.against) or 'nothing'
        raise InputError(f'{captions.path} was compared with {compared}, not with {name}; {remedy}.')
    try:
        table = pq.read_table(folder / 'pairs.parquet')
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f'{folder}/pairs.parquet cannot be read ({error}); {LeaksMarker.REMEDY}.') from None
    mine = table.filter(pc.equal(table['against'], name))
    return np.unique(mine['image'].to_numpy())
