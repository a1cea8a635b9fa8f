"""The cutting step of pairing, measured: `python experiments/performance/pairing.py --data FOLDER` (or `--quick`).

Measured is the time from the list of tiles to all their pixels in memory, out of COGs behind a local HTTP server that
waits a set latency before every answer. Beside grafalign stand the ways people do this today (`methods.py`) and what no
method can beat (`limits.py`).

Why it is fair: every measurement is a process of its own, so all caches of GDAL are cold; imports are not timed; all
methods of a point run one after another, in an order that turns with each repeat; all have the same number of threads;
the server's files are in the page cache for all (the reference pass reads them first); and every tile of every method
is compared, by checksum, with a plain read of the local files. The checksum is inside the timed part of all of them.
The server has unlimited bandwidth and no TLS, which favours methods that fetch too much. What other processes took of
the cores meanwhile is recorded with every measurement.

Results: `results/pairing.json`, and `pairing.md`, which `pairing_table.py` makes from it and from nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from limits import Need, decoder, fetch, need  # noqa: E402
from machine import machine_metadata  # noqa: E402
from material import BANDS, BLOCKS, GSD_M, TILE_PX, Material, describe, make_material  # noqa: E402
from methods import CLOUD_SETTINGS, METHODS, SERIAL  # noqa: E402
from pairing_table import write_table  # noqa: E402

from tests.range_server import RangeServer  # noqa: E402

HEADLINE_MS = 50
THREADS = 16
FEW_THREADS = 2
PACKAGES = ('rasterio', 'numpy', 'odc-stac', 'odc-loader', 'odc-geo', 'xarray', 'pystac', 'grafalign')
KEY = ('block', 'tiles', 'latency_ms', 'method', 'workers', 'repeat')


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/performance'), help='where scenes are made and kept')
    parser.add_argument('--quick', action='store_true', help='one small square; results stay in the data folder')
    parser.add_argument('--blocks', type=int, nargs='+', help='px: 1024 512 (quick: 512)')
    parser.add_argument('--tiles', type=int, nargs='+', help='densities: 80 200 400 800')
    parser.add_argument('--latencies', type=float, nargs='+', help='ms: 0 20 50 100')
    parser.add_argument(
        '--methods', nargs='+', choices=[*METHODS, 'fetch', 'decode'], default=[*METHODS, 'fetch', 'decode']
    )
    parser.add_argument('--repeats', type=int, help=f'at 0 and {HEADLINE_MS} ms: 3 (quick: 1); once elsewhere')
    parser.add_argument('--out', type=Path, help='result file; results/pairing.json')
    parser.add_argument('--resume', action='store_true', help='keep what the result file has and measure the rest')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data = args.data / ('quick' if args.quick else 'full')
    args.blocks = args.blocks or ([min(BLOCKS)] if args.quick else list(BLOCKS))
    args.tiles = args.tiles or ([20] if args.quick else [80, 200, 400, 800])
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.latencies = args.latencies or ([0, 50] if args.quick else [0, 20, 50, 100])
    args.out = args.out or (args.data if args.quick else HERE / 'results') / 'pairing.json'
    return args


def main() -> None:
    """Make the material, measure every point, write results after each."""
    args = arguments()
    material = make_material(args.data, args.quick)
    if args.worker:
        print(json.dumps(measure(material, **json.loads(args.worker))))
        return
    needs = {(b, n): need(material, b, n) for b in args.blocks for n in args.tiles}
    expected = reference(material, args.blocks, max(args.tiles))
    result = header(args, material, needs)
    if args.resume and args.out.exists():
        result['measurements'] = json.loads(args.out.read_text())['measurements']
    done = {tuple(m[k] for k in KEY) for m in result['measurements']}
    with RangeServer(args.data) as server:
        for point in points(args):
            if tuple(point[k] for k in KEY) in done:
                continue
            found = one(args, server, point, expected, needs[point['block'], point['tiles']])
            result['measurements'].append(found)
            print(
                f'{found["block"]:5} px {found["tiles"]:4} tiles {found["latency_ms"]:4g} ms {found["workers"]:3} thr '
                f'{found["method"]:22} {found["wall_s"]:8.2f} s {found["requests"]:6} requests '
                f'{found["bytes"] / 1e6:8.1f} MB {found["peak_rss_mib"]:6.0f} MiB',
                flush=True,
            )
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + '\n')
    shown = args.out == HERE / 'results' / 'pairing.json'
    write_table(args.out, HERE / 'pairing.md' if shown else args.out.with_suffix('.md'))


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement, those that are compared next to each other."""
    found = []
    for block in args.blocks:
        for tiles in args.tiles:
            for latency_ms in args.latencies:
                for repeat in range(args.repeats if latency_ms in (0, HEADLINE_MS) else 1):
                    turn = repeat % len(args.methods)
                    for workers in (THREADS, FEW_THREADS) if latency_ms == 0 else (THREADS,):
                        for method in args.methods[turn:] + args.methods[:turn]:
                            rare = latency_ms in (0, HEADLINE_MS) and tiles == min(args.tiles) and repeat == 0
                            if method in SERIAL and not (rare and workers == THREADS):
                                continue
                            if method == 'fetch' and workers != THREADS:
                                continue
                            one_at_a_time = 1 if method in SERIAL else workers
                            found.append(
                                dict(zip(KEY, (block, tiles, latency_ms, method, one_at_a_time, repeat), strict=True))
                            )
    return found


def one(
    args: argparse.Namespace, server: RangeServer, point: dict[str, Any], expected: list[int], wanted: Need
) -> dict[str, Any]:
    """One measurement in a fresh process, checked."""
    spec = {k: point[k] for k in ('block', 'tiles', 'method', 'workers')} | {'root': server.root}
    server.set(latency_ms=point['latency_ms'])
    server.reset()
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        '--data',
        str(args.data.parent),
        '--worker',
        json.dumps(spec),
    ]
    busy, start = _busy_s(), time.perf_counter()
    mine = _cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command + ['--quick'] * args.quick, stdout=subprocess.PIPE, text=True, check=True)
    counts = server.counts()
    cores_s = (time.perf_counter() - start) * len(os.sched_getaffinity(0))
    mine = _cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN) - mine + counts['cpu_s']
    found = json.loads(done.stdout.splitlines()[-1])
    sums = found.pop('checksums')
    if point['method'] in METHODS and sums != expected[: point['tiles']]:
        wrong = sum(a != b for a, b in zip(sums, expected, strict=False))
        raise SystemExit(f'{point}: {wrong} of {point["tiles"]} tiles differ from the local files')
    if point['method'] == 'fetch' and counts['requests'] != len(wanted.spans):
        raise SystemExit(f'{point}: {counts["requests"]} requests for {len(wanted.spans)} spans')
    return {
        **point,
        **found,
        'tiles_per_s': round(point['tiles'] / found['wall_s'], 3),
        **{k: counts[k] for k in ('requests', 'bytes', 'heads', 'range_requests', 'connections', 'peak_requests')},
        'requests_per_tile': round(counts['requests'] / point['tiles'], 3),
        'requests_to_limit': round(counts['requests'] / len(wanted.spans), 3),
        'bytes_to_limit': round(counts['bytes'] / wanted.nbytes, 3),
        'server_cpu_s': round(counts['cpu_s'], 3),
        'statuses': counts['statuses'],
        'other_cpu_share': round(max(0.0, _busy_s() - busy - mine) / cores_s, 3),
    }


def measure(material: Material, block: int, tiles: int, method: str, workers: int, root: str) -> dict[str, Any]:
    """In the process of one measurement: cut the tiles once, and say how long it took and what it took."""
    wanted = material.tiles[:tiles]
    order = sorted(range(tiles), key=lambda n: (wanted[n].item, -wanted[n].top // 2560, wanted[n].left))
    items = material.items(block, root)
    sums = [0] * (tiles if method in METHODS else 0)
    limit = need(material, block, tiles) if method in ('fetch', 'decode') else None
    decode = decoder(limit, material, block, workers) if limit is not None and method == 'decode' else None
    if method == 'odc-stac':
        import odc.stac  # noqa: F401
    elif method == 'ours':
        import grafalign.scenes  # noqa: F401

    idle_mib, cpu, start = _peak_mib(), _cpu_s(resource.RUSAGE_SELF), time.perf_counter()
    if decode is not None:
        decode()
    elif limit is not None:
        fetch(limit, material, block, root, workers)
    else:
        for number, pixels in METHODS[method](items, [wanted[n] for n in order], workers):
            sums[order[number]] = zlib.crc32(np.ascontiguousarray(pixels))
    wall_s = time.perf_counter() - start
    return {
        'wall_s': round(wall_s, 4),
        'cpu_s': round(_cpu_s(resource.RUSAGE_SELF) - cpu, 3),
        'peak_rss_mib': round(_peak_mib(), 1),
        'idle_rss_mib': round(idle_mib, 1),
        'checksums': sums,
    }


def _cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _busy_s() -> float:
    """Seconds that all cores together have worked since the machine started, for whomever."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path('/proc/stat').read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


def _peak_mib() -> float:
    """Largest resident size so far. `ru_maxrss` would remember the parent's across the start of a process."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reference(material: Material, blocks: list[int], count: int) -> list[int]:
    """Checksum of every tile, read plainly from the local files of each block size: they must agree."""
    side_by_side = []
    for block in blocks:
        sums = [0] * count
        for item in range(len(material.names)):
            mine = [n for n in range(count) if material.tiles[n].item == item]
            mine.sort(key=lambda n: (-material.tiles[n].top // 5000, material.tiles[n].left))
            planes: dict[int, list[np.ndarray]] = {n: [] for n in mine}
            for band in BANDS:
                with rasterio.Env(GDAL_CACHEMAX=256), rasterio.open(material.path(block, item, band)) as dataset:
                    for n in mine:
                        col = round((material.tiles[n].left - dataset.transform.c) / GSD_M)
                        row = round((dataset.transform.f - material.tiles[n].top) / GSD_M)
                        planes[n].append(dataset.read(1, window=Window(col, row, TILE_PX, TILE_PX)))
            for n in mine:
                sums[n] = zlib.crc32(np.stack(planes[n]))
        side_by_side.append(sums)
    if any(sums != side_by_side[0] for sums in side_by_side):
        raise SystemExit('the files of the block sizes hold different pixels; delete the data folder')
    return side_by_side[0]


def header(args: argparse.Namespace, material: Material, needs: dict[tuple[int, int], Need]) -> dict[str, Any]:
    """What the result file says before its measurements."""
    given = [a for a in sys.argv[1:] if a != '--resume']
    if '--data' in given:
        given[given.index('--data') + 1] = 'FOLDER'
    if '--out' in given:
        given[given.index('--out') + 1] = 'FILE'
    return {
        'command': ' '.join(['python experiments/performance/pairing.py', *given]),
        'machine': machine_metadata(),
        'versions': {
            'python': platform.python_version(),
            'gdal': rasterio.__gdal_version__,
            **{p: importlib.metadata.version(p) for p in PACKAGES},
        },
        'settings': {
            'threads': THREADS,
            'few_threads': FEW_THREADS,
            'headline_ms': HEADLINE_MS,
            'repeats': args.repeats,
            'gdal_of_rasterio_method': CLOUD_SETTINGS,
            'gdal_of_odc_stac_method': 'odc.stac.configure_rio(cloud_defaults=True)',
        },
        'material': describe(material),
        'needs': [
            {
                'block': block,
                'tiles': tiles,
                'reads': n.reads,
                'blocks': len(n.blocks),
                'reads_per_block': round(n.reads_per_block, 2),
                'requests': len(n.spans),
                'bytes': n.nbytes,
                'files': len({(item, band) for item, band, _, _ in n.spans}),
            }
            for (block, tiles), n in needs.items()
        ],
        'measurements': [],
    }


if __name__ == '__main__':
    main()
