"""The end of pairing: from the sidecars of all shards to the store's tables, and last of all its marker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from grafalign import engine
from grafalign.files import Place, file_digest, write_atomically, write_table
from grafalign.pairing.inputs import INPUTS
from grafalign.pairing.jobs import Shard, sidecar_name
from grafalign.pairing.stages import Prepared
from grafalign.pairing.tables import make_tables
from grafalign.pairing.tile_progress import UNREADABLE
from grafalign.scenes.local import Rejected
from grafalign.scenes.table import items_to_parquet
from grafalign.store import MARKER, SCHEMA_VERSION, shard_name
from grafalign.store_marker import PairSummary, Sensor, StoreMarker

_TABLES = ('photos', 'tiles', 'pairs', 'rejected')


def finish(prepared: Prepared, work: Place, out: Place, shards: list[Shard]) -> PairSummary:
    """Write the tables from the shards' sidecars, then the marker.

    Args:
        prepared: photos, plan and scenes.
        work: folder that keeps the stages.
        out: the store.
        shards: all shards, in the order of their numbers; of a tile that is in several the last one counts.
    """
    recipe = prepared.recipe
    sidecars = _sidecars(out, shards)
    cut, rejects = _latest(shards, sidecars)
    photos, plan = prepared.photos, prepared.plan
    rejects += list(prepared.rejected_scenes.itertuples(index=False, name=None))
    refused = {tile_id: made_from for part in sidecars for tile_id, made_from in part.get('refused', {}).items()}
    tables = make_tables(recipe, photos, plan, cut, rejects, refused)
    for name in _TABLES:
        write_table(getattr(tables, name), out / f'{name}.parquet')
    mosaics = zip(tables.tiles['collection'], tables.tiles['mosaic'], strict=True)
    wanted = {(collection, item) for collection, items in mosaics for item in items}
    write_atomically(out / 'scenes.parquet', items_to_parquet(prepared.scenes.items_of(wanted)))
    rejected = tables.rejected
    summary = PairSummary(
        photos=len(photos.table) + int(photos.rejected['id'].nunique()),
        rejected=int((rejected['kind'] == 'photo').sum()),
        tiles=len(tables.tiles),
        pairs=len(tables.pairs),
        failed=int((rejected['reason'] == UNREADABLE).sum()),
        splits={str(k): int(v) for k, v in tables.tiles['split'].value_counts().sort_index().items()},
        reasons={str(k): int(v) for k, v in rejected['reason'].value_counts().items()},
    )
    digests = {f'{n}.parquet': file_digest(out / f'{n}.parquet') for n in (*_TABLES, 'scenes')}
    digests |= {shard_name(s.index): f['digest'] for s, f in zip(shards, sidecars, strict=True)}
    known = recipe.sensor
    sensor = Sensor(known.name, tuple(known.bands), known.gsd_m, known.size_px, known.value_range)
    marker = StoreMarker(
        schema_version=SCHEMA_VERSION,
        sensor=sensor,
        dtype=tables.dtype,
        recipe=recipe.model_dump(mode='json'),
        recipe_digest=recipe.digest,
        inputs=json.loads((work / INPUTS).read_text())['stamps'],
        summary=summary,
        files=digests,
        digest=hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest(),
    )
    marker.write(out / MARKER)
    return summary


def failed_tiles(out: Place, shards: list[Shard]) -> list[int]:
    """Rows of the plan's tiles whose last try failed."""
    last = _last_shard(shards)
    return sorted(
        number
        for shard, sidecars in zip(shards, _sidecars(out, shards), strict=True)
        for number in sidecars['failed']
        if last[number] == shard.index
    )


def _sidecars(out: Place, shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """What was written beside each shard."""
    wanted = [out / sidecar_name(s.index) for s in shards]
    read = dict(engine.run(lambda path: json.loads(path.read_text()), wanted, 8))
    return [read[i] for i in range(len(wanted))]


def _last_shard(shards: list[Shard]) -> dict[int, int]:
    return {number: shard.index for shard in shards for number in shard.tiles.tolist()}


def _latest(shards: list[Shard], sidecars: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Metadata of the tiles that were cut, and the rejects of every tile's last try."""
    last = _last_shard(shards)
    cut: list[dict[str, Any]] = []
    rejects: list[Rejected] = []
    for shard, part in zip(shards, sidecars, strict=True):
        cut += [row for row in part['tiles'] if last[row['number']] == shard.index]
        rejects += [tuple(r) for number, *r in part['rejects'] if last[number] == shard.index]
    return cut, rejects
