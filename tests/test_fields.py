"""Fields of scenes: real GeoTIFFs, local and from a server, through the tiny CLIP; kills, holes, mosaics, formats."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from pyproj import Transformer

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.encoders.smooth import SmoothAttention
from grafalign.encoders.windows import WindowEncoder
from grafalign.errors import GrafalignError, InputError, StaleError
from grafalign.fields import (
    Field,
    FieldInput,
    FieldOptions,
    field_input,
    make_field,
    open_field,
    window_encoder,
)
from grafalign.models import Model, load_model
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import train
from tests.commands import Command, contents, finish, interrupted, refused, start
from tests.range_server import RangeServer
from tests.scenes import CORNER, patchwork, write_scene
from tests.training_world import settings

MODEL = str(TINY_CLIP_DIR)


def made(scene: Path | str, out: Path, model: Model, **options: object) -> Field:
    """A field of a scene."""
    source = field_input(str(scene), model, FieldOptions(**options))  # type: ignore[arg-type]
    make_field(out, source, window_encoder(model, source.plan), MODEL)
    return open_field(out)


def brightness(source: FieldInput) -> WindowEncoder:
    """Stands for a model: the mean brightness of each patch, against the opposite of it."""
    patch = source.plan.patch

    def encode(inputs: torch.Tensor) -> torch.Tensor:
        mean = torch.nn.functional.avg_pool2d(inputs.mean(1, keepdim=True), patch)[:, 0]
        return torch.stack([mean, 1 - mean], dim=-1)

    return WindowEncoder(encode, torch.zeros(3), torch.ones(3), 2, 16, torch.device('cpu'))


def bright_field(scene: Path, out: Path, model: Model, **options: object) -> Field:
    """A field whose two embeddings are how bright and how dark a place is."""
    source = field_input(str(scene), model, FieldOptions(**options))  # type: ignore[arg-type]
    source = FieldInput(source.plan.model_copy(update={'dimensions': 2}), source.scenes, source.reader)
    make_field(out, source, brightness(source), MODEL)
    return open_field(out)


def test_scores_are_cosines_of_the_words_with_what_the_model_sees(model: Model, tmp_path: Path) -> None:
    """In one window, far from others, a cell's score is the model's own for its patch; fields know their grid."""
    pixels = patchwork(64, 64)
    field = made(write_scene(tmp_path / 's.tif', pixels), tmp_path / 'f', model, stride=64)
    words = model.embed_texts(['a photo of a forest.', 'a photo of water.'])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    with torch.no_grad():
        patches = model.encoder()((torch.from_numpy(pixels).float()[None] / 255 - mean) / std).patches[0]
    expected = np.einsum('rcd,kd->krc', patches.numpy(), words)
    scores = field.scores(words)
    assert scores.values.shape == (2, 64, 64) and scores.geobox.shape == (64, 64)
    np.testing.assert_allclose(scores.values[:, 8::16, 8::16], expected, atol=0.02)  # half a pixel off the middles
    np.testing.assert_allclose(field.embeddings(slice(0, 4)) @ words.T, expected.transpose(1, 2, 0), atol=2e-3)
    assert scores.geobox.affine == CORNER and field.cells.affine == CORNER * Affine.scale(16)
    part = field.scores(words, rows=slice(20, 50), columns=slice(7, 33))
    np.testing.assert_allclose(part.values, scores.values[:, 20:50, 7:33], atol=1e-6)
    assert part.geobox == field.geobox[20:50, 7:33]


def test_a_field_by_smooth_attention_scores_what_it_pools(model: Model, tmp_path: Path) -> None:
    """In one window a cell's score is that of what the model's own pooling makes of its patch."""
    pixels = patchwork(64, 64)
    field = made(write_scene(tmp_path / 's.tif', pixels), tmp_path / 'f', model, stride=64, of='smooth')
    assert field.plan.of == 'smooth' and field.plan.patch == 16
    words = model.embed_texts(['a photo of a forest.', 'a photo of water.'])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    with torch.no_grad():
        inputs = (torch.from_numpy(pixels).float()[None] / 255 - mean) / std
        pooled = SmoothAttention(model.encoder())(inputs).patches[0]
    expected = np.einsum('rcd,kd->krc', pooled.numpy(), words)
    np.testing.assert_allclose(field.scores(words).values[:, 8::16, 8::16], expected, atol=0.02)


@pytest.mark.parametrize('stride', [8, 24, 32, 48, 64])
@pytest.mark.parametrize(
    ('transform', 'crs'),
    [
        (CORNER, 'EPSG:32633'),
        (CORNER * Affine.translation(0, 400) * Affine.scale(1, -1), 'EPSG:32633'),  # south up
        (CORNER * Affine.rotation(17), 'EPSG:32633'),
        (CORNER, 'EPSG:32733'),
        (Affine(5, 0, 4_000_000, 0, -5, 3_000_000), 'EPSG:3035'),
    ],
    ids=['north up', 'south up', 'turned', 'other zone', 'other CRS'],
)
def test_a_bright_square_comes_back_where_it_is(
    model: Model, tmp_path: Path, transform: Affine, crs: str, stride: int
) -> None:
    """Its middle is within half a pixel of the true place on the ground, on any grid.

    Strides are whole patches, or so small that many windows see each edge: patches of two windows that are cut half a
    patch apart, and nothing else, see an edge up to 0.8 px off (a stride of 40 here).
    """
    pixels = np.full((3, 400, 300), 20, np.uint8)
    pixels[:, 150:246, 100:196] = 250
    scene = write_scene(tmp_path / 's.tif', pixels, transform=transform, crs=crs)
    field = bright_field(scene, tmp_path / 'f', model, stride=stride)
    values = np.nan_to_num(field.scores(np.array([[1.0, 0.0]])).values[0] - 20 / 255)
    values = np.clip(values, 0.01, None) - 0.01
    rows, columns = np.indices(values.shape)
    middle = field.geobox.affine * ((columns + 0.5, rows + 0.5))
    x, y = ((m * values).sum() / values.sum() for m in middle)
    true = transform * (148, 198)
    assert np.hypot(x - true[0], y - true[1]) < 2.5


def test_pixels_of_web_mercator_are_measured_on_the_ground(model: Model, tmp_path: Path) -> None:
    """At 60 degrees north a pixel of 20 units is one of 10 m, which a model of 10 m takes as it is."""
    x, y = Transformer.from_crs('EPSG:4326', 3857, always_xy=True).transform(10.0, 60.0)
    ten = replace(model, gsd_m=10.0)
    for size, metres in ((20.0, 10.0), (30.0, 15.0)):
        transform = Affine(size, 0, x, 0, -size, y)
        scene = write_scene(tmp_path / f'{size:g}.tif', patchwork(128, 128), crs='EPSG:3857', transform=transform)
        plan = field_input(str(scene), ten, FieldOptions()).plan
        kept = metres == 10.0
        assert plan.pixel_m == pytest.approx(10.0, rel=0.01)
        assert plan.crs == 'EPSG:3857' and (plan.width == 128) is kept
        assert plan.transform[0] * plan.width == pytest.approx(128 * size, rel=0.01)


def test_a_scene_of_other_pixels_is_resampled_and_a_very_different_one_refused(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A run knows its 5 m: 7 m and degrees become 5 m, with a word about it; 25 m is refused unless it is told to."""
    train(settings(store, clip, tmp_path / 'run', steps=1))
    run = load_model(str(tmp_path / 'run'))
    pixels = patchwork(200, 200)
    scenes = {
        7: write_scene(tmp_path / '7.tif', pixels, transform=Affine(7, 0, 500_000, 0, -7, 5_400_000)),
        25: write_scene(tmp_path / '25.tif', pixels, transform=Affine(25, 0, 500_000, 0, -25, 5_400_000)),
    }
    plan = field_input(str(scenes[7]), run, FieldOptions(value_range=(0, 255))).plan
    assert (plan.height, plan.width, plan.pixel_m) == (280, 280, 5)
    with pytest.raises(InputError, match=r'25 m .* 5 m'):
        field_input(str(scenes[25]), run, FieldOptions(value_range=(0, 255)))
    plan = field_input(str(scenes[25]), run, FieldOptions(value_range=(0, 255), any_gsd=True)).plan
    assert (plan.height, plan.width) == (1000, 1000)
    degrees = write_scene(
        tmp_path / 'd.tif', pixels, crs='EPSG:4326', transform=Affine(6e-5, 0, 15.0, 0, -4.5e-5, 48.7)
    )
    plan = field_input(str(degrees), run, FieldOptions(value_range=(0, 255))).plan
    assert plan.crs == 'EPSG:32633' and plan.pixel_m == 5


def test_missing_pixels_stay_missing_and_leave_the_others_alone(model: Model, tmp_path: Path) -> None:
    """A slanted edge of nodata comes out as it went in, and half a missing window says nothing about the other half."""
    pixels = patchwork(320, 320)
    whole = bright_field(write_scene(tmp_path / 'a.tif', pixels), tmp_path / 'a', model, stride=16)
    gone = np.tri(320, 320, -40, dtype=bool)
    pixels[:, gone] = 0
    field = bright_field(write_scene(tmp_path / 'b.tif', pixels, nodata=0), tmp_path / 'b', model, stride=16)
    assert np.array_equal(field.source(slice(0, 320)) == 0, gone)
    words = np.array([[1.0, 0.0]])
    before, after = whole.scores(words).values[0], field.scores(words).values[0]
    assert np.array_equal(np.isnan(after), gone)
    far = ~np.tri(320, 320, -8, dtype=bool)
    np.testing.assert_allclose(after[far], before[far], atol=0.02)
    assert field.marker.missing == pytest.approx(gone.mean(), abs=1e-6)
    assert field.marker.windows < whole.marker.windows


def test_of_several_scenes_the_first_that_has_a_pixel_gives_it(model: Model, tmp_path: Path) -> None:
    """A folder of scenes is one grid; which scene a pixel is from is kept."""
    folder = tmp_path / 'scenes'
    folder.mkdir()
    left, right = patchwork(128, 256, 1), patchwork(128, 256, 2)
    left[:, :, 150:] = 0
    right[:, :, :100] = 0
    write_scene(folder / 'a.tif', left, nodata=0)
    write_scene(folder / 'b.tif', right, nodata=0)
    field = bright_field(folder, tmp_path / 'f', model, stride=64)
    assert [s.item_id for s in field.plan.scenes] == ['a', 'b']
    source = field.source(slice(0, 128))
    assert (source[:, :150] == 1).all() and (source[:, 150:] == 2).all()
    one = np.where(np.arange(256) < 150, left, right)
    alone = bright_field(write_scene(tmp_path / 'one.tif', one), tmp_path / 'one', model, stride=64)
    assert np.array_equal(field.embeddings(slice(0, 8)), alone.embeddings(slice(0, 8)))


def test_every_block_of_a_remote_scene_is_fetched_once(model: Model, tmp_path: Path) -> None:
    """No byte of the file's blocks is sent twice, and the field is that of the file on disk."""
    scene = write_scene(tmp_path / 's.tif', patchwork(1100, 700))
    local = made(scene, tmp_path / 'local', model, stride=64)
    with RangeServer(tmp_path) as server:
        remote = made(server.url('s.tif'), tmp_path / 'remote', model, stride=64)
        ranges = server.counts()['files']['s.tif']['ranges']
    with rasterio.open(scene) as dataset:
        names = [f'BLOCK_{{}}_{x}_{y}' for y in range(5) for x in range(3)]
        starts, sizes = (
            np.array([int(dataset.get_tag_item(n.format(what), 'TIFF', bidx=1)) for n in names])
            for what in ('OFFSET', 'SIZE')
        )
    middles = starts + sizes // 2  # headers are asked for more than once, and may reach into the first block
    assert [sum(a <= m <= b for a, b in ranges) for m in middles] == [1] * len(middles)
    rows = slice(0, local.shape[0])
    assert np.array_equal(local.embeddings(rows), remote.embeddings(rows))


def test_a_damaged_block_is_a_hole_that_is_counted(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be decoded is missing, the rest is not, and the marker says why, and how many pieces of 128 x 512."""
    scene = write_scene(tmp_path / 's.tif', patchwork(1100, 1100), blockxsize=512, blockysize=512)
    with rasterio.open(scene) as dataset:
        start = int(dataset.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
    with scene.open('r+b') as file:
        file.seek(start)
        file.write(b'\xff' * 4000)
    field = made(scene, tmp_path / 'f', model, stride=64)
    missing = field.source(slice(0, 1100)) == 0
    assert missing[512:1024, 512:1024].all() and not missing[:512].any() and not missing[:, :512].any()
    assert '4 pieces of scenes' in capsys.readouterr().err
    assert sum(field.marker.failed.values()) == 4 and 's.tif' in next(iter(field.marker.failed))


def test_the_arrays_are_zarr_that_ten_lines_of_numpy_read(model: Model, tmp_path: Path) -> None:
    """The layout of the documentation gives the embeddings, and its metadata are those of zarr version 3."""
    field = made(write_scene(tmp_path / 's.tif', patchwork(300, 200)), tmp_path / 'f', model)
    plan = json.loads((field.path / 'field.json').read_text())['plan']
    chunk = np.fromfile(field.path / 'embeddings/c/0/0/0', np.float16).reshape(64, 64, plan['dimensions'])
    rows, columns = field.shape
    assert np.array_equal(chunk[:rows, :columns].astype(np.float32), field.embeddings(slice(0, rows)))
    pixels = np.frombuffer(gzip.decompress((field.path / 'source/c/0/0').read_bytes()), np.uint8)
    assert pixels.reshape(64 * plan['cell'], plan['width'])[:300].all()
    for name, shape in (('embeddings', [rows, columns, plan['dimensions']]), ('source', [300, 200])):
        described = json.loads((field.path / name / 'zarr.json').read_text())
        assert described['zarr_format'] == 3 and described['shape'] == shape
    zarr = pytest.importorskip('zarr')
    group = zarr.open_group(field.path, mode='r')
    assert np.array_equal(group['embeddings'][:].astype(np.float32), field.embeddings(slice(0, rows)))
    assert np.array_equal(group['source'][:], field.source(slice(0, 300)))
    np.testing.assert_allclose(group['norm'][:], np.linalg.norm(field.embeddings(slice(0, rows)), axis=-1), atol=1e-3)


def test_the_stated_error_bounds_every_score(model: Model, tmp_path: Path) -> None:
    """int8 takes half the bytes of float16, and no score of any unit vector is off by more than the marker says."""
    scene = write_scene(tmp_path / 's.tif', patchwork(500, 300))
    exact, small = (made(scene, tmp_path / n, model, numbers=n) for n in ('float16', 'int8'))
    rows = slice(0, exact.shape[0])
    words = model.embed_texts([f'a photo of {w}.' for w in ('a forest', 'water', 'a town', 'a solar farm')])
    off = np.abs((small.embeddings(rows) - exact.embeddings(rows)) @ words.T).max()
    assert 0 < off <= small.marker.error + exact.marker.error < 0.02
    chunks = [
        sum(p.stat().st_size for p in (f.path / 'embeddings' / 'c').rglob('0') if p.is_file()) for f in (small, exact)
    ]
    assert 2 * chunks[0] == chunks[1]


@pytest.mark.slow
def test_a_killed_field_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Ten kill -9 and a Ctrl-C in the middle change nothing; the draft is gone in the end."""
    scene = write_scene(tmp_path / 's.tif', patchwork(6000, 400))
    moments = [('bands/*.json', signal.SIGKILL)] * 10 + [('bands/*.json', signal.SIGINT)]
    options = ('--model', MODEL, '--stride', 16)
    code, err = finish(start('field', scene, tmp_path / 'whole', *options))
    assert code == 0, err
    interrupted(tmp_path / 'killed', moments, 'field', scene, tmp_path / 'killed', *options)
    assert contents(tmp_path / 'whole') == contents(tmp_path / 'killed')


def test_a_field_that_was_begun_is_gone_on_with(model: Model, tmp_path: Path) -> None:
    """Bands that are there are not made again, and the bytes are those of one run; another scene is refused."""
    scene = write_scene(tmp_path / 's.tif', patchwork(2500, 100))
    whole = made(scene, tmp_path / 'whole', model)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
    marker = json.loads((tmp_path / 'part' / 'field.json').read_text())
    (tmp_path / 'part' / 'field.json').unlink()
    (tmp_path / 'part' / 'draft.json').write_text(json.dumps({'format': 1, 'plan': marker['plan']}))
    (tmp_path / 'part' / 'bands' / '1.json').unlink()
    untouched = (tmp_path / 'part' / 'embeddings' / 'c' / '0' / '0' / '0').stat().st_mtime_ns
    made(scene, tmp_path / 'part', model)
    assert contents(tmp_path / 'part') == contents(tmp_path / 'whole')
    assert (tmp_path / 'part' / 'embeddings' / 'c' / '0' / '0' / '0').stat().st_mtime_ns == untouched
    assert len(whole.marker.files) > 5
    with pytest.raises(StaleError, match='another field'):
        made(scene, tmp_path / 'part', model, stride=16)


def test_what_cannot_be_encoded_is_one_sentence(tmp_path: Path, command: Command) -> None:
    """No georeference, no such file, a missing band, no pixels, another folder: file and remedy are named."""
    pixels = patchwork(100, 100)
    out = tmp_path / 'f'
    refused(command('field', tmp_path / 'none.tif', out, '--model', MODEL), 'none.tif', 'GeoTIFF')
    bare = write_scene(tmp_path / 'bare.tif', pixels, crs=None, transform=None)
    refused(command('field', bare, out, '--model', MODEL), 'bare.tif', 'gdal_edit.py')
    grey = write_scene(tmp_path / 'grey.tif', pixels[:1])
    refused(command('field', grey, out, '--model', MODEL), 'grey', 'red', '--bands', 'b1')
    deep = write_scene(tmp_path / 'deep.tif', pixels.astype(np.uint16))
    refused(command('field', deep, out, '--model', MODEL), 'deep.tif', '--value-range')
    empty = write_scene(tmp_path / 'empty.tif', np.zeros_like(pixels), nodata=0)
    code, err = command('field', empty, out, '--model', MODEL)
    refused((code, err.splitlines()[-1]), 'empty', 'missing')
    shutil.rmtree(out)
    (tmp_path / 'else').mkdir()
    (tmp_path / 'else' / 'notes.txt').write_text('mine')
    scene = write_scene(tmp_path / 's.tif', pixels)
    refused(command('field', scene, tmp_path / 'else', '--model', MODEL), 'else', 'new folder')
    refused(command('field', scene, out, '--model', MODEL, '--stride', 65), '65', '64')
    refused(command('field', scene, out, '--model', MODEL, '--of', 'pixels'), 'patches, windows or smooth')
    assert not (out / 'field.json').exists()


def test_a_damaged_chunk_is_named(model: Model, tmp_path: Path) -> None:
    """A chunk that is cut short, or gone, is one sentence with its path."""
    field = made(write_scene(tmp_path / 's.tif', patchwork(100, 100)), tmp_path / 'f', model)
    chunk = field.path / 'embeddings' / 'c' / '0' / '0' / '0'
    os.truncate(chunk, 1000)
    with pytest.raises(GrafalignError, match=r'embeddings/c/0/0/0 is damaged'):
        field.embeddings(slice(0, 2))
    with pytest.raises(GrafalignError, match='no finished field'):
        open_field(tmp_path)
    source = field.path / 'source' / 'c' / '0' / '0'
    for content in (gzip.compress(bytes(10**7)), source.read_bytes()[:50], b'no gzip'):
        source.write_bytes(content)
        with pytest.raises(GrafalignError, match=r'source/c/0/0 is damaged'):
            field.source(slice(0, 10))
    source.unlink()
    os.mkfifo(source)
    with pytest.raises(GrafalignError, match='not a file'):
        field.source(slice(0, 10))


def test_a_check_names_the_files_that_have_changed(model: Model, tmp_path: Path, command: Command) -> None:
    """A whole field passes; a byte that has turned and a file that is gone are named, with exit code 4."""
    field = made(write_scene(tmp_path / 's.tif', patchwork(100, 100)), tmp_path / 'f', model)
    assert command('check', field.path)[0] == 0
    chunk = field.path / 'norm' / 'c' / '0' / '0'
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    (field.path / 'bands' / '0.json').unlink()
    code, err = command('check', field.path)
    assert code == 4 and 'norm/c/0/0 has other content' in err and 'bands/0.json cannot be read' in err


def test_a_wrong_value_range_is_told(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where most pixels are black or white to the model, a line says so; the marker has the share."""
    pixels = patchwork(100, 100)
    pixels[:, :40] = 255
    scene = write_scene(tmp_path / 's.tif', pixels)
    assert made(scene, tmp_path / 'right', model).marker.saturated == pytest.approx(0.4, abs=0.01)
    assert '--value-range' not in capsys.readouterr().err
    assert made(scene, tmp_path / 'wrong', model, value_range=(0, 1)).marker.saturated == 1
    assert '100 % of the pixels' in capsys.readouterr().err


def test_bands_without_names_are_those_of_a_picture(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of four bands that says nothing of them: the first three are red, green and blue, and a line says so."""
    pixels = np.concatenate([patchwork(100, 100), np.full((1, 100, 100), 7, np.uint8)])
    plain = write_scene(tmp_path / 'plain.tif', pixels, photometric='MINISBLACK', alpha='NO')
    named = made(write_scene(tmp_path / 'named.tif', pixels[:3]), tmp_path / 'named', model)
    assert 'does not name' not in capsys.readouterr().err
    field = made(plain, tmp_path / 'plain', model)
    assert '--bands' in capsys.readouterr().err
    rows = slice(0, field.shape[0])
    assert np.array_equal(field.embeddings(rows), named.embeddings(rows))
