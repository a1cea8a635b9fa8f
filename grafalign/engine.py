"""Map a function over independent units of work with a few threads.

Reading COGs, decoding JPEGs and numpy all release the interpreter lock, so threads do. At most twice as many units as
workers are in flight: memory stays bounded however long the list is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Unit = TypeVar('Unit')
Result = TypeVar('Result')


def default_workers() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run(
    function: Callable[[Unit], Result], units: Iterable[Unit], workers: int | None = None
) -> Iterator[tuple[int, Result]]:
    """Apply `function` to every unit and yield `(index, result)` as each is done, in any order.

    An exception in a unit is raised here, after the units in flight have been waited for; units not yet started never
    start.
    """
    workers = workers or default_workers()
    pool = ThreadPoolExecutor(workers, thread_name_prefix='grafalign')
    waiting: dict[Future[Result], int] = {}
    source = enumerate(units)
    try:
        exhausted = False
        while True:
            while not exhausted and len(waiting) < 2 * workers:
                try:
                    index, unit = next(source)
                except StopIteration:
                    exhausted = True
                    break
                waiting[pool.submit(function, unit)] = index
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
