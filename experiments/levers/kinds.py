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

import torch
from torch import Tensor

from experiments.levers.gap import DENSE, TRAIN
from experiments.levers.run import measure_either, word_list
from experiments.study import (
    Cell,
    as_text,
    by_settings,
    chosen,
    keep_log,
    labelled,
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
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import fit
from grafalign.training.objective import Candidates, Pairs
from grafalign.training.task import AlignmentTask
from grafalign.zeroshot import class_vectors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'kinds'
TINTS = 9
SOFT, SOFT_TAU = 0.5, 0.05
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


def soft_positives(scaled: Tensor, photos: Tensor, pairs: Pairs) -> Tensor:
    """What is added to the loss so that photos like the own one are positives too.

    The target of a pair becomes (1 - s) its photo + s softmax over the photos of their cosines / t. As the loss is
    linear in the positives, this is the loss with the photo's embedding g replaced, in the positive term alone, by its
    mean with its neighbours:  L' = L + s sum_pairs w z . (g - sum_k q_k g_k).

    Args:
        scaled: z, anchors divided by tau, [R, D].
        photos: unit embeddings, [K, D].
        pairs: the rows' positives and their weights.
    """
    own = photos[pairs.candidate]
    near = (own @ photos.T / SOFT_TAU).softmax(1) @ photos
    return SOFT * (pairs.weight[:, None] * scaled[pairs.row] * (own - near)).sum()


class SoftTask(AlignmentTask):
    """A training with soft positives."""

    def _contrast(self, scaled: Tensor, candidates: Candidates, pairs: Pairs, listed: Tensor | None) -> Tensor:
        photos = candidates.take(torch.arange(len(candidates.rows)), scaled)
        return super()._contrast(scaled, candidates, pairs, listed) + soft_positives(scaled, photos, pairs)


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
    torch.manual_seed(settings.seed)
    clip = load_clip(settings.clip)
    data = gather_data(settings, clip)
    task = SoftTask.start(clip, data.sensor, settings, data.bank(torch.device('cpu')))
    steps = PairSteps(data.sources, settings, size_px=data.sensor.size_px)
    log = fit(task, steps, settings.steps or 0, settings.peak_lr, settings, make_accelerator(settings.precision))
    keep_log(log, settings)
    vectors = class_vectors(clip, labelled(world, cell.world)[2])
    return ZeroShotModel(task.encoder.eval(), task.preprocess, vectors, range(len(data.sensor.bands)))


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
