"""An index as one GeoParquet file that vector databases load: items with their vectors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign import console
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import replacing, vectors_column
from grafalign.search.catalog import Catalog

_ROWS = 65_536
"""Of a row group, and in memory at a time."""


def write_parquet(catalog: Catalog, path: Path) -> int:
    """Write the items of an index with their vectors: item_id, source, datetime, geometry (WKB), vector (float32, D).

    What the model is stands in the file's metadata under `grafalign`: name, digest, and how it is loaded.

    Args:
        catalog: the index.
        path: a file that ends in .parquet.

    Returns:
        How many items there are.

    Raises:
        GrafalignError: the name has another ending, or the index is empty.

    Example:
        >>> import lancedb, pyarrow.parquet as pq  # doctest: +SKIP
        >>> table = lancedb.connect('db').create_table('tiles', pq.read_table('tiles.parquet'))  # doctest: +SKIP
    """
    if path.suffix.lower() != '.parquet':
        raise InputError(f'{path} is no Parquet file; give a name that ends in .parquet.')
    rows = np.flatnonzero(catalog.alive)
    if not len(rows):
        raise InputError(f'{catalog.path} is empty; index something first.')
    path.parent.mkdir(parents=True, exist_ok=True)
    items = catalog.items.drop(columns='stamp')
    empty = io.BytesIO()
    items.iloc[:0].to_parquet(empty, index=False)
    geo = json.loads(pq.read_schema(empty).metadata[b'geo'])
    geo['columns']['geometry'].pop('bbox', None)
    model = catalog.marker.model.model_dump(mode='json', include={'name', 'digest', 'spec', 'clip'})
    metadata = {'geo': json.dumps(geo), 'grafalign': json.dumps({'model': model, 'score': 'cosine'})}
    writer: pq.ParquetWriter | None = None
    with naming_full_disk(path), replacing(path) as part:
        try:
            for first in console.track(range(0, len(rows), _ROWS), 'writing items', len(rows), step=_ROWS):
                some = rows[first : first + _ROWS]
                table = pa.Table.from_pandas(items.iloc[some].to_wkb(), preserve_index=False)
                table = table.append_column('vector', vectors_column(catalog.vectors[some]))
                table = table.replace_schema_metadata(metadata)
                writer = writer or pq.ParquetWriter(part, table.schema)
                writer.write_table(table.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()
    return len(rows)
