"""126 real pairs of ground photo and picture from above: what so few can teach, place by place held out.

    grafalign import-pairs MINIPAIRS/pairs.csv runs/minipairs/pairs --column 'photo=ground/{name}.jpg' \
        --column 'tile=overhead/{name}.jpg' --size-px 160 --gsd 0.3
    python -m experiments.real_photos.minipairs --pairs MINIPAIRS --runs runs/minipairs

The pairs come from the sample folders of eight repositories (CVUSA, CVACT, Dayton, London, Helsinki). Both sides are
features of EfficientNet-Lite0 (ImageNet; `experiments/captions/aid/lite0.py`), standardised over the training places.
The ground side stays as it is; for the side from above one linear layer is trained towards it by the product's
contrastive loss in both directions. Places are dealt into folds five times; a photo of a held-out place is looked for
among the held-out tiles of its own source, as each source has a look of its own that would give it away. Arms:

    no training      cosine of the standardised features
    trained          the linear layer
    shuffled         the same, each tile with the photo of another place of its source
    ridge            ground features regressed on those from above, in closed form
    chance           random vectors

The area under the rank curve is the chance that a wrong tile of the source scores less than the right one. Intervals:
places drawn again, and the whole procedure for every deal of folds.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional

from experiments.captions.aid.lite0 import features_of
from grafalign import console
from grafalign.benchmarks.statistics import Mean, estimates, resampling
from grafalign.store import PairStore
from grafalign.training.objective import Candidates, Pairs, contrastive_loss, photo_to_tile_loss

RESULTS = Path(__file__).resolve().parent / 'results'
DEALS, FOLDS, SEED, DRAWS = 5, 5, 0, 1000
STEPS, LR, DECAY, TAU = 200, 1e-3, 1.0, 0.07
ARMS = ('no training', 'trained', 'shuffled', 'ridge', 'chance')
Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def unit(vectors: Vectors) -> Vectors:
    """Rows of unit length."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def standardised(features: Vectors, train: Ints) -> Vectors:
    """Features with the mean and deviation of some rows taken out, of unit length."""
    mean, scale = features[train].mean(0), features[train].std(0) + 1e-6
    return unit((features - mean) / scale)


def trained(above: Vectors, ground: Vectors, rows: Ints, seed: int) -> Vectors:
    """All tiles by a linear layer that was trained on some pairs."""
    torch.manual_seed(seed)
    head = torch.nn.Linear(above.shape[1], ground.shape[1])
    with torch.no_grad():
        head.weight.copy_(torch.eye(above.shape[1]))  # both sides are features of one network
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=DECAY)
    tiles, photos = torch.from_numpy(above), torch.from_numpy(ground)
    every = torch.arange(len(rows))
    for _ in range(STEPS):
        scaled = functional.normalize(head(tiles[rows]), dim=-1) / TAU
        candidates = Candidates(photos[rows], every)
        pairs = Pairs(every, every, torch.full((len(rows),), 1 / len(rows)))
        loss = contrastive_loss(scaled, candidates, pairs) + photo_to_tile_loss(scaled, candidates, pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return np.asarray(functional.normalize(head(tiles), dim=-1).numpy(), dtype=np.float32)


def regressed(above: Vectors, ground: Vectors, rows: Ints) -> Vectors:
    """All tiles as the photos that a ridge regression on some pairs expects; its strength by leaving one out."""
    x, y = above[rows].astype(np.float64), ground[rows].astype(np.float64)
    products, best = x @ x.T, (np.inf, 1.0)
    for strength in 10.0 ** np.arange(-3, 4):
        inverse = np.linalg.inv(products + strength * np.eye(len(x)))
        left_out = (inverse @ y) / np.diag(inverse)[:, None]  # residuals of leaving each row out
        best = min(best, (float((left_out**2).sum()), strength))
    weights = np.linalg.solve(products + best[1] * np.eye(len(x)), y)
    return unit((above.astype(np.float64) @ x.T @ weights).astype(np.float32))


def shuffled(rows: Ints, source: npt.NDArray[Any], place: npt.NDArray[Any], rng: np.random.Generator) -> Ints:
    """For every pair another one of its source, of another place where there is one."""
    other = rows.copy()
    for name in np.unique(source[rows]):
        mine = np.flatnonzero(source[rows] == name)
        order = rng.permutation(len(mine))
        for at, to in zip(mine, mine[np.roll(order, 1)][np.argsort(order)], strict=True):
            other[at] = rows[to]
        same = [at for at in mine if place[other[at]] == place[rows[at]]]
        for at in same:
            choices = [m for m in mine if place[rows[m]] != place[rows[at]]]
            if choices:
                other[at] = rows[rng.choice(choices)]
    return other


def judge(tiles: Vectors, photos: Vectors, rows: Ints, source: npt.NDArray[Any], place: npt.NDArray[Any]) -> Any:
    """For held-out photos whether their tile comes first, its area under the rank curve, and how many stand beside."""
    found = []
    for row in rows:
        beside = rows[(source[rows] == source[row]) & (place[rows] != place[row])]
        if len(beside):
            scores = tiles[beside] @ photos[row]
            mine = float(tiles[row] @ photos[row])
            above = (scores > mine).sum() + (scores == mine).sum() / 2
            found.append((row, float(above < 0.5), 1 - above / len(beside), 1 / (len(beside) + 1)))
    return found


def main() -> None:
    """Deal, train and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=Path, required=True)
    parser.add_argument('--runs', type=Path, default=Path('runs/minipairs'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = PairStore(args.runs / 'pairs')
    table = pd.read_csv(args.pairs / 'pairs.csv').set_index('name')
    pairs = store.pairs
    names = store.photos['photo_id'].iloc[pairs['photo']].map(lambda name: Path(name).stem)
    source, place = table.loc[names, 'source'].to_numpy(), table.loc[names, 'place'].to_numpy()
    files = [Path(uri) for uri in store.tiles['uri'].iloc[pairs['tile']]]
    above = features_of(files, (0,), args.runs / 'above.npy')[0]
    ground = features_of([Path(u) for u in store.photos['uri'].iloc[pairs['photo']]], (0,), args.runs / 'ground.npy')[0]
    places = np.unique(place)
    rows: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    for deal in console.track(range(DEALS), 'deals of folds', DEALS):
        rng = np.random.default_rng((SEED, deal))
        fold_of = dict(zip(rng.permutation(places), np.arange(len(places)) % FOLDS, strict=True))
        fold = np.array([fold_of[p] for p in place])
        for number in range(FOLDS):
            train, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            a, g = standardised(above, train), standardised(ground, train)
            mixed = g.copy()
            mixed[train] = g[shuffled(train, source, place, rng)]
            arms = {
                'no training': a,
                'trained': trained(a, g, train, deal),
                'shuffled': trained(a, mixed, train, deal),
                'ridge': regressed(a, g, train),
                'chance': unit(rng.normal(size=a.shape).astype(np.float32)),
            }
            for arm, tiles in arms.items():
                rows[arm] += judge(tiles, g, held, source, place)
    record: dict[str, Any] = {
        'command': 'python -m experiments.real_photos.minipairs --pairs MINIPAIRS --runs runs/minipairs',
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'numpy')},
        'python': sys.version.split()[0],
        'settings': {
            'deals': DEALS,
            'folds': FOLDS,
            'seed': SEED,
            'steps': STEPS,
            'lr': LR,
            'decay': DECAY,
            'tau': TAU,
        },
        'pairs': len(pairs),
        'places': len(places),
        'arms': {},
    }
    for arm, found in rows.items():
        frame = pd.DataFrame(found, columns=['row', 'first', 'auc', 'chance'])
        by_place = frame.groupby(place[frame['row'].to_numpy()]).agg(['sum', 'size'])
        how = resampling(len(by_place), None, DRAWS, SEED)
        statistics = {
            name: Mean(by_place[name]['sum'].to_numpy(), by_place[name]['size'].to_numpy(dtype=float))
            for name in ('first', 'auc')
        }
        record['arms'][arm] = {k: v.model_dump() for k, v in estimates(statistics, how).items()}
        record['chance_of_first'] = float(frame['chance'].mean())
        record['arms'][arm]['by_source'] = {
            str(k): round(float(v), 3) for k, v in frame.groupby(source[frame['row'].to_numpy()])['auc'].mean().items()
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / 'minipairs.json').write_text(json.dumps(record, indent=1) + '\n')
    lines = [
        '# 126 real pairs',
        '',
        '| arm | right tile first (95 %) | area under the rank curve (95 %) |',
        '|---|---|---|',
    ]
    for arm, values in record['arms'].items():
        first, auc = (f'{v["value"]:.3f} ({v["low"]:.3f} to {v["high"]:.3f})' for v in (values['first'], values['auc']))
        lines.append(f'| {arm} | {first} | {auc} |')
    lines += ['', f'By chance the right tile comes first in {record["chance_of_first"]:.3f}.']
    (RESULTS / 'minipairs.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
