"""What does an index cost as it grows, and how long do filters take among ten million items?

    python -m experiments.performance.index_growth --data FOLDER

Vectors are random, of unit length, with places all over the land-free globe and times of five years. `growth` adds rows
in commits of 1,024, as an index of scenes that come day by day grows, and says what one commit takes. `filters` asks
one index of ten million rows for the ten nearest among those that a region, a time or both allow; every answer is
exact, so its recall is 1. The first question also reads the items and makes their spatial index, which is measured by
itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch  # noqa: F401  before FAISS

from experiments.performance.machine import machine_metadata
from grafalign.search import Catalog
from grafalign.search.marker import IndexModel
from grafalign.search.query import allowed_rows

HERE = Path(__file__).parent
COMMAND = 'python -m experiments.performance.index_growth --data FOLDER'
WIDTH, COMMIT, SEED = 128, 1_024, 0
STOPS = (100_000, 300_000, 1_000_000)
LARGE, BLOCK, TURNS = 10_000_000, 500_000, 5
MODEL = IndexModel(spec='none', clip=None, name='none', kind='made up', digest='0' * 32, pixels={'fit': 'resize'})
FIRST_DAY = np.datetime64('2019-01-01', 'us')


def vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Unit vectors [count, width]."""
    made = rng.standard_normal((count, width), dtype=np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True))


def items(rng: np.random.Generator, first: int, count: int) -> gpd.GeoDataFrame:
    """What they are: points all over the globe, and times of five years."""
    lon, lat = rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    when = FIRST_DAY + rng.integers(0, 5 * 365 * 86_400, count).astype('timedelta64[s]')
    table = {
        'item_id': pd.Series([f'i{number}' for number in range(first, first + count)], dtype='str'),
        'datetime': pd.to_datetime(when, utc=True),
        'source': 'made up',
        'stamp': '0',
    }
    return gpd.GeoDataFrame(table, geometry=shapely.points(lon, lat), crs='EPSG:4326')


def written_mb() -> float:
    """Bytes that this process has had written, in MB."""
    line = next(x for x in Path('/proc/self/io').read_text().splitlines() if x.startswith('wchar'))
    return int(line.split()[1]) / 1e6


def growth(folder: Path) -> list[dict[str, Any]]:
    """Add rows commit by commit, opening the index anew for each; what a commit takes on the way to each size."""
    rng, rows, begin = np.random.default_rng(SEED), [], 0
    shutil.rmtree(folder, ignore_errors=True)
    Catalog.create(folder, WIDTH, MODEL, 0.99)
    for stop in STOPS:
        spent, before = [], written_mb()
        for first in range(begin, stop, COMMIT):
            count = min(COMMIT, stop - first)
            some, more = items(rng, first, count), vectors(rng, count, WIDTH)
            started = time.perf_counter()
            Catalog(folder).append(some, more)
            spent.append(time.perf_counter() - started)
        mb = written_mb() - before
        payload = (stop - begin) * WIDTH * 4 / 1e6
        started = time.perf_counter()
        Catalog(folder).optimise(vectors(rng, 64, WIDTH), 'exact')
        rows.append(
            {
                'rows': stop,
                'commits': len(spent),
                'ms_a_commit': round(1000 * statistics.median(spent), 1),
                'ms_a_commit_at_the_end': round(1000 * statistics.median(spent[-20:]), 1),
                'seconds': round(sum(spent), 1),
                'written_times_the_vectors': round(mb / payload, 2),
                'seconds_merge': round(time.perf_counter() - started, 1),
            }
        )
        print(rows[-1], flush=True)
        begin = stop
    return rows


def large_index(folder: Path, count: int, width: int) -> Catalog:
    """An index of many rows, in few commits."""
    if not (folder / 'index.json').is_file():
        rng = np.random.default_rng(SEED)
        Catalog.create(folder, width, MODEL, 0.99)
        for first in range(0, count, BLOCK):
            Catalog(folder).append(items(rng, first, BLOCK), vectors(rng, BLOCK, width))
    return Catalog(folder)


def filters(folder: Path, count: int, width: int) -> dict[str, Any]:
    """Times of filtered searches, and of getting ready for the first."""
    catalog = large_index(folder, count, width)
    rng = np.random.default_rng(SEED + 1)
    started = time.perf_counter()
    catalog.items.sindex  # noqa: B018
    ready = time.perf_counter() - started
    year = pd.Timestamp('2021-01-01', tz='UTC'), pd.Timestamp('2022-01-01', tz='UTC')
    day = pd.Timestamp('2021-06-01', tz='UTC'), pd.Timestamp('2021-06-02', tz='UTC')
    cases: dict[str, tuple[Any, Any, Any]] = {
        'a region of 1 x 1 degree': (shapely.box(10, 45, 11, 46), None, None),
        'a region of 10 x 10 degrees': (shapely.box(10, 40, 20, 50), None, None),
        'a region of 40 x 30 degrees': (shapely.box(-10, 30, 30, 60), None, None),
        'a day': (None, *day),
        'a year': (None, *year),
        'a region of 40 x 30 degrees in a year': (shapely.box(-10, 30, 30, 60), *year),
    }
    rows = []
    for name, (region, begin, end) in cases.items():
        masks, searches = [], []
        for _ in range(TURNS):
            query = vectors(rng, 1, width)
            mask, seconds = timed(lambda: allowed_rows(catalog, region, begin, end))  # noqa: B023
            masks.append(seconds)
            _, seconds = timed(lambda: catalog.search(query, 10, mask))  # noqa: B023
            searches.append(seconds)
        allowed = 0 if mask is None else int(mask.sum())
        row = {'filter': name, 'allowed': allowed}
        row |= {
            'ms_filter': round(1000 * statistics.median(masks), 1),
            'ms_search': round(1000 * statistics.median(searches), 1),
        }
        rows.append(row)
        print(rows[-1], flush=True)
    return {'rows': count, 'width': width, 'seconds_ready': round(ready, 1), 'cases': rows}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def write_page(content: dict[str, Any], path: Path) -> None:
    """The result as a page."""
    machine, settings = content['machine'], content['settings']
    lines = [
        '# An index that grows, and filters in a large one',
        '',
        f'`{content["command"]}`, on {machine["cores"]} cores, one thread (load {machine["load_at_start"]} before).',
        '',
        f'Random unit vectors of {settings["width"]} numbers, added in commits of {settings["commit"]:,} rows; the '
        'index is opened anew for each. A commit writes its own rows and looks at the sizes of all files; its cost '
        'grows with their number until the next `grafalign index` puts the files together, which reads them all. That '
        'command itself adds larger and larger commits.',
        '',
        '| rows | commits since the line above | ms a commit | at the end | all, s | bytes written, of the vectors '
        '| s to put files together |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in content.get('growth', ()):
        lines.append(
            f'| {row["rows"]:,} | {row["commits"]:,} | {row["ms_a_commit"]} | {row["ms_a_commit_at_the_end"]} '
            f'| {row["seconds"]} | {row["written_times_the_vectors"]} | {row["seconds_merge"]} |'
        )
    large = content.get('filters')
    if large:
        lines += [
            '',
            f'{large["rows"]:,} rows of {large["width"]} numbers. Reading items and making their spatial index took '
            f'{large["seconds_ready"]} s, once. Then ten nearest of one query, among those that a filter leaves; all '
            'answers are exact, so recall is 1 (median of five).',
            '',
            '| filter | rows that it leaves | filter, ms | search, ms | both |',
            '|---|---|---|---|---|',
        ]
        for row in large['cases']:
            both = row['ms_filter'] + row['ms_search']
            lines.append(
                f'| {row["filter"]} | {row["allowed"]:,} | {row["ms_filter"]} | {row["ms_search"]} | **{both:.0f}** |'
            )
    path.write_text('\n'.join([*lines, '']))


def main() -> None:
    """Measure and write the result and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder for the indexes')
    parser.add_argument('--rows', type=int, default=LARGE, help='rows of the large index')
    parser.add_argument('--only', choices=('growth', 'filters'))
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    path = HERE / 'results' / 'index_growth.json'
    content: dict[str, Any] = json.loads(path.read_text()) if args.only and path.is_file() else {}
    content |= {
        'command': COMMAND,
        'settings': {'width': WIDTH, 'commit': COMMIT, 'seed': SEED, 'turns': TURNS},
        'versions': {name: version(name) for name in ('grafalign', 'numpy', 'pandas', 'shapely', 'faiss-cpu')},
        'machine': machine_metadata(),
    }
    if args.only != 'filters':
        content['growth'] = growth(args.data / 'growth')
    if args.only != 'growth':
        content['filters'] = filters(args.data / f'large-{args.rows}', args.rows, 64)
    path.write_text(json.dumps(content, indent=2) + '\n')
    write_page(content, HERE / 'index_growth.md')


if __name__ == '__main__':
    main()
