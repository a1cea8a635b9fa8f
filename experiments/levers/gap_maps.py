"""The same question for maps: what lies between patches that learn from photos and patches that learn from labels?

    python -m experiments.levers.gap_maps --worlds runs/worlds
    python -m experiments.levers.gap_maps --table

The same encoder from the same weights, 500 steps of 128 tiles of GRAFT's plan at patch level. Labels are learned by the
trainer of the bound, photos by that of the product. What is said of a patch, from the truest to what a photo says:

    pixels     the share of every class in every patch: the quickstart's bound
    in view    the same, but patches count as much as photos see of them
    lies       the class that each photo mainly shows, on those patches of its view that hold it
    shown      the class that each photo mainly shows, all over its view
    said       the class that CLIP gives to each photo, all over its view
    photos     the photos' embeddings, all over their views
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from experiments.levers.gap import STORES, TRAIN, learn_labels, shown_classes
from experiments.study import (
    CLIP,
    Cell,
    as_text,
    by_settings,
    chosen,
    load_results,
    mean_over_worlds,
    measure_vectors,
    paired_difference,
    run_cells,
    study_parser,
)
from grafalign.benchmarks.sandbox.bound import store_tiles
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.sandbox.supervised import patch_shares
from grafalign.encoders import FrozenClip, SatelliteEncoder, load_bank, load_clip
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from grafalign.training.placement import PlacementSettings, Where, place
from grafalign.training.sources import store_source
from grafalign.zeroshot import class_scores, class_vectors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'gap_maps'
PLACEMENT = PlacementSettings(kind='view_cone')
ARMS = ('pixels', 'in view', 'lies', 'shown', 'said', 'photos')
Floats, Numbers = npt.NDArray[np.float32], npt.NDArray[np.int64]


def views(
    store: PairStore, clip: FrozenClip, patch_px: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Of every training pair: position of its tile among the training tiles, its photo, and its weights, [P, h, w]."""
    source = store_source(store, load_bank(store, clip=clip), [0], PLACEMENT.unknown_accuracy_m)
    row, col = torch.tensor(source.position).unbind(1)
    others = (torch.tensor(v) for v in (source.sigma_px, source.heading, source.field_of_view))
    where = Where(row, col, *others, torch.full_like(row, PLACEMENT.reach_m / store.sensor.gsd_m))
    weights = place(where, PLACEMENT, store.sensor.size_px // patch_px, patch_px).patches.numpy()
    tile = np.repeat(np.searchsorted(store.tiles_of('train'), source.rows), source.last - source.first)
    return tile, source.candidate, weights


def patch_targets(learns: str, world: Path, store: PairStore, clip: FrozenClip, patch_px: int) -> Floats:
    """Weight of every class in every patch of the training tiles, [N, K, h, w]; all zero where nothing is said.

    Worked example: a photo that shows a pond and puts 0.7 and 0.3 on two patches, of which the first holds a pond on
    half of its pixels, says of 'shown' pond 0.7 and pond 0.3, and of 'lies' pond 1 and nothing.
    """
    truth = SandboxTruth(world / 'sandbox', store)
    shares = patch_shares(store_tiles(store, truth).labels, len(truth.classes), patch_px)
    if learns == 'pixels':
        return shares
    tile, photo, weights = views(store, clip, patch_px)
    if learns == 'in view':
        total = np.zeros((len(shares), *weights.shape[1:]), dtype=np.float32)
        np.add.at(total, tile, weights)
        return shares * total[:, None]
    if learns == 'said':
        vectors = np.asarray(load_bank(store, clip=clip).embeddings, dtype=np.float32)
        shown = class_scores(vectors, class_vectors(clip, truth.classes)).argmax(1)[photo]
    else:
        shown = shown_classes(world, store, truth)[photo]
    outdoors = shown >= 0
    tile, weights, shown = tile[outdoors], weights[outdoors], shown[outdoors]
    if learns == 'lies':
        weights = weights * shares[tile, shown]
        weights = weights / np.maximum(weights.sum((1, 2), keepdims=True), 1e-3)
    targets = np.zeros_like(shares)
    np.add.at(targets, (tile, shown), weights)
    return targets


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> ZeroShotModel:
    """Train on photos or on labels, as the cell says."""
    clip, store = load_clip(CLIP), PairStore(world / cell.store)
    truth = SandboxTruth(world / 'sandbox', store)
    if cell.values['learns'] == 'photos':
        model = by_settings(cell, world, settings)
        every = range(len(store.sensor.bands))
        return ZeroShotModel(model.encoder, model.preprocess, class_vectors(clip, truth.classes), every)
    patch_px = SatelliteEncoder(clip, store.sensor.bands, store.sensor.size_px).patch_px
    targets = patch_targets(str(cell.values['learns']), world, store, clip, patch_px)
    return learn_labels(clip, world, store, store_tiles(store, truth), targets, settings)


def cell_of(seed: int, learns: str, tiles: str = 'graft') -> Cell:
    """A cell of the study."""
    train = {**TRAIN, 'level': 'patch', 'tau': 0.4, 'placement': PLACEMENT.model_dump()}
    return Cell(seed, {'level': 'patch', 'tiles': tiles, 'learns': learns}, train, STORES[tiles])


def table() -> str:
    """A row an arm: mIoU, its share of the bound, and beside photos."""
    outcomes = load_results(RESULTS)
    base = chosen(outcomes, learns='photos', tiles='graft')
    if not base:
        raise SystemExit(f'{RESULTS} holds no results; run the study first.')
    bound = mean_over_worlds(chosen(outcomes, learns='pixels', tiles='graft'), 'miou')[0]
    lines = [
        '# What the distance between photos and labels is made of, in maps',
        '',
        f'mIoU over test chips, means over worlds {", ".join(str(o["world"]) for o in base)} with 95 % intervals '
        'over blocks of land; made by `gap_maps.py`.',
        '',
        '| learned from | mIoU | of the bound | beside photos |',
        '|---|---|---|---|',
    ]
    for learns in ARMS:
        results = chosen(outcomes, learns=learns, tiles='graft')
        value = mean_over_worlds(results, 'miou')
        beside = '' if results == base else as_text(paired_difference(results, base, 'miou'), '+')
        lines.append(f'| {learns} | {as_text(value)} | {value[0] / bound:.2f} | {beside} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run what is not done yet, or make the table."""
    args = study_parser(__doc__, 'gap_maps').parse_args()
    if not args.table:
        todo = [cell_of(seed, learns) for learns in ARMS for seed in args.seeds]
        run_cells(todo, args.worlds, RESULTS, args.runs, trainer, args.abreast, measure_vectors)
    (HERE / 'results' / 'gap_maps.md').write_text(table())


if __name__ == '__main__':
    main()
