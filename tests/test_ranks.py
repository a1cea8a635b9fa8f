"""Ranks without the score matrix, against a naive float64 reference; what other code makes of the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.errors import GrafalignError
from grafalign.retrieval import average_precision, hits_at, positive_ranks, ranks, recall_at


def unit(rng: np.random.Generator, rows: int, depth: int = 16) -> np.ndarray:
    """Random unit vectors."""
    v = rng.normal(size=(rows, depth)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def material(seed: int, copies: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries, gallery (half of it copies of others, if asked), and pairs with repetitions."""
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(1, 40)), int(rng.integers(2, 70))
    queries, gallery = unit(rng, count, 8), unit(rng, size, 8)
    if copies:
        gallery[rng.integers(0, size, size // 2 + 1)] = gallery[rng.integers(0, size, size // 2 + 1)]
    pairs = int(rng.integers(1, 90))
    return queries, gallery, rng.integers(0, count, pairs), rng.integers(0, size, pairs)


def naive(
    queries: np.ndarray, gallery: np.ndarray, query: np.ndarray, item: np.ndarray
) -> dict[tuple[int, int], tuple[int, int]]:
    """Items above and tied that are no positives, for each pair, from the whole float64 matrix."""
    scores = np.einsum('qd,gd->qg', queries.astype(np.float64), gallery.astype(np.float64))
    same = {g.tobytes(): i for i, g in enumerate(gallery)}
    first = np.array([same[g.tobytes()] for g in gallery])  # copies are equal whatever the order of the sums
    scores = scores[:, first]
    positive = np.zeros(scores.shape, dtype=bool)
    positive[query, item] = True
    out = {}
    for q, i in zip(*np.nonzero(positive), strict=True):
        others = scores[q][~positive[q]]
        out[int(q), int(i)] = (int((others > scores[q, i]).sum()), int((others == scores[q, i]).sum()))
    return out


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([3, 16, 2048]))
def test_ranks_are_those_of_the_float64_matrix_whatever_the_block(seed: int, copies: bool, block: int) -> None:
    """Items above and tied are counted as in the whole matrix, for every pair, ties and uneven blocks included."""
    queries, gallery, query, item = material(seed, copies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, '_BLOCK', block)
        found = positive_ranks(queries, gallery, query, item)
    told = {(int(q), int(i)): (int(a), int(t)) for q, i, a, t in zip(found.query, found.item, found.above, found.tied)}  # noqa: B905
    assert told == naive(queries, gallery, query, item)
    assert (np.diff(found.query) >= 0).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_recall_needs_only_the_best_positive(seed: int, copies: bool) -> None:
    """Hits are the same whether all positives were ranked or only the best."""
    where = material(seed, copies)
    every, best = positive_ranks(*where), positive_ranks(*where, best_only=True)
    for k in (1, 3, 100):
        np.testing.assert_allclose(hits_at(every, k), hits_at(best, k))


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_a_tie_is_worth_its_chance(seed: int) -> None:
    """Hits at k equal the mean over many random orders of the tied items."""
    queries, gallery, query, item = material(seed, copies=True)
    found = positive_ranks(queries, gallery, query, item)
    rng = np.random.default_rng(0)
    same = {g.tobytes(): i for i, g in enumerate(gallery)}
    scores = (queries.astype(np.float64) @ gallery.astype(np.float64).T)[:, [same[g.tobytes()] for g in gallery]]
    positive = np.zeros(scores.shape, dtype=bool)
    positive[query, item] = True
    for q, expected in zip(found.query[found.first], hits_at(found, 3), strict=True):
        tries = [positive[q][np.lexsort((rng.random(len(gallery)), -scores[q]))[:3]].any() for _ in range(400)]
        assert expected == pytest.approx(np.mean(tries), abs=0.12)


def test_a_model_that_gives_everything_one_vector_scores_chance() -> None:
    """Without any information recall at k is k over the number of items, not one."""
    same = np.full((50, 4), 0.5, dtype=np.float32)
    found = recall_at(same, same, np.arange(50), np.arange(50), (1, 10))
    assert found[1] == pytest.approx(1 / 50) and found[10] == pytest.approx(10 / 50)


def test_average_precision_by_hand() -> None:
    """Positives at places 1 and 3 of four give (1 + 2/3) / 2; cut at 2 they give 1 / 2."""
    gallery = np.array([[0.9], [0.8], [0.7], [0.1]], dtype=np.float32)
    found = positive_ranks(np.ones((1, 1), dtype=np.float32), gallery, np.array([0, 0]), np.array([0, 2]))
    assert average_precision(found)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(found, 2)[0] == pytest.approx(1 / 2)


def test_near_equal_scores_are_told_apart_in_float64() -> None:
    """Scores that differ by less than float32 can hold in a sum of 512 terms still have an order."""
    rng = np.random.default_rng(0)
    query = unit(rng, 1, 512)
    gallery = np.repeat(query, 64, axis=0)
    for i in range(64):  # each a hair farther away than the last
        gallery[i, i] = np.nextafter(gallery[i, i], -np.sign(gallery[i, i]) * np.inf, dtype=np.float32)
    exact = gallery.astype(np.float64) @ query[0].astype(np.float64)
    for item in (0, 17, 63):
        found = positive_ranks(query, gallery, np.array([0]), np.array([item]))
        assert int(found.above[0]) == int((exact > exact[item]).sum())


def test_queries_of_another_width_and_bad_values_are_errors_that_say_so() -> None:
    """Widths that differ and rows that are not finite are named."""
    rng = np.random.default_rng(0)
    with pytest.raises(GrafalignError, match='different widths'):
        positive_ranks(unit(rng, 2, 4), unit(rng, 3, 5), np.array([0]), np.array([0]))
    bad = unit(rng, 3, 4)
    bad[1, 2] = np.nan
    with pytest.raises(GrafalignError, match='Row 1 of the gallery is not finite'):
        positive_ranks(unit(rng, 2, 4), bad, np.array([0]), np.array([0]))


def usual_recall(scores: torch.Tensor, positive: torch.Tensor, k: int) -> float:
    """The common code: top k of the whole matrix as one-hot rows, right if any of them is positive."""
    top = torch.nn.functional.one_hot(torch.topk(scores, k, dim=1)[1], num_classes=scores.shape[1])
    return float(((top * positive[:, None]).sum((1, 2)) > 0).double().mean())


def test_recall_is_that_of_the_usual_code_and_of_torchmetrics_where_nothing_ties() -> None:
    """One-hot recall, torchmetrics' hit rate and ours agree on captions with five texts an image."""
    functional = pytest.importorskip('torchmetrics.functional.retrieval')
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 60, 12), unit(rng, 300, 12)
    owner = np.repeat(np.arange(60), 5)
    scores = torch.from_numpy(images.astype(np.float64) @ texts.astype(np.float64).T)
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[owner, np.arange(300)] = True
    ours = recall_at(images, texts, owner, np.arange(300))
    for k in (1, 5, 10):
        assert ours[k] == pytest.approx(usual_recall(scores, positive, k))
        theirs = [functional.retrieval_hit_rate(s.float(), p, top_k=k) for s, p in zip(scores, positive, strict=True)]
        assert ours[k] == pytest.approx(float(torch.stack(theirs).mean()))
    found = average_precision(positive_ranks(images, texts, owner, np.arange(300)))
    shifted = scores - scores.min() + 1  # since 1.8 torchmetrics takes no item with a score below zero for relevant
    theirs = [functional.retrieval_average_precision(s, p) for s, p in zip(shifted, positive, strict=True)]
    assert found.mean() == pytest.approx(float(torch.stack(theirs).mean()), abs=1e-6)


def test_recall_is_that_of_clip_benchmark() -> None:
    """CLIP_benchmark's own functions give our recall on the same matrix; run where that package is installed."""
    theirs = pytest.importorskip('clip_benchmark.metrics.zeroshot_retrieval')
    rng = np.random.default_rng(5)
    images, texts = unit(rng, 80, 12), unit(rng, 400, 12)
    owner = np.repeat(np.arange(80), 5)
    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[np.arange(400), owner] = True
    for matrix, truth, ours in (
        (scores, positive, recall_at(texts, images, np.arange(400), owner)),
        (scores.T, positive.T, recall_at(images, texts, owner, np.arange(400))),
    ):
        for k in (1, 5, 10):
            found = theirs.batchify(theirs.recall_at_k, matrix, truth, 64, 'cpu', k=k)
            assert float((found > 0).double().mean()) == pytest.approx(ours[k])
