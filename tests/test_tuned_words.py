"""Words moved by a person's points: the closed form against its definition, the file, and what uses it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from grafalign.fields import Field
from grafalign.maps import MapFiles, load_tuned, load_words, write_map
from grafalign.maps.tune import RIDGES, SHARPNESS, WEIGHTS, tune
from grafalign.models import Model
from tests.commands import Command, refused
from tests.scenes import patchwork, write_scene
from tests.test_fields import MODEL, made

WORDS = ['forest', 'water', 'a town']


@pytest.fixture(scope='module')
def field(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """The field of a scene of 600 x 500 px, a corner of which is missing."""
    folder = tmp_path_factory.mktemp('field')
    pixels = patchwork(600, 500)
    pixels[:, :150, :150] = 0
    return made(write_scene(folder / 's.tif', pixels, nodata=0), folder / 'field', model)


def lonlat(field: Field, row: float, column: float) -> list[float]:
    """Degrees of a place in a field, in pixels from its upper left corner."""
    to_degrees = Transformer.from_crs(field.geobox.crs.to_wkt(), 'EPSG:4326', always_xy=True)
    return list(to_degrees.transform(*(field.geobox.affine @ (column, row))))


def write_points(path: Path, points: list[tuple[Any, list[float] | None]], column: str = 'class') -> Path:
    """A GeoJSON file of points with the names of their classes."""
    features = [
        {
            'type': 'Feature',
            'properties': {column: name},
            'geometry': place and {'type': 'Point', 'coordinates': place},
        }
        for name, place in points
    ]
    path.write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
    return path


def some_points(field: Field) -> list[tuple[Any, list[float] | None]]:
    """Nine points of three classes, inside the field."""
    rng = np.random.default_rng(1)
    return [(name, lonlat(field, *rng.uniform(200, 480, 2))) for name in WORDS for _ in range(3)]


def naive(
    taken: np.ndarray,
    scores: np.ndarray,
    land: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
    weight: float,
    ridge: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the land, and of the left out points [P, K], written out point by point; a is 1."""
    classes = scores.shape[1]
    spread = np.atleast_2d(np.cov(land.T, ddof=1))
    spread = spread + ridge * np.mean(np.diag(spread)) * np.eye(len(spread))

    def scores_of(where: np.ndarray, mean: list[np.ndarray]) -> np.ndarray:
        out = []
        for m in mean:
            away = np.linalg.solve(spread, m - land.mean(0))
            out.append([away @ (x - land.mean(0)) - away @ (m - land.mean(0)) / 2 for x in where])
        return np.array(out).T

    def means(without: int | None) -> list[np.ndarray]:
        out = []
        for k in range(classes):
            cells = land[taken == k]
            if len(cells) < 20:
                nearness = scores[:, k] - np.delete(scores, k, 1).max(1)
                cells = land[np.argsort(-nearness, kind='stable')[:20]]
            mine = [p for i, (p, label) in enumerate(zip(points, labels, strict=True)) if label == k and i != without]
            out.append((weight * cells.mean(0) + np.sum(mine, axis=0)) / (weight + len(mine)))
        return out

    def chances(logits: np.ndarray) -> np.ndarray:
        return np.array([np.exp(row - np.logaddexp.reduce(row)) for row in logits])

    whole = scores_of(land, means(None))
    share = np.full(classes, 1 / classes)
    for _ in range(10):
        share = (chances(whole + np.log(share)).sum(0) + 1) / (len(land) + classes)
    left_out = []
    every = means(None)
    for i, label in enumerate(labels):
        mixed = [means(i)[k] if k == label else every[k] for k in range(classes)]
        left_out.append(scores_of(points[i : i + 1], mixed)[0] + np.log(share))
    return whole + np.log(share), np.array(left_out)


@given(st.integers(2, 5), st.integers(1, 6), st.integers(2, 25), st.integers(0, 2**32 - 1))
def test_tuned_words_are_their_definition(classes: int, width: int, count: int, seed: int) -> None:
    """Scores equal those written out point by point, with the values at which left out points are most likely."""
    rng = np.random.default_rng(seed)
    land = rng.normal(size=(60, width))
    scores = land @ rng.normal(size=(classes, width)).T
    scores[:, 0] -= 5 * (seed % 2)  # a class whose words win nowhere
    points, labels = rng.normal(size=(count, width)), rng.integers(0, classes, count)
    taken = scores.argmax(1)
    tuned = tune(taken, scores, land, points, labels)
    likelihood = {}
    for weight, ridge in itertools.product(WEIGHTS, RIDGES):
        theirs, left_out = naive(taken, scores, land, points, labels, weight, ridge)
        for sharpness in SHARPNESS:
            odds = sharpness * left_out
            own = [row[k] - np.logaddexp.reduce(row) for row, k in zip(odds, labels, strict=True)]
            mean = np.mean([np.mean([o for o, k in zip(own, labels, strict=True) if k == c]) for c in set(labels)])
            likelihood[weight, ridge, sharpness] = mean
            if (weight, ridge, sharpness) == (tuned.weight, tuned.ridge, tuned.sharpness):
                np.testing.assert_allclose(land @ tuned.vectors.T + tuned.offsets, sharpness * theirs, atol=1e-8)
    assert tuned.likelihood == pytest.approx(likelihood[tuned.weight, tuned.ridge, tuned.sharpness])
    assert tuned.likelihood == pytest.approx(max(likelihood.values()))


def test_points_mend_words_that_are_wrong() -> None:
    """Where words call one half of the land by the other's name, five points of each class put it right."""
    rng = np.random.default_rng(0)
    middle = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]])
    truth = rng.integers(0, 3, 3000)
    land = middle[truth] + rng.normal(size=(3000, 2))
    words = land @ middle[[1, 0, 2]].T
    assert (words.argmax(1) == truth).mean() < 0.4
    labels = np.repeat(np.arange(3), 5)
    tuned = tune(words.argmax(1), words, land, middle[labels] + rng.normal(size=(15, 2)), labels)
    assert ((land @ tuned.vectors.T + tuned.offsets).argmax(1) == truth).mean() > 0.9


def test_a_map_of_tuned_words_is_their_log_odds(field: Field, model: Model, command: Command, tmp_path: Path) -> None:
    """Classes, probabilities and scores of the files are those of `words.npz`, computed by the field's own scores."""
    points = write_points(tmp_path / 'points.geojson', some_points(field))
    code, err = command('tune-words', field.path, points, '--out', tmp_path / 'words.npz')
    assert code == 0, err
    assert 'right when left out' in err
    tuned = load_tuned(tmp_path / 'words.npz')
    assert [(c.name, c.points) for c in tuned.about.classes] == [(name, 3) for name in WORDS]
    files = MapFiles(tmp_path / 'm.tif', tmp_path / 'c.tif', tmp_path / 's.tif')
    write_map(field, load_words([str(tmp_path / 'words.npz')]), model, files)
    vectors = tuned.vectors.astype(np.float64)
    odds = field.embeddings(slice(0, field.shape[0])) @ vectors.T + tuned.offsets
    pixels = field.scores(tuned.vectors).values + tuned.offsets[:, None, None]
    with (
        rasterio.open(files.map) as labels,
        rasterio.open(files.scores) as scores,
        rasterio.open(files.confidence) as c,
    ):
        there = labels.read(1) != 255
        best = np.sort(pixels[:, there], axis=0)
        clear = best[-1] - best[-2] > 1e-3
        assert (labels.read(1)[there] == pixels[:, there].argmax(0))[clear].all() and clear.mean() > 0.9
        known = scores.read(1) != -32768
        got = scores.read().astype(float) * np.array(scores.scales)[:, None, None]
        np.testing.assert_allclose(got[:, known], odds.transpose(2, 0, 1)[:, known], atol=0.0051)
        assert 0.3 < np.median(c.read(1)[there]) / 250 <= 1
    assert f'words tuned to {tuned.points} points' in files.map.with_suffix('.html').read_text()


def test_an_index_is_searched_by_tuned_words(field: Field, command: Command, tmp_path: Path) -> None:
    """The answers are the items whose vectors are nearest to the class's own."""
    points = write_points(tmp_path / 'points.geojson', some_points(field))
    assert command('tune-words', field.path, points, '--out', tmp_path / 'words.npz')[0] == 0
    assert command('index', field.path, tmp_path / 'index', '--model', MODEL)[0] == 0
    arguments = ('search', tmp_path / 'index', 'water', '--tuned', tmp_path / 'words.npz', '-k', 3)
    code, err = command(*arguments, '--out', tmp_path / 'a.geojson')
    assert code == 0, err
    from grafalign.search import Catalog

    vectors = np.asarray(Catalog(tmp_path / 'index').vectors)
    wanted = vectors @ load_tuned(tmp_path / 'words.npz').unit_vector('water')
    answers = gpd.read_file(tmp_path / 'a.geojson')
    np.testing.assert_allclose(answers['score'], np.sort(wanted)[::-1][:3], atol=1e-5)
    assert command('search', tmp_path / 'index', 'lava', '--tuned', tmp_path / 'words.npz')[1].endswith(
        "has no class 'lava'; it has forest, water, a town.\n"
    )


@pytest.mark.parametrize(
    ('points', 'options', 'sentence'),
    [
        ([('forest', [100.0, 10.0]), ('water', [100.0, 10.0])], (), 'shows none of the 2 points'),
        ([('forest', 'in'), ('forest', 'in')], (), "are 'forest'; give points of at least two classes"),
        ([('forest', 'in'), ('water', None)], (), 'row 2 has no place'),
        ([('forest', 'in'), ('water', [float('nan'), 48.0])], (), 'row 2 has no place'),
        ([('forest', 'in'), (None, 'in')], (), 'row 2 has no class'),
        ([('forest', 'in'), (' ', 'in')], (), 'row 2 has no class'),
        ([('forest', 'in'), ('lava', 'in')], ('--words', 'forest,water'), "row 2 is 'lava', which is not among"),
        ([('forest', 'in'), ('water', 'in')], ('--column', 'kind'), "no property 'kind' (it has class)"),
        ([], (), 'holds no points'),
    ],
)  # fmt: skip
def test_points_that_cannot_be_used_are_one_sentence(
    field: Field, command: Command, tmp_path: Path, points: list[Any], options: tuple[str, ...], sentence: str
) -> None:
    """Outside the field, of one class, without a place or a class, of an unknown class: the row and the remedy."""
    given = [(name, lonlat(field, 300, 300) if place == 'in' else place) for name, place in points]
    path = write_points(tmp_path / 'points.geojson', given)
    refused(command('tune-words', field.path, path, '--out', tmp_path / 'words.npz', *options), sentence)
    assert not (tmp_path / 'words.npz').exists()


def test_points_that_a_field_does_not_show_are_told(field: Field, command: Command, tmp_path: Path) -> None:
    """Outside or on missing pixels: they are left out, with their number and the first row."""
    points = [('forest', [100.0, 10.0]), ('water', lonlat(field, 20, 20)), *some_points(field)]
    path = write_points(tmp_path / 'points.geojson', points)
    code, err = command('tune-words', field.path, path, '--out', tmp_path / 'words.npz')
    assert code == 0 and '2 of 11 points lie outside' in ' '.join(err.split()) and 'row 1' in err
    assert load_tuned(tmp_path / 'words.npz').points == 9


def test_tuned_words_that_do_not_fit_are_one_sentence(field: Field, command: Command, tmp_path: Path) -> None:
    """A damaged file, one of another model, and options that would calibrate what is calibrated."""
    points = write_points(tmp_path / 'points.geojson', some_points(field))
    words = tmp_path / 'words.npz'
    assert command('tune-words', field.path, points, '--out', words)[0] == 0
    arguments = ('map', field.path, '--out', tmp_path / 'm.tif', '--words')
    refused(command(*arguments, words, '--temperature', '0.1'), 'says how probable its classes are')
    whole = words.read_bytes()
    for name, content in {'cut': whole[: len(whole) // 2], 'text': b'forest'}.items():
        path = tmp_path / f'{name}.npz'
        path.write_bytes(content)
        refused(command(*arguments, path), f'{name}.npz is damaged')
    refused(command(*arguments, tmp_path / 'gone.npz'), 'There is no')
    with np.load(words) as content:
        arrays = dict(content)
    about = json.loads(arrays['about'].tobytes()) | {'model_digest': 'other'}
    arrays['about'] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / 'other.npz', **arrays)
    refused(command(*arguments, tmp_path / 'other.npz'), 'of another model or kind')
