"""Batches: which images and candidates (photos, texts) each step sees, decided by the step's number alone.

The order of an epoch is a keyed shuffle (`training.order`), that of several sources a deal (`training.mixture`),
everything else that is random is drawn from (seed, step),
so the place in a training is two integers, epoch and step in it: resuming is exact and immediate. Every process of a
distributed run knows the whole batch, reads the pixels of its own tiles only, and gets the candidates of the *whole*
batch (and whatever else of the bank the step draws) as row numbers: all see the same negatives without talking to each
other. A tile here is any image, of a pair store or of a caption set, and a photo any candidate, photo or text.

An item of `PairSteps` is a micro-batch: the part of a process's share of a step that goes through the encoder at a
time.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign.encoders import PhotoBank, select_bands
from grafalign.errors import GrafalignError
from grafalign.store import PairStore
from grafalign.training.mixture import Mixture
from grafalign.training.near import Neighbours, earth_centred
from grafalign.training.order import shuffled
from grafalign.training.self_labels import NONE
from grafalign.training.settings import TrainSettings
from grafalign.training.sources import Source, store_source
from grafalign.training.steps import Steps
from grafalign.training.views import Views, draw_views, move, turn_headings, zoom_of

Integers = npt.NDArray[np.int64]


class Batch(TypedDict):
    """A micro-batch of b of a step's B tiles, with their n pairs, and all K candidates of the step."""

    pixels: Tensor
    """As stored, [b, C, H, W]."""
    scale: Tensor
    """[b, C]"""
    offset: Tensor
    """[b, C]"""
    code: Tensor
    """The view's symmetry, int64 [b]; see `training.views`."""
    matrix: Tensor
    """[b, 2, 2]"""
    shift: Tensor
    """[b, 2]"""
    gain: Tensor
    """[b, C]"""
    haze: Tensor
    """[b]"""
    band: Tensor
    """Bands that are not dropped, bool [b, C]."""
    keep: Tensor
    """Patches that the encoder sees, int64 [b, m]; none where it sees all."""
    candidates: Tensor
    """Rows of the bank: the photos of the whole batch, then the negatives from the bank; then texts likewise, [K]."""
    photos: Tensor
    """How many of the candidates are photos, int64 [1]; the others are texts."""
    tile: Tensor
    """Tile (0 to b - 1) of each pair, int64 [n]."""
    photo: Tensor
    """Position of its photo among the candidates, int64 [n]."""
    weight: Tensor
    """1 / (B N_i) times the number of processes, so that the mean over processes is the whole batch's loss, [n]."""
    row: Tensor
    """Place of the photo in the view, in pixels, [n]."""
    col: Tensor
    sigma_px: Tensor
    """Its standard deviation along each axis, in pixels of the view, [n]."""
    heading: Tensor
    """Radians clockwise from the top of the view, NaN where unknown, [n]."""
    field_of_view: Tensor
    """Radians across the photo, NaN where its camera tells none, [n]."""
    zoom: Tensor
    """Pixels of the view for each pixel of the tile, [n]."""
    listed: Tensor
    """Photos of the same tile: tile and candidate, int64 [2, M]; none where they are not masked."""
    near: Tensor
    """Pair and candidate that was taken near its photo, int64 [2, M]; none where they are not masked."""
    whole: Tensor
    """Tile (0 to B - 1) and candidate of all pairs of the batch, int64 [2, N]; none where an image's own are enough."""
    sizes: Tensor
    """Tiles of the batch in every process, int64 [W]."""
    bad: Tensor
    """Numbers of the images that could not be read; they have no pairs, int64 [x]."""
    labels: NotRequired[Tensor]
    """Words of the patches, before the view's symmetry, int64 [b, side, side]."""
    labelled: NotRequired[Tensor]
    """Labelled patches of the step, over the number of processes."""


@dataclass(frozen=True)
class Share:
    """Which process of how many."""

    rank: int = 0
    world: int = 1


class _Plan(NamedTuple):
    """What a step sees."""

    tiles: Integers
    """Rows in the list of training tiles, [B]."""
    pair: Integers
    """Rows in the list of pairs, [N], by tile."""
    owner: Integers
    """Tile (0 to B - 1) of each pair, [N]."""
    row: npt.NDArray[np.float32]
    """Place of each pair's photo in its view, [N]."""
    col: npt.NDArray[np.float32]
    views: Views
    keep: Integers
    candidates: Integers
    photos: int
    """How many of them are photos."""
    position: Integers
    """Of each pair's photo among the candidates, [N]."""
    neighbours: Neighbours | None
    """The candidates by place, where `masks.within_m` asks for it."""


class PairSteps(Steps):
    """The steps of a training; see `Steps` for how its micro-batches are numbered.

    Args:
        sources: what is trained on, with its rows of the joined bank; all of one sensor.
        settings: batch, negatives, masks, augmentation, seed.
        share: this process's share.
        micro_batch: tiles that go through the encoder at a time; the whole share by default.
        side: patches along each side of the encoder's grid, for patch dropout.
        size_px: pixels along each side of all images.
        mixture: deals the places of every batch among several sources; one source goes from epoch to epoch.
        labels: of the patches of all images, [N, side, side], where they have some (`self_labels`).
        places: of all photos of the bank, as `near.earth_centred` gives them, for `masks.within_m`.
    """

    def __init__(
        self,
        sources: list[Source],
        settings: TrainSettings,
        share: Share | None = None,
        micro_batch: int | None = None,
        side: int = 0,
        *,
        size_px: int,
        mixture: Mixture | None = None,
        labels: npt.NDArray[np.int16] | None = None,
        places: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._labels, self._places = labels, places
        self.settings, self.share, self.side, self.size_px = settings, share or Share(), side, size_px
        self._sources, self._mixture = sources, mixture
        self._divide(micro_batch)
        pairs = np.cumsum([0, *(len(s.candidate) for s in sources)])
        self._begin = np.cumsum([0, *(len(s.rows) for s in sources)])
        """The first image of each source, and the number of all."""
        self._first, self._last = (
            np.concatenate([getattr(s, name) + n for s, n in zip(sources, pairs[:-1], strict=True)])
            for name in ('first', 'last')
        )
        self._photo, self._position, self._sigma_px, self._heading, self._field_of_view = (
            np.concatenate([getattr(s, name) for s in sources])
            for name in ('candidate', 'position', 'sigma_px', 'heading', 'field_of_view')
        )
        self._candidates = {k: _distinct([s for s in sources if s.kind == k]) for k in ('photos', 'captions')}
        self.tiles = np.concatenate([s.rows for s in sources])
        """Rows of all images in their own stores and sets."""
        count = len(self.tiles)
        self.steps_per_epoch: int | None = -(-count // settings.batch_tiles) if mixture is None else None
        """Batches in one pass over the tiles, the last one perhaps smaller."""
        self._bands = sources[0].pixels.radiometry(np.zeros(1, np.int64))[0].shape[1]
        self._planned: tuple[int, _Plan] | None = None

    @classmethod
    def of_store(
        cls,
        store: PairStore,
        bank: PhotoBank,
        settings: TrainSettings,
        share: Share | None = None,
        micro_batch: int | None = None,
        split: str = 'train',
        side: int = 0,
    ) -> PairSteps:
        """Steps over one pair store; arguments as above.

        Raises:
            GrafalignError: the split has no tile with a usable photo, or a wanted band is missing.
        """
        bands = select_bands(store.sensor.bands, settings.bands or store.sensor.bands, store.sensor.name)
        source = store_source(store, bank, bands, settings.placement.unknown_accuracy_m, split)
        places = None if settings.masks.within_m is None else earth_centred(store)
        return cls([source], settings, share, micro_batch, side, size_px=store.sensor.size_px, places=places)

    def _divide(self, micro_batch: int | None) -> None:
        most = -(-self.settings.batch_tiles // self.share.world)
        self.micro_batch = min(micro_batch or most, most)
        self.micro_batches = -(-most // self.micro_batch)

    def with_micro_batch(self, micro_batch: int) -> PairSteps:
        """The same steps in micro-batches of another size."""
        other = copy(self)
        other._divide(micro_batch)
        return other

    def name_tiles(self, rows: list[int]) -> list[str]:
        """Ids of images, by their numbers over all sources."""
        found = []
        for row in rows:
            which = int(np.searchsorted(self._begin, row, side='right')) - 1
            source = self._sources[which]
            name = source.image_id(int(row - self._begin[which]))
            found.append(name if len(self._sources) == 1 else f'{source.name}: {name}')
        return found

    def __len__(self) -> int:
        return 2**62  # steps never run out: epochs follow each other

    def __getitem__(self, item: int) -> Batch:
        step, number = divmod(item, self.micro_batches)
        plan = self._plan(step)
        sizes = [len(part) for part in np.array_split(plan.tiles, self.share.world)]
        first = sum(sizes[: self.share.rank]) + number * self.micro_batch
        last = min(first + self.micro_batch, sum(sizes[: self.share.rank + 1]))
        mine = slice(first, max(first, last))  # empty in the last micro-batches of a short batch
        # where other processes wait for this one it shows any tile, without pairs: not every tower takes none
        shown = mine if last > first or self.share.world == 1 else slice(0, 1)
        pixels, bad = self._read(plan.tiles[shown])
        own = (plan.owner >= mine.start) & (plan.owner < mine.stop)
        own &= ~np.isin(plan.tiles[plan.owner], bad)
        weight = self.share.world / (len(plan.tiles) * np.bincount(plan.owner, minlength=1)[plan.owner])
        owner, pair = plan.owner[own], plan.pair[own]
        matrix, zoom = plan.views.matrix[owner], zoom_of(plan.views.matrix[owner])
        scale, offset = self._radiometry(plan.tiles[shown])
        listed = self._same_tile(plan, mine) if self.settings.masks.same_tile else np.zeros((2, 0), dtype=np.int64)
        near = np.zeros((2, 0), dtype=np.int64)
        if plan.neighbours is not None and self.settings.masks.within_m is not None:
            near = plan.neighbours.of(plan.position[own], self.settings.masks.within_m)
        whole = np.stack([plan.owner, plan.position]) if self.settings.needs_whole_batch else np.zeros((2, 0), np.int64)
        arrays = {
            'scale': scale,
            'offset': offset,
            'code': plan.views.code[shown],
            'matrix': plan.views.matrix[shown],
            'shift': plan.views.shift[shown],
            'gain': plan.views.gain[shown],
            'haze': plan.views.haze[shown],
            'band': plan.views.band[shown],
            'keep': plan.keep[shown],
            'candidates': plan.candidates,
            'photos': np.array([plan.photos]),
            'tile': owner - mine.start,
            'photo': plan.position[own],
            'weight': weight[own].astype(np.float32),
            'row': plan.row[own],
            'col': plan.col[own],
            'sigma_px': self._sigma_px[pair] * zoom,
            'heading': turn_headings(self._heading[pair], matrix),
            'field_of_view': self._field_of_view[pair],
            'zoom': zoom,
            'listed': listed,
            'near': near,
            'whole': whole,
            'sizes': np.array(sizes),
            'bad': bad,
        }
        if self._labels is not None:
            count = int((self._labels[plan.tiles] != NONE).sum())
            mine_labels = self._labels[plan.tiles[shown]].astype(np.int64)
            mine_labels[np.isin(plan.tiles[shown], bad)] = NONE
            arrays |= {'labels': mine_labels, 'labelled': np.array(count / self.share.world)}
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
        return Batch(pixels=torch.from_numpy(pixels), **tensors)  # type: ignore[typeddict-item]

    def _plan(self, step: int) -> _Plan:
        """Everything that is random about a step; remembered, as a step's micro-batches come one after another."""
        if self._planned is not None and self._planned[0] == step:
            return self._planned[1]
        settings, size = self.settings, self.size_px
        tiles = self._tiles(step)
        rng = np.random.default_rng((settings.seed, 1, step))
        views = draw_views(rng, len(tiles), self._bands, size, settings.augment)
        pair, owner = self._draw_photos(rng, tiles)
        keep = np.zeros((len(tiles), 0), dtype=np.int64)
        if settings.patch_dropout:
            kept = max(1, round(self.side**2 * (1 - settings.patch_dropout)))
            keep = np.sort(np.argsort(rng.random((len(tiles), self.side**2)), axis=1)[:, :kept], axis=1)
        views, row, col = self._views_with_photos(views, pair, owner)
        seen = (row >= 0) & (row < size) & (col >= 0) & (col < size)
        pair, owner, row, col = pair[seen], owner[seen], row[seen], col[seen]
        candidates, photos, position = self._draw_candidates(step, self._photo[pair])
        neighbours = None if self._places is None else Neighbours(candidates, self._places)
        plan = _Plan(tiles, pair, owner, row, col, views, keep, candidates, photos, position, neighbours)
        self._planned = step, plan
        return plan

    def _tiles(self, step: int) -> Integers:
        """Numbers of a step's images over all sources."""
        if self._mixture is not None:
            source, image = self._mixture.items(step)
            return self._begin[source] + image
        count, size, seed = len(self.tiles), self.settings.batch_tiles, self.settings.seed
        epoch, place = divmod(step, self.steps_per_epoch or 1)
        return shuffled(np.arange(place * size, min((place + 1) * size, count)), count, (seed, 0, epoch))

    def _draw_candidates(self, step: int, own: Integers) -> tuple[Integers, int, Integers]:
        """Rows of the bank for the pairs' own candidates and negatives, photos before texts.

        Returns:
            The rows [K], how many of them are photos, and the position of each pair's own among them [N].
        """
        mine, position = np.unique(own, return_inverse=True)
        texts = self._candidates['captions']
        if not len(texts) or not len(self._candidates['photos']):
            rows = np.concatenate([mine, self._draw_negatives(step, mine, 'captions' if len(texts) else 'photos')])
            return rows, 0 if len(texts) else len(rows), position
        photos = int(np.searchsorted(mine, texts[0]))  # texts come behind all photos in the joined bank
        parts = [mine[:photos], self._draw_negatives(step, mine[:photos], 'photos')]
        drawn = len(parts[1])
        parts += [mine[photos:], self._draw_negatives(step, mine[photos:], 'captions')]
        return np.concatenate(parts), photos + drawn, np.where(position < photos, position, position + drawn)

    def _draw_photos(self, rng: np.random.Generator, tiles: Integers) -> tuple[Integers, Integers]:
        """At most `photos_per_tile` of each tile's pairs at random: rows of pairs and their tiles."""
        count = self._last[tiles] - self._first[tiles]
        owner = np.repeat(np.arange(len(tiles)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        pair = self._first[tiles][owner] + within
        order = np.lexsort((rng.random(len(pair)), owner))
        chosen = order[within < self.settings.photos_per_tile]
        chosen.sort()
        return pair[chosen], owner[chosen]

    def _views_with_photos(
        self, views: Views, pair: Integers, owner: Integers
    ) -> tuple[Views, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Places of the photos in the views. A view that would show none of its tile's photos is not taken."""
        size = self.size_px
        row, col = self._moved(views, pair, owner)
        seen = (row >= 0) & (row < size) & (col >= 0) & (col < size)
        empty = np.bincount(owner, seen, minlength=len(views.code)) == 0
        if not self.settings.augment.resamples or not empty.any():
            # a symmetry leaves the tile where it is; rounding must not push a photo over its edge
            top = np.nextafter(np.float32(size), np.float32(0))
            return (views, row, col) if self.settings.augment.resamples else (views, row.clip(0, top), col.clip(0, top))
        views = replace(views, matrix=views.matrix.copy(), shift=views.shift.copy())
        views.matrix[empty], views.shift[empty] = np.eye(2, dtype=np.float32), 0
        return views, *self._moved(views, pair, owner)

    def _moved(
        self, views: Views, pair: Integers, owner: Integers
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        at = self._position[pair]
        return move(at[:, 0], at[:, 1], views.matrix[owner], views.shift[owner], self.size_px)

    def _draw_negatives(self, step: int, own: Integers, kind: str) -> Integers:
        """Candidates of training images that the batch does not hold, as many as the settings say or as there are."""
        wanted = self.settings.negatives
        if wanted == 'batch':
            return np.zeros(0, dtype=np.int64)
        drawn = self._candidates[kind]
        there = len(drawn)
        count = there if wanted.bank == 'all' else min(there, wanted.bank + len(own))
        if count < there:
            drawn = drawn[shuffled(np.arange(count), there, (self.settings.seed, 2, step))]
        drawn = drawn[~np.isin(drawn, own)]
        return drawn if wanted.bank == 'all' else drawn[: wanted.bank]

    def _same_tile(self, plan: _Plan, mine: slice) -> Integers:
        """Candidates that are photos of these tiles, drawn for this step or not: tile and candidate, [2, M]."""
        tiles = plan.tiles[mine]
        count = self._last[tiles] - self._first[tiles]
        owner = np.repeat(np.arange(len(tiles)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        photos = self._photo[self._first[tiles][owner] + within]
        order = np.argsort(plan.candidates)
        at = np.searchsorted(plan.candidates, photos, sorter=order).clip(max=len(order) - 1)
        there = plan.candidates[order[at]] == photos
        return np.stack([owner[there], order[at][there]])

    def _read(self, tiles: Integers) -> tuple[npt.NDArray[np.generic], Integers]:
        """Pixels [b, C, H, W] of images, and those that could not be read or hold NaN, whose pixels are 0."""
        pixels: list[npt.NDArray[np.generic] | None] = []
        bad = []
        for tile, which in zip(tiles.tolist(), self._source_of(tiles).tolist(), strict=True):
            source = self._sources[which]
            try:
                pixels.append(source.pixels.read(int(source.rows[tile - self._begin[which]])))
            except GrafalignError:
                bad.append(tile)
                pixels.append(None)
        kinds = [p.dtype for p in pixels if p is not None] or [np.dtype(np.uint8)]
        stacked = np.zeros((len(tiles), self._bands, self.size_px, self.size_px), dtype=np.result_type(*kinds))
        for place, read in zip(stacked, pixels, strict=True):
            if read is not None:
                place[:] = read
        return stacked, np.array(bad, dtype=np.int64)

    def _radiometry(self, tiles: Integers) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scale and offset of images, [b, C] each."""
        scale, offset = (np.empty((len(tiles), self._bands), np.float32) for _ in range(2))
        of = self._source_of(tiles)
        for which in np.unique(of).tolist():
            mine, source = of == which, self._sources[which]
            scale[mine], offset[mine] = source.pixels.radiometry(source.rows[tiles[mine] - self._begin[which]])
        return scale, offset

    def _source_of(self, tiles: Integers) -> Integers:
        return np.searchsorted(self._begin, tiles, side='right') - 1


def _distinct(sources: list[Source]) -> Integers:
    """Candidates of some sources, each once."""
    return np.unique(np.concatenate([s.candidate for s in sources])) if sources else np.zeros(0, np.int64)
