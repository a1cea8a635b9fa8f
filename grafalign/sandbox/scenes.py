"""Fly two satellites over the land: cloud-optimised GeoTIFFs, overviews, and a static STAC catalog.

`sandbox-ms` is made like Sentinel-2: one uint16 file a band with scale and offset, several dates and clouds.
`sandbox-aerial` is made like NAIP: one uint8 file with four bands. Each date has a western scene in UTM zone 25 and an
eastern one in zone 26 that overlap in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pystac
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject

from grafalign import console, engine
from grafalign.sandbox.land import EPSG_EAST, GSD_M, Land
from grafalign.sandbox.overhead import BANDS, clouds, reflectance, through_the_air, to_bytes, to_counts
from grafalign.sandbox.structures import Structures

SCALE, OFFSET = 0.0001, -0.1
_WEST_SHARE, _EAST_SHARE = 0.6, 0.58
_PROJECTION = 'https://stac-extensions.github.io/projection/v2.0.0/schema.json'
_RASTER = 'https://stac-extensions.github.io/raster/v1.1.0/schema.json'
_EO = 'https://stac-extensions.github.io/eo/v1.1.0/schema.json'


@dataclass(frozen=True)
class Overpass:
    """One day of one sensor."""

    when: datetime
    cloud: float
    aerial: bool = False

    @property
    def name(self) -> str:
        """Start of the item ids."""
        return f'{"aerial" if self.aerial else "ms"}_{self.when:%Y%m%d}'


def _day(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, 11, 5, tzinfo=timezone.utc)


OVERPASSES = (
    Overpass(_day(2021, 2, 9), 0.04),
    Overpass(_day(2021, 5, 6), 0.02),
    Overpass(_day(2021, 7, 19), 0.0),
    Overpass(_day(2021, 8, 3), 0.55),
    Overpass(_day(2021, 10, 8), 0.03),
    Overpass(_day(2020, 6, 14), 0.0, aerial=True),
)


def write_catalog(
    folder: Path,
    land: Land,
    structures: Structures,
    workers: int | None = None,
    overpasses: Sequence[Overpass] = OVERPASSES,
) -> int:
    """Render every overpass and write its scenes and their STAC items; return the number of items."""
    folder = folder.resolve()  # pystac makes asset links relative to the item only from absolute paths
    ms = pystac.Collection(
        'sandbox-ms',
        'Multispectral scenes of a made-up land, uint16 with scale and offset, one file a band.',
        extent=_extent(land, [o for o in overpasses if not o.aerial]),
        license='Apache-2.0',
    )
    aerial = pystac.Collection(
        'sandbox-aerial',
        'Aerial photographs of a made-up land, uint8, four bands in one file.',
        extent=_extent(land, [o for o in overpasses if o.aerial] or overpasses),
        license='Apache-2.0',
    )

    def fly(overpass: Overpass) -> list[pystac.Item]:
        return _fly(folder, land, structures, overpass)

    results = dict(console.track(engine.run(fly, overpasses, workers), 'flying satellites', len(overpasses)))
    for index, overpass in enumerate(overpasses):
        for item in results[index]:
            (aerial if overpass.aerial else ms).add_item(item)
    catalog = pystac.Catalog('grafalign-sandbox', 'The scenes of a grafalign sandbox world.')
    catalog.add_children([ms, aerial])
    catalog.normalize_hrefs(str(folder))
    for item in catalog.get_items(recursive=True):
        item.make_asset_hrefs_relative()
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return 2 * len(overpasses)


def _fly(folder: Path, land: Land, structures: Structures, overpass: Overpass) -> list[pystac.Item]:
    seed = land.seed + 1000 * overpass.when.timetuple().tm_yday + overpass.when.year
    surface = reflectance(land, structures, overpass.when)
    cloud = clouds(land.classes.shape, overpass.cloud, seed)
    haze = 0.02 if overpass.aerial else 0.04 + 0.02 * (seed % 3)
    surface = through_the_air(surface, cloud, haze, seed)
    counts = to_bytes(surface) if overpass.aerial else to_counts(surface, SCALE, OFFSET)
    del surface
    whole = land.geobox
    width = whole.shape[1]
    west = slice(0, int(width * _WEST_SHARE) // 16 * 16)
    east = slice(int(width * (1 - _EAST_SHARE)) // 16 * 16, width)
    items = []
    for side, part in (('west', west), ('east', east)):
        source = whole[:, part]
        pixels = np.ascontiguousarray(counts[:, :, part])
        grid = source
        if side == 'east':
            grid = _zone_grid(source)
            pixels = _warp(pixels, source, grid)
        share = round(100 * float((cloud[:, part] > 0.2).mean()), 2)
        items.append(_write_scene(folder, f'{overpass.name}_{side}', overpass, pixels, grid, source, share))
    return items


def _zone_grid(source: GeoBox) -> GeoBox:
    """The 5 m grid of zone 26 that holds the source, snapped to multiples of 5 m."""
    box = source.extent.to_crs(f'EPSG:{EPSG_EAST}', resolution=500).boundingbox
    left, top = np.floor(box.left / GSD_M) * GSD_M, np.ceil(box.top / GSD_M) * GSD_M
    shape = (int(np.ceil((top - box.bottom) / GSD_M)), int(np.ceil((box.right - left) / GSD_M)))
    return GeoBox(shape, Affine(GSD_M, 0, left, 0, -GSD_M, top), f'EPSG:{EPSG_EAST}')


def _warp(pixels: npt.NDArray[np.generic], source: GeoBox, grid: GeoBox) -> npt.NDArray[np.generic]:
    out = np.zeros((len(pixels), *grid.shape), dtype=pixels.dtype)
    reproject(
        pixels,
        out,
        src_transform=source.affine,
        src_crs=str(source.crs),
        src_nodata=0,
        dst_transform=grid.affine,
        dst_crs=str(grid.crs),
        dst_nodata=0,
        resampling=Resampling.bilinear,
    )
    return out


def _write_scene(
    folder: Path,
    name: str,
    overpass: Overpass,
    pixels: npt.NDArray[np.generic],
    grid: GeoBox,
    seen: GeoBox,
    cloud_percent: float,
) -> pystac.Item:
    footprint = seen.extent.to_crs('EPSG:4326', resolution=500)
    box = footprint.boundingbox
    item = pystac.Item(
        name,
        footprint.json,
        [box.left, box.bottom, box.right, box.top],
        overpass.when,
        {'gsd': GSD_M, 'proj:code': str(grid.crs), 'proj:shape': list(grid.shape), 'proj:transform': list(grid.affine)},
        stac_extensions=[_PROJECTION, _RASTER, _EO],
    )
    item.properties['eo:cloud_cover'] = cloud_percent
    place = folder / ('sandbox-aerial' if overpass.aerial else 'sandbox-ms') / name
    place.mkdir(parents=True)
    raster_band: dict[str, object] = {'data_type': str(pixels.dtype), 'nodata': 0, 'spatial_resolution': GSD_M}
    if overpass.aerial:
        assets = {'image': (pixels, [{'name': b, 'common_name': b} for b in BANDS])}
    else:
        raster_band |= {'scale': SCALE, 'offset': OFFSET}
        assets = {b: (pixels[i : i + 1], [{'name': b, 'common_name': b}]) for i, b in enumerate(BANDS)}
    for key, (bands, names) in assets.items():
        path = place / f'{name}_{key}.tif'
        profile = {
            'driver': 'COG',
            'dtype': pixels.dtype,
            'count': len(bands),
            'height': grid.shape[0],
            'width': grid.shape[1],
            'crs': str(grid.crs),
            'transform': grid.affine,
            'nodata': 0,
            'blocksize': 512,
            'compress': 'deflate',
            'level': 1,
            'predictor': 'yes',
            'overview_resampling': 'average',
        }
        with rasterio.open(path, 'w', **profile) as raster:
            raster.write(bands)
        extra = {'raster:bands': [raster_band] * len(bands), 'eo:bands': names}
        item.add_asset(
            key, pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=['data'], extra_fields=extra)
        )
    return item


def _extent(land: Land, overpasses: Sequence[Overpass]) -> pystac.Extent:
    box = land.geobox.extent.to_crs('EPSG:4326', resolution=500).boundingbox
    days = sorted(o.when for o in overpasses)
    return pystac.Extent(
        pystac.SpatialExtent([[box.left, box.bottom, box.right, box.top]]),
        pystac.TemporalExtent([[days[0], days[-1]]]),
    )
