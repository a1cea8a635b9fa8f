"""What the distance between photos and labels is made of: one thing changed at a time.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2
    python -m experiments.levers.gap --worlds runs/worlds
    python -m experiments.levers.gap --table

The same encoder from the same weights, 500 steps of 128 tiles at image level, learns from photos (the trainer of the
product) or from labels (the trainer of the bound, learned class vectors), on tiles of one of three kinds:

    graft      those of GRAFT's plan: a photo that no tile holds yet seeds one
    dense      those of `plan: {core: 0.2, reach: 0.5, ahead_m: 25}` from the same photos
    bound      tiles of all classes alike, also where nobody photographs: what the quickstart's bound is trained on

and from what is said of a tile, from the truest to what a photo says:

    clear      one label by the rule of the test: its object, or else the class that fills most of it
    shares     the share of every class in it
    shown      the class that each of its photos mainly shows, by the truth of the renderer; indoor photos left out
    said       the class that CLIP gives to each of its photos
    photos     the photos' embeddings
    clean      the embeddings of other photos, each clearly of a class drawn from the shares of its tile
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional

from experiments.captions.places import class_shares
from experiments.study import (
    CLIP,
    GRAFT,
    Cell,
    as_text,
    by_settings,
    chosen,
    keep_log,
    load_results,
    mean_over_worlds,
    measure_vectors,
    paired_difference,
    run_cells,
    store_recipe,
    study_parser,
    with_plan,
)
from grafalign.benchmarks.sandbox.bound import store_tiles
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.sandbox.supervised import LabelSteps, SupervisedTask
from grafalign.encoders import FrozenClip, SatelliteEncoder, TilePreprocessing, embed, load_bank, load_clip
from grafalign.pairing import pair
from grafalign.quickstart import quickstart_experiment
from grafalign.sandbox.world import SandboxSettings, make_sandbox
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.loop import fit
from grafalign.zeroshot import class_scores, class_vectors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'gap'
TRAIN = {'steps': 500, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20, 'level': 'image', 'tau': 0.3}
"""The quickstart's."""
DENSE = {'core': 0.2, 'reach': 0.5, 'ahead_m': 25}
STORES = {'graft': 'pairs', 'dense': 'dense', 'graft, twice the photos': 'twice/pairs'}
PER_CLASS, OBJECT_SHARE = 150, 0.1
"""Tiles of a class in the bound, as in the quickstart; least share of a tile at which an object names it."""
ARMS = (
    ('bound', 'clear', 'classes alike'),
    ('bound, as few tiles', 'clear', 'classes alike'),
    ('graft', 'clear', 'classes alike'),
    ('graft', 'shares', 'tiles alike'),
    ('graft', 'shown', 'tiles alike'),
    ('graft', 'said', 'tiles alike'),
    ('graft', 'said', 'classes alike'),
    ('graft', 'clean', 'tiles alike'),
    ('graft', 'photos', 'tiles alike'),
    ('graft, twice the steps', 'photos', 'tiles alike'),
    ('graft, twice the photos', 'photos', 'tiles alike'),
    ('dense', 'clear', 'classes alike'),
    ('dense', 'shown', 'tiles alike'),
    ('dense', 'said', 'tiles alike'),
    ('dense', 'photos', 'tiles alike'),
)
Shares = npt.NDArray[np.float32]


def dense_store(world: Path) -> Path:
    """The world's photos on more tiles, with their bank; made once."""
    out = world / 'dense'
    pair(with_plan(store_recipe(world), **DENSE), out)
    embed(PairStore(out), load_clip(CLIP))
    return out


def twice_the_photos(world: Path, seed: int) -> Path:
    """The same land with twice the photographers, as GRAFT's plan pairs them, with its bank; made once."""
    out = world / 'twice'
    settings, experiment = quickstart_experiment(out, seed, 2 * SandboxSettings().photos)
    make_sandbox(out / 'sandbox', settings)
    pair(with_plan(experiment.recipe, **GRAFT), out / 'pairs')
    embed(PairStore(out / 'pairs'), load_clip(CLIP))
    return out / 'pairs'


def clean_bank(world: Path, seed: int) -> Path:
    """A bank in which every photo is one of what lies in its (first) tile."""
    out = world / 'clean_bank'
    if (out / 'embeddings.npy').is_file():
        return out
    store, clip = PairStore(world / 'pairs'), load_clip(CLIP)
    truth = SandboxTruth(world / 'sandbox', store)
    bank, shown = load_bank(store, clip=clip), shown_classes(world, store, truth)
    rng = np.random.default_rng((seed, 61))
    vectors = np.array(bank.embeddings, dtype=np.float32)
    said = class_scores(vectors, class_vectors(clip, truth.classes)).argmax(1)
    clear = [np.flatnonzero((said == number) & (shown == number)) for number in range(len(truth.classes))]
    rows = store.tiles_of('train')
    shares = class_shares(store_tiles(store, truth).labels, len(truth.classes))
    first = store.pairs.drop_duplicates('photo')
    at = np.searchsorted(rows, first['tile'])
    mine = (at < len(rows)) & (rows[np.minimum(at, len(rows) - 1)] == first['tile'].to_numpy())
    for photo, tile in zip(first['photo'].to_numpy()[mine], at[mine], strict=True):
        chances = shares[tile] * np.array([len(c) > 0 for c in clear])
        if chances.sum():
            vectors[photo] = bank.embeddings[rng.choice(clear[rng.choice(len(clear), p=chances / chances.sum())])]
    shutil.copytree(world / 'pairs' / 'bank', out, ignore=shutil.ignore_patterns('embeddings.npy'), dirs_exist_ok=True)
    np.save(out / 'part.npy', vectors.astype(bank.embeddings.dtype))
    (out / 'part.npy').replace(out / 'embeddings.npy')
    return out


def shown_classes(world: Path, store: PairStore, truth: SandboxTruth) -> npt.NDArray[np.int64]:
    """Class that each photo of a store mainly shows, -1 for those taken indoors and for junk, [P]."""
    photos = pd.read_parquet(world / 'sandbox' / 'truth' / 'photos.parquet').set_index('photo_id')
    photos = photos.loc[store.photos['photo_id'].to_numpy()]
    number = photos['main_class'].map({name: i for i, name in enumerate(truth.classes)}).fillna(-1)
    return np.where(photos['kind'] == 'outdoor', number, -1).astype(np.int64)


def of_photos(world: Path, store: PairStore, truth: SandboxTruth, clip: FrozenClip, said: bool) -> Shares:
    """Shares of classes among the photos of every training tile, [N, K]; all zero where no photo has one."""
    bank = load_bank(store, clip=clip)
    rows, pairs = store.tiles_of('train'), store.pairs
    pairs = pairs[bank.valid[pairs['photo']] & np.isin(pairs['tile'], rows)]
    classes = shown_classes(world, store, truth)
    if said:
        vectors = class_vectors(clip, truth.classes)
        classes = class_scores(np.asarray(bank.embeddings, dtype=np.float32), vectors).argmax(1)
    mine = classes[pairs['photo']]
    counts = np.zeros((len(rows), len(truth.classes)), dtype=np.float32)
    np.add.at(counts, (np.searchsorted(rows, pairs['tile'])[mine >= 0], mine[mine >= 0]), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def clear_class(shares: Shares, objects: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The object of a tile, or else the class that fills at least 45 % of it, or else -1, [N].

    Worked example: of shares of (forest 0.6, town 0.28, stadium 0.12) the stadium, an object, is the class.
    """
    things = np.zeros_like(shares)
    things[:, objects] = shares[:, objects]
    areas = np.where(shares.max(1) >= 0.45, shares.argmax(1), -1)
    return np.where(things.max(1) >= OBJECT_SHARE, things.argmax(1), areas)


def labelled_tiles(cell: Cell, world: Path, clip: FrozenClip) -> tuple[LabelledTiles, Shares]:
    """What an arm with labels learns from: tiles whose `labels` are drawn alike, and targets, [N, K]."""
    kind, how = str(cell.values['tiles']), str(cell.values['learns'])
    store = PairStore(world / cell.store)
    truth = SandboxTruth(world / 'sandbox', store)
    count = len(truth.classes)
    if kind.startswith('bound'):
        tiles = truth.tiles('train', PER_CLASS, cell.world)
        if kind != 'bound':
            number = len(store.tiles_of('train'))
            rows = np.random.default_rng((cell.world, 67)).permutation(len(tiles.labels))[:number]
            tiles = LabelledTiles(*(values[rows] for values in vars(tiles).values()))
        return tiles, np.eye(count, dtype=np.float32)[tiles.labels]
    tiles = store_tiles(store, truth)
    shares = class_shares(tiles.labels, count)
    if how == 'clear':
        label = clear_class(shares, np.unique(truth.object_class))
        targets = np.where(label[:, None] >= 0, np.eye(count, dtype=np.float32)[label], 0).astype(np.float32)
    else:
        targets = shares if how == 'shares' else of_photos(world, store, truth, clip, how == 'said')
    drawn = targets.argmax(1) if cell.values['drawn'] == 'classes alike' else np.zeros(len(targets), dtype=np.int64)
    tiles, known = replace(tiles, labels=drawn), targets.sum(1) > 0
    return LabelledTiles(*(values[known] for values in vars(tiles).values())), targets[known]


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> ZeroShotModel:
    """Train on photos or on labels, as the cell says."""
    clip = load_clip(CLIP)
    if cell.values['learns'] in ('photos', 'clean'):
        if cell.values['learns'] == 'clean':
            settings = settings.model_copy(update={'bank': clean_bank(world, cell.world)})
        model = by_settings(cell, world, settings)
        names = SandboxTruth(world / 'sandbox', PairStore(world / 'pairs')).classes
        every = range(len(model.sensor.bands))
        return ZeroShotModel(model.encoder, model.preprocess, class_vectors(clip, names), every)
    tiles, targets = labelled_tiles(cell, world, clip)
    return learn_labels(clip, world, PairStore(world / cell.store), tiles, targets, settings)


def learn_labels(
    clip: FrozenClip, world: Path, store: PairStore, tiles: LabelledTiles, targets: Shares, settings: TrainSettings
) -> ZeroShotModel:
    """Train an encoder with learned class vectors, as the quickstart's bound is.

    Args:
        clip: the CLIP to start from.
        world: whose classes they are.
        store: whose sensor.
        tiles: what is looked at.
        targets: weights of the classes, [N, K] of tiles or [N, K, h, w] of patches.
        settings: of the training.
    """
    torch.manual_seed(settings.seed)
    sensor = store.sensor
    names = SandboxTruth(world / 'sandbox', store).classes
    encoder, preprocess = SatelliteEncoder(clip, sensor.bands, sensor.size_px), TilePreprocessing(sensor, clip)
    task = SupervisedTask(encoder, preprocess, class_vectors(clip, names), settings.augment)
    steps = LabelSteps(tiles, targets, settings.batch_tiles, settings.seed, settings.augment)
    keep_log(
        fit(task, steps, settings.steps or 0, settings.peak_lr, settings, make_accelerator(settings.precision)),
        settings,
    )
    vectors = functional.normalize(task.vectors.detach(), dim=-1).numpy()
    return ZeroShotModel(encoder.eval(), preprocess, vectors, range(len(sensor.bands)))


def cells(worlds: Path, seed: int) -> list[Cell]:
    """All arms of a world; makes the stores that are not there."""
    world = worlds / str(seed)
    dense_store(world)
    twice_the_photos(world, seed)
    clean_bank(world, seed)
    made = []
    for tiles, learns, drawn in ARMS:
        cell = cell_of(seed, tiles, learns, drawn)
        store = PairStore(world / cell.store)
        options = {'tiles_with_photos': len(store.tiles_of('train')), 'pairs': len(store.pairs)}
        made.append(replace(cell, options=options))
    return made


def cell_of(seed: int, tiles: str, learns: str, drawn: str) -> Cell:
    """A cell of the study."""
    values = {'tiles': tiles, 'learns': learns, 'drawn': drawn}
    steps = {'steps': 2 * int(str(TRAIN['steps']))} if 'steps' in tiles else {}
    return Cell(seed, values, {**TRAIN, **steps}, STORES.get(tiles, 'pairs'))


def table() -> str:
    """A row an arm: accuracy, and beside the row of photos on GRAFT's tiles."""
    outcomes = load_results(RESULTS)
    base = chosen(outcomes, tiles='graft', learns='photos')
    if not base:
        raise SystemExit(f'{RESULTS} holds no results; run the study first.')
    bound = mean_over_worlds(chosen(outcomes, tiles='bound'), 'accuracy')[0]
    lines = [
        '# What the distance between photos and labels is made of',
        '',
        f'Accuracy over test tiles, means over worlds {", ".join(str(o["world"]) for o in base)} with 95 % intervals '
        'over blocks of land; made by `gap.py`.',
        '',
        "| tiles | how many | learned from | drawn | accuracy | of the bound | beside photos on GRAFT's tiles |",
        '|---|---|---|---|---|---|---|',
    ]
    for tiles, learns, drawn in ARMS:
        results = chosen(outcomes, tiles=tiles, learns=learns, drawn=drawn)
        if not results:
            continue
        value = mean_over_worlds(results, 'accuracy')
        many = '' if tiles == 'bound' else f'{np.mean([o["options"]["tiles_with_photos"] for o in results]):,.0f}'
        beside = '' if results == base else as_text(paired_difference(results, base, 'accuracy'), '+')
        lines.append(
            f'| {tiles} | {many} | {learns} | {drawn} | {as_text(value)} | {value[0] / bound:.2f} | {beside} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run what is not done yet, or make the table."""
    args = study_parser(__doc__, 'gap').parse_args()
    if not args.table:
        todo = [cell for seed in args.seeds for cell in cells(args.worlds, seed)]
        run_cells(todo, args.worlds, RESULTS, args.runs, trainer, args.abreast, measure_vectors)
    text = table()
    (HERE / 'results' / 'gap.md').write_text(text)


if __name__ == '__main__':
    main()
