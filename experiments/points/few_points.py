"""What a few points of each class are worth to words, in sandbox worlds.

    python -m experiments.points.few_points --data runs/map_worlds --seeds 0 1 2   # after experiments.maps.worlds
    python -m experiments.points.few_points --table                                # results/table.md from the records

Of each world the fields that `experiments.maps.worlds` made: patches of the patch-level run, windows of the image-level
run. In each of 20 draws half of the blocks of land (2 km) give the points, as many of each class as there are up to the
number, and pixels of the other half are classified: by the words, by the words that the points moved
(`grafalign tune-words`), and by two linear heads that know no words: multinomial logistic regression with a penalty,
and a linear discriminant with the same covariance. The penalty was chosen in world 7. mIoU over the 24 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experiments.maps.worlds import truth_of
from experiments.world_records import measure_worlds
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.statistics import MeanIou, confusion
from grafalign.console import log
from grafalign.encoders.lattice import to_pixels
from grafalign.fields import open_field
from grafalign.labels import VOID
from grafalign.maps.tune import tune
from grafalign.models import load_model
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.store import PairStore

RESULTS = Path(__file__).parent / 'results'
FIELDS = ('grafalign_patch_patches', 'grafalign_image_windows')
COUNTS = (1, 3, 10, 30)
DRAWS = 20
PIXELS = 200_000
TESTED = 40_000
PENALTY = 0.03
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Land:
    """Pixels of a scene, the cells of its field, and the words."""

    pixels: Floats
    """Embeddings of a sample of pixels with a known class, [P, D]."""
    labels: Ints
    """[P]"""
    block: Ints
    """Block of land of each, [P]."""
    cells: Floats
    """Embeddings of a sample of the field, [N, D]."""
    words: Floats
    """[K, D]"""


def land_of(world: Path, name: str) -> Land:
    """What one field of a world shows."""
    field = open_field(world / 'fields' / name)
    model = load_model(field.marker.model)
    truth = truth_of(field, SandboxTruth(world / 'sandbox', PairStore(world / 'pairs')))
    known = np.flatnonzero(truth.labels.ravel() != VOID)
    chosen = np.sort(np.random.default_rng(0).choice(known, min(PIXELS, len(known)), replace=False))
    embeddings = torch.from_numpy(field.embeddings(slice(0, field.shape[0])))
    there = (embeddings != 0).any(-1)
    columns = [
        to_pixels(part.permute(2, 0, 1), there, field.plan.cell)[:, : field.plan.height, : field.plan.width]
        .reshape(part.shape[-1], -1)[:, torch.from_numpy(chosen)]
        .numpy()
        for part in embeddings.split(8, dim=-1)
    ]
    words = model.embed_texts([f'a photo of {name}.' for name in CLASS_NAMES])
    pixels = np.concatenate(columns).T.astype(float)
    return Land(
        pixels,
        truth.labels.ravel()[chosen],
        truth.block.ravel()[chosen],
        field.sample().astype(float),
        words.astype(float),
    )


def logistic_head(points: Floats, labels: Ints, classes: int) -> Callable[[Floats], Ints]:
    """Multinomial logistic regression without words."""
    middle, spread = points.mean(0), points.std()
    inputs, target = torch.from_numpy((points - middle) / spread), torch.from_numpy(labels)
    weights = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=100, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = inputs @ weights.T + offsets
        loss = torch.nn.functional.cross_entropy(scores, target) + PENALTY * weights.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    matrix, bias = weights.detach().numpy(), offsets.detach().numpy()
    bias = np.where(np.bincount(labels, minlength=classes) > 0, bias, -np.inf)
    return lambda pixels: ((pixels - middle) / spread @ matrix.T + bias).argmax(1)


def discriminant_head(points: Floats, labels: Ints, classes: int, cells: Floats) -> Callable[[Floats], Ints]:
    """A linear discriminant without words: means of the points, covariance of the land."""
    middle = cells.mean(0)
    spread = np.cov(cells.T)
    inverse = np.linalg.inv(spread + 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread)))
    count = np.bincount(labels, minlength=classes)
    means = np.zeros((classes, points.shape[1]))
    np.add.at(means, labels, points - middle)
    means /= np.maximum(count, 1)[:, None]
    matrix = means @ inverse
    bias = np.where(count > 0, -0.5 * (means * matrix).sum(1), -np.inf)
    return lambda pixels: ((pixels - middle) @ matrix.T + bias).argmax(1)


def draw(land: Land, count: int, seed: int) -> dict[str, float]:
    """Mean IoU of each way with so many points of each class."""
    rng = np.random.default_rng(seed)
    blocks = np.unique(land.block)
    giving = np.isin(land.block, rng.permutation(blocks)[: len(blocks) // 2])
    classes = len(land.words)
    rows: list[int] = []
    for number in range(classes):
        mine = np.flatnonzero(giving & (land.labels == number))
        rows += rng.permutation(mine)[:count].tolist()
    points, labels = land.pixels[rows], land.labels[rows]
    tested = rng.permutation(np.flatnonzero(~giving))[:TESTED]
    scores = land.cells @ land.words.T
    tuned = tune(scores.argmax(1), scores, land.cells, points, labels)
    pixels, truth = land.pixels[tested], land.labels[tested]
    guesses = {
        'words': (pixels @ land.words.T).argmax(1),
        'tuned words': (pixels @ tuned.vectors.T + tuned.offsets).argmax(1),
        'logistic head': logistic_head(points, labels, classes)(pixels),
        'discriminant head': discriminant_head(points, labels, classes, land.cells)(pixels),
    }
    out = {}
    for name, guess in guesses.items():
        counts = confusion(truth, guess, classes)[None]
        out[name] = float(MeanIou(counts)(np.ones((1, 1)))[0])
    return out | {'weight': tuned.weight}


def table(records: list[dict[str, Any]]) -> str:
    """The page of the records."""
    lines = [
        '# A few points of each class',
        '',
        'Made by `python -m experiments.points.few_points --table` from the records beside it; the head of the script',
        f'says how. mIoU, mean of {DRAWS} draws; worst: the draw in which tuned words gain least over words.',
        '',
        '| world | field | points a class | words | tuned words | worst | logistic head | discriminant head |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for record in records:
        for name, by_count in record['fields'].items():
            for count, draws in by_count.items():
                means = {key: np.mean([d[key] for d in draws]) for key in draws[0]}
                worst = min(d['tuned words'] - d['words'] for d in draws)
                lines.append(
                    f'| {record["seed"]} | {name} | {count} | {means["words"]:.3f} | {means["tuned words"]:.3f} '
                    f'| {worst:+.3f} | {means["logistic head"]:.3f} | {means["discriminant head"]:.3f} |'
                )
    return '\n'.join(lines) + '\n'


def measure(world: Path, seed: int) -> dict[str, Any]:
    """All draws of both fields of one world."""
    fields: dict[str, Any] = {}
    for name in FIELDS:
        land = land_of(world, name)
        fields[name] = {str(count): [draw(land, count, number) for number in range(DRAWS)] for count in COUNTS}
        log(f'world {seed}, {name}: done')
    return {'penalty': PENALTY, 'fields': fields}


def main() -> None:
    """Command line."""
    measure_worlds('experiments.points.few_points', __doc__, RESULTS, measure, table, ())


if __name__ == '__main__':
    main()
