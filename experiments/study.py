"""Many short trainings in sandbox worlds, two at a time, each measured in the same way: what the studies share.

A study is a list of cells. Each cell is trained and measured in a process of its own and leaves one JSON; cells that
have theirs are not done again. Tables and plots are made from those files and from nothing else.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2      # make worlds, stores and banks (once)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grafalign import console
from grafalign.benchmarks.sandbox.evaluate import (
    ZeroShotModel,
    accuracy,
    chip_counts,
    embed_tiles,
    map_quality,
    segment_chips,
)
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.statistics import Mean, MeanIou, Resampling, Statistic, resampling
from grafalign.config import parse_settings
from grafalign.encoders import ClipSettings, embed, load_clip
from grafalign.engine import default_workers
from grafalign.pairing import Recipe, pair
from grafalign.quickstart import quickstart_experiment
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.world import make_sandbox
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train
from grafalign.zeroshot import class_scores, class_vectors

CLIP = ClipSettings(model=str(TINY_CLIP_DIR))
CHIPS, CHIP_PX, TEST_PER_CLASS = 60, 128, 40
DRAWS = 400
GRAFT = {'core': 1.0, 'reach': 1.0, 'ahead_m': 0.0}
"""GRAFT's plan: a photo that no tile holds yet seeds one. The quickstart has denser tiles (`experiments/levers`)."""
_FILE_NAME = str.maketrans({'/': '-', ' ': '-', ',': None})


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    world: int
    """Seed of world, photos, splits and training."""
    values: Mapping[str, Any]
    """What is varied; names the cell."""
    train: Mapping[str, Any]
    """Training settings besides store, out, clip and seed."""
    store: str = 'pairs'
    """Folder of the pair store below the world."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the study's own trainer, if it has one."""

    @property
    def name(self) -> str:
        """File name of the result."""
        return '_'.join([*(f'{k}-{v}' for k, v in self.values.items()), f'world-{self.world}']).translate(_FILE_NAME)


Trainer = Callable[[Cell, Path, TrainSettings], Any]
"""Trains a cell and gives what its `Measure` takes."""
Measure = Callable[[Any, Path, int], dict[str, Any]]
"""What is measured of a model in a world of a seed; with `draws`, which are kept on one line."""


def with_plan(recipe: Recipe, **plan: float) -> Recipe:
    """The same recipe with another plan of tiles: `GRAFT`'s, or one of `experiments/levers`."""
    return recipe.model_copy(update={'plan': recipe.plan.model_copy(update=plan)})


def make_world(worlds: Path, seed: int) -> Path:
    """A sandbox world as the quickstart makes it, its pair store by GRAFT's plan, and its bank."""
    out = worlds / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    world, experiment = quickstart_experiment(out, seed)
    make_sandbox(out / 'sandbox', world)
    pair(with_plan(experiment.recipe, **GRAFT), out / 'pairs')
    embed(PairStore(out / 'pairs'), load_clip(CLIP))
    return out


def labelled(world: Path, seed: int) -> tuple[LabelledTiles, LabelledTiles, list[str]]:
    """Test tiles, test chips and class names of a world: the sets of the quickstart, cut once."""
    kept = world / 'labelled.npz'
    truth = SandboxTruth(world / 'sandbox', PairStore(world / 'pairs'))
    if not kept.exists():
        sets = truth.tiles('test', TEST_PER_CLASS, seed), truth.chips('test', CHIPS, CHIP_PX, seed)
        arrays = {f'{n}_{k}': v for n, s in zip(('test', 'chips'), sets, strict=True) for k, v in vars(s).items()}
        np.savez(kept.with_suffix('.part.npz'), **arrays)
        kept.with_suffix('.part.npz').replace(kept)
    with np.load(kept) as arrays:
        names = ('pixels', 'scale', 'offset', 'labels', 'lonlat')
        test, chips = (LabelledTiles(*(arrays[f'{n}_{k}'] for k in names)) for n in ('test', 'chips'))
    return test, chips, truth.classes


def store_recipe(world: Path) -> Recipe:
    """The recipe that a world's pair store was made by."""
    path = world / 'pairs'
    return parse_settings(PairStore(path).marker.recipe, Recipe, str(path / 'dataset.json'))


def measure(model: SatelliteModel, world: Path, seed: int) -> dict[str, Any]:
    """Zero-shot accuracy over test tiles (image embeddings) and mIoU over chips (patch embeddings)."""
    vectors = class_vectors(model.clip, labelled(world, seed)[2])
    ready = ZeroShotModel(model.encoder, model.preprocess, vectors, range(len(model.sensor.bands)))
    return measure_vectors(ready, world, seed)


def measure_vectors(ready: ZeroShotModel, world: Path, seed: int) -> dict[str, Any]:
    """The same of an encoder with the vectors that stand for the classes, whether of words or learned.

    Kept besides are draws of both over resampled tiles and chips. All cells of a world draw the same tiles and chips,
    so differences between cells are paired.
    """
    test, chips, classes = labelled(world, seed)
    right = class_scores(embed_tiles(ready, test), ready.classes).argmax(1) == test.labels
    counts = chip_counts(chips.labels, segment_chips(ready, chips)[0], len(classes))
    block_km = store_recipe(world).split.block_km
    of_tiles = resampling(len(test.labels), test.lonlat, block_km=block_km)
    of_chips = resampling(len(chips.labels), chips.lonlat, block_km=block_km)
    quality = map_quality(counts, classes, of_chips)
    return {
        'accuracy': accuracy(right, of_tiles).model_dump(),
        'miou': quality.miou.model_dump(),
        'iou': quality.iou,
        'units': {'accuracy': of_tiles.unit, 'miou': of_chips.unit},
        'draws': {
            'accuracy': _replicates(Mean(right.astype(np.float64), np.ones(len(right))), of_tiles),
            'miou': _replicates(MeanIou(counts), of_chips),
        },
    }


def _replicates(statistic: Statistic, draws: Resampling) -> list[float]:
    """Values of the first bootstrap replicates, the same tiles and chips for all cells of a world."""
    values = np.concatenate([statistic(weights) for weights in replace(draws, draws=DRAWS).weights()])
    return [round(float(v), 4) for v in values]


def by_settings(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train as `grafalign train` does."""
    train(settings)
    return load_satellite(settings.out)


def keep_log(log: list[dict[str, Any]], settings: TrainSettings) -> None:
    """Keep the log of a loop where `grafalign train` keeps its own."""
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / 'log.jsonl').write_text(''.join(json.dumps(entry) + '\n' for entry in log))


def do_cell(
    cell: Cell, worlds: Path, results: Path, runs: Path, trainer: Trainer, command: str, measure: Measure
) -> str:
    """Train and measure one cell, in a process of its own on one core."""
    torch.set_num_threads(1)
    console.err.quiet = True
    world = worlds / str(cell.world)
    settings = TrainSettings.model_validate(
        {
            'store': world / cell.store,
            'out': runs / cell.name,
            'clip': CLIP,
            'seed': cell.world,
            'trackers': (),
            'validate_every': 10**6,
            'checkpoint_every': 10**6,
            **cell.train,
        }
    )
    started = time.perf_counter()
    model = trainer(cell, world, settings)
    log = [json.loads(line) for line in (settings.out / 'log.jsonl').read_text().splitlines()]
    measured = measure(model, world, cell.world)
    outcome = {
        **measured,
        'values': dict(cell.values),
        'world': cell.world,
        'settings': {
            k: v for k, v in settings.model_dump(mode='json').items() if k not in ('store', 'out', 'clip', 'bank')
        },
        'options': dict(cell.options),
        'final_loss': log[-1]['loss'],
        'noted': {k: log[-1][k] for k in ('mass_inside',) if k in log[-1]},
        'step_ms': statistics.median(e['step_ms'] for e in log),
        'peak_memory_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        'seconds': time.perf_counter() - started,
        'command': command,
        'machine': f'{platform.machine()}, {platform.system()}, one of {default_workers()} cores',
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
    }
    part = results / f'.{cell.name}.part'
    draws = outcome.pop('draws')
    lines = json.dumps(outcome, indent=1)[:-2] + f',\n "draws": {json.dumps(draws)}\n}}\n'  # on one line
    part.write_text(lines)
    part.replace(results / f'{cell.name}.json')
    return cell.name


def run_cells(
    cells: Iterable[Cell],
    worlds: Path,
    results: Path,
    runs: Path,
    trainer: Trainer = by_settings,
    abreast: int = 2,
    measure: Measure = measure,
) -> None:
    """Do what is not done yet, `abreast` at a time."""
    results.mkdir(parents=True, exist_ok=True)
    waiting = [c for c in cells if not (results / f'{c.name}.json').exists()]
    spec = sys.modules['__main__'].__spec__
    command = ' '.join(['python', *(['-m', spec.name] if spec else [Path(sys.argv[0]).name]), *sys.argv[1:]])
    for seed in {c.world for c in waiting}:
        labelled(worlds / str(seed), seed)
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(abreast, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(do_cell, c, worlds, results, runs, trainer, command, measure) for c in waiting]
        done = console.track(as_completed(futures), 'cells', len(futures))
        for number, future in enumerate(done, 1):
            console.log(f'{number}/{len(futures)} {future.result()}')


def load_results(results: Path) -> list[dict[str, Any]]:
    """All outcomes of a study, by name."""
    return [json.loads(p.read_text()) for p in sorted(results.glob('*.json'))]


def chosen(outcomes: Iterable[dict[str, Any]], **values: object) -> list[dict[str, Any]]:
    """Outcomes of the cells with such values, by world."""
    found = [o for o in outcomes if all(o['values'].get(k) == v for k, v in values.items())]
    return sorted(found, key=lambda o: int(o['world']))


def mean_over_worlds(outcomes: list[dict[str, Any]], metric: str) -> tuple[float, float, float]:
    """Mean over worlds of a metric with a 95 % interval.

    The interval is that of the mean over the worlds at hand: their bootstrap distributions, each known by its own
    interval, averaged (standard errors add in squares). It speaks of the test places, not of worlds yet unseen.
    """
    values = np.array([o[metric]['value'] for o in outcomes])
    below = np.array([o[metric]['value'] - o[metric]['low'] for o in outcomes])
    above = np.array([o[metric]['high'] - o[metric]['value'] for o in outcomes])
    mean, n = values.mean(), len(values)
    return float(mean), float(mean - np.sqrt((below**2).sum()) / n), float(mean + np.sqrt((above**2).sum()) / n)


def paired_difference(
    ones: list[dict[str, Any]], others: list[dict[str, Any]], metric: str = 'miou'
) -> tuple[float, float, float]:
    """Mean over worlds of a difference, with a 95 % interval over the chips or tiles that both were measured on."""
    pairs = list(zip(ones, others, strict=True))
    mean = np.mean([one[metric]['value'] - other[metric]['value'] for one, other in pairs])
    draws = np.mean([np.subtract(one['draws'][metric], other['draws'][metric]) for one, other in pairs], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(mean), float(low), float(high)


def study_parser(doc: str | None, runs: str, *, cells: bool = True) -> argparse.ArgumentParser:
    """What the commands of studies over worlds have in common.

    Args:
        doc: the study's own text.
        runs: name of the folder below `runs/` that its trainings go to.
        cells: whether it is one of cells, which may run side by side.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--runs', type=Path, default=Path('runs') / runs)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    if cells:
        parser.add_argument('--abreast', type=int, default=2, help='cells at a time')
    parser.add_argument('--table', action='store_true', help='make the tables of what is there')
    return parser


def as_text(estimate: tuple[float, float, float], sign: str = '') -> str:
    """A value with its interval as a cell of a table; `+` for differences.

    Example:
        >>> as_text((0.5, 0.45, 0.55)), as_text((0.02, -0.01, 0.05), '+')
        ('0.500 (0.450 to 0.550)', '+0.020 (-0.010 to +0.050)')
    """
    value, low, high = (f'{v:{sign}.3f}' for v in estimate)
    return f'{value} ({low} to {high})'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        make_world(args.worlds, seed)
