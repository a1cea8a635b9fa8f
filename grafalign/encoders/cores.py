"""Run a network on all cores: on a CPU several inputs at once, each by one thread; on a GPU one after another.

torch by itself cuts every matrix product among its threads, which then wait for each other: beside other busy processes
they wait most of the time, for the one thread that the system did not let run. Threads that each have an input of their
own wait for nobody, and an input's numbers do not depend on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch

from grafalign import engine

Input = TypeVar('Input')
Output = TypeVar('Output')


def on_cores(
    network: Callable[[Input], Output], inputs: Iterable[Input], device: torch.device | str
) -> Iterator[Output]:
    """Apply a network to every input and yield what it gives, in order.

    Args:
        network: what to apply; it is called in threads, so gradients and autocast are its own affair.
        inputs: taken as they are needed; as many as there are cores, and one more, are held at a time.
        device: where the network is. On a CPU as many threads work as torch would take for one product
            (`torch.get_num_threads()`, which `OMP_NUM_THREADS` sets).

    Example:
        >>> list(on_cores(lambda x: 2 * x, [1, 2, 3], 'cpu'))
        [2, 4, 6]
    """
    threads = torch.get_num_threads() if torch.device(device).type == 'cpu' else 1
    if threads == 1:
        yield from map(network, inputs)
        return
    try:
        yield from engine.in_order(network, inputs, threads, partial(torch.set_num_threads, 1))
    finally:
        torch.set_num_threads(threads)  # or threads that begin later would have one
