"""Readers of published sets of pairs, by the folders and lists that they come with.

CVUSA (Workman et al., ICCV 2015; Zhai et al., CVPR 2017): `splits/train-19zl.csv` and `splits/val-19zl.csv`, whose
lines name the picture from above and the panorama. The second list is what everybody tests on.

VIGOR (Zhu et al., CVPR 2021), cross-area: trained on New York and Seattle, tested on Chicago and San Francisco. Each
line of `splits/CITY/pano_label_balanced.txt` names a panorama, its tile and three tiles that show its place as well
(`semi`); `satellite_list.txt` has all tiles. File names tell positions. Its same-area protocol searches the same tiles
in training and in testing, which no split by place allows.

University-1652 (Zheng et al., ACM MM 2020): `train/VIEW/BUILDING/*` and `test/gallery_VIEW/BUILDING/*`; what is asked
for is in `test/query_satellite`, the rest of the galleries is searched among only (`gallery`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grafalign import console
from grafalign.datasets.pictures import is_picture
from grafalign.errors import InputError
from grafalign.geo import METRES_PER_DEGREE
from grafalign.pairing.elsewhere.rows import PairRows, complete
from grafalign.pairing.elsewhere.settings import GroundView

VIGOR_GSD_M = {'NewYork': 0.113248, 'Seattle': 0.100817, 'SanFrancisco': 0.118141, 'Chicago': 0.111262}
"""Metres a pixel of 640, as measured by Lentsch et al. (SliceMatch, CVPR 2023)."""
VIGOR_SPLIT = {'NewYork': 'train', 'Seattle': 'train', 'Chicago': 'test', 'SanFrancisco': 'test'}
VIGOR_PX = 640
CVUSA_GSD_M = 0.24
"""Bing's zoom 19 at 37 degrees north."""
UNIVERSITY_GSD_M = 0.3
"""Not published; roofs of buildings fill the pictures."""


def read_cvusa(folder: Path, _: GroundView) -> PairRows:
    """Pairs of CVUSA; its test set is `test`."""
    parts = []
    for name, split in (('train-19zl.csv', 'train'), ('val-19zl.csv', 'test')):
        lines = _lines(folder / 'splits' / name, 'CVUSA')
        for number, line in enumerate(lines, 1):
            if len(line.split(',')) < 2:
                raise InputError(f'{folder / "splits" / name}, line {number} does not name two files; copy it again.')
        files = [[name.strip() for name in line.split(',')[:2]] for line in lines]
        parts.append(pd.DataFrame(files, columns=['tile', 'photo']).assign(split=split))
    _assume('CVUSA', CVUSA_GSD_M)
    return PairRows(complete(pd.concat(parts, ignore_index=True)), folder.resolve(), CVUSA_GSD_M)


def read_vigor(folder: Path, _: GroundView) -> PairRows:
    """Pairs of VIGOR's cross-area protocol."""
    rows: list[dict[str, Any]] = []
    for city, split in VIGOR_SPLIT.items():
        lists = folder / 'splits' / city
        for number, line in enumerate(_lines(lists / 'pano_label_balanced.txt', 'VIGOR'), 1):
            words = line.split()
            if len(words) != 13:
                raise InputError(
                    f'{lists / "pano_label_balanced.txt"}, line {number} has {len(words)} words, not a panorama and '
                    'four tiles with their offsets (13); copy it again.'
                )
            for tile, role in zip(words[1::3], ('pair', 'semi', 'semi', 'semi'), strict=True):
                rows.append(_vigor_pair(city, words[0], tile) | {'split': split, 'role': role})
        for line in _lines(lists / 'satellite_list.txt', 'VIGOR'):
            name = line.split()[0]
            lat, lon = _middle(city, name)
            rows.append({'tile': f'{city}/satellite/{name}', 'split': split, 'tile_lon': lon, 'tile_lat': lat})
    frame = complete(pd.DataFrame(rows))
    return PairRows(frame, folder.resolve(), float(np.mean(list(VIGOR_GSD_M.values()))))


def _vigor_pair(city: str, photo: str, tile: str) -> dict[str, Any]:
    """A panorama in a tile: both file names hold positions, the tile's is that of its middle."""
    try:
        lat, lon = (float(v) for v in photo.split(',')[1:3])
    except ValueError:
        raise _no_position(city, photo) from None
    middle_lat, middle_lon = _middle(city, tile)
    gsd_m = VIGOR_GSD_M[city]
    north = (lat - middle_lat) * METRES_PER_DEGREE
    east = (lon - middle_lon) * METRES_PER_DEGREE * np.cos(np.deg2rad(lat))
    return {
        'photo': f'{city}/panorama/{photo}',
        'tile': f'{city}/satellite/{tile}',
        'lon': lon,
        'lat': lat,
        'tile_lon': middle_lon,
        'tile_lat': middle_lat,
        'row': VIGOR_PX / 2 - north / gsd_m,
        'col': VIGOR_PX / 2 + east / gsd_m,
    }


def _middle(city: str, tile: str) -> tuple[float, float]:
    """Latitude and longitude in the name of a tile."""
    try:
        lat, lon = (float(v) for v in Path(tile).stem.split('_')[1:3])
    except ValueError:
        raise _no_position(city, tile) from None
    return lat, lon


def _no_position(city: str, name: str) -> InputError:
    return InputError(f"VIGOR's list of {city} names {name}, which holds no position; copy the list again.")


def read_university(folder: Path, ground: GroundView) -> PairRows:
    """Pairs of University-1652: buildings from space, and from the street or a drone."""
    rows: list[dict[str, Any]] = []
    queried = {path.name for path in _folders(folder / 'test' / 'query_satellite')}
    for split, above, below in (('train', 'satellite', ground), ('test', 'gallery_satellite', f'gallery_{ground}')):
        if not (folder / split / below).is_dir():
            raise InputError(
                f'There is no {folder / split / below}; unpack it, or choose another --ground: street, drone, or '
                'google, which is published for training alone.'
            )
        buildings = _folders(folder / split / above)
        unseen = {path.name for path in _folders(folder / split / below)} - {path.name for path in buildings}
        if unseen:
            first = folder / split / below / min(unseen)
            console.log(f'buildings left out for lack of a picture from above: {len(unseen):,} (the first: {first})')
        for building in buildings:
            role = 'pair' if split == 'train' or building.name in queried else 'gallery'
            said = {'place': f'{split} {building.name}', 'split': split, 'role': role}
            photos = list(_pictures(folder / split / below / building.name))
            for tile in _pictures(building):
                name = {'tile': str(tile.relative_to(folder)), 'tile_id': f'{split}-{building.name}-{tile.stem}'}
                rows += [{**said, **name, 'photo': str(p.relative_to(folder))} for p in photos] or [{**said, **name}]
    if not rows:
        raise InputError(f'{folder} holds no buildings in train/satellite or test/gallery_satellite; unpack it again.')
    _assume('University-1652', UNIVERSITY_GSD_M)
    return PairRows(complete(pd.DataFrame(rows)), folder.resolve(), UNIVERSITY_GSD_M)


def _assume(name: str, gsd_m: float) -> None:
    console.log(
        f'{name} does not say how large a pixel is: {gsd_m:g} m is assumed, which is what outlines and placement go by.'
    )


def _lines(path: Path, name: str) -> list[str]:
    """The lines of a list that are not empty."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} of {name} cannot be read ({error}); give the folder that holds its splits.') from None
    return [line.strip() for line in lines if line.strip()]


def _folders(folder: Path) -> list[Path]:
    """Folders of buildings, in order."""
    if not folder.is_dir():
        raise InputError(f'There is no {folder}; give the folder of University-1652 that holds train and test.')
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _pictures(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if is_picture(path.name))


READERS: dict[str, Callable[[Path, GroundView], PairRows]] = {
    'cvusa': read_cvusa,
    'vigor': read_vigor,
    'university-1652': read_university,
}
