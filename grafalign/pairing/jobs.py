"""From a plan to jobs: which tiles go into which shard, and which shards are cut together.

Tiles of one best scene stand together and in reading order, so that its blocks are read once; a job is a few shards in
a row that share their scene, small enough that all its tiles fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign.files import Place
from grafalign.pairing.cut import CutJob, ShardJob, TileJob
from grafalign.pairing.stages import Stages
from grafalign.scenes.items import public_assets_only
from grafalign.store import shard_name

Ints = npt.NDArray[np.int64]

_JOB_BYTES = 256 << 20
"""Pixels of all tiles of a job, about; a shard is never cut into parts."""


@dataclass(frozen=True)
class Shard:
    """Number of a shard and its tiles, as rows of the plan."""

    index: int
    tiles: Ints


def sidecar_name(index: int) -> str:
    """File with the facts of a shard, below the store."""
    return f'_work/{index:05d}.json'


def make_shards(stages: Stages) -> list[Shard]:
    """All tiles of the plan in shards: those of one scene together and in reading order."""
    return split_into_shards(stages, np.arange(len(stages.plan.tiles)), 0)


def split_into_shards(stages: Stages, rows: Ints, first: int) -> list[Shard]:
    """Some tiles of the plan in shards, numbered from `first`."""
    tiles = stages.plan.tiles
    best = stages.choice.scene[rows, 0]
    left, top, epsg = (tiles[c].to_numpy()[rows] for c in ('left', 'top', 'epsg'))
    band = np.floor(-top / (8 * stages.recipe.grid.side_m))  # about a row of blocks, so that few tiles are open at once
    order = rows[np.lexsort((left, band, epsg, best))]
    size = stages.recipe.shard_tiles
    return [Shard(first + i // size, order[i : i + size]) for i in range(0, len(order), size)]


def group_shards(stages: Stages, shards: list[Shard]) -> list[list[Shard]]:
    """Shards that are cut together."""
    recipe = stages.recipe
    tile_bytes = 2 * len(recipe.sensor.bands) * recipe.sensor.size_px**2
    most = max(1, _JOB_BYTES // (tile_bytes * recipe.shard_tiles))
    best = stages.choice.scene[:, 0]
    groups: list[list[Shard]] = []
    for shard in shards:
        last = groups[-1] if groups else None
        if (
            last
            and len(last) < most
            and last[-1].index + 1 == shard.index
            and best[last[-1].tiles[-1]] == best[shard.tiles[0]]
        ):
            last.append(shard)
        else:
            groups.append([shard])
    return groups


def make_jobs(stages: Stages, out: Place, groups: list[list[Shard]], dtype: str = '') -> Iterator[CutJob]:
    """The jobs of groups of shards, made one by one as they are wanted; `dtype` is that of all pixels."""
    recipe, choice, tiles = stages.recipe, stages.choice, stages.plan.tiles
    photos = np.diff(stages.first_pair)
    where = str(out.resolve() if isinstance(out, Path) else out)
    for group in groups:
        wanted: set[int] = set()
        shards = []
        for shard in group:
            records = tiles.iloc[shard.tiles].to_dict('records')
            jobs = []
            for number, facts in zip(shard.tiles.tolist(), records, strict=True):
                options = choice.scene[number]
                kept = int((options >= 0).sum())
                scenes = options[:kept].tolist()
                mates = [[m for m in choice.mates[number, k].tolist() if m >= 0] for k in range(kept)]
                wanted.update(scenes, *mates)
                jobs.append(
                    TileJob(
                        number,
                        {str(k): v for k, v in facts.items()},
                        int(photos[number]),
                        scenes,
                        choice.coverage[number, :kept].tolist(),
                        choice.days_apart[number, :kept].tolist(),
                        int(choice.considered[number]),
                        mates,
                    )
                )
            shards.append(ShardJob(shard_name(shard.index), sidecar_name(shard.index), jobs))
        yield CutJob(
            where,
            shards,
            {s: stages.scenes.scenes[s] for s in sorted(wanted)},
            recipe.grid,
            recipe.sensor.bands,
            recipe.sensor.resampling,
            recipe.max_nodata,
            recipe.max_tile_cloud_percent,
            recipe.scenes.sign,
            public_assets_only(recipe.scenes),
            recipe.run.threads,
            recipe.sensor.overrides,
            recipe.sensor.value_range,
            dtype,
        )
