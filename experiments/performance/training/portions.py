"""Time and memory by `micro_batch`, and the largest that `auto` finds."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from experiments.performance.training.measuring import fresh, peak_beyond
from experiments.performance.training.workload import make_store, sizes_of, train_settings, warm_files
from grafalign.encoders import load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training.data import PairSteps
from grafalign.training.loop import fit, make_accelerator
from grafalign.training.memory import kept_bytes, largest_micro_batch
from grafalign.training.task import AlignmentTask
from grafalign.training.trainer import bank_rows


def portion_case(data: Path, micro_batch: int, bank: int) -> dict[str, Any]:
    """Three steps in portions of this size: the last two are timed; memory is the rise since before the first."""
    sizes = sizes_of(data)
    settings, task, steps_of = _portion_task(data, micro_batch, bank)
    steps = steps_of(micro_batch)
    accelerator, log = make_accelerator('no'), []
    cpu: list[float] = []

    def note(model: torch.nn.Module) -> dict[str, float]:
        cpu.append(time.process_time())
        return {}

    def work() -> None:
        log.extend(fit(task, steps, 3, settings.peak_lr, settings, accelerator, validate=note, validate_every=1))

    _, extra_mb = peak_beyond(work)
    batch = sizes.big_batch
    return {
        'ms_per_tile': [round(e['step_ms'] / batch, 3) for e in log[1:]],
        'cpu_ms_per_tile': [round(1000 * (b - a) / batch, 3) for a, b in itertools.pairwise(cpu)],
        'extra_mb': extra_mb,
        'state_mb': round(16 * sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6, 1),
    }


def auto_case(data: Path, bank: int) -> dict[str, Any]:
    """What `micro_batch: auto` finds where the batch has no end, and what it goes by."""
    _, task, steps_of = _portion_task(data, sizes_of(data).big_batch, bank)

    def forward(tiles: int) -> Tensor:
        loss: Tensor = task(steps_of(tiles)[0])
        return loss

    free = psutil.virtual_memory().available
    found = largest_micro_batch(forward, 10**9, task.train(), torch.device('cpu'))
    each = kept_bytes(forward, 2) - kept_bytes(forward, 1)
    return {'found': found, 'kept_mb_per_tile': round(each / 1e6, 3), 'free_gb': round(free / 1e9, 2)}


def _portion_task(data: Path, micro_batch: int, bank: int) -> tuple[Any, Any, Callable[[int], Any]]:
    """Settings, task, and the steps in portions of a given size."""
    changes = {'negatives': {'bank': bank}} if bank else {}
    batch = sizes_of(data).big_batch
    settings = train_settings(data, batch_tiles=batch, micro_batch=micro_batch, workers=0, log_every=1, **changes)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    known = load_bank(store, None, clip)
    task = AlignmentTask.start(clip, store.sensor, settings, bank_rows(known, torch.device('cpu')))
    return settings, task, lambda tiles: PairSteps(store, known, settings, None, tiles, side=task.encoder.side)


def measure_portions(args: argparse.Namespace) -> dict[str, Any]:
    """Every size of a portion with and without negatives from the bank, in turns; then what `auto` finds."""
    sizes = sizes_of(args.data)
    make_store(args.data, 'uint8')
    warm_files(args.data / 'store_uint8')
    cases = [
        fresh(args, 'portion', micro_batch=size, bank=bank) | {'turn': turn}
        for turn in range(sizes.turns - 1)
        for bank in (0, sizes.bank)
        for size in sizes.portions
    ]
    auto = [fresh(args, 'auto', bank=bank) for bank in (0, sizes.bank)]
    return {'settings': {'vision': sizes.vision, 'batch': sizes.big_batch}, 'cases': cases, 'auto': auto}
