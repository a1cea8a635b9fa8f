"""Class rasters of any size to valid polygons in GeoParquet, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rasterio
from pyproj import CRS
from rasterio.enums import WktVersion
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from grafalign.console import Bar, log, progress
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import make_folder, replacing
from grafalign.foreign import ForeignFileError
from grafalign.foreign.rasters import open_raster
from grafalign.maps.areas import areas_m2
from grafalign.maps.geoparquet import polygon_writer
from grafalign.maps.regions import CORNER, MOST_CONFIDENT, REGION, Codes, Table, closed_regions
from grafalign.maps.rings import polygons

COLUMNS = {
    'class': pa.string(),
    'value': pa.int32(),
    'area_m2': pa.float64(),
    'pixels': pa.int64(),
    'mean_confidence': pa.float64(),
}
_STRIP_PIXELS = 2 << 20
"""Most pixels of a strip: what is computed of them takes up to 300 bytes each."""
_GROUP_CORNERS = 500_000
"""A row group ends with the polygon that brings it to so many corners."""


def write_polygons(
    class_map: Path,
    out: Path,
    names: Mapping[int, str],
    *,
    confidence: Path | None = None,
    min_area_m2: float = 0.0,
    leave_out: Collection[int] = (),
    strip_rows: int = 1024,
) -> int:
    """Write one valid polygon for every region of a class map: pixels of one class that hang together by their sides.

    Rows are in the order of a region's last row, then of its first pixel; the file is the same for any `strip_rows`.
    Columns: `class`, `value`, `area_m2` (on the ellipsoid, holes subtracted), `pixels`, `mean_confidence` (0 to 1,
    missing where no pixel has one), `geometry` in the CRS of the map, `bbox`.

    Args:
        class_map: GeoTIFF of one band, uint8 or uint16; pixels of its nodata value get no polygon.
        out: GeoParquet 1.1, there whole or not at all.
        names: value -> name of the class.
        confidence: GeoTIFF of one uint8 band on the same grid: 0 to 250 for 0 to 1, 255 where there is none.
        min_area_m2: smaller polygons are left out.
        leave_out: values that get no polygon, such as a background.
        strip_rows: most rows read at a time.

    Returns:
        The number of polygons.

    Raises:
        InputError: a file cannot be read, has no CRS or another grid, or a value has no name.
    """
    dropped = 0
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(_open(class_map, ('uint8', 'uint16')))]
        if confidence is not None:
            maps.append(stack.enter_context(_open(confidence, ('uint8',))))
            _check_grid(*maps)
        crs, transform = _crs(maps[0]), maps[0].transform
        values = sorted(set(names) - set(leave_out) - {maps[0].nodata})
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_cache_bytes(maps)))
        make_folder(out.parent)
        stack.enter_context(naming_full_disk(out.parent))
        writer = stack.enter_context(polygon_writer(stack.enter_context(replacing(out)), COLUMNS, crs))
        bar = stack.enter_context(progress('rows to polygons', maps[0].height))
        strips = _strips(maps, _codes(maps[0], values, leave_out), len(values), strip_rows, bar)
        for regions, corners in _row_groups(closed_regions(strips, maps[0].width)):
            shapes = polygons(corners, len(regions), transform)
            areas = areas_m2(shapes, crs)
            kept = ~(areas < min_area_m2)
            dropped += int(np.count_nonzero(~kept))
            if kept.any():
                writer.write(_columns(regions[kept], areas[kept], values, names), shapes[kept])
    if dropped:
        log(f'{out}: {dropped:,} polygons of less than {min_area_m2:g} m² are left out')
    return writer.count


def _open(path: Path, dtypes: tuple[str, ...]) -> DatasetReader:
    try:
        dataset = open_raster(path)
    except (ForeignFileError, RasterioError, OSError) as error:
        raise InputError(f'{path} cannot be read ({error}); give the path of a GeoTIFF.') from None
    if dataset.count != 1 or dataset.dtypes[0] not in dtypes:
        dataset.close()
        raise InputError(
            f'{path} has {dataset.count} bands of {dataset.dtypes[0]}; give a GeoTIFF of one band of '
            f'{" or ".join(dtypes)}.'
        )
    return dataset


def _check_grid(dataset: DatasetReader, other: DatasetReader) -> None:
    same = dataset.shape == other.shape and dataset.transform.almost_equals(other.transform, 1e-9)
    if not same or dataset.crs != other.crs:
        raise InputError(
            f'{other.name} is on another grid than {dataset.name}; make it with the same CRS, transform and size.'
        )


def _crs(dataset: DatasetReader) -> CRS:
    crs = CRS.from_wkt(dataset.crs.to_wkt(version=WktVersion.WKT2_2019)) if dataset.crs else None
    if crs is None or crs.geodetic_crs is None:
        raise InputError(f'{dataset.name} has no CRS that says where on Earth it is; add it (gdal_edit.py -a_srs).')
    authority = crs.to_authority(min_confidence=100)  # the authority says more than a TIFF has room for
    return CRS.from_authority(*authority) if authority else crs


def _codes(dataset: DatasetReader, values: list[int], leave_out: Collection[int]) -> Codes:
    """Code of each value of the raster's type: 0 for none, 1 + its place in `values`, and one more without a name."""
    size = np.iinfo(dataset.dtypes[0]).max + 1
    codes = np.full(size, len(values) + 1, np.min_scalar_type(len(values) + 1))
    for value in (*leave_out, dataset.nodata):
        if value is not None and 0 <= value < size:
            codes[int(value)] = 0
    inside = [v for v in values if 0 <= v < size]
    codes[inside] = 1 + np.searchsorted(values, inside)
    return codes


def _cache_bytes(maps: list[DatasetReader]) -> int:
    """Room for two rows of blocks of each map, so that a block under two strips is decoded once."""
    rows = [2 * m.block_shapes[0][0] * (m.width + m.block_shapes[0][1]) * np.dtype(m.dtypes[0]).itemsize for m in maps]
    return sum(rows) + (16 << 20)  # GDAL takes numbers below 100,000 for megabytes


def _strips(
    maps: list[DatasetReader], codes: Codes, classes: int, strip_rows: int, bar: Bar
) -> Iterator[tuple[Codes, npt.NDArray[np.uint8] | None]]:
    """Codes of classes, and confidences where there are, from the first row on."""
    height, width = maps[0].shape
    rows = max(1, min(strip_rows, _STRIP_PIXELS // width))
    for top in range(0, height, rows):
        window = Window(0, top, width, min(rows, height - top))
        pixels, *confidence = (_read(m, window) for m in maps)
        strip = codes[pixels]
        if strip.max() > classes:
            value = pixels[strip > classes][0]
            raise InputError(f'{maps[0].name} has the value {value}, which has no name; name it or leave it out.')
        yield strip, confidence[0] if confidence else None
        bar.advance(window.height)


def _read(dataset: DatasetReader, window: Window) -> npt.NDArray[np.unsignedinteger]:
    try:
        pixels: npt.NDArray[np.unsignedinteger] = dataset.read(1, window=window)
    except (RasterioError, OSError) as error:
        raise InputError(
            f'{dataset.name} cannot be read ({error.__cause__ or error}); make or fetch it again.'
        ) from None
    return pixels


def _row_groups(closed: Iterable[tuple[Table, Table]]) -> Iterator[tuple[Table, Table]]:
    """Regions and corners of one row group at a time, whatever number of regions closed in a strip."""
    regions, corners = np.empty(0, REGION), np.empty(0, CORNER)
    for more, outlines in closed:
        outlines['region'] += len(regions)
        regions, corners = np.append(regions, more), np.append(corners, outlines)
        while len(corners) >= _GROUP_CORNERS:
            last = int(np.searchsorted(np.cumsum(np.bincount(corners['region'])), _GROUP_CORNERS))
            inside = corners['region'] <= last
            yield regions[: last + 1], corners[inside]
            regions, corners = regions[last + 1 :], corners[~inside]
            corners['region'] -= last + 1
    if len(regions):
        yield regions, corners


def _columns(
    regions: Table, areas: npt.NDArray[np.float64], values: list[int], names: Mapping[int, str]
) -> dict[str, object]:
    with np.errstate(invalid='ignore'):
        means = regions['confidence'] / regions['confident'] / MOST_CONFIDENT
    classed = [values[code - 1] for code in regions['code'].tolist()]
    return {
        'class': [names[value] for value in classed],
        'value': classed,
        'area_m2': areas,
        'pixels': regions['pixels'],
        'mean_confidence': pa.array(means, mask=regions['confident'] == 0),
    }
