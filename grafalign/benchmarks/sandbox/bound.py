"""The supervised bound of one level as a piece of work of its own, which a run can leave to another process.

OUT/bound.safetensors    the encoder's weights and `class_vectors` [K, D]; made for the settings in its header
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.sandbox.supervised import train_supervised
from grafalign.config import Settings
from grafalign.encoders import FrozenClip, SatelliteEncoder, load_clip
from grafalign.files import replacing, write_atomically
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from grafalign.zeroshot import class_vectors

_VECTORS, _QUESTION = 'class_vectors', 'question'
Bound = tuple[SatelliteEncoder, npt.NDArray[np.float32]]
"""Encoder and unit class vectors [K, D]."""


class BoundSettings(Settings):
    """What a bound is trained on, and how."""

    out: Path
    level: Literal['image', 'patch']
    sandbox: Path
    store: Path
    train: TrainSettings
    """Of the run that it bounds: CLIP, batch, rate, augmentation."""
    steps: int
    per_class: int
    """Labelled tiles of each class, at image level."""
    seed: int

    @property
    def file(self) -> Path:
        """Where the bound is when it is trained."""
        return self.out / 'bound.safetensors'

    def question(self, clip: FrozenClip) -> str:
        """Names the bound by all that decides it."""
        places: dict[str, Any] = {'out': True, 'sandbox': True, 'store': True, 'train': {'out', 'store', 'bank'}}
        settings = self.model_dump_json(exclude=places)
        parts = (settings, PairStore(self.store).digest, clip.digest)
        return hashlib.blake2b(' '.join(parts).encode(), digest_size=16).hexdigest()

    def write(self) -> Path:
        """Leave the settings where the command finds them."""
        path = self.out / 'bound.yaml'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, yaml.safe_dump(self.model_dump(mode='json'), sort_keys=False).encode())
        return path


def bounds_of(
    runs: Mapping[str, TrainSettings],
    steps: Mapping[str, int],
    sandbox: Path,
    store: Path,
    folder: Path,
    per_class: int,
    seed: int,
) -> list[BoundSettings]:
    """One bound a level, as long as the first run of that level.

    Args:
        runs: settings of the runs, by name.
        steps: how long each was trained, or will be.
        sandbox: the world.
        store: what the runs learn from.
        folder: below it each bound has a folder.
        per_class: labelled tiles of each class, at image level.
        seed: of the labelled tiles and of the training.
    """
    made: dict[str, BoundSettings] = {}
    for name, settings in runs.items():
        for level in ('image', 'patch'):
            if settings.level in (level, 'both') and level not in made:
                made[level] = BoundSettings(
                    out=folder / f'supervised_{level}',
                    level=level,
                    sandbox=sandbox,
                    store=store,
                    train=settings,
                    steps=steps[name],
                    per_class=per_class,
                    seed=seed,
                )
    return list(made.values())


def train_bound(settings: BoundSettings) -> None:
    """Train a bound, unless it is there."""
    clip, store = load_clip(settings.train.clip), PairStore(settings.store)
    if load_bound(settings, clip) is not None:
        return
    truth = SandboxTruth(settings.sandbox, store)
    image = settings.level == 'image'
    tiles = truth.tiles('train', settings.per_class, settings.seed) if image else store_tiles(store, truth)
    train = settings.train.model_copy(update={'seed': settings.seed})
    torch.manual_seed(settings.seed)
    start = class_vectors(clip, truth.classes)
    encoder, vectors = train_supervised(clip, store.sensor, tiles, start, settings.steps, train.peak_lr, train)
    weights = {k: v.contiguous() for k, v in encoder.state_dict().items()} | {_VECTORS: torch.from_numpy(vectors)}
    settings.out.mkdir(parents=True, exist_ok=True)
    with replacing(settings.file) as part:
        save_file(weights, part, metadata={_QUESTION: settings.question(clip)})


def load_bound(settings: BoundSettings, clip: FrozenClip) -> Bound | None:
    """A bound that was trained with these settings; None where there is none."""
    if not settings.file.is_file():
        return None
    try:
        with safe_open(settings.file, framework='pt') as file:
            if (file.metadata() or {}).get(_QUESTION) != settings.question(clip):
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError:
        return None  # it is trained again
    sensor = PairStore(settings.store).sensor
    encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px)
    vectors = weights.pop(_VECTORS).numpy()
    encoder.load_state_dict(weights)
    return encoder.eval(), vectors


def store_tiles(store: PairStore, truth: SandboxTruth) -> LabelledTiles:
    """The training tiles of the store with a true label for every pixel."""
    rows = store.tiles_of('train')
    grid = truth.recipe.grid
    tiles = store.tiles.iloc[rows]
    boxes = [grid.geobox(int(e), t[2], t[5]) for e, t in zip(tiles['epsg'], tiles['transform'], strict=True)]
    pixels = np.stack([store.read_tile(int(i)) for i in rows])
    scale, offset = store.radiometry
    lonlat = tiles.geometry.representative_point().get_coordinates().to_numpy()
    return LabelledTiles(pixels, scale[rows], offset[rows], truth.label_maps(boxes).astype(np.int64), lonlat)
