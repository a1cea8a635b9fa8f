"""Outlines that follow the scene: both ways against their definition, and maps that use them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.fields import Field
from grafalign.fields.source import scene_rows
from grafalign.maps.outlines import EPSILON, guided, superpixels
from grafalign.models import Model
from tests.commands import Command, refused
from tests.scenes import patchwork, write_scene
from tests.test_fields import MODEL, made

WORDS = ['forest', 'water', 'a town', 'bare rock']


@pytest.fixture(scope='module')
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 700 x 420 px, a corner of which is missing."""
    pixels = patchwork(700, 420)
    pixels[:, :120, :90] = 0
    return write_scene(tmp_path_factory.mktemp('scene') / 's.tif', pixels, nodata=0)


@pytest.fixture(scope='module')
def field(scene: Path, model: Model) -> Field:
    """Its field."""
    return made(scene, scene.parent / 'field', model)


def by_definition(bands: np.ndarray, plane: np.ndarray, present: np.ndarray, radius: int) -> np.ndarray:
    """One ridge regression a square (equation 19 of the paper), and the mean of the fits at each pixel."""
    height, width = present.shape
    total, count = np.zeros((height, width)), np.zeros((height, width))
    fits = {}
    for row, column in np.ndindex(height, width):
        square = slice(max(0, row - radius), row + radius + 1), slice(max(0, column - radius), column + radius + 1)
        there = present[square]
        if there.any():
            x, y = bands[(slice(None), *square)][:, there].T.astype(float), plane[square][there].astype(float)
            spread = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x) + EPSILON * np.eye(len(bands))
            slope = np.linalg.solve(spread, (x - x.mean(0)).T @ (y - y.mean()) / len(x))
            fits[row, column] = slope, y.mean() - slope @ x.mean(0)
    for row, column in np.ndindex(height, width):
        for r in range(max(0, row - radius), min(height, row + radius + 1)):
            for c in range(max(0, column - radius), min(width, column + radius + 1)):
                if present[r, c]:
                    slope, offset = fits[r, c]
                    total[row, column] += slope @ bands[:, row, column] + offset
                    count[row, column] += 1
    return np.where(present, total / np.maximum(count, 1), 0)


@settings(max_examples=20)
@given(
    st.integers(3, 14), st.integers(3, 14), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 0.3]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_filter_is_its_definition(
    height: int, width: int, channels: int, radius: int, missing: float, seed: int
) -> None:
    """With missing pixels, at edges, and with squares larger than the image."""
    rng = np.random.default_rng(seed)
    bands = rng.random((channels, height, width)).astype(np.float32)
    planes = rng.normal(size=(2, height, width)).astype(np.float32)
    present = rng.random((height, width)) >= missing
    found = guided(bands, planes, present, radius)
    for plane, result in zip(planes, found, strict=True):
        np.testing.assert_allclose(result, by_definition(bands, plane, present, radius), atol=2e-3)


def test_a_refined_map_is_the_filter_over_the_whole_scene(
    field: Field, scene: Path, model: Model, command: Command, tmp_path: Path
) -> None:
    """Whatever rows are held at a time: classes and their probabilities; what is missing stays missing."""
    out = tmp_path / 'm.tif'
    arguments = ('map', field.path, '--words', ','.join(WORDS), '--out', out, '--temperature', 0.05)
    assert command(*arguments)[0] == 0
    with rasterio.open(out) as raster:
        plain = raster.read(1)
    code, err = command(*arguments, '--refine', 'guided', '--scene', scene)
    assert code == 0, err
    rows = scene_rows(field, str(scene), model)
    bands, present = rows.rows(0, field.plan.height)
    rows.close()
    vectors = model.embed_texts([f'a photo of {word}.' for word in WORDS])
    scores = field.scores(vectors).values
    there = present.numpy() & ~np.isnan(scores).any(0)
    refined = guided(bands.numpy(), np.nan_to_num(scores), there, field.plan.cell // 2)
    with rasterio.open(out) as raster, rasterio.open(tmp_path / 'm_confidence.tif') as confidence:
        labels, chance = raster.read(1), confidence.read(1) / 250
    assert ((labels == 255) == ~there).all() and (~there).any()
    best = np.sort(refined, axis=0)
    clear = there & (best[-1] - best[-2] > 1e-4)
    assert (labels[clear] == refined.argmax(0)[clear]).all() and clear.mean() > 0.8
    wanted = np.exp(refined / 0.05 - np.logaddexp.reduce(refined / 0.05)).max(0)
    np.testing.assert_allclose(chance[there], wanted[there], atol=0.005)
    assert (labels != plain).mean() > 0.01
    assert 'outlines by the pixels of the scene' in out.with_suffix('.html').read_text()


def test_superpixels_have_their_mean_scores() -> None:
    """Where scores change three pixels beyond the border of two colours, classes change at the colours; or nearly."""
    bands = np.full((3, 40, 40), 0.2, np.float32)
    bands[:, :, 20:] = 0.8
    planes = np.zeros((2, 40, 40), np.float32)
    planes[0, :, :23], planes[1, :, 23:] = 1, 1
    present = np.ones((40, 40), bool)
    present[:, 30:] = False
    found = superpixels(bands, planes, present, 8)
    np.testing.assert_allclose(found[:, :, :30].sum(0), 1, atol=1e-6)
    assert (found[:, :, :18].argmax(0) == 0).all() and (found[:, :, 22:28].argmax(0) == 1).all()
    assert (found[:, :, 30:] == 0).all()


def test_a_map_by_superpixels_keeps_what_is_missing(
    field: Field, scene: Path, command: Command, tmp_path: Path
) -> None:
    """Classes on the same pixels as without, of which some differ."""
    for name, options in (('none', ()), ('superpixels', ('--refine', 'superpixels', '--scene', scene))):
        arguments = ('map', field.path, '--words', ','.join(WORDS), '--out', tmp_path / f'{name}.tif')
        code, err = command(*arguments, *options)
        assert code == 0, err
    with rasterio.open(tmp_path / 'none.tif') as plain, rasterio.open(tmp_path / 'superpixels.tif') as refined:
        one, other = plain.read(1), refined.read(1)
    assert ((one == 255) == (other == 255)).all() and (one == 255).any()
    assert 0.01 < (one != other).mean() < 0.7


def test_superpixels_without_their_library_are_one_sentence(
    field: Field, scene: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    arguments = ('map', field.path, '--words', 'forest,water', '--out', tmp_path / 'm.tif', '--scene', scene)
    refused(command(*arguments, '--refine', 'superpixels'), "pip install 'grafalign[refine]'")


def test_a_scene_refines_itself(scene: Path, command: Command, tmp_path: Path) -> None:
    """`map SCENE --refine guided` needs no --scene, and equals the map of the field with it."""
    arguments = ('map', scene, '--model', MODEL, '--words', ','.join(WORDS), '--refine', 'guided')
    assert command(*arguments, '--out', tmp_path / 'a.tif', '--field', tmp_path / 'kept')[0] == 0
    again = ('map', tmp_path / 'kept', '--words', ','.join(WORDS), '--refine', 'guided', '--scene', scene)
    assert command(*again, '--out', tmp_path / 'b.tif')[0] == 0
    assert (tmp_path / 'a.tif').read_bytes() == (tmp_path / 'b.tif').read_bytes()


def test_refining_that_cannot_be_done_is_one_sentence(field: Field, command: Command, tmp_path: Path) -> None:
    """No scene, another scene, no such way."""
    arguments = ('map', field.path, '--words', 'forest,water', '--out', tmp_path / 'm.tif', '--refine')
    refused(command(*arguments, 'guided'), 'needs the pixels', '--scene')
    refused(command(*arguments, 'none', '--scene', field.path), 'only for --refine')
    refused(command(*arguments, 'sharp'), "no --refine 'sharp'; give none, guided, superpixels or sam")
    other = write_scene(tmp_path / 'other.tif', patchwork(700, 420))
    refused(
        command(*arguments, 'guided', '--scene', other), 'was made of s', 'give the scene that the field was made of'
    )
