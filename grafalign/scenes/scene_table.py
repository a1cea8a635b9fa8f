"""Many scenes: what is asked of all of them as columns in memory, the item of each on disk until it is asked for.

An item of Sentinel-2 takes 50 to 80 kB as Python objects. A recipe for the whole Earth has a million candidates, of
which choosing needs the time, the clouds and the outline; an item is opened when something is cut from its scene. Many
scenes share an outline (a sheet of a grid on many dates), so each is kept once.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from grafalign.files import Place, write_atomically, writing
from grafalign.scenes.item_file import ItemFile, Items
from grafalign.scenes.scene import Scene

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_SCENES_AT_ONCE = 4_096
"""Scenes that are Python objects at one time while a table is made."""
_COLUMNS = pa.schema(
    [
        ('collection', pa.string()),
        ('when_us', pa.int64()),
        ('item_id', pa.string()),
        ('cloud_percent', pa.float64()),
        ('baseline', pa.string()),
        ('outline', pa.binary()),
        ('place', pa.int64()),
    ]
)
_REPEATING = ('collection', 'baseline', 'outline')
"""Columns that are kept as numbers of their distinct values."""


@dataclass(frozen=True)
class SceneTable(Sequence[Scene]):
    """Scenes by number, sorted by collection, time and id; `len(table)`, `table[3]` and loops make `Scene` objects.

    Example:
        >>> from grafalign.scenes.scene import scene_of
        >>> item = {'id': 'a', 'geometry': {'type': 'Point', 'coordinates': [1, 2]}, 'assets': {}}
        >>> table = scene_table([scene_of({**item, 'properties': {'datetime': '2021-07-01T10:00:00Z'}})])
        >>> len(table), table[0].item_id, table.cloud_percent
        (1, 'a', array([nan]))
    """

    columns: pa.Table
    """One row a scene: collection, when_us (microseconds since 1970), item_id, cloud_percent, baseline, outline (WKB,
    degrees), and place (of its item in the file)."""
    items: ItemFile

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        row = {name: self.columns[name][number].as_py() for name in self.columns.column_names}
        return Scene(
            row['item_id'],
            row['collection'],
            _EPOCH + row['when_us'] * _MICROSECOND,
            None if math.isnan(row['cloud_percent']) else row['cloud_percent'],
            row['baseline'],
            shapely.from_wkb(row['outline']),
            self.items.read(row['place']),
        )

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(len(self)))

    def items_of(self, names: Container[tuple[str, str]]) -> Items:
        """The items of the scenes with some names (collection, id)."""
        columns = self.columns.select(['collection', 'item_id', 'place'])
        rows = (tuple(row.values()) for batch in columns.to_batches(_SCENES_AT_ONCE) for row in batch.to_pylist())
        return Items(self.items.read, [place for collection, item_id, place in rows if (collection, item_id) in names])

    @property
    def when_us(self) -> Ints:
        """Microseconds since 1970, [N]."""
        return self.columns['when_us'].to_numpy()

    @property
    def cloud_percent(self) -> Floats:
        """NaN where a scene does not say, [N]."""
        return self.columns['cloud_percent'].to_numpy()

    @property
    def day_number(self) -> Ints:
        """The same number for scenes of the same collection and day (UTC), [N]."""
        collection = self._distinct('collection').indices.to_numpy().astype(np.int64)
        day = self.when_us // (86_400 * 1_000_000)
        return np.unique(np.stack([collection, day]), axis=1, return_inverse=True)[1].reshape(-1)

    @property
    def outline_number(self) -> Ints:
        """Which of the distinct outlines each scene has, [N]."""
        return self._distinct('outline').indices.to_numpy().astype(np.int64)

    def outlines(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.object_]:
        """The distinct outlines from one number up to another, as geometries in degrees."""
        return _geometries(self._distinct('outline').dictionary[start:stop])

    def pick_outlines(self, numbers: Ints) -> npt.NDArray[np.object_]:
        """Some of the distinct outlines."""
        return _geometries(self._distinct('outline').dictionary.take(pa.array(numbers)))

    def write(self, table: Place, items: Place) -> None:
        """Keep the scenes in two files; `table` is written last."""
        with writing(items) as sink:
            self.items.copy_to(sink)
        buffer = io.BytesIO()
        pq.write_table(self.columns, buffer, compression='zstd')
        write_atomically(table, buffer.getvalue())

    @classmethod
    def read(cls, table: Place, items: Place) -> SceneTable:
        """Scenes that `write` kept."""
        columns = pq.read_table(io.BytesIO(table.read_bytes()), read_dictionary=list(_REPEATING))
        return cls(_joined([columns]), ItemFile(items))

    def _distinct(self, name: str) -> pa.DictionaryArray:
        return self.columns[name].chunk(0)


def scene_table(scenes: Iterable[Scene]) -> SceneTable:
    """Put the items of scenes on disk as they come, and make the table, sorted by collection, time and id."""
    file, source = ItemFile(), iter(scenes)
    parts = [_columns((), file)]
    while some := list(itertools.islice(source, _SCENES_AT_ONCE)):
        parts.append(_columns(some, file))
    columns = _joined(parts)
    keys = columns.select(['when_us', 'item_id']).append_column('collection', columns['collection'].cast(pa.string()))
    # texts compare by their UTF-8 bytes, in which they have the order of Python's str
    order = pc.sort_indices(keys, [(name, 'ascending') for name in ('collection', 'when_us', 'item_id')])
    return SceneTable(_joined([columns.take(order)]), file)


def _columns(scenes: Sequence[Scene], file: ItemFile) -> pa.Table:
    """The columns of some scenes, whose items are written."""
    rows = [
        {
            'collection': scene.collection,
            'when_us': (scene.when - _EPOCH) // _MICROSECOND,
            'item_id': scene.item_id,
            'cloud_percent': math.nan if scene.cloud_percent is None else scene.cloud_percent,
            'baseline': scene.baseline,
            'outline': shapely.to_wkb(scene.footprint),
            'place': file.add(scene.item),
        }
        for scene in scenes
    ]
    table = pa.Table.from_pylist(rows, _COLUMNS)
    for name in _REPEATING:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
    return table


def _geometries(wkb: pa.BinaryArray) -> npt.NDArray[np.object_]:
    shapes: npt.NDArray[np.object_] = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False))
    return shapes


def _joined(parts: list[pa.Table]) -> pa.Table:
    """Parts as one table in one chunk, whose repeating columns number their distinct values once."""
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()
