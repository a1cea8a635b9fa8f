"""Filters of photos and the duplicate finder: against naive rules, and whatever the order and chunks of the rows."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from grafalign.errors import GrafalignError
from grafalign.photos import Photos, PhotoSource, read_photos
from grafalign.photos.collect import Collected
from grafalign.photos.duplicates import duplicate_of
from grafalign.photos.filters import PhotoFilters
from grafalign.photos.ranks import ranks
from grafalign.photos.raw import Raw

ALL = ('file', 'https')


def filtered(rows: pd.DataFrame, chunks: int = 1, **filters: Any) -> Photos:
    """Photos of rows that come in some chunks."""
    collected = Collected('rows', PhotoFilters.model_validate(filters), ALL, verify=False)
    for part in np.array_split(np.arange(len(rows)), chunks):
        some = rows.iloc[part]
        collected.add(Raw({n: pa.Array.from_pandas(some[n]) for n in some}, len(some), '/root'))
    return collected.finish(1)


def table(**columns: Any) -> pd.DataFrame:
    """Rows at different places with remote uris."""
    count = len(next(iter(columns.values())))
    rows = {'photo_id': [f'p{i}' for i in range(count)], 'uri': 'https://a.example/a.jpg', 'lon': 10.0, 'lat': 50.0}
    return pd.DataFrame({**rows, **columns})


def reasons(photos: Photos) -> dict[str, str]:
    """Why rows were rejected."""
    return dict(photos.rejected[['id', 'reason']].itertuples(index=False))


def details(photos: Photos) -> dict[str, str]:
    """What rejected rows have."""
    return dict(photos.rejected[['id', 'detail']].itertuples(index=False))


# --- one row by itself ------------------------------------------------------------------------------------------------


def test_everything_is_off_by_default() -> None:
    """Without filters only what cannot be used is rejected."""
    rows = table(lon=[0.001, 5.0, 0.0, None, 181.0, 1.0], lat=[0.0, 5.0, 0.0, 1.0, 0.0, 89.0])
    assert reasons(filtered(rows)) == {
        'p2': 'position 0, 0',
        'p3': 'no position',
        'p4': 'impossible coordinates',
        'p5': 'outside the UTM zones (80 S to 84 N)',
    }


@pytest.mark.parametrize(
    ('region', 'kept'),
    [([-10, 40, 10, 60], 'ab'), ([170, -20, -170, 20], 'cd'), ([-180, -90, 180, 90], 'abcdef'), ([9, 50, 11, 51], 'a')],
)
def test_a_box_may_cross_the_antimeridian(region: list[float], kept: str) -> None:
    """Photos inside west, south, east, north are kept, edges included; west beyond east goes around the back."""
    rows = table(lon=[10.0, -10.0, 175.0, -175.0, 0.0, 160.0], lat=[50.0, 60.0, 0.0, 20.0, 0.0, 0.0])
    photos = filtered(rows.assign(photo_id=list('abcdef')).drop(4), region=region)
    assert set(photos.table['photo_id']) == set(kept) - {'e'}
    assert set(reasons(photos).values()) <= {'outside the region'}


@pytest.mark.parametrize('name', ['a.geojson', 'a.gpkg', 'a.parquet'])
def test_a_region_may_be_a_file_of_polygons(name: str, tmp_path: Path) -> None:
    """Photos inside any polygon of a file in any CRS are kept, holes are outside."""
    ring = shapely.box(9, 49, 11, 51).difference(shapely.box(9.9, 49.9, 10.1, 50.1))
    frame = gpd.GeoDataFrame(geometry=[ring, shapely.box(20, 0, 21, 1)], crs=4326)
    frame = frame.to_crs(3857) if name == 'a.gpkg' else frame
    frame.to_parquet(tmp_path / name) if name == 'a.parquet' else frame.to_file(tmp_path / name)
    rows = table(lon=[10.0, 10.5, 20.5, 30.0], lat=[50.0, 50.5, 0.5, 0.5])
    photos = filtered(rows, region=tmp_path / name)
    assert photos.table['photo_id'].tolist() == ['p1', 'p2']
    assert details(photos)['p3'] == 'lon 30, lat 0.5'


def test_a_region_that_is_none_is_refused(tmp_path: Path) -> None:
    """A missing file, a file of points and a file of garbage are each named."""
    gpd.GeoDataFrame(geometry=[shapely.Point(1, 2)], crs=4326).to_file(tmp_path / 'points.geojson')
    (tmp_path / 'garbage.geojson').write_text('no polygon')
    for name in ('none.geojson', 'points.geojson', 'garbage.geojson'):
        with pytest.raises(GrafalignError, match=name) as caught:
            filtered(table(lon=[1.0]), region=tmp_path / name)
        assert '\n' not in str(caught.value)


def test_dates_are_whole_days() -> None:
    """The first and last day are included, an end may be open, and unknown times are out."""
    taken = ['2019-12-31T23:59:59.999Z', '2020-01-01', '2020-06-30T23:59:59Z', '2020-07-01T00:00:00Z', None]
    photos = filtered(table(taken_at=taken), dates=['2020-01-01', '2020-06-30'])
    assert photos.table['photo_id'].tolist() == ['p1', 'p2']
    assert reasons(photos) == {'p0': 'outside the dates', 'p3': 'outside the dates', 'p4': 'date unknown'}
    assert details(photos)['p0'] == 'taken 2019-12-31'
    assert filtered(table(taken_at=taken), dates=[date(2020, 6, 1), None]).table['photo_id'].tolist() == ['p2', 'p3']
    early = filtered(table(taken_at=taken), dates=[None, date(2020, 1, 1)])
    assert early.table['photo_id'].tolist() == ['p0', 'p1']


def test_accuracy() -> None:
    """Positions beyond the largest error are out; unknown errors only where they are required."""
    rows = table(accuracy_m=[10.0, 100.0, 100.5, None])
    photos = filtered(rows, max_accuracy_m=100)
    assert photos.table['photo_id'].tolist() == ['p0', 'p1', 'p3']
    assert details(photos) == {'p2': 'accuracy 100.5 m'}
    strict = filtered(rows, max_accuracy_m=100, require_accuracy=True)
    assert reasons(strict) == {'p2': 'position too inaccurate', 'p3': 'accuracy of the position unknown'}


def test_licences() -> None:
    """A name with version wants that version, one without wants all; other terms of the same family are out."""
    names = ['CC-BY-4.0', 'cc by 2.0', 'CC-BY-SA-4.0', 'CC-BY-NC-4.0', 'CC0', None, 'CC BY']
    photos = filtered(table(licence=names), licences=['cc-by', 'CC BY-SA 4.0', 'CC0'])
    assert photos.table['photo_id'].tolist() == ['p0', 'p1', 'p2', 'p4', 'p6']
    assert details(photos) == {'p3': 'CC-BY-NC-4.0', 'p5': 'licence unknown'}


def test_places_that_are_likely_wrong() -> None:
    """Positions near 0, 0 and whole degrees are out where the recipe says so."""
    rows = table(lon=[0.5, -0.5, 2.0, 10.0, 10.0, 10.5], lat=[0.5, -0.5, 0.0, 50.0, 50.5, 50.0])
    far = math.hypot(0.5, 0.5) * 111.2
    photos = filtered(rows, null_island_km=far + 1, integer_degrees=True)
    near = {'p0': 'near 0, 0', 'p1': 'near 0, 0'}
    assert reasons(photos) == {**near, 'p2': 'whole degrees', 'p3': 'whole degrees'}
    assert 'p0' in set(filtered(rows, null_island_km=far - 1).table['photo_id'])


def test_small_photos() -> None:
    """The shorter side counts, and unknown sizes are kept."""
    photos = filtered(table(width=[300, 200, 300, None], height=[200, 300, 199, 5]), min_px=200)
    assert photos.table['photo_id'].tolist() == ['p0', 'p1', 'p3']
    assert details(photos) == {'p2': '300 x 199'}


@pytest.mark.parametrize(
    'wrong',
    [
        {'region': [0, 0, 1]},
        {'region': [0, 10, 1, -10]},
        {'dates': ['2020-02-01', '2020-01-01']},
        {'max_distance': 64},
        {'duplicates': 'all'},
        {'min_pixels': 3},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Boxes without area, dates that run backwards and unknown words are errors."""
    with pytest.raises(ValidationError):
        PhotoFilters.model_validate(wrong)


# --- rows against each other ------------------------------------------------------------------------------------------


def test_an_author_keeps_those_of_lowest_rank() -> None:
    """Of each known author the photos of the lowest ranks are kept; photos without author are not counted."""
    rows = table(author=['Ada', 'Bo', None] * 20)
    photos = filtered(rows, max_per_author=3, seed=7)
    rank = ranks(rows['photo_id'].tolist(), 7)
    for name in ('Ada', 'Bo'):
        mine = rows.index[rows['author'] == name]
        first = sorted(mine, key=lambda i: rank[i])[:3]
        assert set(photos.table.loc[photos.table['author'] == name, 'photo_id']) == {f'p{i}' for i in first}
    assert photos.table['author'].isna().sum() == 20
    assert set(reasons(photos).values()) == {'author already has 3 photos'}


def test_bursts() -> None:
    """Photos of one author, place and minute are one; those of another minute, place or author, or a bare day, not."""
    noon = '2020-06-01T12:00:'
    taken = [noon + '01Z', noon + '59Z', '2020-06-01T12:01:00Z', noon + '05Z', noon + '05Z', None, None]
    rows = table(
        taken_at=[*taken, '2020-06-01', '2020-06-01'],
        author=['Ada', 'Ada', 'Ada', 'Bo', 'Ada', 'Ada', 'Ada', 'Ada', 'Ada'],
        lat=[50.0, 50.00001, 50.0, 50.0, 50.001, 50.0, 50.0, 50.0, 50.0],
    )
    photos = filtered(rows, bursts=True)
    rank = ranks(rows['photo_id'].tolist(), 0)
    lost, kept = ('p0', 'p1') if rank[0] > rank[1] else ('p1', 'p0')
    assert reasons(photos) == {lost: 'burst'}
    assert details(photos) == {lost: f'same author, place and minute as {kept}'}


def test_duplicates_name_the_photo_that_is_kept() -> None:
    """The same bytes are found always, the same look only where it is asked for, and no structure is no look."""
    look = 255 << 40
    hashes = pd.array([1, look, 1, look + 7, 0, 0], 'UInt64')
    rows = table(digest=['aa', 'bb', 'aa', None, None, None], dhash=hashes)
    rank = ranks(rows['photo_id'].tolist(), 0)
    kept, lost = ('p0', 'p2') if rank[0] < rank[2] else ('p2', 'p0')
    assert details(filtered(rows, duplicates='bytes')) == {lost: f'same picture as {kept}'}
    photos = filtered(rows, duplicates='perceptual', max_distance=3)
    pair = {'p1', 'p3'}
    assert set(details(photos)) == {lost, max(pair, key=lambda p: rank[int(p[1])])}
    assert set(reasons(photos).values()) == {'duplicate photo'}


def test_of_rows_with_the_same_id_a_usable_one_is_kept() -> None:
    """A row that cannot be used does not take the place of one that can, and the choice does not follow the order."""
    rows = table(photo_id=['x', 'x', 'x'], uri=[None, 'https://a.example/b.jpg', 'https://a.example/a.jpg'])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        photos = filtered(rows.iloc[order])
        assert photos.table['uri'].tolist() == ['https://a.example/a.jpg']
        assert sorted(photos.rejected['reason']) == ['duplicate photo_id', 'no uri']


SOME = st.fixed_dictionaries(
    {
        'photo_id': st.sampled_from([f'p{i}' for i in range(30)]),
        'uri': st.sampled_from(['https://a.example/a.jpg', 'https://a.example/b.jpg', '../c.jpg', 'ftp://a/b', None]),
        'lon': st.sampled_from([10.0, 10.00001, 10.5, 179.5, 0.0, None]),
        'lat': st.sampled_from([50.0, 50.00001, 0.0, 95.0, None]),
        'accuracy_m': st.sampled_from([5.0, 500.0, None]),
        'taken_at': st.sampled_from(['2020-06-01T12:00:01Z', '2020-06-01T12:00:30Z', '2021-06-01', None]),
        'author': st.sampled_from(['Ada', 'Bo', None]),
        'licence': st.sampled_from(['CC-BY-4.0', 'CC0', None]),
        'digest': st.sampled_from(['aa', 'bb', None]),
        'dhash': st.sampled_from([7, 5, 2**62, 2**62 + 1, None]),
        'width': st.sampled_from([100, 1000, None]),
        'height': st.sampled_from([100, 1000, None]),
    }
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        'region': st.just([9, 49, 11, 51]),
        'dates': st.just([date(2020, 1, 1), date(2020, 12, 31)]),
        'max_accuracy_m': st.just(100),
        'licences': st.just(['CC-BY']),
        'max_per_author': st.integers(1, 3),
        'bursts': st.booleans(),
        'min_px': st.just(200),
        'duplicates': st.sampled_from(['none', 'bytes', 'perceptual']),
        'max_distance': st.integers(0, 3),
        'seed': st.integers(-3, 3),
    },
)


@given(st.lists(SOME, min_size=1, max_size=25), FILTERS, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_order_and_the_chunks_of_the_rows_do_not_matter(
    rows: list[dict[str, Any]], filters: dict[str, Any], chunks: int, random: Any
) -> None:
    """Kept and rejected rows are the same however the rows are shuffled and cut up, and no row is lost."""

    def outcome(some: list[dict[str, Any]], parts: int) -> tuple[pd.DataFrame, pd.DataFrame] | str:
        frame = pd.DataFrame(some)
        for name in ('dhash', 'width', 'height'):
            frame[name] = pd.array(frame[name].astype(object).where(frame[name].notna(), None), 'Int64')
        try:
            photos = filtered(frame, parts, **filters)
        except GrafalignError as error:
            return str(error)
        assert len(photos.table) + len(photos.rejected) == len(some)
        return photos.table, photos.rejected

    once = outcome(rows, 1)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    again = outcome(shuffled, chunks)
    if isinstance(once, str) or isinstance(again, str):
        assert once == again
    else:
        for left, right in zip(once, again, strict=True):
            pd.testing.assert_frame_equal(left, right)


# --- the duplicate finder ---------------------------------------------------------------------------------------------


def naive(digests: list[str | None], hashes: list[int | None], rank: list[int], distance: int) -> list[int]:
    """Compare every pair, walk the groups, keep the lowest rank."""
    count = len(rank)

    def same(i: int, j: int) -> bool:
        if digests[i] is not None and digests[i] == digests[j]:
            return True
        a, b = hashes[i], hashes[j]
        return bool(a) and bool(b) and (a ^ b).bit_count() <= distance  # type: ignore[operator]

    group = list(range(count))
    for i in range(count):
        for j in range(i):
            if same(i, j):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    kept = {g: min((i for i in range(count) if group[i] == g), key=lambda i: rank[i]) for g in set(group)}
    return [-1 if kept[g] == i else kept[g] for i, g in enumerate(group)]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[list[str | None], list[int | None], list[int], int]:
    """Rows whose hashes are a few bits away from a few centres."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    flips = st.lists(st.integers(0, 63), max_size=6).map(lambda bits: sum(1 << b for b in set(bits)))
    hashes = st.one_of(st.none(), st.just(0), st.builds(lambda c, f: c ^ f, st.sampled_from(centres), flips))
    count = draw(st.integers(1, 25))
    digests = draw(st.lists(st.sampled_from(['a', 'b', None, None]), min_size=count, max_size=count))
    rank = draw(st.permutations(list(range(count))))
    return digests, draw(st.lists(hashes, min_size=count, max_size=count)), rank, draw(st.integers(0, 8))


@given(pictures())
@settings(max_examples=300, deadline=None)
def test_duplicates_are_those_of_all_pairs(case: tuple[list[str | None], list[int | None], list[int], int]) -> None:
    """The bands miss nothing and add nothing: the result is that of comparing every pair."""
    digests, hashes, rank, distance = case
    found = duplicate_of(pd.Series(digests, dtype='string'), pd.array(hashes, 'UInt64'), np.array(rank), distance)
    assert found.tolist() == naive(digests, hashes, rank, distance)


@pytest.mark.parametrize('distance', [1, 2, 4, 8])
def test_near_pairs_of_many_hashes(distance: int) -> None:
    """Among thousands of hashes, planted neighbours at exactly the distance are found and those beyond are not."""
    rng = np.random.default_rng(1)
    base = rng.integers(1, 2**64, 4000, dtype=np.uint64)

    def moved(some: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
        flips = [sum(1 << int(b) for b in rng.choice(64, bits, replace=False)) for _ in some]
        return some ^ np.array(flips, dtype=np.uint64)

    hashes = np.concatenate([base, moved(base[:500], distance), moved(base[500:1000], distance + 1)])
    found = duplicate_of(None, hashes, np.arange(len(hashes)), distance)
    assert found[4000:4500].tolist() == list(range(500))
    assert (found[4500:] == -1).all() and (found[:4000] == -1).all()


def test_either_side_may_be_left_out() -> None:
    """Without digests only looks count, without hashes only bytes."""
    digests, hashes = pd.Series(['a', 'a', 'b'], dtype='string'), np.array([1, 6, 6], dtype=np.uint64)
    rank = np.array([2, 1, 0])
    assert duplicate_of(digests, None, rank).tolist() == [1, -1, -1]
    assert duplicate_of(None, hashes, rank).tolist() == [-1, 2, -1]
    assert duplicate_of(digests, hashes, rank).tolist() == [2, 2, -1]
    assert duplicate_of(pd.Series([], dtype='string'), np.array([], dtype=np.uint64), np.array([], dtype=int)).size == 0


def test_filters_of_a_recipe_reach_the_photos(tmp_path: Path) -> None:
    """A source with filters gives what is wanted, and says for each other row why it is not."""
    rows = table(lon=[10.0, 20.0, 30.0], accuracy_m=[1.0, 1.0, 99.0])
    rows.to_csv(tmp_path / 'a.csv', index=False)
    filters = {'region': [0, 0, 25, 60], 'max_accuracy_m': 50}
    photos = read_photos(PhotoSource.model_validate({'table': tmp_path / 'a.csv', 'filters': filters}))
    assert photos.table['photo_id'].tolist() == ['p0', 'p1']
    assert photos.rejected.to_dict('records') == [
        {'kind': 'photo', 'id': 'p2', 'reason': 'outside the region', 'detail': 'lon 30, lat 50'}
    ]


def test_images_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    """A row outside the region is rejected for that, though its file is missing; one inside for its file."""
    rows = table(lon=[10.0, 20.0, 5.0]).assign(uri=['a.jpg', 'b.jpg', 'https://a.example/c.jpg'])
    rows.to_csv(tmp_path / 'a.csv', index=False)
    source = {'table': tmp_path / 'a.csv', 'filters': {'region': [0, 0, 15, 60]}}
    photos = read_photos(PhotoSource.model_validate(source))
    assert reasons(photos) == {'p0': 'file is missing', 'p1': 'outside the region'}
