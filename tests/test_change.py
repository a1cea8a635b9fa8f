"""Change by words: differences against their definition, thresholds from pairs without change, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine

from grafalign.fields import Field
from grafalign.fields.source import LATTICE
from grafalign.maps import embed_classes, load_classes
from grafalign.maps.change import GAIN, LOSS, UNKNOWN, change_rows, thresholds
from grafalign.maps.classes import question_of
from grafalign.models import Model
from tests.commands import Command, refused
from tests.scenes import CORNER, patchwork, write_scene
from tests.test_fields import MODEL, made

WORDS = ['forest', 'water', 'a town']
RATE = 0.02
BUILT = slice(300, 420), slice(200, 330)
"""Pixels that are another picture at the second date."""


@pytest.fixture(scope='module')
def fields(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Field]:
    """A scene, the same a week later with other noise, and with a square of other colours; a corner is missing."""
    folder = tmp_path_factory.mktemp('dates')
    first = patchwork(600, 520)
    first[:, :100, :100] = 0
    noise = np.random.default_rng(3).integers(-12, 13, first.shape)
    week = np.where(first > 0, np.clip(first.astype(int) + noise, 1, 255), 0).astype(np.uint8)
    later = week.copy()
    later[(slice(None), *BUILT)] = patchwork(600, 520, seed=9, side=16)[(slice(None), *BUILT)]
    out = {'first': made(write_scene(folder / 'first.tif', first, nodata=0), folder / 'first', model)}
    for name, pixels in (('week', week), ('later', later)):
        scene = write_scene(folder / f'{name}.tif', pixels, nodata=0)
        out[name] = made(scene, folder / name, model, like=str(folder / 'first'))
    return out


@pytest.mark.parametrize('words', [WORDS, WORDS[:1]])
def test_a_change_is_the_difference_of_scores_less_its_median(
    fields: dict[str, Field], model: Model, words: list[str]
) -> None:
    """At every pixel, with the thresholds of the pair without change; several words must also win."""
    first, week, later = fields.values()
    classes = embed_classes(load_classes(words), model.embed_texts)
    question = question_of(classes)
    limits = thresholds(first, later, question, [(first, week)], RATE)

    def cells(field: Field) -> np.ndarray:
        return field.embeddings(slice(0, field.shape[0])) @ classes.vectors.T

    known = (first.embeddings(slice(0, first.shape[0])) != 0).any(-1)
    calm = (cells(week) - cells(first))[known]
    moved = (cells(later) - cells(first))[known]
    np.testing.assert_allclose(limits.shift, np.median(moved, axis=0), atol=1e-5)
    np.testing.assert_allclose(
        limits.least, np.quantile(abs(calm - np.median(calm, axis=0)), 1 - RATE, axis=0), atol=1e-5
    )
    parts = list(change_rows(first, later, question, limits))
    difference, kind = (np.concatenate([getattr(p, name) for p in parts], axis=1) for name in ('difference', 'kind'))
    scores = [field.scores(classes.vectors).values for field in (first, later)]
    wanted = scores[1] - scores[0] - limits.shift[:, None, None]
    assert (np.isnan(difference) == np.isnan(wanted)).all() and np.isnan(wanted).any()
    there = ~np.isnan(wanted)
    np.testing.assert_allclose(difference[there], wanted[there], atol=1e-4)
    wins = [np.nan_to_num(s).argmax(0) for s in scores]
    for number in range(len(words)):
        least = limits.least[number]
        gain, loss = wanted[number] >= least, wanted[number] <= -least
        if len(words) > 1:
            gain, loss = gain & (wins[1] == number), loss & (wins[0] == number)
        expected = np.where(np.isnan(wanted[number]), UNKNOWN, gain * GAIN + loss * LOSS)
        assert (kind[number] == expected).mean() > 0.995  # the rest lies on a threshold


def test_unchanged_land_gives_the_wanted_share_of_false_alarms(fields: dict[str, Field], model: Model) -> None:
    """The pair that the thresholds were read off, asked again: no more of its pixels than that."""
    first, week, _ = fields.values()
    question = question_of(embed_classes(load_classes(WORDS[:1]), model.embed_texts))
    limits = thresholds(first, week, question, [(first, week)], RATE)
    kind = np.concatenate([part.kind for part in change_rows(first, week, question, limits)], axis=1)
    share = ((kind == GAIN) | (kind == LOSS)).sum() / (kind != UNKNOWN).sum()
    assert 0 < share <= RATE


def test_what_is_built_is_found_where_it_stands(fields: dict[str, Field], command: Command, tmp_path: Path) -> None:
    """Polygons of gain and loss lie in the square that changed; rasters, polygons, numbers and page agree."""
    first, week, later = fields.values()
    out = tmp_path / 'change'
    pair = f'{first.path},{week.path}'
    arguments = ('change', first.path, later.path, '--words', ','.join(WORDS), '--out', out)
    code, err = command(*arguments, '--unchanged', pair)
    assert code == 0, err
    summary = json.loads((out / 'change.json').read_text())
    assert summary['thresholds_from'] == '1 pairs without change' and summary['days'] == ['2023-05-01'] * 2
    assert not list(out.glob('.*.tif'))
    corners = [CORNER @ (BUILT[1].start, BUILT[0].start), CORNER @ (BUILT[1].stop, BUILT[0].stop)]
    x, y = np.array(corners).T
    inside = total = 0.0
    for word in summary['words']:
        table = gpd.read_parquet(out / word['polygons'])
        assert len(table) == word['pieces'] and set(table['class']) <= {'gain', 'loss'}
        for kind in ('gain', 'loss'):
            area = table.geometry[table['class'] == kind].area.sum() / 1e6
            assert area == pytest.approx(word[f'{kind}_km2'], rel=0.01, abs=1e-9)
        near = table.geometry.clip_by_rect(min(x) - 160, min(y) - 160, max(x) + 160, max(y) + 160)
        inside, total = inside + near.area.sum(), total + table.geometry.area.sum()
        with rasterio.open(out / word['raster']) as raster:
            assert raster.crs == first.geobox.crs and raster.shape == first.geobox.shape and raster.nodata == -32768
            assert raster.descriptions == (word['word'],)
    assert total > 0 and inside / total > 0.9
    page = (out / 'change.html').read_text()
    assert all(word in page for word in WORDS) and 'http' not in page.replace('http://www.w3.org', '')
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(*arguments, '--unchanged', pair)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == again


def test_a_field_like_another_lies_on_its_grid(fields: dict[str, Field], model: Model, tmp_path: Path) -> None:
    """Whatever the pixels, place and size of its own scene; what it does not show is missing."""
    shifted = CORNER @ Affine.translation(90.5, 100.25) @ Affine.scale(0.8)
    scene = write_scene(tmp_path / 'other.tif', patchwork(400, 400), transform=shifted)
    field = made(scene, tmp_path / 'field', model, like=str(fields['first'].path))
    assert all(getattr(field.plan, name) == getattr(fields['first'].plan, name) for name in LATTICE)
    source = field.source(slice(0, 600))
    assert (source[102:418, 92:409] == 1).all() and (source[:99] == 0).all() and (source[:, :89] == 0).all()


def test_fields_that_do_not_go_together_are_one_sentence(
    fields: dict[str, Field], model: Model, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Other grids, other land, a pair that is none, and too many words: what is wrong and what to do."""
    first, _, later = fields.values()
    pixels = patchwork(300, 300)
    near = made(write_scene(tmp_path / 'near.tif', pixels), tmp_path / 'near', model)
    far = CORNER @ Affine.translation(100_000, 0)
    far_scene = write_scene(tmp_path / 'far.tif', pixels, transform=far)
    away = made(far_scene, tmp_path / 'away', model)
    capsys.readouterr()
    options = ('--words', 'forest', '--out', tmp_path / 'out')
    refused(command('change', first.path, near.path, *options), 'different grids; make the second one with --like')
    refused(command('change', first.path, away.path, *options), 'do not overlap; give fields of the same land')
    refused(command('change', first.path, later.path, *options, '--unchanged', first.path), 'names 1 fields')
    many = ','.join(f'thing {i}' for i in range(51))
    refused(command('change', first.path, later.path, '--words', many, '--out', tmp_path / 'out'), 'at most 50')
    like = ('field', far_scene, tmp_path / 'like', '--model', MODEL, '--like', first.path)
    refused(command(*like), 'does not overlap')
    refused(command(*like, '--stride', 16), '--like takes --of, --overlap and --stride')


def test_dates_of_different_seasons_are_told(fields: dict[str, Field], model: Model, tmp_path: Path) -> None:
    """More than 45 days apart in the year, over the turn of the year as well."""
    from grafalign.maps.change import check_pair

    said = []
    for day in ('2024-06-10', '2024-06-20', '2022-12-20'):
        scene = write_scene(tmp_path / f'{day}.tif', patchwork(600, 520))
        with rasterio.open(scene, 'r+') as raster:
            raster.update_tags(TIFFTAG_DATETIME=f'{day.replace("-", ":")} 10:00:00')
        field = made(scene, tmp_path / day, model, like=str(fields['first'].path))
        with pytest.MonkeyPatch.context() as patch:
            texts: list[str] = []
            patch.setattr('grafalign.console.log', texts.append)
            check_pair(fields['first'], field)
        said.append([text for text in texts if 'different seasons' in text])
    assert [len(texts) for texts in said] == [0, 1, 1]
    assert '132 days apart' in said[2][0]
