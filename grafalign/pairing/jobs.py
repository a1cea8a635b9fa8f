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
from grafalign.pairing.cut_job import CutJob, PlannedTile, ShardJob, TileJob
from grafalign.pairing.inputs import made_from_digest, scene_digest
from grafalign.pairing.stages import Prepared
from grafalign.pairing.tile_progress import UNREAD_SCENE
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
    """File beside a shard, below the store: rows of its tiles, rejects, digest."""
    return f'_work/{index:05d}.json'


def make_shards(prepared: Prepared) -> list[Shard]:
    """All tiles of the plan in shards: those of one scene together and in reading order."""
    return split_into_shards(prepared, np.arange(len(prepared.plan.tiles)), 0)


def split_into_shards(prepared: Prepared, rows: Ints, first: int) -> list[Shard]:
    """Some tiles of the plan in shards, numbered from `first`."""
    tiles = prepared.plan.tiles
    best = prepared.best_scene[rows]
    left, top, epsg = (tiles[c].to_numpy()[rows] for c in ('left', 'top', 'epsg'))
    band = np.floor(
        -top / (8 * prepared.recipe.grid.side_m)
    )  # about a row of blocks, so that few tiles are open at once
    order = rows[np.lexsort((left, band, epsg, best))]
    size = prepared.recipe.shard_tiles
    return [Shard(first + i // size, order[i : i + size]) for i in range(0, len(order), size)]


def group_shards(prepared: Prepared, shards: list[Shard]) -> list[list[Shard]]:
    """Shards that are cut together."""
    recipe = prepared.recipe
    tile_bytes = 2 * len(recipe.sensor.bands) * recipe.sensor.size_px**2
    most = max(1, _JOB_BYTES // (tile_bytes * recipe.shard_tiles))
    best = prepared.best_scene
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
    prepared: Prepared, out: Place, groups: list[list[Shard]], dtype: str = '', before: PairStore | None = None
) -> Iterator[CutJob]:
    """The jobs of groups of shards, made one by one as they are wanted.

    Args:
        prepared: what is to be cut.
        out: the store.
        groups: shards that are cut together.
        dtype: data type of all pixels.
        before: an earlier state of the store, of whose tiles those are taken that would come out the same.
    """
    choice, tiles = prepared.choice, prepared.plan.tiles
    reusable, digests = KeptTiles(before), _SceneDigests(prepared)
    photos = np.diff(prepared.first_pair)
    where = str(out.resolve() if isinstance(out, Path) else out)

    def job_of(number: int, planned: PlannedTile) -> TileJob:
        kept = int((choice.scene[number] >= 0).sum())
        scenes = choice.scene[number, :kept].tolist()
        mates = [[m for m in choice.mates[number, k].tolist() if m >= 0] for k in range(kept)]
        made_from = made_from_digest(
            planned.tile_id, [digests[s] for s in scenes], [[digests[m] for m in ms] for ms in mates], dtype
        )
        return TileJob(
            number=number,
            planned=planned,
            photos=int(photos[number]),
            scenes=scenes,
            coverage=choice.coverage[number, :kept].tolist(),
            days_apart=choice.days_apart[number, :kept].tolist(),
            considered=int(choice.considered[number]),
            mates=mates,
            made_from=made_from,
            kept=reusable.place(made_from),
            refused=reusable.refused(made_from),
        )

    for group in groups:
        shards = []
        for shard in group:
            planned = (PlannedTile(**record) for record in tiles.iloc[shard.tiles].to_dict('records'))
            jobs = [job_of(number, tile) for number, tile in zip(shard.tiles.tolist(), planned, strict=True)]
            shards.append(ShardJob(shard_name(shard.index), sidecar_name(shard.index), jobs))
        of_group = [job for shard_job in shards for job in shard_job.tiles]
        wanted = {s for job in of_group for s in (*job.scenes, *(m for mates in job.mates for m in mates))}
        yield CutJob(where, shards, {s: prepared.scenes[s] for s in sorted(wanted)}, prepared.recipe, dtype)


class _SceneDigests(dict[int, str]):
    """Digest of a scene by its number, made when first asked for."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self._prepared = prepared

    def __missing__(self, number: int) -> str:
        self[number] = scene_digest(self._prepared.scenes[number], self._prepared.recipe)
        return self[number]
