"""Training, measured: `python -m experiments.performance.training --data FOLDER` (or `--quick`, or `--only PART ...`).

loss      memory and time of the loss with its gradient at 4,096 tiles with ten photos each, beside dense products
data      time that the training waits for tiles, from `grafalign train`'s own log, with warm and with cold files
overhead  samples per second beside a bare loop over tensors in memory
peers     samples per second beside open_clip's trainer and beside a loop that encodes photos in every step

Why it is fair: machines are shared and their clocks wander, so nothing is compared that was not measured in turns, A B
A B, a few seconds or at most a few minutes apart; medians and ranges over the turns are kept, and the processor time
of the whole family of processes beside the wall time; what other processes took of the cores is recorded with every
measurement. Peak memory is always that of a fresh process. Times of different parts are from different hours: compare
ratios.

Weights are random and tiles, photos and JPEGs are made here: what is measured does not depend on what they show.
Results: `results/training_PART.json`, and `training.md`, which `training/table.py` makes from them and from nothing
else. `peers` needs what open_clip's trainer imports: `pip install "open_clip_torch[training]"`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.performance.training.data import measure_data
from experiments.performance.training.loss import loss_case, measure_loss
from experiments.performance.training.measuring import THREADS, header, write_result
from experiments.performance.training.overhead import measure_overhead, overhead_case
from experiments.performance.training.peers import measure_peers, photo_loop
from experiments.performance.training.table import write_page

HERE = Path(__file__).resolve().parents[1]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/performance'), help='where stores and models are made')
    parser.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS), help='parts to measure')
    parser.add_argument('--quick', action='store_true', help='tiny sizes; results stay in the data folder')
    parser.add_argument('--resume', action='store_true', help='loss: keep the cases that the result file has')
    parser.add_argument('--case', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data = (args.data / ('training_quick' if args.quick else 'training')).resolve()
    args.results = args.data / 'results' if args.quick else HERE / 'results'
    return args


def main() -> None:
    """Measure the wanted parts; each leaves its file as soon as it is done."""
    args = arguments()
    torch.set_num_threads(THREADS)
    if args.case:
        name, spec = args.case
        print(json.dumps(CASES[name](args.data, **json.loads(spec))))
        return
    args.results.mkdir(parents=True, exist_ok=True)
    for part in args.only:
        write_result(args, part, header(args, part) | PARTS[part](args))
    write_page(args.results, args.results / 'training.md' if args.quick else HERE / 'training.md')


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    'loss': loss_case,
    'overhead': overhead_case,
    'photo_loop': photo_loop,
}
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    'loss': measure_loss,
    'data': measure_data,
    'overhead': measure_overhead,
    'peers': measure_peers,
}

if __name__ == '__main__':
    main()
