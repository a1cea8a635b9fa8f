"""What a change costs: the same work by two checkouts, in turns: `python experiments/performance/changes.py --help`.

    pip install odc-stac  # which `pairing.py` asks for the version of
    git worktree add ../before v0.1
    python experiments/performance/changes.py --before ../before --data runs/performance

Machines are shared and their clocks wander, so every work is done by one checkout and then by the other, in fresh
processes, and the order turns with each repeat; the ratios of those neighbours and their median are what counts. Both
use this Python and the same dependencies. What a work does in one checkout and not in the other (mosaics, a buffer
between splits) is off unless its name says so.

Results go to `results/changes.json` and `changes.md`, which is made from it and from nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]

from machine import machine_metadata  # noqa: E402

PHOTOS, STEPS = 12_000, 120
WORLD_SEED = 7


class Checkout:
    """One state of the code, with a folder for what it makes."""

    def __init__(self, name: str, path: Path, data: Path) -> None:
        self.name, self.path = name, path.resolve()
        self.shared, self.data = data.resolve(), (data / name).resolve()
        self.data.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: str) -> str:
        """Standard output of `python ARGUMENTS` with this checkout's code."""
        environment = {**os.environ, 'PYTHONPATH': str(self.path)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.path, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f'{self.name}: python {" ".join(arguments)[:200]}\n{done.stderr[-2000:]}')
        return done.stdout

    def seconds(self, *arguments: str) -> float:
        """How long a `grafalign` command takes."""
        started = time.perf_counter()
        self.run('-m', 'grafalign', *arguments)
        return time.perf_counter() - started

    def work(self, name: str, new: bool = False) -> float:
        """Seconds of a work of `changes_work.py`."""
        return float(self.run(str(HERE / 'changes_work.py'), name, *(['new'] if new else [])).split()[-1])

    def commit(self) -> str:
        """The commit that is checked out."""
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'], cwd=self.path, capture_output=True, text=True, check=True
        ).stdout.strip()


def plan(checkout: Checkout) -> float:
    """Tiles of a million photos, clustered as photos are."""
    return checkout.work('plan')


def plan_with_buffer(checkout: Checkout) -> float:
    """The same with a buffer of one tile side, where the checkout knows buffers."""
    return checkout.work('plan', new=True)


def choose(checkout: Checkout) -> float:
    """Scenes for 1,000 tiles on the seam of two footprints, 70 days."""
    return checkout.work('choose')


def choose_mosaics(checkout: Checkout) -> float:
    """The same with the scenes of a day put together, where the checkout does that."""
    return checkout.work('choose', new=True)


def cut(checkout: Checkout) -> float:
    """400 tiles out of COGs behind HTTP, 50 ms before every answer (`pairing.py`)."""
    out = checkout.data / 'cut.json'
    out.unlink(missing_ok=True)
    point = ['--methods', 'ours', '--blocks', '1024', '--tiles', '400', '--latencies', '50', '--repeats', '1']
    data = ['--data', str(checkout.shared / 'pairing'), '--out', str(out)]
    checkout.run('experiments/performance/pairing.py', *data, *point)
    return float(json.loads(out.read_text())['measurements'][0]['wall_s'])


def world(checkout: Checkout) -> Path:
    """A sandbox world, made once for both."""
    folder = checkout.shared / 'world'
    if not (folder / 'sandbox.json').exists():
        checkout.run('-m', 'grafalign', 'sandbox', str(folder), '--seed', str(WORLD_SEED), '--photos', str(PHOTOS))
    return folder


def pair(checkout: Checkout) -> float:
    """`grafalign pair`: 12,000 photos of a sandbox world, files of this machine."""
    made = world(checkout)
    shutil.rmtree(checkout.data / 'pairs', ignore_errors=True)
    recipe = checkout.path / 'data_recipes' / 'sandbox.yaml'
    keys = [f'photos.folder={made / "photos"}', f'scenes.catalog={made / "catalog" / "catalog.json"}']
    if 'buffer_m' in (checkout.path / 'grafalign' / 'pairing' / 'recipe.py').read_text():
        keys.append('split.buffer_m=0')
    return checkout.seconds('pair', str(recipe), str(checkout.data / 'pairs'), *(k for s in keys for k in ('--set', s)))


def embed(checkout: Checkout) -> float:
    """`grafalign embed`: their photos by the tiny CLIP."""
    shutil.rmtree(checkout.data / 'pairs' / 'bank', ignore_errors=True)
    return checkout.seconds('embed', str(checkout.data / 'pairs'), '--model', _clip(checkout))


def train(checkout: Checkout) -> float:
    """A training step of 128 tiles, image level: median of `grafalign train`'s own log, in seconds."""
    out = checkout.data / 'run'
    shutil.rmtree(out, ignore_errors=True)
    settings = {
        'store': str(checkout.data / 'pairs'),
        'out': str(out),
        'clip': {'model': _clip(checkout)},
        'steps': STEPS,
        'batch_tiles': 128,
        'log_every': 10,
        'workers': 1,
    }
    config = checkout.data / 'train.yaml'
    config.write_text(json.dumps(settings))
    checkout.run('-m', 'grafalign', 'train', str(config))
    log = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    return 128 / statistics.median(entry['tiles_per_s'] for entry in log[1:])


def index(checkout: Checkout) -> float:
    """`grafalign index` of the store's tiles by that run."""
    shutil.rmtree(checkout.data / 'index', ignore_errors=True)
    return checkout.seconds(
        'index', str(checkout.data / 'pairs'), str(checkout.data / 'index'), '--model', str(checkout.data / 'run')
    )


def search(checkout: Checkout) -> float:
    """`grafalign search` for two texts, start of Python and torch included."""
    return checkout.seconds('search', str(checkout.data / 'index'), 'a harbour', 'a forest')


def nearest(checkout: Checkout) -> float:
    """A query among 200,000 vectors of 512 dimensions by `ivf` at a recall of 0.99, asked in one batch of 2,000."""
    return checkout.work('nearest')


def _clip(checkout: Checkout) -> str:
    return str(checkout.path / 'grafalign' / 'sandbox' / 'tiny_clip')


WORKS: tuple[Callable[[Checkout], float], ...] = (
    plan, plan_with_buffer, choose, choose_mosaics, cut, pair, embed, train, index, search, nearest,
)  # fmt: skip


def write_page(content: dict[str, Any], path: Path) -> None:
    """The result as a page."""
    before, after = content['commits']['before'], content['commits']['after']
    lines = [
        '# What a change costs',
        '',
        f'`{content["command"]}`; before is {before}, after is {after}. {content["machine"]["cores"]} cores, '
        f'{content["machine"]["memory_gib"]} GiB. Every work is done in turns, {content["repeats"]} times each, in '
        'fresh processes; a ratio is after over before of two neighbours, so below one is faster. Medians, in brackets '
        'the least and the most.',
        '',
        '| work | before, s | after, s | ratio |',
        '|---|---:|---:|---:|',
    ]
    for row in content['rows']:
        cells = [f'{statistics.median(row[side]):.4g}' for side in ('before', 'after')]
        ratios = [b / a for a, b in zip(row['before'], row['after'], strict=True)]
        cells.append(f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')
        lines.append(f'| {row["work"]} | {" | ".join(cells)} |')
    path.write_text('\n'.join([*lines, '']))


def main() -> None:
    """Measure all works, or those that are named, and keep the others' results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--before', type=Path, required=True, help='checkout to compare with')
    parser.add_argument('--data', type=Path, default=Path('runs/performance'), help='folder for what is made')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--only', nargs='+', choices=[w.__name__ for w in WORKS], default=[w.__name__ for w in WORKS])
    given = parser.parse_args()
    data = given.data / 'changes'
    sides = Checkout('before', given.before, data), Checkout('after', ROOT, data)
    result = HERE / 'results' / 'changes.json'
    rows = {r['name']: r for r in json.loads(result.read_text())['rows']} if result.exists() else {}
    content = {
        'command': f'python experiments/performance/changes.py --before BEFORE --data DATA --repeats {given.repeats}',
        'commits': {side.name: side.commit() for side in sides},
        'machine': machine_metadata(),
        'versions': {n: version(n) for n in ('torch', 'numpy', 'faiss-cpu', 'rasterio', 'shapely', 'open_clip_torch')}
        | {'python': platform.python_version()},
        'settings': {'photos': PHOTOS, 'world': WORLD_SEED, 'steps': STEPS},
        'repeats': given.repeats,
    }
    for work in (w for w in WORKS if w.__name__ in given.only):
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        if work in (pair, cut):
            world(sides[1])
        for repeat in range(given.repeats):
            for side in sides if repeat % 2 == 0 else sides[::-1]:
                seconds[side.name].append(round(work(side), 6))
        title = re.sub(r'\.$', '', str(work.__doc__))
        rows[work.__name__] = {'name': work.__name__, 'work': title, **seconds}
        print(rows[work.__name__], flush=True)
        content['rows'] = [rows[w.__name__] for w in WORKS if w.__name__ in rows]
        result.write_text(json.dumps(content, indent=1) + '\n')
        write_page(content, HERE / 'changes.md')


if __name__ == '__main__':
    main()
