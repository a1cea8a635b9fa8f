"""Measure ranks and indexes; results to `experiments/performance/results/retrieval.json`, the page by `.table`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch

from experiments.performance.machine import machine_metadata
from experiments.performance.retrieval import index, ranks

RESULT = Path(__file__).parent.parent / 'results' / 'retrieval.json'


def main() -> None:
    """Run the parts that are asked for and keep the others' results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--part', choices=('ranks', 'large', 'index'), action='append')
    parser.add_argument('--vectors', type=int, default=1_000_000)
    given = parser.parse_args()
    torch.set_num_threads(2)
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in given.part or ('ranks', 'index', 'large'):
        metadata = {
            'machine': machine_metadata(),
            'versions': {'torch': torch.__version__, 'faiss': faiss.__version__, 'numpy': np.__version__},
            'seed': 0 if part == 'index' else 3,
            'command': shlex.join(['python', '-m', 'experiments.performance.retrieval', *sys.argv[1:]]),
        }
        if part == 'ranks':
            rows = [ranks.in_own_process(way, 20_000) for way in ranks.WAYS]
            ways = ('bare product', 'recall', 'recall and mAP', 'recall', 'bare product')  # side by side, and mirrored
            rows += [ranks.in_own_process(way, 100_000) for way in ways]
            content['ranks'] = {'rows': rows, **metadata}
        elif part == 'large':
            content['large'] = {'rows': [ranks.in_own_process('recall', 300_000)], **metadata}
        else:
            with tempfile.TemporaryDirectory() as folder:
                kinds = ('ivf', 'ivfpq', 'hnsw')
                content['index'] = {**index.measure(given.vectors, 512, Path(folder), kinds), **metadata}
        RESULT.write_text(json.dumps(content, indent=2) + '\n')
        print(part, 'done', flush=True)


if __name__ == '__main__':
    main()
