"""How much memory do candidate scenes take, and how long does it take to choose among them?

    python -m experiments.performance.candidates

Sheets of 1.1 degrees, 700 scenes of each on different days (five years of Sentinel-2 with both satellites), 700 tiles
on each sheet with one to twenty photos. Every row is a fresh process. An item has 2.4 kB here where Sentinel-2's has 50
or more; it stays on disk, so memory does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from experiments.performance.machine import machine_metadata
from grafalign.scenes import Scene, choose_scenes
from grafalign.scenes.scene_table import scene_table

HERE = Path(__file__).parent
COMMAND = 'python -m experiments.performance.candidates'
SCENES_PER_SHEET, TILES_PER_SHEET, MOST_PHOTOS = 700, 700, 20
SHEETS = (15, 143, 1_429)
SHEET_DEG, TILE_DEG = 1.1, 0.02
FIRST_DAY = datetime(2019, 1, 1, 10, tzinfo=timezone.utc)


def sheet_corner(sheet: int) -> tuple[float, float]:
    """West and south of a sheet; neighbours overlap by a tenth of a degree, as Sentinel-2's do."""
    return sheet % 300 - 150.0, sheet // 300 - 2.0


def scenes(sheets: int, seed: int) -> Iterator[Scene]:
    """All scenes, in no order of space; one in five is cut by the edge of its swath and has an outline of its own."""
    rng = np.random.default_rng(seed)
    item = {'assets': {f'B{b:02d}': {'href': 'https://example.com/' + 'x' * 150} for b in range(12)}}
    for day in range(SCENES_PER_SHEET):
        for sheet in range(sheets):
            west, south = sheet_corner(sheet)
            east = west + (SHEET_DEG if rng.random() < 0.8 else SHEET_DEG * rng.uniform(0.2, 0.9))
            name = f'S2B_MSIL2A_{day:08d}T100559_N0300_R022_T{sheet:05d}_20210701T144823'
            when = FIRST_DAY + timedelta(days=2.5 * day, seconds=int(rng.integers(0, 3600)))
            outline = shapely.box(west, south, east, south + SHEET_DEG)
            yield Scene(name, 'sentinel-2-l2a', when, float(rng.uniform(0, 20)), '05.09', outline, {'id': name, **item})


def measure(sheets: int, mosaic: bool) -> dict[str, Any]:
    """Make the table and choose, in this process."""
    rng = np.random.default_rng(1)
    before, started = resident_mb(), time.perf_counter()
    table = scene_table(scenes(sheets, 0))
    made, after = time.perf_counter(), resident_mb()
    count = sheets * TILES_PER_SHEET
    sheet = np.repeat(np.arange(sheets), TILES_PER_SHEET)
    west, south = np.array([sheet_corner(s) for s in range(sheets)])[sheet].T
    west, south = (
        west + rng.uniform(0, SHEET_DEG - TILE_DEG, count),
        south + rng.uniform(0, SHEET_DEG - TILE_DEG, count),
    )
    photos = rng.integers(1, MOST_PHOTOS + 1, count)
    first = np.concatenate([[0], np.cumsum(photos)])
    days = (FIRST_DAY.timestamp() + rng.uniform(0, 1750, first[-1]) * 86_400) / 86_400
    begun = time.perf_counter()
    choice = choose_scenes(
        table, lambda t: shapely.box(west[t], south[t], west[t] + TILE_DEG, south[t] + TILE_DEG), days, first, 4, mosaic
    )
    done = time.perf_counter()
    return {
        'scenes': len(table),
        'tiles': count,
        'photos': int(first[-1]),
        'tile_scene_pairs': int(choice.considered.sum()),
        'mosaic': mosaic,
        'seconds_table': round(made - started, 1),
        'table_mb': round(after - before, 1),
        'bytes_a_scene': round((after - before) * 1e6 / len(table)),
        'seconds_choice': round(done - begun, 1),
        'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def resident_mb() -> float:
    """Memory of this process in MB."""
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith('VmRSS'))
    return int(line.split()[1]) / 1000


def main() -> None:
    """Measure all sizes, each in a process of its own, and write the result and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sheets', type=int, nargs='+', default=list(SHEETS))
    parser.add_argument('--one', type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], bool(args.one[1]))))
        return
    rows = []
    for sheets in args.sheets:
        for mosaic in (0, 1):
            command = [sys.executable, '-m', 'experiments.performance.candidates', '--one', str(sheets), str(mosaic)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout))
            print(rows[-1], flush=True)
    metadata = {
        'command': COMMAND,
        'settings': {'scenes_per_sheet': SCENES_PER_SHEET, 'tiles_per_sheet': TILES_PER_SHEET, 'seeds': [0, 1]},
        'versions': {name: version(name) for name in ('grafalign', 'numpy', 'pyarrow', 'shapely')},
        'machine': machine_metadata(),
        'rows': rows,
    }
    (HERE / 'results' / 'candidates.json').write_text(json.dumps(metadata, indent=2) + '\n')
    write_page(metadata, HERE / 'candidates.md')


def write_page(metadata: dict[str, Any], path: Path) -> None:
    """The result as a page."""
    lines = [
        '# Candidate scenes',
        '',
        f'`{metadata["command"]}`. Every tile lies under 700 scenes and more; four are chosen for each. A scene costs '
        'memory for its row and its outline; its item stays on disk. `mosaic` puts scenes of one day together.',
        '',
        '| scenes | tiles | tile and scene touch | mosaic | table, s | bytes a scene | choice, s | ns each | MB |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in metadata['rows']:
        pairs = row['tile_scene_pairs']
        lines.append(
            f'| {row["scenes"]:,} | {row["tiles"]:,} | {pairs:,} | {"day" if row["mosaic"] else "no"} '
            f'| {row["seconds_table"]} | {row["bytes_a_scene"]:,} | {row["seconds_choice"]} '
            f'| {1e9 * row["seconds_choice"] / pairs:.0f} | {row["peak_mb"]:,} |'
        )
    path.write_text('\n'.join([*lines, '']))


if __name__ == '__main__':
    main()
