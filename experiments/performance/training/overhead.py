"""Samples per second beside a bare loop over tensors in memory."""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.performance.training.measuring import SEED, TAU, THREADS, fresh
from experiments.performance.training.turns import fit_beside
from experiments.performance.training.workload import PHOTOS, make_store, sizes_of, train_settings, warm_files
from grafalign.encoders import load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import bank_rows
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
    """Blocks of steps of `fit` and of the bare loop in turns, in one process."""
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
    return fit_beside(bare.step, task, steps, settings, sizes)


def measure_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """With two processes that read tiles, and with none."""
    make_store(args.data, 'uint8')
    sizes = sizes_of(args.data)
    cases = [fresh(args, 'overhead', workers=workers) for workers in (THREADS, 0)]
    return {'settings': {'vision': sizes.vision, 'photos_per_tile': PHOTOS}, 'cases': cases}
