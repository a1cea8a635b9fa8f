"""What pairing would take, before any pixel is read: photos, tiles, scenes, requests, bytes and time."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from grafalign import console, engine
from grafalign.errors import GrafalignError, naming_full_disk
from grafalign.files import Place
from grafalign.locks import exclusive
from grafalign.pairing.jobs import group_shards, make_shards
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.run import HEADERS, WORK, begin
from grafalign.pairing.stages import Prepared, prepare
from grafalign.scenes import BandSource, RangeReader, Scene, SceneReadError, band_sources, cloud_mask
from grafalign.scenes.cost import FileCost, Layout, assumed_layout, file_cost, item_grid, read_layout
from grafalign.scenes.items import public_assets_only
from grafalign.scenes.signing import Signer
from grafalign.store import MARKER

BANDWIDTH = 25e6
"""Bytes a second that the estimate reckons with (200 Mbit/s)."""
DECODING = 150e6
"""Decoded bytes a second and core that it reckons with (DEFLATE)."""
_SAMPLES = 3
"""Scenes of a collection whose headers may be tried."""


def explain(
    recipe: Recipe, out: Place | None = None, map_page: Path | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Estimate what a recipe takes. Reads the photos' metadata, the scenes' items, and the headers of a few files.

    Args:
        recipe: the recipe.
        out: store to be made; photos, plan and scenes found here are kept there for the real run.
        map_page: HTML page to write with a map of tiles and photos.
        workers: threads that read photos.

    Returns:
        Counts and estimates, with the assumptions behind them; times in seconds.

    Raises:
        GrafalignError: as `pair`.
    """
    if out is None or (out / MARKER).exists():
        with tempfile.TemporaryDirectory(prefix='grafalign-') as folder:
            return _explain(prepare(recipe, Path(folder), workers), map_page)
    with exclusive(out):
        begin(recipe, out)
        return _explain(prepare(recipe, out / WORK, workers), map_page)


def _explain(prepared: Prepared, map_page: Path | None) -> dict[str, Any]:
    recipe, plan, photos = prepared.recipe, prepared.plan, prepared.photos
    scenes, choice = prepared.scenes, prepared.choice
    best = choice.scene[:, 0]
    wanted, costs, layouts, problems = _costs(prepared)
    warped, origin = _warped(prepared, wanted, costs)
    total = {k: float(sum(getattr(c, k) for c in costs)) for k in ('requests', 'bytes', 'blocks', 'reads')}
    decoded = float(sum(c.decoded_bytes for c in costs))
    remote = any(layout.remote for layout in layouts)
    latency = float(np.median([layout.header_seconds for layout in layouts])) if remote else 0.0
    seconds = {
        'waiting': total['requests'] * latency / recipe.run.threads,
        'transfer': total['bytes'] / BANDWIDTH if remote else 0.0,
        'decoding': decoded / DECODING / engine.default_workers(),
    }
    item_bytes = layouts[0].decoded_bytes / (layouts[0].block_width * layouts[0].block_height) if layouts else 2
    reasons = Counter(photos.rejected['reason']) + Counter(plan.dropped['reason'].astype(str))
    estimate: dict[str, Any] = {
        'photos': len(photos.table) + int(photos.rejected['id'].nunique()),
        'rejected': dict(reasons.most_common()),
        'tiles': len(plan.tiles),
        'splits': {str(k): int(v) for k, v in plan.tiles['split'].value_counts().sort_index().items()},
        'pairs': len(plan.pairs),
        'tiles_without_scene': int((best < 0).sum()),
        'tiles_copied': int((best >= 0).sum()) - len(warped),
        'tiles_warped': len(warped),
        'grid_origin_m': origin,
        'tiles_over_seams': int(choice.seams.sum()),
        'mosaic': recipe.sensor.mosaic,
        'scenes': len(np.unique(best[best >= 0])),
        'scenes_found': len(scenes),
        'search': prepared.search_counts,
        'files': len({(f.source.href, f.scene.item_id) for f in wanted}),
        'blocks': int(total['blocks']),
        'requests': int(total['requests']) + (min(HEADERS, len(np.unique(best[best >= 0]))) if remote else 0),
        'reads_per_block': round(total['reads'] / max(total['blocks'], 1), 2),
        'bytes': int(total['bytes']),
        'store_bytes': int((best >= 0).sum() * len(recipe.sensor.bands) * recipe.sensor.size_px**2 * item_bytes),
        'seconds': round(max(seconds.values()), 1),
        'seconds_of': {k: round(v, 1) for k, v in seconds.items()},
        'assumptions': {
            'latency_s': round(latency, 4),
            'bytes_per_s': BANDWIDTH,
            'decoded_bytes_per_s_and_core': DECODING,
            'threads': recipe.run.threads,
            'headers_read': sum(not layout.assumed for layout in layouts),
            'problems': problems,
        },
    }
    if map_page is not None:
        from grafalign.pairing.map_page import write_map

        table = photos.table
        lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
        with naming_full_disk(map_page):
            map_page.parent.mkdir(parents=True, exist_ok=True)
            write_map(map_page, recipe.photos.name, recipe.grid, plan, lon, lat, rows(estimate))
        estimate['map'] = str(map_page)
    return estimate


@dataclass(frozen=True)
class _Wanted:
    """A file of a best scene, and what is wanted of it."""

    kind: tuple[str, int]
    """Collection, and place among the files of a scene: files of one kind are laid out alike."""
    scene: Scene
    source: BandSource
    resampling: Resampling
    tiles: npt.NDArray[np.int64]
    """Rows of the plan."""
    mask: bool = False
    """It tells clouds and is no band of the tile."""


def _warped(
    prepared: Prepared, wanted: list[_Wanted], costs: list[FileCost]
) -> tuple[set[int], tuple[float, float] | None]:
    """Tiles that will be resampled, and the origin of the grid that most of their scenes have, where they share one."""
    recipe, tiles = prepared.recipe, prepared.plan.tiles
    warped: set[int] = set()
    origins: Counter[tuple[float, float]] = Counter()
    gsd = recipe.sensor.gsd_m
    for file, cost in zip(wanted, costs, strict=True):
        rows = file.tiles[~cost.copied]
        if file.mask or not len(rows):
            continue
        warped |= set(rows.tolist())
        grid = cost.grid
        if abs(grid.transform.a - gsd) < 1e-6 * gsd and grid.crs_name == f'EPSG:{tiles["epsg"].iloc[rows[0]]}':
            origins[round(grid.transform.c % gsd, 6), round(grid.transform.f % gsd, 6)] += len(rows)
    origin = origins.most_common(1)[0][0] if origins else None
    return warped, origin


def _costs(prepared: Prepared) -> tuple[list[_Wanted], list[FileCost], list[Layout], list[str]]:
    """Every file of every best scene and its cost, the layouts reckoned with, and what could not be reckoned."""
    recipe, tiles = prepared.recipe, prepared.plan.tiles
    problems: Counter[str] = Counter()
    wanted = list(_wanted_files(prepared, problems))
    layouts = _layouts(recipe, wanted, problems)
    costs = []
    for file in console.track(wanted, 'reckoning'):
        layout, part = layouts[file.kind], tiles.iloc[file.tiles]
        boxes = [recipe.grid.geobox(*place) for place in zip(part['epsg'], part['left'], part['top'], strict=True)]
        grid = item_grid(file.scene.item, file.source.href, layout, boxes, recipe.sensor.gsd_m)
        costs.append(file_cost(grid, layout, boxes, file.resampling))
    return wanted, costs, list(layouts.values()), [f'{text} ({n} times)' for text, n in problems.most_common(5)]


def _wanted_files(prepared: Prepared, problems: Counter[str]) -> Iterator[_Wanted]:
    """Every file as often as it will be opened: once for each job that cuts tiles of its scene."""
    recipe, scenes, choice = prepared.recipe, prepared.scenes, prepared.choice
    for group in group_shards(prepared, make_shards(prepared)):
        rows = np.concatenate([shard.tiles for shard in group])
        numbers = choice.scene[rows, 0]
        over = rows[choice.seams[rows]]  # the first of its mates fills what the best scene leaves
        rows = np.concatenate([rows, over])
        numbers = np.concatenate([numbers, choice.mates[over, 0, 0]]) if len(over) else numbers
        for number in np.unique(numbers[numbers >= 0]).tolist():
            scene, mine = scenes[number], rows[numbers == number]
            try:
                sources = list({s.href: s for s in _bands_of(recipe, scene)}.values())
            except GrafalignError as error:
                problems[str(error)] += 1
                continue
            resampling = Resampling[recipe.sensor.resampling]
            for place, source in enumerate(sources):
                yield _Wanted((scene.collection, place), scene, source, resampling, mine)
            if recipe.max_tile_cloud_percent is not None and (mask := cloud_mask(scene.item)) is not None:
                yield _Wanted((scene.collection, len(sources)), scene, mask, Resampling.nearest, mine, mask=True)


def _bands_of(recipe: Recipe, scene: Scene) -> list[BandSource]:
    sensor = recipe.sensor
    return band_sources(scene.item, sensor.bands, sensor.gsd_m, sensor.overrides)


def _layouts(recipe: Recipe, wanted: list[_Wanted], problems: Counter[str]) -> dict[tuple[str, int], Layout]:
    """The layout of each kind of file, from the first header that can be read, or assumed."""
    signer = Signer(recipe.scenes.sign) if recipe.scenes.sign else None
    reader = RangeReader(recipe.run.threads, signer, private=not public_assets_only(recipe.scenes), retries=1)
    samples: dict[tuple[str, int], list[_Wanted]] = defaultdict(list)
    for file in wanted:
        if len(samples[file.kind]) < _SAMPLES:
            samples[file.kind].append(file)
    layouts: dict[tuple[str, int], Layout] = {}
    for kind, files in samples.items():
        for file in files:
            try:
                layouts[kind] = read_layout(file.source, reader, recipe.sensor.gsd_m)
                break
            except SceneReadError as error:
                problems[str(error)] += 1
        else:
            layouts[kind] = assumed_layout(recipe.sensor.gsd_m)
            problems[f'no header of {kind[0]} could be read: blocks of 512 px are assumed'] += 1
    return layouts


def rows(estimate: dict[str, Any]) -> list[tuple[str, str]]:
    """The estimate as rows of a table for people."""
    splits = ', '.join(f'{k} {v:,}' for k, v in estimate['splits'].items())
    of = estimate['seconds_of']
    shown = [
        ('photos', f'{estimate["photos"]:,}'),
        ('rejected, or not in a tile', f'{sum(estimate["rejected"].values()):,}'),
        ('tiles', f'{estimate["tiles"]:,} ({splits})'),
        ('pairs', f'{estimate["pairs"]:,}'),
        ('tiles without a scene', f'{estimate["tiles_without_scene"]:,}'),
        ('copied from the scene, or resampled', f'{estimate["tiles_copied"]:,}, {estimate["tiles_warped"]:,}'),
        *(
            [('over the seam of two scenes', f'{estimate["tiles_over_seams"]:,}, made of the scenes of a day')]
            if estimate['mosaic'] == 'day'
            else []
        ),
        ('scenes', f'{estimate["scenes"]:,} of {estimate["scenes_found"]:,} found'),
        ('files', f'{estimate["files"]:,}'),
        ('requests', f'{estimate["requests"]:,}'),
        ('reads per block, tile by tile', f'{estimate["reads_per_block"]:.1f}'),
        ('to download', size_text(estimate['bytes'])),
        ('store', size_text(estimate['store_bytes'])),
        ('time, about', f'{duration_text(estimate["seconds"])}'),
        ('of which', ', '.join(f'{k} {duration_text(v)}' for k, v in of.items()) + ' (side by side)'),
    ]
    notes = list(estimate['assumptions']['problems'])
    if estimate['tiles_warped'] and estimate['grid_origin_m'] is not None:
        east, north = estimate['grid_origin_m']
        notes.append(
            f'the scenes lie on another grid; with sensor.origin_m: [{east:g}, {north:g}] tiles would be copied'
        )
    return [*shown, *(('note', note) for note in notes)]


def show(estimate: dict[str, Any], title: str) -> None:
    """Write the estimate as tables."""
    console.table(title, ('', ''), rows(estimate))
    if estimate['rejected']:
        console.histogram('rejected, or not in a tile', estimate['rejected'])
    made = estimate['assumptions']
    console.log(
        f'Reckoned with {made["bytes_per_s"] / 1e6:.0f} MB/s, {made["latency_s"] * 1000:.0f} ms a request, '
        f'{made["threads"]} threads, and block layouts read from {made["headers_read"]} headers.'
    )
    if 'map' in estimate:
        console.log(estimate['map'])


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:,.3g} TB'


def duration_text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f'{seconds:.3g} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:,.1f} h'
