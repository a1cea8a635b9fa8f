"""How much do false geotags cost, and does it help to spread photos over the patches they may belong to?

    python -m experiments.study
    python -m experiments.placement.run
    python -m experiments.placement.table

Photos are put where they truly were taken, plus normally distributed noise whose 68 % radius is the `accuracy_m` that
the photos then state. Two ways of pairing keep two effects apart:

`kept`   every photo keeps the tiles that it is truly in; noise that would leave a tile is drawn again. What suffers is
         the place inside the tile, and nothing else.
`free`   photos belong to the tiles that their noisy geotags are in, as in life: some are matched to a tile that they do
         not show, some to none.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from experiments.study import Cell, run_cells
from grafalign.geo import project, unproject
from grafalign.store import PairStore
from grafalign.training.placement import RADIUS_PER_SIGMA

HERE = Path(__file__).parent
NOISE_M = (0, 15, 30, 60, 120)
PLACEMENTS = ('point', 'gaussian', 'view_cone')
TRAIN = {'level': 'patch', 'tau': 0.4, 'steps': 400, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20}
"""The quickstart's patch run, a fifth shorter."""


def noisy_store(world: Path, noise_m: int, pairing: str, seed: int) -> str:
    """A copy of the world's store with other geotags; its name."""
    name = f'pairs_{noise_m}m_{pairing}'
    out = world / name
    if out.exists():
        return name
    part = world / f'.{name}.part'
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(world / 'pairs', part, copy_function=os.link)
    store = PairStore(world / 'pairs')
    photos = gpd.read_parquet(world / 'pairs' / 'photos.parquet')
    truth = (
        pd.read_parquet(world / 'sandbox' / 'truth' / 'photos.parquet').set_index('photo_id').loc[photos['photo_id']]
    )
    lon, lat = unproject(truth['x'].to_numpy(), truth['y'].to_numpy(), land_epsg(world))
    zones = store.tiles['epsg'].to_numpy()
    true_xy = {int(zone): np.stack(project(lon, lat, int(zone)), 1) for zone in np.unique(zones)}
    rng = np.random.default_rng((seed, noise_m))
    sigma = noise_m / RADIUS_PER_SIGMA
    corner = np.array([(t[2], t[5]) for t in store.tiles['transform']])
    side = store.sensor.size_px * store.sensor.gsd_m
    if pairing == 'kept':
        pairs = store.pairs
        zone, photo, left_top = zones[pairs['tile']], pairs['photo'].to_numpy(), corner[pairs['tile']]
        xy = np.stack([true_xy[int(z)][p] for z, p in zip(zone, photo, strict=True)])
        pairs, xy, left_top = (v[inside(xy, left_top, side)] for v in (pairs, xy, left_top))
        moved = xy + rng.normal(0, 1, xy.shape) * sigma
        for _ in range(1000):
            again = ~inside(moved, left_top, side)
            if not again.any():
                break
            moved[again] = xy[again] + rng.normal(0, 1, (again.sum(), 2)) * sigma
        moved = np.where(inside(moved, left_top, side)[:, None], moved, xy)
        chosen = pairs.assign(col=moved[:, 0] - left_top[:, 0], row=left_top[:, 1] - moved[:, 1])
    else:
        noise = rng.normal(0, 1, (len(photos), 2)) * sigma
        rows = []
        for tile, zone in enumerate(zones):
            moved = true_xy[int(zone)] + noise
            here = np.flatnonzero(inside(moved, corner[tile], side))
            place = {'row': corner[tile, 1] - moved[here, 1], 'col': moved[here, 0] - corner[tile, 0]}
            names = {'tile_id': store.tiles['tile_id'].iloc[tile], 'photo_id': photos['photo_id'].to_numpy()[here]}
            rows.append(pd.DataFrame({**names, **place, 'days_apart': 0.0}))
        chosen = pd.concat(rows)
    gsd = store.sensor.gsd_m
    last = store.sensor.size_px - 1e-3
    chosen = chosen.assign(row=(chosen['row'] / gsd).clip(0, last), col=(chosen['col'] / gsd).clip(0, last))
    for file in ('pairs.parquet', 'photos.parquet'):
        (part / file).unlink()  # a link to the original
    columns = pd.read_parquet(world / 'pairs' / 'pairs.parquet').columns
    chosen[columns].to_parquet(part / 'pairs.parquet', index=False)
    photos.assign(accuracy_m=max(float(noise_m), 0.1)).to_parquet(part / 'photos.parquet')
    part.rename(out)
    return name


def inside(xy: np.ndarray, left_top: np.ndarray, side: float) -> np.ndarray:
    """Whether places are inside tiles with such corners."""
    down = left_top[..., 1] - xy[:, 1]
    right = xy[:, 0] - left_top[..., 0]
    return (down >= 0) & (down < side) & (right >= 0) & (right < side)


def land_epsg(world: Path) -> int:
    """The zone of the world's truth."""
    import rasterio

    with rasterio.open(world / 'sandbox' / 'truth' / 'classes.tif') as raster:
        return int(raster.crs.to_epsg())


def main() -> None:
    """Make the stores, then run all cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--runs', type=Path, default=Path('runs/placement'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--noise', type=int, nargs='+', default=list(NOISE_M))
    parser.add_argument('--pairing', nargs='+', default=['kept', 'free'])
    parser.add_argument('--abreast', type=int, default=2, help='cells at a time')
    args = parser.parse_args()
    cells = []
    for pairing in args.pairing:
        for seed in args.seeds:
            for noise in args.noise if pairing == 'kept' else [n for n in args.noise if n >= 60]:
                store = noisy_store(args.worlds / str(seed), noise, pairing, seed)
                for kind in PLACEMENTS if pairing == 'kept' else PLACEMENTS[:2]:
                    values = {'pairing': pairing, 'noise': noise, 'placement': kind}
                    cells.append(Cell(seed, values, {**TRAIN, 'placement': {'kind': kind}}, store))
    run_cells(cells, args.worlds, args.results, args.runs, abreast=args.abreast)


if __name__ == '__main__':
    main()
