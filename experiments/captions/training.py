"""Training on captioned tiles with CLIP's own loss: the loop, start, views and settings are those of the photo runs.

Satellite encoder as in `AlignmentTask` at level `image`: from the same CLIP weights, all of it trained except the
patch head, which an image-level loss never reaches. The text tower stays as it is, as it does for the photos. In a
batch every other caption is a negative, also one of the very same words: that is CLIP's loss, and it is left plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.captions.places import SharedTiles
from grafalign.encoders import FrozenClip
from grafalign.store_marker import Sensor
from grafalign.training import SatelliteModel, TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.loop import Run, fit
from grafalign.training.order import shuffled
from grafalign.training.run_marker import RunMarker
from grafalign.training.steps import Steps
from grafalign.training.task import AlignmentTask, viewed
from grafalign.training.views import draw_views


class CaptionBatch(TypedDict):
    """B tiles with their captions; the rest as in `training.data.Batch`."""

    pixels: Tensor
    scale: Tensor
    offset: Tensor
    code: Tensor
    gain: Tensor
    text: Tensor
    """Unit text embeddings [B, D]."""


@dataclass
class CaptionSteps(Steps):
    """Steps over captioned tiles: one pass after another in ever new order, every batch full.

    A batch that is larger than the set, or lies across two passes, can hold a tile twice, in two views.
    """

    tiles: SharedTiles
    text: Tensor
    """Unit text embeddings [N, D]."""
    settings: TrainSettings

    def __len__(self) -> int:
        return 2**31 - 1

    def rows(self, step: int) -> np.ndarray:
        """Tiles of a step, [B]."""
        count, size = len(self.text), self.settings.batch_tiles
        passes, place = np.divmod(np.arange(step * size, (step + 1) * size), count)
        seed = self.settings.seed
        return np.concatenate([shuffled(place[passes == p], count, (seed, 0, int(p))) for p in np.unique(passes)])

    def __getitem__(self, step: int) -> CaptionBatch:
        rows = self.rows(step)
        rng = np.random.default_rng((self.settings.seed, 1, step))
        _, bands, size, _ = self.tiles.pixels.shape
        views = draw_views(rng, len(rows), bands, size, self.settings.augment)
        return CaptionBatch(
            pixels=torch.from_numpy(self.tiles.pixels[rows]),
            scale=torch.from_numpy(self.tiles.scale[rows]),
            offset=torch.from_numpy(self.tiles.offset[rows]),
            code=torch.from_numpy(views.code),
            gain=torch.from_numpy(views.gain),
            text=self.text[torch.from_numpy(rows)],
        )


class CaptionTask(nn.Module):
    """CLIP's symmetric loss of tiles and captions."""

    def __init__(self, start: AlignmentTask, settings: TrainSettings) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.settings = start.encoder, start.preprocess, settings

    def forward(self, batch: CaptionBatch) -> Tensor:
        """The loss of a batch."""
        found = self.encoder(viewed(self.preprocess, batch, self.settings.augment))
        return clip_loss(found.image, batch['text'], self.settings.tau)


def clip_loss(images: Tensor, texts: Tensor, tau: float) -> Tensor:
    """CLIP's loss (Radford et al., 2021, figure 3) of unit embeddings [B, D]; row i of both belong together."""
    logits = images @ texts.T / tau
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def encode_captions(clip: FrozenClip, captions: Sequence[str]) -> Tensor:
    """Unit text embeddings [N, D]; equal captions are encoded once."""
    different, which = np.unique(np.array(captions), return_inverse=True)
    parts = [clip.encode_text(different[i : i + 512].tolist()) for i in range(0, len(different), 512)]
    return torch.cat(parts)[torch.from_numpy(which)]


def train_on_captions(
    clip: FrozenClip, sensor: Sensor, tiles: SharedTiles, captions: Sequence[str], settings: TrainSettings
) -> SatelliteModel:
    """Train a satellite encoder on tiles and captions.

    Args:
        clip: the CLIP to start from; its text tower reads the captions.
        sensor: bands, size and value range of the tiles.
        tiles: N tiles.
        captions: their captions, [N].
        settings: length, batch, rate, temperature, views and seed; the log goes to `out`.

    Returns:
        The encoder. Its patch head is CLIP's own, never trained.
    """
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    start = AlignmentTask.start(clip, sensor, settings, torch.zeros(0, 0))
    steps = CaptionSteps(tiles, encode_captions(clip, captions), settings)
    assert settings.steps is not None
    fit(
        CaptionTask(start, settings),
        steps,
        settings.steps,
        settings.peak_lr,
        settings,
        make_accelerator(settings.precision),
        Run(settings.out, settings.digest),
    )
    marker = RunMarker(
        digest=settings.digest,
        tau=settings.tau,
        steps=settings.steps,
        clip=clip.settings,
        clip_digest=clip.digest,
        store_digest='',
        sensor=sensor,
    )
    return SatelliteModel(start.encoder.eval(), start.preprocess, clip, sensor, marker)
