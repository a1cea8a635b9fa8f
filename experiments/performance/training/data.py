"""Time that the training waits for tiles, from `grafalign train`'s own log, with warm and with cold files."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.performance.training.measuring import THREADS, Others, tell
from experiments.performance.training.watching import per_sample
from experiments.performance.training.workload import (
    PHOTOS,
    PX,
    RANGES,
    make_store,
    run_training,
    sizes_of,
    train_settings,
    warm_files,
)


def measure_data(args: argparse.Namespace) -> dict[str, Any]:
    """`grafalign train` with warm and with cold files, and without workers, so that all reading shows."""
    sizes = sizes_of(args.data)
    for dtype in RANGES:
        make_store(args.data, dtype)
    cases = [(d, c, THREADS) for d in RANGES for c in ('warm', 'cold')] + [('uint8', 'warm', 0)]
    found = []
    for turn in range(sizes.turns - 1):
        for dtype, cache, workers in cases:
            settings = train_settings(args.data, dtype, workers=workers)
            (warm_files if cache == 'warm' else cool_files)(settings.store)
            resident, others = resident_share(settings.store), Others()
            lines, log = run_training(args.data, settings)
            later = [e for e in log if e['step'] > sizes.warm_up] or log
            waited, spent = (sum(e[k] for e in later) for k in ('data_ms', 'step_ms'))
            found.append(
                {
                    'dtype': dtype,
                    'cache': cache,
                    'workers': workers,
                    'turn': turn,
                    'resident_share': resident,
                    'share': waited / spent,
                    'data_ms': waited / len(later),
                    'step_ms': spent / len(later),
                    'worst_window': max(e['data_ms'] / e['step_ms'] for e in later),
                    'first_window_data_ms': log[0]['data_ms'],
                    **per_sample(lines, sizes.warm_up * sizes.batch),
                    'line': lines[-1].text,
                    'other_cpu_share': others.share(),
                }
            )
            tell(found[-1])
    settings = {'batch': sizes.batch, 'steps': sizes.steps, 'warm_up': sizes.warm_up, 'vision': sizes.vision}
    bytes_per_step = {d: sizes.batch * 3 * PX * PX * np.dtype(d).itemsize for d in RANGES}
    return {'settings': {**settings, 'photos_per_tile': PHOTOS, 'bytes_per_step': bytes_per_step}, 'cases': found}


def cool_files(store: Path) -> None:
    """Ask the system to forget all shards; it does so for pages that are on the disk and in nobody's use."""
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(store: Path) -> float:
    """Share of the shards' pages that are in memory now (mincore)."""
    pages = there = 0
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:
            count = -(-len(mapped) // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * count)()
            start = ctypes.c_char.from_buffer(mapped)
            failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), flags)
            del start  # or the mapping could not be closed
            if failed:
                raise SystemExit('mincore failed')
            pages += count
            there += int(np.count_nonzero(np.frombuffer(flags, dtype=np.uint8) & 1))
    return round(there / pages, 4)
