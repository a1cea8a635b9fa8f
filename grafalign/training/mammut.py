"""MaMMUT: images and texts compared as with two trained towers, and captions written by the same text decoder.

The loss is that of `two_towers` plus `caption_weight` times the mean cross entropy of the next tokens of all captions
of the whole batch: over all micro-batches and processes, so that every token counts alike wherever it is (Kuo et al.
2023). Captions depend on their own image alone, so they are written in the second pass only, behind the draws (dropout)
that the first one made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grafalign.encoders import Embeddings, FrozenClip, SatelliteEncoder, TilePreprocessing, tune
from grafalign.encoders.text_decoder import TextDecoder
from grafalign.store_marker import Sensor
from grafalign.training.processes import gather_rows
from grafalign.training.settings import TrainSettings
from grafalign.training.two_towers import MicroBatch, TwoTowerTask
from grafalign.training.vector_gradients import VectorGradients


class MammutTask(TwoTowerTask):
    """Aligns images with their texts and writes the texts; arguments as of `TwoTowerTask`, with a decoder."""

    text: TextDecoder

    def __init__(
        self, encoder: SatelliteEncoder, preprocess: TilePreprocessing, text: TextDecoder, settings: TrainSettings
    ) -> None:
        super().__init__(encoder, preprocess, text, settings)
        if not settings.caption_weight:
            for parameter in text.writing_parameters():
                parameter.requires_grad_(False)

    @classmethod
    def start(cls, clip: FrozenClip, sensor: Sensor, settings: TrainSettings) -> MammutTask:
        """A task whose encoder starts from CLIP's weights."""
        encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px, settings.fit)
        tune(encoder, settings.tune)
        for parameter in encoder.patch_head:
            parameter.requires_grad_(False)
        decoder = TextDecoder(clip, encoder.patch_proj.in_features, settings.decoder)
        return cls(encoder, TilePreprocessing(sensor, clip), decoder, settings)

    def prepare(self, batches: Sequence[MicroBatch], vectors: Sequence[tuple[Tensor, Tensor]]) -> list[MicroBatch]:
        """See `TwoTowerTask`; also counts the tokens of the whole batch."""
        prepared = super().prepare(batches, vectors)
        if not self.settings.caption_weight:
            return prepared
        own = sum(int((p['captions'][p['captioned'], 1:] >= 0).sum()) for p in batches)
        world = len(batches[0]['sizes'])
        count = torch.tensor([[float(own)]], dtype=torch.float64, device=batches[0]['captions'].device)
        count = gather_rows(count, [1] * world).sum().clamp(min=1)
        return [batch | {'caption_tokens': count} for batch in prepared]

    def without_gradients(self, batch: MicroBatch) -> MicroBatch:
        """See `TwoTowerTask`."""
        return super().without_gradients(batch) | {'caption_tokens': torch.ones((), dtype=torch.float64)}

    def _note(self, whole: VectorGradients) -> None:
        super()._note(whole)
        self.noted['contrastive_loss'] = whole.loss

    def _beside(self, found: Embeddings, batch: MicroBatch) -> Tensor:
        """This micro-batch's part of the caption loss, times the number of processes, whose mean is taken."""
        if not self.settings.caption_weight:
            return found.image.new_zeros(())
        counted, image = batch['captioned'], batch['captions_of']
        seen = self.text.look(self.encoder.tower.token_norm()(found.tokens))
        losses = self.text.caption_loss(batch['captions'], seen, image)
        if not bool(counted.any()):
            losses = 0 * losses  # other processes wait for its gradients
        share = self.settings.caption_weight * len(batch['sizes']) / batch['caption_tokens']
        self.noted['caption_loss'] = losses.detach() / (batch['captions'][:, 1:] >= 0).sum().clamp(min=1)
        return losses * share.to(losses.dtype)
