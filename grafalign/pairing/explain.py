"""What pairing would take, before any pixel is read: photos, tiles, scenes, requests, bytes and time."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import Resampling

from grafalign import console, engine
from grafalign.errors import GrafalignError
from grafalign.files import Place
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.run import WORK, begin
from grafalign.pairing.stages import Stages
from grafalign.scenes import BandSource, RangeReader, SceneReadError, band_sources, cloud_mask
from grafalign.scenes.cost import FileCost, Layout, file_cost, item_grid, read_layout
from grafalign.scenes.items import public_assets_only
from grafalign.scenes.signing import Signer

BANDWIDTH = 25e6
"""Bytes a second that the estimate reckons with (200 Mbit/s)."""
DECODING = 150e6
"""Decoded bytes a second and core that it reckons with (DEFLATE)."""
_SAMPLES = 3
"""Scenes of a collection whose headers may be tried."""


def explain(
    recipe: Recipe, out: Place | None = None, map_page: Path | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Estimate what a recipe takes. Reads the photos' facts, the scenes' items, and the headers of a few files.

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
    if out is None:
        with tempfile.TemporaryDirectory(prefix='grafalign-') as folder:
            return _explain(Stages(recipe, Path(folder), workers), map_page)
    begin(recipe, out)
    return _explain(Stages(recipe, out / WORK, workers), map_page)


def _explain(stages: Stages, map_page: Path | None) -> dict[str, Any]:
    recipe, plan, photos = stages.recipe, stages.plan, stages.photos
    scenes, choice = stages.scenes.scenes, stages.choice
    best = choice.scene[:, 0]
    costs, layouts, problems = _costs(stages)
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
    told: dict[str, Any] = {
        'photos': len(photos.table) + int(photos.rejected['id'].nunique()),
        'rejected': dict(reasons.most_common()),
        'tiles': len(plan.tiles),
        'splits': {str(k): int(v) for k, v in plan.tiles['split'].value_counts().sort_index().items()},
        'pairs': len(plan.pairs),
        'tiles_without_scene': int((best < 0).sum()),
        'scenes': len(np.unique(best[best >= 0])),
        'scenes_found': len(scenes),
        'files': len(costs),
        'blocks': int(total['blocks']),
        'requests': int(total['requests']),
        'reads_per_block': round(total['reads'] / max(total['blocks'], 1), 2),
        'bytes': int(total['bytes']),
        'store_bytes': int(len(plan.tiles) * len(recipe.sensor.bands) * recipe.sensor.size_px**2 * item_bytes),
        'seconds': round(max(seconds.values()), 1),
        'seconds_of': {k: round(v, 1) for k, v in seconds.items()},
        'assumptions': {
            'latency_s': round(latency, 4),
            'bytes_per_s': BANDWIDTH,
            'decoded_bytes_per_s_and_core': DECODING,
            'threads': recipe.run.threads,
            'headers_read': len(layouts),
            'problems': problems,
        },
    }
    if map_page is not None:
        from grafalign.pairing.map_page import write_map

        map_page.parent.mkdir(parents=True, exist_ok=True)
        table = photos.table
        lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
        write_map(map_page, recipe.photos.name, recipe.grid, plan, lon, lat, rows(told))
        told['map'] = str(map_page)
    return told


def _costs(stages: Stages) -> tuple[list[FileCost], list[Layout], list[str]]:
    """The cost of every file of every best scene, the layouts that were read, and what could not be reckoned."""
    recipe, scenes = stages.recipe, stages.scenes.scenes
    best = stages.choice.scene[:, 0]
    order = np.argsort(best, kind='stable')
    tiles = stages.plan.tiles
    signer = Signer(recipe.scenes.sign) if recipe.scenes.sign else None
    reader = RangeReader(recipe.run.threads, signer, private=not public_assets_only(recipe.scenes), retries=1)
    layouts: dict[tuple[str, str], Layout] = {}
    tried: Counter[tuple[str, str]] = Counter()
    costs: list[FileCost] = []
    problems: Counter[str] = Counter()
    numbers, starts = np.unique(best[order], return_index=True)
    found = list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))
    for number, rows_of in console.track(found, 'reckoning'):
        if number < 0:
            continue
        scene = scenes[number]
        try:
            by_href: dict[str, BandSource] = {s.href: s for s in band_sources(scene.item, recipe.sensor.bands)}
            files = [(s, Resampling[recipe.sensor.resampling]) for s in by_href.values()]
            if recipe.max_tile_cloud_percent is not None and (mask := cloud_mask(scene.item)) is not None:
                files.append((mask, Resampling.nearest))
        except GrafalignError as error:
            problems[str(error)] += 1
            continue
        part = tiles.iloc[rows_of]
        boxes = [recipe.grid.geobox(*place) for place in zip(part['epsg'], part['left'], part['top'], strict=True)]
        for place, (source, resampling) in enumerate(files):
            kind = (scene.collection, str(place))
            if kind not in layouts and tried[kind] < _SAMPLES:
                tried[kind] += 1
                try:
                    layouts[kind] = read_layout(source, reader, recipe.sensor.gsd_m)
                except SceneReadError as error:
                    problems[str(error)] += 1
            if kind in layouts:
                grid = item_grid(scene.item, layouts[kind])
                costs.append(file_cost(grid, layouts[kind], boxes, resampling))
    return costs, list(layouts.values()), [f'{text} ({n} times)' for text, n in problems.most_common(5)]


def rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    """The estimate as rows of a table for people."""
    splits = ', '.join(f'{k} {v:,}' for k, v in told['splits'].items())
    of = told['seconds_of']
    shown = [
        ('photos', f'{told["photos"]:,}'),
        ('rejected, or not in a tile', f'{sum(told["rejected"].values()):,}'),
        ('tiles', f'{told["tiles"]:,} ({splits})'),
        ('pairs', f'{told["pairs"]:,}'),
        ('tiles without a scene', f'{told["tiles_without_scene"]:,}'),
        ('scenes', f'{told["scenes"]:,} of {told["scenes_found"]:,} found'),
        ('files', f'{told["files"]:,}'),
        ('requests', f'{told["requests"]:,}'),
        ('reads per block, tile by tile', f'{told["reads_per_block"]:.1f}'),
        ('to download', size_text(told['bytes'])),
        ('store', size_text(told['store_bytes'])),
        ('time, about', f'{duration_text(told["seconds"])}'),
        ('of which', ', '.join(f'{k} {duration_text(v)}' for k, v in of.items()) + ' (side by side)'),
    ]
    return [*shown, *(('not reckoned', p) for p in told['assumptions']['problems'])]


def show(told: dict[str, Any], title: str) -> None:
    """Write the estimate as tables."""
    console.table(title, ('', ''), rows(told))
    if told['rejected']:
        console.histogram('rejected, or not in a tile', told['rejected'])
    made = told['assumptions']
    console.log(
        f'Reckoned with {made["bytes_per_s"] / 1e6:.0f} MB/s, {made["latency_s"] * 1000:.0f} ms a request, '
        f'{made["threads"]} threads, and block layouts read from {made["headers_read"]} headers.'
    )
    if 'map' in told:
        console.log(told['map'])


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
