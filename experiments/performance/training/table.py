"""`python -m experiments.performance.training.table`: `training.md` from `results/training_*.json` and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

HERE = Path(__file__).resolve().parents[1]
Lines = Iterable[str]


def write_page(results: Path, target: Path) -> None:
    """Write the tables of all parts that have a result file; say of the others that they have none."""
    lines = [
        '# Training, measured',
        '',
        'From `results/training_*.json`, by `training/table.py`; `training/__main__.py` says what is measured and why '
        'it is fair. Parts are measured in different hours on shared machines: compare ratios, of runs in turns, '
        'and processor time, which others disturb less than wall time.',
        '',
    ]
    for part, (title, tables) in PARTS.items():
        file = results / f'training_{part}.json'
        lines += [f'## {title}', '']
        if not file.is_file():
            lines += [f'Not measured yet: `python -m experiments.performance.training --data FOLDER --only {part}`', '']
            continue
        result = json.loads(file.read_text())
        lines += [*_metadata(result), '', *tables(result), '']
    target.write_text('\n'.join(lines).rstrip() + '\n')


def _metadata(result: dict[str, Any]) -> Lines:
    machine, others = result['machine'], sorted(c['other_cpu_share'] for c in result['cases'])
    yield f'`{result["command"]}`'
    yield ''
    yield (
        f'{machine["cores"]} cores, {machine["threads"]} threads, {machine["memory_gib"]:g} GiB, {machine["system"]} '
        f'{machine["architecture"]}; '
        + ', '.join(f'{k} {v}' for k, v in result['versions'].items())
        + f'; seed {result["seed"]}. Other processes took {median(others):.0%} of the cores meanwhile (median; '
        f'{others[0]:.0%} to {others[-1]:.0%}).'
    )


def _loss(result: dict[str, Any]) -> Lines:
    s = result['settings']
    yield (
        f'{s["tiles"]:,} tiles with {s["photos"]} photos each, D = {s["depth"]}, float32; candidates are these photos '
        f'and {s["bank"]:,} more out of a {s["bank_dtype"]} bank. The loss and its gradient. Extra MB: rise of the '
        'resident memory of a fresh process, beyond its inputs. Time is held against dense products [rows, D] x '
        f'[D, candidates] of gathered, contiguous float32 (at patch level {s["slab_rows"]:,} rows at a time, scaled): '
        'against one, and against all that the case needs at least: the logits, the gradient, and with `closer_than` '
        'the photos on the photos. No method can be under 1.0 of these, so none that gives a gradient can be under 2.0 '
        'of one. Median of the turns. The last column is by the processor time of a single thread, once: what others '
        'do on the machine hardly changes it, while threads that wait for each other spin.'
    )
    yield ''
    rows = []
    for c in result['cases']:
        ours, one, two = (c['spent'][k] for k in ('ours', 'one', 'two'))
        cells = []
        for clock in (0, 1):  # wall and processor time
            per_turn = len(one) // len(ours)
            single = [mean(v[clock] for v in one[t * per_turn : (t + 1) * per_turn]) for t in range(len(ours))]
            double = [mean(v[clock] for v in two[t * per_turn : (t + 1) * per_turn]) for t in range(len(ours))]
            needed = [d + (c['products'] - 2) * s for s, d in zip(single, double, strict=True)]
            mine = [v[clock] for v in ours]
            cells.append(_spread([m / s for m, s in zip(mine, single, strict=True)]))
            cells.append(_spread([m / n for m, n in zip(mine, needed, strict=True)]))
        rows.append(
            [
                c['level'],
                c['form'],
                c['mask'],
                f'{c["rows"]:,} x {c["candidates"]:,}',
                f'{c["extra_mb"]:.0f}',
                f'{median(v[0] for v in ours):.1f}',
                f'{median(v[1] for v in ours):.1f}',
                cells[0],
                cells[2],
                f'{c["products"]:g}',
                cells[1],
                cells[3],
                _one_thread(c),
            ]
        )
    yield from _table(
        [
            'level',
            'form',
            'mask',
            'rows x candidates',
            'extra MB',
            'wall s',
            'CPU s',
            'x one product, wall',
            'CPU',
            'products needed',
            'x all of them, wall',
            'CPU',
            'one thread: x one product, x all',
        ],
        rows,
    )
    for c in result['cases']:
        dense = c['dense']
        if not dense:
            continue
        yield ''
        if 'skipped' in dense:
            yield f'The dense loss under autograd at {c["level"]} level: not run ({dense["skipped"]}).'
            continue
        ours = [median(v[clock] for v in c['spent']['ours']) for clock in (0, 1)]
        wall_s, cpu_s = dense['spent']
        yield (
            f'The dense loss under autograd at {c["level"]} level (softmax, no mask; once): {dense["extra_mb"]:,.0f} '
            f'MB, {wall_s:.1f} s, {cpu_s:.1f} CPU s: {dense["extra_mb"] / max(1, c["extra_mb"]):.0f} times the memory, '
            f'{wall_s / ours[0]:.2f} times the wall and {cpu_s / ours[1]:.2f} times the processor time. The two values '
            f'differ by {abs(dense["loss"] - c["loss"]):.1e}.'
        )


def _one_thread(case: dict[str, Any]) -> str:
    spent = case['one_thread_cpu_s']
    if spent is None:
        return ''
    needed = spent['two'] + (case['products'] - 2) * spent['one']
    return f'{spent["ours"] / spent["one"]:.2f}, {spent["ours"] / needed:.2f}'


def _data(result: dict[str, Any]) -> Lines:
    s = result['settings']
    yield (
        f'`grafalign train`, {_tower(s)}, batch {s["batch"]}, {s["photos_per_tile"]} photos a tile, noise tiles of 224 '
        f'px in a store on disk; {s["steps"]} steps, of which the first {s["warm_up"]} are not counted. Cold: the '
        'system was asked to forget the shards right before, and `in memory` is what it then still held. Data and step '
        'are what the log says; the worst line is the largest share that any of its lines shows.'
    )
    yield ''
    rows = []
    for key, cases in _grouped(result['cases'], 'dtype', 'cache', 'workers').items():
        rows.append(
            [
                *key,
                _spread([c['resident_share'] for c in cases], '.0%'),
                f'{s["bytes_per_step"][key[0]] / 1e6:.1f}',
                _spread([c['data_ms'] for c in cases], '.1f'),
                _spread([c['step_ms'] for c in cases], '.0f'),
                _spread([c['share'] for c in cases], '.2%'),
                f'{max(c["worst_window"] for c in cases):.2%}',
                _spread([c['first_window_data_ms'] for c in cases], '.0f'),
                _spread([c['workers_cpu_ms_per_sample'] / c['cpu_ms_per_sample'] for c in cases], '.1%'),
            ]
        )
    names = ['pixels', 'files', 'workers', 'in memory', 'MB a step', 'data ms', 'step ms', '**data / step**']
    names += ['worst line', 'first line, data ms', 'workers, of all CPU time']
    yield from _table(names, rows)
    yield ''
    yield f'A line of the log: `{result["cases"][0]["line"]}`'


def _overhead(result: dict[str, Any]) -> Lines:
    s, first = result['settings'], result['cases'][0]
    yield (
        f'{_tower(s)}, batch {first["batch"]}, {s["photos_per_tile"]} photos a tile, AdamW, float32. The bare loop has '
        'its batches in memory as tensors and does nothing but encoder, dense loss, backward and AdamW; grafalign '
        'reads tiles from its store, draws views, clips, schedules, checks and logs. Blocks of '
        f'{first["steps_per_block"]} steps in turns, in one process; ratios are of neighbouring blocks. Processor time '
        'holds that of the processes that read.'
    )
    yield ''
    rows = []
    for c in result['cases']:
        ours, bare = c['spent']['ours'], c['spent']['bare']
        tiles = c['steps_per_block'] * c['batch']
        rows.append(
            [
                c['workers'],
                len(ours),
                f'{tiles / median(v[0] for v in ours):.1f}',
                f'{tiles / median(v[0] for v in bare):.1f}',
                _spread([b[0] / o[0] for o, b in zip(ours, bare, strict=True)], '.3f'),
                _spread([b[1] / o[1] for o, b in zip(ours, bare, strict=True)], '.3f'),
                f'{c["data_share"]:.2%}',
            ]
        )
    names = ['workers', 'turns', 'grafalign, tiles/s', 'bare loop, tiles/s', '**speed, of the bare loop**']
    yield from _table([*names, 'the same by processor time', 'data / step'], rows)


def _peers(result: dict[str, Any]) -> Lines:
    s = result['settings']
    versions = ', '.join(f'{k} {v}' for k, v in s['versions_of_peers'].items())
    yield (
        f'{_tower(s)} with random weights, the same for all; batch {s["batch"]}, two workers, float32. Every run is a '
        f'fresh process of {s["steps"]} steps, timed from outside by the lines of its log; the runs take turns. '
        f'grafalign takes {s["photos_per_tile"]} photos a tile out of its bank. open_clip ({versions}) trains image '
        'and text tower on its own synthetic pictures and captions: another task, of equal towers and batch. The photo '
        f'loop decodes one JPEG a tile ({s["jpeg_px"][0]} x {s["jpeg_px"][1]} px, {s["jpeg_bytes"] / 1000:.0f} kB) and '
        'sends it through the frozen tower in every step.'
    )
    yield ''
    groups = _grouped(result['cases'], 'method')
    own = {c['turn']: c for c in groups['ours',]}
    rows = []
    for (name,), cases in groups.items():
        faster = [own[c['turn']]['samples_per_s'] / c['samples_per_s'] for c in cases]
        cheaper = [c['cpu_ms_per_sample'] / own[c['turn']]['cpu_ms_per_sample'] for c in cases]
        rows.append(
            [
                _NAMES[name].format(bank=s['bank']),
                _spread([c['samples_per_s'] for c in cases], '.1f'),
                _spread([c['cpu_ms_per_sample'] for c in cases], '.1f'),
                _spread(faster),
                _spread(cheaper),
            ]
        )
    names = ['loop', 'tiles (images) per s', 'CPU ms each', 'grafalign is faster by', 'and by processor time']
    yield from _table(names, rows)


_NAMES = {
    'ours': '**grafalign**',
    'ours, bank': '**grafalign**, {bank:,} more negatives',
    'open_clip': 'open_clip, both towers trained',
    'open_clip, text tower locked': 'open_clip, text tower locked',
    'photo loop': 'photos encoded in every step',
}


def _tower(settings: dict[str, Any]) -> str:
    v = settings['vision']
    return f'a ViT of {v["layers"]} blocks, width {v["width"]}, patches of {v["patch_size"]} px'


def _grouped(cases: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Cases by some of their values, in the order of their coming."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault(tuple(case[k] for k in keys), []).append(case)
    return groups


def _spread(values: list[float], form: str = '.2f') -> str:
    middle = format(median(values), form)
    return middle if len(values) == 1 else f'{middle} ({min(values):{form}} to {max(values):{form}})'


def _table(names: list[str], rows: Iterable[list[Any]]) -> Lines:
    yield f'| {" | ".join(names)} |'
    yield f'|{"---|" * len(names)}'
    for row in rows:
        yield f'| {" | ".join(map(str, row))} |'


PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], Lines]]] = {
    'loss': ('The loss', _loss),
    'data': ('Waiting for tiles', _data),
    'overhead': ('Beside a bare loop', _overhead),
    'peers': ('Beside other loops', _peers),
}

if __name__ == '__main__':
    write_page(HERE / 'results', HERE / 'training.md')
