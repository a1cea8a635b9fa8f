"""Augmentation moves photo places, headings and footprints with the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.training.placement import Where, gaussian
from grafalign.training.views import (
    AugmentSettings,
    draw_views,
    footprint,
    look,
    move,
    symmetry,
    turn_headings,
    veil,
    zoom_of,
)

SIZE = 48
ANY = AugmentSettings(turn=True, zoom=1.4, shift=0.2)


def spot(row: float, col: float, sigma: float) -> torch.Tensor:
    """An image with one soft bright spot, [1, 1, SIZE, SIZE]."""
    at = torch.arange(SIZE) + 0.5
    return torch.exp(-((at[:, None] - row) ** 2 + (at[None] - col) ** 2) / (2 * sigma**2))[None, None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Centre of mass of an image [1, 1, SIZE, SIZE]."""
    at = torch.arange(SIZE) + 0.5
    whole = image.sum()
    return float((image[0, 0].sum(1) * at).sum() / whole), float((image[0, 0].sum(0) * at).sum() / whole)


def view(seed: int, augment: AugmentSettings) -> tuple[np.ndarray, np.ndarray, int]:
    """Matrix, shift and code of one view."""
    views = draw_views(np.random.default_rng(seed), 1, 3, SIZE, augment)
    return views.matrix, views.shift, int(views.code[0])


def test_a_symmetry_moves_a_marked_pixel_exactly() -> None:
    """The place of a marked pixel's centre, moved, is the centre of the marked pixel of the turned image."""
    for seed in range(60):
        matrix, shift, code = view(seed, AugmentSettings())
        row, col = seed % SIZE, (5 * seed + 2) % SIZE
        image = torch.zeros(1, 1, SIZE, SIZE)
        image[0, 0, row, col] = 1
        out = symmetry(image, torch.tensor([code]))
        r, c = move(np.float32([row + 0.5]), np.float32([col + 0.5]), matrix, shift, SIZE)
        assert out[0, 0, int(r[0]), int(c[0])] == 1 and (r[0] % 1, c[0] % 1) == (0.5, 0.5)


def test_a_symmetry_is_what_its_matrix_says() -> None:
    """Resampling by the matrix of a symmetry gives the image that turning and flipping give."""
    image = torch.rand(8, 2, SIZE, SIZE)
    seen = {}
    for seed in range(200):
        matrix, _, code = view(seed, AugmentSettings())
        seen[code] = matrix[0]
    assert len(seen) == 8
    matrices = torch.from_numpy(np.stack([seen[k] for k in range(8)]))
    torch.testing.assert_close(look(image, matrices, torch.zeros(8, 2)), symmetry(image, torch.arange(8)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(12, 36), st.floats(12, 36))
def test_places_follow_a_marked_spot(seed: int, row: float, col: float) -> None:
    """Where a spot lies in the view is where its place was moved to, whatever turn, zoom and shift."""
    matrix, shift, _ = view(seed, ANY)
    r, c = move(np.float32([row]), np.float32([col]), matrix, shift, SIZE)
    if not (8 < r[0] < SIZE - 8 and 8 < c[0] < SIZE - 8):
        return  # the spot would be cut off, and its centre with it
    out = look(spot(row, col, 1.6), torch.from_numpy(matrix), torch.from_numpy(shift), 'zeros')
    assert centre(out) == pytest.approx((r[0], c[0]), abs=0.15)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 2 * math.pi))
def test_headings_turn_with_the_pixels(seed: int, heading: float) -> None:
    """A step ahead in the tile is a step ahead in the view, and its length is the zoom's."""
    matrix, shift, _ = view(seed, ANY)
    here = np.float32([20, 30])
    ahead = here + np.float32([-math.cos(heading), math.sin(heading)])
    (r0, r1), (c0, c1) = move(
        np.float32([here[0], ahead[0]]), np.float32([here[1], ahead[1]]), matrix.repeat(2, 0), shift.repeat(2, 0), SIZE
    )
    turned = turn_headings(np.float32([heading]), matrix)[0]
    length = zoom_of(matrix)[0]
    assert (r1 - r0, c1 - c0) == pytest.approx((-math.cos(turned) * length, math.sin(turned) * length), abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_footprints_move_with_the_pixels(seed: int) -> None:
    """A patch is covered exactly by what comes from inside the tile, and other pixels are mirrored ones."""
    matrix, shift, _ = view(seed, AugmentSettings(turn=True, zoom=1.5, shift=0.5))
    covered = footprint(torch.from_numpy(matrix), torch.from_numpy(shift), SIZE, 8)[0]
    back = np.linalg.inv(matrix[0].astype(float))
    at = (np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing='ij'), -1) - SIZE / 2) @ back.T
    at = at + shift[0] + SIZE / 2
    inside = ((at > 0) & (at < SIZE)).all(-1).reshape(6, 8, 6, 8).mean((1, 3))
    np.testing.assert_allclose(covered.numpy(), inside, atol=0.15)  # bilinear borders are half a pixel soft
    assert abs(covered.numpy().mean() - inside.mean()) < 0.02


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(18, 30), st.floats(18, 30))
def test_placements_move_with_the_pixels(seed: int, row: float, col: float) -> None:
    """A Gaussian placement of the moved place is the moved Gaussian, summed over patches."""
    matrix, shift, _ = view(seed, ANY)
    r, c = move(np.float32([row]), np.float32([col]), matrix, shift, SIZE)
    if not (0 < r[0] < SIZE and 0 < c[0] < SIZE):
        return
    sigma = 4.0
    moved = look(spot(row, col, sigma), torch.from_numpy(matrix), torch.from_numpy(shift), 'zeros')
    zoom = zoom_of(matrix)[0]
    patches = torch.nn.functional.avg_pool2d(moved, 8)[0, 0] * 64 / (2 * math.pi * (sigma * zoom) ** 2)
    where = Where(*(torch.tensor([v]) for v in (r[0], c[0], np.float32(sigma * zoom), np.nan, np.nan, 1.0)))
    tile_part = footprint(torch.from_numpy(matrix), torch.from_numpy(shift), SIZE, 8)[0] > 0.99
    placed = gaussian(where, 6, 8)[0]
    torch.testing.assert_close(placed[tile_part], patches[tile_part], atol=0.012, rtol=0.05)


def test_views_are_as_wide_as_asked() -> None:
    """Zooms lie within their bounds, shifts too, and without settings a tile is seen as it is."""
    views = draw_views(
        np.random.default_rng(0), 500, 4, SIZE, AugmentSettings(zoom=1.5, shift=0.1, haze=0.4, band_dropout=0.9)
    )
    zoom = zoom_of(views.matrix)
    assert 1 / 1.5 <= zoom.min() < 0.75 and 1.4 < zoom.max() <= 1.5 + 1e-6
    assert np.abs(views.shift).max() <= 0.1 * SIZE and views.haze.max() <= 0.4
    assert views.band.any(1).all() and views.band.mean() < 0.4
    plain = draw_views(np.random.default_rng(0), 5, 3, SIZE, AugmentSettings(symmetry=False, gain=0))
    assert (plain.matrix == np.eye(2)).all() and not plain.shift.any() and (plain.gain == 1).all()


def test_each_image_gets_its_own_view() -> None:
    """A batch seen together equals its images seen one by one."""
    images = torch.rand(8, 3, SIZE, SIZE)
    views = draw_views(np.random.default_rng(3), 8, 3, SIZE, ANY)
    matrix, shift, code = (torch.from_numpy(v) for v in (views.matrix, views.shift, views.code))
    alone = torch.cat([look(images[i : i + 1], matrix[i : i + 1], shift[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(look(images, matrix, shift), alone)
    alone = torch.cat([symmetry(images[i : i + 1], code[i : i + 1]) for i in range(8)])
    assert torch.equal(symmetry(images, code), alone)


def test_haze_pales_towards_one_grey() -> None:
    """No haze changes nothing; more haze leaves less difference between pixels."""
    unit = torch.rand(2, 3, 8, 8)
    out = veil(unit, torch.tensor([0.0, 0.5]))
    assert torch.equal(out[0], unit[0])
    torch.testing.assert_close(out[1].std(), unit[1].std() / 2)


def test_views_are_exact_under_autocast() -> None:
    """Pixels land where float32 puts them, though autocast would compute places in bfloat16."""
    views = draw_views(np.random.default_rng(0), 4, 3, 224, ANY)
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    matrix, shift = torch.from_numpy(views.matrix), torch.from_numpy(views.shift)
    with torch.autocast('cpu', torch.bfloat16):
        found = look(images, matrix, shift)
    assert torch.equal(found, look(images, matrix, shift))
