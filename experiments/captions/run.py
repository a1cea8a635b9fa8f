"""How many captions are the quickstart's photos worth?

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2 7
    python -m experiments.captions.run --worlds runs/worlds --tune
    python -m experiments.captions.run --worlds runs/worlds
    python -m experiments.captions.table

The same satellite encoder from the same weights, with the same optimizer, schedule, views, batch and number of steps,
learns from the quickstart's photos or from captioned tiles. `annotator.py` says how captions come about, `places.py`
where their tiles lie, `training.py` what is trained. All are measured on the quickstart's test tiles and chips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from experiments.captions.annotator import quality, write_captions
from experiments.captions.places import tiles_to_caption
from experiments.captions.training import train_on_captions
from experiments.study import CLIP, Cell, by_settings, run_cells
from grafalign.encoders import load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings

HERE = Path(__file__).resolve().parent
SIZES = {'random': (100, 300, 1000, 3000, 10_000), 'photographed': (100, 300, 1000, 1800)}
TRAIN = {'steps': 500, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20}
"""The quickstart's."""
PHOTO_RUNS = (('image', 0.3), ('image', 0.07), ('patch', 0.4))
TAU = 0.15
"""Temperature of CLIP's loss: the best in world 7, which appears in no result, though it matters little there."""
TAUS = (0.03, 0.07, 0.15, 0.3)
TUNING_WORLD, TUNING_SIZE = 7, 3000


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train on photos or on captions, as the cell says."""
    if cell.values['source'] == 'photos':
        return by_settings(cell, world, settings)
    tiles = tiles_to_caption(world, cell.world, cell.values['places']).first(cell.values['number'])
    captions = [c.text for c in write_captions(tiles.shares, cell.world)]
    return train_on_captions(load_clip(CLIP), PairStore(world / cell.store).sensor, tiles, captions, settings)


def photo_cell(worlds: Path, seed: int, level: str, tau: float) -> Cell:
    """A run on photos as in the quickstart; notes how many photos and tiles it learns from."""
    store = PairStore(worlds / str(seed) / 'pairs')
    pairs = store.pairs[np.isin(store.pairs['tile'], store.tiles_of('train'))]
    pairs = pairs[load_bank(store).valid[pairs['photo']]]
    learns_from = {'photos': int(pairs['photo'].nunique()), 'tiles': int(pairs['tile'].nunique())}
    values = {'source': 'photos', 'level': level, 'tau': tau}
    return Cell(seed, values, {**TRAIN, 'level': level, 'tau': tau}, options=learns_from)


def caption_cell(worlds: Path, seed: int, places: str, number: int, tau: float) -> Cell:
    """A run on captions; notes what is missing and wrong in them."""
    shares = tiles_to_caption(worlds / str(seed), seed, places).first(number).shares
    metadata = quality(write_captions(shares, seed), shares)
    values = {'source': 'captions', 'places': places, 'number': number, 'tau': tau}
    return Cell(seed, values, {**TRAIN, 'level': 'image', 'tau': tau}, options=metadata)


def main() -> None:
    """Run all cells, or those that the temperature is chosen by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--runs', type=Path, default=Path('runs/captions'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--places', nargs='+', choices=tuple(SIZES), default=['random'])
    parser.add_argument('--abreast', type=int, default=2, help='cells at a time')
    parser.add_argument('--tune', action='store_true', help='compare temperatures in world 7 instead')
    args = parser.parse_args()
    if args.tune:
        cells = [caption_cell(args.worlds, TUNING_WORLD, 'random', TUNING_SIZE, tau) for tau in TAUS]
        run_cells(cells, args.worlds, args.results / 'tuning', args.runs / 'tuning', trainer, args.abreast)
        return
    cells = []
    for places in args.places:
        for seed in args.seeds:
            cells += [photo_cell(args.worlds, seed, *kind) for kind in PHOTO_RUNS if places == 'random']
            cells += [caption_cell(args.worlds, seed, places, number, TAU) for number in SIZES[places]]
    run_cells(cells, args.worlds, args.results, args.runs, trainer, args.abreast)


if __name__ == '__main__':
    main()
