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
from grafalign.pairing.cut import UNREAD_SCENE, CutJob, ShardJob, TileJob
from grafalign.pairing.inputs import made_from_digest, scene_digest
from grafalign.pairing.stages import Stages
from grafalign.scenes.items import public_assets_only
from grafalign.store import PairStore, shard_name

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


class KeptTiles:
    """Tiles of an earlier state of a store that need not be cut (or tried) again, by their `made_from`.

    Those beside which a scene could not be read are left out: their rejects tell of it, and trying again may help.
    """

    def __init__(self, store: PairStore | None) -> None:
        self._places: dict[str, tuple[str, int, int]] = {}
        self._reasons: dict[str, tuple[str, str]] = {}
        if store is None or not isinstance(store.path, Path):
            return
        rejected = store.rejected
        if 'made_from' not in store.tiles or 'made_from' not in rejected:
            return  # of before they were written
        unread = rejected.loc[(rejected['kind'] == 'scene') & (rejected['reason'] == UNREAD_SCENE), 'detail']
        beside = set(unread.astype(str).str.partition(':')[0]) if len(unread) else set()
        names = zip(store.tiles['tile_id'], store.tiles['made_from'], *store.places, strict=True)
        for tile_id, made_from, shard, offset, nbytes in names:
            if tile_id not in beside:
                self._places[made_from] = str(store.path / shard), offset, nbytes
        refused = rejected[rejected['made_from'].notna() & ~rejected['id'].isin(beside)]
        reasons = zip(refused['reason'].astype(str), refused['detail'].astype(str), strict=True)
        self._reasons = dict(zip(refused['made_from'].astype(str), reasons, strict=True))

    def place(self, made_from: str) -> tuple[str, int, int] | None:
        """Shard, byte offset and length of a tile that was made from the same."""
        return self._places.get(made_from)

    def refused(self, made_from: str) -> tuple[str, str] | None:
        """Reason and detail, where a tile that was made from the same was rejected."""
        return self._reasons.get(made_from)


def make_jobs(
    stages: Stages, out: Place, groups: list[list[Shard]], dtype: str = '', before: PairStore | None = None
) -> Iterator[CutJob]:
    """The jobs of groups of shards, made one by one as they are wanted.

    Args:
        stages: what is to be cut.
        out: the store.
        groups: shards that are cut together.
        dtype: data type of all pixels.
        before: an earlier state of the store, of whose tiles those are taken that would come out the same.
    """
    recipe, choice, tiles = stages.recipe, stages.choice, stages.plan.tiles
    reusable, digests = KeptTiles(before), _SceneDigests(stages)
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
                made_from = made_from_digest(
                    str(facts['tile_id']),
                    [digests[s] for s in scenes],
                    [[digests[m] for m in ms] for ms in mates],
                    dtype,
                )
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
                        made_from,
                        reusable.place(made_from),
                        reusable.refused(made_from),
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


class _SceneDigests(dict[int, str]):
    """Digest of a scene by its number, made when first asked for."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self._stages = stages

    def __missing__(self, number: int) -> str:
        self[number] = scene_digest(self._stages.scenes.scenes[number], self._stages.recipe)
        return self[number]
