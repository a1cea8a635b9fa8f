"""Maps of fields: classes, confidence, scores, overviews, names, polygons, STAC item, page: files that others read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.enums import ColorInterp, MaskFlags

from grafalign.encoders.lattice import to_pixels
from grafalign.fields import Field, open_field
from grafalign.maps import MapFiles, embed_classes, load_classes, make_map, write_map
from grafalign.maps.labels import UNKNOWN, CellScores, pixel_labels
from grafalign.maps.write import uncalibrated as plain
from grafalign.models import Model
from tests.commands import Command, contents, finish, interrupted, refused, start, write_yaml
from tests.scenes import patchwork, write_scene
from tests.test_fields import MODEL, made

WORDS = ['forest', 'water', 'a town', 'a solar farm', 'bare rock']


@pytest.fixture(scope='module')
def field(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """The field of a scene of 900 x 700 px, a corner of which is missing."""
    folder = tmp_path_factory.mktemp('field')
    pixels = patchwork(900, 700)
    pixels[:, np.tri(900, 700, -500, dtype=bool)] = 0
    return made(write_scene(folder / 's.tif', pixels, nodata=0), folder / 'field', model)


@given(
    st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 7, 16]), st.integers(1, 70),
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_a_pixel_has_the_class_whose_enlarged_score_is_highest(
    rows: int, columns: int, cell: int, classes: int, seed: int, missing: float
) -> None:
    """The quick way gives what enlarging every class's scores and choosing gives, at any size of cell."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, classes, generator=random)
    known = torch.rand(rows, columns, generator=random) >= missing
    labels, chance = pixel_labels(CellScores(scores, known, 0.5), cell)
    planes = to_pixels(scores.permute(2, 0, 1), known, cell).numpy()
    nothing = np.isnan(planes).any(0)
    ranked = np.sort(np.nan_to_num(planes), axis=0)
    clear = np.ones_like(nothing) if classes == 1 else ranked[-1] - ranked[-2] > 1e-4
    assert ((labels == UNKNOWN) == nothing)[clear].all()
    sure = clear & ~nothing
    assert np.array_equal(labels[sure], np.nan_to_num(planes).argmax(0)[sure])
    assert chance.min() >= 0 and chance.max() <= 1 + 1e-5


def test_confidence_is_the_probability_of_the_class(model: Model, tmp_path: Path) -> None:
    """In the middle of a cell it is the softmax of the cell's scores at the temperature, in steps of 1/250."""
    field = made(write_scene(tmp_path / 's.tif', patchwork(112, 112)), tmp_path / 'f', model, stride=16)
    classes = embed_classes(load_classes(WORDS), model.embed_texts)
    make_map(
        field,
        classes,
        tmp_path / 'm.tif',
        plain(0.05, len(WORDS)),
        confidence=tmp_path / 'c.tif',
        scores=tmp_path / 's2.tif',
    )
    scores = field.embeddings(slice(0, 7)) @ classes.vectors.T / 0.05
    chance = np.exp(scores - scores.max(-1, keepdims=True))
    chance /= chance.sum(-1, keepdims=True)
    with rasterio.open(tmp_path / 'c.tif') as dataset:
        numbers = dataset.read(1)
        assert dataset.nodata == 255 and dataset.scales == (1 / 250,)
    corners = [numbers[7 + dy :: 16, 7 + dx :: 16].astype(float) for dy in (0, 1) for dx in (0, 1)]
    np.testing.assert_allclose(np.mean(corners, axis=0) / 250, chance.max(-1), atol=0.04)
    with rasterio.open(tmp_path / 's2.tif') as dataset:
        assert dataset.descriptions == tuple(WORDS) and dataset.shape == field.shape
        np.testing.assert_allclose(dataset.read() * dataset.scales[0], scores.transpose(2, 0, 1) * 0.05, atol=6e-5)


def test_the_class_map_is_a_cog_that_keeps_its_classes(field: Field, model: Model, tmp_path: Path) -> None:
    """Palette, nodata, no mask band, names beside it, and overviews by MODE hold no class that the map has not."""
    colours = {'forest': '#006400', 'water': '#0000ff', 'a town': '#cc0000'}
    content = write_yaml(tmp_path / 'classes.yaml', {'classes': [{'name': n, 'colour': c} for n, c in colours.items()]})
    files = MapFiles(tmp_path / 'map.tif', tmp_path / 'sure.tif', None, tmp_path / 'map.parquet')
    summary = write_map(field, load_classes([str(content)]), model, files)
    with rasterio.open(files.map) as dataset:
        labels = dataset.read(1)
        assert dataset.profile['driver'] == 'GTiff' and dataset.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
        assert dataset.count == 1 and dataset.colorinterp == (ColorInterp.palette,) and dataset.nodata == 255
        assert MaskFlags.per_dataset not in dataset.mask_flag_enums[0]
        palette = dataset.colormap(1)
        assert [palette[i] for i in range(3)] == [(0, 100, 0, 255), (0, 0, 255, 255), (204, 0, 0, 255)]
        assert dataset.transform == field.geobox.affine and dataset.crs == 'EPSG:32633'
        levels = len(dataset.overviews(1))
    assert levels
    for level in range(levels):
        with rasterio.open(files.map, overview_level=level) as smaller:
            assert set(np.unique(smaller.read(1))) <= {0, 1, 2, 255}
    assert np.array_equal(labels == 255, field.source(slice(0, 900)) == 0)
    assert summary.pixels == {name: int((labels == i).sum()) for i, name in enumerate(colours)}
    assert summary.missing == (labels == 255).sum() and sum(summary.shares.values()) == pytest.approx(1)
    names = ElementTree.parse(f'{files.map}.aux.xml')
    assert [c.text for c in names.iter('Category')] == list(colours)
    assert len(list(names.iter('Row'))) == 3


def test_polygons_item_and_page_go_with_the_map(field: Field, model: Model, tmp_path: Path) -> None:
    """Polygons are valid and cover all but the background; the item names the classes; the page needs no network."""
    content = write_yaml(
        tmp_path / 'classes.yaml',
        {'classes': [{'name': 'forest & "wood"'}, {'name': 'water', 'background': True}, {'name': 'a town'}]},
    )
    files = MapFiles(tmp_path / 'map.tif', tmp_path / 'sure.tif', None, tmp_path / 'map.parquet')
    summary = write_map(field, load_classes([str(content)]), model, files)
    polygons = gpd.read_parquet(files.polygons)
    assert polygons.is_valid.all() and set(polygons['class']) <= {'forest & "wood"', 'a town'}
    pixels = sum(n for name, n in summary.pixels.items() if name != 'water')
    assert polygons['pixels'].sum() == pixels and polygons.area.sum() == pytest.approx(pixels * 25)
    assert polygons['mean_confidence'].between(0, 1).all()
    item = pystac.Item.from_file(tmp_path / 'map.json')
    assert item.datetime is not None and item.datetime.isoformat() == '2023-05-01T10:00:00+00:00'
    listed = item.assets['map'].extra_fields['classification:classes']
    assert [c['value'] for c in listed] == [0, 1, 2, 255] and listed[3]['nodata']
    assert listed[0]['description'] == 'forest & "wood"' and len(listed[0]['color_hint']) == 6
    assert item.properties['proj:code'] == 'EPSG:32633' and set(item.assets) == {'map', 'confidence', 'polygons'}
    assert all((tmp_path / a.href).is_file() for a in item.assets.values())
    page = (tmp_path / 'map.html').read_text()
    assert 'forest &amp; &#34;wood&#34;' in page and 'http' not in page.replace('http-equiv', '')


def test_a_class_of_several_prompts_is_their_mean_or_their_best(model: Model, tmp_path: Path) -> None:
    """Said in the file: the vector is the mean of its prompts', or the score is the highest of theirs."""
    given = {'classes': [{'name': 'green', 'prompts': ['forest', 'meadow']}, {'name': 'water'}]}
    mean, best = (
        embed_classes(
            load_classes([str(write_yaml(tmp_path / f'{how}.yaml', {**given, 'combine': how}))]), model.embed_texts
        )
        for how in ('mean', 'max')
    )
    forest, meadow, water = model.embed_texts([f'a photo of {w}.' for w in ('forest', 'meadow', 'water')])
    middle = (forest + meadow) / np.linalg.norm(forest + meadow)
    np.testing.assert_allclose(mean.vectors, [middle, water], atol=1e-6)
    np.testing.assert_allclose(best.vectors, [forest, meadow, water], atol=1e-6)
    field = made(write_scene(tmp_path / 's.tif', patchwork(64, 64)), tmp_path / 'f', model)
    make_map(field, best, tmp_path / 'm.tif', plain(0.1, len(best.classes)), scores=tmp_path / 'scores.tif')
    cells = field.embeddings(slice(0, 4))
    with rasterio.open(tmp_path / 'scores.tif') as dataset:
        scores = dataset.read() * dataset.scales[0]
    np.testing.assert_allclose(scores[0], np.maximum(cells @ forest, cells @ meadow), atol=1e-4)


def test_more_classes_than_a_byte_holds_are_written_in_two(model: Model, tmp_path: Path) -> None:
    """300 classes become uint16 with 65535 for nodata; all values are classes."""
    field = made(write_scene(tmp_path / 's.tif', patchwork(128, 96)), tmp_path / 'f', model)
    names = [f'thing {i}' for i in range(300)]
    classes = embed_classes(load_classes(names), model.embed_texts)
    summary = make_map(field, classes, tmp_path / 'm.tif', plain(0.1, len(names)))
    with rasterio.open(tmp_path / 'm.tif') as dataset:
        assert dataset.dtypes == ('uint16',) and dataset.nodata == 65535
        labels = dataset.read(1)
    assert labels.max() < 300 and sum(summary.pixels.values()) == labels.size


def test_a_map_of_a_scene_is_that_of_its_field(command: Command, tmp_path: Path, model: Model) -> None:
    """The command makes a field on the way and removes it, or keeps it where it is told; the maps are the same."""
    scene = write_scene(tmp_path / 's.tif', patchwork(300, 200))
    words = ('--words', 'forest,water,a town')
    code, err = command('map', scene, *words, '--model', MODEL, '--out', tmp_path / 'a.tif')
    assert code == 0, err
    code, err = command('map', scene, *words, '--model', MODEL, '--out', tmp_path / 'b.tif', '--field', tmp_path / 'f')
    assert code == 0, err
    code, err = command('map', tmp_path / 'f', *words, '--out', tmp_path / 'c.tif')
    assert code == 0, err
    maps = [(tmp_path / f'{n}.tif').read_bytes() for n in 'abc']
    assert maps[0] == maps[1] == maps[2]
    assert open_field(tmp_path / 'f').marker.model == MODEL
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_classes_that_make_no_sense_are_one_sentence(field: Field, command: Command, tmp_path: Path) -> None:
    """Twice the same class, too many, none, a colour that is none, a field without a model: all say what to do."""
    out = ('--out', tmp_path / 'm.tif')
    refused(command('map', field.path, '--words', 'forest,water,forest', *out), 'forest', 'once')
    refused(command('map', field.path, '--words', ' , ', *out), 'classes.yaml')
    refused(command('map', field.path, '--words', tmp_path / 'no.yaml', *out), 'no.yaml')
    twice = write_yaml(tmp_path / 'twice.yaml', {'classes': [{'name': 'a'}, {'name': 'a'}]})
    refused(command('map', field.path, '--words', twice, *out), 'twice.yaml', "'a'")
    colour = write_yaml(tmp_path / 'colour.yaml', {'classes': [{'name': 'a', 'colour': 'green'}]})
    refused(command('map', field.path, '--words', colour, *out), 'colour.yaml', 'colour')
    many = write_yaml(tmp_path / 'many.yaml', {'classes': [{'name': f'c{i}'} for i in range(70_000)]})
    refused(command('map', field.path, '--words', many, *out), '70,000')
    refused(command('map', tmp_path / 's.tif', '--words', 'forest', *out), '--model')
    refused(command('map', field.path, '--words', 'forest', '--out', tmp_path / 'm.png'), 'm.png')
    refused(command('map', field.path, '--words', 'forest', '--overlap', 9, *out), '--overlap is for scenes')
    assert not (tmp_path / 'm.tif').exists()


def test_words_of_another_model_are_refused(field: Field, builtin: object, command: Command, tmp_path: Path) -> None:
    """A field knows the model that made it: another one's words mean nothing to it."""
    weights = Path(MODEL) / 'open_clip_model.safetensors'
    result = command(
        'map', field.path, '--words', 'forest', '--model', f'ViT-tiny-16:{weights}', '--out', tmp_path / 'm.tif'
    )
    refused((result[0], result[1].splitlines()[-1]), 'another model')


def test_classes_that_are_nearly_one_are_named(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """Two classes whose vectors point the same way are told, as which of them wins says little."""
    embed_classes(load_classes(['forest', 'Forest', 'water']), model.embed_texts)
    err = capsys.readouterr().err
    assert "'forest' and 'Forest'" in err and 'water' not in err


@pytest.mark.parametrize('kilobytes', [pytest.param(20, marks=pytest.mark.slow), 200])
def test_a_full_disk_is_one_sentence_and_leaves_no_map(field: Field, tmp_path: Path, kilobytes: int) -> None:
    """Whether rows or the COG no longer fit: a sentence with the file's name, and nothing half."""
    limited = ('bash', '-c', f'ulimit -f {kilobytes}; exec "$@"', '--')
    out = tmp_path / 'm.tif'
    code, err = finish(start('map', field.path, '--words', 'forest,water,a town', '--out', out, before=limited))
    assert code == 7 and 'Traceback' not in err, err
    assert str(tmp_path) in err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_summaries_are_json_on_request(field: Field, tmp_path: Path) -> None:
    """Programs get shares as JSON."""
    done = subprocess.run(
        [sys.executable, '-m', 'grafalign', 'map', str(field.path), '--words', 'forest,water', '--out',
         str(tmp_path / 'm.tif'), '--json'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    content = json.loads(done.stdout)
    assert content['share of forest'] + content['share of water'] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ('crs', 'transform'),
    [
        ('EPSG:32601', Affine(10, 0, 300_000 - 640 * 5, 0, -10, 5_000_000)),  # zone 1, over its western edge
        ('EPSG:32660', Affine(10, 0, 735_500, 0, -10, 5_000_000)),  # zone 60, over the antimeridian
        ('EPSG:4326', Affine(1e-4, 0, 179.97, 0, -1e-4, 12.0)),  # degrees that count on beyond 180
        ('EPSG:32661', Affine(10, 0, 2_000_000 + 600_000, 0, -10, 2_000_000)),  # near 84 degrees north
        ('EPSG:4326', Affine(1e-3, 0, 20.0, 0, -1e-4, 84.5)),  # and in degrees: UPS
        ('+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m', Affine(10, 0, 500, 0, -10, 500)),  # no code
        ('EPSG:2263', Affine(30, 0, 980_000, 0, -30, 200_000)),  # feet
    ],
    ids=['zone 1', 'zone 60', 'beyond 180', '84 north', '84 north in degrees', 'no code', 'feet'],
)
def test_a_map_can_be_made_anywhere(crs: str, transform: Affine, tmp_path: Path, command: Command) -> None:
    """Over the antimeridian, near the pole, in degrees or feet, without a code: map, polygons and item lie there."""
    scene = write_scene(tmp_path / 's.tif', patchwork(200, 640), crs=crs, transform=transform)
    out, polygons = tmp_path / 'm.tif', tmp_path / 'm.parquet'
    code, err = command(
        'map', scene, '--model', MODEL, '--words', 'forest,water,a town', '--out', out, '--polygons', polygons
    )
    assert code == 0, err
    with rasterio.open(out) as dataset:
        assert dataset.crs is not None and dataset.crs.is_projected
        middle = dataset.transform * (dataset.width / 2, dataset.height / 2)
        lon, lat = Transformer.from_crs(dataset.crs, 'EPSG:4326', always_xy=True).transform(*middle)
        assert (dataset.read(1) != 255).mean() > 0.4
    x, y = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True).transform(*(transform * (320, 100)))
    assert abs((lon - x + 180) % 360 - 180) < 0.05 and abs(lat - y) < 0.01
    item = json.loads((tmp_path / 'm.json').read_text())
    outline = shapely.geometry.shape(item['geometry'])
    assert outline.is_valid and outline.distance(shapely.Point((lon + 180) % 360 - 180, lat)) < 1e-6
    west, south, east, north = item['bbox']
    assert -180 <= west <= 180 and -180 <= east <= 180 and (east - west) % 360 < 20 and -90 <= south < north <= 90
    table = gpd.read_parquet(polygons)
    assert table.is_valid.all() and table.crs == CRS.from_user_input(rasterio.open(out).crs.to_wkt())


@pytest.mark.slow
def test_a_killed_map_is_made_again_with_the_same_bytes(field: Field, model: Model, tmp_path: Path) -> None:
    """Ten kill -9 while rows or the COG are written: the next run ends with the same bytes and nothing half beside."""
    words = ('--words', 'forest,water,a town')
    code, err = finish(start('map', field.path, *words, '--out', tmp_path / 'whole' / 'm.tif'))
    assert code == 0, err
    moments = [('.m.tif.rows.tif', signal.SIGKILL), ('*m.tif*', signal.SIGKILL)] * 5
    (tmp_path / 'killed').mkdir()
    interrupted(tmp_path / 'killed', moments, 'map', field.path, *words, '--out', tmp_path / 'killed' / 'm.tif')
    assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')
