"""Both towers trained: micro-batches whose gradients add up to that of the whole batch.

With several micro-batches a step is two passes. The first goes through both towers without gradients and collects the
vectors, which is all that crosses processes; `vector_gradients` makes the loss of the whole batch and the gradients of
its vectors, of temperature and bias. The second pass computes each micro-batch again, with the random numbers of the
first, and carries its vectors' gradients through the towers: the scalar sum(vectors * gradients) has the very gradient
of the loss. The last micro-batch of the first pass is kept with its graph and goes through the towers once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grafalign.encoders import Embeddings, FrozenClip, SatelliteEncoder, TilePreprocessing, tune
from grafalign.encoders.text_tower import TextTower, full_precision
from grafalign.store_marker import Sensor
from grafalign.training.objective import Pairs
from grafalign.training.processes import gather_rows
from grafalign.training.settings import TrainSettings
from grafalign.training.task import LARGEST_SCALE, viewed
from grafalign.training.vector_gradients import PairLoss, VectorGradients, vector_gradients

MicroBatch = dict[str, Any]
"""A micro-batch of `TokenSteps`."""


class TwoTowerTask(nn.Module):
    """Aligns images with their texts, both encoders being trained.

    Args:
        encoder: the satellite encoder.
        preprocess: how stored pixels become its input.
        text: the text tower: token ids [n, L] become unit vectors [n, D].
        settings: form, temperature, direction.
    """

    def __init__(
        self, encoder: SatelliteEncoder, preprocess: TilePreprocessing, text: nn.Module, settings: TrainSettings
    ) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.text, self.settings = encoder, preprocess, text, settings
        # of one element each, as FSDP shards no scalars
        self.log_scale = nn.Parameter(torch.tensor([-math.log(settings.tau)]), requires_grad=settings.learn_tau)
        self.bias = nn.Parameter(torch.tensor([settings.bias]), requires_grad=settings.form != 'softmax')
        self._loss = PairLoss(settings.form, settings.photo_to_tile, settings.gamma)
        self.noted: dict[str, Tensor] = {}
        """What the last batch showed besides its loss, for the log."""

    @classmethod
    def start(cls, clip: FrozenClip, sensor: Sensor, settings: TrainSettings) -> TwoTowerTask:
        """A task whose towers start from CLIP's weights."""
        encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px, settings.fit)
        tune(encoder, settings.tune)
        for parameter in encoder.patch_head:  # which the loss of whole images never reaches
            parameter.requires_grad_(False)
        return cls(encoder, TilePreprocessing(sensor, clip), TextTower(clip), settings)

    @property
    def tau(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    def forward(self, batch: MicroBatch | tuple[Tensor, Tensor, Tensor] | Tensor) -> Any:
        """What a micro-batch adds to the loss; everything that is asked of the towers goes through here.

        Args:
            batch: one of
                a micro-batch with what `prepare` made of it, or the only one of its step;
                a micro-batch with `vectors_only`, for its vectors and, with gradients, what they come from, which
                `made` hands in again;
                pixels, scale and offset, for their `Embeddings`;
                token ids, for the vectors of texts.
        """
        if isinstance(batch, Tensor):
            return self.text(batch)
        if isinstance(batch, tuple):
            return self.encoder(self.preprocess(*batch))
        images, texts, found = batch.get('made') or self._make(batch)
        if 'vectors_only' in batch:
            return (images, texts, found) if torch.is_grad_enabled() else (images, texts)
        if 'image_gradient' not in batch:
            batch = self.prepare([batch], [(images.detach(), texts.detach())])[0]
        return self._carry(images, texts, batch) + self._beside(found, batch)

    def _make(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Embeddings]:
        """Unit vectors of the images [b, D] and texts [k, D] of a micro-batch that count, and all of its images'."""
        pixels = viewed(self.preprocess, batch, self.settings.augment)
        found: Embeddings = self.encoder(pixels, batch['keep'] if batch['keep'].shape[1] else None)
        texts = self.text(batch['tokens'])
        own = batch['own'].tolist()
        # a row that does not count stays in the graph, as other processes wait for its gradients
        nothing = 0 * (found.image[own[0] :].sum() + texts[own[1] :].sum())
        return full_precision(found.image[: own[0]]) + nothing, texts[: own[1]] + nothing, found

    def _beside(self, found: Embeddings, batch: MicroBatch) -> Tensor:
        """What is learned of each micro-batch by itself besides the comparison: nothing here."""
        return found.image.new_zeros(())

    def prepare(self, batches: Sequence[MicroBatch], vectors: Sequence[tuple[Tensor, Tensor]]) -> list[MicroBatch]:
        """Micro-batches with the gradients of their vectors.

        Args:
            batches: all micro-batches of this process's share of a step.
            vectors: what `forward` gave for each with `vectors_only`.

        Returns:
            The micro-batches with `image_gradient`, `text_gradient`, `scale_gradient`, `bias_gradient` and `loss`.
        """
        if self.settings.learn_tau:
            with torch.no_grad():
                self.log_scale.clamp_(max=LARGEST_SCALE)
        images, texts = (torch.cat([v[i] for v in vectors]) for i in (0, 1))
        whole = self._whole(batches, images, texts)
        self._note(whole)
        world, prepared = len(batches[0]['sizes']), []
        first_image, first_text = self._begin(batches[0])
        for batch, (own_images, own_texts) in zip(batches, vectors, strict=True):
            last_image, last_text = first_image + len(own_images), first_text + len(own_texts)
            prepared.append(
                batch
                | {
                    'image_gradient': world * whole.images[first_image:last_image],
                    'text_gradient': world * whole.texts[first_text:last_text],
                    'scale_gradient': whole.log_scale,
                    'bias_gradient': whole.bias,
                    'loss': whole.loss,
                }
            )
            first_image, first_text = last_image, last_text
        return prepared

    def without_gradients(self, batch: MicroBatch) -> MicroBatch:
        """A micro-batch whose vectors have no gradients, to see how much memory it takes."""
        images, texts = batch['own'].tolist()
        width = self.encoder.patch_proj.out_features
        nothing = {k: torch.zeros(n, width) for k, n in (('image_gradient', images), ('text_gradient', texts))}
        scalars = {k: torch.zeros(1) for k in ('scale_gradient', 'bias_gradient')}
        return batch | nothing | scalars | {'loss': torch.zeros(())}

    def _whole(self, batches: Sequence[MicroBatch], images: Tensor, texts: Tensor) -> VectorGradients:
        """Loss of the step over all processes; images that could not be read have no pairs and are no negatives."""
        first = batches[0]
        read = torch.zeros(len(images), dtype=images.dtype, device=images.device)
        begin = 0
        for batch in batches:
            read[begin + batch['tile']] = 1
            begin += int(batch['own'][0])
        everyone = gather_rows(torch.cat([images, read[:, None]], dim=1), first['sizes'].tolist())
        all_texts = gather_rows(texts, first['text_sizes'].tolist())
        there = everyone[:, -1] > 0.5
        number = there.cumsum(0) - 1
        tile, text = first['whole'][:, there[first['whole'][0]]]
        weight = 1 / (len(everyone) * torch.bincount(tile, minlength=len(everyone))[tile].to(images.dtype))
        pairs = Pairs(number[tile], text, weight)
        of_read = vector_gradients(everyone[there, :-1], all_texts, self.log_scale, self.bias, pairs, self._loss)
        of_all = everyone.new_zeros(len(everyone), images.shape[1])
        of_all[there] = of_read.images.to(of_all.dtype)
        return VectorGradients(of_read.loss, of_all, of_read.texts, of_read.log_scale, of_read.bias)

    def _begin(self, batch: MicroBatch) -> tuple[int, int]:
        """Where this process's images and texts begin among those of all."""
        rank = torch.distributed.get_rank() if len(batch['sizes']) > 1 else 0
        return int(batch['sizes'][:rank].sum()), int(batch['text_sizes'][:rank].sum())

    def _carry(self, images: Tensor, texts: Tensor, batch: MicroBatch) -> Tensor:
        """A scalar with the value of this micro-batch's share of the loss and with its gradient."""
        share = batch['share'].to(images.dtype)
        carried = (images * batch['image_gradient']).sum() + (texts * batch['text_gradient']).sum()
        carried = carried + share * (self.log_scale * batch['scale_gradient']).sum()
        carried = carried + share * (self.bias * batch['bias_gradient']).sum()
        return carried + (share * batch['loss'] - carried).detach()

    def _note(self, whole: VectorGradients) -> None:
        if self.settings.learn_tau:
            self.noted['tau'] = torch.exp(-self.log_scale.detach())
        if self.settings.form != 'softmax':
            self.noted['bias'] = self.bias.detach().clone()
