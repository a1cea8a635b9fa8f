"""Small sets of pairs as tables and as published layouts have them, and the command that imports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tests.commands import Command


def picture(path: Path, seed: int = 0, height: int = 32, width: int = 32) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_table(folder: Path, count: int = 12, **columns: list[Any]) -> Path:
    """A table of pairs with their pictures, two photos of every place."""
    rows = []
    for number in range(count):
        picture(folder / 'ground' / f'{number}.jpg', number, 24, 40)
        picture(folder / 'above' / f'{number // 2}.png', 100 + number // 2)
        rows.append({'photo': f'ground/{number}.jpg', 'tile': f'above/{number // 2}.png', 'place': f'p{number // 2}'})
    table = folder / 'pairs.csv'
    pd.DataFrame(rows).assign(**columns).to_csv(table, index=False)
    return table


def run(command: Command, table: Path, out: Path, *options: object) -> tuple[int, str]:
    """`import-pairs` of tiles with pixels of half a metre."""
    return command('import-pairs', table, out, '--gsd', 0.5, *options)


def make_vigor(folder: Path) -> None:
    """Two panoramas and five tiles in each city; tile 4 is in no pair."""
    degree = 111_320.0
    for number, city in enumerate(('NewYork', 'Seattle', 'Chicago', 'SanFrancisco')):
        lat, lon = 40.0 + number, -80.0 - number
        tiles = [f'satellite_{lat + 0.00005 * k}_{lon + 0.00005 * k}.png' for k in range(5)]
        for k, tile in enumerate(tiles):
            picture(folder / city / 'satellite' / tile, 10 * number + k, 640, 640)
        lines = []
        for k in range(2):
            at = lat + 10 / degree + 0.00005 * k, lon + 6 / degree / np.cos(np.deg2rad(lat)) + 0.00005 * k
            pano = f'{city}{k},{at[0]},{at[1]},.jpg'
            picture(folder / city / 'panorama' / pano, 50 + k, 16, 32)
            order = [k, *(o for o in range(4) if o != k)]
            lines.append(' '.join([pano, *(f'{tiles[o]} 0.0 0.0' for o in order)]))
        lists = folder / 'splits' / city
        lists.mkdir(parents=True)
        (lists / 'pano_label_balanced.txt').write_text('\n'.join(lines) + '\n')
        (lists / 'satellite_list.txt').write_text('\n'.join(tiles) + '\n')


def make_university(folder: Path) -> None:
    """Two buildings to train on, two that are asked for, two more in the gallery."""
    for place, buildings in (('train/{}', ('0001', '0002')), ('test/gallery_{}', ('0003', '0004', '0005', '0006'))):
        for building in buildings:
            picture(folder / place.format('satellite') / building / f'{building}.jpg', int(building))
            for k in range(3):
                picture(folder / place.format('drone') / building / f'image-{k:02d}.jpeg', int(building) * 10 + k)
    for building in ('0003', '0004'):
        picture(folder / 'test' / 'query_satellite' / building / f'{building}.jpg', int(building))
