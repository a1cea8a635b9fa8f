"""Work in threads whose results come in the order of the work."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from grafalign import engine


def test_results_come_in_the_order_of_the_units_and_few_are_begun_ahead() -> None:
    """However long each takes; units are taken as results are, so an endless list is no matter."""
    taken = 0

    def units() -> itertools.count[int]:
        return itertools.count()

    def counted(number: int) -> int:
        nonlocal taken
        taken = max(taken, number)
        time.sleep(random.Random(number).random() / 500)
        return number * number

    for expected, result in zip(range(40), engine.in_order(counted, units(), 3), strict=False):
        assert result == expected * expected and taken <= expected + 5


def test_an_error_in_a_unit_is_raised_in_its_turn() -> None:
    """What came before it is yielded."""

    def divide(number: int) -> float:
        return 1 / (3 - number)

    results = engine.in_order(divide, range(10), 2)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
