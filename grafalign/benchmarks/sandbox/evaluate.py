"""Zero-shot evaluation in a sandbox world: every model against the frozen CLIP and a supervised bound.

Classification (top-1 accuracy), dense segmentation (mIoU over chips) and text -> tile retrieval through FAISS (mAP@20),
all on blocks that no training saw, each with a 95 % bootstrap interval over the store's blocks of land (over tiles or
chips where there are fewer than twenty).
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grafalign import console, engine
from grafalign.benchmarks.sandbox.bound import Bound, BoundSettings, bounds_of, load_bound, train_bound
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.statistics import (
    Mean,
    MeanAp,
    MeanIou,
    Resampling,
    Statistic,
    confusion,
    estimates,
    ranking,
    resampling,
)
from grafalign.config import load_settings
from grafalign.encoders import (
    FrozenClip,
    SatelliteEncoder,
    TilePreprocessing,
    load_bank,
    load_clip,
    select_bands,
)
from grafalign.errors import InputError, StaleError
from grafalign.estimate import Estimate
from grafalign.labels import VOID
from grafalign.report import ClassificationScores, LabelledSets, RetrievalScores, SegmentationScores
from grafalign.retrieval import nearest
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite
from grafalign.training.rows import training_rows_digest
from grafalign.zeroshot import class_scores, class_vectors, photo_prior, segment

CHIP_PX = 128
PRIOR_STRENGTH = 0.5
"""Strength of the photo prior in the rows that carry it; chosen for maps in world 7, which appears in no result."""
K = 20
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SetSizes:
    """How many labelled tiles and chips are cut out of the world."""

    train_per_class: int = 150
    test_per_class: int = 40
    chips: int = 60


@dataclass
class Evaluation:
    """Scores of runs in a sandbox world, and what its report is drawn from."""

    sets: LabelledSets
    classes: list[str]
    test: LabelledTiles
    chips: LabelledTiles
    guesses: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Model name to the class of every test tile."""
    maps: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Model name to the class of every pixel of the chips."""
    top: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Model name to the best test tiles of every class, [K, 20]."""
    classification: dict[str, ClassificationScores] = field(default_factory=dict)
    segmentation: dict[str, SegmentationScores] = field(default_factory=dict)
    retrieval: dict[str, RetrievalScores] = field(default_factory=dict)


@dataclass(frozen=True)
class ZeroShotModel:
    """An encoder, how stored pixels become its input, and the vectors [K, D] that stand for classes."""

    encoder: SatelliteEncoder
    preprocess: TilePreprocessing
    classes: Floats
    bands: Sequence[int]
    """Bands of the tiles that it takes, by position."""


def evaluate_sandbox(
    sandbox: Path,
    store_path: Path,
    runs: Mapping[str, Path],
    sizes: SetSizes | None = None,
    seed: int = 0,
    kept: Path | None = None,
) -> Evaluation:
    """Evaluate finished runs on the held-out blocks of a sandbox world.

    Args:
        sandbox: the world.
        store_path: the pair store the runs were trained on.
        runs: names to run folders; the first of each level sets CLIP, length and rate of the supervised bound.
        sizes: how many labelled tiles and chips.
        seed: seed of the labelled sets, the bound and the bootstrap.
        kept: folder of bounds, where they are kept; those that are there are not trained again.

    Raises:
        GrafalignError: no run was given, or a run does not belong to the store.
    """
    sizes = sizes or SetSizes()
    if not runs:
        raise InputError('There is nothing to evaluate; give at least one run.')
    store = PairStore(store_path)
    truth = SandboxTruth(sandbox, store)
    settings = {name: load_settings(path / 'config.yaml', TrainSettings) for name, path in runs.items()}
    clip = load_clip(next(iter(settings.values())).clip)
    models: dict[str, SatelliteModel] = {}
    bank = load_bank(store, clip=clip)
    rows_digest = training_rows_digest(store, bank)
    for name, path in runs.items():
        models[name] = load_satellite(path, clip)
        run = models[name].marker
        # runs of before there was a digest of the rows know that of the whole store
        if run.rows_digest != rows_digest if run.rows_digest else run.store_digest != store.digest:
            raise StaleError(
                f'{path} was trained on other tiles, pairs or photos than are in {store_path} (now); give the store as '
                'it was then, or train again.'
            )
    text = class_vectors(clip, truth.classes)
    console.log('cutting labelled tiles and chips')
    test = truth.tiles('test', sizes.test_per_class, seed)
    chips = truth.chips('test', sizes.chips, CHIP_PX, seed)
    steps = {name: model.marker.steps for name, model in models.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if kept is None else kept
        bound_settings = bounds_of(settings, steps, sandbox, store_path, folder, sizes.train_per_class, seed)
        bounds = _supervised_bounds(bound_settings, clip)

    preprocess = next(iter(models.values())).preprocess
    sensor = store.sensor
    preprocess, every = TilePreprocessing(sensor, clip), range(len(sensor.bands))
    frozen = ZeroShotModel(SatelliteEncoder(clip, sensor.bands, sensor.size_px).eval(), preprocess, text, every)
    ready = {
        n: ZeroShotModel(m.encoder, m.preprocess, text, select_bands(sensor.bands, m.sensor.bands, sensor.name))
        for n, m in models.items()
    }
    images = {'frozen_clip': frozen} | {n: m for n, m in ready.items() if settings[n].level != 'patch'}
    patches = {'frozen_clip': frozen} | {n: m for n, m in ready.items() if settings[n].level != 'image'}
    if 'image' in bounds:
        images['supervised'] = ZeroShotModel(bounds['image'][0], preprocess, bounds['image'][1], every)
    if 'patch' in bounds:
        patches['supervised'] = ZeroShotModel(bounds['patch'][0], preprocess, bounds['patch'][1], every)
    block_km = truth.recipe.split.block_km
    tile_draws = resampling(len(test.labels), test.lonlat, seed=seed, block_km=block_km)
    chip_draws = resampling(len(chips.labels), chips.lonlat, seed=seed, block_km=block_km)
    sets = LabelledSets(
        test_tiles=len(test.labels),
        test_tiles_per_class=np.bincount(test.labels, minlength=len(truth.classes)).tolist(),
        chips=len(chips.labels),
        chip_px=CHIP_PX,
        classes=truth.classes,
        chance=1 / len(truth.classes),
        tile_unit=tile_draws.unit.replace('images', 'tiles'),
        chip_unit=chip_draws.unit.replace('images', 'chips'),
    )
    done = Evaluation(sets, truth.classes, test, chips)
    photos = np.asarray(bank.embeddings[bank.valid])
    prior = {n: photo_prior(photos, text, m.marker.tau, PRIOR_STRENGTH) for n, m in models.items()}
    _classify(images, done, prior, tile_draws)
    _segment(patches, done, prior, chip_draws)
    _retrieve(images, done, tile_draws)
    return done


def _supervised_bounds(bound_settings: Sequence[BoundSettings], clip: FrozenClip) -> dict[str, Bound]:
    """The bound of each level; those that are not there yet are trained side by side, each with its share of cores."""
    missing = [settings for settings in bound_settings if load_bound(settings, clip) is None]
    if missing:
        console.log(f'training the supervised bound ({", ".join(settings.level for settings in missing)})')
        threads = max(1, engine.default_workers() // len(missing))
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(len(missing), context, torch.set_num_threads, (threads,)) as pool:
            for _ in pool.map(train_bound, missing):
                pass
    bounds = {settings.level: load_bound(settings, clip) for settings in bound_settings}
    return {level: bound for level, bound in bounds.items() if bound is not None}


def _inputs(model: ZeroShotModel, tiles: LabelledTiles, rows: slice) -> torch.Tensor:
    taken = (torch.from_numpy(v[rows][:, model.bands]) for v in (tiles.pixels, tiles.scale, tiles.offset))
    out: torch.Tensor = model.preprocess(*taken)
    return out


def embed_tiles(model: ZeroShotModel, tiles: LabelledTiles) -> Floats:
    """Image embeddings of labelled tiles, [N, D]."""
    with torch.no_grad():
        parts = [
            model.encoder(_inputs(model, tiles, slice(i, i + 256))).image for i in range(0, len(tiles.labels), 256)
        ]
    return torch.cat(parts).numpy()


def _variants(name: str, prior: Mapping[str, Floats]) -> dict[str, Floats | None]:
    """A model as it is, and for one that learned from photos also with the photo prior."""
    return {name: None} | ({f'{name}_with_prior': prior[name]} if name in prior else {})


def _classify(
    models: Mapping[str, ZeroShotModel], done: Evaluation, prior: Mapping[str, Floats], draws: Resampling
) -> None:
    """Accuracy on the test tiles, which are balanced by hand: the prior is wrong there and reported all the same."""
    labels = done.test.labels
    for name, model in models.items():
        vectors = embed_tiles(model, done.test)
        for variant, bias in _variants(name, prior).items():
            guess = class_scores(vectors, model.classes, bias).argmax(1)
            done.guesses[variant] = guess
            done.classification[variant] = ClassificationScores(accuracy=accuracy(guess == labels, draws))


def _segment(
    models: Mapping[str, ZeroShotModel], done: Evaluation, prior: Mapping[str, Floats], draws: Resampling
) -> None:
    """Mean IoU on chips of natural land."""
    for name, model in models.items():
        variants = _variants(name, prior)
        guesses = segment_chips(model, done.chips, list(variants.values()), f'segmenting with {name}')
        for variant, guess in zip(variants, guesses, strict=True):
            done.maps[variant] = guess
            counts = chip_counts(done.chips.labels, guess, len(done.classes))
            done.segmentation[variant] = map_quality(counts, done.classes, draws)


def segment_chips(
    model: ZeroShotModel, chips: LabelledTiles, biases: Sequence[Floats | None] = (None,), label: str = 'segmenting'
) -> list[npt.NDArray[np.int64]]:
    """Class of every pixel of chips [N, S, S], once for each bias [K] that is added to the class scores."""
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in biases]
    for start in console.track(range(0, len(chips.labels), 4), label, len(chips.labels), step=4):
        scores = segment(model.encoder, _inputs(model, chips, slice(start, start + 4)), model.classes).numpy()
        for part, bias in zip(parts, biases, strict=True):
            part.append((scores if bias is None else scores + bias[:, None, None]).argmax(1))
    return [np.concatenate(part) for part in parts]


def chip_counts(truth: npt.NDArray[np.int64], guess: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Pixels by truth and guess of every chip, [N, K, K], of class maps [N, S, S]."""
    return np.stack([confusion(t, g, classes, VOID) for t, g in zip(truth, guess, strict=True)])


def map_quality(counts: npt.NDArray[np.int64], classes: list[str], draws: Resampling) -> SegmentationScores:
    """Mean IoU with its interval, pixel accuracy, and the IoU of every class, of `chip_counts`."""
    whole = counts.sum(0)
    iou = np.diag(whole) / np.maximum(whole.sum(0) + whole.sum(1) - np.diag(whole), 1)
    return SegmentationScores(
        miou=_estimate(MeanIou(counts), draws),
        pixel_accuracy=float(np.diag(whole).sum() / whole.sum()),
        iou={c: round(float(v), 4) for c, v in zip(classes, iou, strict=True)},
    )


def _retrieve(models: Mapping[str, ZeroShotModel], done: Evaluation, draws: Resampling) -> None:
    relevant = done.test.labels == np.arange(len(done.classes))[:, None]
    for name, model in models.items():
        vectors = embed_tiles(model, done.test)
        _, done.top[name] = nearest(model.classes, vectors, K)
        score = MeanAp(ranking(vectors @ model.classes.T), relevant, K)
        done.retrieval[name] = RetrievalScores(map_at_20=_estimate(score, draws))


def accuracy(right: npt.NDArray[np.bool_], draws: Resampling) -> Estimate:
    """Share of what is right, [N], with its interval."""
    return _estimate(Mean(right.astype(np.float64), np.ones(len(right))), draws)


def _estimate(statistic: Statistic, draws: Resampling) -> Estimate:
    return estimates({'score': statistic}, draws)['score']
