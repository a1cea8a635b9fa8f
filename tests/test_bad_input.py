"""Bad photos, tables, scenes and settings: one sentence that names the culprit and the remedy, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import rasterio
from PIL import Image
from pyproj import Transformer

from tests.commands import Command, finish, photo_table, refused, start, write_recipe, write_yaml

GPS = 0x8825


def rejected(store: Path, kind: str) -> dict[str, str]:
    """Reasons by id of what a store rejected."""
    table = pd.read_parquet(store / 'rejected.parquet')
    return dict(table[table['kind'] == kind][['id', 'reason']].itertuples(index=False))


@pytest.fixture(scope='module')
def table(world: Path) -> pd.DataFrame:
    """Thirty photos from the middle of the world, away from the edges of the scenes."""
    rows = photo_table(world, 200)
    middle = [rows[c].between(rows[c].quantile(0.2), rows[c].quantile(0.8)) for c in ('lon', 'lat')]
    return rows[middle[0] & middle[1]].head(30).reset_index(drop=True)


@pytest.fixture
def recipe_of(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a table and a recipe for it; returns the recipe."""

    def write(rows: pd.DataFrame, **parts: object) -> Path:
        rows.to_csv(tmp_path / 'table.csv', index=False)
        return write_recipe(tmp_path / 'recipe.yaml', world, {'table': tmp_path / 'table.csv'}, **parts)

    return write


# --- photos -----------------------------------------------------------------------------------------------------------


def with_position(path: Path, lon: float | None, lat: float | None) -> None:
    """Rewrite the EXIF position of a JPEG; None removes it."""
    with Image.open(path) as image:
        exif, pixels = image.getexif(), image.copy()
    gps = exif.get_ifd(GPS)
    if lon is None or lat is None:
        gps.clear()
    else:
        gps |= {1: 'N', 2: (lat, 0.0, 0.0), 3: 'E', 4: (lon, 0.0, 0.0)}
    pixels.save(path, exif=exif)


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', body) + chunk(b'IEND', b''))


BAD_PHOTOS: dict[str, tuple[Callable[[Path], None], str]] = {
    'no gps': (lambda p: with_position(p, None, None), 'no position'),
    'zero': (lambda p: with_position(p, 0.0, 0.0), 'position 0, 0'),
    'impossible': (lambda p: with_position(p, 12.0, 95.0), 'impossible coordinates'),
    'truncated': (truncate, 'truncated image'),
    'text': (lambda p: p.write_text('a letter, not a photo'), 'not an image'),
    'empty': (lambda p: p.write_bytes(b''), 'not an image'),
    'bomb': (bomb, 'too many pixels (decompression bomb?)'),
}


@pytest.mark.parametrize('spoil', BAD_PHOTOS)
def test_a_bad_photo_is_rejected_and_the_rest_goes_on(
    spoil: str, table: pd.DataFrame, world: Path, tmp_path: Path, command: Command
) -> None:
    """One spoilt photo in a folder is rejected with its reason; all the others are in the store."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for photo in table['uri'].head(6):
        shutil.copy(photo, folder)
    bad = min(folder.iterdir())
    damage, reason = BAD_PHOTOS[spoil]
    damage(bad)
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': folder})
    code, err = command('pair', recipe, tmp_path / 'pairs')
    assert code == 0, err
    assert rejected(tmp_path / 'pairs', 'photo') == {bad.name: reason}
    assert len(pd.read_parquet(tmp_path / 'pairs' / 'photos.parquet')) == 5


def test_a_folder_of_bad_photos_is_refused(world: Path, tmp_path: Path, command: Command) -> None:
    """Where no photo is usable the sentence names the folder and the most frequent reason."""
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').write_text('a letter')
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': tmp_path / 'photos'})
    refused(command('pair', recipe, tmp_path / 'pairs'), tmp_path / 'photos', 'not an image')


# --- tables -----------------------------------------------------------------------------------------------------------


def test_bad_rows_of_a_table_are_rejected(table: pd.DataFrame, recipe_of, tmp_path: Path, command: Command) -> None:
    """Each bad row is rejected with its own reason, a duplicate only the second time, and the other rows go on."""
    rows = table.head(12).astype(object)
    rows.loc[1, 'photo_id'] = rows.loc[0, 'photo_id']
    rows.loc[2, 'lat'] = None
    rows.loc[3, ['lon', 'lat']] = 0
    rows.loc[4, 'lat'] = 91
    rows.loc[5, 'uri'] = None
    rows.loc[6, 'uri'] = 'gone.jpg'
    rows.loc[7, 'lat'] = 'north'
    code, err = command('pair', recipe_of(rows), tmp_path / 'pairs')
    assert code == 0, err
    ids = rows['photo_id']
    assert rejected(tmp_path / 'pairs', 'photo') == {
        ids[0]: 'duplicate photo_id',
        ids[2]: 'no position',
        ids[3]: 'position 0, 0',
        ids[4]: 'impossible coordinates',
        ids[5]: 'no uri',
        ids[6]: 'file is missing',
        ids[7]: 'no position',
    }
    assert set(pd.read_parquet(tmp_path / 'pairs' / 'photos.parquet')['photo_id']) == {ids[0], *ids[8:]}


def test_latitudes_beyond_the_poles_show_a_swap(table: pd.DataFrame, recipe_of, tmp_path: Path, command) -> None:
    """A table of a place east of 90 degrees with exchanged columns is refused whole."""
    rows = table.assign(lon=45.0, lat=120.0)
    refused(command('pair', recipe_of(rows), tmp_path / 'pairs'), tmp_path / 'table.csv', 'swapped', 'exchange')


def test_photos_outside_all_scenes_show_a_swap(table: pd.DataFrame, recipe_of, tmp_path: Path, command) -> None:
    """Where only the scenes tell of a swap it is found too, and the remedy of the sentence works."""
    recipe = recipe_of(table.assign(lon=table['lat'], lat=table['lon']))
    refused(command('pair', recipe, tmp_path / 'pairs'), tmp_path / 'table.csv', 'swapped', 'exchange')
    exchanged = ('--set', 'photos.columns={lon: lat, lat: lon}')
    code, err = command('pair', recipe, tmp_path / 'mended', *exchanged)
    assert code == 0, err


def test_a_missing_column_is_named(table: pd.DataFrame, recipe_of, tmp_path: Path, command: Command) -> None:
    """A table without latitudes is refused with the column that lacks and those that are there."""
    recipe = recipe_of(table.rename(columns={'lat': 'high'}))
    refused(command('pair', recipe, tmp_path / 'pairs'), tmp_path / 'table.csv', 'lat', 'high')


def test_an_outline_is_no_position(table: pd.DataFrame, world: Path, tmp_path: Path, command: Command) -> None:
    """In GeoJSON a row whose geometry is no point is rejected and the rest goes on."""
    points = gpd.points_from_xy(table['lon'], table['lat'])
    points = [points[0].buffer(0.001), *points[1:]]
    frame = gpd.GeoDataFrame(table[['photo_id', 'uri']], geometry=points, crs=4326)
    frame.to_file(tmp_path / 'table.geojson', driver='GeoJSON')
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'table': tmp_path / 'table.geojson'})
    code, err = command('pair', recipe, tmp_path / 'pairs')
    assert code == 0, err
    assert rejected(tmp_path / 'pairs', 'photo')[table['photo_id'][0]] == 'no position'


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_no_scene_over_a_place(table: pd.DataFrame, recipe_of, tmp_path: Path, command: Command) -> None:
    """A photo beside all scenes loses its tile, with the reason; photos that are all elsewhere are refused."""
    rows = table.copy()
    rows.loc[0, 'lat'] += 0.2
    code, err = command('pair', recipe_of(rows), tmp_path / 'pairs')
    assert code == 0, err
    assert 'no scene over the place' in rejected(tmp_path / 'pairs', 'tile').values()
    assert rejected(tmp_path / 'pairs', 'photo') == {rows['photo_id'][0]: 'its tile could not be cut'}
    elsewhere = recipe_of(table.assign(lat=table['lat'] - 20))
    refused(command('pair', elsewhere, tmp_path / 'none'), 'catalog.json', 'check the region')


@pytest.mark.parametrize(
    'damage', [Path.unlink, truncate, lambda p: p.write_bytes(b'')], ids=['missing', 'truncated', 'empty']
)
def test_a_damaged_scene_gives_way_to_the_next(
    damage: Callable[[Path], None], table: pd.DataFrame, world: Path, tmp_path: Path, command: Command
) -> None:
    """Tiles of a damaged scene come from the next best one, the failed reads are listed; without any it is refused."""
    catalog = Path(shutil.copytree(world / 'catalog', tmp_path / 'catalog'))
    table.to_csv(tmp_path / 'table.csv', index=False)
    scenes = {'catalog': str(catalog / 'catalog.json'), 'collections': ['sandbox-ms'], 'max_cloud_percent': 10}
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'table': tmp_path / 'table.csv'}, scenes=scenes)
    for path in sorted(catalog.glob('sandbox-ms/ms_20210719_*/*_red.tif')):
        damage(path)
    code, err = command('pair', recipe, tmp_path / 'pairs')
    assert code == 0, err
    assert set(rejected(tmp_path / 'pairs', 'scene')) <= {'ms_20210719_west', 'ms_20210719_east'}
    detail = pd.read_parquet(tmp_path / 'pairs' / 'rejected.parquet').query('kind == "scene"')['detail']
    assert len(detail)
    assert detail.str.contains('_red.tif', regex=False).all()
    assert 'ms_20210719_west' not in set(pd.read_parquet(tmp_path / 'pairs' / 'tiles.parquet')['item_id'])
    for path in catalog.glob('sandbox-ms/*/*_green.tif'):
        damage(path)
    refused(command('pair', recipe, tmp_path / 'none'), 'None of the', '.tif', 'check the scenes')


def test_too_much_nodata(table: pd.DataFrame, world: Path, recipe_of, tmp_path: Path, command: Command) -> None:
    """A tile that is half beyond the scenes is rejected, unless the recipe allows so much."""
    with rasterio.open(world / 'catalog' / 'sandbox-ms' / 'ms_20210719_west' / 'ms_20210719_west_red.tif') as scene:
        x, y = scene.xy(scene.height // 2, 2)
        lon, lat = Transformer.from_crs(scene.crs, 4326, always_xy=True).transform(x, y)
    rows = table.head(4).copy()
    rows.loc[0, ['lon', 'lat']] = lon, lat
    code, err = command('pair', recipe_of(rows), tmp_path / 'pairs')
    assert code == 0, err
    assert list(rejected(tmp_path / 'pairs', 'tile').values()) == ['too many missing pixels']
    code, err = command('pair', recipe_of(rows, max_nodata=0.6), tmp_path / 'more')
    assert code == 0, err
    tiles = pd.read_parquet(tmp_path / 'more' / 'tiles.parquet')
    assert tiles['nodata_fraction'].between(0.4, 0.55).sum() == 1


def test_malformed_items_are_named(table: pd.DataFrame, world: Path, recipe_of, tmp_path: Path, command) -> None:
    """An item with a time, outline, cloud cover or assets that make no sense is named, with its file."""
    source = next((world / 'catalog').glob('sandbox-ms/*/*.json'))
    recipe = recipe_of(table, scenes={'items': str(tmp_path / 'items.json')})
    changes = (
        {'properties': {'datetime': 'yesterday'}},
        {'geometry': {'type': 'Polygon', 'coordinates': [[1, 2]]}},
        {'properties': {'datetime': '2021-07-19T00:00:00Z', 'eo:cloud_cover': 'many'}},
    )
    for change in changes:
        item = json.loads(source.read_text()) | change
        (tmp_path / 'items.json').write_text(json.dumps([item]))
        shutil.rmtree(tmp_path / 'pairs', ignore_errors=True)
        refused(command('pair', recipe, tmp_path / 'pairs'), tmp_path / 'items.json', item['id'], 'mend or remove')
    (tmp_path / 'items.json').write_text(json.dumps([json.loads(source.read_text()) | {'assets': []}]))
    refused(command('pair', recipe, tmp_path / 'pairs'), tmp_path / 'items.json', 'entry 0')


# --- settings ---------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_its_neighbour(table: pd.DataFrame, recipe_of, tmp_path: Path, command) -> None:
    """A misspelt key of a file, at any depth and in any command, or of `--set`, is named with the one meant."""
    recipe = recipe_of(table, sensro={})
    refused(command('pair', recipe, tmp_path / 'pairs'), recipe, "'sensro'", "did you mean 'sensor'?")
    recipe = recipe_of(table)
    result = command('pair', recipe, tmp_path / 'pairs', '--set', 'plan.max_photo=3')
    refused(result, recipe, 'plan.max_photo', "did you mean 'max_photos'?")
    content = {'store': 'a', 'out': 'b', 'clip': {'model': 'c'}, 'epoch': 3}
    config = write_yaml(tmp_path / 'train.yaml', content)
    refused(command('train', config), config, "'epoch'", "did you mean 'epochs'?")
    assert not (tmp_path / 'pairs').exists()


def test_unreadable_settings_are_named(table: pd.DataFrame, recipe_of, tmp_path: Path, command: Command) -> None:
    """A file that is missing, empty, binary or no YAML, a wrong value and a broken `--set` are each named."""
    out = tmp_path / 'pairs'
    refused(command('pair', tmp_path / 'none.yaml', out), tmp_path / 'none.yaml')
    for content in (b'', b'- 1', b'a: [', b'\xff\xfe\x00'):
        (tmp_path / 'odd.yaml').write_bytes(content)
        refused(command('pair', tmp_path / 'odd.yaml', out), tmp_path / 'odd.yaml')
    recipe = recipe_of(table)
    refused(command('pair', recipe, out, '--set', 'shard_tiles=0'), recipe, 'shard_tiles', 'mend')
    refused(command('pair', recipe, out, '--set', 'shard_tiles=['), 'shard_tiles=[', 'mend')


@pytest.mark.parametrize('words', [(), ('pare',), ('pair',), ('sandbox', 'out', '--photos', 'many')])
def test_a_wrong_command_line_shows_the_usage(words: tuple[str, ...]) -> None:
    """An unknown command, a missing argument and a wrong option give the usage and exit code 2, not a traceback."""
    code, err = finish(start(*words))
    assert code == 2
    assert 'Traceback' not in err
