"""Cut the tiles of a few shards: each tile's scenes in turn until one gives enough clear pixels, then write the shards.

Tiles that share their best scene stand together, so its blocks are read once for all of them
(`grafalign.scenes.blocks`); a tile that fails there is tried again with its next best scene, together with others that
want the same (`tile_progress.py`).
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from rasterio.enums import Resampling

from grafalign.errors import GrafalignError
from grafalign.files import Place, place, write_atomically
from grafalign.pairing.cut_job import CutJob, CutResult, ShardJob
from grafalign.pairing.tile_progress import TileProgress
from grafalign.scenes import BandSource, Cut, SceneCutter, SceneTiles, Uncut, band_sources, cloud_mask
from grafalign.scenes.items import public_assets_only
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SignSettings
from grafalign.store import ShardWriter
from grafalign.web.ranges import RangeReader

CLOUDY_CLASSES = (3, 8, 9, 10)
"""Classes of Sentinel-2's scene classification that hide the ground: cloud shadow, cloud of medium and high
probability, thin cirrus (Sen2Cor)."""
ByScene = dict[int, list[TileProgress]]


def cut_shards(job: CutJob, tell: Callable[[int, int, int], None] | None = None) -> CutResult:
    """Cut the tiles of a job and write its shards, each as soon as all its tiles are decided.

    Args:
        job: what to do.
        tell: called with the numbers of tiles, of failed and of rejected ones among them, as they are decided.
    """
    out = place(job.out)
    shards = [[TileProgress(tile, job) for tile in shard.tiles] for shard in job.shards]
    counted = CutResult(0, 0, 0)
    written = 0
    for _ in _decide([tile for shard in shards for tile in shard], job):
        while written < len(shards) and all(tile.decided for tile in shards[written]):
            _write(job.shards[written], shards[written], job, out)
            for tile in shards[written]:
                tile.cut = None  # on disk now
            written += 1
        now = _count(shards)
        if tell and now.tiles > counted.tiles:
            tell(now.tiles - counted.tiles, now.failed - counted.failed, now.rejected - counted.rejected)
            counted = now
    return _count(shards)


def _count(shards: list[list[TileProgress]]) -> CutResult:
    decided = [tile for shard in shards for tile in shard if tile.decided]
    failed = sum(tile.unreadable for tile in decided)
    return CutResult(len(decided), failed, sum(not tile.done for tile in decided) - failed)


class _Cutter:
    """Threads and connections of this process, and how a job uses them."""

    def __init__(self, job: CutJob) -> None:
        self._threads, source = job.recipe.run.threads, job.recipe.scenes
        self._pool, self._reader = _tools(self._threads, source.sign, public_assets_only(source))

    def cut(
        self, by_scene: ByScene, bands: dict[int, list[BandSource]], resampling: Resampling
    ) -> Iterator[tuple[int, TileProgress, Cut | Uncut]]:
        """Cut some bands of tiles; yields scene, tile and what became of it."""
        scenes = [scene for scene, tiles in by_scene.items() if tiles and scene in bands]
        wanted = [SceneTiles(bands[scene], [tile.box for tile in by_scene[scene]]) for scene in scenes]
        for index, result in SceneCutter(self._pool, self._reader, 2 * self._threads, resampling).cut(wanted):
            yield scenes[index], by_scene[scenes[index]][result.number], result


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


def _decide(tiles: list[TileProgress], job: CutJob) -> Iterator[None]:
    """Give every tile its pixels, or the reason why it has none; yields now and then."""
    cutter, sensor = _Cutter(job), job.recipe.sensor
    for tile in tiles:
        tile.begin()
    while waiting := [tile for tile in tiles if not tile.decided]:
        yield
        by_scene: ByScene = defaultdict(list)
        for tile in waiting:
            by_scene[tile.scene].append(tile)
        bands: dict[int, list[BandSource]] = {}
        for scene in list(by_scene):
            try:
                bands[scene] = band_sources(job.scenes[scene].item, sensor.bands, sensor.gsd_m, sensor.overrides)
            except GrafalignError as error:
                for tile in by_scene.pop(scene):
                    tile.skip(str(error))
        if job.recipe.max_tile_cloud_percent is not None:
            _leave_out_cloudy(by_scene, job, cutter)
        for _, tile, result in cutter.cut(by_scene, bands, Resampling[sensor.resampling]):
            if isinstance(result, Uncut):
                tile.skip(result.reason)
            else:
                tile.take(result)
            yield
    yield


def _leave_out_cloudy(by_scene: ByScene, job: CutJob, cutter: _Cutter) -> None:
    """Take tiles out of `by_scene` that the scene's own classification shows to be cloudy."""
    masks = {s: [m] for s in by_scene if (m := cloud_mask(job.scenes[s].item)) is not None}
    cloudy: dict[int, set[int]] = defaultdict(set)
    for scene, tile, result in cutter.cut(by_scene, masks, Resampling.nearest):
        if isinstance(result, Uncut):
            tile.skip(result.reason)
            cloudy[scene].add(result.number)
            continue
        classes = result.pixels[0][~result.missing]
        if not tile.see_clouds(int(np.isin(classes, CLOUDY_CLASSES).sum()), len(classes)):
            cloudy[scene].add(result.number)
    for scene, numbers in cloudy.items():
        by_scene[scene] = [tile for n, tile in enumerate(by_scene[scene]) if n not in numbers]


def _write(shard: ShardJob, tiles: list[TileProgress], job: CutJob, out: Place) -> None:
    """Write one shard and its sidecar."""
    rows: list[dict[str, Any]] = []
    sensor = job.recipe.sensor
    with ShardWriter(out / shard.name) as writer:
        for progress in tiles:
            if not progress.done or progress.cut is None:
                continue
            tile, pixels = progress.tile, progress.cut.pixels
            row = {**tile.planned._asdict(), **progress.columns, 'dtype': str(pixels.dtype)}
            inside = {**row, 'photos': tile.photos, 'bands': sensor.bands, 'gsd_m': sensor.gsd_m}
            offset, nbytes = writer.add(tile.planned.tile_id, pixels, inside)
            where = {'number': tile.number, 'shard': shard.name, 'byte_offset': offset, 'nbytes': nbytes}
            # not in the shard, whose bytes do not depend on where the scenes lie
            rows.append({**row, 'made_from': tile.made_from, **where})
        refused = [p.tile for p in tiles if not p.done and not p.unreadable]
        content = {
            'tiles': rows,
            'rejects': [(p.tile.number, *reject) for p in tiles for reject in p.rejects],
            'failed': [p.tile.number for p in tiles if p.unreadable],
            'refused': {tile.planned.tile_id: tile.made_from for tile in refused},
            'digest': writer.seal(),
        }
        # the shard gets its name last: a shard that is there has its sidecar
        write_atomically(out / shard.sidecar, json.dumps(content).encode(), shared=True)
