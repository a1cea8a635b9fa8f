"""Which scene is taken for a tile."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.scenes import Choice, Scene, SceneTable, choice, choose_scenes
from grafalign.scenes.items import scene_of
from grafalign.scenes.scene_table import scene_table

WHOLE = (-1.0, -1.0, 2.0, 2.0)
TAKEN = datetime(2021, 1, 10, 12, tzinfo=timezone.utc).timestamp() / 86400


def scene(name: str, box: tuple[float, float, float, float], day: int, cloud: float | None = None) -> Scene:
    """A scene over a box on a day of January 2021."""
    return scene_of(
        {
            'id': name,
            'geometry': shapely.geometry.mapping(shapely.box(*box)),
            'assets': {},
            'properties': {'datetime': f'2021-01-{day:02d}T12:00:00Z', 'eo:cloud_cover': cloud},
        }
    )


def in_table(scenes: list[Scene]) -> SceneTable:
    """Scenes as a table; the list takes its order, so that numbers mean the same in both."""
    table = scene_table(scenes)
    scenes[:] = table
    return table


def choose(scenes: list[Scene], boxes: list[shapely.Polygon], days: list[list[float]], keep: int = 9) -> Choice:
    """The choice for tiles whose photos have these days."""
    outlines = np.array(boxes, dtype=object)
    first = np.concatenate([[0], np.cumsum([len(d) for d in days])])
    return choose_scenes(in_table(scenes), lambda tiles: outlines[tiles], np.concatenate(days), first, keep)


def mosaic(scenes: list[Scene], outlines: npt.NDArray[np.object_], keep: int) -> Choice:
    """The choice for one tile with one photo, where scenes of a day are put together."""
    day, first = np.array([TAKEN]), np.array([0, 1])
    return choose_scenes(in_table(scenes), lambda tiles: outlines[tiles], day, first, keep, mosaic=True)


def choose_mosaic(scenes: list[Scene], outlines: npt.NDArray[np.object_], keep: int) -> Choice:
    """The choice for one tile with one photo, where scenes of a day are put together."""
    day, first = np.array([TAKEN]), np.array([0, 1])
    return choose_scenes(in_table(scenes), lambda tiles: outlines[tiles], day, first, keep, mosaic=True)


def test_full_coverage_then_days_then_cloud() -> None:
    """A scene that covers the tile beats a nearer date; among those the nearest date wins; then the clearer sky."""
    scenes = [
        scene('half', (-1, -1, 0.5, 2), 10),
        scene('far', WHOLE, 28),
        scene('near', WHOLE, 12, 9.0),
        scene('near clear', WHOLE, 12, 1.0),
        scene('elsewhere', (5, 5, 6, 6), 10),
    ]
    found = choose(scenes, [shapely.box(0, 0, 1, 1)], [[TAKEN, TAKEN + 1, np.nan]])
    assert [scenes[i].item_id for i in found.scene[0, :4]] == ['near clear', 'near', 'far', 'half']
    assert found.scene[0, 4] == -1 and found.considered[0] == 4
    np.testing.assert_allclose(found.coverage[0, :4], [1, 1, 1, 0.5])
    np.testing.assert_allclose(found.days_apart[0, :4], [1.5, 1.5, 17.5, 0.5])


def test_a_nearer_day_beats_a_clearer_sky() -> None:
    """Among scenes that pass the cloud limit the day decides: with cloud first, time never would."""
    scenes = [scene('clear', WHOLE, 20, 0.0), scene('cloudy', WHOLE, 11, 9.0), scene('unknown', WHOLE, 12)]
    found = choose(scenes, [shapely.box(0, 0, 1, 1)], [[TAKEN]])
    assert [scenes[i].item_id for i in found.scene[0, :3]] == ['cloudy', 'unknown', 'clear']


def test_a_sliver_more_coverage_is_worth_no_year() -> None:
    """Two scenes that cover 80 and 81 percent of a tile are told apart by their dates."""
    scenes = [scene('more', (-1, -1, 0.81, 2), 30), scene('nearer', (-1, -1, 0.80001, 2), 10)]
    found = choose(scenes, [shapely.box(0, 0, 1, 1)], [[TAKEN]])
    assert [scenes[i].item_id for i in found.scene[0, :2]] == ['nearer', 'more']


def test_photos_without_a_time_get_the_newest_scene() -> None:
    """No photo of the tile has a time: the last scene is taken, and the days are unknown."""
    scenes = [scene('old', WHOLE, 2), scene('new', WHOLE, 28)]
    found = choose(scenes, [shapely.box(0, 0, 1, 1)], [[np.nan]])
    assert scenes[found.scene[0, 0]].item_id == 'new' and np.isnan(found.days_apart[0, 0])


def test_a_tile_across_the_antimeridian_meets_scenes_of_both_sides() -> None:
    """A tile from 179.5 to 180.5 degrees is half in a scene that ends at 180 and half in one that begins at -180."""
    scenes = [scene('west', (170, 0, 180, 2), 10), scene('east', (-180, 0, -170, 2), 10)]
    both = scene_of(
        {
            **scene('both', (170, 0, 180, 2), 10).item,
            'id': 'both',
            'geometry': shapely.geometry.mapping(shapely.MultiPolygon([s.footprint for s in scenes])),
        }
    )
    found = choose([*scenes, both], [shapely.box(179.5, 0.5, 180.5, 1.5)], [[TAKEN]])
    assert sorted(found.scene[0, :3]) == [0, 1, 2]
    np.testing.assert_allclose(found.coverage[0, :3], [1, 0.5, 0.5])


def test_the_choice_does_not_depend_on_which_tiles_are_asked_together() -> None:
    """Many tiles at once get what each gets alone."""
    rng = np.random.default_rng(0)
    scenes = []
    for i in range(30):
        x, y = rng.uniform(-1, 3, 2)
        scenes.append(scene(f's{i}', (x, y, x + 2, y + 2), int(rng.integers(1, 28)), float(rng.uniform(0, 20))))
    boxes = [shapely.box(x, y, x + 0.3, y + 0.3) for x, y in rng.uniform(0, 4, (50, 2))]
    days = [(TAKEN + rng.uniform(-20, 20, rng.integers(1, 5))).tolist() for _ in boxes]
    together = choose(scenes, boxes, days, 3)
    for n, (box, times) in enumerate(zip(boxes, days, strict=True)):
        alone = choose(scenes, [box], [times], 3)
        assert (alone.scene[0] == together.scene[n]).all()
        np.testing.assert_allclose(alone.days_apart[0], together.days_apart[n])


def test_scenes_of_a_day_count_together_and_are_each_others_mates() -> None:
    """Two sheets that meet in a tile beat a whole scene of a later date; the larger share comes first."""
    scenes = [
        scene('west', (-1, -1, 0.3, 2), 10),
        scene('east', (0.3, -1, 2, 2), 10),
        scene('whole', WHOLE, 20),
        scene('other day', (-1, -1, 0.5, 2), 12),
    ]
    outlines = np.array([shapely.box(0, 0, 1, 1)], dtype=object)
    found = choose_mosaic(scenes, outlines, 4)
    assert [scenes[i].item_id for i in found.scene[0]] == ['east', 'west', 'whole', 'other day']
    np.testing.assert_allclose(found.coverage[0], [1, 1, 1, 0.5])
    mates = [scenes[i].item_id if i >= 0 else None for i in found.mates[0, :, 0]]
    assert mates == ['west', 'east', None, None] and found.seams[0]


def test_a_mate_that_adds_nothing_is_not_asked() -> None:
    """Two scenes of one day with the same outline leave the same part of a tile empty."""
    scenes = [scene('one', (-1, -1, 0.5, 2), 10), scene('other', (-1, -1, 0.5, 2), 10)]
    outlines = np.array([shapely.box(0, 0, 1, 1)], dtype=object)
    found = choose_mosaic(scenes, outlines, 4)
    assert (found.mates == -1).all() and not found.seams[0]


def _shifted(shape: shapely.Geometry, degrees: float) -> shapely.Geometry:
    """A shape moved eastwards."""
    return shapely.transform(shape, lambda xy: xy + np.array([degrees, 0.0]))


def _covered(tile: shapely.Polygon, footprints: list[shapely.Geometry]) -> float:
    """Share of one tile, whose longitudes may exceed 180, inside the union of some footprints, which end there."""
    union = shapely.union_all([*footprints, *(_shifted(f, 360) for f in footprints)])
    return float(shapely.intersection(tile, union).area / tile.area)


_DEGREES = st.integers(-15_000, 15_000).map(lambda tenths: tenths / 1e4)  # GEOS clips numbers near 1e-308 wrongly


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(_DEGREES, _DEGREES, st.floats(0.3, 2), st.floats(0.3, 2), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0.0, 179.5]),
)
def test_what_the_scenes_of_a_day_cover_together_is_the_area_of_their_union(
    spans: list[tuple[float, float, float, float, int]], east: float
) -> None:
    """Whatever lies over a tile, also across the antimeridian, the coverage of its day is what a naive union gives.

    Where one scene alone covers the tile, none is put together: each counts for itself.
    """
    scenes = []
    for i, (x, y, width, height, day) in enumerate(spans):
        item = scene(f's{i}', (0, 0, 1, 1), day).item
        whole = shapely.box(east + x, y, east + x + width, y + height)
        sides = shapely.intersection(shapely.box(-180, -90, 180, 90), [whole, _shifted(whole, -360)])
        outline = shapely.geometry.mapping(shapely.union_all(sides))
        scenes.append(scene_of({**item, 'geometry': outline}))
    tile = shapely.box(east, 0, east + 1, 1)
    outlines = np.array([tile], dtype=object)
    found = choose_mosaic(scenes, outlines, 9)
    chosen = {i: c for i, c in zip(found.scene[0].tolist(), found.coverage[0].tolist(), strict=True) if i >= 0}
    for i, covered in chosen.items():
        day = [s.footprint for s in scenes if s.when == scenes[i].when]
        alone = any(_covered(tile, [f]) >= 0.999 for f in day)
        expected = _covered(tile, [scenes[i].footprint] if alone else day)
        assert abs(covered - expected) < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]), st.integers(1, 40))
def test_every_tile_gets_what_looking_at_each_scene_gives(seed: int, keep: int, at_once: int) -> None:
    """Whatever is ranked together, the order is that of coverage in twentieths, days, clouds and number, one by one."""
    rng = np.random.default_rng(seed)
    scenes = []
    for i in range(25):
        x, y = rng.integers(-2, 3, 2) / 2
        cloud = float(rng.integers(0, 3)) if rng.random() < 0.8 else None
        scenes.append(scene(f's{i}', (x, y, x + 1.5, y + 1.5), int(rng.integers(1, 9)), cloud))
    table = in_table(scenes)
    boxes = np.array([shapely.box(x, y, x + 0.4, y + 0.4) for x, y in rng.uniform(0, 1.5, (12, 2))], dtype=object)
    days = [TAKEN + rng.integers(-5, 5, rng.integers(1, 4)).astype(float) for _ in boxes]
    days = [np.where(rng.random(len(d)) < 0.2, np.nan, d) for d in days]
    first = np.concatenate([[0], np.cumsum([len(d) for d in days])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, '_ROWS_AT_ONCE', at_once)
        found = choose_scenes(
            table, lambda tiles: boxes[tiles], np.concatenate(days), first, keep, order=rng.permutation(len(boxes))
        )
    for tile, box in enumerate(boxes):
        rows = []
        known = days[tile][~np.isnan(days[tile])]
        for number, one in enumerate(scenes):
            if not box.intersects(one.footprint):
                continue
            covered = box.intersection(one.footprint).area / box.area
            steps = 1.0 if covered >= 0.999 else np.floor(covered / 0.05) * 0.05
            day = one.when.timestamp() / 86400
            apart = np.mean(np.abs(day - known)) if len(known) else np.nan
            cloud = np.inf if one.cloud_percent is None else one.cloud_percent
            rows.append((-steps, apart if len(known) else -day, cloud, number, apart))
        best = sorted(rows)[:keep]
        assert found.considered[tile] == len(rows)
        assert found.scene[tile][: len(best)].tolist() == [row[3] for row in best]
        np.testing.assert_allclose(found.days_apart[tile][: len(best)], [row[4] for row in best], atol=1e-9)
        assert (found.scene[tile][len(best) :] == -1).all()
