"""E6 on real pixels: in a mosaic of 3 x 3 AID scenes, where is the class that was asked for?

    (the commands of experiments/captions/aid/run.py first)
    python -m experiments.recipe.aid_mosaics --val AID_VAL --runs runs/aid

Every mosaic holds nine scenes of nine classes, at the size that the model was trained on (72 px of 8 x 8 tokens). Each
of its classes is asked for, and the place of the highest score must lie in its scene (the pointing game: Zhang et al.,
ECCV 2016). All ways see the same windows. Intervals and paired differences over mosaics; chance is 1/9.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experiments.recipe.localisation import ways
from grafalign.benchmarks.statistics import Mean, estimates, paired_difference, resampling
from grafalign.datasets import open_set
from grafalign.models import load_model
from grafalign.models.pixels import to_input
from grafalign.training import load_satellite
from grafalign.zeroshot import class_vectors, segment

RESULTS = Path(__file__).resolve().parent / 'results'
MOSAICS, SIDE, SEED, DRAWS = 100, 3, 0, 1000
STRIDES = (36,)


def words(name: str) -> str:
    """A class of AID as words: `DenseResidential` is `dense residential`."""
    return re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name).lower()


def mosaics(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Scenes of every mosaic, [MOSAICS, 9], of nine classes each."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(MOSAICS):
        classes = rng.choice(labels.max() + 1, SIDE * SIDE, replace=False)
        found.append([int(rng.choice(np.flatnonzero(labels == c))) for c in classes])
    return np.array(found)


def main() -> None:
    """Point in all mosaics by all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=Path, default=Path('runs/aid'))
    parser.add_argument('--val', type=Path, required=True, help="folder of the val split's images and captions.jsonl")
    args = parser.parse_args()
    data = open_set(f'captions:{args.val}@all')
    lines = [json.loads(line) for line in (args.val / 'captions.jsonl').read_text().splitlines()]
    class_of = {line['image']: words(line['class']) for line in lines}
    names = [class_of[item] for item in data.items]
    classes = sorted(set(names))
    labels = np.array([classes.index(name) for name in names])
    run = load_satellite(args.runs / 'scratch')
    model = load_model(str(args.runs / 'scratch'))
    vectors = class_vectors(run.clip, classes)
    size, drawn = run.encoder.size_px, mosaics(labels)
    scenes = {
        int(i): to_input(data.read(int(i)), model.preprocessing, 'resize', data.value_range) for i in np.unique(drawn)
    }
    hits: dict[str, list[float]] = {}
    for row in drawn:
        rows = [torch.cat([scenes[int(i)] for i in part], dim=2) for part in row.reshape(SIDE, SIDE)]
        image = torch.cat(rows, dim=1)[None]
        for name, way in ways(run.encoder).items():
            for stride in STRIDES:
                scores = segment(way, image, vectors[labels[row]], stride)[0]
                place = scores.flatten(1).argmax(1)
                at = torch.stack([place // scores.shape[2] // size, place % scores.shape[2] // size], 1)
                wanted = torch.tensor([[k // SIDE, k % SIDE] for k in range(SIDE * SIDE)])
                hits.setdefault(f'{name} | {stride}', []).append(float((at == wanted).all(1).sum()))
    how = resampling(MOSAICS, None, DRAWS, SEED)
    statistics = {name: Mean(np.array(v), np.full(MOSAICS, float(SIDE * SIDE))) for name, v in hits.items()}
    command = ' '.join(['python -m experiments.recipe.aid_mosaics', *sys.argv[1:]])
    content: dict[str, Any] = {
        'command': command.replace(str(args.val), 'AID_VAL').replace(str(args.runs), 'runs/aid'),
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
        'settings': {'mosaics': MOSAICS, 'classes': classes, 'seed': SEED, 'draws': DRAWS},
        'pointing': {k: v.model_dump() for k, v in estimates(dict(statistics), how).items()},
        'minus_windows': {
            name: vars(paired_difference(one, statistics[f'windows | {name.split(" | ")[1]}'], how))
            for name, one in statistics.items()
            if not name.startswith('windows')
        },
    }
    (RESULTS / 'aid_mosaics.json').write_text(json.dumps(content, indent=1) + '\n')
    table = [
        '# Pointing in mosaics of AID scenes',
        '',
        '| way | stride | hits (95 %) | minus windows |',
        '|---|---|---|---|',
    ]
    for name, value in content['pointing'].items():
        way, stride = name.split(' | ')
        beside = content['minus_windows'].get(name)
        text = '' if beside is None else f'{beside["value"]:+.3f} ({beside["low"]:+.3f} to {beside["high"]:+.3f})'
        table.append(
            f'| {way} | {stride} | {value["value"]:.3f} ({value["low"]:.3f} to {value["high"]:.3f}) | {text} |'
        )
    (RESULTS / 'aid_mosaics.md').write_text('\n'.join(table) + '\n')


if __name__ == '__main__':
    main()
