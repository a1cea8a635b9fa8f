"""Is there room for data workers? Without it they die or wait for each other, and the training would wait for ever."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from grafalign.errors import MachineError

PREFETCHED = 4
"""Batches that a worker makes ahead."""
_OTHER_FILES = 64
"""Files that the process itself has open: libraries, shards, logs."""


def check_worker_room(steps: Any, item: int, workers: int) -> None:
    """Refuse data workers for which shared memory or file descriptors do not suffice.

    Every tensor of a batch goes through a file in /dev/shm, which stays open until it is used. A container has 64 MB
    there unless it is told otherwise.

    Args:
        steps: gives the batches.
        item: one of them, to see how large they are.
        workers: processes.

    Raises:
        GrafalignError: there is too little; the sentence says how much it takes.
    """
    tensors = [t for t in steps[item].values() if isinstance(t, Tensor)]
    ahead = PREFETCHED * workers + 1
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))  # all processes of a machine share it
    memory = processes * ahead * sum(t.nbytes for t in tensors)
    shm = Path('/dev/shm')
    free = shutil.disk_usage(shm).free if shm.is_dir() else memory
    if free < memory:
        raise MachineError(
            f'{workers} data workers need about {memory / 1e6:,.0f} MB in /dev/shm, which has {free / 1e6:,.0f} MB '
            'free: give the container more (docker run --shm-size), lower micro_batch, or set `workers: 0`.'
        )
    files = ahead * len(tensors) + _OTHER_FILES
    limit = _file_limit()
    if limit is not None and limit < files:
        raise MachineError(
            f'{workers} data workers need about {files:,} open files, and the limit is {limit:,}: raise it '
            '(ulimit -n), or set `workers: 0`.'
        )


def _file_limit() -> int | None:
    """Open files that this process may have; None where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else int(soft)
