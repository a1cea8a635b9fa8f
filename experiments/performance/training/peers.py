"""Samples per second beside open_clip's trainer and beside a loop that encodes photos in every step."""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from experiments.performance.training.measuring import MODULE, SEED, TAU, THREADS, Others, tell
from experiments.performance.training.watching import Line, per_sample, watch
from experiments.performance.training.workload import (
    PHOTOS,
    make_store,
    run_training,
    sizes_of,
    train_settings,
    warm_files,
)
from grafalign.encoders import SatelliteEncoder, TilePreprocessing, load_clip
from grafalign.store import PairStore
from grafalign.training.optimizer import make_optimizer

JPEGS, JPEG_SIZE = 256, (640, 480)


def make_jpegs(folder: Path) -> list[Path]:
    """Pictures of the size and the weight of photos on the web: smooth shapes with some texture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(SEED), [folder / f'{n:04d}.jpg' for n in range(JPEGS)]
    for path in paths:
        if path.is_file():
            continue
        shapes = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(JPEG_SIZE, Image.BICUBIC)
        texture = rng.normal(0, 12, (*JPEG_SIZE[::-1], 1))
        Image.fromarray((np.asarray(shapes) + texture).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


class PhotoTiles(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Tile and photo, both read for every sample, as in Sat2Cap's loader."""

    def __init__(self, store: Any, photos: list[Path], preprocess: Callable[[Any], Tensor]) -> None:
        self.store, self.photos, self.preprocess = store, photos, preprocess

    def __len__(self) -> int:
        return len(self.store.tiles)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:

        with Image.open(self.photos[item % len(self.photos)]) as photo:
            return torch.from_numpy(self.store.read_tile(item)), self.preprocess(photo.convert('RGB'))


def photo_loop(data: Path) -> dict[str, Any]:
    """The loop that encodes photos in every step: one JPEG a tile is decoded and goes through the frozen CLIP.

    As in Sat2Cap, but without its queue and its time and place codes, which only add to it.
    """
    sizes, settings = sizes_of(data), train_settings(data)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    encoder, preprocessing = SatelliteEncoder(clip, store.sensor.bands).train(), TilePreprocessing(store.sensor, clip)
    optimizer = make_optimizer(encoder, settings.peak_lr, settings.weight_decay, torch.device('cpu'))
    loader = torch.utils.data.DataLoader(
        PhotoTiles(store, make_jpegs(data / 'jpegs'), clip.preprocess),
        batch_size=sizes.batch,
        shuffle=True,
        num_workers=THREADS,
        drop_last=True,
    )
    scale, offset = torch.ones(sizes.batch, 3), torch.zeros(sizes.batch, 3)
    for step, (tiles, photos) in enumerate(loader, 1):
        with torch.no_grad():
            targets = clip.encode_images(photos)
        logits = encoder(preprocessing(tiles, scale, offset)).image @ targets.T / TAU
        loss = functional.cross_entropy(logits, torch.arange(sizes.batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f'step {step}/', flush=True)
        if step == sizes.steps:
            break
    return {}


def open_clip_command(data: Path, *more: str) -> list[str]:
    """open_clip's own trainer on its synthetic pictures and captions, with the same CLIP."""
    sizes = sizes_of(data)
    options = {
        'model': f'local-dir:{data / "clip"}',
        'dataset-type': 'synthetic',
        'train-num-samples': sizes.steps * sizes.batch,
        'batch-size': sizes.batch,
        'workers': THREADS,
        'device': 'cpu',
        'precision': 'fp32',
        'epochs': 1,
        'lr': 1e-5,
        'warmup': 2,
        'log-every-n-steps': 2,
        'logs': 'none',
        'name': f'open_clip_{time.time_ns()}',
    }
    flags = [part for name, value in options.items() for part in (f'--{name}', str(value))]
    return [sys.executable, '-m', 'open_clip_train.main', *flags, *more]


def measure_peers(args: argparse.Namespace) -> dict[str, Any]:
    """All of them in turns, each run a fresh process, timed by one clock from outside."""
    data, sizes = args.data, sizes_of(args.data)
    make_store(data, 'uint8')
    files = make_jpegs(data / 'jpegs')
    warm_files(data / 'store_uint8')
    locked = ('--lock-text', '--lock-text-freeze-layer-norm')  # it refuses the first without the second
    counts = r'Train Epoch: 0 \[ *([\d,]+)/'
    photos = [sys.executable, '-m', MODULE, '--data', str(data.parent), '--case', 'photo_loop', '{}']
    photos += ['--quick'] * args.quick
    runs: dict[str, Callable[[], list[Line]]] = {
        'ours': lambda: run_training(data, train_settings(data))[0],
        'ours, bank': lambda: run_training(data, train_settings(data, negatives={'bank': sizes.bank}))[0],
        'open_clip': lambda: watch(open_clip_command(data), counts, data),
        'open_clip, text tower locked': lambda: watch(open_clip_command(data, *locked), counts, data),
        'photo loop': lambda: watch(photos, r'step (\d+)/', data, sizes.batch),
    }
    found = []
    for turn in range(sizes.turns):
        for name, run in runs.items():
            others = Others()
            measured = per_sample(run(), sizes.warm_up * sizes.batch)
            found.append({'method': name, 'turn': turn, **measured, 'other_cpu_share': others.share()})
            tell(found[-1])
    weights = statistics.median(f.stat().st_size for f in files)
    settings = {'vision': sizes.vision, 'batch': sizes.batch, 'steps': sizes.steps, 'photos_per_tile': PHOTOS}
    versions = {p: importlib.metadata.version(p) for p in ('webdataset',)}
    more = {'bank': sizes.bank, 'jpeg_px': JPEG_SIZE, 'jpeg_bytes': weights, 'versions_of_peers': versions}
    return {'settings': settings | more, 'cases': found}
