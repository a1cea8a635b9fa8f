"""A finished store notices what has come since, and an update ends with the bytes of pairing anew."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from upath import UPath

from grafalign.config import load_settings
from grafalign.errors import GrafalignError
from grafalign.pairing import Recipe, pair
from grafalign.scenes import SceneSource, load_scenes
from grafalign.store import PairStore
from tests.commands import contents, finish, photo_table, start, write_recipe
from tests.range_server import RangeServer

EARTH = [(-180.0, -90.0, 180.0, 90.0)]


class Growing:
    """A recipe whose photos and scenes are files that grow; the pixels lie on a server that counts."""

    def __init__(self, folder: Path, world: Path, server: RangeServer) -> None:
        self.folder, self.server = folder, server
        self._photos = photo_table(world, 240)
        catalog = world / 'catalog'
        found = load_scenes(SceneSource(catalog=catalog / 'catalog.json', collections=['sandbox-ms']), EARTH)
        self._items: list[dict[str, Any]] = []
        for scene in sorted(found.scenes, key=lambda s: s.when):
            assets = {
                k: {**a, 'href': server.url(str(Path(a['href']).relative_to(catalog)))}
                for k, a in scene.item['assets'].items()
            }
            self._items.append({**scene.item, 'assets': assets})
        self.grow(150, -2)
        scenes = {'items': str(folder / 'items.json'), 'collections': ['sandbox-ms']}
        table = {'table': folder / 'photos.csv'}
        self.path = write_recipe(folder / 'recipe.yaml', world, table, shard_tiles=4, scenes=scenes)
        self.recipe = load_settings(self.path, Recipe)

    def grow(self, photos: int = 240, items: int | None = None) -> None:
        """Write the first photos and items."""
        self._write(slice(photos), slice(items))

    def shrink(self) -> None:
        """Some of the photos and of the scenes are gone."""
        self._write(slice(40, 150), slice(2, -2))

    def _write(self, photos: slice, items: slice) -> None:
        content = json.dumps({'type': 'FeatureCollection', 'features': self._items[items]})
        for name, text in (('photos.csv', self._photos[photos].to_csv(index=False)), ('items.json', content)):
            path = self.folder / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def requests(self) -> int:
        """How often the server was asked so far."""
        return int(self.server.counts()['requests'])


@pytest.fixture
def growing(world: Path, tmp_path: Path) -> Iterator[Growing]:
    """A world that has not grown yet."""
    with RangeServer(world / 'catalog') as server:
        yield Growing(tmp_path, world, server)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed since, on one line."""
    return ' '.join(capsys.readouterr().err.split())


def test_a_finished_store_says_that_its_input_has_changed(growing: Growing, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command changes nothing and names what is new; `--update` without news reads nothing."""
    out = growing.folder / 'pairs'
    pair(growing.recipe, out)
    before, asked = contents(out), growing.requests()
    told(capsys)
    pair(growing.recipe, out)
    assert '--update' not in told(capsys)
    pair(growing.recipe, out, update=True)
    assert 'up to date' in told(capsys)
    growing.grow(151, -2)
    pair(growing.recipe, out)
    assert 'photos.table has other content (or times) than then; `--update` takes that in' in told(capsys)
    assert contents(out) == before and growing.requests() == asked


def test_a_store_among_its_own_photos_and_scenes_is_no_news(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos, catalog and store in one folder: what pairing writes there does not count as new input."""
    shutil.copytree(world, tmp_path / 'all', ignore=shutil.ignore_patterns('truth'))
    (tmp_path / 'all' / 'catalog' / 'catalog.json').rename(tmp_path / 'all' / 'catalog.json')
    catalog = tmp_path / 'all' / 'catalog.json'
    links = json.loads(catalog.read_text())
    links['links'] = [
        {**k, 'href': k['href'].replace('./', './catalog/', 1)} for k in links['links'] if k['rel'] == 'child'
    ]
    catalog.write_text(json.dumps(links))
    scenes = {'catalog': str(catalog), 'collections': ['sandbox-ms']}
    path = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': tmp_path / 'all'}, scenes=scenes)
    recipe, out = load_settings(path, Recipe), tmp_path / 'all' / 'pairs'
    pair(recipe, out)
    told(capsys)
    pair(recipe, out)
    assert '--update' not in told(capsys)
    (tmp_path / 'all' / 'photos' / '00' / '000001.jpg').unlink()
    pair(recipe, out, update=True)
    pair(recipe, out)
    assert '--update' not in told(capsys)


@pytest.mark.parametrize('change', ['photos', 'scenes', 'both', 'fewer'])
def test_an_update_ends_with_the_bytes_of_pairing_anew(growing: Growing, change: str) -> None:
    """Whatever came or went, every file is that of a store that was made afterwards."""
    out = growing.folder / 'pairs'
    pair(growing.recipe, out)
    if change == 'fewer':
        growing.shrink()
    else:
        growing.grow(150 if change == 'scenes' else 240, -2 if change == 'photos' else None)
    pair(growing.recipe, out, update=True)
    pair(growing.recipe, growing.folder / 'anew')
    assert contents(out) == contents(growing.folder / 'anew')


def test_an_update_cuts_only_what_comes_out_otherwise(growing: Growing) -> None:
    """For one more photo, in a tile that is there, no pixel is read again but for the type of the scenes' data."""
    growing.grow(239)
    out = growing.folder / 'pairs'
    before = growing.requests()
    pair(growing.recipe, out)
    whole = growing.requests() - before
    growing.grow()
    before = growing.requests()
    pair(growing.recipe, out, update=True)
    assert growing.requests() - before < whole / 4


def test_a_tile_that_cannot_be_read_any_more_is_cut_again(growing: Growing) -> None:
    """Where the old shard is damaged, the update does not take over what it holds."""
    out = growing.folder / 'pairs'
    pair(growing.recipe, out)
    shard = sorted((out / 'tiles').iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:600])
    growing.grow()
    pair(growing.recipe, out, update=True)
    pair(growing.recipe, growing.folder / 'anew')
    assert contents(out) == contents(growing.folder / 'anew')


def test_a_local_scene_that_was_replaced_is_cut_again(world: Path, tmp_path: Path) -> None:
    """A file of this machine with another size or time counts as another scene."""
    catalog = Path(shutil.copytree(world / 'catalog', tmp_path / 'catalog'))
    photo_table(world, 120).to_csv(tmp_path / 'photos.csv', index=False)
    scenes = {'catalog': str(catalog / 'catalog.json'), 'collections': ['sandbox-ms']}
    path = write_recipe(tmp_path / 'recipe.yaml', world, {'table': tmp_path / 'photos.csv'}, scenes=scenes)
    recipe = load_settings(path, Recipe)
    pair(recipe, tmp_path / 'pairs')
    before = PairStore(tmp_path / 'pairs')
    item = before.tiles['item_id'].mode()[0]
    for file in (catalog / 'sandbox-ms').rglob('*.tif'):
        if item in str(file):
            with rasterio.open(file, 'r+', IGNORE_COG_LAYOUT_BREAK='YES') as dataset:
                dataset.write(np.maximum(dataset.read(), 1) + 1)
    pair(recipe, tmp_path / 'pairs', update=True)
    pair(recipe, tmp_path / 'anew')
    assert contents(tmp_path / 'pairs') == contents(tmp_path / 'anew')


@pytest.mark.slow
@pytest.mark.parametrize('kills', [20])
def test_kill_9_during_an_update_changes_no_byte(growing: Growing, kills: int) -> None:
    """Killed at moments drawn over its length, the same command ends the update; until then the store is whole."""
    out = growing.folder / 'pairs'
    pair(growing.recipe, out)
    growing.grow()
    started = time.monotonic()
    code, err = finish(start('pair', growing.path, growing.folder / 'anew'))
    length = time.monotonic() - started
    assert code == 0, err
    draw = random.Random(20_261_128)
    for _ in range(kills):
        process = start('pair', growing.path, out, '--update')
        time.sleep(draw.uniform(0.2, 1.0) * length)
        process.kill()
        code, err = finish(process)
        assert 'Traceback' not in err, err
    code, err = finish(start('pair', growing.path, out, '--update'))
    assert code == 0, err
    assert contents(out) == contents(growing.folder / 'anew')


@pytest.mark.parametrize('moved', range(5))
def test_a_kill_while_the_new_state_moves_in_is_made_good(growing: Growing, moved: int) -> None:
    """Whichever parts had moved, the same command ends with all of them."""
    out, anew = growing.folder / 'pairs', growing.folder / 'anew'
    pair(growing.recipe, out)
    growing.grow()
    pair(growing.recipe, anew)
    whole = contents(anew)
    (out / 'dataset.json').unlink()
    parts = ['tiles', 'pairs.parquet', 'photos.parquet', 'rejected.parquet', 'scenes.parquet', 'tiles.parquet']
    (out / '_update').mkdir()
    for number, name in enumerate([*parts, 'dataset.json']):
        target = out if number < moved else out / '_update'
        if target == out and (out / name).is_dir():
            shutil.rmtree(out / name)
        (anew / name).rename(target / name)
    assert pair(growing.recipe, out).tiles and contents(out) == whole


def test_a_store_on_a_url_is_not_updated(growing: Growing) -> None:
    """That is one sentence."""
    with pytest.raises(GrafalignError, match='--update needs a store on this machine'):
        pair(growing.recipe, UPath('memory://pairs'), update=True)
