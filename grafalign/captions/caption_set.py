"""The caption set: which texts go with which images, in tables; the images stay where they are.

    images.parquet     one row an image, in the order of the source; see `IMAGES`
    captions.parquet   one row a caption, by image; see `CAPTIONS`
    rejected.parquet   kind (image, caption), id, reason, detail of what was not taken
    dataset.json       `CaptionSetMarker`: where the images lie, counts, digests; written last

An image is a file, a stretch of a tar archive (`byte_offset`, `nbytes`), an address, or a tile of a pair store. With
the byte offset one read fetches a member of a shard, and a million images need no second copy.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grafalign.artefacts import Marker
from grafalign.errors import DamagedError, InputError
from grafalign.files import changed_files
from grafalign.locks import refuse_other_files
from grafalign.store_marker import InputStamp

MARKER = 'dataset.json'
OWN_NAMES = (
    MARKER,
    *(f'{name}.parquet' for name in ('images', 'captions', 'rejected')),
    'page.html',
    *('bank', 'features', 'hashes', 'leaks'),
)
"""What may lie in a set's folder: its tables, a page, and what is made of it."""
IMAGES = pa.schema(
    [
        ('image_id', pa.string()),
        ('file', pa.string()),  # below the marker's `root`, or absolute, or an address; none for a tile of a store
        ('byte_offset', pa.int64()),  # of a member of a tar; none for a whole file
        ('nbytes', pa.int64()),
        ('digest', pa.string()),  # BLAKE2b-128 of the image's bytes; none for an address that was not fetched
        ('width', pa.int32()),
        ('height', pa.int32()),
        ('split', pa.string()),
        ('label', pa.string()),  # the class, where the source names one
        ('url', pa.string()),  # where it was downloaded from
        ('licence', pa.string()),
        ('author', pa.string()),
        ('lon', pa.float64()),
        ('lat', pa.float64()),
        ('gsd_m', pa.float64()),
        ('scores', pa.map_(pa.string(), pa.float64())),  # what filters said of it
    ]
)
"""Columns of `images.parquet`."""
CAPTIONS = pa.schema(
    [
        ('image', pa.int64()),  # row in images.parquet
        ('image_id', pa.string()),
        ('text', pa.string()),
        ('kind', pa.string()),  # alt, template, model or human
        ('writer', pa.string()),  # who wrote it: a model's name, or a template's
        ('writer_digest', pa.string()),  # of prompt and model
        ('evidence', pa.list_(pa.string())),  # ids of the landmarks that it rests on
        ('checks', pa.list_(pa.string())),  # what was done to it: how it was decoded, what a check found
    ]
)
"""Columns of `captions.parquet`."""
REJECTED = pa.schema([('kind', pa.string()), ('id', pa.string()), ('reason', pa.string()), ('detail', pa.string())])
"""Columns of `rejected.parquet`."""
_NEEDED = ('image_id', 'file', 'split', 'image', 'text', 'kind', 'id', 'reason')
"""Columns without which a table is damaged; others may be missing where another tool wrote it."""
_REPEATED = ['file', 'split', 'label', 'licence', 'author', 'text', 'kind', 'writer', 'writer_digest', 'reason']
"""Columns whose texts come again and again: each is kept once."""
KINDS = ('alt', 'template', 'model', 'human')
SPLITS = ('train', 'val', 'test')


class CaptionSetMarker(Marker):
    """`dataset.json`."""

    REMEDY: ClassVar[str] = 'import it again into an empty folder'

    format: int
    root: str | None = None
    """Folder or URL that files lie below; none where the images are tiles."""
    store: str | None = None
    """The pair store whose tiles the images are."""
    store_digest: str | None = None
    images: int
    captions: int
    distinct_captions: int
    rejected: int
    reasons: dict[str, int]
    """How many images and captions were not taken, by reason."""
    splits: dict[str, int]
    """Images of each split."""
    kinds: dict[str, int]
    """Captions of each kind."""
    inputs: tuple[InputStamp, ...] = ()
    """Local files that it was read from."""
    settings: dict[str, Any] = {}
    """What it was asked for."""
    versions: dict[str, str] = {}
    files: dict[str, str]
    """Tables, each with its digest."""
    digest: str
    """One for all of them."""


class CaptionSet:
    """A finished caption set.

    Args:
        path: its folder.

    Raises:
        GrafalignError: there is none, it is damaged, or of another release.

    Example:
        >>> texts = CaptionSet('sets/web').captions['text']  # doctest: +SKIP
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not is_caption_set(self.path):
            raise InputError(
                f'{self.path} is no finished caption set (no captions.parquet or no {MARKER}); make one with '
                '`grafalign captions import`.'
            )
        self.marker = CaptionSetMarker.read(self.path / MARKER)

    @property
    def digest(self) -> str:
        """One digest for all the content."""
        return self.marker.digest

    def __len__(self) -> int:
        """Images."""
        return self.marker.images

    @cached_property
    def images(self) -> pa.Table:
        """`images.parquet`; texts that repeat, such as a shard's name, are kept once."""
        return self._table('images', IMAGES)

    def columns_of_images(self, *names: str) -> pa.Table:
        """Some columns of `images.parquet`, which are not kept: a set of millions has much more than most need."""
        return self._table('images', IMAGES, list(names))

    @cached_property
    def captions(self) -> pa.Table:
        """`captions.parquet`, sorted by image."""
        table = self._table('captions', CAPTIONS)
        image = table['image'].to_numpy()
        if len(image) and not (image.min() >= 0 and image.max() < self.marker.images):
            raise DamagedError(
                f'{self.path}/captions.parquet names images that are not there; {CaptionSetMarker.REMEDY}.'
            )
        if (image[1:] < image[:-1]).any():  # images that came in several rows of a table
            table = table.take(pa.array(np.argsort(image, kind='stable')))
        return table

    @cached_property
    def rejected(self) -> pa.Table:
        """`rejected.parquet`."""
        return self._table('rejected', REJECTED)

    @cached_property
    def image_of_caption(self) -> npt.NDArray[np.int64]:
        """Row of each caption's image, in the order of the file, which is that of the text bank, [C]."""
        path = self.path / 'captions.parquet'
        try:
            return pq.read_table(path, columns=['image'])['image'].to_numpy()
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(f'{path} cannot be read ({error}); {CaptionSetMarker.REMEDY}.') from None

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """Rows of the images of a split."""
        splits = self.columns_of_images('split')['split']
        return np.flatnonzero(pc.equal(splits.cast(pa.string()), split).to_numpy())

    def problems(self) -> tuple[str, ...]:
        """What is wrong with its tables, compared with the digests that they were written with."""
        return changed_files(self.path, self.marker.files)

    def _table(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        path = self.path / f'{name}.parquet'
        try:
            there = pq.read_schema(path).names
            chosen = None if columns is None else [c for c in columns if c in there]
            table = pq.read_table(path, columns=chosen, read_dictionary=_REPEATED)
        except (OSError, pa.ArrowException) as error:
            reason = ' '.join(str(error).split())[:200]
            raise DamagedError(f'{path} cannot be read ({reason}); {CaptionSetMarker.REMEDY}.') from None
        for field in schema:
            if field.name in table.column_names or (columns is not None and field.name not in columns):
                continue
            if field.name in _NEEDED:
                raise DamagedError(f'{path} has no column {field.name}; {CaptionSetMarker.REMEDY}.')
            table = table.append_column(field, pa.nulls(len(table), field.type))
        expected = {'images': self.marker.images, 'captions': self.marker.captions}.get(name, len(table))
        if len(table) != expected:
            raise DamagedError(f'{path} has {len(table):,} rows instead of {expected:,}; {CaptionSetMarker.REMEDY}.')
        return table


def check_folder(out: Path, origin: Path, *more: str) -> None:
    """Refuse to write a set over something else.

    Args:
        out: folder of the set to be.
        origin: the source or set that it is made from.
        more: names of further files that may lie in the folder.

    Raises:
        GrafalignError: it holds other files, a set of another origin, or the origin itself.
    """
    refuse_other_files(out, (*OWN_NAMES, *more), 'the caption set')
    if out.resolve() == origin.resolve():
        raise InputError(f'{out} is what the set is made from; give a new folder for it.')
    if is_caption_set(out):
        settings = CaptionSet(out).marker.settings
        there = settings.get('source') or settings.get('from', {}).get('set')
        if there is not None and there != str(origin.resolve()):
            raise InputError(f'{out} holds a caption set of {there}; give another folder, or delete that one.')


def is_caption_set(path: Path | str) -> bool:
    """Whether a folder is a finished caption set."""
    return all((Path(path) / name).is_file() for name in (MARKER, 'captions.parquet'))
