"""The pixels that a field is made of: a scene's own grid where it can be kept, else one made from it."""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info

from grafalign import console
from grafalign.errors import InputError
from grafalign.geo import unit_metres
from grafalign.scenes.raster import Grid

_SAME = 0.01
"""Pixels that differ by less than this share are of one size."""
_FAR = 2.0
"""Resampling by more than this makes another picture than the model was trained on."""
_POLAR = {True: 32661, False: 32761}
"""UPS north and south, where UTM ends."""
_UTM_ENDS = (-80.0, 84.0)


def field_grid(grid: Grid, gsd_m: float | None, name: str, *, any_gsd: bool = False) -> tuple[GeoBox, float]:
    """The grid of a field over a raster, north up and in metres, and the metres of one of its pixels.

    A raster that is north up, in a projected CRS, and of the model's pixel size keeps its grid, so that pixels are
    copied. Any other is resampled onto a grid of the model's pixel size: in its own CRS where that is projected, else
    in the UTM (or UPS) zone of its middle.

    Args:
        grid: the raster's.
        gsd_m: metres a pixel that the model was trained on; None where nobody knows.
        name: the raster's, for messages.
        any_gsd: resample by more than a factor of two, too.

    Raises:
        InputError: the pixels are more than twice as large or as small as the model's.
    """
    crs = CRS.from_wkt(grid.crs_wkt)
    own = _pixel_metres(grid, crs)
    model_m = own if gsd_m is None else gsd_m
    factor = own / model_m
    if max(factor, 1 / factor) > _FAR * 1.001 and not any_gsd:
        raise InputError(
            f'{name} has pixels of {own:.3g} m and the model was trained on {model_m:.3g} m: what it would see is not '
            'what it knows. Give scenes nearer to that, or --any-gsd to resample all the same.'
        )
    same = abs(factor - 1) < _SAME
    turned = grid.transform.b or grid.transform.d or grid.transform.e > 0 or grid.transform.a < 0
    if same and not turned and not crs.is_geographic:
        return GeoBox((grid.height, grid.width), grid.transform, grid.crs_name), own
    if not same:
        console.log(f'{name}: pixels of {own:.3g} m are resampled to the {model_m:.3g} m of the model')
    target = crs if not crs.is_geographic else _metric_zone(grid, crs)
    return _covering(grid, crs, target, own if same else model_m), own if same else model_m


def _pixel_metres(grid: Grid, crs: CRS) -> float:
    """Side of a pixel, the geometric mean of both, in metres on the ground at the raster's middle."""
    area = abs(grid.transform.determinant)
    if crs.is_geographic:
        lat = (grid.transform * (grid.width / 2, grid.height / 2))[1]
        area *= max(math.cos(math.radians(lat)), 1e-6)
    return math.sqrt(area) * unit_metres(grid.crs_wkt, *(grid.transform * (grid.width / 2, grid.height / 2)))


def _metric_zone(grid: Grid, crs: CRS) -> CRS:
    """The UTM or UPS zone of a raster's middle."""
    x, y = grid.transform * (grid.width / 2, grid.height / 2)
    lon, lat = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True).transform(x, y)
    lon = (lon + 180) % 360 - 180
    if not _UTM_ENDS[0] <= lat < _UTM_ENDS[1]:
        return CRS.from_epsg(_POLAR[lat > 0])
    zones = query_utm_crs_info('WGS 84', AreaOfInterest(lon, lat, lon, lat))
    return CRS.from_authority(zones[0].auth_name, zones[0].code)


def _covering(grid: Grid, crs: CRS, target: CRS, pixel_m: float) -> GeoBox:
    """A north-up grid in another CRS that holds a raster, its corner at whole pixels."""
    steps = np.linspace(0, 1, 33)
    zero = np.zeros_like(steps)
    edge = np.concatenate([[steps, zero], [steps, zero + 1], [zero, steps], [zero + 1, steps]], axis=1)
    x, y = grid.transform * (edge[0] * grid.width, edge[1] * grid.height)
    if target != crs:
        x, y = Transformer.from_crs(crs, target, always_xy=True).transform(x, y)
    size = pixel_m / unit_metres(target.to_wkt(), float(x.mean()), float(y.mean()))
    left, top = math.floor(x.min() / size + 1e-6) * size, math.ceil(y.max() / size - 1e-6) * size
    shape = math.ceil((top - y.min()) / size - 1e-6), math.ceil((x.max() - left) / size - 1e-6)
    epsg = target.to_epsg()
    return GeoBox(shape, Affine(size, 0, left, 0, -size, top), f'EPSG:{epsg}' if epsg else target.to_wkt())
