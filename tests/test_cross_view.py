"""Photos and tiles of sets that others made find each other, counted as those sets' own protocols count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafalign.benchmarks.results import read_result
from grafalign.benchmarks.run import evaluate
from grafalign.benchmarks.suite import Suite
from grafalign.benchmarks.tasks.photo_tile import trapezoid_precision
from grafalign.encoders import FrozenClip, embed
from grafalign.pairing.elsewhere import PairImport, import_pairs
from grafalign.retrieval import positive_ranks
from grafalign.store import PairStore
from tests.made_pairs import make_university, make_vigor


def precision_of_a_list(right: list[bool]) -> float:
    """Average precision of a ranked list as University-1652's code adds it up."""
    total, found = 0.0, 0
    for place, good in enumerate(right):
        if good:
            before = found / place if place else 1.0
            found += 1
            total += (before + found / (place + 1)) / 2
    return total / found


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_average_precision_is_that_of_a_walk_along_the_list(right: list[bool]) -> None:
    """Whatever the places of the positives."""
    gallery = np.linspace(1, 0.1, len(right))[:, None].astype(np.float32)
    items = np.flatnonzero(right)
    ranks = positive_ranks(np.ones((1, 1), np.float32), gallery, np.zeros(len(items), np.int64), items)
    assert trapezoid_precision(ranks) == pytest.approx([precision_of_a_list(right)])


def scores_of(store: PairStore, cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of all test photos and tiles [P, T], and their numbers in the store."""
    bank = np.load(store.path / 'bank' / 'embeddings.npy').astype(np.float32)  # type: ignore[operator]
    tiles = store.tiles_of('test')
    photos = np.unique(store.pairs['photo'][np.isin(store.pairs['tile'], tiles)])
    (kept,) = cache.glob('*.f32')
    vectors = np.fromfile(kept, dtype=np.float32).reshape(len(tiles), -1)
    mine = bank[photos] / np.linalg.norm(bank[photos], axis=1, keepdims=True)
    return mine.astype(np.float64) @ vectors.T.astype(np.float64), photos, tiles


def metrics_of(store: PairStore, clip: FrozenClip, folder: Path) -> dict[str, float]:
    """What the benchmark says of the tiny CLIP as it is."""
    suite = Suite(sets=[f'pairs:{store.path}@test'], draws=100)
    done = evaluate([clip.settings.model], suite, folder / 'out', cache=folder / 'cache')
    return {name: metric.value for name, metric in read_result(done.paths[0]).metrics.items()}


def test_vigor_counts_as_vigor_does(clip: FrozenClip, tmp_path: Path) -> None:
    """Other tiles of a photo's place stand against it in recall, and not in the hit rate."""
    make_vigor(tmp_path / 'vigor')
    import_pairs(PairImport(source=tmp_path / 'vigor', layout='vigor', size_px=64), tmp_path / 's')
    store = PairStore(tmp_path / 's')
    embed(store, clip)
    found = metrics_of(store, clip, tmp_path)
    scores, photos, tiles = scores_of(store, tmp_path / 'cache')
    first, hits = [], []
    for row, photo in enumerate(photos):
        pairs = store.pairs[store.pairs['photo'] == photo]
        place = {role: np.searchsorted(tiles, pairs['tile'][pairs['role'] == role]) for role in ('pair', 'semi')}
        (wanted,) = place['pair']
        higher = scores[row] > scores[row, wanted]
        first.append(higher.sum() < 1)
        higher[place['semi']] = False
        hits.append(higher.sum() < 1)
    assert len(photos) == 4 and len(tiles) == 10
    assert found['photo_to_tile_r@1'] == found['photo_to_tile_r@1%'] == pytest.approx(np.mean(first))
    assert found['photo_to_tile_hit_rate'] == pytest.approx(np.mean(hits))


def test_university_counts_as_university_does(clip: FrozenClip, tmp_path: Path) -> None:
    """Buildings that nobody asks for stand in both galleries, and are no queries."""
    make_university(tmp_path / 'u')
    settings = PairImport(source=tmp_path / 'u', layout='university-1652', ground='drone', size_px=64)
    import_pairs(settings, tmp_path / 's')
    store = PairStore(tmp_path / 's')
    embed(store, clip)
    found = metrics_of(store, clip, tmp_path)
    scores, photos, tiles = scores_of(store, tmp_path / 'cache')
    right = np.zeros(scores.shape, bool)
    pairs = store.pairs[store.pairs['role'] == 'pair']
    mine = pairs[np.isin(pairs['tile'], tiles)]
    right[np.searchsorted(photos, mine['photo']), np.searchsorted(tiles, mine['tile'])] = True
    assert right.shape == (12, 4) and right.sum() == 6

    def expected(of: np.ndarray, wanted: np.ndarray) -> float:
        asked = wanted.any(1)
        order = np.argsort(-of[asked], axis=1)
        return float(np.mean([precision_of_a_list(w[o].tolist()) for w, o in zip(wanted[asked], order, strict=True)]))

    assert found['photo_to_tile_ap'] == pytest.approx(expected(scores, right))
    assert found['tile_to_photo_ap'] == pytest.approx(expected(scores.T, right.T))
