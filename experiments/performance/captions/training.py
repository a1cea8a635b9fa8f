"""Training on captions beside a bare loop over tensors in memory."""

from __future__ import annotations

import copy
import itertools
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from experiments.performance.captions.shards import make_shards
from experiments.performance.training.measuring import SEED, TAU
from experiments.performance.training.turns import fit_beside
from experiments.performance.training.workload import FULL, make_clip
from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.encoders import ClipSettings, embed_texts, load_clip
from grafalign.training import TrainSettings
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.optimizer import make_optimizer
from grafalign.training.task import AlignmentTask, viewed

IMAGES = 4096


def training_case(data: Path, workers: int) -> dict[str, Any]:
    """Blocks of steps of `fit` on JPEGs with captions and of a bare loop, in turns, in one process."""
    folder = make_clip(data, FULL.vision)
    clip = load_clip(ClipSettings(model=str(folder)))
    import_captions(make_shards(data / f'shards{IMAGES}', IMAGES), data / 'set', ImportOptions())
    embed_texts(CaptionSet(data / 'set'), clip)
    values = {
        'data': str(data / 'set'), 'out': data / 'run', 'clip': {'model': str(folder)}, 'gsd_m': 1.0, 'steps': 1000,
        'batch_tiles': FULL.batch, 'micro_batch': FULL.batch, 'precision': 'no', 'workers': workers, 'trackers': [],
        'validate_every': 10**6, 'checkpoint_every': 10**6, 'log_every': FULL.block,
    }  # fmt: skip
    settings = TrainSettings.model_validate(values)
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    gathered = gather_data(settings, clip)
    torch.manual_seed(SEED)
    bank = gathered.bank(torch.device('cpu'))
    task = AlignmentTask.start(clip, gathered.sensor, settings, bank)
    steps = PairSteps(gathered.sources, settings, size_px=gathered.sensor.size_px)
    batches = []
    for batch in (steps[n] for n in range(4)):
        texts = bank[batch['candidates'][batch['photo']]].float()
        batches.append((viewed(task.preprocess, batch, settings.augment), texts))
    encoder = copy.deepcopy(task.encoder).train()
    optimizer = make_optimizer(encoder, settings.peak_lr, settings.weight_decay, torch.device('cpu'))

    turn = itertools.cycle(batches)

    def bare() -> None:
        images, texts = next(turn)
        loss = torch.nn.functional.cross_entropy(encoder(images).image @ texts.T / TAU, torch.arange(len(images)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    source = gathered.sources[0]
    began = time.process_time()
    for row in source.rows[:500]:
        source.pixels.read(int(row))
    read_cpu_ms = (time.process_time() - began) / 500 * 1e3
    spent = fit_beside(bare, task, steps, settings, FULL)
    ours, alone = ([block.wall_s for block in spent['spent'][name]] for name in ('ours', 'bare'))
    speeds = [round(b / o, 4) for o, b in zip(ours, alone, strict=True)]
    of_bare_ms = statistics.median(block.cpu_s for block in spent['spent']['bare']) / (FULL.block * FULL.batch) * 1e3
    return {
        'workers': workers,
        **spent,
        'speed_of_the_bare_loop': speeds,
        'median': statistics.median(speeds),
        'read_cpu_ms': round(read_cpu_ms, 3),
        'limit': round(of_bare_ms / (of_bare_ms + read_cpu_ms), 3),
    }
