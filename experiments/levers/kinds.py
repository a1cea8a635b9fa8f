"""Losses where false negatives are rare: worlds of 216 kinds, 24 in each of nine colours.

    python experiments/sandbox/train_clip.py --out runs/kinds_clip --tints 9
    python -m experiments.levers.kinds --clip runs/kinds_clip
    python -m experiments.levers.kinds --table

With 24 kinds most negatives of a batch show what the anchor shows; with 216 few do. Which of temperature, negatives,
masks, soft positives and word lists are remedies for that, and which help anyway? All arms: image level, denser tiles
(`gap.py`), 500 steps of 128. Arms:

    photos      the loss of photos, at the temperature said
    bank        8,192 more negatives from the whole bank
    masked      photos nearer than 0.9 to an anchor's own are no negatives
    soft        half of the target goes to photos like the own one (softmax of their cosines / 0.05)
    words, synonyms, nonsense    half of the loss are word anchors: the thousand that ship, 432 of the world's own kinds
                that are not asked for, a thousand of random letters
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.levers.gap import DENSE, TRAIN
from experiments.levers.losses import train_with_loss
from experiments.levers.run import measure_either, word_list, zero_shot_model
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
    with_plan,
)
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel
from grafalign.encoders import ClipSettings, embed, load_clip
from grafalign.pairing import pair
from grafalign.quickstart import quickstart_experiment
from grafalign.sandbox.classes import kinds_of
from grafalign.sandbox.world import make_sandbox
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'kinds'
TINTS = 9
ARMS = (
    ('photos', 0.07),
    ('photos', 0.15),
    ('photos', 0.3),
    ('bank', 0.07),
    ('masked', 0.07),
    ('soft', 0.07),
    ('words', 0.07),
    ('words', 0.3),
    ('synonyms', 0.07),
    ('nonsense', 0.07),
)
SETTINGS: dict[str, dict[str, Any]] = {
    'bank': {'negatives': {'bank': 8192}},
    'masked': {'masks': {'closer_than': 0.9}},
}


def kinds_world(worlds: Path, seed: int, clip: ClipSettings) -> None:
    """A world of 216 kinds, its pairs on denser tiles, and their bank; made once."""
    out = worlds / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    world, experiment = quickstart_experiment(out, seed)
    make_sandbox(out / 'sandbox', replace(world, tints=TINTS))
    pair(with_plan(experiment.recipe, **DENSE), out / 'pairs')
    embed(PairStore(out / 'pairs'), load_clip(clip))


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel | ZeroShotModel:
    """Train as the arm says."""
    arm = str(cell.values['arm'])
    if arm in ('words', 'synonyms', 'nonsense'):
        words = {'word_anchors': {'words': word_list(arm, world, kinds_of(TINTS))}}
        return by_settings(cell, world, TrainSettings.model_validate(settings.model_dump(mode='json') | words))
    if arm != 'soft':
        return by_settings(cell, world, settings)
    clip = load_clip(settings.clip)
    return zero_shot_model(train_with_loss(arm, settings, clip), clip, world, cell)


def cell_of(seed: int, arm: str, tau: float, clip: str) -> Cell:
    """A cell of the study."""
    train = {**TRAIN, 'tau': tau, 'clip': {'model': clip}, **SETTINGS.get(arm, {})}
    return Cell(seed, {'kinds': 24 * TINTS, 'arm': arm, 'tau': tau}, train)


def table() -> str:
    """A row an arm."""
    outcomes = load_results(RESULTS)
    base = chosen(outcomes, arm='photos', tau=0.07)
    if not base:
        raise SystemExit(f'{RESULTS} holds no results; run the study first.')
    lines = [
        '# Worlds of 216 kinds',
        '',
        f'Accuracy over test tiles, means over worlds {", ".join(str(o["world"]) for o in base)} with 95 % intervals '
        'over blocks of land; made by `kinds.py`.',
        '',
        '| arm | tau | accuracy | beside photos at 0.07 |',
        '|---|---|---|---|',
    ]
    for arm, tau in ARMS:
        results = chosen(outcomes, arm=arm, tau=tau)
        if results:
            value = as_text(mean_over_worlds(results, 'accuracy'))
            beside = '' if results == base else as_text(paired_difference(results, base, 'accuracy'), '+')
            lines.append(f'| {arm} | {tau} | {value} | {beside} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Make the worlds, run what is not done yet, make the table."""
    parser = study_parser(__doc__, 'kinds')
    parser.add_argument('--clip', default='runs/kinds_clip', help='folder of the CLIP that knows the kinds')
    parser.set_defaults(worlds=Path('runs/worlds_of_kinds'))
    args = parser.parse_args()
    if not args.table:
        for seed in args.seeds:
            kinds_world(args.worlds, seed, ClipSettings(model=args.clip))
        todo = [cell_of(seed, arm, tau, args.clip) for arm, tau in ARMS for seed in args.seeds]
        run_cells(todo, args.worlds, RESULTS, args.runs, trainer, args.abreast, measure_either)
    (HERE / 'results' / 'kinds.md').write_text(table())


if __name__ == '__main__':
    main()
