"""How many captions are the quickstart's photos worth?

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2 7
    python -m experiments.captions.run --worlds runs/worlds --tune
    python -m experiments.captions.run --worlds runs/worlds
    python -m experiments.captions.table

The same satellite encoder from the same weights, with the same optimizer, schedule, views, batch and number of steps,
learns by `grafalign train` from the quickstart's photos or from captioned tiles. `annotator.py` says how captions come
about, `places.py` where their tiles lie. All are measured on the quickstart's test tiles and chips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.captions.annotator import quality, write_captions
from experiments.captions.places import tiles_to_caption
from experiments.study import CLIP, Cell, by_settings, run_cells
from grafalign.captions import CaptionSet
from grafalign.captions.sources.tiles import read_tiles
from grafalign.captions.write_set import SetWriter
from grafalign.encoders import embed_texts, load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings

HERE = Path(__file__).resolve().parent
SIZES = (100, 300, 1000, 3000, 10_000)
TRAIN = {'steps': 500, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20}
"""The quickstart's."""
PHOTO_RUNS = (('image', 0.3), ('image', 0.07), ('patch', 0.4))
TAU = 0.07
"""Temperature for captions: the best in world 7, which appears in no result, though it matters little there."""
TAUS = (0.03, 0.07, 0.15, 0.3)
TUNING_WORLD, TUNING_SIZE = 7, 3000


def caption_set(world: Path, seed: int, number: int) -> Path:
    """The first tiles of a world's random places with their captions, and its text bank."""
    store, shares = tiles_to_caption(world, seed)
    texts = [c.text for c in write_captions(shares[:number], seed)]
    return set_of_tiles(store, texts, world / f'captions_{number}', seed)


def set_of_tiles(store: PairStore, texts: Sequence[str], out: Path, seed: int) -> Path:
    """The first tiles of a store with a text each, as a caption set with its text bank; one that is there stays."""
    if (out / 'bank' / 'bank.json').is_file():
        return out
    with SetWriter(out) as writer:
        for tile, text in zip(read_tiles(store), texts, strict=False):
            image = writer.add_image(image_id=tile.image_id, **tile.metadata)
            writer.add_caption(image=image, image_id=tile.image_id, text=text, kind='human')
        writer.finish({'captions': len(texts), 'seed': seed}, None, (str(store.path), store.digest))
    embed_texts(CaptionSet(out), load_clip(CLIP))
    return out


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train on photos or on captions, as the cell says."""
    if cell.values['source'] == 'captions':
        captions = caption_set(world, cell.world, cell.values['number'])
        values = settings.model_dump(mode='json') | {'store': None, 'data': str(captions)}
        settings = TrainSettings.model_validate(values)
    return by_settings(cell, world, settings)


def photo_cell(worlds: Path, seed: int, level: str, tau: float) -> Cell:
    """A run on photos as in the quickstart; notes how many photos and tiles it learns from."""
    store = PairStore(worlds / str(seed) / 'pairs')
    pairs = store.pairs[np.isin(store.pairs['tile'], store.tiles_of('train'))]
    pairs = pairs[load_bank(store).valid[pairs['photo']]]
    learns_from = {'photos': int(pairs['photo'].nunique()), 'tiles': int(pairs['tile'].nunique())}
    values = {'source': 'photos', 'level': level, 'tau': tau}
    return Cell(seed, values, {**TRAIN, 'level': level, 'tau': tau}, options=learns_from)


def caption_cell(worlds: Path, seed: int, number: int, tau: float) -> Cell:
    """A run on captions; notes what is missing and wrong in them.

    A batch holds a tile once, so 100 captions are learned in batches of 100.
    """
    shares = tiles_to_caption(worlds / str(seed), seed)[1][:number]
    metadata = quality(write_captions(shares, seed), shares)
    values = {'source': 'captions', 'number': number, 'tau': tau}
    batch = min(number, TRAIN['batch_tiles'])
    return Cell(seed, values, {**TRAIN, 'level': 'image', 'tau': tau, 'batch_tiles': batch}, options=metadata)


def main() -> None:
    """Run all cells, or those that the temperature is chosen by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--runs', type=Path, default=Path('runs/captions'))
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'curve')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--abreast', type=int, default=2, help='cells at a time')
    parser.add_argument('--tune', action='store_true', help='compare temperatures in world 7 instead')
    args = parser.parse_args()
    if args.tune:
        caption_set(args.worlds / str(TUNING_WORLD), TUNING_WORLD, TUNING_SIZE)  # before cells that share it
        cells = [caption_cell(args.worlds, TUNING_WORLD, TUNING_SIZE, tau) for tau in TAUS]
        run_cells(cells, args.worlds, args.results / 'tuning', args.runs / 'tuning', trainer, args.abreast)
        return
    cells = []
    for seed in args.seeds:
        cells += [photo_cell(args.worlds, seed, *kind) for kind in PHOTO_RUNS]
        cells += [caption_cell(args.worlds, seed, number, TAU) for number in SIZES]
    run_cells(cells, args.worlds, args.results, args.runs, trainer, args.abreast)


if __name__ == '__main__':
    main()
