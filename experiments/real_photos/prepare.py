"""Prepare the two runs on real files: `python experiments/real_photos/prepare.py --realdata FOLDER`.

Writes to `--out` (runs/real): a photo table and STAC items for each run, and the weights of a CLIP.

    photos_naip.csv, items_naip.json      for experiments/real_photos_naip.yaml
    photos_coast.csv, items_coast.json    for experiments/real_photos_coast.yaml
    clip/vit_b_32.safetensors             an open_clip ViT-B-32 with seeded random weights, for both

The photos were taken in Groton, Massachusetts, and in Lund, Sweden; no raster we may use lies there. So their positions
are MOVED, and every row says so (`moved`, `lon_original`, `lat_original`). The rule, for each raster:

1. A photo keeps its place in its site: its metres east and north of the middle of the site's bounding box.
2. The middle is set down at a point drawn uniformly (by the seed) from the bounding box of the raster's footprint, and
   the draw counts once every photo of the site is at least a margin inside the footprint; the margin keeps the tiles
   around them whole.
3. After every 200 draws in vain the site shrinks by a tenth. Lund (170 m across) stays as large as it is; Groton
   (13 km) shrinks to fit into the NAIP quarter quad.

What such pairs teach is nonsense: nothing here measures how good a model is. What they prove is that real files go
through the chain: JPEGs with and without EXIF, rasters in UTM and in degrees, ten dates, names with spaces and commas.

The weights are random so that no download is needed; with a network give
`clip: {model: ViT-B-32, pretrained: openai}` in the experiments and run this with `--no-clip`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pystac
import rasterio
import rasterio.features
import shapely
from pyproj import Transformer

from grafalign.geo import project, unproject, utm_epsg
from grafalign.photos.exif import read_metadata

METRES_PER_DEGREE = 111_320
DRAWS = 200
"""Draws in vain before a site shrinks."""
EXTENSIONS = [
    'https://stac-extensions.github.io/eo/v1.1.0/schema.json',
    'https://stac-extensions.github.io/projection/v2.0.0/schema.json',
]


@dataclass(frozen=True)
class Band:
    """A band as STAC describes it."""

    name: str
    common_name: str


def prepare(realdata: Path, out: Path, seed: int = 0, naip_margin_m: float = 600, coast_margin_m: float = 1600) -> None:
    """Write photo tables and STAC items.

    Args:
        realdata: folder with `photos_groton`, `photos_lund`, `naip_nd` and `sentinel2_coast`.
        out: folder to write to.
        seed: seed of the moved positions and of the dates made up for photos without one.
        naip_margin_m: the photos' distance from the edge of the quarter quad: half a tile of 1120 m, and some.
        coast_margin_m: the same for the coast, whose edges are oblique: half the diagonal of a tile of 2240 m.
    """
    out.mkdir(parents=True, exist_ok=True)
    photos = read_sites(realdata)

    naip = [naip_item(path) for path in sorted((realdata / 'naip_nd').glob('m_*.tif'))]
    pystac.ItemCollection(naip).save_object(str(out / 'items_naip.json'))
    # every date covers a metre or two that another does not: photos stay where all of them are
    common = shapely.intersection_all([shapely.geometry.shape(item.geometry) for item in naip])
    moved = move(photos, common, naip_margin_m, np.random.default_rng((seed, 0)))
    years = [item.datetime.year for item in naip if item.datetime]
    dated = with_made_up_dates(moved, min(years), max(years), np.random.default_rng((seed, 1)))
    dated.to_csv(out / 'photos_naip.csv', index=False)

    coast = coast_item(sorted((realdata / 'sentinel2_coast').glob('*.tiff')))
    pystac.ItemCollection([coast]).save_object(str(out / 'items_coast.json'))
    moved = move(photos, shapely.geometry.shape(coast.geometry), coast_margin_m, np.random.default_rng((seed, 2)))
    moved.to_csv(out / 'photos_coast.csv', index=False)  # one date has no rival: photos without a time stay without


def read_sites(realdata: Path) -> pd.DataFrame:
    """Both sites' photos: photo_id, path, taken_at (EXIF or missing), time_from, source, lon_original, lat_original."""
    groton = pd.read_csv(realdata / 'photos_groton' / 'photos.csv')
    rows = []
    for photo in groton.itertuples():
        path = realdata / 'photos_groton' / str(photo.path)
        rows.append(('photos_groton', path, read_metadata(path).taken_at, photo.lon, photo.lat))
    for path in sorted((realdata / 'photos_lund').glob('*.jpg')):
        metadata = read_metadata(path)
        rows.append(('photos_lund', path, metadata.taken_at, metadata.lon, metadata.lat))
    return pd.DataFrame(
        {
            'photo_id': [f'{source}/{path.stem}' for source, path, *_ in rows],
            'path': [str(path.resolve()) for _, path, *_ in rows],
            'taken_at': [None if time is None else time.isoformat() for *_, time, _, _ in rows],
            'time_from': ['' if time is None else 'exif' for *_, time, _, _ in rows],
            'source': [source for source, *_ in rows],
            'lon_original': [lon for *_, lon, _ in rows],
            'lat_original': [lat for *_, lat in rows],
        }
    )


def move(photos: pd.DataFrame, footprint: shapely.Geometry, margin_m: float, rng: np.random.Generator) -> pd.DataFrame:
    """Set every site down inside a footprint, by the rule at the top of this file.

    Args:
        photos: of `read_sites`.
        footprint: polygon in degrees.
        margin_m: least distance from its edge in metres.
        rng: the draws.

    Returns:
        The photos with `lon`, `lat` and `moved`.
    """
    middle = footprint.centroid
    epsg = int(utm_epsg(np.array([middle.x]), np.array([middle.y]))[0])
    inner = shapely.transform(footprint, lambda c: np.stack(project(c[:, 0], c[:, 1], epsg), axis=1))
    inner = inner.buffer(-margin_m, join_style='mitre')
    if inner.is_empty:
        raise ValueError(f'no place in the footprint is {margin_m} m from its edge')
    west, south, east, north = inner.bounds
    placed = []
    for _, site in photos.groupby('source', sort=True):
        lon, lat = site['lon_original'].to_numpy(), site['lat_original'].to_numpy()
        lon0, lat0 = (lon.min() + lon.max()) / 2, (lat.min() + lat.max()) / 2
        x = (lon - lon0) * METRES_PER_DEGREE * np.cos(np.deg2rad(lat0))
        y = (lat - lat0) * METRES_PER_DEGREE
        scale, draws = 1.0, 0
        while True:
            left, down = rng.uniform(west, east), rng.uniform(south, north)
            if shapely.contains_xy(inner, left + scale * x, down + scale * y).all():
                break
            draws += 1
            scale *= 0.9 if draws % DRAWS == 0 else 1.0
        lon, lat = unproject(left + scale * x, down + scale * y, epsg)
        placed.append(site.assign(lon=lon, lat=lat, moved=True, shrunk_to=round(scale, 4)))
    return pd.concat(placed, ignore_index=True)


def with_made_up_dates(photos: pd.DataFrame, first: int, last: int, rng: np.random.Generator) -> pd.DataFrame:
    """Give photos without a time one drawn uniformly from the years `first` to `last`; `time_from` says `seed`."""
    start, end = datetime(first, 1, 1, tzinfo=timezone.utc), datetime(last + 1, 1, 1, tzinfo=timezone.utc)
    drawn = [start + timedelta(days=int(day)) for day in rng.integers(0, (end - start).days, len(photos))]
    missing = photos['taken_at'].isna()
    made_up = pd.Series([time.isoformat() for time in drawn], index=photos.index)
    return photos.assign(
        taken_at=photos['taken_at'].where(~missing, made_up), time_from=photos['time_from'].where(~missing, 'seed')
    )


def naip_item(path: Path) -> pystac.Item:
    """One date of the quarter quad: four bands in one file, the day in the file's name."""
    with rasterio.open(path) as file:
        outline = shapely.box(*file.bounds)
        crs = file.crs
    bands = [Band(name, name) for name in ('red', 'green', 'blue', 'nir')]
    return _item(path.stem, 'naip', path.stem.rsplit('_', 1)[1], '%Y%m%d', outline, crs, {'image': (path, bands)})


def coast_item(paths: Sequence[Path]) -> pystac.Item:
    """The Sentinel-2 scene: a file for each band, cut out along a polygon.

    Outside that polygon the files are white (255) with a logo in a corner, and they declare no nodata value. Saturated
    sand and roofs are 255 as well, so none may be declared here either: the footprint alone says where the scene is.
    """
    common = {'B02': 'blue', 'B03': 'green', 'B04': 'red', 'B08': 'nir'}
    planes = []
    for path in paths:
        with rasterio.open(path) as file:
            planes.append(file.read(1))
            transform, crs = file.transform, file.crs
    filled = (np.stack(planes) != 255).any(axis=0)
    parts = [
        shapely.geometry.shape(part)
        for part, value in rasterio.features.shapes(filled.astype(np.uint8), transform=transform)
        if value
    ]
    outline = max(parts, key=lambda part: part.area).convex_hull
    assets = {path.stem[-3:]: (path, [Band(path.stem[-3:], common[path.stem[-3:]])]) for path in paths}
    return _item('S2B_L1C_20181013_coast', 'sentinel2-coast', '2018-10-13', '%Y-%m-%d', outline, crs, assets)


def _item(
    name: str,
    collection: str,
    day: str,
    pattern: str,
    outline: shapely.Polygon,
    crs: Any,
    assets: Mapping[str, tuple[Path, list[Band]]],
) -> pystac.Item:
    """A STAC item; `outline` is in the raster's CRS and becomes a footprint in degrees."""
    degrees = Transformer.from_crs(crs.to_wkt(), 'EPSG:4326', always_xy=True)
    dense = shapely.segmentize(outline, outline.length / 64)  # straight edges in metres are bent in degrees
    footprint = shapely.transform(dense, lambda c: np.stack(degrees.transform(c[:, 0], c[:, 1]), axis=1))
    item = pystac.Item(
        id=name,
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(footprint.bounds),
        # a name gives the day alone: noon is at most half a day off
        datetime=datetime.strptime(day, pattern).replace(hour=12, tzinfo=timezone.utc),
        properties={'proj:code': f'EPSG:{crs.to_epsg()}'},
        collection=collection,
        stac_extensions=EXTENSIONS,
    )
    for key, (path, bands) in assets.items():
        described = [{'name': band.name, 'common_name': band.common_name} for band in bands]
        asset = pystac.Asset(str(path.resolve()), media_type=pystac.MediaType.GEOTIFF, roles=['data'])
        asset.extra_fields['eo:bands'] = described
        item.add_asset(key, asset)
    return item


def write_clip(path: Path, seed: int = 0) -> None:
    """Save an open_clip ViT-B-32 with random weights, as float16 like the published ones."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    state = open_clip.create_model('ViT-B-32').state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--realdata',
        type=Path,
        default=os.environ.get('GRAFALIGN_REALDATA'),
        help='folder of real files; $GRAFALIGN_REALDATA by default',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/real'), help='folder to write to')
    parser.add_argument('--seed', type=int, default=0, help='of positions, made-up dates and weights')
    parser.add_argument('--no-clip', action='store_true', help='write no weights')
    args = parser.parse_args()
    if args.realdata is None:
        parser.error('give --realdata FOLDER or set GRAFALIGN_REALDATA')
    prepare(args.realdata, args.out, args.seed)
    if not args.no_clip:
        write_clip(args.out / 'clip' / 'vit_b_32.safetensors', args.seed)


if __name__ == '__main__':
    main()
