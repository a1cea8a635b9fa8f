"""Objects by image, on disk: a large map has more objects than memory, and comes in no order of places."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from grafalign.captions.landmarks.kinds import Kind
from grafalign.captions.landmarks.objects import MapObject

_BATCH = 1 << 15
_SCHEMA = pa.schema(
    [
        ('image', pa.int64()),
        ('object_id', pa.string()),
        ('kind', pa.int32()),
        ('name', pa.string()),
        ('geometry', pa.binary()),
        ('hidden', pa.string()),
        ('since', pa.date32()),
        ('licence', pa.string()),
        ('credit', pa.string()),
    ]
)


class Spill:
    """Takes objects in as they come and gives them back image by image.

    Memory is eight bytes an object and image, and one batch. Used as a context; the file goes with it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[Any, ...]] = []
        self._kinds: dict[Kind, int] = {}

    def __enter__(self) -> Spill:
        self._writer = pa.ipc.new_file(str(self._path), _SCHEMA)
        return self

    def add(self, one: MapObject, images: Sequence[int]) -> None:
        """Take in an object that touches some images."""
        kind = self._kinds.setdefault(one.kind, len(self._kinds))
        columns = (
            one.object_id,
            kind,
            one.name,
            shapely.to_wkb(one.geometry),
            one.hidden,
            one.since,
            one.licence,
            one.credit,
        )
        self._rows += [(image, *columns) for image in images]
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_SCHEMA)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        self._rows = []

    def by_image(self, count: int) -> Generator[list[MapObject], None, None]:
        """The objects of images 0 to `count` - 1, in the order they came."""
        self._flush()
        self._writer.close()
        kinds = list(self._kinds)
        with pa.memory_map(str(self._path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            image = np.concatenate([b['image'].to_numpy() for b in batches])
            first = np.cumsum([0, *(len(b) for b in batches)])
            order = np.argsort(image, kind='stable')
            bounds = np.searchsorted(image[order], np.arange(count + 1))
            for number in range(count):
                rows = order[bounds[number] : bounds[number + 1]]
                which = np.searchsorted(first, rows, side='right') - 1
                yield [_object(batches[b], int(r - first[b]), kinds) for b, r in zip(which.tolist(), rows, strict=True)]
            del batches, reader  # before the map is closed

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)


def _object(batch: Any, row: int, kinds: Sequence[Kind]) -> MapObject:
    object_id, kind, name, geometry, hidden, since, licence, credit = (batch[n][row].as_py() for n in _SCHEMA.names[1:])
    return MapObject(object_id, kinds[kind], name, shapely.from_wkb(geometry), hidden, since, licence, credit)
