"""An index that left as GeoParquet, in an embedded vector database beside ours: recall, queries a second, bytes.

    pip install lancedb
    python -m experiments.performance.vector_databases

LanceDB loads the file of `grafalign export-index` and makes an index of the kind that it advises (IVF_PQ, cosine), with
its own defaults but for the number of cells; it is asked with growing `nprobes` and `refine_factor` until it finds as
many of the true nearest as ours does. Queries are asked one by one, and the two take turns.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import shapely

from experiments.performance.machine import machine_metadata
from experiments.performance.retrieval.vectors import clustered
from grafalign.retrieval.exact import nearest
from grafalign.search import Catalog
from grafalign.search.marker import IndexModel, IndexSource
from grafalign.search.parquet import write_parquet

HERE = Path(__file__).resolve().parent
RESULT = HERE / 'results' / 'vector_databases.json'
WIDTH, K, QUERIES, ROUNDS = 512, 10, 300, 3
Vectors = npt.NDArray[np.float32]
Ask = Callable[[Vectors], list[int]]


def make_index(folder: Path, vectors: Vectors) -> Catalog:
    """Ours, of made-up items."""
    model = IndexModel(spec='made up', clip=None, name='made up', kind='open_clip', digest='0', pixels={})
    catalog = Catalog.create(folder, WIDTH, model, 0.95)
    source = IndexSource(bands=('red',), value_range=(0, 255), dtype='uint8')
    for first in range(0, len(vectors), 65_536):
        part = vectors[first : first + 65_536]
        numbers = np.arange(first, first + len(part))
        items = gpd.GeoDataFrame(
            {
                'item_id': numbers.astype(str),
                'datetime': pd.Timestamp('2024-06-01', tz='UTC'),
                'source': 'made up',
                'stamp': '0',
            },
            geometry=shapely.points(numbers % 360 - 180.0, numbers % 170 - 85.0),
            crs=4326,
        )
        catalog.append(items, part, None, source)
    catalog.optimise(clustered(1024, WIDTH, draw=1))
    return catalog


def size_mb(folder: Path) -> float:
    """Of all files below a folder."""
    return round(sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6, 1)


def recall(ask: Ask, queries: Vectors, truth: npt.NDArray[np.int64]) -> float:
    """Share of the true nearest that is found."""
    return float(np.mean([len(set(ask(q)) & set(t.tolist())) / K for q, t in zip(queries, truth, strict=True)]))


def lance(path: Path, folder: Path, cells: int) -> tuple[Any, float, float]:
    """LanceDB's table of a GeoParquet file, and the seconds to load it and to make its index."""
    import lancedb

    began = time.perf_counter()
    table = lancedb.connect(folder).create_table('tiles', pq.read_table(path))
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    table.create_index(metric='cosine', vector_column_name='vector', num_partitions=cells)
    return table, loaded, time.perf_counter() - began


def asker(table: Any, probes: int, refine: int) -> Ask:
    """Asks LanceDB for the nearest K."""

    def ask(query: Vectors) -> list[int]:
        search = table.search(query).distance_type('cosine').nprobes(probes).refine_factor(refine)
        return [int(i) for i in search.select(['item_id', '_distance']).limit(K).to_arrow()['item_id'].to_pylist()]

    return ask


def measure(count: int, folder: Path) -> list[dict[str, Any]]:
    """Both, side by side."""
    vectors, queries = clustered(count, WIDTH), clustered(QUERIES, WIDTH, draw=2)
    _, truth = nearest(queries, vectors, K)
    began = time.perf_counter()
    catalog = make_index(folder / 'ours', vectors)
    made = time.perf_counter() - began
    began = time.perf_counter()
    write_parquet(catalog, folder / 'tiles.parquet')
    left = time.perf_counter() - began
    rates: dict[str, list[float]] = {'grafalign': [], 'LanceDB': []}
    asks: dict[str, Ask] = {'grafalign': lambda q: catalog.search(q[None], K)[1][0].tolist()}
    rows: list[dict[str, Any]] = [
        {'way': 'grafalign', 'recall_at_10': recall(asks['grafalign'], queries, truth), 'made_s': round(made, 1)}
        | {'disk_mb': size_mb(folder / 'ours'), 'kind': catalog.marker.ann.kind if catalog.marker.ann else 'exact'},
        {'way': 'GeoParquet', 'made_s': round(left, 1), 'disk_mb': size_mb(folder) - size_mb(folder / 'ours')},
    ]
    table, loaded, indexed = lance(folder / 'tiles.parquet', folder / 'lance', round(count**0.5))
    for probes, refine in ((20, 1), (20, 10), (50, 20), (100, 50), (200, 50), (400, 100)):
        asks['LanceDB'] = asker(table, probes, refine)
        found = recall(asks['LanceDB'], queries, truth)
        if found >= rows[0]['recall_at_10'] - 0.005:
            break
    for _ in range(ROUNDS):
        for way, ask in asks.items():
            began = time.perf_counter()
            for query in queries:
                ask(query)
            rates[way].append(QUERIES / (time.perf_counter() - began))
    settings = {'nprobes': probes, 'refine_factor': refine}
    lance_row = {'way': 'LanceDB', 'recall_at_10': found, 'made_s': round(loaded + indexed, 1), **settings}
    rows.append(lance_row | {'disk_mb': size_mb(folder / 'lance'), 'kind': 'IVF_PQ'})
    for row in rows:
        if row['way'] in rates:
            row['queries_per_s'] = round(statistics.median(rates[row['way']]), 1)
    return rows


def table_of(content: dict[str, Any]) -> str:
    """A row a way."""
    lines = [
        '# An index in a vector database',
        '',
        f'{content["count"]:,} made-up vectors of {WIDTH} numbers, {QUERIES} queries one by one, {K} answers each.',
        '',
        '| | kind | made, s | on disk, MB | recall@10 | queries/s |',
        '|---|---|---|---|---|---|',
    ]
    for row in content['rows']:
        found = f'{row["recall_at_10"]:.3f}' if 'recall_at_10' in row else ''
        rate = row.get('queries_per_s', '')
        lines.append(
            f'| {row["way"]} | {row.get("kind", "")} | {row["made_s"]} | {row["disk_mb"]:,.0f} | {found} | {rate} |'
        )
    return '\n'.join([*lines, '', f'`{content["command"]}`', ''])


def main() -> None:
    """Measure, keep, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--vectors', type=int, default=200_000)
    args = parser.parse_args()
    metadata = {
        'machine': machine_metadata(),
        'versions': {n: version(n) for n in ('grafalign', 'lancedb', 'faiss-cpu', 'numpy', 'pyarrow')},
        'seed': 0,
        'command': shlex.join(['python', '-m', 'experiments.performance.vector_databases', *sys.argv[1:]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        content = {'count': args.vectors, 'rows': measure(args.vectors, Path(folder)), **metadata}
    RESULT.write_text(json.dumps(content, indent=1) + '\n')
    (HERE / 'vector_databases.md').write_text(table_of(content))


if __name__ == '__main__':
    main()
