"""E4: does the order of the data matter? Web, filtered web, landmarks and their mix, one after another or at once.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2
    python -m experiments.recipe.curriculum --worlds runs/worlds      # 24 trainings, 40 minutes on two cores
    python -m experiments.recipe.curriculum --table

The sources, for every world:

    web          4,000 ground photos of another world with captions of what they show (`train_clip.py`): what the tiny
                 CLIP was made of, so it has been through this stage before it starts
    filtered     what a filter of web pairs lets through: 5,000 tiles of random places with an annotator's captions,
                 a tenth of them of another tile, 15 % alt text that says nothing; and 1,000 of the ground photos
    landmarks    the tiles that have photos, with captions from a map with gaps (`experiments/captions/from_maps.py`)

The arms spend the same 500 steps of 128 images, from the tiny CLIP's weights, towards its frozen texts, by one schedule
of the rate. Rate and temperature are those that `experiments/captions` tuned in world 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.captions.annotator import write_captions
from experiments.captions.from_maps import caption_sets
from experiments.captions.places import tiles_to_caption, write_tiles
from experiments.captions.run import TAU, TRAIN, set_of_tiles
from experiments.recipe.mammut import measure
from experiments.recipe.sandbox_captions import shares_of_tiles
from experiments.sandbox.train_clip import photos_with_captions
from experiments.study import (
    Cell,
    as_text,
    chosen,
    load_results,
    mean_over_worlds,
    paired_difference,
    run_cells,
    study_parser,
)
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train

RESULTS = Path(__file__).resolve().parent / 'results' / 'curriculum'
PHOTOS, TILES, LEAKED = 4000, 5000, 1000
EXCHANGED, EMPTY = 0.10, 0.15
ALT_TEXTS = ('IMG_{:04d}', 'stock photo', 'image {} of 12', 'free download', 'photo by user{}', 'click to enlarge')
"""What pages write beside pictures."""

Stages = list[tuple[str, float, float]]
"""Source, and from and until which share of the steps."""
ARMS: dict[str, Stages] = {
    'web, filtered, landmarks, then all': [
        ('web', 0, 0.25), ('filtered', 0.25, 0.5), ('landmarks', 0.5, 0.75),
        ('web', 0.75, 1), ('filtered', 0.75, 1), ('landmarks', 0.75, 1),
    ],
    'all from the start': [('web', 0, 1), ('filtered', 0, 1), ('landmarks', 0, 1)],
    'filtered, landmarks, then both': [
        ('filtered', 0, 1 / 3), ('landmarks', 1 / 3, 2 / 3), ('filtered', 2 / 3, 1), ('landmarks', 2 / 3, 1),
    ],
    'both from the start': [('filtered', 0, 1), ('landmarks', 0, 1)],
    'landmarks, filtered, then both': [
        ('landmarks', 0, 1 / 3), ('filtered', 1 / 3, 2 / 3), ('filtered', 2 / 3, 1), ('landmarks', 2 / 3, 1),
    ],
    'landmarks, filtered, web': [('landmarks', 0, 1 / 3), ('filtered', 1 / 3, 2 / 3), ('web', 2 / 3, 1)],
    'filtered alone': [('filtered', 0, 1)],
    'landmarks alone': [('landmarks', 0, 1)],
}  # fmt: skip
DIFFERENCES = (
    ('web, filtered, landmarks, then all', 'all from the start'),
    ('filtered, landmarks, then both', 'both from the start'),
    ('landmarks, filtered, then both', 'both from the start'),
    ('landmarks, filtered, then both', 'filtered, landmarks, then both'),
    ('landmarks, filtered, web', 'web, filtered, landmarks, then all'),
    ('all from the start', 'both from the start'),
    ('both from the start', 'filtered alone'),
    ('filtered alone', 'landmarks alone'),
)
METRICS = ('accuracy', 'mean_recall')


def web_photos(world: Path, seed: int) -> tuple[LabelledTiles, list[str]]:
    """Ground photos of another world in the units of a world's tiles, and what is said of them."""
    images, texts, _ = photos_with_captions(9100 + seed, PHOTOS)
    low, high = PairStore(world / 'pairs').sensor.value_range
    count, bands = len(images), images.shape[-1]
    scale = np.full((count, bands), (high - low) / 255, np.float32)
    offset = np.full((count, bands), low, np.float32)
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.uint16)
    return LabelledTiles(pixels, scale, offset, np.zeros(0, np.int64), np.zeros((count, 2))), texts


def noisy(texts: list[str], rng: np.random.Generator) -> list[str]:
    """Captions as the web has them: some of another picture, some of none."""
    other = np.roll(rng.permutation(len(texts)), 1)
    noised = []
    for number, text in enumerate(texts):
        kind = rng.random()
        if kind < EMPTY:
            noised.append(str(rng.choice(ALT_TEXTS)).format(number))
        else:
            noised.append(texts[other[number]] if kind < EMPTY + EXCHANGED else text)
    return noised


def sources(world: Path, seed: int) -> dict[str, Path]:
    """The three caption sets of a world, made if they are not there."""
    folder = world / 'curriculum'
    sets = {'web': folder / 'web', 'filtered': folder / 'filtered', 'landmarks': caption_sets(world, seed)['maps']}
    if not (sets['filtered'] / 'bank' / 'bank.json').is_file():
        rng = np.random.default_rng((seed, 41))
        photos, said = web_photos(world, seed)
        places, shares = tiles_to_caption(world, seed)
        sensor, (scale, offset) = places.sensor, places.radiometry
        pixels = np.stack([places.read_tile(row) for row in range(TILES)])
        nothing = np.zeros(0, np.int64)
        tiles = LabelledTiles(pixels, scale[:TILES], offset[:TILES], nothing, np.zeros((TILES, 2)))
        leaked = LabelledTiles(*(values[:LEAKED] for values in vars(photos).values()))
        write_tiles(folder / 'web_pictures', sensor, [photos], 'photo')
        write_tiles(folder / 'filtered_pictures', sensor, [tiles, leaked], 'picture')
        true = [c.text for c in write_captions(shares[:TILES], seed)]
        texts = {'web': said, 'filtered': noisy(true, rng) + said[:LEAKED]}
        for name, of in texts.items():
            set_of_tiles(PairStore(folder / f'{name}_pictures'), of, sets[name], seed)
    return sets


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train in the stages of an arm."""
    sets = sources(world, cell.world)
    data = [{'set': str(sets[name]), 'after': after, 'until': until} for name, after, until in ARMS[cell.values['arm']]]
    values = settings.model_dump(mode='json') | {'store': None, 'data': data}
    train(TrainSettings.model_validate(values))
    return load_satellite(settings.out)


def table(outcomes: list[dict[str, Any]]) -> str:
    """Means over worlds, and paired differences."""
    lines = ['# The order of the data', '', '| arm | accuracy (95 %) | each world | mean recall (95 %) |']
    lines.append('|---|---|---|---|')
    for arm in ARMS:
        mine = chosen(outcomes, arm=arm)
        accuracy, recall = (as_text(mean_over_worlds(mine, metric)) for metric in METRICS)
        each = ', '.join(f'{o["accuracy"]["value"]:.3f}' for o in mine)
        lines.append(f'| {arm} | {accuracy} | {each} | {recall} |')
    lines += ['', '| paired difference | accuracy | mean recall |', '|---|---|---|']
    for one, other in DIFFERENCES:
        sides = chosen(outcomes, arm=one), chosen(outcomes, arm=other)
        gains = ' | '.join(as_text(paired_difference(*sides, metric), '+') for metric in METRICS)
        lines.append(f'| {one} minus {other} | {gains} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run all cells, or make the table."""
    parser = study_parser(__doc__, 'curriculum')
    args = parser.parse_args()
    if not args.table:
        for seed in args.seeds:  # before cells that share them
            sources(args.worlds / str(seed), seed)
            shares_of_tiles(args.worlds / str(seed))
        cells = [
            Cell(seed, {'arm': arm}, {**TRAIN, 'level': 'image', 'tau': TAU}, options={'stages': stages})
            for seed in args.seeds
            for arm, stages in ARMS.items()
        ]
        run_cells(cells, args.worlds, RESULTS, args.runs, trainer, args.abreast, measure)
    (RESULTS / 'table.md').write_text(table(load_results(RESULTS)))


if __name__ == '__main__':
    main()
