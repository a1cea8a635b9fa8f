"""Write a whole sandbox world to a folder, as the formats real data come in.

OUT/photos/00/000000.jpg ...      JPEGs with EXIF position, heading and time
OUT/catalog/catalog.json ...      static STAC catalog; COGs of two sensors
OUT/truth/classes.tif, objects.geojson, photos.parquet      read by evaluation only
OUT/sandbox.json                  settings and counts; written last
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from PIL import Image
from pyproj import Transformer
from shapely.geometry import Polygon

from grafalign import console, engine
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.files import write_atomically
from grafalign.labels import VOID
from grafalign.locks import LOCK, exclusive
from grafalign.sandbox.classes import TINTS
from grafalign.sandbox.ground import Cameras, render
from grafalign.sandbox.junk import indoor_photo, junk_photo
from grafalign.sandbox.land import GSD_M, Land, make_land
from grafalign.sandbox.photographers import INDOOR, OUTDOOR, Snapshots, stand
from grafalign.sandbox.scenes import write_catalog
from grafalign.sandbox.structures import Structures, build

_BATCH = 480
_PARTS = ('photos', 'catalog', 'truth')
_BEGUN = '.begun'
GPS_IFD, EXIF_IFD = 0x8825, 0x8769


@dataclass(frozen=True)
class SandboxSettings:
    """Settings of a world; two equal settings give equal files."""

    seed: int = 0
    photos: int = 36_000
    rows: int = 3072
    cols: int = 3840
    tints: int = 1
    """Colours of the land, from 1 (plain) to 9: the world has 24 times as many kinds."""


def make_sandbox(out: Path, settings: SandboxSettings | None = None, workers: int | None = None) -> dict[str, object]:
    """Make a world, or return at once if the same world is already there.

    Args:
        out: folder to write; created.
        settings: seed and size.
        workers: threads; the number of cores by default.

    Returns:
        The content of `sandbox.json`.

    Raises:
        GrafalignError: `out` holds something else, or the size is not usable.
    """
    settings = settings or SandboxSettings()
    _check_size(settings)
    with naming_full_disk(out), exclusive(out):
        return _make(out, settings, workers)


def _check_size(settings: SandboxSettings) -> None:
    if settings.rows % 16 or settings.cols % 16 or min(settings.rows, settings.cols) < 512:
        raise InputError(
            f'A world of {settings.rows} x {settings.cols} cells cannot be laid out; '
            'rows and cols must be multiples of 16 and at least 512.'
        )
    if not 1 <= settings.tints <= len(TINTS) + 1:
        raise InputError(f'A world has 1 to {len(TINTS) + 1} tints, not {settings.tints}; give a number between.')


def _make(out: Path, settings: SandboxSettings, workers: int | None) -> dict[str, object]:
    marker = out / 'sandbox.json'
    if marker.exists():
        made: dict[str, object] = json.loads(marker.read_text())
        given = made.get('settings')
        if isinstance(given, dict) and {'tints': 1, **given} == asdict(settings):  # older worlds tell no tints
            console.log(f'{out} already holds this world.')
            return made
        raise StaleError(f'{out} holds another world ({made.get("settings")}); give another folder or delete it.')
    begun = out / _BEGUN
    ours = {LOCK, _BEGUN, *_PARTS} if begun.exists() else {LOCK}  # never remove a `photos` folder that we did not make
    foreign = [p.name for p in out.iterdir() if p.name not in ours]
    if foreign:
        raise InputError(f'{out} is not empty (it holds {foreign[0]!r}); give a new or an empty folder.')
    begun.touch()
    for part in _PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
        (out / part).mkdir(parents=True)
    land = make_land(settings.seed, (settings.rows, settings.cols), settings.tints)
    structures = build(land)
    items = write_catalog(out / 'catalog', land, structures, workers)
    cameras, phones = stand(land, structures, settings.photos, settings.seed)
    shares = _write_photos(out / 'photos', land, structures, cameras, phones, workers)
    _write_truth(out / 'truth', land, cameras, phones, shares)
    summary: dict[str, object] = {
        'settings': asdict(settings),
        'photos': settings.photos,
        'scenes': items,
        'objects': len(land.objects),
        'towns': len(land.towns),
        'classes': [kind.name for kind in land.kinds],
        'area_km2': round(land.classes.size * GSD_M**2 / 1e6, 1),
        'versions': {'grafalign': version('grafalign'), 'numpy': version('numpy'), 'rasterio': rasterio.__version__},
    }
    write_atomically(marker, (json.dumps(summary, indent=2) + '\n').encode())
    begun.unlink()
    return summary


def photo_path(index: int) -> str:
    """Where the photo of this number lies below the photo folder."""
    return f'{index // 1000:02d}/{index:06d}.jpg'


def _write_photos(
    folder: Path, land: Land, structures: Structures, cameras: Cameras, phones: Snapshots, workers: int | None
) -> np.ndarray:
    """Render and write the photos batch by batch; return the class shares [P, classes]."""
    to_lonlat = Transformer.from_crs(land.geobox.crs, 'EPSG:4326', always_xy=True)
    x, y = land.geobox.affine @ (phones.tag_col.astype(float), phones.tag_row.astype(float))
    lon, lat = to_lonlat.transform(x, y)
    shares = np.zeros((len(cameras), len(land.kinds)), dtype=np.float32)
    for index in range(0, len(cameras), 1000):
        (folder / photo_path(index)).parent.mkdir(exist_ok=True)

    def write(start: int) -> int:
        part = slice(start, start + _BATCH)
        images, share = render(land, structures, cameras[part], land.seed * 1_000_003 + start)
        rng = np.random.default_rng((land.seed, 3, start))
        for i, image in enumerate(images):
            at = start + i
            if phones.kind[at] != OUTDOOR:
                image = indoor_photo(rng) if phones.kind[at] == INDOOR else junk_photo(rng)
                share[i] = 0
            when = datetime(int(phones.year[at]), 1, 1, int(phones.hour[at])) + timedelta(
                days=int(cameras.day_of_year[at]) - 1
            )
            exif = _exif(lon[at], lat[at], phones.accuracy_m[at], phones.tag_heading_deg[at], when)
            Image.fromarray(image).save(folder / photo_path(at), quality=92, exif=exif)
        shares[part] = share
        return len(images)

    starts = range(0, len(cameras), _BATCH)
    for _ in console.track(engine.run(write, starts, workers), 'taking photos', len(cameras), step=_BATCH):
        pass
    return shares


def _exif(lon: float, lat: float, accuracy_m: float, heading_deg: float, when: datetime) -> Image.Exif:
    """What a phone writes into a JPEG (EXIF 2.32, GPS and Exif directories)."""

    def sexagesimal(value: float) -> tuple[float, float, float]:
        value = abs(value)
        minutes = value % 1 * 60
        return float(int(value)), float(int(minutes)), round(minutes % 1 * 60, 4)

    gps: dict[int, object] = {
        1: 'N' if lat >= 0 else 'S',
        2: sexagesimal(lat),
        3: 'E' if lon >= 0 else 'W',
        4: sexagesimal(lon),
        7: (float(when.hour), 0.0, 0.0),
        29: when.strftime('%Y:%m:%d'),
    }
    if np.isfinite(heading_deg):
        gps |= {16: 'T', 17: round(float(heading_deg), 1)}
    if np.isfinite(accuracy_m):
        gps[31] = round(float(accuracy_m), 1)
    exif = Image.Exif()
    exif[0x0110] = 'sandbox phone'
    exif[EXIF_IFD] = {36867: when.strftime('%Y:%m:%d %H:%M:%S'), 36881: '+00:00'}
    exif[GPS_IFD] = gps
    return exif


def _write_truth(folder: Path, land: Land, cameras: Cameras, phones: Snapshots, shares: np.ndarray) -> None:
    names = [kind.name for kind in land.kinds]
    height, width = land.classes.shape
    profile = {
        'driver': 'COG',
        'dtype': 'uint8',
        'count': 1,
        'height': height,
        'width': width,
        'crs': str(land.geobox.crs),
        'transform': land.geobox.affine,
        'nodata': VOID,
        'compress': 'deflate',
        'resampling': 'mode',
    }
    with rasterio.open(folder / 'classes.tif', 'w', **profile) as raster:
        raster.write(land.kind, 1)
        raster.update_tags(classes=json.dumps(names), void=f'{VOID}: roads and streets')
    corners = ((-1, -1), (-1, 1), (1, 1), (1, -1))
    shapes = []
    for thing in land.objects:
        c, s = np.cos(thing.bearing_rad), np.sin(thing.bearing_rad)
        ring = []
        for i, j in corners:
            a, b = i * thing.length_px / 2, j * thing.width_px / 2
            ring.append(land.geobox.affine @ (thing.col + a * c - b * s, thing.row + a * s + b * c))
        shapes.append(Polygon(ring))
    kind = land.kind
    kinds = [o.kind if land.tint is None else names[kind[int(o.row), int(o.col)]] for o in land.objects]
    objects = gpd.GeoDataFrame({'class': kinds}, geometry=shapes, crs=str(land.geobox.crs))
    objects.to_crs(4326).to_file(folder / 'objects.geojson', driver='GeoJSON')
    x, y = land.geobox.affine @ (cameras.col.astype(float), cameras.row.astype(float))
    table = pd.DataFrame(
        {
            'photo_id': [photo_path(i) for i in range(len(cameras))],
            'kind': np.array(['outdoor', 'indoor', 'junk'])[phones.kind],
            'x': x,
            'y': y,
            'heading_deg': cameras.heading_deg,
            'main_class': np.array(names)[shares.argmax(1)],
            'main_share': shares.max(1),
        }
    )
    table.to_parquet(folder / 'photos.parquet', index=False)
