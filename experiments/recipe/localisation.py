"""E6: where in the tile is it? Patches, windows, and windows of tokens pooled by the model's own attention.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2 7
    python -m experiments.recipe.localisation --worlds runs/worlds --seeds 7         # first: the ways are chosen by it
    python -m experiments.recipe.localisation --worlds runs/worlds                   # 20 minutes a world and core
    python -m experiments.recipe.localisation --worlds runs/worlds --tiles coarse --seeds 7 0 1 2
    python -m experiments.recipe.localisation --table

The quickstart's tiles of 320 m (`coarse`: 5 m a pixel, 4 x 4 tokens), and at 2.5 m a pixel (`fine`: 8 x 8 tokens), with
the quickstart's photos, rate, batch, temperatures and steps; one run at level `image`, one at level `patch`. Chips of
640 m of the test blocks are scored by all ways through the same windows, so that all cost the same number of passes of
the encoder (smooth attention adds a part of one block). Scores of pixels are compared with the truth: mean IoU over 24
classes, intervals over blocks of 2 km.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.captions.run import TRAIN
from experiments.recipe.ways import Patches, Windows
from experiments.study import CLIP, DRAWS, as_text, mean_over_worlds, paired_difference, store_recipe, study_parser
from grafalign.benchmarks.sandbox.evaluate import chip_counts
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.statistics import MeanIou, estimates, resampling
from grafalign.encoders import SatelliteEncoder, embed, load_clip
from grafalign.encoders.smooth import SmoothAttention
from grafalign.pairing import pair
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train
from grafalign.zeroshot import class_vectors, segment

RESULTS = Path(__file__).resolve().parent / 'results'
CHIPS, CHIP_M = 60, 640
TAU = {'image': 0.3, 'patch': 0.4}


@dataclass(frozen=True)
class Tiles:
    """What a run is trained on and scored by."""

    size_px: int
    gsd_m: float
    strides: tuple[int, ...]
    """Of windows, in pixels: a half, a quarter and an eighth of a tile."""

    @property
    def chip_px(self) -> int:
        """Side of a chip."""
        return round(CHIP_M / self.gsd_m)


TILES = {'fine': Tiles(128, 2.5, (64, 32, 16)), 'coarse': Tiles(64, 5.0, (32, 16, 8))}


def ways(encoder: SatelliteEncoder) -> dict[str, Any]:
    """All ways from an encoder to a grid of embeddings."""
    found: dict[str, Any] = {
        'windows': Windows(encoder),
        'patches': Patches(encoder),
        'patches, mean of 3 x 3': Patches(encoder, 3),
        'patches, mean of 5 x 5': Patches(encoder, 5),
    }
    for widths in ((1,), (2,), (3,), (5,), (3, 5, 7)):
        name = f'smooth, w = {", ".join(map(str, widths))}'
        found[name] = SmoothAttention(encoder, widths, residual=True)
        found[f'{name}, without the class token'] = SmoothAttention(encoder, widths, residual=False)
    return found


def runs_of(world: Path, out: Path, seed: int, tiles: Tiles, levels: Sequence[str]) -> dict[str, SatelliteModel]:
    """Runs of such tiles, trained if they are not there."""
    store = out / 'pairs'
    if not (store / 'dataset.json').is_file():
        recipe = store_recipe(world)
        sensor = recipe.sensor.model_copy(update={'size_px': tiles.size_px, 'gsd_m': tiles.gsd_m})
        pair(recipe.model_copy(update={'sensor': sensor}), store)
    if not (store / 'bank' / 'bank.json').is_file():
        embed(PairStore(store), load_clip(CLIP))
    found = {}
    for level in levels:
        tau = TAU[level]
        values = {**TRAIN, 'store': store, 'out': out / level, 'clip': CLIP, 'seed': seed, 'level': level, 'tau': tau}
        train(TrainSettings.model_validate({**values, 'trackers': (), 'validate_every': 500, 'log_every': 100}))
        found[level] = load_satellite(out / level)
    return found


def chips_of(world: Path, out: Path, seed: int, tiles: Tiles) -> LabelledTiles:
    """Chips of the test blocks with a label for every pixel."""
    return SandboxTruth(world / 'sandbox', PairStore(out / 'pairs')).chips('test', CHIPS, tiles.chip_px, seed)


def measure(world: Path, out: Path, seed: int, tiles: Tiles, levels: Sequence[str]) -> dict[str, Any]:
    """Mean IoU of every run, way and stride of a world, with draws; seconds a square kilometre."""
    models = runs_of(world, out, seed, tiles, levels)
    chips = chips_of(world, out, seed, tiles)
    truth = SandboxTruth(world / 'sandbox', PairStore(out / 'pairs'))
    how = resampling(len(chips.labels), chips.lonlat, DRAWS, block_km=store_recipe(world).split.block_km)
    found: dict[str, Any] = {}
    for level, model in models.items():
        vectors = class_vectors(model.clip, truth.classes)
        arrays = (torch.from_numpy(np.asarray(v)) for v in (chips.pixels, chips.scale, chips.offset))
        inputs = model.preprocess(*arrays)
        for name, way in ways(model.encoder).items():
            for stride in tiles.strides:
                started = time.perf_counter()
                parts = [segment(way, one[None], vectors, stride).argmax(1).numpy() for one in inputs]
                seconds = (time.perf_counter() - started) / len(inputs) / (CHIP_M / 1000) ** 2
                counts = MeanIou(chip_counts(chips.labels, np.concatenate(parts), len(truth.classes)))
                draws = np.concatenate([counts(weights) for weights in how.weights()])
                value = estimates({'miou': counts}, how)['miou'].model_dump()
                found[f'{level} | {name} | {stride}'] = {
                    'miou': value, 'seconds_per_km2': round(seconds, 3),
                    'draws': {'miou': [round(float(v), 4) for v in draws]},
                }  # fmt: skip
    return {'world': seed, 'units': how.unit, 'arms': found}


def table(records: dict[int, dict[str, Any]], tiles: Tiles) -> str:
    """Worlds 0 to 2, the smooth way and the mean filter chosen in world 7 by its level's best at the middle stride."""
    seeds = [s for s in records if s != 7]
    lines = ['# Where in the tile', '', '| run | way | stride | mIoU (95 %) | each world | s/km2 | minus windows |']
    lines.append('|---|---|---|---|---|---|---|')
    middle = tiles.strides[1]
    for level in levels_of(records):
        tuned = {
            k.split(' | ')[1]: v['miou']['value']
            for k, v in records[7]['arms'].items()
            if k.startswith(level) and k.endswith(f'| {middle}')
        }
        smooth = max((n for n in tuned if n.startswith('smooth')), key=tuned.__getitem__)
        mean = max((n for n in tuned if 'mean of' in n), key=tuned.__getitem__)
        for name in dict.fromkeys(('windows', 'patches', mean, 'smooth, w = 1', smooth)):
            for stride in tiles.strides:
                mine, base = (
                    [records[s]['arms'][f'{level} | {way} | {stride}'] for s in seeds] for way in (name, 'windows')
                )
                each = ', '.join(f'{o["miou"]["value"]:.3f}' for o in mine)
                beside = '' if name == 'windows' else as_text(paired_difference(mine, base, 'miou'), '+')
                cost = np.mean([o['seconds_per_km2'] for o in mine])
                cells = [level, name, str(stride), as_text(mean_over_worlds(mine, 'miou')), each, f'{cost:.2f}', beside]
                lines.append(f'| {" | ".join(cells)} |')
    lines += [
        '',
        f'All ways at a stride of {middle} px, world 7 (in which ways were chosen) and the mean of the others:',
        '',
    ]
    levels = levels_of(records)
    lines.append('| way |' + ''.join(f' {level}: world 7 | worlds {", ".join(map(str, seeds))} |' for level in levels))
    lines.append('|---|' + '---|---|' * len(levels))
    for name in dict.fromkeys(k.split(' | ')[1] for k in records[7]['arms']):
        keys = [f'{level} | {name} | {middle}' for level in levels]
        if all(key in records[s]['arms'] for s in records for key in keys):
            pairs = [(records[7]['arms'][key], [records[s]['arms'][key] for s in seeds]) for key in keys]
            cells = [f'{one["miou"]["value"]:.3f} | {mean_over_worlds(rest, "miou")[0]:.3f}' for one, rest in pairs]
            lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def levels_of(records: dict[int, dict[str, Any]]) -> list[str]:
    """The levels that were measured in all worlds."""
    return [level for level in TAU if all(any(k.startswith(level) for k in r['arms']) for r in records.values())]


def main() -> None:
    """Measure worlds, or make the tables."""
    parser = study_parser(__doc__, 'localisation', cells=False)
    parser.add_argument('--tiles', choices=tuple(TILES), default='fine')
    parser.add_argument('--levels', nargs='+', choices=tuple(TAU), default=list(TAU))
    args = parser.parse_args()
    folder, tiles = RESULTS / f'localisation_{args.tiles}', TILES[args.tiles]
    folder.mkdir(parents=True, exist_ok=True)
    for seed in () if args.table else args.seeds:
        out = args.runs / (str(seed) if args.tiles == 'fine' else f'{args.tiles}_{seed}')
        found = measure(args.worlds / str(seed), out, seed, tiles, args.levels)
        about = {
            'command': f'python -m experiments.recipe.localisation --tiles {args.tiles} --seeds {seed}',
            'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
            'settings': {'train': TRAIN, 'tau': TAU, 'chips': CHIPS, 'chip_m': CHIP_M, 'tiles': asdict(tiles)},
        }
        record = folder / f'world{seed}.json'
        if record.is_file():  # the other level, done before
            found['arms'] = json.loads(record.read_text())['arms'] | found['arms']
        record.write_text(json.dumps(about | found) + '\n')
    for name in TILES:
        records = {r['world']: r for r in map(read, sorted((RESULTS / f'localisation_{name}').glob('world*.json')))}
        if 7 in records and len(records) > 1:
            (RESULTS / f'localisation_{name}' / 'table.md').write_text(table(records, TILES[name]))


def read(path: Path) -> dict[str, Any]:
    """A record."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == '__main__':
    main()
