"""What a buffer between splits costs and shows.

    python experiments/sandbox/seeds.py --out runs/seeds
    python experiments/sandbox/buffer.py --out runs/seeds

The quickstart in the same worlds, once as `seeds.py` left them, with a tile side between splits, and once
with tiles up to the edge of their block (`split.buffer_m: 0`). Beside them stand the frozen CLIP and the same encoder
trained on true labels. A world that was measured before is not measured again. Results go to
`experiments/sandbox/results/buffer.json` and `buffer.md`, which is made from it and from nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from grafalign.chain import run_experiment
from grafalign.quickstart import quickstart_experiment
from grafalign.store import PairStore

RESULTS = Path(__file__).parent / 'results'
BUFFERS = ('none', 'one tile side')
MODELS = ('frozen CLIP', 'grafalign', 'true labels')
TASKS = (
    ('classification', 'accuracy', ('frozen_clip', 'grafalign_image', 'supervised'), 'accuracy'),
    ('segmentation', 'miou', ('frozen_clip', 'grafalign_patch', 'supervised'), 'mIoU'),
    ('retrieval', 'map_at_20', ('frozen_clip', 'grafalign_image', 'supervised'), 'mAP@20'),
)


def near_train(store: PairStore) -> float:
    """Share of the test tiles that lie within one tile side of a training tile."""
    zone = int(store.tiles['epsg'].mode()[0])
    tiles = store.tiles.to_crs(zone)
    train, test = (tiles.geometry[(tiles['split'] == split).to_numpy()] for split in ('train', 'test'))
    side = store.sensor.size_px * store.sensor.gsd_m
    _, distance = train.sindex.nearest(test, return_all=False, return_distance=True)
    return float((distance < side).mean())


def measure(folder: Path, seed: int, name: str) -> dict[str, Any]:
    """One world with one buffer."""
    out = folder / str(seed)
    if name == 'none':
        _, experiment = quickstart_experiment(out, seed)
        recipe, out = experiment.recipe, out / 'no_buffer'
        recipe = recipe.model_copy(update={'split': recipe.split.model_copy(update={'buffer_m': 0.0})})
        if not (out / 'report.json').exists():
            run_experiment(experiment.model_copy(update={'pair': recipe, 'out': out}))
    elif not (out / 'report.json').exists():
        raise SystemExit(f'{out} has no report.json; run experiments/sandbox/seeds.py first.')
    report = json.loads((out / 'report.json').read_text())
    store = PairStore(out / 'pairs')
    return {
        'seed': seed,
        'buffer': name,
        'tiles': store.marker.summary.splits,
        'test_tiles_near_train': near_train(store),
        **{
            label: {m: report[task][run][metric] for m, run in zip(MODELS, runs, strict=True)}
            for task, metric, runs, label in TASKS
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Ours in every world, and the means of all models."""
    labels = [label for *_, label in TASKS]
    lines = [
        '# The quickstart with and without a buffer between splits',
        '',
        'grafalign with its 95 % bootstrap intervals, on tiles and chips of the test blocks; made by `buffer.py`.',
        '',
        f'| world | buffer | train, val, test tiles | test tiles near a training tile | {" | ".join(labels)} |',
        f'|---|---|---|---|{"---|" * len(labels)}',
    ]
    for row in rows:
        tiles = ', '.join(f'{row["tiles"].get(s, 0):,}' for s in ('train', 'val', 'test'))
        ours = [row[n]['grafalign'] for n in labels]
        values = [f'{v["value"]:.3f} ({v["low"]:.3f} to {v["high"]:.3f})' for v in ours]
        lines.append(
            f'| {row["seed"]} | {row["buffer"]} | {tiles} | {row["test_tiles_near_train"]:.0%} | {" | ".join(values)} |'
        )
    lines += ['', 'Means over the worlds:', '', f'| buffer | model | {" | ".join(labels)} |', f'|---|---|{"---|" * 3}']
    for name in BUFFERS:
        for model in MODELS:
            means = [np.mean([r[n][model]['value'] for r in rows if r['buffer'] == name]) for n in labels]
            lines.append(f'| {name} | {model} | {" | ".join(f"{mean:.3f}" for mean in means)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measure, keep and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('runs/seeds'), help='folder of seeds.py')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    options = parser.parse_args()
    rows, seeds = [], ' '.join(map(str, options.seeds))
    for seed in options.seeds:
        rows += [measure(options.out, seed, name) for name in BUFFERS]
        content = {
            'command': f'python experiments/sandbox/buffer.py --seeds {seeds}',
            'machine': f'{platform.machine()}, {platform.system()}',
            'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
            'settings': {'experiment': 'experiments/sandbox/quickstart.yaml', 'split.buffer_m': [0, 'one tile side']},
            'rows': rows,
        }
        (RESULTS / 'buffer.json').write_text(json.dumps(content, indent=1) + '\n')
        (RESULTS / 'buffer.md').write_text(table(rows))
    print(table(rows))


if __name__ == '__main__':
    main()
