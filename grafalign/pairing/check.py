"""Is a pair store whole and true? Digests, counts, bounds, splits, and every tile's bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign import console, engine
from grafalign.config import parse_settings
from grafalign.errors import DamagedError
from grafalign.files import file_digest
from grafalign.foreign.files import below, open_plain
from grafalign.geo import TileGrid, blocks_touched, project
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.splits import split_of_blocks
from grafalign.store import MARKER, PairStore

_EXAMPLES = 3
_PLACE_PX = 0.01
"""Photos are stored in degrees; recomputed rows and columns may differ by this much."""


@dataclass(frozen=True)
class Finding:
    """One check and what it found."""

    check: str
    looked_at: int
    """Things that were looked at."""
    problems: tuple[str, ...]
    """One sentence each; empty where all is well."""


def check_store(store: PairStore, workers: int | None = None) -> list[Finding]:
    """Check a finished store; reads every byte of it once.

    Args:
        store: the store, local or on a URL.
        workers: threads.

    Returns:
        One finding a check. A table that cannot be read at all ends the checks that need it.
    """
    checks: list[tuple[str, Callable[[PairStore], tuple[int, Iterator[str]]]]] = [
        ('files', _files),
        ('counts', _counts),
        ('ids', _ids),
        ('places', _places),
        ('splits', _splits),
        ('reasons', _reasons),
    ]
    for key in ('files', 'summary', 'dtype', 'recipe'):
        if not getattr(store.marker, key) and not (key == 'recipe' and store.marker.imported):
            raise DamagedError(f'{store.path / MARKER} has no {key!r}; pair again into an empty folder.')
    findings = [_digests(store, workers), _tiles(store, workers)]
    for name, look in checks:
        try:
            count, problems = look(store)
            found = tuple(problems)
        except Exception as error:  # a table may lack anything
            count, found = 0, (f'cannot be checked: {error!r}',)
        findings.append(Finding(name, count, found))
    return findings


def _digests(store: PairStore, workers: int | None) -> Finding:
    """Every file has the digest that the marker states."""
    names = list(store.marker.files)

    def look(name: str) -> str | None:
        try:
            same = file_digest(_inside(store, name)) == store.marker.files[name]
        except FileNotFoundError:
            return f'{name} is missing'
        except ValueError as error:
            return f'{name} cannot be read ({error})'
        except OSError as error:
            return f'{name} cannot be read ({error})'
        return None if same else f'{name} has other content than when the store was finished'

    found = console.track(engine.run(look, names, workers), 'checking digests', len(names))
    return Finding('digests', len(names), tuple(sorted(p for _, p in found if p)))


def _tiles(store: PairStore, workers: int | None) -> Finding:
    """Every shard holds just the tiles that the table lists, where it says, in the right shape and type."""
    try:
        groups = list(store.tiles.groupby('shard'))
    except Exception as error:  # a column of lists, damaged outlines
        return Finding('tiles', 0, (str(error) or type(error).__name__,))
    shape = (len(store.sensor.bands), store.sensor.size_px, store.sensor.size_px)

    def look(group: tuple[Any, gpd.GeoDataFrame]) -> list[str]:
        name, rows = str(group[0]), group[1]
        try:
            path = _inside(store, name)
            with open_plain(path) if isinstance(path, Path) else path.open('rb') as file:
                return list(_shard_problems(name, rows, file, shape, store.marker.dtype))
        except Exception as error:  # numpy and tarfile raise a dozen types on damage: TokenError, SyntaxError ...
            return [f'{name} cannot be read ({error!r})']

    found = console.track(engine.run(look, groups, workers), 'checking tiles', len(groups))
    return Finding('tiles', len(store.tiles), tuple(sorted(p for _, part in found for p in part)))


def _inside(store: PairStore, name: str) -> Any:
    """A file of a store by its name; the name is data, and must not lead out.

    Raises:
        ForeignFileError: it does.
    """
    return below(store.path, name) if isinstance(store.path, Path) else store.path / name


def _shard_problems(name: str, rows: gpd.GeoDataFrame, file: Any, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    most_bytes = max(16 * int(np.prod(shape)) + 4096, 1 << 20)
    listed = rows.set_index('tile_id')
    seen = set()
    with tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
            tile_id, _, kind = member.name.rpartition('.')
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or kind not in ('npy', 'json') or '/' in member.name:
                yield f'{name} holds {member.name!r}, which is no tile'
                continue
            if tile_id not in listed.index:
                yield f'{name} holds {member.name}, which tiles.parquet does not list'
                continue
            if member.issparse() or member.size > most_bytes:
                yield f'{name}: {member.name} claims {member.size:,} bytes, more than a tile has'
                continue
            row = listed.loc[tile_id]
            if kind == 'json':
                metadata = json.loads(content.read())
                if any(metadata[k] != row[k] for k in ('item_id', 'split')):
                    yield f'{name}: {member.name} says other things than tiles.parquet'
                continue
            seen.add(tile_id)
            if (member.offset_data, member.size) != (row['byte_offset'], row['nbytes']):
                yield f'{name}: {tile_id} is not where tiles.parquet says'
            pixels = np.load(io.BytesIO(content.read()), allow_pickle=False)
            if pixels.shape != shape or str(pixels.dtype) != dtype:
                yield f'{name}: {tile_id} is {pixels.dtype} {pixels.shape}, not {dtype} {shape}'
            elif np.issubdtype(pixels.dtype, np.inexact) and not np.isfinite(pixels).all():
                yield f'{name}: {tile_id} holds NaN or infinite numbers, which no training can use; pair again'
    yield from (f'{name} lacks {t}' for t in listed.index if t not in seen)


def _files(store: PairStore) -> tuple[int, Iterator[str]]:
    """Nothing is there that the store does not know."""
    known = set(store.marker.files)
    there = [f'tiles/{p.name}' for p in (store.path / 'tiles').iterdir()]
    return len(there), (f'{name} belongs to no finished store; delete it' for name in sorted(set(there) - known))


def _counts(store: PairStore) -> tuple[int, Iterator[str]]:
    """The tables are as long as the marker says."""
    said = {} if store.marker.summary is None else store.marker.summary.model_dump()
    found = {
        'tiles': len(store.tiles),
        'pairs': len(store.pairs),
        'rejected': int((store.rejected['kind'] == 'photo').sum()),
        'splits': {str(k): int(v) for k, v in store.tiles['split'].value_counts().items()},
    }
    wrong = (f'{MARKER} says {said[k]} {k}, there are {v}' for k, v in found.items() if said[k] != v)
    return len(found), wrong


def _ids(store: PairStore) -> tuple[int, Iterator[str]]:
    """Ids are unique, and pairs name photos and tiles that exist; every tile and photo is in a pair."""

    def look() -> Iterator[str]:
        for name, column in (('tiles', 'tile_id'), ('photos', 'photo_id')):
            table = getattr(store, name)
            yield from _some(f'{name}.parquet lists twice', table[column][table[column].duplicated()])
        pairs = store.pairs
        yield from _some('pairs.parquet names a tile that is not there:', pairs['tile_id'][pairs['tile'] < 0])
        yield from _some('pairs.parquet names a photo that is not there:', pairs['photo_id'][pairs['photo'] < 0])
        if not store.marker.imported:  # where pairs come from elsewhere, some tiles are only searched among
            bare = ~store.tiles['tile_id'].isin(pairs['tile_id'])
            yield from _some('no pair has the tile', store.tiles['tile_id'][bare])
        used = store.photos['photo_id'].isin(pairs['photo_id'])
        yield from _some('no pair has the photo', store.photos['photo_id'][~used])
        twice = pairs.duplicated(['tile_id', 'photo_id'])
        yield from _some('pairs.parquet lists twice the photo', pairs['photo_id'][twice])

    return len(store.pairs), look()


def _grid(store: PairStore) -> TileGrid:
    return TileGrid(store.sensor.size_px, store.sensor.gsd_m)


def _corners(tiles: gpd.GeoDataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    transform = np.array(tiles['transform'].tolist(), dtype=float)
    return transform[:, 2], transform[:, 5]


def _places(store: PairStore) -> tuple[int, Iterator[str]]:
    """Every photo lies in its tile where the pair says; every tile has the id and the outline of its place."""
    grid, tiles, pairs = _grid(store), store.tiles, store.pairs

    def outside() -> Iterator[str]:
        inside = grid.holds(pairs['row'].to_numpy(), pairs['col'].to_numpy())
        yield from _some('a pair lies outside its tile:', pairs['photo_id'][~inside])

    if store.marker.imported:
        return len(pairs), outside()
    left, top = _corners(tiles)

    def look() -> Iterator[str]:
        ids = grid.tile_ids(tiles['epsg'].to_numpy(), left, top).to_numpy()
        yield from _some(
            'a tile lies elsewhere than its id says:', tiles['tile_id'][ids != tiles['tile_id'].to_numpy()]
        )
        sound = pairs[(pairs['tile'] >= 0) & (pairs['photo'] >= 0)]
        tile, photo = sound['tile'].to_numpy(), sound['photo'].to_numpy()
        points = store.photos.geometry.iloc[photo]
        x, y = np.empty(len(sound)), np.empty(len(sound))
        epsg = tiles['epsg'].to_numpy()[tile]
        for zone in np.unique(epsg):
            here = np.flatnonzero(epsg == zone)
            x[here], y[here] = project(points.x.to_numpy()[here], points.y.to_numpy()[here], int(zone))
        row, col = grid.row_col(x, y, left[tile], top[tile])
        off = np.maximum(np.abs(row - sound['row']), np.abs(col - sound['col'])) > _PLACE_PX
        yield from _some('a photo stands elsewhere in its tile than its pair says:', sound['photo_id'][off])
        outside = ~grid.holds(sound['row'].to_numpy(), sound['col'].to_numpy())
        yield from _some('a pair lies outside its tile:', sound['photo_id'][outside])

    return len(pairs), look()


def _splits(store: PairStore) -> tuple[int, Iterator[str]]:
    """No tile crosses a split: all blocks of the Earth that it touches have its split, and a photo has one split."""
    grid, tiles = _grid(store), store.tiles
    if store.marker.imported:
        return len(tiles), _sides(store)
    recipe = parse_settings(store.marker.recipe, Recipe, str(store.path / MARKER))
    left, top = _corners(tiles)

    def look() -> Iterator[str]:
        wrong = np.zeros(len(tiles), dtype=bool)
        epsg = tiles['epsg'].to_numpy()
        for zone in np.unique(epsg):
            here = np.flatnonzero(epsg == zone)
            boxes = grid.bounds_lonlat(int(zone), left[here], top[here])
            blocks = blocks_touched(*boxes, recipe.split.block_km)
            names = split_of_blocks(blocks, recipe.split.shares, recipe.plan.seed)
            wrong[here] = (names != tiles['split'].to_numpy(dtype=object)[here][:, None]).any(axis=1)
        yield from _some('a tile crosses splits or has the wrong one:', tiles['tile_id'][wrong])
        yield from _sides(store)

    return len(tiles), look()


def _sides(store: PairStore) -> Iterator[str]:
    """A photo is on one side alone."""
    pairs = store.pairs
    split = pd.Series(store.tiles['split'].to_numpy(dtype=object)[pairs['tile'].to_numpy()], index=pairs.index)
    sides = split.groupby(pairs['photo_id']).nunique()
    yield from _some('a photo is in tiles of several splits:', sides.index[sides > 1].to_series())


def _reasons(store: PairStore) -> tuple[int, Iterator[str]]:
    """Every rejected row has a reason, and no used photo is among them."""

    def look() -> Iterator[str]:
        rejected = store.rejected
        yield from _some('rejected.parquet gives no reason for', rejected['id'][rejected['reason'].isna()])
        photos = rejected[rejected['kind'] == 'photo']
        # a second row of the same id is rejected as such, while the first one is used
        both = photos['id'].isin(store.photos['photo_id']) & ~photos['reason'].str.startswith('duplicate')
        yield from _some('a photo is used and rejected:', photos['id'][both])

    return len(store.rejected), look()


def _some(problem: str, names: pd.Series) -> Iterator[str]:
    """A sentence with the first few names, if there are any."""
    if len(names):
        shown = ', '.join(str(n) for n in names.iloc[:_EXAMPLES])
        more = f' and {len(names) - _EXAMPLES} more' if len(names) > _EXAMPLES else ''
        yield f'{problem} {shown}{more}'
