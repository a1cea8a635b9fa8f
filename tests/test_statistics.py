"""Statistics of drawn images: intervals, blocks of land, paired tests."""

from __future__ import annotations

import numpy as np
import pytest

from grafalign.benchmarks.statistics import (
    Mean,
    MeanAp,
    MeanIou,
    MeanOfClasses,
    Resampling,
    estimates,
    paired_difference,
    ranking,
    resampling,
    statistics_from,
)
from tests.labelled_sets import naive_ap


def test_statistics_of_drawn_images_are_those_of_the_drawn_set() -> None:
    """Weights are repetitions: every statistic of weighted images equals that of a set with the images repeated."""
    rng = np.random.default_rng(0)
    count, k = 40, 5
    labels, right = rng.integers(0, 4, count), rng.random(count)
    scores = rng.random((count, 3)).astype(np.float32)
    relevant = rng.random((3, count)) < 0.3
    weight = rng.integers(0, 4, count)
    drawn = np.repeat(np.arange(count), weight)
    confusions = rng.integers(0, 9, (count, 3, 3))
    w = weight[None].astype(np.float64)
    assert Mean(right, np.ones(count))(w)[0] == pytest.approx(right[drawn].mean())
    expected = np.mean([right[drawn][labels[drawn] == c].mean() for c in np.unique(labels[drawn])])
    assert MeanOfClasses(right, labels)(w)[0] == pytest.approx(expected)
    whole = confusions[drawn].sum(0)
    iou = np.diag(whole) / (whole.sum(0) + whole.sum(1) - np.diag(whole))
    assert MeanIou(confusions)(w)[0] == pytest.approx(iou.mean())
    ap = MeanAp(ranking(scores), relevant, k)(w)[0]
    assert ap == pytest.approx(np.mean([naive_ap(scores[drawn, c], relevant[c, drawn], k) for c in range(3)]))


def test_intervals_hold_the_true_value_nineteen_times_in_twenty() -> None:
    """Of means, and of average precision of a weak model, over many worlds."""
    rng = np.random.default_rng(0)
    held = {'mean': 0, 'ap': 0}
    truth = {'mean': 0.3, 'ap': 0.0}
    worlds = []
    for _ in range(60):
        labels = rng.integers(0, 2, 120)
        scores = (0.5 * labels + rng.normal(size=120)).astype(np.float32)[:, None]
        worlds.append((rng.random(120) < 0.3, MeanAp(ranking(scores), (labels == 1)[None], 0)))
    truth['ap'] = float(np.mean([s(np.ones((1, 120)))[0] for _, s in worlds]))
    for hit, ap in worlds:
        found = estimates(
            {'mean': Mean(hit.astype(float), np.ones(120)), 'ap': ap}, Resampling(np.arange(120), 'images', 200)
        )
        for name in held:
            held[name] += found[name].low <= truth[name] <= found[name].high
    assert held['mean'] >= 53 and held['ap'] >= 53, held


def test_blocks_of_land_are_drawn_where_places_are_known() -> None:
    """Images of one place are no independent witnesses: intervals over blocks are wider, and results say which."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(40), 25)
    right = np.repeat(rng.random(40) < 0.5, 25).astype(float)
    lonlat = np.stack([block * 0.5, np.zeros(1000)], axis=1)
    statistic = {'x': Mean(right, np.ones(1000))}
    over = {}
    for name, places in (('blocks', lonlat), ('images', None)):
        how = resampling(1000, places, 300)
        assert name in how.unit
        found = estimates(statistic, how)['x']
        over[name] = found.high - found.low
    assert over['blocks'] > 3 * over['images']


def test_a_paired_test_sees_what_two_intervals_cannot() -> None:
    """On the same images a small steady difference is certain, and none is none."""
    rng = np.random.default_rng(0)
    first = rng.random(400)
    better = Mean(first, np.ones(400)), Mean(first - 0.02 + 0.02 * rng.random(400), np.ones(400))
    how = Resampling(np.arange(400), 'images', 500)
    found = paired_difference(*better, how)
    assert found.low > 0 and found.p < 0.01 and found.value == pytest.approx(0.01, abs=0.002)
    assert paired_difference(better[0], better[0], how).p == 1
    alone = [estimates({'x': s}, how)['x'] for s in better]
    assert alone[0].low < alone[1].high


def test_statistics_survive_a_file() -> None:
    """What is saved as arrays gives the same values again."""
    statistic = MeanAp(ranking(np.random.default_rng(0).random((9, 2))), np.ones((2, 9), bool), 3)
    (found,) = statistics_from(statistic.arrays('x')).values()
    assert found(np.ones((1, 9)))[0] == statistic(np.ones((1, 9)))[0]


def test_a_difference_its_interval_and_its_p_are_their_formulas() -> None:
    """Draw by draw in plain loops: percentiles moved by the bias of the draws, and twice the share beyond zero."""
    rng = np.random.default_rng(4)
    scores, other = rng.random((30, 2)).astype(np.float32), rng.random((30, 2)).astype(np.float32)
    relevant = rng.random((2, 30)) < 0.4
    first, second = MeanAp(ranking(scores), relevant, 5), MeanAp(ranking(other), relevant, 5)
    how = Resampling(np.arange(30), 'images', 400, seed=3)
    value = float(first(np.ones((1, 30)))[0] - second(np.ones((1, 30)))[0])
    drawn = []
    for weights in how.weights():
        for row in weights:
            images = np.repeat(np.arange(30), row.astype(int))
            of = [
                np.mean([naive_ap(s[images, c], relevant[c, images], 5) for c in range(2) if relevant[c, images].any()])
                for s in (scores, other)
            ]
            drawn.append(of[0] - of[1])
    moved = np.array(drawn) - (np.mean(drawn) - value)
    low, high = np.percentile(moved, [2.5, 97.5])
    beyond = min(sum(moved <= 0), sum(moved >= 0))
    found = paired_difference(first, second, how)
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == (pytest.approx(min(low, value)), pytest.approx(max(high, value)))
    assert found.p == pytest.approx(min(1, 2 * (beyond + 1) / 401))
    alone = estimates({'x': first}, how)['x']
    assert alone.low <= alone.value <= alone.high


def test_p_is_that_of_both_sides() -> None:
    """A mean difference 1.96 standard errors from zero has a p of 0.05, not half of it."""
    count = 500
    values = np.random.default_rng(0).normal(size=count)
    values = (values - values.mean()) / values.std() + 1.96 / np.sqrt(count)
    none = Mean(np.zeros(count), np.ones(count))
    found = paired_difference(Mean(values, np.ones(count)), none, Resampling(np.arange(count), 'images', 20_000))
    assert found.p == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(('blocks', 'unit'), [(19, 'images'), (20, 'blocks of 10 km')])
def test_land_is_drawn_from_twenty_blocks_on(blocks: int, unit: str) -> None:
    """With fewer blocks their intervals would say nothing, and images are drawn."""
    lonlat = np.stack([np.repeat(np.arange(blocks) * 0.5, 3), np.zeros(3 * blocks)], axis=1)
    assert resampling(3 * blocks, lonlat).unit == unit


def test_a_class_that_is_absent_but_guessed_counts_against_those_that_are_there() -> None:
    """Class 2 occurs nowhere: its guesses lower the union of class 0, and the mean is over classes 0 and 1 alone."""
    counts = np.array([[[3, 0, 1], [0, 2, 0], [0, 0, 0]]])
    assert MeanIou(counts)(np.ones((1, 1)))[0] == pytest.approx((3 / 4 + 2 / 2) / 2)


def test_copies_of_an_image_stand_side_by_side_in_a_ranking() -> None:
    """A wrong image that is drawn twice stands before the right one twice; copies of a right one are all found."""
    order = np.array([[0, 1]], dtype=np.int32)
    for k in (3, 0):
        wrong_first = MeanAp(order, np.array([[False, True]]), k)
        right_first = MeanAp(order, np.array([[True, False]]), k)
        assert wrong_first(np.array([[2.0, 1.0]]))[0] == pytest.approx(1 / 3)
        assert right_first(np.array([[2.0, 1.0]]))[0] == pytest.approx(1)
