"""The README's first table: `python experiments/sandbox/headline.py`, then `python -m experiments.pages`.

From the quickstarts of three worlds (`results/seed_*.json`, by `seeds.py`), and, where `results/buffer.json` is of the
same runs, what they would be without a buffer between splits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TASKS = (
    ('classification', 'accuracy', 'grafalign_image', 'accuracy', 'classification, top-1 of 24 classes'),
    ('segmentation', 'miou', 'grafalign_patch', 'mIoU', 'segmentation, mIoU'),
    ('retrieval', 'map_at_20', 'grafalign_image', 'mAP@20', 'text to tile retrieval, mAP@20'),
)
"""Part of a report, metric in it, run that is measured, name in buffer.json, and what it is called."""


def headline() -> str:
    """Means over the worlds of frozen CLIP, ours and the supervised bound."""
    reports: list[dict[str, Any]] = [json.loads(p.read_text()) for p in sorted((HERE / 'results').glob('seed_*.json'))]
    lines = [
        '| | frozen CLIP on tiles | grafalign, no caption, no label | same encoder, true labels |',
        '|---|---|---|---|',
    ]
    for task, metric, run, _, label in TASKS:
        models = ('frozen_clip', run, 'supervised')
        floor, ours, bound = (np.mean([r[task][m][metric]['value'] for r in reports]) for m in models)
        lines.append(f'| {label} | {floor:.2f} | **{ours:.2f}** | {bound:.2f} |')
    return '\n'.join([*lines, *without_buffer(reports)])


def without_buffer(reports: list[dict[str, Any]]) -> list[str]:
    """The same without a buffer, unless that was measured with other runs."""
    rows = json.loads((HERE / 'results' / 'buffer.json').read_text())['rows']
    beside = {row['seed']: row for row in rows if row['buffer'] != 'none'}
    for report in reports:
        for task, metric, run, name, _ in TASKS:
            if beside[report['seed']][name]['grafalign'] != report[task][run][metric]:
                return []
    none = [row for row in rows if row['buffer'] == 'none']
    near = np.mean([row['test_tiles_near_train'] for row in none])
    values = ', '.join(f'{np.mean([row[name]["grafalign"]["value"] for row in none]):.2f}' for *_, name, _ in TASKS)
    return [
        '',
        f'Splits keep a tile side between them. Without it (`split.buffer_m: 0`) {100 * near:.0f} % of the test tiles',
        f'lie within a tile side of a training tile, and the middle column is {values}.',
    ]


if __name__ == '__main__':
    (HERE / 'results' / 'headline.md').write_text(headline() + '\n')
