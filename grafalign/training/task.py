"""What is trained: the satellite encoder together with the loss, as one module that takes a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders import Embeddings, FrozenClip, SatelliteEncoder, TilePreprocessing, tune
from grafalign.store_marker import Sensor
from grafalign.training.banks import JoinedBank
from grafalign.training.data import Batch
from grafalign.training.objective import (
    Candidates,
    Masks,
    Pairs,
    contrastive_loss,
    photo_to_tile_loss,
    sigmoid_loss,
)
from grafalign.training.placement import Where, attend, place
from grafalign.training.processes import gather_rows
from grafalign.training.self_labels import label_loss
from grafalign.training.settings import TrainSettings
from grafalign.training.views import AugmentSettings, footprint, look, symmetry, veil
from grafalign.training.word_anchors import WordAnchors

LARGEST_SCALE = math.log(100)
"""CLIP's bound: tau is never learned to be less than 0.01."""


class AlignmentTask(nn.Module):
    """Aligns satellite tiles with photos.

    Args:
        encoder: the satellite encoder.
        preprocessing: how stored pixels become its input.
        settings: level, form, temperature, masks, placement.
        bank: embeddings of photos and texts [P, D], of any float type, on any device: no part of the module's state.
        gsd_m: ground size of a pixel.
        places: where the photos are, metres in space [P, 3]; needed for `masks.within_m` only.
        label_vectors: of the words of `self_labels`, [K, D].
        word_anchors: where the settings ask for them.
        teacher: encoder of the run of `placement.attention`: no part of the module's state.
    """

    def __init__(
        self,
        encoder: SatelliteEncoder,
        preprocess: TilePreprocessing,
        settings: TrainSettings,
        bank: Tensor | JoinedBank,
        gsd_m: float,
        label_vectors: Tensor | None = None,
        word_anchors: WordAnchors | None = None,
        teacher: SatelliteEncoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.preprocess, self.settings, self.gsd_m = encoder, preprocess, settings, gsd_m
        self._bank = [bank]  # in a list: neither moved nor broadcast with the module
        self._looked_up: Candidates | None = None
        self._label_vectors, self._word_anchors, self._teacher = label_vectors, word_anchors, [teacher]
        # of one element each, as FSDP shards no scalars
        self.log_scale = nn.Parameter(torch.tensor([-math.log(settings.tau)]), requires_grad=settings.learn_tau)
        self.bias = nn.Parameter(torch.tensor([settings.bias]), requires_grad=settings.form == 'sigmoid')
        self.noted: dict[str, Tensor] = {}
        """What the last batch showed besides its loss, for the log."""

    @classmethod
    def start(
        cls,
        clip: FrozenClip,
        sensor: Sensor,
        settings: TrainSettings,
        bank: Tensor | JoinedBank,
        start: tuple[SatelliteEncoder, Tensor] | None = None,
        word_anchors: WordAnchors | None = None,
        teacher: SatelliteEncoder | None = None,
    ) -> AlignmentTask:
        """A task whose encoder starts from CLIP's weights; `sensor` names the bands that are used.

        With `start`, from those of a run's encoder, and with the vectors of the words of its labels.

        What gets no gradient at this level (the other level's head) is frozen: the optimizer and DDP must know.
        """
        encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px, settings.fit)
        if start is not None:
            encoder.load_state_dict(start[0].state_dict())
        tune(encoder, settings.tune)
        vectors = None if start is None else start[1]
        preprocess = TilePreprocessing(sensor, clip)
        task = cls(encoder, preprocess, settings, bank, sensor.gsd_m, vectors, word_anchors, teacher)
        level = 'both' if settings.self_labels is not None else settings.level
        for parameter in {'image': encoder.patch_head, 'patch': encoder.image_head, 'both': []}[level]:
            parameter.requires_grad_(False)
        return task

    @property
    def tau(self) -> float:
        """The temperature now."""
        return math.exp(-float(self._bounded_scale().detach()))

    def _bounded_scale(self) -> Tensor:
        """The logarithm of 1 / tau, [1]; one that is learned is brought back within its bound first."""
        if self.settings.learn_tau:
            with torch.no_grad():
                self.log_scale.clamp_(max=LARGEST_SCALE)
        return self.log_scale

    def forward(self, batch: Batch | tuple[Tensor, Tensor, Tensor]) -> Any:
        """The loss of a micro-batch; or, given pixels, scale and offset alone, their `Embeddings`.

        Both go through here, as wrappers that shard or compile a module act on its `forward`.
        """
        if self.settings.learn_tau:
            self.noted['tau'] = torch.exp(-self.log_scale.detach())
        if self.settings.form == 'sigmoid':
            self.noted['bias'] = self.bias.detach().clone()
        if not isinstance(batch, dict):
            return self.encoder(self.preprocess(*batch))
        images = viewed(self.preprocess, batch, self.settings.augment)
        found = self.encoder(images, batch['keep'] if batch['keep'].shape[1] else None)
        teacher_patches = self._teacher_patches(images)
        with torch.autocast(images.device.type, enabled=False):  # the softmax is taken in full precision
            return self._loss(
                found._replace(image=found.image.float(), patches=found.patches.float()), teacher_patches, batch
            )

    def _teacher_patches(self, images: Tensor) -> Tensor | None:
        """Patches as the run of `placement.attention` embeds them, [B, side, side, D]; None without it."""
        teacher = self._teacher[0]
        if teacher is None:
            return None
        with torch.no_grad():
            return teacher(images).patches.float()

    def _loss(self, found: Embeddings, teacher_patches: Tensor | None, batch: Batch) -> Tensor:
        settings = self.settings
        scale = self._bounded_scale().exp()
        candidates = self._candidates(batch['candidates'], found.image)
        losses = []
        if settings.level != 'patch':
            of_photos, of_texts = self._whole(found.image * scale, candidates, batch)
            pairs = Pairs(batch['tile'], batch['photo'], batch['weight'])
            loss = self._with_words(of_photos, found.image, candidates, pairs, batch) + of_texts
            if settings.photo_to_tile:
                loss = loss + settings.photo_to_tile * self._reverse(found.image * scale, candidates, batch)
            if settings.self_labels is not None:
                loss = loss + settings.self_labels.weight * self._of_labels(found.patches, batch)
            losses.append(loss)
        if settings.level != 'image':
            anchors = self._placed(found.patches, teacher_patches, candidates, batch)
            rows = torch.arange(len(anchors), device=anchors.device)
            pairs = Pairs(rows, batch['photo'], batch['weight'])
            cells = []
            if settings.masks.same_tile:
                cells.append(_by_pair(batch['listed'], batch['tile'], len(found.image)))
            if settings.masks.within_m is not None:
                cells.append(batch['near'])
            loss = self._contrast(anchors * scale, candidates, pairs, cells)
            losses.append(self._with_words(loss, anchors, candidates, pairs, batch))
        if len(losses) == 1:
            return losses[0]
        return (1 - settings.patch_share) * losses[0] + settings.patch_share * losses[1]

    def _candidates(self, rows: Tensor, like: Tensor) -> Candidates:
        """The candidates of a step: looked up in the bank once for all its micro-batches and both levels."""
        if self._looked_up is None or not torch.equal(self._looked_up.rows, rows):
            self._looked_up = Candidates(self._bank[0], rows).looked_up(like)
        return self._looked_up

    def _of_labels(self, patches: Tensor, batch: Batch) -> Tensor:
        """The loss of labelled patches."""
        how = self.settings.self_labels
        if how is None or self._label_vectors is None:
            return patches.new_zeros(())
        labels = batch['labels']
        if self.settings.augment.symmetry:
            labels = symmetry(labels[:, None], batch['code'])[:, 0]
        loss = label_loss(patches, labels, self._label_vectors.to(patches), how.tau, batch['labelled'].sum())
        self.noted['label_loss'] = loss.detach()
        return loss

    def _whole(self, scaled: Tensor, candidates: Candidates, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses of whole images: photos are held against photos, and texts against texts.

        CLIP's photos and texts lie in two cones: to tell one from the other would teach nothing of their content, and
        a photo that shows what a text says is none of its negatives.
        """
        count, photos = len(candidates), int(batch['photos'])
        masks, cells = self.settings.masks, []
        if masks.same_tile:
            cells.append(batch['listed'])
        if masks.within_m is not None:
            pair, near = batch['near']
            cells.append(torch.stack([batch['tile'][pair], near]))
        if photos in (0, count):
            pairs = Pairs(batch['tile'], batch['photo'], batch['weight'])
            loss = self._contrast(scaled, candidates, pairs, cells)
            none = torch.zeros_like(loss)
            return (loss, none) if photos else (none, loss)
        losses = []
        for first, last in ((0, photos), (photos, count)):
            mine = (batch['photo'] >= first) & (batch['photo'] < last)
            tiles, row = torch.unique(batch['tile'][mine], return_inverse=True)
            pairs = Pairs(row, batch['photo'][mine] - first, batch['weight'][mine])
            at = torch.full((len(scaled),), -1, dtype=torch.int64, device=scaled.device)
            at[tiles] = torch.arange(len(tiles), device=scaled.device)
            some = [
                torch.stack([at[tile], candidate - first])[
                    :, (at[tile] >= 0) & (candidate >= first) & (candidate < last)
                ]
                for tile, candidate in cells
            ]
            losses.append(self._contrast(scaled[tiles], candidates.part(first, last), pairs, some))
        return losses[0], losses[1]

    def _with_words(self, loss: Tensor, anchors: Tensor, candidates: Candidates, pairs: Pairs, batch: Batch) -> Tensor:
        """The loss with its share of word anchors, if there are any; texts of captions are none of their photos."""
        if self._word_anchors is None or self.settings.word_anchors is None:
            return loss
        photo = pairs.candidate < int(batch['photos'])
        of_words = self._word_anchors.loss(anchors, candidates, Pairs(*(v[photo] for v in pairs)))
        self.noted['words_loss'] = of_words.detach()
        weight = self.settings.word_anchors.weight
        return (1 - weight) * loss + weight * of_words

    def _contrast(self, scaled: Tensor, candidates: Candidates, pairs: Pairs, cells: list[Tensor]) -> Tensor:
        """The loss in the form that is wanted; `cells` are rows and candidates that a mask names, [2, M] each."""
        row, candidate = torch.cat(cells, 1) if cells else (None, None)
        listed = None if row is None or candidate is None else (row, candidate)
        masks = Masks(listed, self.settings.masks.closer_than)
        if self.settings.form == 'sigmoid':
            return sigmoid_loss(scaled, self.bias[0], candidates, pairs, masks)
        return contrastive_loss(scaled, candidates, pairs, masks)

    def _reverse(self, scaled: Tensor, candidates: Candidates, batch: Batch) -> Tensor:
        """The photo -> tile loss of the whole batch, computed in every process with gradients for its own tiles.

        The mean over processes of these gradients is 1/W of the batch's, hence the factor.
        """
        sizes = batch['sizes'].tolist()
        # a tile that could not be read has no pairs of its own, and is none that a photo could find
        read = torch.bincount(batch['tile'], minlength=len(scaled)).clamp_max(1).to(scaled.dtype)
        everyone = gather_rows(torch.cat([scaled, read[:, None]], dim=1), sizes)
        there = everyone[:, -1].detach() > 0.5
        number = there.cumsum(0) - 1
        tile, photo = batch['whole'][:, there[batch['whole'][0]]]
        loss = photo_to_tile_loss(everyone[there, :-1], candidates, Pairs(number[tile], photo, batch['weight']))
        return loss.detach() + (loss - loss.detach()) * len(sizes)

    def _placed(self, patches: Tensor, teacher_patches: Tensor | None, candidates: Candidates, batch: Batch) -> Tensor:
        """One anchor for each pair: the mean of its tile's patches under its photo's weights, unit length, [n, D]."""
        settings, side = self.settings, patches.shape[1]
        tile = batch['tile']
        reach = settings.placement.reach_m / self.gsd_m * batch['zoom']
        where = Where(batch['row'], batch['col'], batch['sigma_px'], batch['heading'], batch['field_of_view'], reach)
        covered = None
        if settings.augment.resamples:
            covered = footprint(batch['matrix'], batch['shift'], self.encoder.size_px, self.encoder.patch_px)[tile]
        weights = place(where, settings.placement, side, self.encoder.patch_px, covered)
        if len(tile):
            self.noted['mass_inside'] = weights.mass_inside.mean()
        # one matrix product a tile: pairs of a tile fill its rows, [b, most, side * side] x [b, side * side, D]
        count = torch.bincount(tile, minlength=len(patches))
        slot = torch.arange(len(tile), device=tile.device) - (count.cumsum(0) - count)[tile]
        most = int(count.max()) if len(count) else 0
        of_patches, attention = weights.patches, settings.placement.attention
        if teacher_patches is not None and attention is not None:
            photos = teacher_patches.new_zeros(len(teacher_patches), most, teacher_patches.shape[-1])
            photos[tile, slot] = candidates.take(batch['photo'], teacher_patches)
            cosines = torch.bmm(photos, rearrange(teacher_patches, 'b h w d -> b d (h w)'))[tile, slot]
            of_patches = attend(of_patches, cosines.view_as(of_patches), attention.tau)
        table = patches.new_zeros(len(patches), most, side * side)
        table[tile, slot] = of_patches.flatten(1).to(table.dtype)
        mean = torch.bmm(table, rearrange(patches, 'b h w d -> b (h w) d'))[tile, slot]
        return functional.normalize(mean, dim=-1)


def _by_pair(listed: Tensor, tile: Tensor, tiles: int) -> Tensor:
    """From candidates listed by tile [2, M] to candidates listed by pair [2, M']."""
    order = torch.argsort(listed[0], stable=True)
    count = torch.bincount(listed[0], minlength=tiles)
    mine = count[tile]
    pair = torch.repeat_interleave(torch.arange(len(tile), device=tile.device), mine)
    within = torch.arange(len(pair), device=tile.device) - (mine.cumsum(0) - mine)[pair]
    first = (count.cumsum(0) - count)[tile]
    return torch.stack([pair, listed[1][order[first[pair] + within]]])


def viewed(preprocess: TilePreprocessing, batch: Any, augment: AugmentSettings) -> Tensor:
    """Normalised input [b, C, H, W] of a batch, changed as the batch says."""
    scale, offset = batch['scale'] * batch['gain'], batch['offset'] * batch['gain']
    images = preprocess.unit(batch['pixels'], scale, offset)
    if augment.haze:
        images = veil(images, batch['haze'])
    images = (images - preprocess.get_buffer('mean')) / preprocess.get_buffer('std')
    if augment.band_dropout:
        images = images * batch['band'][:, :, None, None]  # 0 is the mean
    if augment.resamples:
        return look(images, batch['matrix'], batch['shift'])
    return symmetry(images, batch['code']) if augment.symmetry else images
