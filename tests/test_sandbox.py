"""The sandbox world is real data, and not a trick."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
from pystac.validation import JsonSchemaSTACValidator
from rasterio.shutil import exists

from grafalign.errors import GrafalignError
from grafalign.labels import VOID
from grafalign.pairing import Recipe, pair
from grafalign.photos.exif import read_metadata
from grafalign.sandbox.classes import CLASS_NAMES, LAND_CLASSES, TINTS
from grafalign.sandbox.ground import Cameras, render
from grafalign.sandbox.land import make_land
from grafalign.sandbox.overhead import reflectance
from grafalign.sandbox.structures import build
from grafalign.sandbox.world import SandboxSettings, make_sandbox
from grafalign.scenes import SceneSource, load_scenes
from grafalign.store import PairStore

SMALL_SHAPE = (512, 768)


def items(world: Path) -> list[pystac.Item]:
    """All items of the world's catalog."""
    return list(pystac.Catalog.from_file(str(world / 'catalog' / 'catalog.json')).get_items(recursive=True))


def test_the_catalog_validates(world: Path) -> None:
    """Catalog, collections and items follow STAC's core schemas (those of extensions need a network)."""
    catalog = pystac.Catalog.from_file(str(world / 'catalog' / 'catalog.json'))
    validator = JsonSchemaSTACValidator()
    for thing in [catalog, *catalog.get_children(), *items(world)]:
        kind = pystac.STACObjectType(thing.STAC_OBJECT_TYPE)
        validator.validate_core(thing.to_dict(), kind, pystac.get_stac_version())


def test_scenes_are_cloud_optimised_with_overviews(world: Path) -> None:
    """Every asset is tiled, has overviews, and lies where its item says; one sensor is uint16, the other uint8."""
    kinds = set()
    for item in items(world):
        for asset in item.assets.values():
            with rasterio.open(asset.get_absolute_href()) as raster:
                assert raster.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG' and raster.overviews(1)
                assert str(raster.crs) == item.properties['proj:code']
                kinds.add((item.collection_id, raster.dtypes[0]))
    assert kinds == {('sandbox-ms', 'uint16'), ('sandbox-aerial', 'uint8')}
    assert exists(next(iter(items(world)[0].assets.values())).get_absolute_href())


def test_each_date_has_overlapping_scenes_in_two_zones(world: Path) -> None:
    """At least two scenes a date overlap, and they lie in different UTM zones."""
    by_date: dict[str, list[pystac.Item]] = {}
    for item in items(world):
        by_date.setdefault(f'{item.collection_id} {item.datetime}', []).append(item)
    for pair_of in by_date.values():
        west, east = (shapely.geometry.shape(i.geometry) for i in pair_of)
        assert west.intersection(east).area > 0.1 * west.area
        assert len({i.properties['proj:code'] for i in pair_of}) == 2


def test_both_zones_show_the_same_land(world: Path) -> None:
    """A place in the overlap has about the same reflectance in the scene of either zone."""
    west, east = (next(i for i in items(world) if i.id == f'ms_20210719_{s}') for s in ('west', 'east'))
    with (
        rasterio.open(west.assets['red'].get_absolute_href()) as a,
        rasterio.open(east.assets['red'].get_absolute_href()) as b,
    ):
        x = np.linspace(a.bounds.right - 600, a.bounds.right - 20, 40)
        y = np.linspace(a.bounds.bottom + 400, a.bounds.top - 400, 40)
        one = [v[0] for v in a.sample(zip(x, y, strict=True))]
        moved = rasterio.warp.transform(a.crs, b.crs, x, y)
        two = [v[0] for v in b.sample(zip(*moved, strict=True))]
    assert np.corrcoef(one, two)[0, 1] > 0.8


def test_photos_carry_position_time_and_some_heading(world: Path) -> None:
    """EXIF gives every photo a place on the land and a time, most a heading and many an error."""
    metadata = [read_metadata(p) for p in sorted((world / 'photos').rglob('*.jpg'))]
    assert len(metadata) == 480 and all(f.problem is None and f.taken_at is not None for f in metadata)
    assert all(abs(f.lon + 30) < 0.1 and abs(f.lat - 45) < 0.1 for f in metadata if f.lon and f.lat)
    assert 0.5 < np.mean([f.heading_deg is not None for f in metadata]) < 0.9
    assert 0.4 < np.mean([f.accuracy_m is not None for f in metadata]) < 0.8


def test_geotags_are_off_by_metres(world: Path) -> None:
    """The stored position differs from the true one by metres in the median and by a street in some."""
    truth = pd.read_parquet(world / 'truth' / 'photos.parquet')
    metadata = [read_metadata(world / 'photos' / i, verify=False) for i in truth['photo_id']]
    tags = gpd.GeoSeries(gpd.points_from_xy([f.lon for f in metadata], [f.lat for f in metadata]), crs=4326).to_crs(
        32625
    )
    error = np.hypot(tags.x - truth['x'], tags.y - truth['y'])
    assert 2 < np.median(error) < 12 and error.max() > 30


def test_what_a_photo_shows_is_often_not_what_lies_under_it(world: Path) -> None:
    """For a good share of outdoor photos the main class differs from the class at the camera's feet."""
    truth = pd.read_parquet(world / 'truth' / 'photos.parquet')
    truth = truth[truth['kind'] == 'outdoor']
    with rasterio.open(world / 'truth' / 'classes.tif') as raster:
        under = np.array([v[0] for v in raster.sample(zip(truth['x'], truth['y'], strict=True))])
    shown = truth['main_class'].map(CLASS_NAMES.index).to_numpy()
    assert 0.2 < (shown != under)[under != VOID].mean() < 0.8


def test_a_camera_sees_what_stands_before_it() -> None:
    """Around a stadium, cameras that face it show it and cameras that turn away hardly do."""
    land = make_land(5, SMALL_SHAPE)
    structures = build(land)
    thing = next(o for o in land.objects if o.kind == 'stadium')
    bearing = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    reach = thing.length_px / 2 + 4
    shares = []
    for turn in (180.0, 0.0):
        cameras = Cameras(
            (thing.row - reach * np.cos(bearing)).astype(np.float32),
            (thing.col + reach * np.sin(bearing)).astype(np.float32),
            ((np.rad2deg(bearing) + turn) % 360).astype(np.float32),
            np.full(32, 190, np.int32),
            np.zeros(32, np.float32),
        )
        _, share = render(land, structures, cameras, 0)
        shares.append(float(share[:, CLASS_NAMES.index('stadium')].mean()))
    toward, away = shares
    assert toward > 0.15 and toward > 5 * away


def test_there_are_areas_and_objects_enough() -> None:
    """At least twenty classes, some of them objects, and most of them occur in a quarter of the default land."""
    assert len(LAND_CLASSES) >= 20 and sum(c.is_object for c in LAND_CLASSES) >= 8
    land = make_land(0, (1536, 1920))
    present = set(np.unique(land.classes).tolist()) - {VOID}
    assert len(present) >= 20


def test_land_in_colours_is_the_same_land() -> None:
    """216 kinds; what is plain looks as in the plain world, what has a tint lies half way to it, and photos show it."""
    plain, land = make_land(5, SMALL_SHAPE), make_land(5, SMALL_SHAPE, tints=9)
    assert len(land.kinds) == 216 and len({kind.name for kind in land.kinds}) == 216 and land.tint is not None
    np.testing.assert_array_equal(land.classes, plain.classes)
    roads = land.classes == VOID
    assert (land.kind[roads] == VOID).all() and (land.tint[roads] == 0).all()
    np.testing.assert_array_equal(land.kind[~roads] % 24, land.classes[~roads])
    assert set(np.unique(land.tint)) == set(range(9))
    structures = build(land)
    before, after = (reflectance(world, structures, datetime(2020, 6, 15)) for world in (plain, land))
    np.testing.assert_array_equal(after[:, land.tint == 0], before[:, land.tint == 0])
    for number, tint in enumerate(TINTS, start=1):
        mine = land.tint == number
        light = (after - before / 2)[:, mine] / (np.array(tint.overhead)[:, None] / 2)  # the same in every band
        np.testing.assert_allclose(light, np.broadcast_to(light[:1], light.shape), rtol=1e-3, atol=1e-3)
        assert 0.7 < light.mean() < 1.3
    row, col, overcast = (np.full(4, v, np.float32) for v in (400, 500, 0))
    cameras = Cameras(row, col, np.arange(0, 360, 90, dtype=np.float32), np.full(4, 190, np.int32), overcast)
    (_, of_classes), (_, of_kinds) = (render(world, structures, cameras, 0) for world in (plain, land))
    np.testing.assert_allclose(of_kinds.reshape(4, 9, 24).sum(1), of_classes, atol=1e-6)


def test_equal_settings_give_equal_worlds(world: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes, with another number of workers too."""
    make_sandbox(tmp_path / 'again', SandboxSettings(seed=5, photos=480, rows=768, cols=1024), workers=1)
    names = [
        p.relative_to(world) for p in sorted(world.rglob('*')) if p.is_file() and p.suffix in ('.jpg', '.tif', '.json')
    ]
    assert len(names) > 480
    for name in names:
        assert (world / name).read_bytes() == (tmp_path / 'again' / name).read_bytes(), name


def test_only_evaluation_reads_the_truth(world: Path, recipe: Recipe, store: PairStore, tmp_path: Path) -> None:
    """Pairing gives the same store when the truth is not there."""
    blind = tmp_path / 'sandbox'
    shutil.copytree(world, blind, ignore=shutil.ignore_patterns('truth'))
    settings = json.loads(recipe.model_dump_json())
    settings['photos']['folder'] = str(blind / 'photos')
    settings['scenes']['catalog'] = str(blind / 'catalog' / 'catalog.json')
    pair(Recipe.model_validate(settings), tmp_path / 'pairs')
    found = PairStore(tmp_path / 'pairs')
    assert found.pairs.equals(store.pairs)
    assert (found.path / 'tiles' / '00000.tar').read_bytes() == (store.path / 'tiles' / '00000.tar').read_bytes()


def test_the_shipped_clip_is_small_and_says_how_it_was_made() -> None:
    """Weights under 8 MB, with the record of their making, by worlds that the quickstart never uses."""
    from grafalign.sandbox import TINY_CLIP_DIR

    assert sum(p.stat().st_size for p in TINY_CLIP_DIR.iterdir()) < 8_000_000
    record = json.loads((TINY_CLIP_DIR / 'training.json').read_text())
    assert record['accuracy'] > 0.85 and min(record['worlds']) > 1000


def test_a_world_of_an_impossible_size_is_one_sentence(tmp_path: Path) -> None:
    """Sizes that cannot be laid out are named with the remedy, and nothing is written."""
    run = subprocess.run(
        [sys.executable, '-m', 'grafalign', 'sandbox', str(tmp_path / 'w'), '--rows', '100'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1 and 'multiples of 16' in run.stderr and 'Traceback' not in run.stderr
    assert not (tmp_path / 'w').exists()


def test_a_world_at_a_relative_path_has_links_that_lead_to_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every asset of a catalog written to a relative path is found again, by its item's own relative link."""
    monkeypatch.chdir(tmp_path)
    make_sandbox(Path('runs/world'), SandboxSettings(photos=10, rows=512, cols=512))
    catalog = Path('runs/world/catalog/catalog.json')
    scenes = load_scenes(SceneSource(catalog=catalog), (-31.0, 44.0, -29.0, 46.0))
    hrefs = [asset['href'] for scene in scenes for asset in scene.item['assets'].values()]
    assert len(hrefs) > 40 and all(Path(href).is_file() for href in hrefs)


def test_a_folder_of_photos_is_not_taken_for_a_begun_world(tmp_path: Path) -> None:
    """A folder that holds somebody's own `photos` is refused and left as it is."""
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'mine.jpg').write_bytes(b'mine')
    with pytest.raises(GrafalignError, match='not empty'):
        make_sandbox(tmp_path, SandboxSettings(photos=10, rows=512, cols=512))
    assert (tmp_path / 'photos' / 'mine.jpg').read_bytes() == b'mine'


@pytest.mark.parametrize('seed', [0, 1])
def test_other_seeds_are_other_lands(seed: int) -> None:
    """Two seeds share hardly more classes by place than chance would have."""
    one, two = make_land(seed, SMALL_SHAPE), make_land(seed + 10, SMALL_SHAPE)
    assert (one.classes == two.classes).mean() < 0.4
