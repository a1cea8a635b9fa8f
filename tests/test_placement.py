"""Where in a tile is what a photo shows: weights over patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import norm, rayleigh

from grafalign.training.placement import RADIUS_PER_SIGMA, PlacementSettings, Where, patch_of, place, view_cone

SIDE, PATCH = 7, 16
SIZE = SIDE * PATCH
inside = st.floats(0, SIZE - 0.01)


def where(
    row: float, col: float, sigma: float = 5.0, heading: float = math.nan, reach: float = 40.0, view: float = math.nan
) -> Where:
    """One photo."""
    return Where(*(torch.tensor([v]) for v in (row, col, sigma, heading, view, reach)))


@pytest.mark.parametrize('kind', ['point', 'gaussian', 'view_cone'])
@settings(deadline=None, max_examples=40)
@given(inside, inside, st.floats(0.01, 500), st.one_of(st.just(math.nan), st.floats(-4, 8)))
def test_weights_add_up_to_one_wherever_the_photo_is(
    kind: str, row: float, col: float, sigma: float, heading: float
) -> None:
    """No photo loses weight at an edge, and what lay outside is told."""
    found = place(where(row, col, sigma, heading), PlacementSettings(kind=kind), SIDE, PATCH)
    assert float(found.patches.sum()) == pytest.approx(1, abs=1e-4) and bool((found.patches >= 0).all())
    assert 0 < float(found.mass_inside) <= 1 + 1e-5


def test_the_mass_outside_is_told() -> None:
    """A photo at the middle of an edge with a wide spread has half its mass inside; in a corner a quarter."""
    for row, expected in ((SIZE / 2, 0.5), (0.0, 0.25)):
        found = place(where(row, 0.0, 10.0), PlacementSettings(kind='gaussian'), SIDE, PATCH)
        assert float(found.mass_inside) == pytest.approx(expected, abs=1e-3)


def test_a_gaussian_is_the_integral_over_each_patch() -> None:
    """Weights equal the share of many random draws that fall into each patch."""
    found = place(where(40.0, 70.0, 13.0), PlacementSettings(kind='gaussian'), SIDE, PATCH)
    draws = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0)) * 13 + torch.tensor([40.0, 70.0])
    draws = draws[((draws >= 0) & (draws < SIZE)).all(1)]
    row, col = patch_of(draws[:, 0], draws[:, 1], PATCH, SIDE)
    share = torch.bincount(row * SIDE + col, minlength=SIDE**2).view(SIDE, SIDE) / len(draws)
    torch.testing.assert_close(found.patches[0], share, atol=3e-3, rtol=0)


def test_an_exact_gaussian_is_a_point() -> None:
    """As the accuracy goes to zero all weight comes to the patch of the geotag."""
    exact = place(where(33.0, 95.0, 1e-4), PlacementSettings(kind='gaussian'), SIDE, PATCH)
    point = place(where(33.0, 95.0), PlacementSettings(), SIDE, PATCH)
    torch.testing.assert_close(exact.patches, point.patches)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 2 * math.pi))
def test_the_cone_lies_ahead(heading: float) -> None:
    """The mean of the weights lies in the direction of the heading, and next to nothing behind the camera."""
    seen, _ = view_cone(where(SIZE / 2, SIZE / 2, 0.5, heading, 30.0), 65, SIDE, PATCH)
    at = (torch.arange(SIDE) + 0.5) * PATCH - SIZE / 2
    ahead = -at[:, None] * math.cos(heading) + at[None] * math.sin(heading)
    side = at[:, None] * math.sin(heading) + at[None] * math.cos(heading)
    mean = float((seen[0] * ahead).sum() / seen.sum())
    assert mean > 10 and abs(float((seen[0] * side).sum() / seen.sum())) < 0.3 * mean
    assert float(seen[0][ahead < -PATCH].sum() / seen.sum()) < 0.02


def test_a_cone_without_heading_is_a_gaussian() -> None:
    """Photos that do not say where they look are placed by their accuracy."""
    cone = place(where(30.0, 50.0), PlacementSettings(kind='view_cone'), SIDE, PATCH)
    torch.testing.assert_close(
        cone.patches, place(where(30.0, 50.0), PlacementSettings(kind='gaussian'), SIDE, PATCH).patches
    )


def test_a_cone_that_looks_out_of_the_tile_falls_back() -> None:
    """A photo at the edge that shows nothing of its tile is placed by its accuracy, not thrown away."""
    out = place(
        where(1.0, 56.0, 0.5, 0.0, 30.0), PlacementSettings(kind='view_cone', field_of_view_deg=10), SIDE, PATCH
    )
    assert float(out.patches[0, 0, 3]) > 0.5


def test_a_photo_that_tells_its_field_of_view_has_that_one() -> None:
    """Whatever the settings say; one that tells none has theirs."""
    wide, narrow = (PlacementSettings(kind='view_cone', field_of_view_deg=d) for d in (120, 30))
    by_settings = place(where(56.0, 56.0, heading=1.0), narrow, SIDE, PATCH).patches
    told = place(where(56.0, 56.0, heading=1.0, view=math.radians(30)), wide, SIDE, PATCH).patches
    torch.testing.assert_close(told, by_settings)
    assert float((told - place(where(56.0, 56.0, heading=1.0), wide, SIDE, PATCH).patches).abs().max()) > 0.01


def test_many_cones_at_once_equal_each_alone() -> None:
    """The number of photos computed together changes nothing."""
    g = torch.Generator().manual_seed(0)
    many = Where(*(torch.rand(300, generator=g) * s for s in (SIZE, SIZE, 9, 6, 2, 50)))
    together, _ = view_cone(many, 65, SIDE, PATCH)
    alone, _ = view_cone(Where(*(v[299:] for v in many)), 65, SIDE, PATCH)
    torch.testing.assert_close(together[299:], alone)


def test_ground_that_is_not_there_gets_no_weight() -> None:
    """Patches that only mirror the tile are left out, and the rest adds up to one."""
    covered = torch.ones(1, SIDE, SIDE)
    covered[:, :3] = 0
    found = place(where(60.0, 60.0, 30.0), PlacementSettings(kind='gaussian'), SIDE, PATCH, covered)
    assert float(found.patches[:, :3].sum()) < 1e-4 and float(found.patches.sum()) == pytest.approx(1)


def test_a_photo_on_a_patch_border_belongs_to_the_next_patch() -> None:
    """Patch indices are floor(position / patch), and stay inside the grid."""
    rows, cols = patch_of(torch.tensor([0.0, 15.999, 16.0, 111.9, 112.0]), torch.zeros(5), PATCH, SIDE)
    assert rows.tolist() == [0, 0, 1, 6, 6] and cols.tolist() == [0] * 5


def cone_by_definition(row: float, col: float, sigma: float, heading: float, reach: float) -> tuple[np.ndarray, float]:
    """The view cone on a grid of 2 px over three tiles by three, in float64; patches of the tile, and their sum.

    At distance d: exp(-d / reach) / max(d, one patch) inside 65 degrees whose sides are 10 degrees soft, and all of it
    moved about by the normal distribution of the place.
    """
    step = 2
    at = np.arange(-SIZE + step / 2, 2 * SIZE, step)
    down, right = at[:, None] - row, at[None, :] - col
    distance = np.hypot(down, right)
    off = np.abs((np.arctan2(right, -down) - heading + np.pi) % (2 * np.pi) - np.pi)
    weight = norm.cdf((math.radians(65) / 2 - off) / math.radians(10))
    weight = weight * np.exp(-distance / reach) / np.maximum(distance, PATCH)
    blurred = gaussian_filter(weight / weight.sum(), sigma / step, mode='constant', truncate=8)
    tile = blurred[SIZE // step : 2 * SIZE // step, SIZE // step : 2 * SIZE // step]
    return tile.reshape(SIDE, PATCH // step, SIDE, PATCH // step).sum((1, 3)), float(tile.sum())


@pytest.mark.parametrize('sigma', [1.0, 12.0, 30.0])
@pytest.mark.parametrize(('reach', 'elsewhere'), [(15.0, 0.09), (40.0, 0.035), (90.0, 0.02)])
@pytest.mark.parametrize(('row', 'col', 'heading'), [(56.0, 56.0, 0.4), (20.0, 90.0, 3.9), (101.0, 33.0, -1.2)])
def test_the_cone_is_its_definition(
    row: float, col: float, heading: float, reach: float, elsewhere: float, sigma: float
) -> None:
    """A few percent of the weight lie elsewhere than the definition, integrated finely, puts them: fewer with reach."""
    found, inside = view_cone(where(row, col, sigma, heading, reach), 65.0, SIDE, PATCH)
    expected, expected_inside = cone_by_definition(row, col, sigma, heading, reach)
    assert np.abs(found[0].numpy() - expected).sum() / 2 < elsewhere
    assert float(inside) == pytest.approx(expected_inside, abs=0.035)


def test_a_stated_accuracy_is_the_radius_that_holds_one_standard_deviation() -> None:
    """Phones report the radius of 68.27 %: of a round normal distribution that is the quantile of Rayleigh's."""
    assert pytest.approx(rayleigh.ppf(0.6827), rel=1e-3) == RADIUS_PER_SIGMA
