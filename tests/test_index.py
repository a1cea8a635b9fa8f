"""The index on disk: recall against exact search, filters, additions, removals, kills and damage."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from grafalign.errors import GrafalignError
from grafalign.retrieval import nearest
from grafalign.retrieval.ann import Ann, Kind, choose
from grafalign.search.catalog import Catalog
from grafalign.search.marker import IndexModel, IndexSource
from tests.vectors import clustered, items

MODEL = IndexModel(**{'spec': 'nowhere', 'name': 'a model', 'kind': 'run', 'digest': 'abc', 'pixels': {}})
COUNT = 6000


@pytest.fixture(scope='module')
def vectors() -> np.ndarray:
    """What the indexes of this file hold."""
    return clustered(COUNT)


@pytest.fixture(scope='module')
def queries() -> np.ndarray:
    """Others of the same kinds."""
    return clustered(200, seed=1)


def make(path: Path, vectors: np.ndarray, kind: Kind | None, queries: np.ndarray, target: float = 0.99) -> Catalog:
    """An index of these vectors."""
    made = Catalog.create(path, vectors.shape[1], MODEL, target)
    made.append(items(len(vectors)), vectors, source=IndexSource(bands=(), value_range=(0, 1)))
    made.optimise(queries, kind)
    return made


def share_found(rows: np.ndarray, truth: np.ndarray) -> float:
    """Recall of found rows [Q, k]."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(rows, truth, strict=True)]))


def test_exact_search_is_the_sorted_product(vectors: np.ndarray, queries: np.ndarray) -> None:
    """The best rows by inner product, in order, also among some rows only and over several pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('grafalign.retrieval.exact._PART_BYTES', 4 * 32 * 1000)
        scores, rows = nearest(queries, vectors, 10)
        _, some = nearest(queries, vectors, 10, np.arange(5, COUNT, 7))
    product = queries @ vectors.T
    expected = np.argsort(-product, axis=1)[:, :10]
    np.testing.assert_allclose(scores, np.take_along_axis(product, expected, 1), rtol=1e-5)
    assert (rows == expected).all()
    assert (some == np.argsort(-product[:, 5::7], axis=1)[:, :10] * 7 + 5).all()


@pytest.mark.parametrize('kind', ['ivf', pytest.param('ivfpq', marks=pytest.mark.slow), 'hnsw'])
def test_every_kind_finds_what_it_promises(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, kind: Kind
) -> None:
    """Recall at 10 on queries that tuned nothing is near the target, and scores are the true ones."""
    made = make(tmp_path / 'index', vectors, kind, queries)
    others = clustered(300, seed=5)
    scores, rows = Catalog(tmp_path / 'index').search(others, 10)
    _, truth = nearest(others, vectors, 10)
    assert share_found(rows, truth) >= 0.97
    np.testing.assert_allclose(scores, np.einsum('qd,qkd->qk', others, vectors[rows]), rtol=1e-5)
    ann = made.marker.ann
    assert ann is not None and ann.kind == kind and ann.search_parameters[0].recall >= 0.99


def test_an_index_of_an_earlier_release_keeps_its_approximate_index(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """What is called `efforts` there are its search parameters."""
    made = make(tmp_path / 'index', vectors, 'ivf', queries)
    marker = tmp_path / 'index' / 'index.json'
    content = json.loads(marker.read_text())
    content['ann']['efforts'] = content['ann'].pop('search_parameters')
    marker.write_text(json.dumps(content))
    assert Catalog(tmp_path / 'index').marker.ann == made.marker.ann is not None


def test_a_lower_target_looks_less(vectors: np.ndarray, queries: np.ndarray) -> None:
    """Tuning opens fewer cells for half of the neighbours than for nearly all."""
    efforts = [Ann.build(vectors, queries, 'ivf', target).parameters_for(10).visits for target in (0.5, 0.999)]
    assert efforts[0] < efforts[1]


@pytest.mark.parametrize('share', [0.9, 0.5, 0.2, 0.06, 0.01, 2 / COUNT])
def test_a_filter_is_right_at_any_selectivity(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, share: float
) -> None:
    """Among any share of the items, scattered or all far from the query, the true neighbours are found."""
    made = make(tmp_path / 'index', vectors, 'ivf', queries)
    scattered = np.random.default_rng(0).permutation(COUNT) < share * COUNT
    far = np.zeros(COUNT, dtype=bool)
    far[np.argsort(vectors @ queries[0])[: int(share * COUNT)]] = True
    for allowed in (scattered, far):
        made.remove(np.flatnonzero(allowed)[:1])
        allowed[np.flatnonzero(allowed)[:1]] = False
        _, rows = made.search(queries, 10, allowed)
        product = np.where(allowed, queries @ vectors.T, -np.inf)
        expected = np.argsort(-product, axis=1)[:, : min(10, int(allowed.sum()))]
        assert share_found(rows, expected) >= 0.999 and rows.shape == expected.shape


def test_added_items_are_found_at_once_and_removed_ones_no_more(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """What is added after the index was made is found, what is removed is not, before and after it takes them in."""
    made = make(tmp_path / 'index', vectors[:5000], 'ivf', queries)
    made.append(items(300, 5000), vectors[5000:5300])
    made.optimise(queries)
    assert made.marker.ann.rows == 5000  # they wait outside
    _, rows = made.search(vectors[5000:5300], 1)
    assert (rows[:, 0] == np.arange(5000, 5300)).all()
    assert made.remove(made.rows_of(['item 5001', 'item 3'], 'here')) == 2
    _, rows = Catalog(tmp_path / 'index').search(vectors[[3, 5001]], 20)
    assert not np.isin(rows, [3, 5001]).any() and len(made) == 5298
    made.append(items(700, 5300), vectors[5300:])
    made.optimise(queries)
    assert made.marker.ann.rows == COUNT  # taken in
    _, rows = Catalog(tmp_path / 'index').search(vectors[[3, 5001, 5900]], 20)
    assert not np.isin(rows, [3, 5001]).any() and rows[2, 0] == 5900
    with pytest.raises(GrafalignError, match='has no item item 3'):
        made.rows_of(['item 3'], 'here')


@pytest.mark.parametrize('share', [0.05, 0.2])
def test_removing_all_of_a_kind_does_not_hide_the_next_kind(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, share: float
) -> None:
    """Once the rows nearest to a query are removed, the nearest of the others are found."""
    made = make(tmp_path / 'index', vectors, 'ivf', queries)
    made.remove(np.argsort(-(vectors @ queries[0]))[: int(share * COUNT)])
    _, rows = made.search(queries[:1], 10)
    product = np.where(made.alive, queries[:1] @ vectors.T, -np.inf)
    assert share_found(rows, np.argsort(-product, axis=1)[:, :10]) >= 0.9


def test_what_replaces_an_item_takes_its_place_in_one_commit(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """An item's new vector is found and its old one is not, and the number of items stays."""
    made = make(tmp_path / 'index', vectors[:100], None, queries)
    made.append(items(2, 7), vectors[200:202], instead_of=np.array([7, 8]))
    held = Catalog(tmp_path / 'index')
    assert len(held) == 100 and not held.alive[[7, 8]].any()
    _, rows = held.search(vectors[[200, 7]], 1)
    assert rows[0, 0] == 100 and rows[1, 0] != 7


def test_an_index_grows_by_what_is_added(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Adding appends: vectors and items that were there are not written again."""
    made = make(tmp_path / 'index', vectors[:5000], None, queries)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'index').glob('items-*')}
    inode = (tmp_path / 'index' / 'vectors-00000.f32').stat().st_ino
    made.append(items(10, 5000), vectors[5000:5010])
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'index').glob('items-*')}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    assert (tmp_path / 'index' / 'vectors-00000.f32').stat().st_ino == inode


def test_whatever_a_killed_run_leaves_the_last_commit_counts(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """Vectors half written, items without their marker and stray files change nothing, and the next run goes on."""
    make(tmp_path / 'index', vectors[:100], None, queries)
    with (tmp_path / 'index' / 'vectors-00000.f32').open('ab') as file:
        file.write(b'half a vector')
    (tmp_path / 'index' / 'items-00001.parquet').write_bytes(b'half a table')
    (tmp_path / 'index' / 'ann-00000.faiss').write_bytes(b'half an index')
    held = Catalog(tmp_path / 'index')
    assert len(held) == 100 and len(held.items) == 100
    held.append(items(50, 100), vectors[100:150])
    held = Catalog(tmp_path / 'index')
    np.testing.assert_array_equal(held.vectors, vectors[:150])
    assert held.items['item_id'].tolist() == [f'item {i}' for i in range(150)]
    assert not (tmp_path / 'index' / 'ann-00000.faiss').exists()


def test_more_than_there_is_gives_what_there_is(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    """K larger than the index gives all items, and an emptied index none."""
    made = make(tmp_path / 'index', vectors[:7], None, queries)
    scores, rows = made.search(queries[:2], 50)
    assert rows.shape == (2, 7) and (np.sort(rows, axis=1) == np.arange(7)).all() and (np.diff(scores) <= 0).all()
    made.remove(np.arange(7))
    assert made.search(queries[:2], 5)[1].shape == (2, 0)


def test_the_kind_follows_size_and_memory() -> None:
    """Few vectors are searched exactly, many in cells, and where memory is short in product-quantised ones."""
    assert choose(10_000, 512, 10**12) == 'exact'
    assert choose(1_000_000, 512, 10**9) == 'ivf'
    assert choose(1_000_000, 512, 10**8) == 'ivfpq'


def damage(path: Path, name: str) -> None:
    """Cut a file in half."""
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize('name', ['vectors-00000.f32', 'items-00000.parquet', 'index.json'])
@pytest.mark.parametrize('gone', [True, False])
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, name: str, gone: bool
) -> None:
    """Every file that is missing or cut short is an error with its name and the remedy."""
    path = tmp_path / 'index'
    make(path, vectors, 'ivf', queries)
    (path / name).unlink() if gone else damage(path, name)
    with pytest.raises(GrafalignError, match=name) as error:
        Catalog(path).search(queries, 3)
    assert 'grafalign index' in str(error.value)


def test_bytes_that_are_no_index_are_refused_though_their_number_fits(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """A table that was overwritten in place is an error, not a traceback."""
    path = tmp_path / 'index'
    make(path, vectors, 'ivf', queries)
    size = (path / 'items-00000.parquet').stat().st_size
    (path / 'items-00000.parquet').write_bytes(bytes(size))
    with pytest.raises(GrafalignError, match=r'items-00000.parquet'):
        Catalog(path).items  # noqa: B018


@pytest.mark.parametrize('how', ['gone', 'cut', 'zeros'])
def test_without_its_approximate_index_search_is_exact_until_it_is_made_anew(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray, how: str
) -> None:
    """What can be made again from the vectors is no reason to refuse."""
    path = tmp_path / 'index'
    make(path, vectors, 'ivf', queries)
    file = path / 'ann-00000.faiss'
    content = file.read_bytes()
    file.unlink() if how == 'gone' else file.write_bytes(content[:-100] if how == 'cut' else bytes(len(content)))
    held = Catalog(path)
    _, rows = held.search(queries, 10)
    assert (rows == np.argsort(-(queries @ vectors.T), axis=1)[:, :10]).mean() > 0.999
    held.optimise(queries)
    assert Catalog(path).ann is not None


def test_vectors_that_no_index_can_hold_are_refused(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Another width, not finite, not normalised, none: each a sentence that says so, and nothing is added."""
    made = make(tmp_path / 'index', vectors[:50], None, queries)
    nan = vectors[:3].copy()
    nan[1, 1] = np.nan
    for bad, said in ((vectors[:3, :8], '8 dimensions'), (nan, 'row 1'), (vectors[:3] * 2, 'not normalised')):
        with pytest.raises(GrafalignError, match=said):
            made.append(items(3, 50), bad)
        with pytest.raises(GrafalignError, match=said):
            made.search(bad, 3)
    assert len(Catalog(tmp_path / 'index')) == 50


def test_an_index_of_another_model_is_refused(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    """A model with another digest is told which one made the index."""
    made = make(tmp_path / 'index', vectors[:50], None, queries)
    with pytest.raises(GrafalignError, match=r'made by another model .a model'):
        made.check_model('xyz', 'mine')


def test_versions_of_files_never_meet(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Any order of adding, removing and indexing leaves the folder with exactly the files that index.json names."""
    for order in itertools.permutations(('add', 'remove', 'index'), 3):
        path = tmp_path / '-'.join(order)
        made = make(path, vectors[:1000], None, queries)
        for step in order:
            if step == 'add':
                made.append(items(100, 1000), vectors[1000:1100])
            elif step == 'remove':
                made.remove(np.array([5, 6]))
            else:
                made.optimise(queries, 'ivf')
        named = set(json.loads((path / 'index.json').read_text())['files'])
        assert {p.name for p in path.iterdir()} == named | {'index.json'}
        _, rows = Catalog(path).search(vectors[[5, 1050]], 3)
        assert 5 not in rows and rows[1, 0] == 1050


def test_rows_that_were_removed_are_forgotten_when_they_are_many(
    tmp_path: Path, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """After a third was removed the next run writes the others anew: less on disk, the same answers."""
    made = make(tmp_path / 'index', vectors, 'ivf', queries)
    made.remove(np.arange(0, COUNT, 3))
    kept = np.arange(COUNT)[np.arange(COUNT) % 3 != 0]
    before = sum(p.stat().st_size for p in (tmp_path / 'index').iterdir())
    made.optimise(queries, 'ivf')
    held = Catalog(tmp_path / 'index')
    assert held.total == len(held) == len(kept)
    assert sum(p.stat().st_size for p in (tmp_path / 'index').iterdir()) < 0.75 * before
    _, rows = held.search(vectors[kept], 1)
    found = held.items['item_id'].to_numpy()[rows[:, 0]]
    assert (found == [f'item {i}' for i in kept]).mean() >= 0.99
