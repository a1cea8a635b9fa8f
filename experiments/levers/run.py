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
    land        half of every batch are tiles of random places with the words of a finished run (`land.py`)
    shuffled    the same with the words of other tiles

on the tiles of GRAFT's plan and on denser ones (`gap.py`), at image level, and at patch level with photos in their view
cones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.levers.gap import DENSE, TRAIN, dense_store
from experiments.levers.gap import RESULTS as GAP
from experiments.levers.land import named_land
from experiments.study import (
    Cell,
    as_text,
    by_settings,
    chosen,
    load_results,
    mean_over_worlds,
    paired_difference,
    run_cells,
    study_parser,
)
from grafalign.sandbox.classes import LAND_CLASSES
from grafalign.training import SatelliteModel, TrainSettings, load_satellite

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'levers'
STORES = {'graft': 'pairs', 'dense': 'dense'}
IMAGE = (
    ('graft', 'photos', 0.07),
    ('graft', 'photos', 0.3),
    ('graft', 'words', 0.07),
    ('graft', 'words', 0.3),
    ('graft', 'synonyms', 0.07),
    ('graft', 'nonsense', 0.07),
    ('dense', 'photos', 0.07),
    ('dense', 'photos', 0.3),
    ('dense', 'words', 0.07),
    ('dense', 'words', 0.3),
    ('dense', 'land', 0.3),
    ('dense', 'shuffled', 0.3),
)
PATCH = (('graft', 'photos', 0.4), ('graft', 'words', 0.4), ('dense', 'photos', 0.4))
LEARNED_BEFORE = ('dense', 'photos', 0.3)
"""The teacher of `land`."""


def word_list(cell: Cell, world: Path) -> Path | None:
    """File of the words of an arm; None for those that ship."""
    if cell.values['arm'] == 'words':
        return None
    if cell.values['arm'] == 'synonyms':
        words = [synonym for kind in LAND_CLASSES for synonym in kind.synonyms]
    else:
        letters = np.random.default_rng(73).integers(97, 123, (1000, 8))
        words = [bytes(row.tolist()).decode() for row in letters]
    out = world / f'{cell.values["arm"]}.txt'
    out.write_text('\n'.join(words) + '\n')
    return out


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train as the arm says."""
    values = settings.model_dump(mode='json')
    arm = cell.values['arm']
    if arm in ('words', 'synonyms', 'nonsense'):
        values['word_anchors'] = {'list': word_list(cell, world)}
    elif arm in ('land', 'shuffled'):
        teacher = load_satellite(settings.out.parent / named(cell.world, *LEARNED_BEFORE))
        land = named_land(world, cell.world, teacher, settings.out.with_name(f'{settings.out.name}_set'), arm != 'land')
        values |= {'store': None, 'data': [{'store': settings.store}, {'set': land}]}
    return by_settings(cell, world, TrainSettings.model_validate(values))


def cell_of(seed: int, tiles: str, arm: str, tau: float, level: str = 'image') -> Cell:
    """A cell of the study."""
    train: dict[str, Any] = {**TRAIN, 'tau': tau, 'level': level}
    if level == 'patch':
        train['placement'] = {'kind': 'view_cone'}
    return Cell(seed, {'level': level, 'tiles': tiles, 'arm': arm, 'tau': tau}, train, STORES[tiles])


def named(seed: int, tiles: str, arm: str, tau: float) -> str:
    """Folder of a run."""
    return cell_of(seed, tiles, arm, tau).name


def rows(outcomes: list[dict[str, Any]], level: str, arms: tuple[tuple[str, str, float], ...]) -> list[str]:
    """A row an arm."""
    metric = {'image': 'accuracy', 'patch': 'miou'}[level]
    base = chosen(outcomes, level=level, tiles=arms[0][0], arm='photos', tau=0.3 if level == 'image' else 0.4)
    lines = [
        f"| tiles | arm | tau | {metric} | beside photos on GRAFT's tiles at {base[0]['values']['tau']} | "
        'ms a step | memory, MB |',
        '|---|---|---|---|---|---|---|',
    ]
    for tiles, arm, tau in arms:
        found = chosen(outcomes, level=level, tiles=tiles, arm=arm, tau=tau)
        if found:
            value = as_text(mean_over_worlds(found, metric))
            beside = '' if found == base else as_text(paired_difference(found, base, metric), '+')
            step, memory = (np.mean([o[k] for o in found]) for k in ('step_ms', 'peak_memory_mb'))
            lines.append(f'| {tiles} | {arm} | {tau} | {value} | {beside} | {step:.0f} | {memory:,.0f} |')
    return lines


def table() -> str:
    """Both levels, beside the bound."""
    outcomes = load_results(RESULTS)
    worlds = sorted({int(o['world']) for o in outcomes})
    bound = as_text(mean_over_worlds(chosen(load_results(GAP), tiles='bound'), 'accuracy'))
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
    """Run what is not done yet, the teachers first, or make the table."""
    args = study_parser(__doc__, 'levers').parse_args()
    if not args.table:
        for seed in args.seeds:
            dense_store(args.worlds / str(seed))
        first = [cell_of(seed, *LEARNED_BEFORE) for seed in args.seeds]
        others = [cell_of(seed, *arm) for seed in args.seeds for arm in IMAGE if arm != LEARNED_BEFORE]
        others += [cell_of(seed, *arm, level='patch') for seed in args.seeds for arm in PATCH]
        for todo in (first, others):
            run_cells(todo, args.worlds, RESULTS, args.runs, trainer, args.abreast)
    (HERE / 'results' / 'levers.md').write_text(table())


if __name__ == '__main__':
    main()
