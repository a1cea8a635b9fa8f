"""Has anything become slower? Small works of ours beside yardsticks that do the least, in turns, on one thread.

    python -m experiments.performance.ratios              # fails if a ratio is 20 % worse than the committed one
    python -m experiments.performance.ratios --write      # the new ratios become the committed ones

A ratio is the shortest of ours over the shortest of the yardstick, so that other processes and the kind of machine
matter little; one that looks worse is measured again, three times as long. The large measurements, beside peers, are
those of the other files here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date, datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import torch
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.nn import functional

from experiments.performance.machine import machine_metadata
from experiments.performance.retrieval.ranks import all_ranks, bare, embeddings
from grafalign.encoders.lattice import Lattice
from grafalign.encoders.windows import WindowEncoder, blended_rows
from grafalign.geo import TileGrid
from grafalign.pairing.plan import make_plan
from grafalign.photos.ranks import keyed_hashes
from grafalign.retrieval.exact import nearest
from grafalign.scenes import RangeReader, SceneCutter, SceneTiles, band_sources, choose_scenes
from grafalign.scenes.geotiffs import item_of
from grafalign.scenes.scene import Scene
from grafalign.scenes.scene_table import scene_table
from grafalign.training.objective import Candidates, Pairs, contrastive_loss

RESULT = Path(__file__).parent / 'results' / 'ratios.json'
WORSE = 1.2
"""A ratio that has grown by more fails."""
DEPTH = 512
Work = Callable[[], object]


def loss(_: Path) -> tuple[Work, Work]:
    """The loss of 512 tiles against 20,000 photos, with its gradient; the two products that it cannot do without."""
    bank = functional.normalize(torch.randn(20_000, DEPTH), dim=1).half()
    z = (functional.normalize(torch.randn(512, DEPTH), dim=1) / 0.07).requires_grad_()
    rows = torch.arange(512)
    pairs, candidates = Pairs(rows, rows, torch.full((512,), 1 / 512)), Candidates(bank, torch.arange(len(bank)))
    photos, plain = bank.float(), z.detach()
    return lambda: contrastive_loss(z, candidates, pairs).backward(), lambda: (plain @ photos.T) @ photos


def ranks(_: Path) -> tuple[Work, Work]:
    """Recall and mAP of 5,000 queries among 5,000 items; the bare product."""
    material = embeddings(5_000)
    return lambda: all_ranks(*material), lambda: bare(*material)


def neighbours(_: Path) -> tuple[Work, Work]:
    """Ten exact neighbours of 256 queries among 50,000 vectors; the bare product."""
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, DEPTH)).astype(np.float32) for n in (50_000, 256))
    return lambda: nearest(queries, vectors, 10), lambda: queries @ vectors.T


def choice(_: Path) -> tuple[Work, Work]:
    """Scenes for 2,000 tiles under 200 scenes each; asking once of every tile and scene whether they touch."""
    rng, begin = np.random.default_rng(0), datetime(2020, 1, 1, tzinfo=timezone.utc)
    outline = shapely.box(0, 0, 1.1, 1.1)
    table = scene_table(
        Scene(f's{n:03d}', 'c', begin + timedelta(days=5 * n), float(rng.uniform(0, 9)), None, outline, {})
        for n in range(200)
    )
    x, y = rng.uniform(0, 1, (2, 2_000))
    tiles = shapely.box(x, y, x + 0.02, y + 0.02)
    photos = 18_262 + rng.uniform(0, 1_000, 10 * len(tiles))
    first = np.arange(0, len(photos) + 1, 10)
    tree = shapely.STRtree([outline] * 200)
    return (
        lambda: choose_scenes(table, lambda some: tiles[some], photos, first, 4, mosaic=True),
        lambda: tree.query(tiles, predicate='intersects'),
    )


def plan(_: Path) -> tuple[Work, Work]:
    """A plan of 100,000 photos around 200 towns; the hashes that order them."""
    rng = np.random.default_rng(0)
    towns = np.stack([rng.uniform(-120, 30, 200), rng.uniform(-50, 60, 200)], axis=1)
    lon, lat = (towns[rng.integers(0, len(towns), 100_000)] + rng.normal(0, 0.05, (100_000, 2))).T.copy()
    ids, shares = [f'{n:07d}' for n in range(len(lon))], {'train': 0.8, 'val': 0.1, 'test': 0.1}
    return (
        lambda: make_plan(ids, lon, lat, TileGrid(224, 10.0), 25, 0, 20.0, shares, 2240.0),
        lambda: keyed_hashes(ids, 0),
    )


def cut(folder: Path) -> tuple[Work, Work]:
    """150 tiles out of a COG on disk; each of its blocks read once by GDAL."""
    side, block, path = 3_072, 512, folder / 'scene.tif'
    rng = np.random.default_rng(0)
    texture = rng.normal(1_500, 300, (3, side // 8, side // 8)).repeat(8, 1).repeat(8, 2)
    pixels = (texture + rng.normal(0, 20, texture.shape)).clip(1, 10_000).astype(np.uint16)
    how = {'driver': 'COG', 'count': 3, 'height': side, 'width': side, 'dtype': 'uint16', 'crs': 'EPSG:32633'}
    how |= {'transform': from_origin(500_000, 5_400_000, 10, 10), 'BLOCKSIZE': block, 'COMPRESS': 'DEFLATE'}
    with rasterio.open(path, 'w', **how, PREDICTOR='YES', OVERVIEWS='NONE', INTERLEAVE='BAND') as dataset:
        dataset.write(pixels)
    item = item_of(path, datetime.combine(date(2023, 5, 1), datetime.min.time(), timezone.utc), whole=True)
    names = [band['name'] for band in item['assets']['image']['bands']]
    grid = TileGrid(224, 10.0)
    corners = 10 * rng.integers(0, side - 224, (150, 2))
    boxes = [grid.geobox(32633, 500_000 + col, 5_400_000 - row) for row, col in corners.tolist()]

    def ours() -> None:
        with ThreadPoolExecutor(1) as pool:
            cutter = SceneCutter(pool, RangeReader(1), 2, Resampling.bilinear)
            for _ in cutter.cut([SceneTiles(band_sources(item, names, 10), boxes)]):
                pass

    def least() -> None:
        with rasterio.open(path) as dataset:
            for band in (1, 2, 3):
                for row in range(0, side, block):
                    for col in range(0, side, block):
                        dataset.read(band, window=Window(col, row, block, block))

    return ours, least


def field(_: Path) -> tuple[Work, Work]:
    """The windows of an image of 640 px through a small encoder and blended; the encoder alone."""
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 16, 16), torch.nn.GELU(), torch.nn.Conv2d(256, DEPTH, 1))
    lattice = Lattice(640, 640, 64, 16, 32)
    pixels, there = torch.rand(3, 640, 640), torch.ones(640, 640, dtype=torch.bool)
    windows = torch.rand(32, 3, 64, 64)

    def encode(inputs: torch.Tensor) -> torch.Tensor:
        return functional.normalize(encoder(inputs).permute(0, 2, 3, 1), dim=-1)

    how = WindowEncoder(encode, torch.zeros(3), torch.ones(3), DEPTH, 32, torch.device('cpu'))

    def ours() -> None:
        for _ in blended_rows(lattice, how, lambda start, stop: (pixels[:, start:stop], there[start:stop])):
            pass

    def least() -> None:
        with torch.no_grad():
            for first in range(0, lattice.windows, len(windows)):
                encode(windows[: lattice.windows - first])

    return ours, least


WORKS = (loss, ranks, neighbours, choice, plan, cut, field)


def measure(work: Callable[[Path], tuple[Work, Work]], turns: int) -> dict[str, Any]:
    """The shortest seconds of ours and of the yardstick, in turns, after one turn that does not count."""
    with tempfile.TemporaryDirectory() as folder, ExitStack():
        both = work(Path(folder))
        spent: list[list[float]] = [[], []]
        for turn in range(turns + 1):
            for one, seconds in zip(both, spent, strict=True):
                started = time.perf_counter()
                one()
                if turn:
                    seconds.append(time.perf_counter() - started)
    ours, least = (min(seconds) for seconds in spent)
    return {'ours_s': round(ours, 4), 'yardstick_s': round(least, 4), 'ratio': round(ours / least, 3)}


def main() -> None:
    """Measure all, compare with the committed ratios, and say which are worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--write', action='store_true', help='let the new ratios take the place of the committed ones')
    args = parser.parse_args()
    torch.set_num_threads(1)
    committed = json.loads(RESULT.read_text())['works'] if RESULT.exists() else {}
    measured, worse = {}, []
    for work in WORKS:
        name = work.__name__
        measured[name] = measure(work, args.turns)
        before = committed.get(name, {}).get('ratio')
        if before is not None and measured[name]['ratio'] > WORSE * before and not args.write:
            measured[name] = min(measured[name], measure(work, 3 * args.turns), key=lambda one: one['ratio'])
        ratio = measured[name]['ratio']
        slower = before is not None and ratio > WORSE * before
        worse += [name] if slower else []
        beside = '' if before is None else f', committed {before:.2f}' + (', WORSE' if slower else '')
        print(f'{name:12s} {ratio:6.2f} times the yardstick{beside}', flush=True)
    if args.write:
        metadata = {
            'command': 'python -m experiments.performance.ratios --write',
            'date': f'{date.today()}',
            'settings': {'turns': args.turns, 'threads': 1, 'worse': WORSE},
            'versions': {name: version(name) for name in ('grafalign', 'numpy', 'torch', 'faiss-cpu', 'rasterio')},
            'machine': machine_metadata(),
            'works': {work.__name__: {'what': work.__doc__, **measured[work.__name__]} for work in WORKS},
        }
        RESULT.write_text(json.dumps(metadata, indent=2) + '\n')
    elif worse:
        sys.exit(
            f'{", ".join(worse)}: more than {100 * (WORSE - 1):.0f} % worse than what is committed in {RESULT.name}'
        )


if __name__ == '__main__':
    main()
