"""Write a caption set as its rows come: nothing grows with it but sixteen bytes for every distinct text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grafalign.captions.caption_set import CAPTIONS, IMAGES, MARKER, REJECTED, CaptionSetMarker
from grafalign.captions.numbering import Numbering
from grafalign.files import file_digest, to_disk
from grafalign.store_marker import InputStamp

_ROW_GROUP = 1 << 16
_TABLES = {'images': IMAGES, 'captions': CAPTIONS, 'rejected': REJECTED}


def writable(value: Any) -> Any:
    """A value as a table holds it: halves of surrogate pairs, which JSON and file names can have, become `?`."""
    if isinstance(value, str):
        return value.encode('utf-8', 'replace').decode()
    return [writable(v) for v in value] if isinstance(value, list) else value


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value comes."""
    counts = pc.value_counts(column.cast(pa.string()))
    return dict(zip(counts.field('values').to_pylist(), counts.field('counts').to_pylist(), strict=True))


class SetWriter:
    """Tables that are written beside their names and moved there at the end, the marker last.

    Used as a context: leaving it by an exception removes what was written.

    Args:
        path: the set's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        self._counts: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._texts = Numbering()

    def __enter__(self) -> SetWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        self._files = {name: pq.ParquetWriter(self._part(name), schema) for name, schema in _TABLES.items()}
        return self

    def add_image(self, **columns: Any) -> int:
        """Append an image; return its row."""
        row = self._counts['images']
        self.splits[columns['split']] += 1
        self._add('images', columns)
        return row

    def add_caption(self, **columns: Any) -> None:
        """Append a caption; they come by image."""
        self.kinds[columns['kind']] += 1
        self._texts.number(columns['text'])
        self._add('captions', columns)

    def reject(self, kind: str, name: str, reason: str, detail: str | None = None) -> None:
        """Note what was not taken: `image` or `caption`."""
        self.reasons[reason] += 1
        self._add('rejected', {'kind': kind, 'id': name, 'reason': reason, 'detail': detail})

    def add_images(self, images: pa.Table) -> None:
        """Append images that are a table already, as of another set."""
        self._append('images', images)
        self.splits.update(_counted(images['split']))

    def add_captions(self, captions: pa.Table) -> None:
        """Append captions that are a table already; they come by image."""
        self._append('captions', captions)
        self.kinds.update(_counted(captions['kind']))
        self._texts.numbers(captions['text'].to_pylist())

    def reject_many(self, rejected: pa.Table) -> None:
        """Note what was not taken, as a table."""
        self._append('rejected', rejected)
        self.reasons.update(_counted(rejected['reason']))

    def _append(self, table: str, rows: pa.Table) -> None:
        self._flush(table)
        schema = _TABLES[table]
        columns = [
            rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(len(rows), f.type) for f in schema
        ]
        self._counts[table] += len(rows)
        self._files[table].write_table(pa.table(columns, schema))

    def __len__(self) -> int:
        """Images."""
        return self._counts['images']

    def _add(self, table: str, row: dict[str, Any]) -> None:
        self._counts[table] += 1
        self._rows[table].append({name: writable(value) for name, value in row.items()})
        if len(self._rows[table]) >= _ROW_GROUP:
            self._flush(table)

    def _flush(self, table: str) -> None:
        if self._rows[table]:
            self._files[table].write_table(pa.Table.from_pylist(self._rows[table], _TABLES[table]))
            self._rows[table] = []

    def _part(self, table: str) -> Path:
        return self.path / f'{table}.parquet.part'

    def finish(
        self,
        settings: Mapping[str, Any],
        root: str | None = None,
        store: tuple[str, str] | None = None,
        inputs: tuple[InputStamp, ...] = (),
    ) -> CaptionSetMarker:
        """Move the tables to their names and write the marker.

        Args:
            settings: what was asked for.
            root: what files lie below.
            store: path and digest of the pair store whose tiles the images are.
            inputs: what it was read from.
        """
        digests = {}
        for name, file in self._files.items():
            self._flush(name)
            file.close()
            to_disk(self._part(name))
            digests[f'{name}.parquet'] = file_digest(self._part(name))
        (self.path / MARKER).unlink(missing_ok=True)
        for name in _TABLES:
            self._part(name).replace(self.path / f'{name}.parquet')
        where = repr((root, store, sorted(digests.items())))
        marker = CaptionSetMarker(
            format=CaptionSetMarker.NEWEST,
            root=root,
            store=store[0] if store else None,
            store_digest=store[1] if store else None,
            images=self._counts['images'],
            captions=self._counts['captions'],
            distinct_captions=len(self._texts),
            rejected=self._counts['rejected'],
            reasons=dict(sorted(self.reasons.items(), key=lambda r: (-r[1], r[0]))),
            splits=dict(sorted(self.splits.items())),
            kinds=dict(sorted(self.kinds.items())),
            inputs=inputs,
            settings=dict(settings),
            versions={name: version(name) for name in ('grafalign', 'pyarrow')},
            files=digests,
            digest=hashlib.blake2b(where.encode(), digest_size=16).hexdigest(),
        )
        marker.write(self.path / MARKER)
        return marker

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, file in self._files.items():
            if kind is not None:
                file.close()
            self._part(name).unlink(missing_ok=True)
