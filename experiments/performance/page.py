"""All claims of speed on one page: `python -m experiments.performance.page` writes `README.md` beside it.

Every figure is read from the result files of the measurements. Its date is that of the commit of the result file.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """One claim: what takes how long beside what, and how far the limit is."""

    result: str
    """The result file without its suffix; the page of the same name has the details, but for trainings."""
    what: str
    beside: str
    measured: Callable[[Any], str]
    """From the content of the result file."""
    limit: Callable[[Any], str]
    part: str = ''
    """Of the result file, where it has several with a command each."""


def claims() -> list[Claim]:
    """All of them, in the order of the chain."""
    return [
        Claim('planning', 'plan of a hundred million photos', 'one million', _plan, _plan_memory),
        Claim('candidates', 'choosing among 700 scenes a tile', 'a tenth of the tiles and scenes', _choice, _memory),
        Claim(
            'pairing',
            '800 tiles out of COGs behind HTTP, 50 ms a request',
            'odc-stac, loaded per tile; rasterio, opened per tile',
            lambda d: ' and '.join(f'{_pairing(d, m) / _pairing(d, "ours"):.1f} times as fast' for m in _PEERS),
            lambda d: (
                f'{_pairing(d, "ours", "bytes") / _pairing(d, "fetch", "bytes"):.2f} of the least bytes, '
                f'{_pairing(d, "ours") / max(_pairing(d, "fetch"), _pairing(d, "decode")):.2f} times decoding alone'
            ),
        ),
        Claim(
            'bank',
            'a photo bank with an encoder that takes no time, files and tars',
            'decoding and resizing alone',
            lambda d: (
                ' and '.join(f'{d["rows"][0]["of_decoding"][k][0]:.2f}' for k in ('files', 'tars')) + ' of its speed'
            ),
            lambda d: '1',
        ),
        Claim('training_loss', 'the loss of 4,096 tiles and 106,496 candidates', 'the dense loss', _loss, _products),
        Claim(
            'training_peers',
            'a training beside others with one satellite tower',
            'open_clip, both towers; photos encoded in every step',
            lambda d: ' and '.join(
                f'{_speed(d, "ours") / _speed(d, m):.2f} times as fast' for m in ('open_clip', 'photo loop')
            ),
            lambda d: 'see the next line',
        ),
        Claim(
            'training_overhead',
            'the same training',
            'a bare loop with its batches in memory',
            lambda d: f'{_overhead(d["cases"]):.2f} of its speed',
            lambda d: '1',
        ),
        Claim(
            'captions',
            'training on captions',
            'a bare loop',
            lambda d: f'{min(c["median"] for c in d["training"]["measured"]):.2f} of its speed',
            lambda d: f'{min(c["limit"] for c in d["training"]["measured"]):.2f} with what reading takes',
            'training',
        ),
        Claim(
            'captions',
            'filtering 100,000 images',
            'extracting their features alone',
            lambda d: f'{min(d["filter"]["measured"]["speed_of_features_alone"]):.2f} of its speed',
            lambda d: '1',
            'filter',
        ),
        Claim(
            'retrieval',
            'recall (and mAP) among 100,000 items',
            'one-hot recall, at 20,000',
            lambda d: f'{_ways(d, 20_000)["one-hot recall"] / _ways(d, 20_000)["recall"]:.1f} times as fast',
            lambda d: (
                ' and '.join(
                    f'{_ways(d, 100_000)[way] / _ways(d, 100_000)["bare product"]:.2f}'
                    for way in ('recall', 'recall and mAP')
                )
                + ' times the bare product'
            ),
            'ranks',
        ),
        Claim(
            'retrieval',
            'searching a million vectors (ivf, recall 0.99)',
            'exact FAISS',
            lambda d: f'{_queries(d, "ivf") / _queries(d, "FAISS exact (IndexFlatIP)"):.0f} times the queries',
            lambda d: 'no bound known',
            'index',
        ),
        Claim('index_growth', 'a commit of 1,024 rows to a million', 'to a hundred thousand', _commits, _filters),
        Claim(
            'vector_databases',
            'searching 100,000 vectors one by one',
            'LanceDB at the same recall',
            lambda d: f'{_database(d, "grafalign") / _database(d, "LanceDB"):.0f} times the queries',
            lambda d: 'no bound known',
        ),
        Claim(
            'maps',
            'a field, overlap 4, encoder of 12 layers',
            'the encoder alone',
            lambda d: f'{_field(d["overlap"]["rows"]):.3f} times its time',
            lambda d: '1',
            'overlap',
        ),
        Claim(
            'maps_peers',
            'a map of 3,072 x 2,304 px in 24 words',
            'geoai around the same encoder',
            lambda d: (
                f'{_peer(d, "geoai", "seconds"):.1f} times as fast, 1/{_peer(d, "geoai", "peak_mb"):.0f} of the memory'
            ),
            lambda d: 'the line above',
        ),
        Claim(
            'explore',
            'a new word until its heat lies over a field of 10,980 px',
            'the wish: 2 s',
            lambda d: f'{d["new_word_with_heat_s"]["median"]:.2f} s',
            lambda d: 'no bound known',
        ),
    ]


_PEERS = ('odc-stac', 'rasterio')


def _plan(content: Any) -> str:
    seconds = {(r['grid'], r['photos']): r['seconds'] for r in content['rows'] if r['order'] == 'as drawn'}
    grids = dict.fromkeys(grid for grid, _ in seconds)
    return ' and '.join(f'{seconds[g, _HUNDRED] / seconds[g, _HUNDRED // 100]:.0f} times the time' for g in grids)


def _plan_memory(content: Any) -> str:
    rows = [r for r in content['rows'] if r['photos'] == _HUNDRED]
    return 'linear is 100; ' + ' and '.join(f'{r["seconds"] / 60:.0f} minutes, {r["peak_gb"]:.1f} GB' for r in rows)


_HUNDRED = 100_000_000


def _commits(content: Any) -> str:
    few, *_, many = content['growth']
    return f'{many["ms_a_commit_at_the_end"] / few["ms_a_commit_at_the_end"]:.1f} times the time'


def _filters(content: Any) -> str:
    large = content['filters']
    small = [c for c in large['cases'] if c['ms_filter'] + c['ms_search'] < _SOON_MS]
    return (
        f'1; of ten million, {len(small)} of {len(large["cases"])} filters are answered within {_SOON_MS} ms, exactly '
        f'(up to {max((c["allowed"] for c in small), default=0):,} rows left)'
    )


_SOON_MS = 50


def _choice(data: dict[str, Any]) -> str:
    seconds = {row['scenes']: row['seconds_choice'] for row in data['rows'] if row['mosaic']}
    few, many = sorted(seconds)[:2]
    return f'{seconds[many] / seconds[few] * few / many:.2f} times the time a tile'


def _memory(data: dict[str, Any]) -> str:
    few, many = sorted((row for row in data['rows'] if row['mosaic']), key=lambda row: row['scenes'])[:2]
    more = (many['table_mb'] - few['table_mb']) * 1e6 / (many['scenes'] - few['scenes'])
    return f'{more:.0f} bytes more for each scene more'


def _pairing(data: dict[str, Any], method: str, what: str = 'wall_s') -> float:
    """Median of a method at 800 tiles in blocks of 1,024 px; what is not fetched has no latency."""
    rows = [m for m in data['measurements'] if (m['block'], m['tiles'], m['method']) == (1024, 800, method)]
    slow = [m for m in rows if m['latency_ms'] == data['settings']['headline_ms']]
    return median(m[what] for m in slow or rows)


def _loss(data: dict[str, Any]) -> str:
    case = next(c for c in data['cases'] if 'dense' in c)
    faster = case['dense']['spent'][0] / min(s[0] for s in case['spent']['ours'])
    return f'{faster:.1f} times as fast, 1/{case["dense"]["extra_mb"] / case["extra_mb"]:.0f} of the memory'


def _products(data: dict[str, Any]) -> str:
    spent = next(c for c in data['cases'] if 'dense' in c)['spent']
    return f'{min(s[0] for s in spent["ours"]) / min(s[0] for s in spent["two"]):.2f} times its two products'


def _speed(data: dict[str, Any], method: str) -> float:
    return median(c['samples_per_s'] for c in data['cases'] if c['method'] == method)


def _overhead(cases: Rows) -> float:
    return min(
        median(bare[0] / ours[0] for ours, bare in zip(c['spent']['ours'], c['spent']['bare'], strict=True))
        for c in cases
    )


def _ways(data: dict[str, Any], count: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for row in data['ranks']['rows']:
        if row['count'] == count:
            seconds.setdefault(row['way'], []).append(row['seconds'])
    return {way: median(values) for way, values in seconds.items()}


def _queries(data: dict[str, Any], way: str) -> float:
    return float(next(row['queries_per_s'] for row in data['index']['rows'] if row['way'] == way))


def _database(data: dict[str, Any], way: str) -> float:
    return float(next(row['queries_per_s'] for row in data['rows'] if row['way'] == way))


def _field(rows: Rows) -> float:
    return median(row['ratio'] for row in rows if (row['overlap'], row['layers']) == (4.0, 12))


def _peer(data: dict[str, Any], peer: str, what: str) -> float:
    ours, theirs = (next(row[what] for row in data['rows'] if row['name'] == name) for name in ('ours', peer))
    return float(theirs / ours)


def page() -> Iterable[str]:
    """The lines of the page."""
    yield '# How fast, beside what, and how far from the limit'
    yield ''
    yield (
        'Written by `python -m experiments.performance.page` from `results/`. Machines were shared, so figures are '
        'ratios of runs in turns, and counts; the pages have the seconds, the spread and the machine. All were '
        'measured on two cores without a GPU.'
    )
    yield ''
    yield '| what | beside | measured | the limit | date | details, command |'
    yield '|---|---|---|---|---|---|'
    for claim in claims():
        file = HERE / 'results' / f'{claim.result}.json'
        data = json.loads(file.read_text())
        details = f'{claim.result.partition("_")[0] if claim.result.startswith("training") else claim.result}.md'
        command = (data[claim.part] if claim.part else data)['command']
        yield (
            f'| {claim.what} | {claim.beside} | **{claim.measured(data)}** | {claim.limit(data)} | {_date(file)} '
            f'| [{details}]({details}), `{command}` |'
        )
    yield ''
    yield '## Has anything become slower?'
    yield ''
    yield (
        '`python -m experiments.performance.ratios` takes a minute or two, and fails where a small work of ours has '
        'become more than a fifth slower beside its yardstick than here (one thread):'
    )
    yield ''
    yield '| work | times the yardstick |'
    yield '|---|---|'
    ratios = json.loads((HERE / 'results' / 'ratios.json').read_text())
    for work in ratios['works'].values():
        yield f'| {work["what"]} | {work["ratio"]:.2f} |'
    yield ''
    yield f'Of {ratios["date"]}. Before and after a change, whole commands in turns: [changes.md](changes.md).'
    yield ''


def _date(file: Path) -> str:
    """Day of the commit that a result file came with."""
    command = ['git', 'log', '-1', '--format=%cs', '--', file.name]
    return subprocess.run(command, cwd=file.parent, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == '__main__':
    (HERE / 'README.md').write_text('\n'.join(page()))
