"""The commands `index` and `search` as people use them: a store, folders, words, pictures, places, filters, kills."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from grafalign.cli import main
from grafalign.encoders import FrozenClip
from grafalign.errors import BusyError, GrafalignError, InputError
from grafalign.locks import exclusive
from grafalign.models import load_model
from grafalign.search import Catalog, Query, build_index, search
from grafalign.search.query import meeting
from grafalign.search.signs import signed_vectors, split_signs
from grafalign.search.sources import box_of, open_source
from grafalign.store import PairStore
from tests.commands import Command, interrupted, refused
from tests.test_datasets import paint, raster


@pytest.fixture(scope='module')
def index(store: PairStore, clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store's tiles, indexed by the tiny CLIP; read only."""
    out = tmp_path_factory.mktemp('index') / 'tiles'
    build_index(str(store.path), out, load_model(clip.settings.model), clip.settings.model)
    return out


def test_words_find_the_tiles_whose_embeddings_are_nearest(index: Path, store: PairStore, clip: FrozenClip) -> None:
    """Answers are the items with the largest cosine, in order, with their places and dates, query by query."""
    found = search(index, ['forest', 'a harbour'], 5)
    assert isinstance(found, gpd.GeoDataFrame) and found.crs == 'EPSG:4326'
    assert found['query'].tolist() == ['forest'] * 5 + ['a harbour'] * 5
    assert found['rank'].tolist() == [1, 2, 3, 4, 5] * 2
    model = load_model(clip.settings.model)
    source = open_source(str(store.path))
    from grafalign.models import to_input
    from grafalign.models.pixels import band_places

    places = band_places(model.preprocessing, source.bands)
    tiles = [
        to_input(source.read(i)[places], model.preprocessing, 'resize', source.value_range)
        for i in range(len(source.items))
    ]
    import torch

    scores = model.embed_images(torch.stack(tiles)) @ model.embed_texts(['forest'])[0]
    best = np.argsort(-scores)[:5]
    assert found['item_id'].tolist()[:5] == store.tiles['tile_id'].iloc[best].tolist()
    np.testing.assert_allclose(found['score'][:5], scores[best], atol=1e-5)
    assert found.geometry.iloc[0].equals(store.tiles.geometry.iloc[best[0]])
    assert found['datetime'].iloc[0] == pd.to_datetime(store.tiles['datetime'].iloc[best[0]], utc=True)


def test_a_place_finds_what_looks_like_its_tile(index: Path, store: PairStore) -> None:
    """The tile that holds a place is its own best answer, and needs no model."""
    tile = store.tiles.iloc[3]
    centre = tile.geometry.centroid
    found = search(index, [Query(lonlat=(centre.x, centre.y))], 3)
    holding = store.tiles[store.tiles.geometry.contains(centre)]['tile_id'].tolist()
    assert found['item_id'].iloc[0] in holding and found['score'].iloc[0] == pytest.approx(1, abs=1e-5)


def test_several_indexes_answer_as_one(index: Path, tmp_path: Path, command: Command) -> None:
    """Halves of an index, one item in both, give the answers of the whole to words, places and filters."""
    items = Catalog(index).items
    source = str(items['source'].iloc[0])
    halves = [tmp_path / 'first', tmp_path / 'second']
    for half, out in zip((items.index % 2 == 0, (items.index % 2 == 1) | (items.index == 0)), halves, strict=True):
        shutil.copytree(index, out)
        catalog = Catalog(out)
        catalog.remove(catalog.rows_of(items['item_id'][~half].tolist(), source))
    place = items.geometry.iloc[7].centroid
    queries = ['forest', Query(lonlat=(place.x, place.y))]
    south, north = items.geometry.bounds[['miny', 'maxy']].mean()
    region = box_of(-180, south, 180, north)
    for options in ({}, {'region': region}):
        whole, together = search(index, queries, 9, **options), search(halves, queries, 9, **options)
        columns = ['query', 'rank', 'item_id', 'number']
        pd.testing.assert_frame_equal(whole[columns], together[columns])
        np.testing.assert_allclose(whole['score'], together['score'], atol=1e-6)
    assert set(together['index_path']) == {str(half) for half in halves}
    page = tmp_path / 'answers.html'
    code, err = command('search', *halves, 'forest', 'a harbour', '-k', 4, '--out', page)
    assert code == 0, err
    assert page.read_text().count('data:image') == 8
    marker = halves[1] / 'index.json'
    marker.write_text(marker.read_text().replace(Catalog(index).marker.model.digest, '0' * 32))
    refused(command('search', *halves, 'forest'), 'second', 'was made by another model')


def test_an_index_leaves_as_geoparquet(index: Path, tmp_path: Path, command: Command) -> None:
    """Items that are there, their places and their very vectors; what was removed is not among them."""
    out = shutil.copytree(index, tmp_path / 'index')
    catalog = Catalog(out)
    catalog.remove(np.array([3]))
    code, err = command('export-index', out, tmp_path / 'tiles.parquet')
    assert code == 0, err
    table = gpd.read_parquet(tmp_path / 'tiles.parquet')
    expected = catalog.items.iloc[np.flatnonzero(catalog.alive)].reset_index(drop=True)
    assert table['item_id'].tolist() == expected['item_id'].tolist() and table.crs == 'EPSG:4326'
    assert table.geometry.geom_equals(expected.geometry).all()
    np.testing.assert_array_equal(np.stack(table['vector']), catalog.vectors[catalog.alive])
    about = json.loads(pq.read_schema(tmp_path / 'tiles.parquet').metadata[b'grafalign'])
    assert about['model']['digest'] == catalog.marker.model.digest
    refused(command('export-index', out, tmp_path / 'tiles.csv'), 'tiles.csv is no Parquet file')


def test_region_and_date_leave_only_what_they_allow(index: Path, store: PairStore) -> None:
    """Answers within a region and a time are the nearest among those tiles, however few; none is a sentence."""
    items = Catalog(index).items
    one = store.tiles.geometry.iloc[0]
    inside = items.geometry.intersects(one).to_numpy()
    found = search(index, ['forest'], 100, region=one)
    assert set(found['item_id']) == set(items['item_id'][inside]) and len(found) == inside.sum()
    when = items['datetime'].sort_values().iloc[len(items) // 2]
    later = search(index, ['forest'], 1000, begin=when.to_pydatetime())
    assert set(later['item_id']) == set(items['item_id'][(items['datetime'] >= when).to_numpy()])
    before = search(index, ['forest'], 1000, end=when.to_pydatetime())
    assert len(later) + len(before) == len(items)
    with pytest.raises(GrafalignError, match='widen the filter'):
        search(index, ['forest'], 3, region=shapely.box(100, 80, 101, 81))


def test_boxes_over_the_date_line_are_two() -> None:
    """A box that ends west of where it begins lies over the date line, and does not go round the world."""
    box = box_of(179.5, -1, -179.5, 1)
    assert box.area == pytest.approx(2) and not box.intersects(shapely.Point(0, 0))
    assert box.intersects(shapely.Point(-179.9, 0)) and box.intersects(shapely.Point(179.9, 0))


def test_the_command_writes_every_kind_of_answer(index: Path, tmp_path: Path, command: Command) -> None:
    """GeoJSON, GeoParquet, CSV and a page with pictures hold the same answers; queries come from a file too."""
    (tmp_path / 'queries.txt').write_text('\ufeffforest\n\nold town\n', encoding='utf-8')
    outs = [tmp_path / f'answers{e}' for e in ('.html', '.geojson', '.parquet', '.csv')]
    given = [part for out in outs for part in ('--out', out)]
    code, err = command('search', index, 'harbour', '--queries', tmp_path / 'queries.txt', '-k', 4, *given)
    assert code == 0 and 'old town' in err, err
    page = outs[0].read_text()
    assert page.count('data:image/jpeg') == 12 and 'src="http' not in page and '<h2>forest</h2>' in page
    geojson, parquet, table = gpd.read_file(outs[1]), gpd.read_parquet(outs[2]), pd.read_csv(outs[3])
    assert geojson['item_id'].tolist() == parquet['item_id'].tolist() == table['item_id'].tolist()
    assert len(table) == 12 and table['query'].unique().tolist() == ['harbour', 'forest', 'old town']
    assert table[['lon', 'lat']].notna().all(axis=None)
    refused(command('search', index, 'x', '--out', tmp_path / 'a.xlsx'), 'a.xlsx', '.geojson')


def test_a_picture_is_prepared_as_those_of_the_index(clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """Every indexed picture finds itself first: 8 bits by their own range, 16 bits with named bands, four bands."""
    rng = np.random.default_rng(0)
    for i in range(4):
        (tmp_path / 'low').mkdir(exist_ok=True)
        Image.fromarray(rng.integers(20, 120, (30, 30, 3), dtype=np.uint8)).save(tmp_path / 'low' / f'{i}.png')
        raster(tmp_path / 'deep' / f'{i}.tif', 3, 30, 300 * (i + 1))
        raster(tmp_path / 'four' / f'{i}.tif', 4, 30, 50 * (i + 1), 'uint8')
    model = clip.settings.model
    for name, options in (
        ('low', ('--value-range', 20, 120)),
        ('deep', ('--value-range', 0, 3000, '--bands', 'blue,green,red')),
        ('four', ('--bands', 'red,green,blue,nir')),
    ):
        assert command('index', tmp_path / name, tmp_path / f'{name}-index', '--model', model, *options)[0] == 0
        for file in (tmp_path / name).iterdir():
            found = search(tmp_path / f'{name}-index', [Query(image=file)], 1)
            assert found['item_id'].iloc[0] == file.name and found['score'].iloc[0] == pytest.approx(1, abs=1e-4)
    code, err = command('search', tmp_path / 'low-index', '--image', tmp_path / 'deep' / '0.tif')
    assert code == 1 and '8-bit' in err
    again = command('index', tmp_path / 'low', tmp_path / 'low-index', '--model', model, '--value-range', 0, 200)
    refused((again[0], again[1].splitlines()[-1]), 'other value_range')


def test_only_what_is_new_is_embedded(clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run adds new files, replaces changed ones, drops those that are gone; another source adds to it."""
    for i in range(5):
        paint(tmp_path / 'a' / f'{i}.png', (10 * i, 0, 0))
        paint(tmp_path / 'b' / f'{i}.png', (0, 10 * i, 0))
    model, seen = load_model(clip.settings.model), []
    embed = type(model).embed_images
    monkeypatch.setattr(type(model), 'embed_images', lambda self, x: (seen.append(len(x)), embed(self, x))[1])
    out = tmp_path / 'index'

    def run(folder: str) -> tuple[int, int]:
        seen.clear()
        return len(build_index(str(tmp_path / folder), out, model, clip.settings.model)), sum(seen)

    assert run('a') == (5, 5) and run('a') == (5, 0)
    paint(tmp_path / 'a' / '9.png', (90, 90, 90))
    paint(tmp_path / 'a' / '0.png', (255, 255, 255), 9)
    assert run('a') == (6, 2) and run('b') == (11, 5)
    assert Catalog(out).alive.sum() == 11 and len(set(Catalog(out).items['source'])) == 2
    (tmp_path / 'a' / '3.png').unlink()
    assert run('a') == (10, 0)
    held = Catalog(out)
    assert held.items['item_id'][held.alive].value_counts().to_dict() == {
        **dict.fromkeys(['0.png', '1.png', '2.png', '4.png'], 2), '3.png': 1, '9.png': 1,
    }  # fmt: skip


def test_an_index_with_the_earlier_name_of_a_column_goes_on(clip: FrozenClip, tmp_path: Path) -> None:
    """`stamp` was called `signature`: such an index knows its items again and takes in new ones."""
    for i in range(3):
        paint(tmp_path / 'pictures' / f'{i}.png', (10 * i, 0, 0))
    model, out = load_model(clip.settings.model), tmp_path / 'index'
    build_index(str(tmp_path / 'pictures'), out, model, clip.settings.model)
    marker = json.loads((out / 'index.json').read_text())
    for part in out.glob('items-*.parquet'):
        gpd.read_parquet(part).rename(columns={'stamp': 'signature'}).to_parquet(part)
        marker['files'][part.name] = part.stat().st_size
    (out / 'index.json').write_text(json.dumps(marker))
    before = Catalog(out).total
    paint(tmp_path / 'pictures' / '3.png', (0, 200, 0))
    assert len(build_index(str(tmp_path / 'pictures'), out, model, clip.settings.model)) == before + 1 == 4
    assert Catalog(out).items['stamp'].notna().all()


def test_an_item_is_taken_out_of_its_source_alone(clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """`--remove` needs an id and a source that are there."""
    model = clip.settings.model
    for folder in 'ab':
        paint(tmp_path / folder / '0.png', (9, 9, 9))
        paint(tmp_path / folder / '1.png', (99, 9, 9))
        assert command('index', tmp_path / folder, tmp_path / 'index', '--model', model)[0] == 0
    assert command('index', tmp_path / 'a', tmp_path / 'index', '--remove', '0.png')[0] == 0
    held = Catalog(tmp_path / 'index')
    assert held.items['item_id'][held.alive].tolist() == ['1.png', '0.png', '1.png']
    refused(command('index', tmp_path / 'a', tmp_path / 'index', '--remove', '0.png'), 'no item 0.png')
    refused(command('index', tmp_path / 'c', tmp_path / 'index', '--remove', '1.png'), 'nothing of')


@pytest.mark.parametrize(
    'moments',
    [
        ['items-00001*'],
        pytest.param(['vectors-*.f32', 'items-00000*', 'items-00001*'], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_index(
    store: PairStore, clip: FrozenClip, tmp_path: Path, moments: list[str]
) -> None:
    """Killed while it embeds and while it commits, the same command finishes with the vectors of an undisturbed run."""
    model = clip.settings.model
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2100):  # two commits, and some
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(pictures / f'{i:04d}.png')
    out = tmp_path / 'index'
    interrupted(out, [(name, signal.SIGKILL) for name in moments], 'index', pictures, out, '--model', model)
    whole = build_index(str(pictures), tmp_path / 'whole', load_model(model), model)
    held = Catalog(out)
    assert held.items['item_id'].tolist() == whole.items['item_id'].tolist()
    np.testing.assert_allclose(held.vectors, whole.vectors, atol=1e-5)


def test_two_processes_do_not_write_one_index(clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """While somebody writes an index, another run and a removal are told so."""
    paint(tmp_path / 'p' / '0.png')
    out = tmp_path / 'index'
    index = ('index', tmp_path / 'p', out)
    assert command(*index, '--model', clip.settings.model)[0] == 0
    with exclusive(out):
        for rest in (('--model', clip.settings.model), ('--remove', '0.png')):
            code, err = command(*index, *rest)
            assert code == BusyError.exit_code and 'Another process' in err.splitlines()[-1]
    assert len(Catalog(out)) == 1


def test_a_moved_model_is_named_again(store: PairStore, clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """An index remembers its model by a path that holds anywhere; where that is gone, --model says where it is now."""
    copied = Path(shutil.copytree(clip.settings.model, tmp_path / 'clip'))
    paint(tmp_path / 'p' / '0.png')
    assert command('index', tmp_path / 'p', tmp_path / 'index', '--model', copied)[0] == 0
    copied.rename(tmp_path / 'moved')
    refused(command('search', tmp_path / 'index', 'forest'), 'give --model')
    assert command('search', tmp_path / 'index', 'forest', '--model', tmp_path / 'moved')[0] == 0


def test_another_model_is_refused(
    index: Path, store: PairStore, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """Neither search nor indexing mixes models of one width; one of another width does not fit either."""
    other = Path(shutil.copytree(clip.settings.model, tmp_path / 'other'))
    weights = load_file(other / 'open_clip_model.safetensors')
    weights['visual.proj'] = weights['visual.proj'] + 0.01
    save_file(weights, str(other / 'open_clip_model.safetensors'))
    refused(command('search', index, 'forest', '--model', other), 'made by another model', 'tiny_clip')
    refused(command('index', store.path, index, '--model', other), 'made by another model')
    with pytest.raises(GrafalignError, match='96'):
        Catalog(index).search(np.ones((1, 48), dtype=np.float32) / 48**0.5, 3)


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ((), 'no query'),
        (('forest', '-k', 0), '-k 0'),
        (('forest', '--from', 'yesterday'), '--from yesterday'),
        (('forest', '--to', '9999-12-31T23:59:59-05:00'), '--to'),
        (('forest', '--bbox', 5, 5, 5, 6), '--bbox'),
        (('forest', '--region', 'missing.geojson'), 'missing.geojson'),
        (('--queries', 'missing.txt'), 'missing.txt'),
        (('--image', 'missing.png'), 'missing.png'),
        (('--lonlat', 200, 0), 'no place on Earth'),
        (('forest', '--model', 'nowhere'), 'nowhere'),
    ],
)
def test_a_question_that_makes_no_sense_is_one_sentence(
    args: tuple[object, ...], said: str, index: Path, command: Command
) -> None:
    """Each says what is wrong and what to give."""
    refused(command('search', index, *args), said)


def test_more_answers_than_items_are_said_to_be_missing(index: Path, command: Command) -> None:
    """K larger than the index gives what there is, and says so."""
    code, err = command('search', index, 'forest', '-k', 100_000)
    assert code == 0 and f'Only {len(Catalog(index)):,} of 100,000 answers' in err


@pytest.mark.parametrize(
    ('make', 'args', 'said'),
    [
        (None, (), 'no folder'),
        ('empty', (), 'no pictures'),
        ('grey', ('--kind', 'tree'), 'no kind of index'),
        ('grey', ('--recall', 2), '--recall'),
        ('grey', ('--fit', 'stretch'), '--fit'),
        ('grey', ('--value-range', 9, 3), 'value range'),
        ('deep', (), '--value-range'),
        ('broken', (), 'none of its 1 pictures can be read (b.png: not an image)'),
    ],
)
def test_what_cannot_be_indexed_is_one_sentence(
    make: str | None, args: tuple[object, ...], said: str, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """Sources and options that cannot be used are named; grey and palette pictures can."""
    folder = tmp_path / 'pictures'
    if make is not None:
        folder.mkdir()
    if make == 'grey':
        paint(folder / 'a.png', 90, mode='L')
        paint(folder / 'b.png', 3, mode='P')
    elif make == 'deep':
        Image.fromarray(np.full((4, 4), 2000, np.uint16)).save(folder / 'a.png')
    elif make == 'broken':
        (folder / 'b.png').write_bytes(b'nothing')
    code, err = command('index', folder, tmp_path / 'index', '--model', clip.settings.model, *args)
    assert code == 1 and 'Traceback' not in err and said in err.splitlines()[-1], err
    if make == 'grey':
        assert command('index', folder, tmp_path / 'index', '--model', clip.settings.model)[0] == 0


def test_a_folder_of_something_else_is_left_alone(clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """An index is not written into a folder with other files, nor searched in one."""
    paint(tmp_path / 'p' / '0.png')
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'a.txt').write_text('mine')
    code, err = command('index', tmp_path / 'p', tmp_path / 'notes', '--model', clip.settings.model)
    assert code == 1 and 'no index' in err.splitlines()[-1]
    refused(command('search', tmp_path / 'notes', 'x'), 'is no index')


def test_the_programs_answer_is_geojson(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` prints a FeatureCollection and nothing else on standard output."""
    monkeypatch.setattr(sys, 'argv', ['grafalign', 'search', str(index), 'forest', '-k', '2', '--json'])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert told['type'] == 'FeatureCollection' and len(told['features']) == 2


@pytest.mark.realdata
def test_real_sentinel_patches_are_found_by_region(realdata: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """EuroSAT's GeoTIFFs bring their places: a box over half of Europe leaves those inside it."""
    source = realdata / 'eurosat' / 'data'
    bands = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B09', 'B10', 'B11', 'B12', 'B8A')
    folder = tmp_path / 'tif'
    folder.mkdir()
    for path in source.rglob('*.tif'):
        shutil.copy(path, folder)
    out = tmp_path / 'index'
    model = load_model(clip.settings.model)
    build_index(str(folder), out, model, clip.settings.model, bands=bands, value_range=(0, 3000))
    found = search(out, ['forest'], 200, region=shapely.box(-10, 35, 10, 60))
    assert 0 < len(found) < 100
    centres = found.geometry.representative_point()
    assert ((centres.x < 10.1) & (centres.y > 34.9)).all()


def test_the_tiles_of_a_scene_are_places_in_it(clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """A scene is indexed by its field, square by square; a word finds the square whose mean embedding is nearest."""
    from grafalign.fields import open_field
    from tests.scenes import patchwork, write_scene

    pixels = patchwork(300, 200)
    pixels[:, :64, :64] = 0
    scene = write_scene(tmp_path / 's.tif', pixels, nodata=0)
    name = clip.settings.model
    code, printed = command('index', scene, tmp_path / 'index', '--model', name)
    assert code == 0, printed
    field = open_field(tmp_path / 'index.field')
    side = 64 // field.plan.cell
    answers = tmp_path / 'a.geojson'
    assert command('search', tmp_path / 'index', 'water', '-k', 100, '--out', answers)[0] == 0
    found = gpd.read_file(answers)
    # 5 x 4 squares, but for the one that is missing and those that lie more than half beyond the scene
    assert set(found['item_id']) == {f'{r}_{c}' for r in (0, 64, 128, 192, 256) for c in (0, 64, 128)} - {'0_0'}
    word = load_model(name).embed_texts(['water'])[0]
    for row in found.itertuples():
        top, left = (int(part) // field.plan.cell for part in row.item_id.split('_'))
        mean = field.embeddings(slice(top, min(top + side, field.shape[0])))[:, left : left + side].sum((0, 1))
        assert row.score == pytest.approx(mean @ word / np.linalg.norm(mean), abs=1e-4)
    grid = field.geobox
    x, y = grid.affine @ (64 + 32, 128 + 32)
    middle = gpd.GeoSeries(gpd.points_from_xy([x], [y]), crs=grid.crs.to_wkt()).to_crs('EPSG:4326')
    assert found[found.contains(middle.iloc[0])]['item_id'].tolist() == ['128_64']
    page = tmp_path / 'a.html'
    assert command('search', tmp_path / 'index', 'water', '-k', 3, '--out', page)[0] == 0
    assert page.read_text().count('data:image/jpeg') == 3
    code, printed = command('index', tmp_path / 'index.field', tmp_path / 'index', '--model', name)
    assert code == 0 and 'nothing new' in printed


@pytest.mark.parametrize(
    ('text', 'wanted', 'unwanted'),
    [
        ('harbour', ['harbour'], []),
        ('harbour -ships', ['harbour'], ['ships']),
        ('  a harbour with boats  -swimming pool +trees ', ['a harbour with boats', 'trees'], ['swimming pool']),
        ('semi-detached houses', ['semi-detached houses'], []),
        ('+meadow', ['meadow'], []),
        ('10 - 20 houses', ['10 - 20 houses'], []),
        ('C++ and a-b', ['C++ and a-b'], []),
    ],
)
def test_signs_stand_after_a_space_and_before_a_word(text: str, wanted: list[str], unwanted: list[str]) -> None:
    """Others are part of a word; without anything that is wanted there is no query."""
    assert split_signs(text) == (wanted, unwanted)
    with pytest.raises(InputError, match='not wanted'):
        split_signs('-ships')


def test_signed_words_are_like_what_is_wanted_and_less_like_what_is_not() -> None:
    """By their definition: the mean of what is wanted, less half of the mean of what is not, of unit length."""
    known = {w: v / np.linalg.norm(v) for w, v in zip('abc', np.eye(3) + 0.3, strict=True)}

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.stack([known[t] for t in texts]).astype(np.float32)

    np.testing.assert_allclose(signed_vectors(['b', 'a'], embed), [known['b'], known['a']], rtol=1e-6)
    expected = (known['a'] + known['b']) / 2 - known['c'] / 2
    np.testing.assert_allclose(signed_vectors(['a +b -c'], embed)[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert signed_vectors(['a -c'], embed)[0] @ known['c'] < known['a'] @ known['c']


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([0.0, 1.0, 2.5])), max_size=12),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 4), st.integers(1, 4)),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_items_that_meet_a_region_are_those_that_shapely_says(
    places: list[tuple[int, int, float]], box: tuple[int, int, int, int], second: bool
) -> None:
    """Points and shapes, on edges and corners of a box, in a region of two parts, without a place."""
    shapes = [shapely.Point(x, y).buffer(size, quad_segs=2) if size else shapely.Point(x, y) for x, y, size in places]
    items = gpd.GeoDataFrame(geometry=[*shapes, None, shapely.Polygon()], crs='EPSG:4326')
    region = shapely.box(box[0], box[1], box[0] + box[2], box[1] + box[3])
    if second:
        region = shapely.union_all([region, shapely.Point(4, 4).buffer(1.5)])
    expected = {row for row, shape in enumerate(shapes) if shape.intersects(region)}
    rows = meeting(items, region)
    assert set(rows.tolist()) == expected and len(rows) == len(expected)
