"""`fit` and another loop in turns, in one process."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from experiments.performance.training.measuring import Spent, cpu_of, timed
from experiments.performance.training.workload import Sizes
from grafalign.training import TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.loop import Run, Validation, fit
from grafalign.training.steps import Steps
from grafalign.training.task import AlignmentTask


def fit_beside(
    step: Callable[[], Any], task: AlignmentTask, steps: Steps, settings: TrainSettings, sizes: Sizes
) -> dict[str, Any]:
    """Blocks of steps of `fit` and of a bare loop, one after the other.

    `fit` calls its validation after every block, outside its own clock: there the other loop has its turn, while the
    processes that read data are held still, so that neither loop gets the other's processor time.

    Args:
        step: makes one step of the bare loop.
        task: what `fit` trains.
        steps: what `fit` trains on.
        settings: those of the run; its folder is removed at the end.
        sizes: steps of a block, and turns.

    Returns:
        Wall and processor seconds of the blocks but the first, in which processes start, and the share of the time that
        `fit` waits for data.
    """
    family = psutil.Process()
    blocks: dict[str, list[Spent]] = {'ours': [], 'bare': []}
    mark = time.perf_counter(), sum(cpu_of(family))

    def turn(_model: torch.nn.Module) -> dict[str, float]:
        nonlocal mark
        ended = time.perf_counter(), sum(cpu_of(family))
        blocks['ours'].append(Spent(ended[0] - mark[0], ended[1] - mark[1]))
        readers = family.children()
        for reader in readers:
            reader.suspend()
        with torch.enable_grad():
            blocks['bare'].append(timed(lambda: [step() for _ in range(sizes.block)]))
        for reader in readers:
            reader.resume()
        mark = time.perf_counter(), sum(cpu_of(family))
        return {}

    total = sizes.block * (2 * sizes.turns + 1)
    measured = Validation(turn, sizes.block)
    log = fit(task, steps, total, settings.peak_lr, settings, make_accelerator('no'), Run(settings.out, ''), measured)
    shutil.rmtree(settings.out)
    return {
        'steps_per_block': sizes.block,
        'batch': sizes.batch,
        'spent': {k: v[1:] for k, v in blocks.items()},
        'data_share': statistics.median(e['data_ms'] / e['step_ms'] for e in log[1:]),
    }
