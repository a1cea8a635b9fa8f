"""Every place of a training belongs to one source and one of its images, by seed and place alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.training.mixture import Mixture, Turn

Drawn = list[list[tuple[int, int]]]


def drawn(mixture: Mixture) -> Drawn:
    """Source and image of all places, by step."""
    return [list(zip(*(v.tolist() for v in mixture.items(step)), strict=True)) for step in range(mixture.steps)]


TURNS = st.builds(Turn, st.floats(0.1, 5), st.sampled_from([0.0, 0.25, 0.4]), st.sampled_from([0.5, 0.75, 1.0]))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TURNS, st.integers(1, 30)), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([8, 1 << 16]),
)
def test_no_image_comes_again_before_all_of_its_source_came(
    others: list[tuple[Turn, int]], batch: int, steps: int, block: int
) -> None:
    """Without replacement inside each source, whatever the weights, stages and blocks."""
    turns, sizes = zip((Turn(), 11), *others, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('grafalign.training.mixture._BLOCK', block)
        mixture = Mixture(turns, sizes, batch, steps, seed=3)
        places = [place for step in drawn(mixture) for place in step]
        visits = mixture.visits()
    for source, size in enumerate(sizes):
        counts = Counter(image for s, image in places if s == source)
        assert sum(counts.values()) == visits[source]
        assert set(counts) <= set(range(size))
        assert {counts[i] for i in range(size)} <= {visits[source] // size, -(-visits[source] // size)}


def test_shares_are_those_of_the_weights_and_stages() -> None:
    """Places are dealt by weight to what is active, and spread over the stage."""
    turns = (Turn(1.0, until=0.4), Turn(0.5), Turn(0.3))
    mixture = Mixture(turns, (1000, 1000, 1000), batch=100, steps=100, seed=0)
    places = drawn(mixture)
    first = Counter(s for step in places[:40] for s, _ in step)
    later = Counter(s for step in places[40:] for s, _ in step)
    assert {s: first[s] for s in (0, 1, 2)} == {0: 2222, 1: 1111, 2: 667}  # 4,000 places by 1, 0.5, 0.3
    assert {s: later[s] for s in (0, 1, 2)} == {0: 0, 1: 3750, 2: 2250}
    assert (
        max(sum(s == 0 for s, _ in step) for step in places[:40]) < 80
    )  # spread over the stage, not one after another


def test_any_step_can_be_asked_for_without_those_before() -> None:
    """A step follows from the seed and its number."""
    mixture = Mixture((Turn(until=0.5), Turn(2.0)), (7, 500), batch=16, steps=50, seed=1)
    whole = drawn(mixture)
    for step in (49, 3, 25, 24):
        other = Mixture((Turn(until=0.5), Turn(2.0)), (7, 500), batch=16, steps=50, seed=1)
        assert list(zip(*(v.tolist() for v in other.items(step)), strict=True)) == whole[step]
    again = Mixture((Turn(until=0.5), Turn(2.0)), (7, 500), batch=16, steps=50, seed=2)
    assert not np.array_equal(again.items(3)[1], mixture.items(3)[1])
