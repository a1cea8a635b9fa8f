"""The recipe: everything that decides what a pair store holds."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from grafalign.config import Settings, settings_digest
from grafalign.engine import Kind
from grafalign.geo import TileGrid
from grafalign.photos import PhotoSource
from grafalign.scenes import SceneSource
from grafalign.scenes.radiometry import BandOverride

MEANING = 1
"""Raised when the same recipe comes to mean another store: another default, other pixels, another plan."""


class SensorSettings(Settings):
    """The `sensor:` part: what a tile is."""

    name: str
    bands: list[str] = Field(min_length=1)
    """Asset keys, `ASSET:NUMBER`, or band names of the items, in the order wanted."""
    gsd_m: float = Field(gt=0)
    """Metres a pixel: 1 for NAIP, 10 for Sentinel-2."""
    size_px: int = Field(default=224, ge=8)
    value_range: tuple[float, float]
    """Physical values, after scale and offset, that become 0 and 1 at the model's input: the same for every tile.
    [0, 255] for 8-bit pictures; [0, 0.3] for reflectance, as GRAFT's Sentinel-2 tiles (DN / 3000)."""

    origin_m: tuple[float, float] = (0.0, 0.0)
    """Easting and northing of any corner of a pixel of the scenes, so that tiles lie on their grid and are copied, not
    resampled: [15, 15] for Landsat. `pair --explain` says how many tiles are copied, and what to write here."""
    mosaic: Literal['day', 'none'] = 'day'
    """Where a scene leaves pixels of a tile missing: fill them from other scenes of the same collection and day (UTC),
    those that cover more of the tile first; or leave them missing."""
    overrides: dict[str, BandOverride] = {}
    """For bands whose items or files are wrong: nodata, scale, offset and mask, by the band's name."""
    resampling: Literal['nearest', 'bilinear', 'cubic', 'average', 'lanczos'] = 'bilinear'
    """How tiles are warped that are not on a scene's own grid; on it they are copied."""

    @model_validator(mode='after')
    def _rising(self) -> Self:
        if self.value_range[1] <= self.value_range[0]:
            raise ValueError('`value_range` must rise')
        if not all(math.isfinite(v) for v in (*self.value_range, *self.origin_m)):
            raise ValueError('`value_range` and `origin_m` must be finite')
        if unknown := set(self.overrides) - set(self.bands):
            raise ValueError(f'`overrides` names {sorted(unknown)[0]!r}, which is not among `bands`')
        return self


class PlanSettings(Settings):
    """The `plan:` part: how photos become tiles."""

    max_photos: int = Field(default=25, ge=1)
    """Photos kept per tile (25 in GRAFT)."""
    core: float = Field(default=1.0, ge=0.05, le=1)
    """Inner part of a tile, as a share of its side: a photo that lies in no tile's core seeds a tile of its own. 1 is
    GRAFT's rule; a smaller core gives more tiles for the same photos, which overlap."""
    reach: float = Field(default=1.0, gt=0, le=1)
    """Inner part of a tile whose photos belong to it, at least `core`: what lies in the middle speaks of the whole."""
    ahead_m: float = Field(default=0.0, ge=0)
    """Metres before the camera at which a photo counts, for what tile it seeds and belongs to, where its heading is
    known: photos show what lies before them. 0 is GRAFT's rule."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode='after')
    def _core_within_reach(self) -> Self:
        if self.reach < self.core:
            raise ValueError('`reach` must be at least `core`, or photos that seed no tile would belong to none')
        return self


class SplitSettings(Settings):
    """The `split:` part: which blocks of the Earth are held out."""

    block_km: float = Field(default=20.0, gt=0)
    buffer_m: float | None = Field(default=None, ge=0)
    """Metres that tiles keep from blocks of other splits, so that no place is shown from both sides; one tile side by
    default. Tiles within it are dropped and counted."""
    shares: dict[str, float] = {'train': 0.8, 'val': 0.1, 'test': 0.1}

    @model_validator(mode='after')
    def _sum_to_one(self) -> Self:
        if set(self.shares) - {'train', 'val', 'test'}:
            raise ValueError('`shares` knows train, val and test')
        if abs(sum(self.shares.values()) - 1) > 1e-6 or min(self.shares.values()) < 0:
            raise ValueError('`shares` must sum to 1')
        return self


class RunSettings(Settings):
    """The `run:` part: who does the work. It changes nothing in what comes out, so it is no part of the identity."""

    engine: Kind = 'threads'
    """`threads`, `processes`, or `dask` for a cluster."""
    workers: int | None = Field(default=None, ge=1)
    """Threads, processes or (for a local Dask cluster) workers; the number of cores by default."""
    threads: int = Field(default=16, ge=1)
    """Requests and decodings at a time in each process: many, as most of them wait for a server."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, `tcp://HOST:PORT`; it must see the store at the same path or URL."""

    @model_validator(mode='after')
    def _scheduler_needs_dask(self) -> Self:
        if self.scheduler is not None and self.engine != 'dask':
            raise ValueError('`scheduler` needs `engine: dask`')
        return self


class Recipe(Settings):
    """A pairing recipe."""

    photos: PhotoSource
    scenes: SceneSource
    sensor: SensorSettings
    plan: PlanSettings = PlanSettings()
    split: SplitSettings = SplitSettings()
    max_nodata: float = Field(default=0.25, ge=0, le=1)
    """Largest share of missing pixels in a tile."""
    max_tile_cloud_percent: float | None = Field(default=None, ge=0, le=100)
    """Most cloud and cloud shadow inside a tile, by the scene's own classification (`SCL` of Sentinel-2 L2A), where it
    has one; else the next best scene is tried. None to leave it unread."""
    shard_tiles: int = Field(default=256, ge=1)
    """Tiles in a shard; also the unit of resuming."""
    run: RunSettings = Field(default=RunSettings(), exclude=True)

    @model_validator(mode='after')
    def _core_spans_pixels(self) -> Self:
        if self.plan.core * self.sensor.size_px < 4:
            raise ValueError('plan.core must span four pixels at least, or tiles would be the same but for a pixel')
        return self

    @model_validator(mode='after')
    def _cameras_stay_inside(self) -> Self:
        inside_m = (1 - self.plan.reach) * self.grid.side_m / 2
        if self.plan.ahead_m and self.plan.ahead_m > inside_m - self.sensor.gsd_m:
            raise ValueError(
                'plan.ahead_m reaches out of the tile, where the camera would stand beside it; lower it, or plan.reach'
            )
        return self

    @model_validator(mode='after')
    def _tile_smaller_than_block(self) -> Self:
        # a tile's corners tell its blocks only where no block fits between them, and columns are narrower than rows
        if self.grid.side_m > 700 * self.split.block_km:
            raise ValueError('split.block_km must be larger than a tile, one and a half times at least')
        return self

    @property
    def grid(self) -> TileGrid:
        """The tiles' common shape."""
        return TileGrid(self.sensor.size_px, self.sensor.gsd_m, self.sensor.origin_m)

    @property
    def buffer_m(self) -> float:
        """Metres that tiles keep from blocks of other splits."""
        return self.grid.side_m if self.split.buffer_m is None else self.split.buffer_m

    @property
    def digest(self) -> str:
        """Digest of all settings that decide what the store holds."""
        return settings_digest(self, MEANING, {'photos': {'remote'}})
