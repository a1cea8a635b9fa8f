"""`python experiments/performance/pairing_table.py`: `pairing.md` from `results/pairing.json` and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = {
    'ours': '**grafalign**',
    'rasterio': 'rasterio, opened per tile',
    'odc-stac': 'odc-stac, loaded per tile',
    'serial': 'serial loop',
    'serial, bands at once': 'serial loop, bands at once',
    'fetch': '*limit: bytes fetched once, not decoded*',
    'decode': '*limit: blocks decoded once, from disk*',
}


def write_table(results: Path, target: Path) -> None:
    """Write the tables of a result file."""
    target.write_text('\n'.join(_lines(json.loads(results.read_text()))) + '\n')


def _lines(result: dict[str, Any]) -> Iterable[str]:
    machine, versions, made = result['machine'], result['versions'], result['material']
    headline = result['settings']['headline_ms']
    yield '# Cutting tiles out of COGs behind HTTP'
    yield ''
    yield 'From `results/pairing.json`, by `pairing_table.py`; `pairing.py` says what is measured, and why it is fair.'
    yield ''
    yield f'`{result["command"]}`'
    yield ''
    yield (
        f'{machine["cores"]} cores, {machine["memory_gib"]:g} GiB, {machine["system"]} {machine["architecture"]}; '
        + ', '.join(f'{k} {v}' for k, v in versions.items())
        + f'. Other processes took {_others(result)} of the cores meanwhile.'
    )
    yield ''
    density = ', '.join(f'{v:.2f} bytes a pixel in blocks of {k}' for k, v in made['bytes_per_pixel'].items())
    yield (
        f'{len(made["items"])} scenes of {made["side_px"]:,} x {made["side_px"]:,} px, {len(made["bands"])} bands: '
        f'{made["layout"]}; {density}. Tiles of {made["tile_px"]} px around towns, half of them on each date.'
    )
    yield ''
    yield '## Density'
    yield ''
    yield from _table(
        ['block', 'tiles', 'block reads', 'distinct blocks', 'reads per block', 'least requests', 'least MB'],
        (
            [
                n['block'],
                n['tiles'],
                n['reads'],
                n['blocks'],
                f'{n["reads_per_block"]:.1f}',
                n['requests'],
                f'{n["bytes"] / 1e6:.0f}',
            ]
            for n in result['needs']
        ),
    )
    yield ''
    yield 'Least requests: distinct blocks, adjacent ones in one request, file headers not counted.'
    yield ''
    yield from _headline(result, headline)
    yield from _latencies(result)
    yield from _threads(result)


def _headline(result: dict[str, Any], headline: float) -> Iterable[str]:
    threads = result['settings']['threads']
    yield f'## {headline} ms a request, {threads} threads'
    yield ''
    yield (
        f'Median of {result["settings"]["repeats"]} repeats, range in brackets; serial loops once. '
        "x: times the least possible, or times grafalign's time in the same repeat."
    )
    yield ''
    rows = []
    for block, tiles, method in _keys(result, headline):
        mine = _pick(result, block, tiles, headline, method)
        own = {m['repeat']: m['wall_s'] for m in _pick(result, block, tiles, headline, 'ours')}
        times = [m['wall_s'] / own[m['repeat']] for m in mine if m['repeat'] in own]
        first = mine[0]
        rows.append(
            [
                block,
                tiles,
                NAMES[method],
                _spread([m['wall_s'] for m in mine], '.1f'),
                f'{median(m["tiles_per_s"] for m in mine):.1f}',
                _spread(times, '.2f') if times else '',
                *(
                    ['', '', '']
                    if method == 'decode'
                    else [
                        f'{first["requests"]} (x {first["requests_to_limit"]:.2f})',
                        f'{first["requests_per_tile"]:.2f}',
                        f'{first["bytes"] / 1e6:.0f} (x {first["bytes_to_limit"]:.2f})',
                    ]
                ),
                f'{max(m["peak_rss_mib"] for m in mine):.0f}',
            ]
        )
    names = [
        'block',
        'tiles',
        'method',
        'seconds',
        'tiles/s',
        "x grafalign's time",
        'requests',
        'per tile',
        'MB',
        'peak MiB',
    ]
    yield from _table(names, rows)
    yield ''


def _latencies(result: dict[str, Any]) -> Iterable[str]:
    latencies = sorted({m['latency_ms'] for m in result['measurements']})
    threads = result['settings']['threads']
    yield f'## Seconds by latency, {threads} threads'
    yield ''
    rows = []
    for block, tiles, method in _keys(result):
        cells = []
        for latency_ms in latencies:
            mine = _pick(result, block, tiles, latency_ms, method)
            cells.append(f'{median(m["wall_s"] for m in mine):.1f}' if mine else '')
        if any(cells):
            rows.append([block, tiles, NAMES[method], *cells])
    yield from _table(['block', 'tiles', 'method', *(f'{latency:g} ms' for latency in latencies)], rows)
    yield ''


def _threads(result: dict[str, Any]) -> Iterable[str]:
    few, many = result['settings']['few_threads'], result['settings']['threads']
    if not any(m['workers'] == few for m in result['measurements']):
        return
    yield '## No latency: against the speed of decoding'
    yield ''
    yield 'Share: the time of decoding each needed block once, over the time of the method, same threads; medians.'
    yield ''
    rows = []
    for block, tiles, method in _keys(result, 0):
        cells = []
        for workers in (few, many):
            mine = _pick(result, block, tiles, 0, method, workers)
            bound = _pick(result, block, tiles, 0, 'decode', workers)
            wall_s = median(m['wall_s'] for m in mine) if mine else None
            cells.append('' if wall_s is None else f'{wall_s:.1f}')
            share = median(m['wall_s'] for m in bound) / wall_s if wall_s and bound else None
            cells.append('' if share is None else f'{share:.2f}')
        if cells[0]:
            rows.append([block, tiles, NAMES[method], *cells])
    names = [f'{w} threads{what}' for w in (few, many) for what in (', s', ', share')]
    yield from _table(['block', 'tiles', 'method', *names], rows)


def _keys(result: dict[str, Any], latency_ms: float | None = None) -> list[tuple[int, int, str]]:
    found = {
        (m['block'], m['tiles'], m['method'])
        for m in result['measurements']
        if latency_ms is None or m['latency_ms'] == latency_ms
    }
    return sorted(found, key=lambda k: (-k[0], k[1], list(NAMES).index(k[2])))


def _pick(
    result: dict[str, Any], block: int, tiles: int, latency_ms: float, method: str, workers: int | None = None
) -> list[dict[str, Any]]:
    threads = (1, result['settings']['threads']) if workers is None else (workers,)
    wanted = (block, tiles, latency_ms, method)
    keys = ('block', 'tiles', 'latency_ms', 'method')
    return [m for m in result['measurements'] if tuple(m[k] for k in keys) == wanted and m['workers'] in threads]


def _others(result: dict[str, Any]) -> str:
    shares = sorted(m['other_cpu_share'] for m in result['measurements'])
    return f'{100 * median(shares):.0f} % (median; at most {100 * shares[-1]:.0f} %)'


def _spread(values: list[float], form: str) -> str:
    middle = format(median(values), form)
    return middle if len(values) == 1 else f'{middle} ({min(values):{form}} to {max(values):{form}})'


def _table(names: list[str], rows: Iterable[list[Any]]) -> Iterable[str]:
    yield f'| {" | ".join(names)} |'
    yield f'|{"---|" * len(names)}'
    for row in rows:
        yield f'| {" | ".join(map(str, row))} |'


if __name__ == '__main__':
    write_table(HERE / 'results' / 'pairing.json', HERE / 'pairing.md')
