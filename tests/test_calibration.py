"""Calibration: where photos look, the fit against its definition, and maps that say how sure they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from pyproj import Geod
from safetensors.numpy import save

from grafalign.calibration import Question, calibrate, collect_places, contrasting_words, open_places
from grafalign.calibration.collect import POINTS
from grafalign.calibration.contrast import apart
from grafalign.calibration.fit import _Fit
from grafalign.calibration.places import CalibrationMarker, PhotoPlaces
from grafalign.calibration.views import points_in_view
from grafalign.encoders import FrozenClip, PhotoBank, embed
from grafalign.errors import InputError, StaleError
from grafalign.fields import Field
from grafalign.files import file_digest
from grafalign.models import Model
from grafalign.pairing import Recipe, pair
from grafalign.store import PairStore
from tests.commands import Command, contents
from tests.test_fields import made

WORDS = 'water,broadleaf forest,meadow,cropland,suburb'


def geodesics(start: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths in degrees and distances in metres from one place to points."""
    lon, lat = np.broadcast_to(start, points.shape).reshape(-1, 2).T
    azimuth, _, metres = Geod(ellps='WGS84').inv(lon, lat, *points.reshape(-1, 2).T)
    return np.asarray(azimuth), np.asarray(metres)


@pytest.mark.parametrize('place', [(11.0, 48.0), (179.9999, 70.0), (-60.0, -54.0)])
@pytest.mark.parametrize('heading', [0.0, 95.0, 270.0])
@pytest.mark.parametrize(('view', 'degrees'), [(np.nan, 65), (20.0, 20)])
def test_a_view_lies_along_its_heading(place: tuple[float, float], heading: float, view: float, degrees: float) -> None:
    """On average along it, within half the field of view and the compass's error, at 60 m, wherever on Earth."""
    rng = np.random.default_rng(0)
    points = points_in_view(np.array([place]), np.array([heading]), np.array([view]), np.array([0.01]), 4000, rng)
    azimuth, metres = geodesics(np.array(place), points)
    off = (azimuth - heading + 180) % 360 - 180
    assert abs(off.mean()) < 2 and np.quantile(abs(off), 0.99) < degrees / 2 + 3 * 10
    assert metres.mean() == pytest.approx(60, rel=0.06)


def test_without_a_heading_a_photo_may_look_anywhere() -> None:
    """All directions are as likely."""
    rng = np.random.default_rng(0)
    place = np.array([[11.0, 48.0]])
    azimuth, _ = geodesics(
        place[0], points_in_view(place, np.array([np.nan]), np.array([np.nan]), np.array([5.0]), 4000, rng)
    )
    assert np.histogram(azimuth, bins=8, range=(-180, 180))[0] == pytest.approx(np.full(8, 500), abs=90)


def made_up(photos: int, seed: int = 0) -> tuple[PhotoPlaces, Question, np.ndarray]:
    """Photos that show what the model of the fit says, at T 0.1, b 1, and 10 % from anything."""
    rng = np.random.default_rng(seed)
    classes, width = 5, 16
    vectors = np.linalg.qr(rng.normal(size=(width, width)))[0][:classes].astype(np.float32)
    share = np.array([0.4, 0.3, 0.15, 0.1, 0.05])

    def land(*shape: int) -> np.ndarray:
        return (0.25 * rng.normal(size=(*shape, width))).astype(np.float16)

    def chances(points: np.ndarray) -> np.ndarray:
        logits = points.astype(np.float64) @ vectors.T / 0.1 + np.log(share)
        exps = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray((exps / exps.sum(-1, keepdims=True)).mean(-2))

    # all points of a view see about the same, as they do on the ground
    view = (land(photos, 1) + 0.1 * land(photos, POINTS)).astype(np.float16)
    chance = 0.9 * chances(view) + 0.1 * share
    labels = (rng.uniform(size=(photos, 1)) > chance.cumsum(-1)).sum(-1).clip(0, classes - 1)
    bank = np.repeat(vectors, np.round(2000 * share).astype(int), axis=0)
    marker = CalibrationMarker(
        format=1, model='m', model_digest='d', of='patches', fields=('f',), store='s', photos=photos, without=0,
        seed=seed, versions={}, digest='',
    )  # fmt: skip
    places = PhotoPlaces(marker, vectors[labels].astype(np.float16), view, bank.astype(np.float16))
    return places, Question(vectors, np.arange(classes)), view[:, 0].astype(np.float32)


def test_the_fit_finds_what_photos_were_made_with() -> None:
    """Temperature, strength of the prior and the share of stray photos come back from photos drawn with them."""
    fitted = calibrate(*made_up(20_000))
    assert fitted.temperature == pytest.approx(0.1, rel=0.05) and fitted.prior == pytest.approx(1, abs=0.1)
    assert fitted.anything == pytest.approx(0.1, abs=0.03)
    log_share = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    np.testing.assert_allclose(fitted.offsets, fitted.temperature * fitted.prior * log_share, atol=1e-3)


def test_the_likelihood_is_its_definition() -> None:
    """Photo by photo, point by point in plain numpy; its gradient is that of finite differences."""
    places, question, _ = made_up(7)
    log_share = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    view = question.scores(torch.from_numpy(places.view.astype(np.float64)))
    labels = question.scores(torch.from_numpy(places.photos.astype(np.float32))).argmax(1)
    fit = _Fit(view, labels, torch.from_numpy(log_share))
    parameters = torch.tensor([2.2, 0.7, -1.5], dtype=torch.float64)

    def naive(values: np.ndarray) -> np.ndarray:
        anything = 1 / (1 + np.exp(-values[2]))
        out = []
        for photo, label in enumerate(labels.tolist()):
            total = 0.0
            for point in view[photo].numpy():
                e = np.exp(point * np.exp(values[0]) + values[1] * log_share)
                total += e[label] / e.sum()
            out.append(np.log((1 - anything) * total / POINTS + anything * np.exp(log_share[label])))
        return np.array(out)

    np.testing.assert_allclose(fit.log_likelihood(parameters).numpy(), naive(parameters.numpy()), rtol=1e-10)
    tracked = parameters.clone().requires_grad_()
    fit.log_likelihood(tracked).sum().backward()
    assert tracked.grad is not None
    for i in range(3):
        step = np.eye(3)[i] * 1e-6
        slope = (naive(parameters.numpy() + step) - naive(parameters.numpy() - step)).sum() / 2e-6
        assert tracked.grad[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_what_no_class_asks_for_is_left_out() -> None:
    """Land of a fourth kind goes to the contrasting word, and no more of the classes' places than was allowed."""
    places, question, land = made_up(4000)
    stranger = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][5:6].astype(np.float32)
    bank = np.concatenate([places.bank, np.repeat(stranger, 400, axis=0)]).astype(np.float16)
    fitted = calibrate(
        replace(places, bank=bank), question, land, np.concatenate([stranger, question.vectors[:1]]), 0.1
    )
    assert fitted.contrast is not None and len(fitted.contrast.vectors) == 1  # the other one is a class's own word
    points = torch.from_numpy(places.view.astype(np.float32)).flatten(0, 1)
    lost = fitted.margins(question.scores(points), points) < fitted.contrast.least
    assert lost.float().mean() == pytest.approx(0.1, abs=0.01)
    strange = torch.from_numpy(np.repeat(0.8 * stranger, 10, axis=0))
    assert (fitted.margins(question.scores(strange), strange) < fitted.contrast.least).all()


def test_words_that_ask_for_the_same_do_not_contrast() -> None:
    """Whatever their cosine: what counts is whether photos score alike."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 500))
    contrasting = np.stack([5 + 0.01 * one, -one, one + 0.3 * other, other], axis=1)
    assert apart(one[:, None], contrasting).tolist() == [False, True, False, True]
    words = contrasting_words()
    assert len(words) == len(set(words)) > 100


@pytest.fixture(scope='module')
def held_out(recipe: Recipe, clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> tuple[PairStore, PhotoBank]:
    """The small world with most of its land held out."""
    out = tmp_path_factory.mktemp('held') / 'pairs'
    shares = recipe.split.model_copy(update={'shares': {'train': 0.2, 'val': 0.8}})
    pair(recipe.model_copy(update={'split': shares}), out)
    store = PairStore(out)
    return store, embed(store, clip)


@pytest.fixture(scope='module')
def field(world: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """The field of one scene of the small world."""
    items = sorted((world / 'catalog' / 'sandbox-ms').glob('*_west/*.json'))
    clear = min(items, key=lambda p: json.loads(p.read_text())['properties']['eo:cloud_cover'])
    return made(clear, tmp_path_factory.mktemp('field') / 'field', model, value_range=(0.0, 0.3), any_gsd=True)


def test_points_of_photos_are_those_of_the_map(
    held_out: tuple[PairStore, PhotoBank], field: Field, model: Model, tmp_path: Path
) -> None:
    """What is collected at a pixel's middle scores as the map's pixel does; photos of the training take no part."""
    from grafalign.calibration.collect import _held_out
    from grafalign.fields.points import embeddings_at, positions_of

    store, bank = held_out
    rows = _held_out(store, bank)
    split = store.tiles['split'].to_numpy()[store.pairs['tile'].to_numpy()]
    assert not np.isin(rows, store.pairs['photo'].to_numpy()[split == 'train']).any() and len(rows) > 100
    pixel_rows, pixel_columns = np.array([[100, 333, 511]]), np.array([[40, 200, 411]])
    x, y = field.geobox.affine @ (pixel_columns + 0.5, pixel_rows + 0.5)
    points = gpd.points_from_xy(x[0], y[0], crs=field.geobox.crs.to_wkt()).to_crs('EPSG:4326')
    lonlat = np.stack([points.x, points.y], axis=1)[None]
    positions = positions_of(field, lonlat)
    vectors, known = embeddings_at(field, positions.row, positions.column, 'looking up points')
    assert known.all()
    words = model.embed_texts(WORDS.split(','))
    scores = field.scores(words).values[:, pixel_rows[0], pixel_columns[0]]
    np.testing.assert_allclose(vectors[0].astype(np.float32) @ words.T, scores.T, atol=2e-3)  # float16


def test_a_calibrated_map_says_how_sure_it_is(
    held_out: tuple[PairStore, PhotoBank], field: Field, command: Command, tmp_path: Path
) -> None:
    """The same command again writes the same bytes; what is left out has a value, a name, and no polygon."""
    store, _ = held_out
    for name in ('one', 'two'):
        code, printed = command('calibrate', field.path, '--store', store.path, '--out', tmp_path / name)
        assert code == 0, printed
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
    out = tmp_path / 'map.tif'
    polygons = tmp_path / 'map.parquet'
    code, printed = command(
        'map', field.path, '--words', WORDS, '--out', out, '--polygons', polygons,
        '--calibration', tmp_path / 'one', '--leave-out', 0.2,
    )  # fmt: skip
    assert code == 0, printed
    assert 'held-out photos' in printed and 'contrasting words' in printed
    item = json.loads(out.with_suffix('.json').read_text())
    classes = item['assets']['map']['classification:classes']
    assert [c['value'] for c in classes[:6]] == [*range(6)] and classes[5]['description'] == 'none of these'
    with rasterio.open(out) as dataset:
        labels = dataset.read(1)
    with rasterio.open(tmp_path / 'map_confidence.tif') as dataset:
        sure = dataset.read(1)
    assert (labels == 5).any() and (sure[labels == 5] == 0).all() and (sure[labels < 5] > 0).mean() > 0.99
    assert 'none of these' not in set(gpd.read_parquet(polygons)['class'])
    assert 'calibrated on' in out.with_suffix('.html').read_text()


def test_what_cannot_be_calibrated_is_one_sentence(
    held_out: tuple[PairStore, PhotoBank], field: Field, command: Command, tmp_path: Path
) -> None:
    """Too few photos, another CLIP, another model, more classes than photos, options that do not go together."""
    store, bank = held_out
    few = replace(bank, valid=np.arange(len(bank.valid)) < 40)
    with pytest.raises(InputError, match=r'ground of \d+ held-out photos .* 100 are needed; add fields'):
        collect_places([field], store, few, tmp_path / 'c')
    with pytest.raises(StaleError, match='of another CLIP than the model'):
        collect_places([field], store, replace(bank, clip_digest='x'), tmp_path / 'c')
    assert not (tmp_path / 'c').exists()
    collect_places([field], store, bank, tmp_path / 'c')
    places = open_places(tmp_path / 'c')
    many = Question(np.repeat(places.bank[:1], 5000, axis=0).astype(np.float32), np.arange(5000))
    with pytest.raises(InputError, match='5,000 classes cannot be calibrated on'):
        calibrate(places, many, field.sample())
    shown = places.photos.mean(0, keepdims=True, dtype=np.float32)
    with pytest.raises(InputError, match='photos show one of the classes, and 20 are needed'):
        calibrate(places, Question(0 * shown, np.arange(1)), field.sample(), np.concatenate([shown, -shown]), 0.1)
    with pytest.raises(InputError, match='Every contrasting word asks for what one of the classes asks for'):
        calibrate(places, Question(shown, np.arange(1)), field.sample(), 2 * shown, 0.1)
    asked = ('map', field.path, '--words', WORDS, '--out', tmp_path / 'm.tif')
    for options, sentence in (
        (('--leave-out', 0.1), 'only known from photos; give --calibration'),
        (('--calibration', tmp_path / 'c', '--temperature', 0.1), 'leave out --temperature'),
        (('--calibration', tmp_path), 'holds no calibration; make one with `grafalign calibrate'),
    ):
        code, printed = command(*asked, *options)
        assert code and sentence in ' '.join(printed.split())
    named = ('map', field.path, '--words', 'water,none of these', '--out', tmp_path / 'm.tif')
    code, printed = command(*named, '--calibration', tmp_path / 'c', '--leave-out', 0.1)
    assert code and 'give it another name' in ' '.join(printed.split())
    marker = json.loads((tmp_path / 'c' / 'calibration.json').read_text())
    (tmp_path / 'c' / 'calibration.json').write_text(json.dumps(marker | {'of': 'windows'}))
    code, printed = command(*asked, '--calibration', tmp_path / 'c')
    assert code and 'calibrate a field of that model' in ' '.join(printed.split())
    arrays = tmp_path / 'c' / 'places.safetensors'
    narrow = {'photos': places.photos[:, :5], 'view': places.view, 'bank': places.bank}
    arrays.write_bytes(save({name: np.ascontiguousarray(array) for name, array in narrow.items()}))
    (tmp_path / 'c' / 'calibration.json').write_text(json.dumps(marker | {'digest': file_digest(arrays)}))
    code, printed = command(*asked, '--calibration', tmp_path / 'c')
    assert code and 'its arrays do not go together' in ' '.join(printed.split())
    arrays.write_bytes(arrays.read_bytes()[:-1] + b'x')
    code, printed = command(*asked, '--calibration', tmp_path / 'c')
    assert code and 'is damaged (its digest differs)' in ' '.join(printed.split())
