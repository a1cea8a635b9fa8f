"""The shipped recipes: they fit the real items of their collections, and run from end to end on this machine.

What they meet there is in `recipe_world.py`, with what of it is real.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.windows
import shapely
import typer
import yaml
from PIL import Image
from pyproj import Transformer

from grafalign.cli import app, main
from grafalign.config import load_settings, parse_settings
from grafalign.errors import GrafalignError
from grafalign.pairing import Recipe, pair
from grafalign.pairing.check import check_store
from grafalign.scenes import BandSource, band_sources
from grafalign.store import PairStore
from tests.conftest import REPOSITORY
from tests.range_server import RangeServer
from tests.recipe_world import (
    FILES,
    OWN_REASONS,
    RECORDED,
    WRITERS,
    Shot,
    make_file,
    places_of,
    recorded_items,
    rehosted,
    shots_for,
)
from tests.stac_server import StacServer, stac_server
from tests.test_real_photos import bilinear, window_of
from tests.token_server import token_server

FOLDER = REPOSITORY / 'data_recipes'
RECIPES = sorted(p.stem for p in FOLDER.glob('*.yaml') if p.stem != 'sandbox')
TOKEN = 'secret'


def kind_of(name: str) -> str:
    """The imagery of a recipe: naip, sentinel2_pc or sentinel2_es."""
    return name.rpartition('_')[0]


def layout_of(name: str) -> str:
    """The photos of a recipe."""
    return name.rpartition('_')[2]


@dataclass
class World:
    """The services of this machine."""

    folder: Path
    """What the server of byte ranges serves."""
    files: RangeServer
    tokens: str
    """Address of the token service."""
    apis: dict[str, StacServer]
    items: dict[str, list[dict[str, Any]]]
    """The items of each kind of imagery, as the APIs give them."""


@dataclass
class Paired:
    """What a recipe made."""

    name: str
    recipe: Recipe
    shots: list[Shot]
    told: dict[str, Any]
    """What `--explain --json` said."""
    summary: dict[str, Any]
    store: PairStore
    counts: dict[str, Any]
    """What the server of byte ranges was asked while the tiles were cut."""
    world: World

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        return {i['id']: i for i in self.world.items[kind_of(self.name)]}

    def sources(self, item_id: str) -> list[BandSource]:
        """Files of the bands of an item."""
        return band_sources(self.items[item_id], self.recipe.sensor.bands, self.recipe.sensor.gsd_m)


@pytest.fixture(scope='module')
def world(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Real items, and files of those that the tests read, on servers of this machine."""
    folder = tmp_path_factory.mktemp('files')
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(RangeServer(folder))
        tokens = stack.enter_context(token_server())
        in_an_hour = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
        answer = json.dumps({'msft:expiry': in_an_hour, 'token': f'se=x&sig={TOKEN}'})
        tokens.answers = [(200, answer)] * 100
        jobs, apis, found = [], {}, {}
        for kind in RECORDED:
            items = recorded_items(realdata, kind)
            for item in items:
                if item['id'].startswith(FILES[kind]):
                    keys = [k for k in item['assets'] if k in ('image', 'B02', 'B03', 'B04', 'SCL', *_EARTH_SEARCH)]
                    jobs += [(item, key, places_of(items, kind), folder) for key in keys]
            found[kind] = [rehosted(i, files.root) for i in items]
            apis[kind] = stack.enter_context(stac_server(found[kind]))
            apis[kind].conforms.append('item-search#query')
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: make_file(*job), jobs))
        yield World(folder, files, f'http://{tokens.address}/token', apis, found)


_EARTH_SEARCH = ('red', 'green', 'blue', 'scl')


def grafalign(*args: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(sys, 'argv', ['grafalign', *map(str, args), '--json'])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code, text.getvalue()
    return json.loads(text.getvalue())


def changes_for(name: str, world: World) -> list[str]:
    """What the recipe must be told so that it finds this machine: addresses, and a period in which items are recorded.

    No author may have more than three photos, as nobody wants a table of a thousand here.
    """
    changes = [f'scenes.api={world.apis[kind_of(name)].root}', 'scenes.period=[2010-01-01, 2025-12-31]']
    if kind_of(name) != 'sentinel2_es':
        changes.append(f'scenes.sign={{tokens: "{world.tokens}", blob_hosts: "{world.files.root.split("//")[1]}"}}')
    if layout_of(name) != 'lucas':
        changes.append('photos.filters.max_per_author=3')
    return changes


@pytest.fixture(scope='module', params=RECIPES)
def paired(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Paired:
    """A recipe's store, made by the command line in a folder with the photos where the recipe looks for them."""
    name, path = request.param, FOLDER / f'{request.param}.yaml'
    folder = tmp_path_factory.mktemp(name)
    (folder / 'photos').mkdir()
    changes = changes_for(name, world)
    recipe = load_settings(path, Recipe, changes)
    shots = shots_for(layout_of(name), places_of(world.items[kind_of(name)], kind_of(name)), recipe.sensor.gsd_m)
    WRITERS[layout_of(name)](shots, folder / 'photos')
    told_to = [part for change in changes for part in ('--set', change)]
    world.files.set(faults={} if kind_of(name) == 'sentinel2_es' else {'token': TOKEN})
    with contextlib.chdir(folder):
        told = grafalign('pair', path, '--explain', *told_to)
        world.files.reset()
        summary = grafalign('pair', path, 'store', *told_to)
    return Paired(name, recipe, shots, told, summary, PairStore(folder / 'store'), world.files.counts(), world)


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_say_what_is_known_of_graft(name: str) -> None:
    """Tile, photos a tile, and the rule from numbers to model input are GRAFT's; the head has all its parts."""
    recipe = load_settings(FOLDER / f'{name}.yaml', Recipe)
    sentinel = kind_of(name) != 'naip'
    assert (recipe.sensor.size_px, recipe.sensor.gsd_m) == (224, 10 if sentinel else 1)
    assert recipe.plan.max_photos == 25
    assert recipe.sensor.value_range == ((0, 0.3) if sentinel else (0, 255))  # 0.3 is DN 3000
    assert recipe.scenes.max_cloud_percent == (1 if sentinel else None)
    text = (FOLDER / f'{name}.yaml').read_text()
    assert all(f'\n# {part}' in text for part in ('Needs', 'Costs', 'Licences', 'Traps', 'Not reproduced'))
    assert f'data_recipes/{name}.yaml --explain' in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_pair_of_photos_and_imagery_is_there() -> None:
    """Three kinds of imagery times four of photos, without the one that cannot exist: NAIP with LUCAS."""
    every = {f'{kind}_{photos}' for kind in RECORDED for photos in WRITERS}
    assert set(RECIPES) == every - {'naip_lucas'}


@pytest.mark.realdata
@pytest.mark.parametrize('name', RECIPES)
def test_every_real_item_has_the_bands_and_means_what_it_says(name: str, realdata: Path) -> None:
    """All recorded items of a recipe's collection have its bands, with the scale and offset that really apply."""
    recipe = load_settings(FOLDER / f'{name}.yaml', Recipe)
    items = recorded_items(realdata, kind_of(name))
    assert {i['collection'] for i in items} == set(recipe.scenes.collections)
    seen = set()
    for item in items:
        found = band_sources(item, recipe.sensor.bands, recipe.sensor.gsd_m)
        said = (None, None) if kind_of(name) == 'naip' else true_scale(item)  # None: the file decides
        assert {(b.scale, b.offset) for b in found} == {said}
        seen.add(said)
        if kind_of(name) == 'naip':
            assert [(b.index, b.href) for b in found] == [(n, item['assets']['image']['href']) for n in (1, 2, 3)]
        else:
            assert [Path(b.href).stem.split('_')[-2 if kind_of(name) == 'sentinel2_pc' else -1] for b in found] == [
                'B04',
                'B03',
                'B02',
            ]
    expected = {'naip': {(None, None)}, 'sentinel2_pc': {(1e-4, 0), (1e-4, -0.1)}, 'sentinel2_es': {(1e-4, 0)}}
    assert seen == expected[kind_of(name)]


def true_scale(item: dict[str, Any]) -> tuple[float, float]:
    """Scale and offset of an item's pixels, from what the publishers say of them."""
    metadata = item['properties']
    if item['collection'] == 'naip':
        return 1, 0
    if 'earthsearch:boa_offset_applied' in metadata:
        assert metadata['earthsearch:boa_offset_applied'] and item['assets']['red']['raster:bands'][0]['offset'] == -0.1
        return 1e-4, 0
    return 1e-4, -0.1 if metadata['s2:processing_baseline'] >= '04.00' else 0


@pytest.mark.realdata
@pytest.mark.parametrize('name', RECIPES)
def test_conditions_can_be_tried_on_every_real_item(name: str, realdata: Path) -> None:
    """Whatever `scenes.where` asks about, all recorded items state: none is left out for want of a property."""
    recipe = load_settings(FOLDER / f'{name}.yaml', Recipe)
    assert recipe.scenes.where
    for item in recorded_items(realdata, kind_of(name)):
        assert all(item['properties'].get(key) is not None for key in recipe.scenes.where)


@pytest.mark.realdata
def test_the_store_is_sound(paired: Paired) -> None:
    """`grafalign check` finds nothing, no read failed, and the store holds both places but for the clouds of one."""
    assert [f for f in check_store(paired.store) if f.problems] == []
    assert paired.summary['failed'] == 0 and 'scene cannot be read' not in paired.summary['reasons']
    assert len(paired.store.tiles) == paired.summary['tiles'] == (1 if kind_of(paired.name) == 'sentinel2_es' else 2)


@pytest.mark.realdata
def test_the_pixels_are_the_files(paired: Paired) -> None:
    """On the scene's own grid a tile equals a plain window of the file, else its bilinear values."""
    size, copied = paired.recipe.sensor.size_px, 0
    for number, metadata in enumerate(paired.store.tiles.itertuples()):
        stored, tile = paired.store.read_tile(number), rasterio.Affine(*metadata.transform[:6])
        assert metadata.nodata_fraction == 0
        for band, source in enumerate(paired.sources(metadata.item_id)):
            with rasterio.open(paired.world.folder / source.href.removeprefix(f'{paired.world.files.root}/')) as file:
                window = window_of(file.transform, tile, size)
                if window is not None:  # NAD 83 and WGS 84 are one here
                    np.testing.assert_array_equal(stored[band], file.read(source.index, window=window))
                    copied += 1
                    continue
                here = ~file.transform @ (tile.c, tile.f)
                wide = int(size * tile.a / file.transform.a) + 40
                around = rasterio.windows.Window(int(here[0]) - 20, int(here[1]) - 20, wide, wide)
                plane, place = file.read(source.index, window=around), file.window_transform(around)
                own = bilinear(plane[None], place, file.crs, tile, metadata.epsg, size)[0]
                apart = np.abs(stored[band] - own)
                assert apart.max() <= 4 and apart.mean() < 1  # the warper's filter and ours differ by a little
                shifted = tile @ rasterio.Affine.translation(1, 1)
                assert (
                    np.abs(
                        stored[band] - bilinear(plane[None], place, file.crs, shifted, metadata.epsg, size)[0]
                    ).mean()
                    > 3
                )
    # of the three dates the one of 2012 is on our grid
    assert copied == (0 if paired.name in ('naip_inaturalist', 'naip_mapillary') else 3 * len(paired.store.tiles))


@pytest.mark.realdata
def test_scale_and_offset_are_recorded(paired: Paired) -> None:
    """Beside every tile stand the scale and offset that apply to its scene, old and new baseline alike."""
    offsets = set()
    for metadata in paired.store.tiles.itertuples():
        scale, offset = true_scale(paired.items[metadata.item_id])
        assert list(metadata.scale) == [scale] * 3 and list(metadata.offset) == [offset] * 3
        offsets.add(offset)
    assert offsets == ({0, -0.1} if kind_of(paired.name) == 'sentinel2_pc' else {0})


@pytest.mark.realdata
def test_filters_reject_what_they_should(paired: Paired) -> None:
    """Every photo is used or rejected, and the reasons are those that were made wrong, counted by hand."""
    layout = layout_of(paired.name)
    each = 4 if layout == 'lucas' else 1
    expected = Counter(OWN_REASONS[layout]) + Counter({s.wrong: each for s in paired.shots if s.wrong})
    if layout in ('yfcc', 'mapillary'):
        expected['burst'] += 2
    if layout != 'lucas':
        expected['author already has 3 photos'] += 1
    if kind_of(paired.name) == 'sentinel2_es':
        expected['its tile could not be cut'] += 2 * each
    rejected = paired.store.rejected
    photos = rejected[rejected['kind'] == 'photo']
    assert Counter(photos['reason'].tolist()) == expected
    assert set(photos['id']).isdisjoint(paired.store.photos['photo_id'])
    assert len(photos) + len(paired.store.photos) == paired.summary['photos'] == paired.told['photos']


@pytest.mark.realdata
def test_clouds_inside_a_tile_are_seen(paired: Paired) -> None:
    """A scene with almost no cloud hides one of the two places: its tile is left out, the other is measured clear."""
    cloudy = paired.store.rejected[paired.store.rejected['reason'] == 'too cloudy']
    assert len(cloudy) == (kind_of(paired.name) == 'sentinel2_es')
    measured = paired.store.tiles['tile_cloud_percent']
    assert measured.isna().all() if kind_of(paired.name) == 'naip' else (measured == 0).all()


@pytest.mark.realdata
def test_the_nearest_date_was_chosen(paired: Paired) -> None:
    """Of the recorded items over a place that pass the limits of cloud and GSD, the nearest in time was taken."""
    where, place = paired.recipe.scenes.where, paired.store.tiles.to_crs(4326).geometry
    photos = paired.store.photos.set_index('photo_id')['taken_at']
    for number, metadata in enumerate(paired.store.tiles.itertuples()):
        taken = photos[paired.store.pairs.loc[paired.store.pairs['tile'] == number, 'photo_id']]
        days = {}
        for item in paired.items.values():
            clear = item['properties'].get('eo:cloud_cover', 0) < 1 and item['properties'].get('gsd', 0) <= 1.05
            if clear and shapely.geometry.shape(item['geometry']).covers(place.iloc[number]):
                apart = (pd.Timestamp(item['properties']['datetime']) - taken).abs()
                days[item['id']] = apart.dt.total_seconds().mean()
        assert where and days[metadata.item_id] == min(days.values())
        assert metadata.scene_rank == 0 and len(days) > (kind_of(paired.name) == 'naip')


@pytest.mark.realdata
def test_requests_are_signed_and_tokens_kept_to_ourselves(paired: Paired) -> None:
    """The host refuses what is not signed, nothing was refused, and no file of the store holds a token."""
    assert set(paired.counts['statuses']) <= {'206', '404'}  # 404: a mask beside a file of NAIP, which has none
    for path in paired.store.path.rglob('*'):
        assert not path.is_file() or f'sig={TOKEN}'.encode() not in path.read_bytes()


@pytest.mark.realdata
def test_the_server_is_asked_for_clear_scenes_only(paired: Paired) -> None:
    """`where` goes to servers that know the query extension, so that a thousand cloudy items are never sent."""
    searches = paired.world.apis[kind_of(paired.name)].searches
    condition = {'gsd': {'lte': 1.05}} if kind_of(paired.name) == 'naip' else {'eo:cloud_cover': {'lt': 1}}
    assert searches and all(s['query'] == condition for s in searches)


@pytest.mark.realdata
def test_the_estimate_is_that_of_the_run(paired: Paired) -> None:
    """`--explain` counts the tiles, pairs and files that pairing then uses, and not half or twice the requests."""
    told = paired.told
    assert told['tiles'] == 2 and told['tiles_without_scene'] == 0 and told['assumptions']['problems'] == []
    lost = paired.store.rejected['reason'].eq('its tile could not be cut').sum()
    assert told['pairs'] - lost == paired.summary['pairs']
    bands = {source.href for f in paired.store.tiles.itertuples() for source in paired.sources(f.item_id)}
    asked = {f'{paired.world.files.root}/{n}' for n in paired.counts['files'] if not n.endswith('.msk')}
    assert bands <= asked and len(asked) == told['files']  # beside the bands the SCL of each scene
    assert 0.5 < told['requests'] / paired.counts['requests'] < 2


@pytest.mark.realdata
def test_the_recipes_own_period_holds(world: World, tmp_path: Path) -> None:
    """With its own period, LUCAS 2018 finds none of the recorded items of 2020 and later, and the sentence says why."""
    (tmp_path / 'photos').mkdir()
    shots = shots_for('lucas', places_of(world.items['sentinel2_pc'], 'sentinel2_pc'), 10)
    WRITERS['lucas'](shots, tmp_path / 'photos')
    changes = [c for c in changes_for('sentinel2_pc_lucas', world) if not c.startswith('scenes.period')]
    recipe = load_settings(FOLDER / 'sentinel2_pc_lucas.yaml', Recipe, changes)
    with contextlib.chdir(tmp_path), pytest.raises(GrafalignError, match=r'none of its 0 items.*scenes\.period'):
        pair(recipe, tmp_path / 'store')


README = (FOLDER / 'README.md').read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language; '' for commands."""
    parts = README.split('```')[1::2]
    return [text for kind, _, text in (part.partition('\n') for part in parts) if kind == language]


def test_the_readme_lists_every_recipe() -> None:
    """Its table has a row for each file, and every file that it links to is there."""
    links = re.findall(r'\]\(([^)#]+)\)', README)
    assert {p.name for p in FOLDER.glob('*.yaml')} <= set(links)
    assert all((FOLDER / link).resolve().exists() for link in links)


def test_yaml_of_the_readme_are_recipes() -> None:
    """Every YAML block is a recipe, alone or together with the last one of the README."""
    contents = [yaml.safe_load(text) for text in blocks('yaml')]
    assert len(contents) >= 3
    for content in contents:
        parse_settings({**contents[-1], **content}, Recipe, 'README.md')


def test_commands_of_the_readme_and_the_heads_exist() -> None:
    """Every command with its options is one that the command line takes, and its `--set` fit the recipe."""
    heads = ''.join(p.read_text() for p in FOLDER.glob('*.yaml'))
    lines = [line for text in blocks('') for line in text.splitlines() if line.strip()]
    lines += re.findall(r'^# +(grafalign .*)$', heads, re.MULTILINE)
    assert len(lines) > 30 and all(line.startswith('grafalign ') for line in lines)
    group: Any = typer.main.get_command(app)
    for line in lines:
        _, name, *args = shlex.split(line)
        command = group.commands[name]
        context = command.make_context(name, list(args))
        if name != 'pair':
            continue
        path = Path(context.params['recipe'])
        content = REPOSITORY / path if path.parts[0] == 'data_recipes' else FOLDER / 'sandbox.yaml'
        load_settings(content, Recipe, context.params['changes'] or ())


def test_commands_named_in_sentences_exist() -> None:
    """What stands in the text and in the heads as `grafalign WORD` is a command, too."""
    group: Any = typer.main.get_command(app)
    texts = [README, *(p.read_text() for p in FOLDER.glob('*.yaml'))]
    named = {word for text in texts for word in re.findall(r'`grafalign ([a-z]+)', text)}
    assert {'filter', 'embed', 'pair'} <= named <= set(group.commands)


def test_errors_of_the_readme_are_in_the_source() -> None:
    """Each message of the table of errors is one that the package can say."""
    source = ' '.join(p.read_text() for p in (REPOSITORY / 'grafalign').rglob('*.py'))
    source = re.sub(r"'\s*\n\s*f?'", '', source)  # sentences that go on in the next line
    rows = README.split('| it says |')[1].splitlines()[2:]
    said = [text for row in rows for text in re.findall(r'`([^`]+)`', row.split('|')[1])]
    assert len(said) > 15
    assert [text for text in said if text not in source] == []


@pytest.mark.realdata
def test_the_readme_reads_an_item(world: World) -> None:
    """The Python that looks at an item of an API runs, and prints what the text speaks of."""
    code = blocks('python')[0].replace('https://planetarycomputer.microsoft.com/api/stac/v1', world.apis['naip'].root)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(code, {})
    assert "'gsd'" in text.getvalue() and "'common_name': 'red'" in text.getvalue()


def test_the_readme_pairs_a_folder_of_geotiffs(tmp_path: Path) -> None:
    """The Python that makes items of GeoTIFFs, and the recipe below it, pair photos with pixels of those files."""
    (tmp_path / 'ortho').mkdir()
    (tmp_path / 'photos').mkdir()
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1024, 1024), dtype=np.uint8)
    place = rasterio.Affine(0.5, 0, 465_000, 0, -0.5, 5_247_000)
    profile = {'driver': 'GTiff', 'width': 1024, 'height': 1024, 'count': 3, 'dtype': 'uint8', 'tiled': True}
    with rasterio.open(tmp_path / 'ortho' / 'a.tif', 'w', crs='EPSG:32632', transform=place, **profile) as file:
        file.write(pixels)
    lon, lat = Transformer.from_crs('EPSG:32632', 'EPSG:4326', always_xy=True).transform(465_250, 5_246_750)
    exif = Image.Exif()
    exif[0x8825] = {1: 'N', 2: _dms(lat), 3: 'E', 4: _dms(lon)}
    Image.new('RGB', (64, 48), 'green').save(tmp_path / 'photos' / 'a.jpg', exif=exif)
    with contextlib.chdir(tmp_path):
        exec(blocks('python')[1], {})
        recipe = parse_settings(yaml.safe_load(blocks('yaml')[-1]), Recipe, 'README.md')
        pair(recipe, tmp_path / 'store')
    store = PairStore(tmp_path / 'store')
    window = window_of(place, rasterio.Affine(*store.tiles['transform'].iloc[0][:6]), 224)
    assert window is not None and len(store.pairs) == 1
    rows, cols = window.toslices()
    np.testing.assert_array_equal(store.read_tile(0), pixels[:, rows, cols])


def _dms(degrees: float) -> tuple[float, float, float]:
    minutes, seconds = divmod(degrees * 3600, 60)
    return minutes // 60, minutes % 60, round(seconds, 4)
