"""Where the cutting of one tile stands: which scene is read next, what was taken, and why scenes were refused.

Candidates are tried in turn until one leaves few enough pixels missing; what it leaves missing is filled from its
mates, scenes of the same collection and day, in the order of `scenes.choice`: a mosaic over the seam of two sheets.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from grafalign.pairing.cut_job import CutJob, TileJob
from grafalign.pairing.pixel_shares import shares_of
from grafalign.scenes import Cut
from grafalign.scenes.local import Rejected
from grafalign.store import read_member

UNREAD_SCENE = 'scene cannot be read'
"""Why a scene was rejected for one tile, which the detail begins with."""
UNREADABLE = 'no scene could be read'
"""Why a tile was rejected that is worth another try."""
_MISSING, _CLOUDY = 'too many missing pixels', 'too cloudy'
_MEASURES = {_CLOUDY: 'cloud inside the tile', _MISSING: 'nodata'}
_OF_PIXELS = (
    *('item_id', 'collection', 'datetime', 'mosaic', 'cloud_cover', 'tile_cloud_percent', 'processing_baseline'),
    *('nodata_fraction', 'outside_fraction', 'zero_fraction', 'not_finite_fraction', 'scale', 'offset'),
    'digest',
)
"""Columns of a tile that follow from what `made_from` is the digest of."""


class TileProgress:
    """One tile while its job is done.

    Args:
        tile: what is to be cut.
        job: the job that it is part of.
    """

    def __init__(self, tile: TileJob, job: CutJob) -> None:
        self.tile, self._job = tile, job
        self.cut: Cut | None = None
        """What the candidate gave, with the holes that were filled."""
        self.columns: dict[str, Any] = {}
        """Of its row in tiles.parquet, once it is cut."""
        self.rejects: list[Rejected] = []
        self.decided = self.done = self.unreadable = False
        self._candidate = 0
        self._filling: int | None = None
        """The mate that is to fill what others of its day left missing."""
        self._mates: list[int] = []
        """Scenes that may be asked after that one."""
        self._used: list[int] = []
        """Scenes whose pixels are in `cut`, in that order."""
        self._clouds: list[tuple[int, int]] = []
        """Cloudy and all classified pixels of each scene that was looked at."""
        self._refused: list[tuple[str, float]] = []
        """Why each candidate would not do, with the share of the tile that is missing or cloudy, in percent."""

    @property
    def scene(self) -> int:
        """The scene to read next."""
        return self.tile.scenes[self._candidate] if self._filling is None else self._filling

    @property
    def box(self) -> GeoBox:
        """The tile's pixels on the ground."""
        planned = self.tile.planned
        return self._job.recipe.grid.geobox(planned.epsg, planned.left, planned.top)

    def begin(self) -> None:
        """Decide what needs no scene: a tile that none covers, or that an earlier state of the store has."""
        tile_id = self.tile.planned.tile_id
        if not self.tile.scenes:
            self._reject(tile_id, 'no scene over the place', '')
        elif self.tile.refused is not None:
            self._reject(tile_id, *self.tile.refused)
        elif self.tile.kept is not None:
            self._take_over(*self.tile.kept)

    def _take_over(self, shard: str, offset: int, nbytes: int) -> None:
        """Take the tile as an earlier state of the store has it; where it cannot be read it is cut again."""
        try:
            pixels, columns = read_member(Path(shard), offset, nbytes)
            self._candidate = int(columns['scene_rank'])
            self.columns = {key: columns[key] for key in _OF_PIXELS} | self._columns_of_choice()
            self.cut = Cut(self.tile.number, pixels, np.zeros(pixels.shape[1:], dtype=bool))
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            self._candidate, self.cut = 0, None
            return
        self.decided = self.done = True

    def take(self, cut: Cut) -> None:
        """Take what the scene gave: the tile itself, or pixels for its holes."""
        if self._job.dtype and str(cut.pixels.dtype) != self._job.dtype:
            self.skip(f'its pixels are {cut.pixels.dtype}, those of the store {self._job.dtype}')
            return
        if self.cut is None:
            self.cut, self._used = cut, [self.scene]
            self._mates = list(self.tile.mates[self._candidate]) if self.tile.mates else []
        else:
            self._fill(self.cut, cut)
        self._decide(self.cut)

    def _fill(self, cut: Cut, mate: Cut) -> None:
        fits = (mate.scale, mate.offset, mate.pixels.dtype) == (cut.scale, cut.offset, cut.pixels.dtype)
        filled = cut.missing & ~mate.missing
        if fits and filled.any():  # numbers that mean other things do not go into one tile
            cut.pixels[:, filled] = mate.pixels[:, filled]
            cut.missing[filled] = False
            self._used.append(self.scene)

    def _decide(self, cut: Cut) -> None:
        """After a scene was read: ask one of its mates, or take the tile as it is, or refuse it."""
        if self._mates and cut.missing.any():
            self._filling = self._mates.pop(0)
            return
        empty = float(cut.missing.mean())
        if empty > self._job.recipe.max_nodata:
            self._next_candidate((_MISSING, 100 * empty))
            return
        self.decided = self.done = True
        self.columns = self._columns_of_pixels(cut, empty) | self._columns_of_choice()

    def see_clouds(self, cloudy: int, classified: int) -> bool:
        """Take in the scene's own classification of the tile; False where it is too cloudy, and then done without."""
        percent = 100 * cloudy / max(1, classified)
        limit = self._job.recipe.max_tile_cloud_percent
        if limit is not None and percent > limit:
            self._without((_CLOUDY, percent))
            return False
        self._clouds.append((cloudy, classified))
        return True

    def skip(self, reason: str) -> None:
        """The scene cannot be read: do without it."""
        scene = self._job.scenes[self.scene]
        self.rejects.append(('scene', scene.item_id, UNREAD_SCENE, f'{self.tile.planned.tile_id}: {reason}'))
        self._without()

    def _without(self, refused: tuple[str, float] | None = None) -> None:
        """Do without a mate, or without a candidate."""
        if self._filling is None or self.cut is None:
            self._next_candidate(refused)
        else:
            self._decide(self.cut)

    def _next_candidate(self, refused: tuple[str, float] | None = None) -> None:
        """Go on to the next candidate, or give the tile up for the reason of its best one."""
        self.cut, self._filling, self._used, self._mates, self._clouds = None, None, [], [], []
        if refused is not None:
            self._refused.append(refused)
        self._candidate += 1
        if self._candidate < len(self.tile.scenes):
            return
        tile_id, tried = self.tile.planned.tile_id, self._candidate
        if self.rejects:  # trying again may help, so this comes first
            self.unreadable = True
            self._reject(tile_id, UNREADABLE, f'{len(self.rejects)} reads of {tried} scenes failed')
            return
        reason = self._refused[0][0]
        least = min(percent for why, percent in self._refused if why == reason)
        self._reject(tile_id, reason, f'{least:.3g} % {_MEASURES[reason]} in the best of {tried} scenes')

    def _reject(self, tile_id: str, reason: str, detail: str) -> None:
        self.decided = True
        self.rejects.append(('tile', tile_id, reason, detail))

    def _columns_of_pixels(self, cut: Cut, empty: float) -> dict[str, Any]:
        scenes = self._job.scenes
        scene = scenes[self.tile.scenes[self._candidate]]
        clouds, classified = (sum(part) for part in zip(*self._clouds, strict=True)) if self._clouds else (0, 0)
        outside, zero = shares_of(cut.pixels, cut.missing, cut.scale, cut.offset, self._job.recipe.sensor.value_range)
        return {
            'item_id': scene.item_id,
            'collection': scene.collection,
            'datetime': scene.when.isoformat(),
            'mosaic': [scenes[s].item_id for s in self._used],
            'cloud_cover': scene.cloud_percent,
            'tile_cloud_percent': 100 * clouds / classified if classified else (0.0 if self._clouds else None),
            'processing_baseline': scene.baseline,
            'nodata_fraction': empty,
            'outside_fraction': round(outside, 6),
            'zero_fraction': round(zero, 6),
            'not_finite_fraction': round(cut.not_finite, 6),
            'scale': list(cut.scale),
            'offset': list(cut.offset),
            'digest': hashlib.blake2b(np.ascontiguousarray(cut.pixels).tobytes(), digest_size=16).hexdigest(),
        }

    def _columns_of_choice(self) -> dict[str, Any]:
        """Columns that also follow from the tile's photos, and from how many scenes there were."""
        days = self.tile.days_apart[self._candidate]
        return {
            'coverage': round(self.tile.coverage[self._candidate], 6),
            'days_apart': None if days != days else round(days, 6),
            'scene_rank': self._candidate,
            'scenes_considered': self.tile.considered,
        }
