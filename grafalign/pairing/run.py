"""Run a recipe: photos -> plan -> scenes -> shards -> store, resuming whatever an earlier run left.

Stages that are expensive to repeat leave their result in `STORE/_work`; a shard counts as done once its .tar stands
under its final name (its metadata are written just before). Anything else is garbage that the next run overwrites. The
finished store is the same, byte for byte, however often the run was killed and whoever did the work. `_work` stays
only where some tiles could not be read, so that they can be tried again.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from grafalign import console, engine
from grafalign.errors import GrafalignError, InputError, StaleError, naming_full_disk
from grafalign.files import Place, make_folder, naming_url, remove_folder, remove_parts, write_atomically
from grafalign.locks import LOCK, exclusive
from grafalign.pairing.cut import cut_shards
from grafalign.pairing.cut_job import CutJob, CutResult
from grafalign.pairing.finish import failed_tiles, finish
from grafalign.pairing.inputs import INPUTS, changes, has_remote_source, input_stamps
from grafalign.pairing.jobs import Shard, group_shards, make_jobs, make_shards, sidecar_name, split_into_shards
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.stages import Prepared, prepare
from grafalign.scenes import RangeReader, SceneReadError, band_sources
from grafalign.scenes.items import check_source, public_assets_only
from grafalign.scenes.raster import Raster
from grafalign.scenes.signing import Signer
from grafalign.store import MARKER, PairStore, shard_name
from grafalign.store_marker import PairSummary

WORK = '_work'
UPDATE = '_update'
"""Below a store: its next state, while it is brought up to date."""
_RETRIES = 'retries.json'


def pair(
    recipe: Recipe, out: Place, workers: int | None = None, *, retry_failed: bool = False, update: bool = False
) -> PairSummary:
    """Make a pair store, or finish one that an earlier run began.

    Args:
        recipe: what to make.
        out: the store's folder or URL; created.
        workers: takes the place of `run.workers` of the recipe.
        retry_failed: of a finished store, try the tiles again of which no scene could be read, and nothing else.
        update: of a finished store, take in photos and scenes that came (or went) since; the result is, byte for byte,
            that of pairing anew, but only tiles that come out otherwise are cut.

    Raises:
        GrafalignError: the input is unusable, `out` holds the store of another recipe, another process is writing to
            it, or the disk is full.
    """
    if not isinstance(out, Path):
        if update:
            raise InputError(f'{out} is on a URL; --update needs a store on this machine: pair into another URL.')
        with naming_url(out):
            return _pair(recipe, out, workers, retry_failed)
    with naming_full_disk(out), exclusive(out):
        finish_update(out)
        if update and (out / MARKER).exists():
            return _update(recipe, out, workers)
        return _pair(recipe, out, workers, retry_failed)


def _pair(
    recipe: Recipe, out: Place, workers: int | None, retry_failed: bool, before: PairStore | None = None
) -> PairSummary:
    """`pair` in a folder that nobody else writes to; `before` is the state of the store that is brought up to date."""
    work = out / WORK
    if (out / MARKER).exists():
        summary = _summary_of(_own_store(recipe, out))
        if not summary.failed:
            remove_folder(work)
        if not (summary.failed and retry_failed):
            console.log(f'{out} is already complete.')
            if summary.failed:
                console.log(f'{summary.failed} tiles could not be read; `--retry-failed` tries them again.')
            _log_changes(recipe, out)
            return summary
    begun_at = begin(recipe, out)
    if not (work / 'photos.parquet').exists():
        check_source(recipe.scenes, recipe.sensor.bands, recipe.sensor.gsd_m)
    prepared = prepare(recipe, work, workers, None if before is None else begun_at)
    if not (out / 'tiles').exists():
        _check_bands(prepared)
    shards = _all_shards(prepared, out, retry_failed)
    _cut_all(prepared, out, shards, workers, before)
    remove_parts(out)
    summary = finish(prepared, work, out, shards)
    _tell_limits_without_effect(prepared, out)
    if not summary.failed:
        remove_folder(work)
    return summary


def _own_store(recipe: Recipe, out: Place) -> PairStore:
    """The finished store in a folder.

    Raises:
        GrafalignError: it was made by another recipe.
    """
    store = PairStore(out)
    if store.marker.recipe_digest != recipe.digest:
        raise StaleError(f'{out} holds the store of another recipe; give another folder or delete it.')
    return store


def _summary_of(store: PairStore) -> PairSummary:
    """The counts of a store that pairing made.

    Raises:
        GrafalignError: it was made otherwise.
    """
    if store.marker.summary is None:
        raise InputError(f'{store.path} was not made by pairing ({MARKER} has no summary); give another folder.')
    return store.marker.summary


def _log_changes(recipe: Recipe, out: Place) -> None:
    """Say what has changed since a store was made."""
    news = changes(PairStore(out).marker.inputs, input_stamps(recipe, out))
    if news:
        console.log(f'Since it was made, {" and ".join(news)}; `--update` takes that in.')


def _update(recipe: Recipe, out: Path, workers: int | None) -> PairSummary:
    """Pair anew beside the store, with the tiles that it has already, and let the result take its place."""
    store = _own_store(recipe, out)
    news = changes(store.marker.inputs, input_stamps(recipe, out))
    if not news and not has_remote_source(recipe) and not (out / UPDATE).exists():
        console.log(f'{out} is up to date.')
        return _summary_of(store)
    if news:
        console.log(f'{out}: {" and ".join(news)}')
    store.rejected  # noqa: B018, read before its file is replaced
    summary = _pair(recipe, out / UPDATE, workers, False, store)
    store.close()
    finish_update(out)
    return summary


def finish_update(out: Path) -> None:
    """Let the state of a store that an update made, if it is whole, take the place of the one before.

    May be killed and repeated: every step is a rename, and the marker of the new state moves last.
    """
    made = out / UPDATE
    if not (made / MARKER).is_file():
        return
    failed = _summary_of(PairStore(made)).failed
    (out / MARKER).unlink(missing_ok=True)  # from here on there is no store, until all files are those of the new state
    for name in (WORK, 'tiles'):
        if (made / name).is_dir():
            remove_folder(out / name)
            (made / name).rename(out / name)
    if not failed:
        remove_folder(out / WORK)
    for path in sorted(made.glob('*.parquet')):
        path.replace(out / path.name)
    (made / MARKER).replace(out / MARKER)
    remove_folder(made)


def _check_bands(prepared: Prepared) -> None:
    """Raise if no best scene has the recipe's bands, before anything is cut, so that the recipe can be mended."""
    best, sensor = np.unique(prepared.best_scene), prepared.recipe.sensor
    problem: GrafalignError | None = None
    for number in best[best >= 0].tolist():
        try:
            band_sources(prepared.scenes[number].item, sensor.bands, sensor.gsd_m, sensor.overrides)
            return
        except GrafalignError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _tell_limits_without_effect(prepared: Prepared, out: Place) -> None:
    """Say which limits of cloud had nothing to go by."""
    recipe = prepared.recipe
    if recipe.max_tile_cloud_percent is not None:
        unknown = int(PairStore(out).tiles['tile_cloud_percent'].isna().sum())
        if unknown:
            console.log(
                f'max_tile_cloud_percent had no effect on {unknown:,} tiles: their scenes have no scene classification '
                '(SCL).'
            )
    limit = recipe.scenes.max_cloud_percent
    if limit is not None and np.isnan(prepared.scenes.cloud_percent).all():
        console.log('scenes.max_cloud_percent had no effect: no scene says how cloudy it is (eo:cloud_cover).')


_DATA_TYPE = 'dtype.txt'
HEADERS = 20
"""Scenes whose headers are read to see how their pixels are stored."""


def _data_type(prepared: Prepared, work: Place) -> str:
    """How the scenes store their pixels, from some headers, before anything is cut; empty where none can be read.

    A store holds one type. Later scenes that turn out to be of another are done without.

    Raises:
        GrafalignError: the scenes that were looked at differ.
    """
    path = work / _DATA_TYPE
    if path.exists():
        return path.read_text()
    recipe, scenes = prepared.recipe, prepared.scenes
    best = np.unique(prepared.best_scene)
    best = best[best >= 0]
    picked = best[np.unique(np.linspace(0, len(best) - 1, min(HEADERS, len(best))).astype(int))] if len(best) else best
    signer = Signer(recipe.scenes.sign) if recipe.scenes.sign else None
    reader = RangeReader(recipe.run.threads, signer, private=not public_assets_only(recipe.scenes), retries=1)

    def look(number: int) -> tuple[str, str] | None:
        sensor = recipe.sensor
        try:
            band = band_sources(scenes[number].item, sensor.bands[:1], sensor.gsd_m, sensor.overrides)[0]
            raster = Raster(band.href, reader, mask=False)
            raster.close()
            return raster.dtypes[band.index - 1], scenes[number].item_id
        except (GrafalignError, SceneReadError, IndexError):
            return None

    found = dict(sorted(kind for _, kind in engine.run(look, picked.tolist(), recipe.run.threads) if kind is not None))
    if len(found) > 1:
        named = ' and '.join(f'{kind} ({item_id})' for kind, item_id in found.items())
        raise InputError(
            f'The scenes store their pixels as {named}; a store holds one type, so narrow scenes.collections (or '
            'scenes.where) to one of them.'
        )
    kind = next(iter(found), '')
    if kind:  # where no header could be read, the next run looks again
        write_atomically(path, kind.encode())
    return kind


def begin(recipe: Recipe, out: Place) -> datetime:
    """Make the folder that keeps the stages, or take over the one of an earlier run.

    Returns:
        When the first of these runs began.

    Raises:
        GrafalignError: `out` holds something else.
    """
    work = out / WORK
    if not work.exists() and out.exists() and any(p.name not in (LOCK, UPDATE) for p in out.iterdir()):
        raise InputError(f'{out} is not empty and holds no pair store; give a new or an empty folder.')
    begun = work / 'recipe.txt'
    if work.exists() and not begun.exists():
        remove_folder(work)  # a run was killed while it removed it, or before it began
    if begun.exists() and begun.read_text() != recipe.digest:
        if (out / 'tiles').exists():
            raise StaleError(f'{out} was begun with another recipe; give another folder or delete it.')
        remove_folder(work)  # nothing was cut yet: the recipe was mended after an error, so begin again
    make_folder(work)
    inputs = work / INPUTS
    if not inputs.exists():  # before they are read, so that what changes meanwhile is noticed later
        now = datetime.now(timezone.utc).isoformat(timespec='seconds')
        store = out.parent if out.name == UPDATE else out
        stamps = [stamp.model_dump() for stamp in input_stamps(recipe, store)]
        write_atomically(inputs, json.dumps({'begun_at': now, 'stamps': stamps}).encode())
    write_atomically(begun, recipe.digest.encode())
    return datetime.fromisoformat(json.loads(inputs.read_text())['begun_at'])


def _all_shards(prepared: Prepared, out: Place, retry_failed: bool) -> list[Shard]:
    """The shards of the plan, and after them those of every retry."""
    shards = make_shards(prepared)
    path = out / WORK / _RETRIES
    rounds: list[list[int]] = json.loads(path.read_text()) if path.exists() else []
    for tiles in rounds:
        shards += split_into_shards(prepared, np.array(tiles, dtype=np.int64), len(shards))
    if retry_failed and not _todo(out, shards):  # else a retry was killed before it began: go on with that one
        failed = failed_tiles(out, shards)
        write_atomically(path, json.dumps([*rounds, failed]).encode())
        shards += split_into_shards(prepared, np.array(failed, dtype=np.int64), len(shards))
    (out / MARKER).unlink(missing_ok=True)  # from here on the store is an unfinished one
    return shards


def _todo(out: Place, shards: list[Shard]) -> list[Shard]:
    """Shards that are not there yet."""
    tiles = out / 'tiles'
    there = {p.name for p in tiles.iterdir()} if tiles.exists() else set()
    metadata = {p.name for p in (out / WORK).iterdir()}
    return [
        s
        for s in shards
        if not (
            shard_name(s.index).rpartition('/')[2] in there and sidecar_name(s.index).rpartition('/')[2] in metadata
        )
    ]


def _cut_all(
    prepared: Prepared, out: Place, shards: list[Shard], workers: int | None, before: PairStore | None = None
) -> None:
    """Cut every shard that is not there yet, with the tiles of an earlier state that would come out the same."""
    todo = _todo(out, shards)
    if len(todo) < len(shards):
        console.log(f'resuming: {len(shards) - len(todo)} of {len(shards)} shards are done')
    settings = prepared.recipe.run
    team = engine.Engine(settings.engine, workers or settings.workers, settings.scheduler)
    jobs = make_jobs(
        prepared, out, group_shards(prepared, todo), _data_type(prepared, out / WORK) if todo else '', before
    )
    with console.progress('cutting tiles', sum(len(s.tiles) for s in todo)) as bar:

        def cut(job: CutJob) -> CutResult:
            return cut_shards(job, bar.advance)  # tile by tile, as the bar is in this process

        if team.kind == 'threads':
            for _ in engine.run(cut, jobs, team):
                pass
            return
        for _, result in engine.run(cut_shards, jobs, team):
            bar.advance(result.tiles, result.failed, result.rejected)
