"""Commands beside busy processes: do they get what a fair share of the cores is worth?

    grafalign quickstart --out runs/quickstart
    python -m experiments.performance.busy --quickstart runs/quickstart
    python -m experiments.performance.busy --table

Each command runs on all cores, alone and beside k processes that multiply matrices on one thread each. With c cores
the system owes it c / (c + k) of them, so it should take (c + k) / c times as long; the table says how much of that
share it made use of. Commands take turns, and all times are of whole commands, from start to end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.performance.machine import machine_metadata

HERE = Path(__file__).resolve().parent
RESULT = HERE / 'results' / 'busy.json'
BUSY = (0, 1, 2, 4)
LOOP = 'import numpy as np\na = np.random.rand(400, 400)\nwhile True: a = (a @ a) % 1'


def commands(quickstart: Path, out: Path) -> dict[str, tuple[str, ...]]:
    """What is measured, by name; what they write goes to `out`."""
    store, model = str(quickstart / 'pairs'), str(quickstart / 'grafalign_image')
    clip = str(HERE.parent.parent / 'grafalign' / 'sandbox' / 'tiny_clip')
    cores = str(len(os.sched_getaffinity(0)))
    steps = ('steps=40', f'out={out / "run"}', 'trackers=[]')
    return {
        'sandbox': ('sandbox', str(out / 'sandbox'), '--photos', '6000'),
        'embed': ('embed', store, '--model', clip, '--out', str(out / 'bank')),
        'train': ('train', f'{model}.yaml', *(a for s in steps for a in ('--set', s)), '--processes', cores),
        'evaluate': ('evaluate', model, '--data', f'pairs:{store}', '--out', str(out / 'evaluation')),
        'index': ('index', store, str(out / 'index'), '--model', model),
    }


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many busy processes while the context lasts."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    others = [subprocess.Popen([sys.executable, '-c', LOOP], env=environment) for _ in range(count)]
    try:
        time.sleep(2 if count else 0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(name: str, quickstart: Path) -> float:
    """How long a command takes."""
    environment = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'grafalign', *commands(quickstart, Path(folder))[name]]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f'{shlex.join(command)}: {done.stderr[-500:]}')
        return time.perf_counter() - started


def table(content: dict[str, Any]) -> str:
    """A row a command: seconds alone, and the use of its fair share beside others."""
    cores = content['machine']['cores']
    lines = [
        '# Beside busy processes',
        '',
        f'On {cores} cores. Beside k busy processes a command is owed {cores} / ({cores} + k) of the cores; columns '
        'say which part of that it made use of (1: all of it; less than 1: its own threads waited for each other).',
        '',
        f'| command | alone | {" | ".join(f"beside {k}" for k in BUSY[1:])} |',
        f'|---|---|{"---|" * len(BUSY[1:])}',
    ]
    for name, by_count in content['seconds'].items():
        took = {k: statistics.median(by_count[str(k)]) for k in BUSY}
        shares = [took[0] * (cores + k) / cores / took[k] for k in BUSY[1:]]
        lines.append(f'| {name} | {took[0]:.1f} s | {" | ".join(f"{share:.2f}" for share in shares)} |')
    return '\n'.join([*lines, '', f'`{content["command"]}`', ''])


def main() -> None:
    """Measure, keep, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quickstart', type=Path, default=Path('runs/quickstart'))
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--table', action='store_true', help='make the table of what is there')
    args = parser.parse_args()
    if not args.table:
        names = commands(args.quickstart, Path())
        took: dict[str, dict[str, list[float]]] = {name: {str(k): [] for k in BUSY} for name in names}
        metadata = {
            'machine': machine_metadata(),
            'versions': {n: version(n) for n in ('grafalign', 'torch', 'numpy')},
            'seed': 0,
            'command': shlex.join(['python', '-m', 'experiments.performance.busy', *sys.argv[1:]]),
        }
        for _ in range(args.rounds):
            for k in BUSY:
                with beside(k):
                    for name in names:
                        took[name][str(k)].append(round(seconds(name, args.quickstart), 2))
                        print(name, k, took[name][str(k)][-1], flush=True)
        RESULT.write_text(json.dumps({'seconds': took, **metadata}, indent=1) + '\n')
    (HERE / 'busy.md').write_text(table(json.loads(RESULT.read_text())))


if __name__ == '__main__':
    main()
