"""Map a function over independent units of work: with threads, processes, or a Dask cluster.

Units are written so that doing one twice is harmless and its result does not depend on who does it; then a worker that
dies costs time and changes nothing. At most twice as many units as workers are in flight: memory stays bounded however
long the list is. For processes and Dask the function and the units must be picklable, and results should be small.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from grafalign import console
from grafalign.errors import MachineError, RemoteError

Unit = TypeVar('Unit')
Result = TypeVar('Result')
Kind = Literal['threads', 'processes', 'dask']


@dataclass(frozen=True)
class Engine:
    """Who does the work."""

    kind: Kind = 'threads'
    workers: int | None = None
    """Threads or processes; the number of cores by default. Ignored for a Dask cluster that runs already."""
    scheduler: str | None = None
    """Address of a running Dask scheduler (`tcp://HOST:PORT`); a local cluster is started without one."""


def default_workers() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run(
    function: Callable[[Unit], Result], units: Iterable[Unit], engine: Engine | int | None = None
) -> Iterator[tuple[int, Result]]:
    """Apply `function` to every unit and yield `(index, result)` as each is done, in any order.

    An exception in a unit is raised here, after the units in flight have been waited for; units not yet started never
    start.

    Args:
        function: what to do; for processes and Dask a function of a module.
        units: the work.
        engine: who does it; a number means so many threads.

    Raises:
        GrafalignError: a worker process died, or the Dask cluster is not there.
    """
    engine = engine if isinstance(engine, Engine) else Engine(workers=engine)
    workers = engine.workers or default_workers()
    match engine.kind:
        case 'threads':
            yield from _with_pool(ThreadPoolExecutor(workers, thread_name_prefix='grafalign'), function, units, workers)
        case 'processes':
            # spawned, not forked: threads and open files of this process stay out of it
            spawn = multiprocessing.get_context('spawn')
            pool = ProcessPoolExecutor(workers, spawn, initializer=_end_with, initargs=(os.getpid(),))
            try:
                yield from _with_pool(pool, function, units, workers)
            except BrokenProcessPool:
                raise MachineError(
                    'A worker process died (killed, or out of memory); run the same command again, with fewer '
                    'workers if memory was short. What is finished is kept.'
                ) from None
        case 'dask':
            yield from _with_dask(engine, function, units, workers)


def in_order(
    function: Callable[[Unit], Result],
    units: Iterable[Unit],
    threads: int | None = None,
    begin: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Apply `function` to every unit in threads and yield the results in the order of the units.

    One more unit than threads is begun ahead, so few results wait at a time.

    Args:
        function: what to do.
        units: the work, taken as it is needed.
        threads: the number of cores by default.
        begin: what each thread does first.

    Example:
        >>> list(in_order(lambda x: 2 * x, [1, 2, 3]))
        [2, 4, 6]
    """
    threads = threads or default_workers()
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, 'grafalign', begin)
    try:
        for unit in units:
            waiting.append(pool.submit(function, unit))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with(parent: int) -> None:
    """In a worker process: end when the process that started it is gone, killed outright."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    console.quiet_libraries()


def _with_pool(
    pool: Executor, function: Callable[[Unit], Result], units: Iterable[Unit], workers: int
) -> Iterator[tuple[int, Result]]:
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


def _with_dask(
    engine: Engine, function: Callable[[Unit], Result], units: Iterable[Unit], workers: int
) -> Iterator[tuple[int, Result]]:
    try:
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        raise MachineError('The dask engine needs the package `distributed`; install grafalign[dask].') from None
    try:
        cluster = None if engine.scheduler else LocalCluster(workers, threads_per_worker=1, dashboard_address=None)
        client = Client(engine.scheduler or cluster, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise RemoteError(f'No Dask scheduler answers at {engine.scheduler} ({error}); start it first.') from None
    try:
        ahead = 2 * max(workers, len(client.scheduler_info()['workers']))
        source = enumerate(units)
        numbers: dict[Any, int] = {}

        def submit() -> list[object]:
            following = next(source, None)
            if following is None:
                return []
            # retries are for units that raise; those of a worker that died are given to another one anyway
            future = client.submit(function, following[1], pure=False)
            numbers[future.key] = following[0]
            return [future]

        going = as_completed([future for _ in range(ahead) for future in submit()])
        for future in going:
            yield numbers.pop(future.key), future.result()
            for more in submit():
                going.add(more)
    except Exception as error:  # distributed raises types of its own: KilledWorker, CommClosedError
        if not type(error).__module__.startswith('distributed'):
            raise
        raise RemoteError(
            f'The Dask cluster failed ({type(error).__name__}: {error}); mend it and run the same command again. What '
            'is finished is kept.'
        ) from None
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
