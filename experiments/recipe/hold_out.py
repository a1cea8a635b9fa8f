"""E5: what does a model make of kinds of land that it never saw from above?

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2
    python -m experiments.recipe.hold_out --worlds runs/worlds      # 39 trainings, an hour on two cores
    python -m experiments.recipe.hold_out --table

The 24 classes of a sandbox world are held out four at a time, in six folds, from 10,000 captioned tiles of random
places (`experiments/captions/annotator.py`) by the rule of `grafalign captions hold-out`: class, synonyms, and the
annotator's vague words for it. What stays behind is counted by truth, at a twentieth of a tile. All arms take the
same number of images, of steps and the same settings:

    with       all classes are among the captions; a random part of the tiles, as many as a fold keeps
    without    the four classes of the fold are held out
    scratch    the same, but texts go through a decoder from scratch: no word means anything before training

and beside them stands the tiny CLIP as it is, which knows all words from photos and has seen nothing from above. A test
tile counts as unseen in the one fold that holds its class out.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.captions.annotator import VAGUE
from experiments.captions.places import tiles_to_caption
from experiments.captions.run import caption_set
from experiments.study import (
    CLIP,
    DRAWS,
    Cell,
    as_text,
    chosen,
    labelled,
    load_results,
    mean_over_worlds,
    paired_difference,
    run_cells,
    store_recipe,
    study_parser,
)
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel, embed_tiles
from grafalign.benchmarks.statistics import Mean, MeanAp, Resampling, Statistic, estimates, ranking, resampling
from grafalign.captions import CaptionSet
from grafalign.curation.hold_out import HoldOutSettings, hold_out
from grafalign.curation.select import select
from grafalign.encoders import embed_texts, load_clip
from grafalign.encoders.preprocessing import TilePreprocessing
from grafalign.encoders.satellite import SatelliteEncoder
from grafalign.sandbox.classes import LAND_CLASSES
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train
from grafalign.zeroshot import class_scores, class_vectors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results'
FOLDS, NUMBER, THERE = 6, 10_000, 0.05
TRAIN = {'steps': 500, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20, 'tau': 0.07}
SCRATCH = {
    'text_tower': 'decoder', 'caption_weight': 0.0, 'photo_to_tile': 1.0,
    'decoder': {'start': 'scratch', 'layers': 2, 'width': 48, 'heads': 3},
}  # fmt: skip


def held_out(fold: int) -> list[int]:
    """Numbers of the classes of a fold."""
    return [c for c in range(len(LAND_CLASSES)) if c % FOLDS == fold]


def kinds_of(fold: int) -> HoldOutSettings:
    """The classes of a fold with all words that the annotator has for them."""
    kinds = []
    for number in held_out(fold):
        known = LAND_CLASSES[number]
        words = [w.removeprefix('a ').removeprefix('the ') for w in known.synonyms]
        vague = [word for word, names in VAGUE.items() if known.name in names]
        kinds.append({'kind': known.name, 'synonyms': [*words, *vague]})
    return HoldOutSettings.model_validate({'kinds': kinds})


def fold_sets(world: Path, seed: int) -> dict[int | None, Path]:
    """The set of every fold, and that with all classes, each of as many images as the smallest fold keeps."""
    out: dict[int | None, Path] = {f: world / f'held_out_{f}' for f in range(FOLDS)} | {None: world / 'held_out_none'}
    if all((p / 'bank' / 'bank.json').is_file() for p in out.values()):
        return out
    captions = CaptionSet(caption_set(world, seed, NUMBER))
    shares = tiles_to_caption(world, seed)[1]
    image, kind = np.nonzero(shares >= THERE)
    ids = np.array(captions.images['image_id'].to_pylist(), dtype=object)
    truth = world / 'held_out_truth.parquet'
    pd.DataFrame({'image_id': ids[image], 'kind': [LAND_CLASSES[k].name for k in kind]}).to_parquet(truth)
    told = {}
    for fold in range(FOLDS):
        told[fold] = hold_out(captions, world / f'kept_{fold}', kinds_of(fold), truth=truth)
    fewest = min(done.kept for done in told.values())
    clip = load_clip(CLIP)
    for fold, path in out.items():
        whole = captions if fold is None else CaptionSet(world / f'kept_{fold}')
        reasons = np.full(len(whole), 'not drawn', dtype=object)
        reasons[np.random.default_rng((seed, 37)).permutation(len(whole))[:fewest]] = None
        done = None if fold is None else asdict(told[fold])
        select(whole, path, reasons, {'images': fewest, 'held_out': done})
        embed_texts(CaptionSet(path), clip)
    return out


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train on the set of the cell."""
    captions = fold_sets(world, cell.world)[cell.values.get('fold')]
    changes = SCRATCH if cell.values['arm'] == 'scratch' else {}
    values = settings.model_dump(mode='json') | {'store': None, 'data': str(captions)} | changes
    train(TrainSettings.model_validate(values))
    return load_satellite(settings.out)


def untrained(world: Path) -> SatelliteModel:
    """The tiny CLIP as it is, on the tiles of a world."""
    clip, sensor = load_clip(CLIP), PairStore(world / 'pairs').sensor
    encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px).eval()
    return SatelliteModel(encoder, TilePreprocessing(sensor, clip), clip, sensor, None)  # type: ignore[arg-type]


def measure(model: SatelliteModel, world: Path, seed: int) -> dict[str, Any]:
    """For every test tile whether its class comes first among all and among those of its fold, and all scores."""
    test, _, classes = labelled(world, seed)
    every = range(len(model.sensor.bands))
    ready = ZeroShotModel(model.encoder, model.preprocess, class_vectors(model.clip, classes), every)
    scores = class_scores(embed_tiles(ready, test), ready.classes)
    beside = np.array([[c % FOLDS == label % FOLDS for c in range(len(classes))] for label in test.labels])
    among = np.where(beside, scores, -np.inf).argmax(1) == test.labels
    return {
        'right': (scores.argmax(1) == test.labels).astype(int).tolist(),
        'right_in_fold': among.astype(int).tolist(),
        'scores': np.round(scores, 4).tolist(),
        'draws': {},
    }


def summary(worlds: Path, outcomes: list[dict[str, Any]], arm: str, seed: int) -> dict[str, Any]:
    """Estimates of an arm in a world, over all folds, with draws for paired differences."""
    mine = [o for o in chosen(outcomes, arm=arm) if o['world'] == seed]
    by_fold = {f: next(o for o in mine if o['values'].get('fold') in (f, None)) for f in range(FOLDS)}
    test, _, classes = labelled(worlds / str(seed), seed)
    fold_of = test.labels % FOLDS
    right, among, scores = (
        np.array([by_fold[f][key] for f in range(FOLDS)], dtype=np.float64)
        for key in ('right', 'right_in_fold', 'scores')
    )
    rows = np.arange(len(test.labels))
    seen = right.sum(0) - right[fold_of, rows]
    ones = np.ones(len(rows))
    columns = np.arange(len(classes))
    relevant = test.labels[None] == columns[:, None]

    def precision(folds: npt.NDArray[np.int64]) -> MeanAp:
        return MeanAp(ranking(np.stack([scores[f, :, c] for c, f in zip(columns, folds, strict=True)], 1)), relevant, 0)

    statistics: dict[str, Statistic] = {
        'seen': Mean(seen, (FOLDS - 1) * ones),
        'unseen': Mean(right[fold_of, rows], ones),
        'unseen_of_four': Mean(among[fold_of, rows], ones),
        'seen_of_four': Mean(among.sum(0) - among[fold_of, rows], (FOLDS - 1) * ones),
        'seen_ap': precision((columns + 1) % FOLDS),
        'unseen_ap': precision(columns % FOLDS),
    }
    block_km = store_recipe(worlds / str(seed)).split.block_km
    how = resampling(len(rows), test.lonlat, DRAWS, block_km=block_km)
    found: dict[str, Any] = {k: v.model_dump() for k, v in estimates(statistics, how).items()}
    return found | {'world': seed, 'draws': {k: _draws(s, how) for k, s in statistics.items()}}


def _draws(statistic: Statistic, how: Resampling) -> list[float]:
    return np.concatenate([statistic(weights) for weights in how.weights()]).tolist()


METRICS = ('seen', 'unseen', 'seen_of_four', 'unseen_of_four', 'seen_ap', 'unseen_ap')
ARMS = ('with', 'without', 'scratch', 'untrained')


def conclude(worlds: Path, records: Path) -> dict[str, Any]:
    """Means over worlds, paired differences, and what the rule could not hold out."""
    outcomes = load_results(records)
    seeds = sorted({o['world'] for o in outcomes})
    found = {arm: [summary(worlds, outcomes, arm, seed) for seed in seeds] for arm in ARMS}
    without = chosen(outcomes, arm='without')
    return {
        'command': without[0]['command'],
        'versions': without[0]['versions'],
        'machine': without[0]['machine'],
        'settings': {'train': TRAIN, 'scratch': SCRATCH, 'folds': FOLDS, 'draws': DRAWS, 'seeds': seeds},
        'arms': {arm: {m: mean_over_worlds(found[arm], m) for m in METRICS} for arm in ARMS},
        'each_world': {arm: {m: [o[m]['value'] for o in found[arm]] for m in METRICS} for arm in ARMS},
        'differences': {
            f'{one} minus {other}': {m: paired_difference(found[one], found[other], m) for m in METRICS}
            for one, other in (('without', 'with'), ('without', 'untrained'), ('scratch', 'untrained'))
        },
        'folds': [
            {'world': o['world'], 'fold': o['values']['fold'], 'images': o['options']['images']}
            | {k: o['options']['held_out'][k] for k in ('kept', 'true', 'true_kept')}
            for o in without
        ],
    }


def table(content: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ['# Kinds of land that were never seen from above', '']
    lines.append('| arm | accuracy, seen | unseen | of four, seen | unseen | average precision, seen | unseen |')
    lines.append('|---|---|---|---|---|---|---|')
    for arm, values in content['arms'].items():
        cells = [as_text(value) for value in values.values()]
        lines.append(f'| {arm} | {" | ".join(cells)} |')
    lines += ['', '| paired difference, unseen kinds | accuracy | of four | average precision |', '|---|---|---|---|']
    for name, values in content['differences'].items():
        cells = [as_text(values[m], '+') for m in METRICS if m.startswith('unseen')]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    lines += [
        '',
        '| fold | held out | tiles kept of 10,000 | of tiles that show one, still there |',
        '|---|---|---|---|',
    ]
    for fold in range(FOLDS):
        mine = [f for f in content['folds'] if f['fold'] == fold]
        names = ', '.join(LAND_CLASSES[c].name for c in held_out(fold))
        kept = ', '.join(f'{f["kept"]:,}' for f in mine)
        true = ', '.join(f'{sum(f["true_kept"].values()):,} of {sum(f["true"].values()):,}' for f in mine)
        lines.append(f'| {fold} | {names} | {kept} | {true} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run all cells, or make the table."""
    parser = study_parser(__doc__, 'hold_out')
    args = parser.parse_args()
    records = args.runs / 'records'
    if not args.table:
        cells = []
        records.mkdir(parents=True, exist_ok=True)
        for seed in args.seeds:
            world = args.worlds / str(seed)
            sets = fold_sets(world, seed)
            told = {f: CaptionSet(path).marker.settings for f, path in sets.items()}
            cells.append(Cell(seed, {'arm': 'with'}, TRAIN, options={'images': told[None]['images']}))
            for fold in range(FOLDS):
                options = {k: told[fold][k] for k in ('images', 'held_out')}
                cells.append(Cell(seed, {'arm': 'without', 'fold': fold}, TRAIN, options=options))
                cells.append(Cell(seed, {'arm': 'scratch', 'fold': fold}, TRAIN, options=options))
            beside = {'values': {'arm': 'untrained'}, 'world': seed, **measure(untrained(world), world, seed)}
            (records / f'arm-untrained_world-{seed}.json').write_text(json.dumps(beside) + '\n')
        run_cells(cells, args.worlds, records, args.runs, trainer, args.abreast, measure)
    content = conclude(args.worlds, records)
    (RESULTS / 'hold_out.json').write_text(json.dumps(content, indent=1) + '\n')
    (RESULTS / 'hold_out.md').write_text(table(content))


if __name__ == '__main__':
    main()
