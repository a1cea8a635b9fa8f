"""What is trained: the satellite encoder together with the loss, as one module that takes a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from grafalign.encoders import FrozenClip, PixelRule, SatelliteEncoder
from grafalign.store import Sensor
from grafalign.training.augment import move, symmetry
from grafalign.training.data import Batch
from grafalign.training.objective import image_loss, patch_loss


class AlignmentTask(nn.Module):
    """Aligns satellite tiles with photos.

    Args:
        encoder: the satellite encoder.
        rule: how stored pixels become its input.
        level: `image` or `patch`.
        tau: temperature.
    """

    def __init__(
        self, encoder: SatelliteEncoder, rule: PixelRule, level: Literal['image', 'patch'], tau: float
    ) -> None:
        super().__init__()
        self.encoder, self.rule, self.level, self.tau = encoder, rule, level, tau
        # the head that the other level would train gets no gradient; say so, for the optimizer and for DDP
        unused = [encoder.patch_norm, encoder.patch_proj] if level == 'image' else [encoder.visual.ln_post]
        for module in unused:
            module.requires_grad_(False)
        if level == 'patch':
            encoder.visual.proj.requires_grad_(False)

    @classmethod
    def start(cls, clip: FrozenClip, sensor: Sensor, level: Literal['image', 'patch'], tau: float) -> AlignmentTask:
        """A task whose encoder starts from CLIP's weights."""
        encoder = SatelliteEncoder(clip, len(sensor.bands), sensor.size_px)
        return cls(encoder, PixelRule(sensor, clip), level, tau)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of one process's share of a batch."""
        images = augmented(self.rule, batch)
        embeddings = self.encoder(images)
        embeddings = type(embeddings)(*(e.float() for e in embeddings))  # the softmax is taken in full precision
        pairs = batch['photos'], batch['tile'], batch['photo'], batch['weight'], self.tau
        if self.level == 'image':
            return image_loss(embeddings, *pairs)
        which = batch['symmetry'][batch['tile']]
        rows, cols = move(batch['row'], batch['col'], which, images.shape[-1])
        return patch_loss(embeddings, *pairs, rows, cols, self.encoder.patch_px)


def augmented(rule: PixelRule, batch: Batch) -> Tensor:
    """Normalised input [b, C, H, W] of a batch with its jitter and symmetries applied."""
    scale, offset = batch['scale'] * batch['gain'], batch['offset'] * batch['gain']
    images: Tensor = rule(batch['pixels'], scale, offset)
    return symmetry(images, batch['symmetry']) if bool(torch.any(batch['symmetry'] > 0)) else images
