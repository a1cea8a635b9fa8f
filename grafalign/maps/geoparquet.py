"""GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0) written a row group at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


class PolygonWriter:
    """Writes polygons with their columns; every call of `write` makes a row group."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self.count = 0
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def write(self, columns: Mapping[str, Any], polygons: npt.NDArray[np.object_]) -> None:
        """Write rows: a column of the schema by its name, and the polygons."""
        boxes = shapely.bounds(polygons)
        covering = pa.StructArray.from_arrays(list(boxes.T), names=SIDES)
        geometry = shapely.to_wkb(polygons, flavor='iso')
        rows = pa.table({**columns, 'geometry': geometry, 'bbox': covering}, self._writer.schema)
        self._writer.write_table(rows, row_group_size=len(polygons))
        self.count += len(polygons)
        self.bounds[:2] = np.minimum(self.bounds[:2], boxes[:, :2].min(0))
        self.bounds[2:] = np.maximum(self.bounds[2:], boxes[:, 2:].max(0))


@contextlib.contextmanager
def polygon_writer(path: Path, columns: Mapping[str, pa.DataType], crs: CRS) -> Iterator[PolygonWriter]:
    """A writer whose file is complete when the context ends.

    Args:
        path: the file.
        columns: types of the columns beside `geometry` and `bbox`.
        crs: of the polygons, x (or longitude) first; it needs no EPSG code.
    """
    box = pa.struct([(side, pa.float64()) for side in SIDES])
    schema = pa.schema({**columns, 'geometry': pa.binary(), 'bbox': box})
    with pq.ParquetWriter(path, schema, compression='zstd') as file:
        writer = PolygonWriter(file)
        yield writer
        file.add_key_value_metadata({'geo': json.dumps(_metadata(crs, writer.bounds))})


def _metadata(crs: CRS, bounds: npt.NDArray[np.float64]) -> dict[str, Any]:
    geometry: dict[str, Any] = {
        'encoding': 'WKB',
        'geometry_types': ['Polygon'],
        'crs': crs.to_json_dict(),
        'orientation': 'counterclockwise',
        'covering': {'bbox': {side: ['bbox', side] for side in SIDES}},
    }
    if np.isfinite(bounds).all():  # it is not of a file without rows
        geometry['bbox'] = bounds.tolist()
    return {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': geometry}}
