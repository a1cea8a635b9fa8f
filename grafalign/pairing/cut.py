"""Cut the tiles of a few shards: each tile's scenes in turn until one gives enough clear pixels, then write the shards.

One job holds all it needs, so that any thread, process or Dask worker can do it. Tiles that share their best scene
stand together, so its blocks are read once for all of them (`grafalign.scenes.blocks`); a tile that fails there is
tried again with its next best scene, together with others that want the same.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from grafalign.errors import GrafalignError
from grafalign.files import Place, place, write_atomically
from grafalign.geo import TileGrid
from grafalign.scenes import BandSource, Scene, SceneCutter, SceneTiles, band_sources, cloud_mask
from grafalign.scenes.ranges import RangeReader
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SignSettings
from grafalign.store import ShardWriter

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
    pixels: npt.NDArray[np.generic] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    emptiest: float = 0.0
    cloudiest: float = 0.0
    decided: bool = False
    cut: bool = False
    unreadable: bool = False


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
                tile.pixels = None  # on disk now
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
        if not tile.job.scenes:
            tile.rejects.append(('tile', tile.job.facts['tile_id'], 'no scene over the place', ''))
            tile.decided = True
    while open_tiles := [t for t in tiles if not t.decided]:
        yield
        by_scene: dict[int, list[_Progress]] = defaultdict(list)
        for tile in open_tiles:
            by_scene[tile.job.scenes[tile.attempt]].append(tile)
        sources: dict[int, list[BandSource]] = {}
        for scene in list(by_scene):
            try:
                sources[scene] = band_sources(job.scenes[scene].item, job.bands)
            except GrafalignError as error:
                for tile in by_scene.pop(scene):
                    _next_scene(tile, job, str(error))
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
                _next_scene(tile, job, cut.problem)
            elif (empty := float(cut.missing.mean())) > job.max_nodata:
                tile.emptiest = max(tile.emptiest, empty)
                _next_scene(tile, job)
            else:
                tile.pixels, tile.decided, tile.cut = cut.pixels, True, True
                tile.facts |= _facts(tile, job.scenes[scene], sources[scene], empty)
            yield
    yield


def _box(tile: _Progress, job: CutJob) -> Any:
    facts = tile.job.facts
    return job.grid.geobox(facts['epsg'], facts['left'], facts['top'])


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
            _next_scene(tile, job, cut.problem)
            cloudy[scene].add(cut.number)
            continue
        seen = cut.pixels[0][~cut.missing]
        percent = 100 * float(np.isin(seen, CLOUDY_CLASSES).mean()) if len(seen) else 0.0
        tile.facts['tile_cloud_percent'] = percent
        if job.max_tile_cloud_percent is not None and percent > job.max_tile_cloud_percent:
            tile.cloudiest = max(tile.cloudiest, percent)
            _next_scene(tile, job)
            cloudy[scene].add(cut.number)
    for scene, numbers in cloudy.items():
        by_scene[scene] = [t for n, t in enumerate(by_scene[scene]) if n not in numbers]


def _next_scene(tile: _Progress, job: CutJob, problem: str = '') -> None:
    """Note why a scene would not do, and go on to the next one or give the tile up."""
    tile_id = tile.job.facts['tile_id']
    tile.facts = {}
    if problem:
        scene = job.scenes[tile.job.scenes[tile.attempt]]
        tile.rejects.append(('scene', scene.item_id, 'scene cannot be read', f'{tile_id}: {problem}'))
    tile.attempt += 1
    if tile.attempt < len(tile.job.scenes):
        return
    tile.decided = True
    if tile.rejects:  # trying again may help, so this comes first
        tile.unreadable = True
        tile.rejects.append(('tile', tile_id, UNREADABLE, f'{len(tile.rejects)} of {tile.attempt} scenes failed'))
    elif tile.emptiest:
        tile.rejects.append(('tile', tile_id, 'too many missing pixels', f'{100 * tile.emptiest:.0f} % nodata'))
    else:
        tile.rejects.append(('tile', tile_id, 'too cloudy', f'{tile.cloudiest:.0f} % cloud inside the tile'))


UNREADABLE = 'no scene could be read'
"""Why a tile was rejected that is worth another try."""


def _facts(tile: _Progress, scene: Scene, sources: list[BandSource], empty: float) -> dict[str, Any]:
    attempt = tile.attempt
    days = tile.job.days_apart[attempt]
    return {
        'item_id': scene.item_id,
        'collection': scene.collection,
        'datetime': scene.when.isoformat(),
        'cloud_cover': scene.cloud_percent,
        'tile_cloud_percent': tile.facts.get('tile_cloud_percent'),
        'processing_baseline': scene.baseline,
        'nodata_fraction': empty,
        'scale': [s.scale for s in sources],
        'offset': [s.offset for s in sources],
        'coverage': round(tile.job.coverage[attempt], 6),
        'days_apart': None if days != days else round(days, 6),
        'scene_rank': attempt,
        'scenes_considered': tile.job.considered,
    }


def _write(shard: ShardJob, tiles: list[_Progress], job: CutJob, out: Place) -> None:
    """Write one shard and its facts."""
    rows: list[dict[str, Any]] = []
    with ShardWriter(out / shard.name) as writer:
        for tile in tiles:
            if tile.pixels is None:
                continue
            row = {**tile.job.facts, **tile.facts, 'dtype': str(tile.pixels.dtype)}
            inside = {**row, 'photos': tile.job.photos, 'bands': job.bands, 'gsd_m': job.grid.gsd_m}
            offset, nbytes = writer.add(tile.job.facts['tile_id'], tile.pixels, inside)
            rows.append(
                {**row, 'number': tile.job.number, 'shard': shard.name, 'byte_offset': offset, 'nbytes': nbytes}
            )
        content = {
            'tiles': rows,
            'rejects': [(tile.job.number, *reject) for tile in tiles for reject in tile.rejects],
            'failed': [tile.job.number for tile in tiles if tile.unreadable],
            'digest': writer.seal(),
        }
        # the shard gets its name last: a shard that is there has its facts
        write_atomically(out / shard.sidecar, json.dumps(content).encode(), shared=True)
