"""Cut the tiles of a few shards: each tile's scenes in turn until one gives enough clear pixels, then write the shards.

One job holds all it needs, so that any thread, process or Dask worker can do it. Tiles that share their best scene
stand together, so its blocks are read once for all of them (`grafalign.scenes.blocks`); a tile that fails there is
tried again with its next best scene, together with others that want the same. Pixels that a scene leaves missing are
filled from its mates, scenes of the same collection and day, in the order of `scenes.choice`: a mosaic over the seam of
two sheets.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import Resampling

from grafalign.errors import GrafalignError
from grafalign.files import Place, place, write_atomically
from grafalign.geo import TileGrid
from grafalign.pairing.pixel_shares import shares_of
from grafalign.scenes import BandSource, Cut, Scene, SceneCutter, SceneTiles, band_sources, cloud_mask
from grafalign.scenes.radiometry import BandOverride
from grafalign.scenes.ranges import RangeReader
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SignSettings
from grafalign.store import ShardWriter, read_member

Reject = tuple[str, str, str, str]
"""kind (photo, tile or scene), id, reason, detail."""
CLOUDY_CLASSES = (3, 8, 9, 10)
"""Classes of Sentinel-2's scene classification that hide the ground: cloud shadow, cloud of medium and high
probability, thin cirrus (Sen2Cor)."""


@dataclass(frozen=True)
class TileJob:
    """One tile to cut."""

    number: int
    """Row in the plan."""
    facts: dict[str, Any]
    """tile_id, epsg, left, top, split."""
    photos: int
    scenes: list[int]
    """Candidates, best first."""
    coverage: list[float]
    days_apart: list[float]
    considered: int
    mates: list[list[int]] = field(default_factory=list)
    """For each candidate the scenes that may fill what it leaves missing."""
    made_from: str = ''
    """Digest of all that decides its pixels, see `pairing.inputs`."""
    kept: tuple[str, int, int] | None = None
    """Where the same tile stands in an earlier state of the store: shard, byte offset and length."""
    refused: tuple[str, str] | None = None
    """Why the same tile was rejected there: reason and detail."""


@dataclass(frozen=True)
class ShardJob:
    """One shard: its name below the store, the name of its facts, and its tiles in the order they are written."""

    name: str
    sidecar: str
    tiles: list[TileJob]


@dataclass(frozen=True)
class CutJob:
    """Shards to write, with all that is needed to do so."""

    out: str
    shards: list[ShardJob]
    scenes: dict[int, Scene]
    grid: TileGrid
    bands: list[str]
    resampling: str
    max_nodata: float
    max_tile_cloud_percent: float | None
    sign: SignSettings | None
    public_only: bool
    """Whether files at private addresses are refused."""
    threads: int
    """Threads of this process that fetch and decode."""
    overrides: dict[str, BandOverride] = field(default_factory=dict)
    value_range: tuple[float, float] = (0.0, 1.0)
    dtype: str = ''
    """Data type of all pixels of the store; any where it is empty."""


@dataclass(frozen=True)
class CutResult:
    """Counts of a job."""

    tiles: int
    failed: int
    """Tiles of which no scene could be read: worth another try."""
    rejected: int
    """Tiles that no scene covers, or only with clouds or holes."""


@dataclass
class _Progress:
    """Where one tile stands."""

    job: TileJob
    attempt: int = 0
    """Which of its candidate scenes is tried."""
    joining: int | None = None
    """The scene that is to fill what others of its day left missing."""
    mates: list[int] = field(default_factory=list)
    """Scenes that may be asked after that one."""
    first: Cut | None = None
    """What the candidate gave, with the holes that were filled."""
    used: list[int] = field(default_factory=list)
    """Scenes whose pixels are in it, in that order."""
    clouds: list[tuple[int, int]] = field(default_factory=list)
    """Cloudy and all classified pixels of each scene that was looked at."""
    facts: dict[str, Any] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    refused: list[tuple[str, float]] = field(default_factory=list)
    """Why each candidate would not do, with the share of the tile that is missing or cloudy, in percent."""
    decided: bool = False
    cut: bool = False
    unreadable: bool = False

    @property
    def target(self) -> int:
        """The scene to read next."""
        return self.job.scenes[self.attempt] if self.joining is None else self.joining


def cut_shards(job: CutJob, tell: Callable[[int, int, int], None] | None = None) -> CutResult:
    """Cut the tiles of a job and write its shards, each as soon as all its tiles are decided.

    Args:
        job: what to do.
        tell: called with the numbers of tiles, of failed and of rejected ones among them, as they are decided.
    """
    out = place(job.out)
    pool, reader = _tools(job.threads, job.sign, job.public_only)
    shards = [[_Progress(t) for t in shard.tiles] for shard in job.shards]
    told = CutResult(0, 0, 0)
    written = 0
    for _ in _decide([tile for shard in shards for tile in shard], job, pool, reader):
        while written < len(shards) and all(t.decided for t in shards[written]):
            _write(job.shards[written], shards[written], job, out)
            for tile in shards[written]:
                tile.first = None  # on disk now
            written += 1
        now = _count(shards)
        if tell and now.tiles > told.tiles:
            tell(now.tiles - told.tiles, now.failed - told.failed, now.rejected - told.rejected)
            told = now
    return _count(shards)


def _count(shards: list[list[_Progress]]) -> CutResult:
    decided = [tile for shard in shards for tile in shard if tile.decided]
    failed = sum(t.unreadable for t in decided)
    return CutResult(len(decided), failed, sum(not t.cut for t in decided) - failed)


_tools_lock = threading.Lock()


def _tools(threads: int, sign: SignSettings | None, public_only: bool) -> tuple[ThreadPoolExecutor, RangeReader]:
    with _tools_lock:  # a cache alone would let jobs that begin together make several
        return _make_tools(os.getpid(), threads, sign, public_only)


@lru_cache(maxsize=4)
def _make_tools(
    _process: int, threads: int, sign: SignSettings | None, public_only: bool
) -> tuple[ThreadPoolExecutor, RangeReader]:
    """Threads and connections of this process, shared by all its jobs."""
    reader = RangeReader(threads, Signer(sign) if sign is not None else None, private=not public_only)
    return ThreadPoolExecutor(threads, thread_name_prefix='grafalign-read'), reader


def _decide(tiles: list[_Progress], job: CutJob, pool: ThreadPoolExecutor, reader: RangeReader) -> Iterator[None]:
    """Give every tile its pixels, or the reason why it has none; yields now and then."""
    for tile in tiles:
        tile_id = tile.job.facts['tile_id']
        if not tile.job.scenes:
            tile.rejects.append(('tile', tile_id, 'no scene over the place', ''))
            tile.decided = True
        elif tile.job.refused is not None:
            tile.rejects.append(('tile', tile_id, *tile.job.refused))
            tile.decided = True
        elif tile.job.kept is not None:
            _take_over(tile, *tile.job.kept)
    while open_tiles := [t for t in tiles if not t.decided]:
        yield
        by_scene: dict[int, list[_Progress]] = defaultdict(list)
        for tile in open_tiles:
            by_scene[tile.target].append(tile)
        sources: dict[int, list[BandSource]] = {}
        for scene in list(by_scene):
            try:
                sources[scene] = band_sources(job.scenes[scene].item, job.bands, job.grid.gsd_m, job.overrides)
            except GrafalignError as error:
                for tile in by_scene.pop(scene):
                    _give_up_scene(tile, job, str(error))
        if job.max_tile_cloud_percent is not None:
            _look_at_clouds(by_scene, job, pool, reader)
        wanted = [
            (scene, SceneTiles(sources[scene], [_box(t, job) for t in group]))
            for scene, group in by_scene.items()
            if group
        ]
        cutter = SceneCutter(pool, reader, 2 * job.threads, Resampling[job.resampling])
        for index, cut in cutter.cut([w for _, w in wanted]):
            scene = wanted[index][0]
            tile = by_scene[scene][cut.number]
            if cut.pixels is None or cut.missing is None:
                _give_up_scene(tile, job, cut.problem)
            elif job.dtype and str(cut.pixels.dtype) != job.dtype:
                _give_up_scene(tile, job, f'its pixels are {cut.pixels.dtype}, those of the store {job.dtype}')
            else:
                _take(tile, scene, cut)
                _decide_tile(tile, job)
            yield
    yield


def _take_over(tile: _Progress, shard: str, offset: int, nbytes: int) -> None:
    """Take a tile as an earlier state of the store has it; where it cannot be read it is cut again."""
    try:
        pixels, facts = read_member(Path(shard), offset, nbytes)
        tile.attempt = int(facts['scene_rank'])
        tile.facts = {key: facts[key] for key in _OF_PIXELS} | _of_choice(tile)
        tile.first = Cut(tile.job.number, pixels, None)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        tile.attempt, tile.first = 0, None
        return
    tile.decided = tile.cut = True


def _box(tile: _Progress, job: CutJob) -> Any:
    facts = tile.job.facts
    return job.grid.geobox(facts['epsg'], facts['left'], facts['top'])


def _take(tile: _Progress, scene: int, cut: Cut) -> None:
    """Take what a scene gave: the tile itself, or pixels for its holes."""
    if tile.first is None:
        tile.first, tile.used = cut, [scene]
        tile.mates = list(tile.job.mates[tile.attempt]) if tile.job.mates else []
        return
    first = tile.first
    assert first.pixels is not None and first.missing is not None and cut.pixels is not None and cut.missing is not None
    fits = (cut.scale, cut.offset, cut.pixels.dtype) == (first.scale, first.offset, first.pixels.dtype)
    filled = first.missing & ~cut.missing
    if fits and filled.any():  # numbers that mean other things do not go into one tile
        first.pixels[:, filled] = cut.pixels[:, filled]
        first.missing[filled] = False
        tile.used.append(scene)


def _decide_tile(tile: _Progress, job: CutJob) -> None:
    """After a scene was read: ask one of its mates, or take the tile as it is, or refuse it."""
    first = tile.first
    assert first is not None and first.pixels is not None and first.missing is not None
    if tile.mates and first.missing.any():
        tile.joining = tile.mates.pop(0)
        return
    empty = float(first.missing.mean())
    if empty > job.max_nodata:
        _next_scene(tile, job, ('too many missing pixels', 100 * empty))
        return
    tile.decided = tile.cut = True
    tile.facts = _facts(tile, job, first, empty)


def _look_at_clouds(
    by_scene: dict[int, list[_Progress]], job: CutJob, pool: ThreadPoolExecutor, reader: RangeReader
) -> None:
    """Take tiles out of `by_scene` that the scene's own classification shows to be cloudy."""
    masks = {s: m for s in by_scene if (m := cloud_mask(job.scenes[s].item)) is not None}
    wanted = [(scene, SceneTiles([mask], [_box(t, job) for t in by_scene[scene]])) for scene, mask in masks.items()]
    cloudy: dict[int, set[int]] = defaultdict(set)
    for index, cut in SceneCutter(pool, reader, 2 * job.threads, Resampling.nearest).cut([w for _, w in wanted]):
        scene = wanted[index][0]
        tile = by_scene[scene][cut.number]
        if cut.pixels is None or cut.missing is None:
            _give_up_scene(tile, job, cut.problem)
            cloudy[scene].add(cut.number)
            continue
        classes = cut.pixels[0][~cut.missing]
        clouds = int(np.isin(classes, CLOUDY_CLASSES).sum())
        percent = 100 * clouds / max(1, len(classes))
        if job.max_tile_cloud_percent is not None and percent > job.max_tile_cloud_percent:
            _give_up_scene(tile, job, refused=('too cloudy', percent))
            cloudy[scene].add(cut.number)
        else:
            tile.clouds.append((clouds, len(classes)))
    for scene, numbers in cloudy.items():
        by_scene[scene] = [t for n, t in enumerate(by_scene[scene]) if n not in numbers]


def _give_up_scene(tile: _Progress, job: CutJob, problem: str = '', refused: tuple[str, float] | None = None) -> None:
    """A scene cannot be read, or is too cloudy: do without that mate, or without that candidate."""
    if problem:
        scene = job.scenes[tile.target]
        detail = f'{tile.job.facts["tile_id"]}: {problem}'
        tile.rejects.append(('scene', scene.item_id, UNREAD_SCENE, detail))
    if tile.joining is None:
        _next_scene(tile, job, refused)
    else:
        _decide_tile(tile, job)


def _next_scene(tile: _Progress, job: CutJob, refused: tuple[str, float] | None = None) -> None:
    """Go on to the next candidate, or give the tile up for the reason of its best one."""
    tile_id = tile.job.facts['tile_id']
    tile.first, tile.joining, tile.used, tile.mates, tile.clouds = None, None, [], [], []
    if refused is not None:
        tile.refused.append(refused)
    tile.attempt += 1
    if tile.attempt < len(tile.job.scenes):
        return
    tile.decided = True
    if tile.rejects:  # trying again may help, so this comes first
        tile.unreadable = True
        tile.rejects.append(('tile', tile_id, UNREADABLE, f'{len(tile.rejects)} reads of {tile.attempt} scenes failed'))
        return
    reason = tile.refused[0][0]
    least = min(percent for why, percent in tile.refused if why == reason)
    what = {'too cloudy': 'cloud inside the tile', 'too many missing pixels': 'nodata'}[reason]
    tile.rejects.append(('tile', tile_id, reason, f'{least:.3g} % {what} in the best of {tile.attempt} scenes'))


UNREAD_SCENE = 'scene cannot be read'
"""Why a scene was rejected for one tile, which the detail begins with."""
UNREADABLE = 'no scene could be read'
"""Why a tile was rejected that is worth another try."""


def _facts(tile: _Progress, job: CutJob, cut: Cut, empty: float) -> dict[str, Any]:
    assert cut.pixels is not None and cut.missing is not None
    scene = job.scenes[tile.job.scenes[tile.attempt]]
    clouds, classified = (sum(part) for part in zip(*tile.clouds, strict=True)) if tile.clouds else (0, 0)
    outside, zero = shares_of(cut.pixels, cut.missing, cut.scale, cut.offset, job.value_range)
    of_pixels = {
        'item_id': scene.item_id,
        'collection': scene.collection,
        'datetime': scene.when.isoformat(),
        'mosaic': [job.scenes[s].item_id for s in tile.used],
        'cloud_cover': scene.cloud_percent,
        'tile_cloud_percent': 100 * clouds / classified if classified else (0.0 if tile.clouds else None),
        'processing_baseline': scene.baseline,
        'nodata_fraction': empty,
        'outside_fraction': round(outside, 6),
        'zero_fraction': round(zero, 6),
        'not_finite_fraction': round(cut.not_finite, 6),
        'scale': list(cut.scale),
        'offset': list(cut.offset),
        'digest': hashlib.blake2b(np.ascontiguousarray(cut.pixels).tobytes(), digest_size=16).hexdigest(),
    }
    return of_pixels | _of_choice(tile)


_OF_PIXELS = (
    *('item_id', 'collection', 'datetime', 'mosaic', 'cloud_cover', 'tile_cloud_percent', 'processing_baseline'),
    *('nodata_fraction', 'outside_fraction', 'zero_fraction', 'not_finite_fraction', 'scale', 'offset'),
    'digest',
)
"""Facts of a tile that follow from what `made_from` is the digest of."""


def _of_choice(tile: _Progress) -> dict[str, Any]:
    """Facts that also follow from the tile's photos, and from how many scenes there were."""
    days = tile.job.days_apart[tile.attempt]
    return {
        'coverage': round(tile.job.coverage[tile.attempt], 6),
        'days_apart': None if days != days else round(days, 6),
        'scene_rank': tile.attempt,
        'scenes_considered': tile.job.considered,
    }


def _write(shard: ShardJob, tiles: list[_Progress], job: CutJob, out: Place) -> None:
    """Write one shard and its facts."""
    rows: list[dict[str, Any]] = []
    with ShardWriter(out / shard.name) as writer:
        for tile in tiles:
            if not tile.cut or tile.first is None or tile.first.pixels is None:
                continue
            pixels = tile.first.pixels
            row = {**tile.job.facts, **tile.facts, 'dtype': str(pixels.dtype)}
            inside = {**row, 'photos': tile.job.photos, 'bands': job.bands, 'gsd_m': job.grid.gsd_m}
            offset, nbytes = writer.add(tile.job.facts['tile_id'], pixels, inside)
            where = {'number': tile.job.number, 'shard': shard.name, 'byte_offset': offset, 'nbytes': nbytes}
            # not in the shard, whose bytes do not depend on where the scenes lie
            rows.append({**row, 'made_from': tile.job.made_from, **where})
        content = {
            'tiles': rows,
            'rejects': [(tile.job.number, *reject) for tile in tiles for reject in tile.rejects],
            'failed': [tile.job.number for tile in tiles if tile.unreadable],
            'refused': {t.job.facts['tile_id']: t.job.made_from for t in tiles if not t.cut and not t.unreadable},
            'digest': writer.seal(),
        }
        # the shard gets its name last: a shard that is there has its facts
        write_atomically(out / shard.sidecar, json.dumps(content).encode(), shared=True)
