"""What the shipped recipes meet on this machine in place of the public services and the large downloads.

Real: the STAC items as Planetary Computer and Earth Search served them, and the rows of tests/fixtures/layouts. Made:

- the addresses of the assets, which are those of a server of byte ranges on this machine;
- its files: cloud-optimised GeoTIFFs of an item's own grid and full size. They are sparse: only the blocks around two
  places hold pixels;
- the photos' places: all lie at these two places. Beside the fixtures' own rows there are copies of the first good one,
  some of them with one thing wrong.
"""

from __future__ import annotations

import bz2
import copy
import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from PIL import Image
from pyproj import Transformer
from rasterio.windows import Window

LAYOUTS = Path(__file__).parent / 'fixtures' / 'layouts'
RECORDED = {
    'naip': 'planetarycomputer.microsoft.com__naip',
    'sentinel2_pc': 'planetarycomputer.microsoft.com__sentinel-2-l2a',
    'sentinel2_es': 'earth-search.aws.element84.com__sentinel-2-l2a',
}
"""The file of recorded items of each kind of imagery."""
PLACES = {
    'naip': (('vt_m_4307308_nw', 0.35, 0.4), ('vt_m_4307308_nw', 0.65, 0.6)),
    'sentinel2_pc': (
        ('S2B_MSIL2A_20200606T080609_R078_T35MNM', 0.4, 0.4),
        ('S2B_MSIL2A_20240419T095549_R122_T46XER', 0.5, 0.4),
    ),
    'sentinel2_es': (('S2A_13TDE_20231008', 0.3, 0.5), ('S2A_13TDE_20231008', 0.7, 0.5)),
}
"""Two places of each: how the id of an item begins, and how far east and north they lie in its bounding box."""
FILES = {
    'naip': ('vt_m_4307308_nw_18_1_20120712', 'vt_m_4307308_nw_18_060_20181019', 'vt_m_4307308_nw_18_060_20210920'),
    'sentinel2_pc': (
        PLACES['sentinel2_pc'][0][0],
        'S2A_MSIL2A_20200731T080611_R078_T35MNM',
        PLACES['sentinel2_pc'][1][0],
    ),
    'sentinel2_es': (PLACES['sentinel2_es'][0][0],),
}
"""How the ids of the items begin that have files; reading any other one fails."""
_HALF_PX = 300
"""Around each place so many pixels in every direction hold data."""


def recorded_items(realdata: Path, kind: str) -> list[dict[str, Any]]:
    """The real items of a kind of imagery."""
    lines = (realdata / 'stac' / f'{RECORDED[kind]}.items.ndjson').read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def places_of(items: list[dict[str, Any]], kind: str) -> list[tuple[float, float]]:
    """Longitude and latitude of the two places."""
    found = []
    for start, east, north in PLACES[kind]:
        west, south, *rest = next(i['bbox'] for i in items if i['id'].startswith(start))
        found.append((west + east * (rest[0] - west), south + north * (rest[1] - south)))
    return found


def rehosted(item: dict[str, Any], root: str) -> dict[str, Any]:
    """The item with all its assets on this machine: `ROOT/HOST/PATH`, where the first part of a host is its account."""
    item = copy.deepcopy(item)
    for asset in item['assets'].values():
        asset['href'] = f'{root}/{file_name(asset["href"])}'
    return item


def file_name(href: str) -> str:
    """Where the file of a real address lies below the folder of the server."""
    parts = urlsplit(href)
    return f'{parts.netloc.partition(".")[0]}{parts.path}'


def make_file(item: dict[str, Any], key: str, places: list[tuple[float, float]], folder: Path) -> None:
    """Write the file of one asset on the grid that the item states, with waves around the places.

    The waves differ from band to band and from item to item, and no two pixels beside each other are alike. In an SCL
    all is vegetation (4), but at the second place of Earth Search there are clouds (9).
    """
    asset, metadata = item['assets'][key], item['properties']
    grid = asset if 'proj:transform' in asset else metadata
    height, width = grid['proj:shape']
    place = rasterio.Affine(*grid['proj:transform'][:6])
    crs = f'EPSG:{metadata["proj:epsg"]}'
    naip, mask = key == 'image', key.lower() == 'scl'
    profile = {
        **{'driver': 'GTiff', 'width': width, 'height': height, 'count': 4 if naip else 1, 'crs': crs},
        **{'dtype': 'uint8' if naip or mask else 'uint16', 'transform': place, 'nodata': None if naip else 0},
        **{'tiled': True, 'blockxsize': 512, 'blockysize': 512, 'compress': 'deflate', 'SPARSE_OK': True},
    }
    path = folder / file_name(asset['href'])
    path.parent.mkdir(parents=True, exist_ok=True)
    sparse = path.with_suffix('.sparse.tif')
    half = _HALF_PX if not naip else int(_HALF_PX / place.a)
    with rasterio.open(sparse, 'w', **profile) as file:
        for number, (lon, lat) in enumerate(places):
            x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(lon, lat)
            col, row = (int(v) for v in ~place @ (x, y))
            if not (half <= col < width - half and half <= row < height - half):
                continue
            window = Window(col - half, row - half, 2 * half, 2 * half)
            for band in range(1, profile['count'] + 1):
                cloudy = mask and number == 1 and item['id'].startswith(PLACES['sentinel2_es'][1][0])
                seed = band + sum(map(ord, item['id'] + key))
                pixels = np.full((2 * half, 2 * half), 9 if cloudy else 4) if mask else _waves(window, seed)
                file.write((pixels if naip or mask else 20 * pixels).astype(profile['dtype']), band, window=window)
    options = {'BLOCKSIZE': 512, 'COMPRESS': 'DEFLATE', 'OVERVIEWS': 'NONE', 'SPARSE_OK': 'TRUE'}
    rasterio.shutil.copy(sparse, path, driver='COG', **options)
    sparse.unlink()


def _waves(window: Window, seed: int) -> npt.NDArray[np.float64]:
    rows, cols = np.mgrid[
        window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width
    ]
    return np.round(128 + 60 * np.sin(cols / 17 + seed) + 40 * np.cos(rows / 23 + 2 * seed))


@dataclass(frozen=True)
class Shot:
    """A photo to write into a table."""

    name: int
    lon: float
    lat: float
    author: str
    minute: int
    wrong: str = ''
    """What is wrong with it: the name of a change that the layout knows, or nothing."""


def shots_for(layout: str, places: list[tuple[float, float]], gsd_m: float) -> list[Shot]:
    """Five good photos at two places, and some that the filters should reject."""
    shots: list[Shot] = []

    def add(place: int, east_px: float, north_px: float, wrong: str = '', author: str = '', minute: int = -1) -> None:
        lon, lat = places[place]
        high = gsd_m / 111_320
        wide = high / np.cos(np.deg2rad(lat))
        number = len(shots)
        at = {'whole degrees': (7.0, 8.0), 'near 0, 0': (0.001, 0.002)}.get(
            wrong, (lon + east_px * wide, lat + north_px * high)
        )
        when = number if minute < 0 else minute
        shots.append(Shot(number, *at, author or f'author {number}', when, wrong))

    for place, east, north in ((0, 0, 0), (0, 40, -30), (0, -30, 20), (1, 0, 0), (1, 25, 25)):
        add(place, east, north)
    for wrong in ('whole degrees', 'near 0, 0', *WRONG[layout]):
        add(0, 5, 5, wrong)
    if layout in ('yfcc', 'mapillary'):  # the same author, place and minute; one of them stays
        for _ in range(3):
            add(0, 10, 10, author='in a hurry', minute=500)
    if layout != 'lucas':  # four by one author, where the test allows three
        for number in range(4):
            add(0, 12 + 3 * number, -12, author='everywhere', minute=600 + 10 * number)
    return shots


WRONG = {
    'yfcc': (
        'position too inaccurate',
        'accuracy of the position unknown',
        'outside the dates',
        'licence is not wanted',
    ),
    'inaturalist': (
        *('position too inaccurate', 'accuracy of the position unknown', 'outside the dates', 'licence is not wanted'),
        'too few pixels',
    ),
    'lucas': ('position too inaccurate', 'accuracy of the position unknown', 'outside the dates'),
    'mapillary': ('outside the dates', 'too few pixels', 'duplicate photo'),
}
"""What a layout's copies may have wrong, by the reason that it is rejected for."""


def write_yfcc(shots: list[Shot], folder: Path) -> None:
    """photos/yfcc100m_dataset.bz2."""
    own = [
        line.split('\t')
        for line in bz2.decompress((LAYOUTS / 'yfcc100m_dataset.bz2').read_bytes()).decode().splitlines()
    ]
    for line in own:
        if line[12]:
            line[12:14] = [str(shots[0].lon), str(shots[0].lat)]
    lines = []
    for shot in shots:
        line = list(own[0])
        line[1], line[3], line[4] = f'{7_000_000_000 + shot.name}', f'{shot.author}@N00', shot.author.replace(' ', '+')
        line[5] = f'2012-07-01 {8 + shot.minute // 60:02d}:{shot.minute % 60:02d}:30.0'
        line[12:15] = [str(shot.lon), str(shot.lat), '16']
        line[17:19] = ['Attribution License', 'http://creativecommons.org/licenses/by/2.0/']
        match shot.wrong:
            case 'position too inaccurate':
                line[14] = '12'
            case 'accuracy of the position unknown':
                line[14] = ''
            case 'outside the dates':
                line[5] = '1970-01-01 00:00:00.0'
            case 'licence is not wanted':
                line[17:19] = own[0][17:19]
        lines.append(line)
    content = ''.join('\t'.join(line) + '\n' for line in own + lines)
    (folder / 'yfcc100m_dataset.bz2').write_bytes(bz2.compress(content.encode()))


def write_inaturalist(shots: list[Shot], folder: Path) -> None:
    """photos/inaturalist/photos.csv.gz with observations.csv.gz and observers.csv.gz."""
    out = folder / 'inaturalist'
    out.mkdir()
    tables = {n: gzip.decompress((LAYOUTS / 'inaturalist' / f'{n}.csv.gz').read_bytes()).decode() for n in _DUMP}
    for number, place in enumerate((('47.3769', '8.5417'), ('-33.8688', '151.2093'))):  # moved, with their days
        tables['observations'] = tables['observations'].replace(
            '\t'.join(place), f'{shots[number].lat}\t{shots[number].lon}'
        )
    people = {a: 1000 + n for n, a in enumerate(dict.fromkeys(s.author for s in shots))}
    tables['observers'] += ''.join(f'{n}\t{a}\t\n' for a, n in people.items())
    for shot in shots:
        uuid, who = f'1b50e1a6-0000-4000-8000-{shot.name:012d}', people[shot.author]
        error = {'position too inaccurate': '5000', 'accuracy of the position unknown': ''}.get(shot.wrong, '8')
        day = '1999-06-01' if shot.wrong == 'outside the dates' else '2019-06-01'
        licence = 'CC-BY-NC' if shot.wrong == 'licence is not wanted' else 'CC-BY'
        size = '100\t100' if shot.wrong == 'too few pixels' else '2048\t1536'
        tables['observations'] += f'{uuid}\t{who}\t{shot.lat}\t{shot.lon}\t{error}\t3\tresearch\t{day}\t\n'
        tables['photos'] += f'p{shot.name}\t{1000 + shot.name}\t{uuid}\t{who}\tjpg\t{licence}\t{size}\t0\n'
    for name, text in tables.items():
        (out / f'{name}.csv.gz').write_bytes(gzip.compress(text.encode()))


_DUMP = ('photos', 'observations', 'observers')


def write_lucas(shots: list[Shot], folder: Path) -> None:
    """photos/lucas_harmo_uf.csv; every row is a visit with four photos."""
    own = list(csv.DictReader(io.StringIO((LAYOUTS / 'lucas_harmo_uf.csv').read_text())))
    rows = []
    for shot in shots:
        row = {**own[0], 'point_id': f'{50_000_000 + shot.name}'}
        rows.append(_stand(row, shot))
        match shot.wrong:
            case 'position too inaccurate':
                row['gps_prec'] = '500'
            case 'accuracy of the position unknown':
                row['gps_prec'] = '8888'
            case 'outside the dates':
                row |= {'survey_date': '03/06/09', 'year': '2009'}
    for row in own[:2]:
        _stand(row, shots[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(own[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(own + rows)
    (folder / 'lucas_harmo_uf.csv').write_text(text.getvalue())


def _stand(row: dict[str, str], shot: Shot) -> dict[str, str]:
    row |= {'gps_lat': str(shot.lat), 'gps_long': str(abs(shot.lon)), 'gps_ew': 'East' if shot.lon >= 0 else 'West'}
    return row


def write_mapillary(shots: list[Shot], folder: Path) -> None:
    """photos/mapillary/*.json, two of them as the answers to two questions, and the photos ID.jpg beside them."""
    out = folder / 'mapillary'
    out.mkdir()
    own = json.loads((LAYOUTS / 'mapillary_images.json').read_text())['data']
    images = []
    for shot in shots:
        image = copy.deepcopy(own[0])
        image |= {'id': f'{300_000_000_000_000 + shot.name}', 'creator': {'username': shot.author, 'id': '1'}}
        image['captured_at'] += 60_000 * shot.minute
        image['geometry']['coordinates'] = image['computed_geometry']['coordinates'] = [shot.lon, shot.lat]
        match shot.wrong:
            case 'outside the dates':
                image['captured_at'] = 946_684_800_000  # the first day of 2000
            case 'too few pixels':
                image |= {'width': 100, 'height': 80}
        images.append(image)
    for image in own:
        for key in {'geometry', 'computed_geometry'} & set(image):
            image[key]['coordinates'] = [shots[1].lon, shots[1].lat]
    (out / '0.json').write_text(json.dumps({'data': own}))
    (out / '1.json').write_text(json.dumps({'data': images}))
    for number, image in enumerate([*own, *images]):
        wrong = ([''] * len(own) + [s.wrong for s in shots])[number]
        seed = len(own) if wrong == 'duplicate photo' else number  # then it is the first good one again
        noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        side = (100, 80) if wrong == 'too few pixels' else (320, 240)
        Image.fromarray(noise).resize(side).save(out / f'{image["id"]}.jpg')


WRITERS: dict[str, Callable[[list[Shot], Path], None]] = {
    'yfcc': write_yfcc,
    'inaturalist': write_inaturalist,
    'lucas': write_lucas,
    'mapillary': write_mapillary,
}
"""What writes the photo table of a recipe, where the recipe looks for it."""
OWN_REASONS = {
    'yfcc': {'licence is not wanted': 1, 'position too inaccurate': 1, 'video': 1, 'no position': 1},
    'inaturalist': {
        'licence is not wanted': 1,
        'accuracy of the position unknown': 1,
        'no observation with a place': 2,
    },
    'lucas': {'accuracy of the position unknown': 2, 'no position': 1, 'no photo to north, east, south or west': 1},
    'mapillary': {'panorama': 2, 'burst': 1},
}
"""Why the fixtures' own rows are rejected, by hand."""
