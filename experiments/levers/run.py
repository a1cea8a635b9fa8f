"""Levers: what brings photos nearer to labels, at equal steps.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2
    python -m experiments.levers.gap --worlds runs/worlds
    python -m experiments.levers.run --worlds runs/worlds
    python -m experiments.levers.run --table

All arms take the quickstart's 500 steps of 128 tiles. Arms:

    photos      the loss of photos, at the temperature said
    words       half of the loss are word anchors over the thousand words that ship
    synonyms    the same over the 49 synonyms that the sandbox's classes have; none is a name that is asked for
    nonsense    the same over a thousand words of random letters: what any words give
    rotated     the same over the thousand words turned by one random rotation: what any directions give (`losses.py`)
    robust      photos that the model does not believe in count less (`losses.py`)
    land        half of every batch are tiles of random places with the words of a finished run (`land.py`)
    land shuffled    the same with the words of other tiles
    attention   patches are chosen in the view of each photo by the run of arm `photos` (`placement.attention`); both
                together take `twice the steps`, which has them without attention
    agreement, teacher, balanced    photos by their worth, tiles by what is rare (`worth.py`); shuffled: control

on the tiles of GRAFT's plan and on denser ones (`gap.py`), at image level, and at patch level with photos in their view
cones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.levers import gap
from experiments.levers.gap import DENSE, STORES, TRAIN, dense_store
from experiments.levers.land import named_land
from experiments.levers.losses import train_with_loss
from experiments.levers.worth import train_weighted
from experiments.study import (
    CLIP,
    Cell,
    as_text,
    by_settings,
    chosen,
    keep_log,
    labelled,
    load_results,
    mean_over_worlds,
    measure,
    measure_vectors,
    paired_difference,
    run_cells,
    study_parser,
)
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel
from grafalign.encoders import FrozenClip, load_clip
from grafalign.sandbox.classes import LAND_CLASSES, LandClass
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite
from grafalign.training.task import AlignmentTask
from grafalign.zeroshot import class_vectors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'levers'
IMAGE = (
    ('graft', 'photos', 0.07),
    ('graft', 'photos', 0.3),  # of the other study
    ('graft', 'words', 0.07),
    ('graft', 'words', 0.3),
    ('graft', 'synonyms', 0.07),
    ('graft', 'nonsense', 0.07),
    ('dense', 'photos', 0.07),
    ('dense', 'photos', 0.3),  # of the other study
    ('dense', 'words', 0.07),
    ('dense', 'words', 0.3),
    ('dense', 'nonsense', 0.07),
    ('dense', 'rotated', 0.07),
    ('dense', 'robust', 0.07),
    ('dense', 'robust', 0.3),
    ('dense', 'land', 0.3),
    ('dense', 'land shuffled', 0.3),
    ('dense', 'agreement', 0.3),
    ('dense', 'agreement shuffled', 0.3),
    ('dense', 'teacher', 0.3),
    ('dense', 'balanced', 0.3),
)
PATCH = (
    ('graft', 'photos', 0.4),
    ('graft', 'words', 0.4),
    ('dense', 'photos', 0.4),
    ('graft', 'attention', 0.4),
    ('dense', 'attention', 0.4),
    ('dense', 'twice the steps', 0.4),
)
LEARNED_BEFORE = ('dense', 'photos', 'tiles alike')
"""Run of the other study that `land` and `teacher` ask."""


def word_list(arm: str, world: Path, kinds: Sequence[LandClass] = LAND_CLASSES) -> Path | None:
    """File of the words of an arm; None for those that ship."""
    if arm == 'words':
        return None
    if arm == 'synonyms':
        words = [synonym for kind in kinds for synonym in kind.synonyms]
    else:
        letters = np.random.default_rng(73).integers(97, 123, (1000, 8))
        words = [bytes(row.tolist()).decode() for row in letters]
    out = world / f'{arm}.txt'
    out.write_text('\n'.join(words) + '\n')
    return out


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel | ZeroShotModel:
    """Train as the arm says."""
    values = settings.model_dump(mode='json')
    arm = str(cell.values['arm'])
    before = settings.out.parent.parent / 'gap' / gap.cell_of(cell.world, *LEARNED_BEFORE).name
    if arm == 'attention':
        plain = cell_of(cell.world, str(cell.values['tiles']), 'photos', 0.4, 'patch')
        values['placement']['attention'] = {'run': settings.out.with_name(plain.name)}
    elif arm in ('words', 'synonyms', 'nonsense'):
        values['word_anchors'] = {'words': word_list(arm, world)}
    elif arm.startswith('land'):
        out = settings.out.with_name(f'{settings.out.name}_set')
        land = named_land(world, cell.world, load_satellite(before), out, arm.endswith('shuffled'))
        values |= {'store': None, 'data': [{'store': settings.store}, {'set': land}]}
    elif arm in ('rotated', 'robust'):
        clip = load_clip(CLIP)
        words = {'word_anchors': {}} if arm == 'rotated' else {}
        task = train_with_loss(arm, TrainSettings.model_validate(values | words), clip)
        return zero_shot_model(task, clip, world, cell)
    elif arm not in ('photos', 'twice the steps'):
        clip = load_clip(CLIP)
        task, log = train_weighted(settings, clip, arm, load_satellite(before, clip) if arm == 'teacher' else None)
        keep_log(log, settings)
        return zero_shot_model(task, clip, world, cell)
    return by_settings(cell, world, TrainSettings.model_validate(values))


def zero_shot_model(task: AlignmentTask, clip: FrozenClip, world: Path, cell: Cell) -> ZeroShotModel:
    """The encoder of a task with the vectors of the world's classes."""
    names = labelled(world, cell.world)[2]
    every = range(len(PairStore(world / cell.store).sensor.bands))
    return ZeroShotModel(task.encoder.eval(), task.preprocess, class_vectors(clip, names), every)


def measure_either(model: SatelliteModel | ZeroShotModel, world: Path, seed: int) -> dict[str, Any]:
    """Measure what `trainer` gives."""
    return (measure_vectors if isinstance(model, ZeroShotModel) else measure)(model, world, seed)


def cell_of(seed: int, tiles: str, arm: str, tau: float, level: str = 'image') -> Cell:
    """A cell of the study."""
    train: dict[str, Any] = {**TRAIN, 'tau': tau, 'level': level}
    if level == 'patch':
        train['placement'] = {'kind': 'view_cone'}
    if arm == 'twice the steps':
        train['steps'] = 2 * int(train['steps'])
    return Cell(seed, {'level': level, 'tiles': tiles, 'arm': arm, 'tau': tau}, train, STORES[tiles])


def rows(outcomes: list[dict[str, Any]], level: str, arms: tuple[tuple[str, str, float], ...]) -> list[str]:
    """A row an arm."""
    metric = {'image': 'accuracy', 'patch': 'miou'}[level]
    base = chosen(outcomes, level=level, tiles=arms[0][0], arm='photos', tau=0.3 if level == 'image' else 0.4)
    if not base:
        return ['Not run yet.']
    lines = [
        f"| tiles | arm | tau | {metric} | beside photos on GRAFT's tiles at {base[0]['values']['tau']} | memory, MB |",
        '|---|---|---|---|---|---|',
    ]
    for tiles, arm, tau in arms:
        results = chosen(outcomes, level=level, tiles=tiles, arm=arm, tau=tau)
        if results:
            value = as_text(mean_over_worlds(results, metric))
            beside = '' if results == base else as_text(paired_difference(results, base, metric), '+')
            memory = np.mean([o['peak_memory_mb'] for o in results])
            lines.append(f'| {tiles} | {arm} | {tau} | {value} | {beside} | {memory:,.0f} |')
    return lines


def table() -> str:
    """Both levels, beside the bound."""
    outcomes, others = load_results(RESULTS), load_results(gap.RESULTS)
    for tiles in ('graft', 'dense'):
        for outcome in chosen(others, tiles=tiles, learns='photos'):
            outcomes.append({**outcome, 'values': {'level': 'image', 'tiles': tiles, 'arm': 'photos', 'tau': 0.3}})
    if not chosen(outcomes, arm='photos', tau=0.3):
        raise SystemExit(f'{gap.RESULTS} and {RESULTS} hold no results; run the studies first.')
    worlds = sorted({int(o['world']) for o in outcomes})
    bound = as_text(mean_over_worlds(chosen(others, tiles='bound'), 'accuracy'))
    lines = [
        '# Levers at equal steps',
        '',
        f'Means over worlds {", ".join(map(str, worlds))} with 95 % intervals over blocks of land; made by `run.py`. '
        f'Dense tiles are those of `plan: {DENSE}`. The labelled bound has an accuracy of {bound}.',
        '',
        '## Image level',
        '',
        *rows(outcomes, 'image', IMAGE),
        '',
        '## Patch level, photos in their view cones',
        '',
        *rows(outcomes, 'patch', PATCH),
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run what is not done yet, or make the table."""
    args = study_parser(__doc__, 'levers').parse_args()
    if not args.table:
        for seed in args.seeds:
            dense_store(args.worlds / str(seed))
        todo = [cell_of(seed, *arm, level='patch') for arm in PATCH for seed in args.seeds]
        todo += [cell_of(seed, *arm) for arm in IMAGE if arm[1:] != ('photos', 0.3) for seed in args.seeds]
        run_cells(todo, args.worlds, RESULTS, args.runs, trainer, args.abreast, measure_either)
    text = table()
    (HERE / 'results' / 'levers.md').write_text(text)


if __name__ == '__main__':
    main()
