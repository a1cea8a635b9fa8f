"""The README's first table, from `results/buffer.json`: `python experiments/sandbox/headline.py` writes it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
README = HERE.parent.parent / 'README.md'
BEGIN, END = '<!-- made by experiments/sandbox/headline.py -->', '<!-- end -->'
LABELS = {
    'accuracy': 'classification, top-1 of 24 classes',
    'mIoU': 'segmentation, mIoU',
    'mAP@20': 'text to tile retrieval, mAP@20',
}
MODELS = ('frozen CLIP', 'grafalign', 'true labels')


def headline() -> str:
    """Means over the worlds, with the default buffer between splits and, for comparison, without."""
    rows: list[dict[str, Any]] = json.loads((HERE / 'results' / 'buffer.json').read_text())['rows']

    def means(metric: str, buffer: str) -> list[float]:
        here = [row for row in rows if row['buffer'] == buffer]
        return [float(np.mean([row[metric][model]['value'] for row in here])) for model in MODELS]

    lines = [
        '| | frozen CLIP on tiles | grafalign, no caption, no label | same encoder, true labels |',
        '|---|---|---|---|',
    ]
    for metric, label in LABELS.items():
        floor, ours, bound = means(metric, 'one tile side')
        lines.append(f'| {label} | {floor:.2f} | **{ours:.2f}** | {bound:.2f} |')
    before = ', '.join(f'{means(metric, "none")[1]:.2f}' for metric in LABELS)
    near = np.mean([row['test_tiles_near_train'] for row in rows if row['buffer'] == 'none'])
    lines += [
        '',
        f'Splits keep a tile side between them. Without it (`split.buffer_m: 0`) {100 * near:.0f} % of the test tiles',
        f'lie within a tile side of a training tile, and the middle column is {before}.',
    ]
    return '\n'.join(lines)


def main() -> None:
    """Write it between its marks."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f'{before}{BEGIN}\n{headline()}\n{END}{rest.split(END)[1]}')


if __name__ == '__main__':
    main()
