"""Samples per second beside a bare loop over tensors in memory."""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from experiments.performance.training.measuring import SEED, TAU, THREADS, Spent, cpu_of, fresh, timed
from experiments.performance.training.workload import PHOTOS, make_store, sizes_of, train_settings, warm_files
from grafalign.encoders import load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import bank_rows
from grafalign.training.loop import Run, Validation, fit
from grafalign.training.optimizer import make_optimizer
from grafalign.training.task import AlignmentTask, viewed


class BareLoop:
    """The yardstick: batches that are tensors in memory already, a dense loss, AdamW, and nothing else."""

    def __init__(self, encoder: torch.nn.Module, batches: list[tuple[Tensor, Tensor]], optimizer: Any) -> None:
        self.encoder, self.batches, self.optimizer, self.steps = encoder.train(), batches, optimizer, 0

    def step(self) -> None:
        """Photos `PHOTOS * i` to `PHOTOS * (i + 1) - 1` are those of tile i."""
        images, photos = self.batches[self.steps % len(self.batches)]
        logs = (self.encoder(images).image @ photos.T / TAU).log_softmax(1)
        tile = torch.arange(len(images)).repeat_interleave(PHOTOS)
        loss = -logs[tile, torch.arange(len(photos))].mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1


def overhead_case(data: Path, workers: int) -> dict[str, Any]:
    """Blocks of steps of `fit` and of the bare loop in turns, in one process.

    `fit` calls its validation after every block, outside its own clock: there the other loop has its turn, while the
    processes that read tiles are held still, so that neither loop gets the other's processor time.
    """
    sizes = sizes_of(data)
    settings = train_settings(data, workers=workers, log_every=sizes.block)
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    bank, device = load_bank(store, None, clip), torch.device('cpu')
    warm_files(settings.store)
    torch.manual_seed(SEED)
    task = AlignmentTask.start(clip, store.sensor, settings, bank_rows(bank, device))
    steps = PairSteps.of_store(store, bank, settings, side=task.encoder.side)
    batches = []
    for batch in (steps[n] for n in range(4)):
        photos = torch.from_numpy(bank.embeddings[batch['candidates'][batch['photo']].numpy()]).float()
        batches.append((viewed(task.preprocess, batch, settings.augment), photos))
    encoder = copy.deepcopy(task.encoder)
    bare = BareLoop(encoder, batches, make_optimizer(encoder, settings.peak_lr, settings.weight_decay, device))
    family = psutil.Process()
    blocks: dict[str, list[Spent]] = {'ours': [], 'bare': []}
    mark = time.perf_counter(), sum(cpu_of(family))

    def turn(model: torch.nn.Module) -> dict[str, float]:
        nonlocal mark
        ended = time.perf_counter(), sum(cpu_of(family))
        blocks['ours'].append(Spent(ended[0] - mark[0], ended[1] - mark[1]))
        readers = family.children()
        for reader in readers:
            reader.suspend()
        with torch.enable_grad():
            blocks['bare'].append(timed(lambda: [bare.step() for _ in range(sizes.block)]))
        for reader in readers:
            reader.resume()
        mark = time.perf_counter(), sum(cpu_of(family))
        return {}

    total = sizes.block * (2 * sizes.turns + 1)
    accelerator = make_accelerator('no')
    run, measured = Run(settings.out, ''), Validation(turn, sizes.block)
    log = fit(task, steps, total, settings.peak_lr, settings, accelerator, run, measured)
    shutil.rmtree(settings.out)
    later = {k: v[1:] for k, v in blocks.items()}  # in the first block processes start
    return {
        'steps_per_block': sizes.block,
        'batch': sizes.batch,
        'spent': later,
        'data_share': statistics.median(e['data_ms'] / e['step_ms'] for e in log[1:]),
    }


def measure_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """With two processes that read tiles, and with none."""
    make_store(args.data, 'uint8')
    sizes = sizes_of(args.data)
    cases = [fresh(args, 'overhead', workers=workers) for workers in (THREADS, 0)]
    return {'settings': {'vision': sizes.vision, 'photos_per_tile': PHOTOS}, 'cases': cases}
