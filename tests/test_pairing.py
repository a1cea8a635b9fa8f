"""Pairing as a whole: who does the work and how often it is killed changes nothing in what comes out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import rasterio
from moto.server import ThreadedMotoServer

from grafalign.config import load_settings
from grafalign.errors import GrafalignError
from grafalign.files import place
from grafalign.geo import project, unproject
from grafalign.pairing import Recipe, pair
from grafalign.pairing.check import check_store
from grafalign.pairing.explain import explain
from grafalign.scenes import SceneSource, load_scenes
from grafalign.store import PairStore
from tests.commands import REPOSITORY, Command, contents, finish, photo_table, start, wait_for, write_recipe, write_yaml
from tests.range_server import RangeServer

EARTH = [(-180.0, -90.0, 180.0, 90.0)]


@pytest.fixture(scope='module')
def small(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe for the photos of the world in many small shards, and its store made in one go by threads."""
    folder = tmp_path_factory.mktemp('small')
    photo_table(world, 240).to_csv(folder / 'photos.csv', index=False)
    recipe = write_recipe(folder / 'recipe.yaml', world, {'table': folder / 'photos.csv'}, shard_tiles=4)
    pair(load_settings(recipe, Recipe), folder / 'pairs')
    return recipe, folder / 'pairs'


@pytest.mark.parametrize('engine', ['processes', pytest.param('dask', marks=pytest.mark.slow)])
def test_other_engines_make_the_same_store(engine: str, small: tuple[Path, Path], tmp_path: Path) -> None:
    """Processes and a local Dask cluster write the bytes that threads write."""
    recipe, whole = small
    code, err = finish(start('pair', recipe, tmp_path / 'pairs', '--set', f'run.engine={engine}', '--workers', 2))
    assert code == 0, err
    assert contents(tmp_path / 'pairs') == contents(whole)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers, each a process of its own."""
    address = tmp_path / 'scheduler.json'
    run = [sys.executable, '-m', 'distributed.cli.dask_scheduler']
    run += ['--host', '127.0.0.1', '--port', '0', '--no-dashboard', '--scheduler-file', str(address)]
    processes = [subprocess.Popen(run, stderr=subprocess.DEVNULL, cwd=REPOSITORY)]
    work = [sys.executable, '-m', 'distributed.cli.dask_worker', '--scheduler-file', str(address), '--nthreads', '1']
    while not address.exists():
        assert processes[0].poll() is None
        time.sleep(0.05)
    for _ in range(2):
        processes.append(
            subprocess.Popen([*work, '--no-nanny', '--no-dashboard'], stderr=subprocess.DEVNULL, cwd=REPOSITORY)
        )
    try:
        yield json.loads(address.read_text())['address'], processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_changes_nothing(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], small: tuple[Path, Path], tmp_path: Path
) -> None:
    """Kill -9 of one of two workers in the middle: the other does its work too, and the bytes are the same."""
    recipe, whole = small
    address, processes = cluster
    out = tmp_path / 'pairs'
    process = start('pair', recipe, out, '--set', 'run.engine=dask', '--set', f'run.scheduler={address}')
    wait_for(process, out, 'tiles/*.tar')
    processes[1].send_signal(signal.SIGKILL)
    code, err = finish(process)
    assert code == 0, err
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_one_sentence(small: tuple[Path, Path], tmp_path: Path) -> None:
    """The address of a Dask scheduler that does not answer is named."""
    settings = {'engine': 'dask', 'scheduler': 'tcp://127.0.0.1:9'}
    recipe = load_settings(small[0], Recipe, [f'run={json.dumps(settings)}'])
    with pytest.raises(GrafalignError, match=r'tcp://127.0.0.1:9'):
        pair(recipe, tmp_path / 'pairs')


def amid_pairing_with_processes(recipe: Path, out: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A pairing that two worker processes have begun, and the ids of all its children."""
    process = start('pair', recipe, out, '--set', 'run.engine=processes', '--workers', 2)
    wait_for(process, out, 'tiles/*.tar')
    return process, Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()


def test_a_killed_worker_process_is_told_and_the_next_run_finishes(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a cluster nobody takes over: the command says so, and run again it makes the same bytes."""
    recipe, whole = small
    out = tmp_path / 'pairs'
    process, children = amid_pairing_with_processes(recipe, out)
    workers = [c for c in children if b'multiprocessing' in Path(f'/proc/{c}/cmdline').read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    code, err = finish(process)
    assert 'Traceback' not in err
    if code:
        assert 'A worker process died' in err
        code, err = finish(start('pair', recipe, out))
        assert code == 0, err
    assert contents(out) == contents(whole)


@pytest.mark.parametrize('kills', [3, pytest.param(25, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_byte(small: tuple[Path, Path], tmp_path: Path, kills: int) -> None:
    """Killed at moments drawn over the length of a run, the stores are in the end the uninterrupted one."""
    recipe, whole = small
    started = time.monotonic()
    code, err = finish(start('pair', recipe, tmp_path / 'timed'))
    length = time.monotonic() - started
    assert code == 0, err
    draw = random.Random(20_261_121)
    killed, number = 0, 0
    while killed < kills:
        out = tmp_path / f'pairs_{number}'
        process = start('pair', recipe, out)
        time.sleep(draw.uniform(0.3, 1.0) * length)
        process.kill()
        code, err = finish(process)
        assert 'Traceback' not in err and code in (0, -signal.SIGKILL), err
        killed += code != 0
        if code == 0 or killed % 5 == 0:  # it was finished, or is now: on with an empty folder
            code, err = finish(start('pair', recipe, out))
            assert code == 0, err
            assert contents(out) == contents(whole)
            number += 1


@pytest.fixture(scope='module')
def bucket() -> Iterator[str]:
    """A bucket on an S3 server of this machine; the environment says how to reach it."""
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    changes = {
        'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}',
        'AWS_ACCESS_KEY_ID': 'test',
        'AWS_SECRET_ACCESS_KEY': 'test',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    before = {k: os.environ.get(k) for k in changes}
    os.environ.update(changes)
    fsspec.filesystem('s3').mkdir('stores')
    yield 's3://stores'
    for key, value in before.items():
        os.environ.pop(key)
        if value is not None:
            os.environ[key] = value
    server.stop()


@pytest.mark.slow
def test_a_store_on_s3_holds_the_same_files(small: tuple[Path, Path], bucket: str) -> None:
    """Written to S3, killed there twice, and read from there: the files and the tiles are those of the local store."""
    recipe, whole = small
    url = f'{bucket}/pairs'
    for _ in range(2):
        process = start('pair', recipe, url)
        remote = fsspec.filesystem('s3', use_listings_cache=False)
        before = len(remote.glob(f'{url}/tiles/*.tar'))
        while process.poll() is None and len(remote.glob(f'{url}/tiles/*.tar')) <= before:
            time.sleep(0.02)
        process.kill()
        finish(process)
    code, err = finish(start('pair', recipe, url))
    assert code == 0, err
    remote.invalidate_cache()
    found = {p.removeprefix('stores/pairs/'): remote.cat_file(p) for p in remote.find('stores/pairs')}
    assert found == contents(whole)
    here, there = PairStore(whole), PairStore(url)
    assert (here.read_tile(3) == there.read_tile(3)).all() and here.digest == there.digest
    assert not [f for f in check_store(there) if f.problems]


@pytest.fixture
def served(world: Path, tmp_path: Path) -> Iterator[tuple[RangeServer, Path]]:
    """The world's scenes on a server that can be told to fail, and a file of their items."""
    found = load_scenes(SceneSource(catalog=world / 'catalog' / 'catalog.json', collections=['sandbox-ms']), EARTH)
    catalog = world / 'catalog'
    with RangeServer(catalog) as server:
        items = []
        for scene in found.scenes:
            assets = {
                k: {**a, 'href': server.url(str(Path(a['href']).relative_to(catalog)))}
                for k, a in scene.item['assets'].items()
            }
            items.append({**scene.item, 'assets': assets})
        path = tmp_path / 'items.json'
        path.write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
        yield server, path


def remote_recipe(folder: Path, world: Path, items: Path, **parts: Any) -> Recipe:
    """The recipe of `small` with its scenes on a server; one scene a tile, so that a lost one is lost."""
    photo_table(world, 240).to_csv(folder / 'photos.csv', index=False)
    scenes = {'items': str(items), 'period': ['2021-07-01', '2021-07-31'], **parts}
    path = write_recipe(folder / 'remote.yaml', world, {'table': folder / 'photos.csv'}, scenes=scenes, shard_tiles=4)
    return load_settings(path, Recipe)


def test_retry_failed_reads_just_what_failed(
    served: tuple[RangeServer, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage of one scene its tiles are tried again, nothing else is read, and nothing is missing."""
    monkeypatch.setattr('grafalign.web.retries.WORTH_ANOTHER_TRY', ())
    server, items = served
    recipe = remote_recipe(tmp_path, world, items)
    clean = pair(recipe, tmp_path / 'clean')
    server.set(faults={'fail_every': 1, 'path': '_east_', 'fail_status': 500})
    broken = pair(recipe, tmp_path / 'pairs')
    assert clean.failed == 0 and broken.failed > 0 and broken.tiles < clean.tiles
    assert pair(recipe, tmp_path / 'pairs', retry_failed=True).failed == broken.failed  # still away: nothing is lost
    server.set(faults={})
    server.reset()
    assert pair(recipe, tmp_path / 'pairs').tiles == broken.tiles  # not asked for: nothing is tried
    assert server.counts()['requests'] == 0
    healed = pair(recipe, tmp_path / 'pairs', retry_failed=True)
    assert all('_east_' in name for name in server.counts()['files'])
    assert (healed.tiles, healed.pairs, healed.failed) == (clean.tiles, clean.pairs, 0)
    # tiles that a second scene could give meanwhile keep it, and the store says that the first could not be read
    assert {**healed.reasons, 'scene cannot be read': 0} == {**clean.reasons, 'scene cannot be read': 0}
    stores = PairStore(tmp_path / 'pairs'), PairStore(tmp_path / 'clean')
    tiles = [
        {row.tile_id: (row.item_id, s.read_tile(i).tobytes()) for i, row in enumerate(s.tiles.itertuples())}
        for s in stores
    ]
    assert tiles[0].keys() == tiles[1].keys()
    same = [t for t in tiles[0] if tiles[0][t][0] == tiles[1][t][0]]
    assert len(same) > 0.8 * len(tiles[0]) and all(tiles[0][t] == tiles[1][t] for t in same)
    assert not [f for f in check_store(stores[0]) if f.problems]
    assert not (tmp_path / 'pairs' / '_work').exists()


def test_a_store_that_met_nothing_but_an_outage_is_not_stuck(
    served: tuple[RangeServer, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no tile could be read at all the sentence names `--retry-failed`, and that makes the store afterwards."""
    monkeypatch.setattr('grafalign.web.retries.WORTH_ANOTHER_TRY', ())
    server, items = served
    recipe = remote_recipe(tmp_path, world, items)
    server.set(faults={'fail_every': 1, 'fail_status': 500})
    for again in (False, False, True):
        with pytest.raises(GrafalignError, match=r'cannot be read.*--retry-failed'):
            pair(recipe, tmp_path / 'pairs', retry_failed=again)
    server.set(faults={})
    assert pair(recipe, tmp_path / 'pairs', retry_failed=True).tiles == pair(recipe, tmp_path / 'clean').tiles
    assert not [f for f in check_store(PairStore(tmp_path / 'pairs')) if f.problems]


@pytest.mark.slow
def test_worker_processes_end_with_the_one_that_started_them(small: tuple[Path, Path], tmp_path: Path) -> None:
    """After kill -9 of the command none of its workers goes on writing, and the next run makes the same bytes."""
    recipe, whole = small
    out = tmp_path / 'pairs'
    process, children = amid_pairing_with_processes(recipe, out)
    process.kill()
    finish(process)
    deadline = time.monotonic() + 30
    while any(Path(f'/proc/{c}').exists() for c in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert finish(start('pair', recipe, out))[0] == 0
    assert contents(out) == contents(whole)


def test_a_band_that_no_scene_has_is_told_before_anything_is_cut(world: Path, tmp_path: Path) -> None:
    """The sentence lists the bands there are, and the recipe can be mended and run into the same folder."""
    photo_table(world, 60).to_csv(tmp_path / 'photos.csv', index=False)
    path = write_recipe(tmp_path / 'recipe.yaml', world, {'table': tmp_path / 'photos.csv'})
    with pytest.raises(GrafalignError, match=r"no band 'rde'.*red"):
        pair(load_settings(path, Recipe, ['sensor.bands=[rde, green, blue]']), tmp_path / 'pairs')
    assert pair(load_settings(path, Recipe), tmp_path / 'pairs').tiles


def test_explain_foretells_requests_and_bytes(served: tuple[RangeServer, Path], world: Path, tmp_path: Path) -> None:
    """Requests are foretold exactly where grids are known, bytes within a quarter; no pixel is read for it."""
    server, items = served
    recipe = remote_recipe(tmp_path, world, items)
    told = explain(recipe)
    files = len(server.counts()['files'])
    assert server.counts()['requests'] == files == 3  # a header of each band
    server.reset()
    summary = pair(recipe, tmp_path / 'pairs')
    counts = server.counts()
    assert told['requests'] == counts['requests']
    assert counts['bytes'] == pytest.approx(told['bytes'], rel=0.25)
    assert told['photos'] == summary.photos and told['tiles'] >= summary.tiles
    assert told['splits'] == {'train': told['tiles']}


def test_explain_keeps_its_work_for_the_run(small: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    """With a store the stages are left there; the run that follows makes the same bytes."""
    recipe, whole = small
    code, err = command('pair', recipe, tmp_path / 'pairs', '--explain', '--map', tmp_path / 'map.html')
    assert code == 0 and 'requests' in err
    assert (tmp_path / 'map.html').stat().st_size > 1000
    assert (tmp_path / 'pairs' / '_work' / 'candidates.parquet').exists()
    assert command('pair', recipe, tmp_path / 'pairs')[0] == 0
    assert contents(tmp_path / 'pairs') == contents(whole)


def sentinel_item(folder: Path, name: str, day: str, clouds: np.ndarray, value: int) -> dict[str, Any]:
    """A scene of 10 m with a classification of 20 m over 128 x 128 pixels of zone 32625."""
    for key, pixels, gsd in (('B04', np.full((128, 128), value, np.uint16), 10), ('SCL', clouds, 20)):
        with rasterio.open(
            folder / f'{name}_{key}.tif',
            'w',
            driver='GTiff',
            count=1,
            dtype=pixels.dtype,
            height=pixels.shape[0],
            width=pixels.shape[1],
            crs='EPSG:32625',
            transform=rasterio.transform.from_origin(500_000, 5_000_000, gsd, gsd),
        ) as file:
            file.write(pixels, 1)
    lon, lat = unproject(np.array([500_000.0, 501_280.0]), np.array([4_998_720.0, 5_000_000.0]), 32625)
    ring = [(lon[0], lat[0]), (lon[1], lat[0]), (lon[1], lat[1]), (lon[0], lat[1]), (lon[0], lat[0])]
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': name,
        'collection': 'sentinel-2-l2a',
        'geometry': {'type': 'Polygon', 'coordinates': [ring]},
        'bbox': [lon[0], lat[0], lon[1], lat[1]],
        'properties': {'datetime': f'{day}T12:00:00Z', 'eo:cloud_cover': 20, 's2:processing_baseline': '05.00'},
        'assets': {k: {'href': str(folder / f'{name}_{k}.tif')} for k in ('B04', 'SCL')},
        'links': [],
    }


def test_clouds_inside_a_tile_send_it_to_the_next_scene(tmp_path: Path) -> None:
    """A tile under a cloud of the nearest scene comes from a later one, and the store says why."""
    clear = np.full((64, 64), 4, np.uint8)
    cloudy = clear.copy()
    cloudy[:, 32:] = 9
    items = [
        sentinel_item(tmp_path, 'near', '2021-06-02', cloudy, 1000),
        sentinel_item(tmp_path, 'later', '2021-07-20', clear, 2000),
    ]
    (tmp_path / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    x, y = np.array([500_320.0, 500_960.0]), np.array([4_999_360.0, 4_999_360.0])
    lon, lat = unproject(x, y, 32625)
    assert np.allclose(project(lon, lat, 32625)[0], x)
    table = pd.DataFrame({'photo_id': ['west', 'east'], 'uri': 'https://example.com/p.jpg', 'lon': lon, 'lat': lat})
    table.assign(taken_at='2021-06-01').to_csv(tmp_path / 'photos.csv', index=False)
    content = {
        'photos': {'table': str(tmp_path / 'photos.csv')},
        'scenes': {'items': str(tmp_path / 'items.json')},
        'sensor': {'name': 's2', 'bands': ['B04'], 'gsd_m': 10, 'size_px': 32, 'value_range': [0, 0.3]},
        'split': {'shares': {'train': 1.0}},
        'max_tile_cloud_percent': 10,
    }
    recipe = load_settings(write_yaml(tmp_path / 'recipe.yaml', content), Recipe)
    pair(recipe, tmp_path / 'pairs')
    store = PairStore(tmp_path / 'pairs')
    pairs = store.pairs.set_index('photo_id')['tile']
    metadata = store.tiles.iloc[pairs[['west', 'east']]].reset_index(drop=True)
    assert metadata['item_id'].tolist() == ['near', 'later'] and metadata['scene_rank'].tolist() == [0, 1]
    assert metadata['tile_cloud_percent'].tolist() == [0, 0] and metadata['scenes_considered'].tolist() == [2, 2]
    assert metadata['days_apart'].round().tolist() == [2, 50]
    assert metadata['offset'].tolist() == [[-0.1], [-0.1]]  # baseline 05.00 without raster:bands
    assert store.read_tile(pairs['west']).max() == 1000 and store.read_tile(pairs['east']).min() == 2000
    only = load_settings(tmp_path / 'recipe.yaml', Recipe, ['scenes.period=[2021-06-01, 2021-06-30]'])
    assert pair(only, tmp_path / 'only').reasons['too cloudy'] == 1


def test_check_names_what_is_wrong(small: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    """A whole store passes; a flipped bit, a lost shard, a moved photo and a crossed split are each found and named."""
    _, whole = small
    import shutil

    assert command('check', whole)[0] == 0

    def broken(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    store = broken('bit')
    path = store / 'tiles' / '00001.tar'
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    code, err = command('check', store)
    assert code == 4 and 'tiles/00001.tar has other content' in err
    store = broken('lost')
    (store / 'tiles' / '00002.tar').unlink()
    code, err = command('check', store)
    assert code == 4 and 'tiles/00002.tar is missing' in err
    store = broken('moved')
    pairs = pd.read_parquet(store / 'pairs.parquet')
    pairs.loc[0, 'row'] += 30
    pairs.to_parquet(store / 'pairs.parquet')
    code, err = command('check', store)
    assert code == 4 and pairs['photo_id'][0] in err
    store = broken('split')
    metadata = json.loads((store / 'dataset.json').read_text())
    metadata['recipe']['split'] = {'block_km': 1.0, 'shares': {'train': 0.5, 'val': 0.25, 'test': 0.25}}
    (store / 'dataset.json').write_text(json.dumps(metadata))
    code, err = command('check', store)
    assert code == 4 and 'splits' in err
    (broken('more') / 'tiles' / 'junk.tar').write_bytes(b'x')
    code, err = command('check', tmp_path / 'more')
    assert code == 4 and 'tiles/junk.tar' in err


def test_a_url_that_nobody_reads_is_one_sentence(small: tuple[Path, Path], command: Command) -> None:
    """A store on an unknown kind of URL is refused with a remedy."""
    code, err = command('pair', small[0], 'nosuch://bucket/pairs')
    assert code == 1 and 'nosuch://bucket/pairs' in err and 'Traceback' not in err
    with pytest.raises(GrafalignError, match='nosuch'):
        place('nosuch://x')
