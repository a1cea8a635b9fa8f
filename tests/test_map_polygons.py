"""Class rasters become valid polygons, the same ones however they are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import CRS, Transformer
from rasterio.features import shapes
from rasterio.windows import Window

from grafalign.errors import InputError
from grafalign.maps import polygons as module
from grafalign.maps.areas import areas_m2
from grafalign.maps.polygons import write_polygons

UTM = Affine(10, 0, 500_000, 0, -10, 5_000_000)
NAMES = {1: 'forest', 2: 'water', 3: 'crop'}
RING = np.array([[1, 1, 1], [1, 2, 1], [1, 1, 2]], np.uint8)
"""A ring of one region that meets itself across a point: its outline must not touch itself."""
EIGHT = np.array([[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 3, 1], [1, 1, 1, 1]], np.uint8)
"""Two holes that meet at a point."""
COMB = np.array([[1, 2, 1, 2, 1], [1, 2, 1, 2, 1], [1, 1, 1, 2, 1], [2, 2, 2, 2, 1], [1, 1, 1, 1, 1]], np.uint8)
"""Regions whose parts meet rows later."""
class_maps = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3), fill=st.nothing()
)


def raster(path: Path, pixels: np.ndarray, transform: Affine = UTM, crs: Any = 'EPSG:32633', **options: Any) -> Path:
    """A GeoTIFF of one band, nodata 0."""
    height, width = pixels.shape
    options = {'nodata': 0, 'dtype': pixels.dtype, **options}
    with rasterio.open(
        path, 'w', driver='GTiff', height=height, width=width, count=1, crs=crs, transform=transform, **options
    ) as file:
        file.write(pixels, 1)
    return path


def naive(pixels: np.ndarray, transform: Affine = UTM) -> set[tuple[int, bytes]]:
    """Value and geometry of all polygons of the whole array at once."""
    made = shapes(pixels, mask=pixels > 0, connectivity=4, transform=transform)
    return {(int(value), plain(shapely.geometry.shape(outline))) for outline, value in made}


def plain(polygon: shapely.Polygon) -> bytes:
    """A polygon so that equal ones have equal bytes."""
    return shapely.to_wkb(shapely.normalize(polygon))


def all_of(frame: gpd.GeoDataFrame) -> set[tuple[int, bytes]]:
    """Value and geometry of all rows."""
    return {(int(value), plain(polygon)) for value, polygon in zip(frame['value'], frame.geometry, strict=True)}


@given(class_maps, st.integers(1, 13))
@example(RING, 1)
@example(EIGHT, 2)
@example(COMB, 1)
def test_polygons_are_those_of_the_whole_raster(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray, strip_rows: int
) -> None:
    """They are GDAL's own for the whole array, valid, in their order, and their pixels and areas add up."""
    folder = tmp_path_factory.mktemp('map')
    count = write_polygons(raster(folder / 'map.tif', pixels), folder / 'p.parquet', NAMES, strip_rows=strip_rows)
    frame = gpd.read_parquet(folder / 'p.parquet')
    expected = naive(pixels)
    assert count == len(frame) == len(expected)
    assert all_of(frame) == expected
    assert frame.geometry.is_valid.all()
    assert (frame['class'] == frame['value'].map(NAMES)).all()
    assert (frame['pixels'] * 100 == frame.area).all()
    assert frame['pixels'].sum() == np.count_nonzero(pixels)
    assert frame.geometry.exterior.is_ccw.all()
    assert not any(hole.is_ccw for polygon in frame.geometry for hole in polygon.interiors)
    for _, same in frame.groupby('value'):
        left, right = same.sindex.query(same.geometry, predicate='intersects')
        shared = shapely.intersection(same.geometry.values[left], same.geometry.values[right])[left != right]
        assert (shapely.length(shared) == 0).all()  # they meet at points at most


@given(
    class_maps,
    arrays(np.uint8, (12, 12), elements=st.sampled_from([0, 7, 99, 250, 255]), fill=st.nothing()),
    st.integers(1, 11),
)
def test_bytes_do_not_depend_on_strips(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray, confidences: np.ndarray, strip_rows: int
) -> None:
    """A file is the same for any number of rows read at a time, with several row groups, too."""
    folder = tmp_path_factory.mktemp('map')
    class_map = raster(folder / 'map.tif', pixels)
    confidence = raster(folder / 'c.tif', confidences[: pixels.shape[0], : pixels.shape[1]], nodata=255)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_GROUP_CORNERS', 20)
        for name, rows in (('a', strip_rows), ('b', 1024)):
            write_polygons(class_map, folder / name, NAMES, confidence=confidence, strip_rows=rows)
    assert (folder / 'a').read_bytes() == (folder / 'b').read_bytes()


def test_rows_are_in_the_order_in_which_regions_end(tmp_path: Path) -> None:
    """By the last row of a region, then by its first pixel."""
    write_polygons(raster(tmp_path / 'map.tif', COMB), tmp_path / 'p', NAMES)
    frame = gpd.read_parquet(tmp_path / 'p')
    assert frame[['value', 'pixels']].values.tolist() == [[2, 2], [1, 7], [2, 7], [1, 9]]


def test_mean_confidence_is_that_of_its_pixels(tmp_path: Path) -> None:
    """It is numpy's mean over the pixels that have a confidence, and missing where none has."""
    rng = np.random.default_rng(3)
    pixels = np.repeat(np.repeat(rng.integers(0, 4, (9, 9), np.uint8), 5, 0), 5, 1)
    confidences = rng.integers(0, 251, pixels.shape).astype(np.uint8)
    confidences[rng.random(pixels.shape) < 0.2] = 255
    confidences[:10] = 255
    write_polygons(
        raster(tmp_path / 'map.tif', pixels),
        tmp_path / 'p',
        NAMES,
        confidence=raster(tmp_path / 'c.tif', confidences, nodata=255),
        strip_rows=7,
    )
    frame = gpd.read_parquet(tmp_path / 'p')
    assert frame['mean_confidence'].isna().any()
    for polygon, mean in zip(frame.geometry, frame['mean_confidence'], strict=True):
        inside = rasterio.features.geometry_mask([polygon], pixels.shape, UTM, invert=True) & (confidences != 255)
        expected = confidences[inside].mean() / 250 if inside.any() else math.nan
        assert mean == pytest.approx(expected, nan_ok=True)


def test_areas_are_those_on_the_ellipsoid(tmp_path: Path) -> None:
    """In UTM a square has its planar area over the square of the scale."""
    write_polygons(raster(tmp_path / 'map.tif', np.ones((8, 8), np.uint8)), tmp_path / 'p', NAMES)
    assert gpd.read_parquet(tmp_path / 'p')['area_m2'].tolist() == pytest.approx([6400 / 0.9996**2], rel=2e-3)


SQUARE = shapely.Polygon(shapely.box(0, 0, 9, 9).exterior, [shapely.box(3, 3, 6, 6).exterior])


@pytest.mark.parametrize(
    ('crs', 'scale', 'corner'),
    [
        ('EPSG:32633', 20_000, (300_000, 5_000_000)),
        ('EPSG:32633', 10, (300_000, 5_000_000)),
        ('EPSG:4326', 0.2, (-60.4, -33.3)),  # degrees
        ('EPSG:27571', 10_000, (600_000, 1_000_000)),  # its geographic CRS is in grads
        ('EPSG:2263', 3000, (900_000, 100_000)),  # feet
        ('EPSG:3832', 100_000, (2_900_000, 4_000_000)),  # across the antimeridian
        ('EPSG:3031', 100_000, (-100_000, -500_000)),  # around the South Pole
        ('EPSG:3031', 100_000, (-450_000, -450_000)),  # with a hole around it
        ('ESRI:53004', 100_000, (0, 4_000_000)),  # a sphere
    ],
)
def test_areas_are_those_of_geodesics(crs: str, scale: float, corner: tuple[float, float]) -> None:
    """They are pyproj's of the polygon with many points along its edges, holes subtracted."""
    polygon = shapely.transform(SQUARE, lambda points: points * scale + corner)
    dense = gpd.GeoSeries([polygon], crs=crs).segmentize(scale / 200)
    to_degrees = Transformer.from_crs(crs, CRS(crs).geodetic_crs, always_xy=True)
    unit = CRS(crs).geodetic_crs.axis_info[0].unit_conversion_factor
    shell, hole = (
        np.degrees(np.multiply(to_degrees.transform(*ring.xy), unit))
        for ring in (dense[0].exterior, dense[0].interiors[0])
    )
    geod = CRS(crs).get_geod()
    expected = abs(geod.polygon_area_perimeter(*shell)[0]) - abs(geod.polygon_area_perimeter(*hole)[0])
    assert areas_m2(np.array([polygon, polygon]), CRS(crs)).tolist() == pytest.approx([expected, expected], rel=2e-6)


def test_small_polygons_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those below `min_area_m2` are not written; the log says how many they were."""
    pixels = np.array([[1, 2, 2], [3, 2, 2]], np.uint8)
    assert write_polygons(raster(tmp_path / 'map.tif', pixels), tmp_path / 'p', NAMES, min_area_m2=150) == 1
    assert gpd.read_parquet(tmp_path / 'p')['class'].tolist() == ['water']
    assert '2 polygons' in capsys.readouterr().err


def test_a_box_finds_its_polygons(tmp_path: Path) -> None:
    """The file says where each polygon is: a bbox filter reads those in the box, of several row groups."""
    pixels = np.add.outer(np.arange(60), np.arange(60)).astype(np.uint8) % 2 + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_GROUP_CORNERS', 1000)
        write_polygons(raster(tmp_path / 'map.tif', pixels), tmp_path / 'p', NAMES)
    assert pq.ParquetFile(tmp_path / 'p').num_row_groups == 15
    box = (500_101, 4_999_801, 500_119, 4_999_819)
    assert len(gpd.read_parquet(tmp_path / 'p', bbox=box)) == 4
    assert len(gpd.read_parquet(tmp_path / 'p')) == 3600


LAEA = '+proj=laea +lat_0=45 +lon_0=15 +datum=WGS84 +units=m'


@pytest.mark.parametrize('crs', ['EPSG:32633', LAEA, 'ESRI:102039', 'EPSG:4326', 'EPSG:2263'])
def test_metadata_is_that_of_geoparquet(tmp_path: Path, crs: str) -> None:
    """As the specification of 1.1 has it, for CRS with and without an EPSG code and in any unit."""
    transform = Affine.translation(20, 10) * Affine.scale(1e-4, -1e-4) if crs == 'EPSG:4326' else UTM
    write_polygons(raster(tmp_path / 'map.tif', RING, transform, crs), tmp_path / 'p', NAMES)
    geo = json.loads(pq.read_metadata(tmp_path / 'p').metadata[b'geo'])
    assert (geo['version'], geo['primary_column']) == ('1.1.0', 'geometry')
    column = geo['columns']['geometry']
    frame = gpd.read_parquet(tmp_path / 'p')
    assert CRS.from_json_dict(column['crs']) == frame.crs
    assert frame.crs == CRS(crs)
    assert frame.crs.to_authority() == CRS(crs).to_authority()
    assert (column['encoding'], column['geometry_types']) == ('WKB', ['Polygon'])
    assert column['covering'] == {'bbox': {s: ['bbox', s] for s in ('xmin', 'ymin', 'xmax', 'ymax')}}
    assert column['bbox'] == frame.total_bounds.tolist()
    assert column['orientation'] == 'counterclockwise'
    assert not any(frame['area_m2'].isna())


@pytest.mark.parametrize(
    'transform', [Affine(10, 0, 500_000, 0, 10, 5_000_000), UTM * Affine.rotation(30), UTM * Affine.scale(-1, 1)]
)
def test_maps_lie_any_way(tmp_path: Path, transform: Affine) -> None:
    """Rows that count northwards, turned and mirrored grids give polygons in their place, shells counterclockwise."""
    write_polygons(raster(tmp_path / 'map.tif', COMB, transform), tmp_path / 'p', NAMES)
    frame = gpd.read_parquet(tmp_path / 'p')
    assert all_of(frame) == naive(COMB, transform)
    assert frame.geometry.is_valid.all()
    assert frame.geometry.exterior.is_ccw.all()


def test_nodata_and_values_left_out_get_no_polygon(tmp_path: Path) -> None:
    """A map of nothing else is a file without rows, and values of 16 bits are classes, too."""
    pixels = np.array([[0, 7, 60_000], [0, 7, 7]], np.uint16)
    class_map = raster(tmp_path / 'map.tif', pixels)
    assert write_polygons(class_map, tmp_path / 'p', {60_000: 'ice'}, leave_out=[7]) == 1
    assert gpd.read_parquet(tmp_path / 'p')[['class', 'value']].values.tolist() == [['ice', 60_000]]
    assert write_polygons(class_map, tmp_path / 'none', {}, leave_out=[7, 60_000]) == 0
    assert len(gpd.read_parquet(tmp_path / 'none')) == 0


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    """One sentence names the file and what to do, and nothing is left beside the file that is not written."""
    good = raster(tmp_path / 'map.tif', RING)
    bare = raster(tmp_path / 'bare.tif', RING, crs=None)
    moved = raster(tmp_path / 'moved.tif', RING, Affine.translation(5, 0) * UTM)
    missing = tmp_path / 'missing.tif'
    out = tmp_path / 'p.parquet'
    for class_map, confidence, names, text in (
        (missing, None, NAMES, r'missing\.tif cannot be read .*; give the path'),
        (good, missing, NAMES, r'missing\.tif cannot be read .*; give the path'),
        (bare, None, NAMES, r'bare\.tif has no CRS .*; add it'),
        (good, moved, NAMES, r'moved\.tif is on another grid than .*map\.tif; make it'),
        (good, None, {1: 'forest'}, r'map\.tif has the value 2, which has no name; name it'),
        (raster(tmp_path / 'f.tif', RING.astype(np.float32)), None, NAMES, r'f\.tif has 1 bands of float32; give'),
    ):
        with pytest.raises(InputError, match=text):
            write_polygons(class_map, out, names, confidence=confidence)
    assert not list(tmp_path.glob('p.parquet*'))


@pytest.mark.realdata
def test_a_real_class_map_gives_valid_polygons(realdata: Path, tmp_path: Path) -> None:
    """An island of ESA WorldCover, 4,000 x 4,000 px: all polygons are valid, and all its pixels are in them."""
    source = next((realdata / 'worldcover_cog').glob('*2021*.tif'))
    with rasterio.open(source) as file:
        window = Window(5000, 30_000, 4000, 4000)
        pixels, transform, crs = file.read(1, window=window), file.window_transform(window), file.crs
    names = {int(v): str(v) for v in np.unique(pixels)}
    write_polygons(raster(tmp_path / 'map.tif', pixels, transform, crs), tmp_path / 'p', names)
    frame = gpd.read_parquet(tmp_path / 'p')
    assert len(frame) > 1000
    assert frame.geometry.is_valid.all()
    assert frame['pixels'].sum() == np.count_nonzero(pixels)
