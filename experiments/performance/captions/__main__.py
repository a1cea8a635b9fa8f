"""What captions cost: filtering, landmarks, text banks and training, with memory and the limit beside each.

    python -m experiments.performance.captions --data runs/captions         # all parts; made input is kept (10 GB)
    python -m experiments.performance.captions --data runs/captions --only landmarks

filter     `captions filter` on a made img2dataset output (JPEGs of 256 px in tars), beside the same model fed the same
           pictures by a loop that does nothing else, in turns, in fresh processes
memory     the same with ten times the images, once: how memory grows
landmarks  `captions landmarks` on a made .osm.pbf (buildings, roads, points) and 10,000 images
texts      `grafalign embed` on made sets of a million and of ten million captions with few distinct texts, as templates
           give
training   tiles a second of `fit` on JPEGs with captions beside a bare loop over tensors in memory, in turns

Peak memory is VmHWM of a fresh process. Weights are random where they do not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.performance.captions.commands import MODULE
from experiments.performance.captions.filter import features_case, measure_filter
from experiments.performance.captions.landmarks import measure_landmarks
from experiments.performance.captions.texts import measure_texts
from experiments.performance.captions.training import training_case
from experiments.performance.machine import machine_metadata

RESULTS = Path(__file__).resolve().parents[1] / 'results' / 'captions.json'


def measure_training(data: Path) -> list[dict[str, Any]]:
    """With two processes that read images, and with none; a fresh process each."""
    cases = []
    for workers in (2, 0):
        case = [sys.executable, '-m', MODULE, '--data', str(data), '--case', 'training', str(workers)]
        done = subprocess.run(case, stdout=subprocess.PIPE, text=True, check=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
    return cases


PARTS: dict[str, Callable[[Path], Any]] = {
    'filter': lambda data: measure_filter(data / 'filter', 100_000, turns=2),
    'memory': lambda data: measure_filter(data / 'filter', 1_000_000, turns=0),
    'landmarks': lambda data: measure_landmarks(data / 'landmarks', 10_000_000, 10_000),
    'texts': lambda data: measure_texts(data / 'texts', [1_000_000, 10_000_000], 20_000),
    'training': measure_training,
}


def main() -> None:
    """Measure what is asked for and keep the rest of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/captions'))
    parser.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--case', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        if args.case[0] == 'features':
            features_case(Path(args.case[1]))
        else:
            print(json.dumps(training_case(args.data / 'training', int(args.case[1]))))
        return
    args.data.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in args.only:
        machine = machine_metadata()
        results[part] = {
            'command': f'python -m {MODULE} --data FOLDER --only {part}',
            'machine': machine,
            'versions': {n: version(n) for n in ('grafalign', 'torch', 'pyarrow', 'shapely', 'osmium')},
            'seed': 0,
            'measured': PARTS[part](args.data),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '2')
    main()
