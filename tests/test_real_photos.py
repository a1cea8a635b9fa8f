"""Real photos on real rasters: what the store holds equals what plain rasterio, pyproj and numpy find in the files."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import rasterio
import rasterio.transform
from pyproj import Transformer
from rasterio.windows import Window

from grafalign.chain import Experiment
from grafalign.config import load_settings
from grafalign.pairing import PairSummary, pair
from grafalign.store import PairStore
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.realdata
EXPERIMENTS = REPOSITORY / 'experiments'
COMMON_NAMES = {'blue': 'B02', 'green': 'B03', 'red': 'B04', 'nir': 'B08'}


@dataclass(frozen=True)
class Paired:
    """A pair store and the files that it was made from."""

    store: PairStore
    summary: PairSummary
    photos: pd.DataFrame
    """The CSV, by photo_id."""
    items: dict[str, dict[str, Any]]


def prepare_module() -> Any:
    """`experiments/real_photos/prepare.py` as a module."""
    spec = importlib.util.spec_from_file_location('prepare', EXPERIMENTS / 'real_photos' / 'prepare.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules['prepare'] = module
    spec.loader.exec_module(module)
    return module


def paired(folder: Path, which: str, *changes: str) -> Paired:
    """Pair with the recipe of a committed experiment, from the files of a prepared folder."""
    table, items = folder / f'photos_{which}.csv', folder / f'items_{which}.json'
    settings = [f'pair.photos.table={table}', f'pair.scenes.items={items}', *changes]
    recipe = load_settings(EXPERIMENTS / f'real_photos_{which}.yaml', Experiment, settings).recipe
    out = folder / 'stores' / '_'.join([which, *changes])
    summary = pair(recipe, out)
    features = json.loads(items.read_text())['features']
    photos = pd.read_csv(table, index_col='photo_id')
    return Paired(PairStore(out), summary, photos, {f['id']: f for f in features})


@pytest.fixture(scope='module')
def prepared(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photo tables and STAC items, as the experiments use them."""
    out = tmp_path_factory.mktemp('real')
    prepare_module().prepare(realdata, out)
    return out


@pytest.fixture(scope='module')
def naip(prepared: Path) -> Paired:
    """The store of the NAIP experiment."""
    return paired(prepared, 'naip')


@pytest.fixture(scope='module')
def naip_small(prepared: Path) -> Paired:
    """The same with tiles of 320 m: more tiles with fewer photos each, so that many dates are the closest to some."""
    return paired(prepared, 'naip', 'pair.sensor.size_px=64')


@pytest.fixture(scope='module')
def naip_edges(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Paired:
    """The same with tiles of 640 m and photos up to the edge of the quarter quad, so that tiles hang over it."""
    out = tmp_path_factory.mktemp('edges')
    prepare_module().prepare(realdata, out, naip_margin_m=20)
    return paired(out, 'naip', 'pair.sensor.size_px=128', 'pair.max_nodata=0.6')


@pytest.fixture(scope='module')
def coast(prepared: Path) -> Paired:
    """The store of the coast experiment."""
    return paired(prepared, 'coast')


def read_files(item: dict[str, Any], bands: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], rasterio.Affine, Any]:
    """All pixels [C, H, W] of an item's files by plain rasterio, with their transform and CRS."""
    planes = []
    for band in bands:
        if 'image' in item['assets']:
            href, index = item['assets']['image']['href'], ('red', 'green', 'blue', 'nir').index(band) + 1
        else:
            href, index = item['assets'][COMMON_NAMES[band]]['href'], 1
        with rasterio.open(href) as file:
            planes.append(file.read(index))
            transform, crs = file.transform, file.crs
    return np.stack(planes), transform, crs


def apply(
    transform: rasterio.Affine, x: npt.NDArray[np.float64] | float, y: npt.NDArray[np.float64] | float
) -> tuple[Any, Any]:
    """An affine transform of a point or of many."""
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def bilinear(
    planes: npt.NDArray[np.uint8], transform: rasterio.Affine, crs: Any, tile: rasterio.Affine, epsg: int, size: int
) -> npt.NDArray[np.float64]:
    """Tile pixels [C, size, size] by a triangle filter in numpy, as wide as the coarser of both grids; NaN outside."""
    centre = np.arange(size) + 0.5
    x, y = apply(tile, *np.meshgrid(centre, centre))
    x, y = Transformer.from_crs(f'EPSG:{epsg}', crs.to_wkt(), always_xy=True).transform(x, y)
    col, row = apply(~transform, np.asarray(x), np.asarray(y))
    wide_col, wide_row = (max(1.0, float(np.abs(np.diff(v, axis=a)).mean())) for v, a in ((col, 1), (row, 0)))
    total, weights = np.zeros((len(planes), size, size)), np.zeros((size, size))
    height, width = planes.shape[1:]
    reach_row, reach_col = int(np.ceil(wide_row)), int(np.ceil(wide_col))
    for i in range(-reach_row, reach_row + 1):
        for j in range(-reach_col, reach_col + 1):
            r, c = np.floor(row).astype(int) + i, np.floor(col).astype(int) + j
            down, across = np.abs(row - r - 0.5) / wide_row, np.abs(col - c - 0.5) / wide_col
            near = np.maximum(0, 1 - down) * np.maximum(0, 1 - across)
            near = np.where((r >= 0) & (r < height) & (c >= 0) & (c < width), near, 0)
            total += near * planes[:, r.clip(0, height - 1), c.clip(0, width - 1)]
            weights += near
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(inside, total / weights, np.nan)


def window_of(transform: rasterio.Affine, tile: rasterio.Affine, size: int) -> Window | None:
    """The window of a raster that coincides with a tile of the same pixel size, by arithmetic on the origins."""
    if (transform.a, transform.e) != (tile.a, tile.e):
        return None
    col, row = (tile.c - transform.c) / transform.a, (tile.f - transform.f) / transform.e
    return Window(int(col), int(row), size, size) if col.is_integer() and row.is_integer() else None


def tile_transform(paired: Paired, number: int) -> rasterio.Affine:
    """Where a stored tile lies."""
    return rasterio.Affine(*paired.store.tiles['transform'].iloc[number][:6])


@pytest.mark.parametrize(('fixture', 'fewest_equal'), [('naip', 3), ('naip_small', 10), ('naip_edges', 10)])
def test_naip_tiles_equal_the_rasters(fixture: str, fewest_equal: int, request: pytest.FixtureRequest) -> None:
    """Tiles on the raster's own grid are its pixels, others its bilinear values rounded; beyond it all is 0."""
    paired: Paired = request.getfixturevalue(fixture)
    size, equal = paired.store.sensor.size_px, 0
    for number, metadata in enumerate(paired.store.tiles.itertuples()):
        stored, tile = paired.store.read_tile(number), tile_transform(paired, number)
        planes, transform, crs = read_files(paired.items[metadata.item_id], paired.store.sensor.bands)
        own = bilinear(planes, transform, crs, tile, metadata.epsg, size)
        outside = np.isnan(own[0])
        assert (stored[:, outside] == 0).all()
        assert metadata.nodata_fraction == pytest.approx(outside.mean(), abs=1e-12)
        window = window_of(transform, tile, size)
        if window is None:
            assert np.abs(stored - own)[:, ~outside].max() <= 0.51  # rounding to whole numbers, nothing else
            continue
        equal += 1
        rows, cols = np.flatnonzero(~outside.all(1)), np.flatnonzero(~outside.all(0))
        there = planes[:, window.row_off + rows[0] :, window.col_off + cols[0] :][:, : len(rows), : len(cols)]
        np.testing.assert_array_equal(stored[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], there)
    assert equal >= fewest_equal
    assert equal < len(paired.store.tiles)  # both kinds were seen


def test_some_tiles_hang_over_the_edge(naip_edges: Paired) -> None:
    """The store of the test above holds tiles that the raster covers in part, and their missing share is recorded."""
    share = naip_edges.store.tiles['nodata_fraction']
    assert (share > 0.05).sum() >= 2
    assert (share == 0).sum() >= 3


def test_naip_dates_lie_on_two_kinds_of_grid(naip: Paired) -> None:
    """Four of the ten dates lie on multiples of 5 m, as our tiles do; the others are 0.6 to 3 m beside them."""
    ours = rasterio.Affine(5, 0, 0, 0, -5, 0)
    grids = {i: window_of(read_files(item, ('red',))[1], ours, 1) is not None for i, item in naip.items.items()}
    assert sorted(i[-8:-4] for i, same in grids.items() if same) == ['2010', '2012', '2014', '2015']


def test_coast_tiles_equal_the_resampled_rasters(coast: Paired) -> None:
    """Tiles cut from four files in degrees are the files' bilinear values; a shift by half a pixel would be noticed."""
    size = coast.store.sensor.size_px
    assert coast.store.sensor.bands == ('red', 'green', 'blue', 'nir')
    off = np.zeros(2)  # values that differ by more than 1, from the tile's place and from half a pixel beside it
    for number, metadata in enumerate(coast.store.tiles.itertuples()):
        stored, tile = coast.store.read_tile(number).astype(float), tile_transform(coast, number)
        planes, transform, crs = read_files(coast.items[metadata.item_id], coast.store.sensor.bands)
        apart = np.abs(stored - bilinear(planes, transform, crs, tile, metadata.epsg, size))
        # the warper places pixels to an eighth of a pixel and widens its filter by the ratio of the grids as a whole
        assert apart.max() <= 4
        assert apart.mean() < 0.3
        assert (apart <= 1).mean() > 0.999
        assert metadata.nodata_fraction == 0
        shifted = rasterio.Affine(tile.a, 0, tile.c + tile.a / 2, 0, tile.e, tile.f + tile.e / 2)
        beside = np.abs(stored - bilinear(planes, transform, crs, shifted, metadata.epsg, size))
        off += np.array([(apart > 1).sum(), (beside > 1).sum()])
    assert off[1] > 50 * off[0]


def test_file_uris_are_read(coast: Paired, prepared: Path, tmp_path: Path) -> None:
    """Items that give their files as URIs, with spaces and commas escaped, lead to the same pixels."""
    items = json.loads((prepared / 'items_coast.json').read_text())
    for asset in items['features'][0]['assets'].values():
        asset['href'] = Path(asset['href']).as_uri()
        assert '%20' in asset['href']
    (tmp_path / 'items_coast.json').write_text(json.dumps(items))
    (tmp_path / 'photos_coast.csv').write_bytes((prepared / 'photos_coast.csv').read_bytes())
    other = paired(tmp_path, 'coast').store
    assert other.marker.files['tiles/00000.tar'] == coast.store.marker.files['tiles/00000.tar']


@pytest.mark.parametrize('fixture', ['naip', 'naip_small', 'naip_edges'])
def test_the_closest_date_was_chosen(fixture: str, request: pytest.FixtureRequest) -> None:
    """Of the dates that cover a tile, the stored one is the fewest days from its photos, on average."""
    paired: Paired = request.getfixturevalue(fixture)
    size, chosen, checked = paired.store.sensor.size_px, set(), 0
    outlines = {i: read_files(item, ('red',)) for i, item in paired.items.items()}
    when = {i: pd.Timestamp(item['properties']['datetime']) for i, item in paired.items.items()}
    taken = pd.to_datetime(paired.photos['taken_at'], format='ISO8601', utc=True)
    for number, metadata in enumerate(paired.store.tiles.itertuples()):
        tile = tile_transform(paired, number)
        photos = paired.store.pairs.loc[paired.store.pairs['tile'] == number, 'photo_id']
        days = {}
        for item_id, (planes, transform, _) in outlines.items():
            col, row = apply(~transform, tile.c, tile.f)  # NAD 83 and WGS 84 are one here
            inside = min(col, row, planes.shape[2] - size - col, planes.shape[1] - size - row)
            if inside >= 0:
                days[item_id] = float((taken[photos] - when[item_id]).abs().dt.total_seconds().mean() / 86400)
        if len(days) == len(paired.items):
            checked += 1
            assert metadata.item_id == min(days, key=lambda i: days[i])
            chosen.add(metadata.item_id)
    assert checked >= 7
    assert len(chosen) >= (3 if fixture == 'naip' else 6)


@pytest.mark.parametrize('fixture', ['naip', 'naip_small', 'naip_edges', 'coast'])
def test_rows_and_columns_fall_on_the_positions(fixture: str, request: pytest.FixtureRequest) -> None:
    """Every pair's row and column, put back on the ground by pyproj alone, is where the CSV has the photo."""
    paired: Paired = request.getfixturevalue(fixture)
    pairs, size = paired.store.pairs, paired.store.sensor.size_px
    assert pairs[['row', 'col']].ge(0).all(axis=None)
    assert pairs[['row', 'col']].lt(size).all(axis=None)
    assert set(pairs['tile']) == set(range(len(paired.store.tiles)))
    for number, metadata in enumerate(paired.store.tiles.itertuples()):
        here = pairs[pairs['tile'] == number]
        place = paired.photos.loc[here['photo_id']]
        metres = Transformer.from_crs('EPSG:4326', f'EPSG:{metadata.epsg}', always_xy=True)
        x, y = metres.transform(place['lon'].to_numpy(), place['lat'].to_numpy())
        col, row = apply(~tile_transform(paired, number), np.asarray(x), np.asarray(y))
        np.testing.assert_allclose(here['row'], row, atol=1e-6)
        np.testing.assert_allclose(here['col'], col, atol=1e-6)


@pytest.mark.parametrize('fixture', ['naip', 'coast'])
def test_days_apart_follow_from_the_files(fixture: str, request: pytest.FixtureRequest) -> None:
    """Days between photo and scene are those of CSV and item, and missing where the photo has no time."""
    paired: Paired = request.getfixturevalue(fixture)
    pairs = paired.store.pairs
    times = {i: pd.Timestamp(item['properties']['datetime']) for i, item in paired.items.items()}
    scene = paired.store.tiles['item_id'].map(times)
    taken = pd.to_datetime(paired.photos['taken_at'], format='ISO8601', utc=True)
    apart = scene[pairs['tile']].reset_index(drop=True) - taken[pairs['photo_id']].reset_index(drop=True)
    np.testing.assert_allclose(pairs['days_apart'], apart.dt.total_seconds() / 86400, atol=1e-6)
    missing = taken.isna().sum()
    assert missing == 0 if fixture == 'naip' else missing > 30


def test_every_photo_is_in_the_store_or_rejected(naip: Paired, coast: Paired) -> None:
    """No photo is lost: those that are not in a pair have a reason."""
    for paired in (naip, coast):
        rejected = paired.store.rejected
        assert set(paired.photos.index) == set(paired.store.photos['photo_id']) | set(rejected['id'])
        assert set(rejected['reason']) <= {'tile already has 25 photos'}
        assert paired.summary.photos == 103


def test_moved_positions_say_so_and_keep_their_layout(prepared: Path, realdata: Path) -> None:
    """Every photo is marked as moved, keeps its true position beside, and stands to its site as it really does."""
    truth = pd.read_csv(realdata / 'photos_groton' / 'photos.csv')
    for which, epsg in (('naip', 32614), ('coast', 32618)):
        photos = pd.read_csv(prepared / f'photos_{which}.csv')
        assert photos['moved'].all()
        groton = photos[photos['source'] == 'photos_groton']
        np.testing.assert_array_equal(groton[['lon_original', 'lat_original']], truth[['lon', 'lat']])
        metres = Transformer.from_crs('EPSG:4326', f'EPSG:{epsg}', always_xy=True)
        home = Transformer.from_crs('EPSG:4326', 'EPSG:32619', always_xy=True)  # Groton's own zone
        new = np.stack(metres.transform(groton['lon'], groton['lat']), axis=1)
        old = np.stack(home.transform(groton['lon_original'], groton['lat_original']), axis=1)
        between = [np.linalg.norm(v[1:] - v[0], axis=1) for v in (new, old)]
        np.testing.assert_allclose(between[0], between[1] * groton['shrunk_to'].iloc[0], rtol=0.01, atol=1)


def test_preparing_again_gives_the_same_files(prepared: Path, realdata: Path, tmp_path: Path) -> None:
    """The rule is seeded: the same seed gives the same tables and items, another seed other places."""
    prepare_module().prepare(realdata, tmp_path / 'same')
    prepare_module().prepare(realdata, tmp_path / 'other', seed=1)
    for path in (p for p in prepared.iterdir() if p.is_file()):
        assert path.read_bytes() == (tmp_path / 'same' / path.name).read_bytes()
    assert (prepared / 'photos_naip.csv').read_bytes() != (tmp_path / 'other' / 'photos_naip.csv').read_bytes()


def test_an_unset_camera_clock_is_no_time(prepared: Path) -> None:
    """Twenty photos of Groton say 1969-12-31 19:00, which is 0 seconds since 1970 in New England: they have no time."""
    coast = pd.read_csv(prepared / 'photos_coast.csv')
    groton = coast[coast['source'] == 'photos_groton']
    assert (groton['time_from'] == 'exif').sum() == 45
    assert min(datetime.fromisoformat(t).year for t in groton['taken_at'].dropna()) >= 2012


@pytest.fixture(scope='module')
def weights(prepared: Path) -> Path:
    """A ViT-B-32 on disk."""
    path = prepared / 'clip' / 'vit_b_32.safetensors'
    prepare_module().write_clip(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize('which', ['naip', 'coast'])
def test_the_whole_experiment_runs(which: str, prepared: Path, weights: Path, tmp_path: Path) -> None:
    """`grafalign run` pairs, embeds with a ViT-B-32 from a file, trains, reports; a second call has nothing to do."""
    changes = {
        'out': tmp_path / 'run',
        'pair.photos.table': prepared / f'photos_{which}.csv',
        'pair.scenes.items': prepared / f'items_{which}.json',
        'clip.pretrained': weights,
    }
    command = [sys.executable, '-m', 'grafalign', 'run', str(EXPERIMENTS / f'real_photos_{which}.yaml'), '--json']
    command += [part for key, value in changes.items() for part in ('--set', f'{key}={value}')]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=1200)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    report = json.loads(first.stdout)
    assert report['runs']['grafalign_image']['steps'] == 6
    assert np.isfinite(report['runs']['grafalign_image']['final']['loss'])
    assert json.loads(second.stdout)['pairs'] == report['pairs']
    assert (tmp_path / 'run' / 'report.html').read_text().count('data:image/png;base64,') >= 3
    bank = np.load(tmp_path / 'run' / 'pairs' / 'bank' / 'embeddings.npy')
    assert bank.shape == (len(PairStore(tmp_path / 'run' / 'pairs').photos), 512)
    np.testing.assert_allclose(np.linalg.norm(bank.astype(float), axis=1), 1, atol=2e-3)
