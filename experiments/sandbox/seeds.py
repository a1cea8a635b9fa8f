"""The quickstart in several worlds: `python experiments/sandbox/seeds.py --out runs/seeds --seeds 0 1 2`.

Each seed is another world, other photos, other splits and other training. Results go to `experiments/sandbox/results/`:
one JSON a seed from the quickstart's report, and `table.md`, which is made from those files and from nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from grafalign.quickstart import quickstart

RESULTS = Path(__file__).parent / 'results'
TASKS = (
    ('classification', 'accuracy', 'accuracy'),
    ('segmentation', 'miou', 'mIoU'),
    ('retrieval', 'map_at_20', 'mAP@20'),
)


def record(report: dict[str, Any], seed: int) -> dict[str, Any]:
    """What is kept of a report: numbers, settings and versions, without paths and times of one machine."""
    kept = {k: report[k] for k in ('pairs', 'classification', 'segmentation', 'retrieval', 'sets')}
    metadata = report['setting']
    train = metadata['settings']['train']
    return {
        'command': f'grafalign quickstart --seed {seed}',
        'seed': seed,
        **kept,
        'settings': {'train': train},
        'machine': f'{metadata["machine"]}, {metadata["cores"]} cores',
        'versions': metadata['versions'],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Every model's value by seed, their mean, and the mean share of the supervised bound."""
    seeds = [str(r['seed']) for r in results]
    lines = [
        f'| task | model | {" | ".join(f"seed {s}" for s in seeds)} | mean | of supervised | x frozen CLIP |',
        f'|---|---|{"---|" * len(seeds)}---|---|---|',
    ]
    for task, key, label in TASKS:
        values = {n: [r[task][n][key] for r in results] for n in results[0][task]}
        bound, floor = (np.array([v['value'] for v in values[n]]) for n in ('supervised', 'frozen_clip'))
        for name, found in values.items():
            mine = np.array([v['value'] for v in found])
            cells = [f'{v["value"]:.3f} ({v["low"]:.3f} to {v["high"]:.3f})' for v in found]
            lines.append(
                f'| {label} | {name} | {" | ".join(cells)} | {mine.mean():.3f} | {(mine / bound).mean():.2f} '
                f'| {(mine / floor).mean():.1f} |'
            )
    counts = list(results[0]['pairs'])
    lines += ['', f'| pairs | {" | ".join(f"seed {s}" for s in seeds)} |', f'|---|{"---|" * len(seeds)}']
    lines += [f'| {c} | {" | ".join(format(r["pairs"][c], ",") for r in results)} |' for c in counts]
    first = results[0]
    versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
    head = '# The quickstart in three worlds\n\nValues with their 95 % bootstrap intervals; made by `seeds.py`.\n\n'
    return head + '\n'.join(lines) + f'\n\n{first["machine"]}; {versions}.\n'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('runs/seeds'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for seed in args.seeds:
        report = quickstart(args.out / str(seed), seed)
        (RESULTS / f'seed_{seed}.json').write_text(
            json.dumps(record(report.model_dump(mode='json'), seed), indent=1) + '\n'
        )
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob('seed_*.json'))]
    (RESULTS / 'table.md').write_text(table(found))
