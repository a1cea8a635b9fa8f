"""The supervised upper bound: the same encoder, start, length, augmentation and optimizer, but with true labels.

One learned unit vector a class takes the place of the text embeddings, so that a supervised model is evaluated by the
same code as the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles
from grafalign.encoders import FrozenClip, SatelliteEncoder, TilePreprocessing
from grafalign.labels import VOID
from grafalign.store_marker import Sensor
from grafalign.training.accelerator import make_accelerator
from grafalign.training.loop import fit
from grafalign.training.settings import LoopSettings
from grafalign.training.steps import Steps
from grafalign.training.task import viewed
from grafalign.training.views import AugmentSettings, draw_views, symmetry

_TAU = 0.07


class LabelBatch(TypedDict):
    """A step of supervised training; as `training.data.Batch`, with targets in place of photos."""

    pixels: Tensor
    scale: Tensor
    offset: Tensor
    code: Tensor
    gain: Tensor
    target: Tensor
    """Class shares: [B, K] of tiles, or [B, K, h, w] of patches; all zero where nothing is known."""


@dataclass
class LabelSteps(Steps):
    """Steps over labelled tiles; every class is drawn equally often for tiles, every tile for patches."""

    tiles: LabelledTiles
    targets: npt.NDArray[np.float32]
    """[N, K] or [N, K, h, w]."""
    batch_tiles: int
    seed: int
    augment: AugmentSettings
    """Symmetries and gain only: labels of patches are not resampled."""

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, step: int) -> LabelBatch:
        rng = np.random.default_rng((self.seed, 2, step))
        if self.targets.ndim == 2:
            labels = self.tiles.labels
            present = np.unique(labels)
            share = 1 / (len(present) * np.bincount(labels)[labels])
            rows = rng.choice(len(labels), self.batch_tiles, p=share / share.sum())
        else:
            rows = rng.integers(0, len(self.targets), self.batch_tiles)
        _, bands, size, _ = self.tiles.pixels.shape
        views = draw_views(rng, len(rows), bands, size, self.augment)
        return LabelBatch(
            pixels=torch.from_numpy(self.tiles.pixels[rows]),
            scale=torch.from_numpy(self.tiles.scale[rows]),
            offset=torch.from_numpy(self.tiles.offset[rows]),
            code=torch.from_numpy(views.code),
            gain=torch.from_numpy(views.gain),
            target=torch.from_numpy(self.targets[rows]),
        )


class SupervisedTask(nn.Module):
    """Cross-entropy of tiles or patches against learned class vectors."""

    def __init__(
        self,
        encoder: SatelliteEncoder,
        preprocess: TilePreprocessing,
        classes: npt.NDArray[np.float32],
        augment: AugmentSettings,
    ) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.augment = encoder, preprocess, augment
        self.vectors = nn.Parameter(torch.from_numpy(classes.copy()))

    def forward(self, batch: LabelBatch) -> Tensor:
        """Mean loss over labelled tiles or patches."""
        found = self.encoder(viewed(self.preprocess, batch, self.augment))
        target = batch['target']
        if target.ndim == 2:
            embeddings = found.image
        else:
            embeddings = found.patches.flatten(0, 2)
            if self.augment.symmetry:
                target = symmetry(target, batch['code'])
            target = target.permute(0, 2, 3, 1).flatten(0, 2)
        logits = embeddings @ functional.normalize(self.vectors, dim=-1).T / _TAU
        known = target.sum(-1)
        return -(target * logits.log_softmax(-1)).sum() / known.sum()


def train_supervised(
    clip: FrozenClip,
    sensor: Sensor,
    tiles: LabelledTiles,
    start: npt.NDArray[np.float32],
    steps: int,
    peak_lr: float,
    settings: LoopSettings,
) -> tuple[SatelliteEncoder, npt.NDArray[np.float32]]:
    """Train with labels.

    Args:
        clip: the CLIP to start from.
        sensor: bands, size and value range of the tiles.
        tiles: labelled tiles; labels [N], or maps [N, S, S] for patches.
        start: class vectors [K, D] to start from.
        steps: number of steps.
        peak_lr: learning rate.
        settings: batch size, decay, jitter and seed.

    Returns:
        The encoder and the learned unit class vectors [K, D].
    """
    encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px)
    augment = AugmentSettings(symmetry=settings.augment.symmetry, gain=settings.augment.gain)
    task = SupervisedTask(encoder, TilePreprocessing(sensor, clip), start, augment)
    if tiles.labels.ndim == 1:
        targets = np.eye(len(start), dtype=np.float32)[tiles.labels]
    else:
        targets = patch_shares(tiles.labels, len(start), encoder.patch_px)
    data = LabelSteps(tiles, targets, settings.batch_tiles, settings.seed, augment)
    fit(task, data, steps, peak_lr, settings, make_accelerator(settings.precision))
    task.cpu()
    return encoder.eval(), functional.normalize(task.vectors.detach(), dim=-1).numpy()


def patch_shares(labels: npt.NDArray[np.int64], classes: int, patch_px: int) -> npt.NDArray[np.float32]:
    """Share of each class among the labelled pixels of every patch: [N, S, S] to [N, K, h, w]."""
    n, size, _ = labels.shape
    side = size // patch_px
    blocks = labels.reshape(n, side, patch_px, side, patch_px).transpose(0, 1, 3, 2, 4).reshape(n, side, side, -1)
    counts = np.stack([(blocks == k).sum(-1) for k in range(classes)], axis=1).astype(np.float32)
    known = (blocks != VOID).sum(-1)[:, None]
    return np.asarray(counts / np.maximum(known, 1), dtype=np.float32)
