"""How long does a plan of millions of photos take, and how much memory?

    python experiments/performance/planning.py --places photo_coordinates_100k.csv --data runs/planning

Positions are drawn around real ones (a table of 100,000 geotagged photos with columns LAT and LON), each moved by a
log-normal distance with a median of 800 m in any direction, so that they cluster as photos do. Every measurement is a
fresh process that reads the photo table (Parquet: photo_id, lon, lat), plans, and writes the plan's tables. Peak memory
is that process's high-water mark. The plan is made a second time from the rows in reverse order and must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

HERE = Path(__file__).parent
COUNTS = (1_000_000, 3_000_000, 10_000_000, 100_000_000)
CHUNK = 1_000_000
"""Pairs whose names are in memory at a time."""
GRIDS = {'NAIP, 224 px of 1 m': (224, 1.0), 'Sentinel-2, 224 px of 10 m': (224, 10.0)}


def make_table(places: Path, count: int, path: Path, seed: int = 0) -> None:
    """Write a table of photos around real places."""
    base = pd.read_csv(places)
    rng = np.random.default_rng(seed)
    row = rng.integers(0, len(base), count)
    metres = rng.lognormal(np.log(800), 1.5, count).clip(0, 50_000)
    angle = rng.uniform(0, 2 * np.pi, count)
    lat = (base['LAT'].to_numpy()[row] + metres * np.sin(angle) / 111e3).clip(-79.9, 83.9)
    lon = base['LON'].to_numpy()[row] + metres * np.cos(angle) / 111e3 / np.cos(np.deg2rad(lat))
    ids = pd.Series(np.char.mod('%010d', rng.permutation(count)), dtype='str')
    pd.DataFrame({'photo_id': ids, 'lon': (lon + 180) % 360 - 180, 'lat': lat}).to_parquet(path, index=False)


def measure(table: Path, size_px: int, gsd_m: float, shuffled: bool) -> dict[str, Any]:
    """Read, plan and write in this process; seconds, peak memory and what the plan holds."""
    from grafalign.geo import TileGrid
    from grafalign.pairing.plan import make_plan

    def column(name: str) -> pd.Series:
        values = pd.read_parquet(table, columns=[name])[name]
        pa.default_memory_pool().release_unused()  # what reading took besides
        return values.iloc[::-1].reset_index(drop=True) if shuffled else values

    started = time.perf_counter()
    lon, lat = column('lon').to_numpy(), column('lat').to_numpy()
    read = time.perf_counter()
    shares = {'train': 0.8, 'val': 0.1, 'test': 0.1}
    plan = make_plan(column('photo_id'), lon, lat, TileGrid(size_px, gsd_m), 25, 0, 20.0, shares)
    planned = time.perf_counter()
    out = table.with_suffix('.plan')
    for name in ('tiles', 'pairs', 'dropped'):
        getattr(plan, name).to_parquet(out, index=False)
    written, peak = time.perf_counter(), _peak()
    ids = column('photo_id')
    hashes = [np.zeros(0, dtype=np.uint64)]
    for start in range(0, len(plan.pairs), CHUNK):
        some = plan.pairs.iloc[start : start + CHUNK]
        pairs = {
            'tile': plan.tiles['tile_id'].iloc[some['tile']].to_numpy(),
            'photo': ids.iloc[some['photo']].to_numpy(),
        }
        hashes.append(pd.util.hash_pandas_object(pd.DataFrame(pairs), index=False).to_numpy())
    digest = hashlib.blake2b(np.sort(np.concatenate(hashes)).tobytes())
    return {
        'photos': len(lon),
        'tiles': len(plan.tiles),
        'pairs': len(plan.pairs),
        'seconds_read': round(read - started, 2),
        'seconds_plan': round(planned - read, 2),
        'seconds_write': round(written - planned, 2),
        'seconds': round(written - started, 2),
        'peak_gb': round(peak / 1e6, 2),
        'digest': digest.hexdigest()[:16],
    }


def _peak() -> int:
    """High-water mark of this process in kB."""
    status = Path('/proc/self/status').read_text()
    return int(next(line for line in status.splitlines() if line.startswith('VmHWM')).split()[1])


def main() -> None:
    """Measure all sizes and write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--places', type=Path, required=True)
    parser.add_argument('--data', type=Path, required=True, help='folder for the tables')
    parser.add_argument('--counts', type=int, nargs='+', default=list(COUNTS))
    parser.add_argument('--one', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        size, gsd, order = args.one
        print(json.dumps(measure(args.data, int(size), float(gsd), order == 'reversed')))
        return
    args.data.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in args.counts:
        table = args.data / f'{count}.parquet'
        if not table.exists():
            make_table(args.places, count, table)
        for name, (size, gsd) in GRIDS.items():
            for order in ('as drawn', 'reversed') if count < 5_000_000 else ('as drawn',):
                command = [sys.executable, __file__, '--places', str(args.places), '--data', str(table)]
                result = subprocess.run(
                    [*command, '--one', str(size), str(gsd), order], check=True, capture_output=True, text=True
                )
                rows.append({'grid': name, 'order': order, **json.loads(result.stdout)})
                print(rows[-1], flush=True)
    import grafalign

    metadata = {
        'command': 'python experiments/performance/planning.py --places photo_coordinates_100k.csv --data DATA',
        'settings': {'max_photos': 25, 'seed': 0, 'block_km': 20, 'places_seed': 0},
        'versions': {
            'grafalign': grafalign.__version__,
            'numpy': np.__version__,
            'pandas': pd.__version__,
            'python': platform.python_version(),
        },
        'machine': {'cores': len(os.sched_getaffinity(0)), 'memory_gb': round(_memory_gb(), 1)},
        'rows': rows,
    }
    (HERE / 'results').mkdir(exist_ok=True)
    (HERE / 'results' / 'planning.json').write_text(json.dumps(metadata, indent=2) + '\n')
    write_page(metadata, HERE / 'planning.md')


def _memory_gb() -> float:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9


def write_page(metadata: dict[str, Any], path: Path) -> None:
    """The result as a page."""
    lines = [
        '# Planning millions of photos',
        '',
        f'`{metadata["command"]}`, on {metadata["machine"]["cores"]} cores and {metadata["machine"]["memory_gb"]} GB. '
        'Every row is a fresh process that reads the photo table, plans in two threads where that helps, and writes '
        'the plan. Positions are drawn around 100,000 real ones, so they cluster as photos do.',
        '',
        '| grid | photos | tiles | pairs | read, s | plan, s | write, s | all, s | µs a photo | peak GB |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for row in metadata['rows']:
        if row['order'] != 'as drawn':
            continue
        lines.append(
            f'| {row["grid"]} | {row["photos"]:,} | {row["tiles"]:,} | {row["pairs"]:,} | {row["seconds_read"]} '
            f'| {row["seconds_plan"]} | {row["seconds_write"]} | {row["seconds"]} '
            f'| {1e6 * row["seconds"] / row["photos"]:.1f} | {row["peak_gb"]} |'
        )
    same = {(r['grid'], r['photos']): set() for r in metadata['rows']}  # type: dict[tuple[str, int], set[str]]
    for row in metadata['rows']:
        same[row['grid'], row['photos']].add(row['digest'])
    twice = [k for k in same if sum((r['grid'], r['photos']) == k for r in metadata['rows']) > 1]
    equal = all(len(same[k]) == 1 for k in twice)
    lines += [
        '',
        f'Rows in reverse order gave {"the same plan" if equal else "ANOTHER plan"} in all {len(twice)} cases.',
        '',
    ]
    path.write_text('\n'.join(lines))


if __name__ == '__main__':
    main()
