"""Photos by their worth, and tiles by what is rare: other steps for the same trainer.

    agreement   a photo weighs exp(4 cos) of the angle between it and the mean of its tile's other photos, so that
                lunch, faces and views of something else fade
    teacher     the same with the embedding of its tile by a finished run
    balanced    tiles are drawn with the square root of the rarity of what their photos show (64 clusters)

Weights of a tile add up to what they were. Shuffled, they are given to other photos of the same training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2

from grafalign.encoders import FrozenClip
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import Batch, PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import fit
from grafalign.training.sources import Source
from grafalign.training.task import AlignmentTask

SHARPNESS, CLUSTERS, BATCH = 4.0, 64, 256
Floats = npt.NDArray[np.float32]


class WeightedSteps(PairSteps):
    """Steps in which photos have a weight, and tiles a chance.

    Args:
        source: the photos.
        settings: of the training.
        size_px: pixels along a tile's side.
        worth: weight of every pair, [N].
        chance: of every tile, adding up to 1, [n]; None to go through all of them.
    """

    def __init__(
        self, source: Source, settings: TrainSettings, size_px: int, worth: Floats, chance: Floats | None
    ) -> None:
        super().__init__([source], settings, size_px=size_px)
        self._worth, self._chance = worth, chance

    def __getitem__(self, item: int) -> Batch:
        batch = super().__getitem__(item)
        plan = self._plan(item)  # micro-batches are whole batches here
        worth = self._worth[plan.pair]
        mean = np.bincount(plan.owner, worth) / np.maximum(np.bincount(plan.owner), 1)
        batch['weight'] = batch['weight'] * torch.from_numpy((worth / mean[plan.owner]).astype(np.float32))
        return batch

    def _tiles(self, step: int) -> npt.NDArray[np.int64]:
        if self._chance is None:
            return super()._tiles(step)
        rng = np.random.default_rng((self.settings.seed, 79, step))
        return rng.choice(len(self._chance), self.settings.batch_tiles, replace=False, p=self._chance)


def agreement(photos: Floats, owner: npt.NDArray[np.int64], tiles: Floats | None) -> Floats:
    """Weight of every pair by the angle between its photo and the tile's other photos, or its tile's own embedding.

    Args:
        photos: unit vectors of the pairs' photos, [N, D].
        owner: tile of each pair, [N].
        tiles: unit vectors of the tiles [n, D]; None for the other photos.

    Worked example: of three photos of a tile, two equal and one at right angles to them, the two have a cosine of 0.7
    with the mean of the others and the third one of 0: weights of 16.9, 16.9 and 1.
    """
    if tiles is None:
        total = np.zeros((int(owner.max()) + 1, photos.shape[1]), dtype=np.float32)
        np.add.at(total, owner, photos)
        others = total[owner] - photos
        mean = others / np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-6)
    else:
        mean = tiles[owner]
    return np.asarray(np.exp(SHARPNESS * (mean * photos).sum(1)), dtype=np.float32)


def rarity(photos: Floats, owner: npt.NDArray[np.int64], seed: int) -> Floats:
    """Chance of every tile: the inverse square root of how many have photos like its own, [n]."""
    total = np.zeros((int(owner.max()) + 1, photos.shape[1]), dtype=np.float32)
    np.add.at(total, owner, photos)
    mean = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-6)
    _, cluster = kmeans2(mean, CLUSTERS, seed=seed, minit='++')
    chance = np.bincount(cluster)[cluster] ** -0.5
    return np.asarray(chance / chance.sum())


def train_weighted(
    settings: TrainSettings, clip: FrozenClip, arm: str, teacher: SatelliteModel | None
) -> tuple[AlignmentTask, list[dict[str, Any]]]:
    """Train with one of the arms, `ARM` or `ARM shuffled`; gives the task and its log."""
    torch.manual_seed(settings.seed)
    data = gather_data(settings, clip)
    bank, source = data.bank(torch.device('cpu')), data.sources[0]
    photos = bank[torch.from_numpy(source.candidate)].float().numpy()
    owner = np.repeat(np.arange(len(source.rows)), source.last - source.first)
    worth, chance = np.ones(len(photos), dtype=np.float32), None
    if arm == 'balanced':
        chance = rarity(photos, owner, settings.seed)
    else:
        tiles = None if teacher is None else tile_vectors(teacher, PairStore(settings.store), source.rows)
        worth = agreement(photos, owner, tiles)
    if arm.endswith('shuffled'):
        worth = np.random.default_rng((settings.seed, 83)).permutation(worth)
    task = AlignmentTask.start(clip, data.sensor, settings, bank)
    steps = WeightedSteps(source, settings, data.sensor.size_px, worth, chance)
    log = fit(task, steps, settings.steps or 0, settings.peak_lr, settings, make_accelerator(settings.precision))
    return task, log


def tile_vectors(model: SatelliteModel, store: PairStore, rows: npt.NDArray[np.int64]) -> Floats:
    """Unit embeddings of tiles of a store, [n, D]."""
    scale, offset = store.radiometry
    parts = []
    for some in np.array_split(rows, max(1, len(rows) // BATCH)):
        pixels = np.stack([store.read_tile(int(row)) for row in some])
        tensors = (torch.from_numpy(values) for values in (pixels, scale[some], offset[some]))
        parts.append(model.embed_images(model.preprocess(*tensors)).numpy())
    return np.concatenate(parts)
