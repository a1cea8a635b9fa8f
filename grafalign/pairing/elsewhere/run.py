"""Make a pair store of pairs that others made: read, check, cut to one size, split by place, write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from grafalign import console
from grafalign.errors import InputError
from grafalign.files import file_digest, write_table
from grafalign.geo import TileGrid
from grafalign.locks import exclusive, refuse_other_files
from grafalign.pairing.elsewhere.ids import in_archive, tile_ids
from grafalign.pairing.elsewhere.layouts import READERS
from grafalign.pairing.elsewhere.places import outlines, place_photos
from grafalign.pairing.elsewhere.rows import PROBLEM, ROLES, PairRows, read_table
from grafalign.pairing.elsewhere.settings import PairImport
from grafalign.pairing.elsewhere.splits import splits_of
from grafalign.pairing.elsewhere.tiles import Tiles
from grafalign.photos.local_images import with_metadata
from grafalign.photos.spelled_times import TimeSettings, read_times
from grafalign.photos.table import REJECTED_COLUMNS, SCHEMA, Marks, canonical, mark_impossible_times
from grafalign.photos.uris import SCHEMES, is_local, resolve_uris
from grafalign.store import MARKER, SCHEMA_VERSION, PairStore
from grafalign.store_marker import PairSummary, StoreMarker

_TABLES = ('photos', 'tiles', 'pairs', 'rejected')
_BEGUN = '.importing'
"""A file that says that what else is in the folder was written by an import that did not end."""
_SAID_ONCE = (
    ('photo', ['photo_id'], ('lon', 'lat', 'heading_deg', 'field_of_view_deg', 'accuracy_m', 'taken_at')),
    ('tile', ['tile_id'], ('tile_lon', 'tile_lat')),
    ('pair', ['photo_id', 'tile_id'], ('role', 'row', 'col')),
)
"""What rows that are about the same thing have to agree in."""
Rejected = list[tuple[str, str, str, str]]
"""Rows of `REJECTED_COLUMNS`."""


def import_pairs(settings: PairImport, out: Path, workers: int | None = None) -> PairSummary:
    """Write a pair store of pairs that others made; one that is complete and of the same settings stays.

    Args:
        settings: what is read, and how.
        out: the store's folder.
        workers: threads that decode pictures.

    Returns:
        Counts of the store.

    Raises:
        GrafalignError: the source cannot be read or holds no usable pair, pictures do not fit together, a place is in
            two splits, or `out` holds something else.
    """
    with exclusive(out):
        if settings.layout == 'table':
            given = read_table(settings.source, settings.columns, settings.root)
        else:
            given = READERS[settings.layout](settings.source, settings.ground)
        digest = _digest(settings, given)
        if (out / MARKER).is_file():
            marker = PairStore(out).marker
            if marker.recipe_digest != digest or marker.summary is None:
                raise InputError(
                    f'{out} holds another store: of other settings, or of {settings.source} before it was changed; '
                    'give another folder or delete it.'
                )
            console.log(f'{out} is already complete.')
            return marker.summary
        if (out / _BEGUN).is_file():
            shutil.rmtree(out / 'tiles', ignore_errors=True)
        else:
            refuse_other_files(out, (), 'the store')  # nothing is deleted or overwritten that is not ours
        (out / _BEGUN).touch()
        summary = _write(settings, given, digest, out, workers)
        (out / _BEGUN).unlink()
        return summary


def _digest(settings: PairImport, given: PairRows) -> str:
    """Digest of the settings and of all rows, so that an edited table is another store."""
    rows = pd.util.hash_pandas_object(given.frame.astype('string').fillna(''), index=False).to_numpy()
    content = settings.digest.encode() + rows.tobytes() + repr(given.malformed).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(settings: PairImport, given: PairRows, digest: str, out: Path, workers: int | None) -> PairSummary:
    name = str(settings.source)
    if given.frame.empty:
        raise InputError(f'{name} lists no pair; copy its lists again.')
    rows, rejected = _resolved(given, name)
    rows['split'] = splits_of(rows, settings.shares, settings.seed, name)
    photos = _photos(rows, rejected, name, workers)
    cutter = Tiles(settings, given.gsd_m, out)
    tiles = cutter.write(rows.sort_values('tile_id').drop_duplicates('tile_id')[['tile_id', 'tile', 'split']], workers)
    rejected += cutter.rejected
    there = rows['photo_id'].isin(photos['photo_id']) & rows['tile_id'].isin(tiles['tile_id'])
    pairs = rows[there].drop_duplicates(['tile_id', 'photo_id']).sort_values(['tile_id', 'photo_id'], ignore_index=True)
    if pairs.empty:
        kind, first, reason, _ = next(iter(rejected), ('row', '1', 'names no photo', ''))
        raise InputError(f'{name} has no pair of a photo and a tile that can be read ({kind} {first}: {reason}).')
    pairs = place_photos(pairs, cutter)
    grid = TileGrid(cutter.sensor.size_px, cutter.sensor.gsd_m)
    inside = grid.holds(pairs['row'].to_numpy(), pairs['col'].to_numpy())
    for pair in pairs[~inside].itertuples():
        where = f'{pair.photo_id} on {pair.tile_id}'
        rejected.append(('pair', where, 'the photo is outside the tile', f'{pair.row:.1f}, {pair.col:.1f}'))
    if not inside.any():
        first = pairs.iloc[0]
        raise InputError(
            f'{name}: every photo lies outside its tile ({first["photo_id"]} at row {first["row"]:.0f}, column '
            f'{first["col"]:.0f} of {first["tile_id"]}); check row and col, or whether lon and lat are exchanged.'
        )
    pairs = pairs[inside].reset_index(drop=True)
    lost = photos.loc[~photos['photo_id'].isin(pairs['photo_id']), 'photo_id']
    rejected += [('photo', str(i), 'in no tile that can be read, or outside of it', '') for i in lost]
    used = set(pairs['photo_id'])  # a row of a photo that has others is no loss of the photo
    rejected = [('pair', i, r, d) if k == 'photo' and i in used else (k, i, r, d) for k, i, r, d in rejected]
    tables = {
        'photos': _photo_table(photos[photos['photo_id'].isin(pairs['photo_id'])]),
        'tiles': outlines(tiles, rows, pairs, cutter.sensor),
        'pairs': pairs[['tile_id', 'photo_id', 'row', 'col', 'role']].assign(days_apart=np.nan),
        'rejected': pd.DataFrame(rejected, columns=list(REJECTED_COLUMNS), dtype='string')
        .drop_duplicates(['kind', 'id', 'reason'])
        .sort_values(['kind', 'id', 'reason'], ignore_index=True),
    }
    return _finish(settings, digest, cutter, tables, out)


def _resolved(given: PairRows, name: str) -> tuple[pd.DataFrame, Rejected]:
    """Rows with ids and absolute files; those that cannot be used are rejected."""
    rows = given.frame.copy()
    rejected: Rejected = [('photo', i, 'malformed row', detail) for i, detail in given.malformed]
    rows['photo_id'] = rows['photo_id'].fillna(rows['photo'])
    given_ids = pd.Series([None if pd.isna(i) else in_archive(i) for i in rows['tile_id']], dtype='string')
    rows['tile_id'] = given_ids.fillna(tile_ids(rows['tile']))
    problem = rows[PROBLEM].mask(rows[PROBLEM].isna() & rows['tile'].isna(), 'the row names no tile')
    for kind in ('tile', 'photo'):
        uris, wrong = resolve_uris(_column(rows[kind]), str(given.root), SCHEMES)
        rows[kind] = _behind_links(uris.to_pandas().astype('string'))
        problem = problem.fillna(wrong.to_pandas().astype('string'))
    away = rows['tile'].notna() & ~is_local(_column(rows['tile']))
    problem = problem.mask(problem.isna() & away, 'its tile is not on this machine')
    for east, north in (('lon', 'lat'), ('tile_lon', 'tile_lat')):
        far = rows[east].abs().gt(180) | rows[north].abs().gt(90)
        problem = problem.mask(problem.isna() & far, 'impossible coordinates')
        unset = rows[east].abs().lt(1e-6) & rows[north].abs().lt(1e-6)
        problem = problem.mask(problem.isna() & unset, 'position 0, 0')
    for photo, tile, reason in zip(rows['photo_id'], rows['tile_id'], problem, strict=True):
        if pd.notna(reason):
            what = ('tile', str(tile)) if pd.isna(photo) else ('photo', str(photo))
            rejected.append((*what, str(reason), ''))
    odd = ~rows['role'].isin(ROLES)
    if odd.any():
        raise InputError(f'{name} has the role {rows["role"][odd].iloc[0]!r}; write {", ".join(ROLES)}.')
    rows = rows[problem.isna()].reset_index(drop=True)
    if rows.empty:
        raise InputError(f'{name} has no row that can be used (the first: {rejected[0][2]}); mend the table.')
    for kind in ('photo', 'tile'):
        files = rows.dropna(subset=[kind]).groupby(f'{kind}_id')[kind].nunique()
        if (files > 1).any():
            twice = files.index[files > 1]
            raise InputError(
                f'{name} gives the {kind}_id {twice[0]!r} to several files ({len(twice):,} such ids); give every '
                f'{kind} an id of its own, or leave the column out.'
            )
    _refuse_contradictions(rows, name)
    return rows, rejected


def _refuse_contradictions(rows: pd.DataFrame, name: str) -> None:
    """Rows of one photo, one tile or one pair say the same of it, or nothing."""
    rows = rows.assign(taken_at=_in_one_spelling(rows['taken_at']))
    for of, keys, columns in _SAID_ONCE:
        for column in columns:
            said = rows.dropna(subset=[*keys, column]).drop_duplicates([*keys, column])
            again = said[said.duplicated(keys, keep=False)]
            if len(again):
                first = again.iloc[0]
                values = again[again[keys].eq(first[keys]).all(axis=1)][column].iloc[:2]
                raise InputError(
                    f'{name} gives the {of} {" on ".join(first[keys])} the {column} {" and ".join(map(str, values))} '
                    f'({again.groupby(keys).ngroups:,} such); leave one of them.'
                )


def _in_one_spelling(spelled: pd.Series) -> pd.Series:
    """Times as texts that are equal where the times are; texts that are no clear time as they are."""
    times, _ = read_times(_column(spelled), TimeSettings())
    return pd.Series(pc.cast(times, pa.string()).to_pandas(), dtype='string').fillna(spelled.reset_index(drop=True))


def _behind_links(files: pd.Series) -> pd.Series:
    """Local files as they are called without links, so that one file is not taken for two; others as they are."""
    names = files.dropna().unique()
    return files.map({n: n if '://' in n else os.path.realpath(n) for n in names}).astype('string')


def _column(texts: pd.Series) -> pa.Array:
    """Texts as one Arrow array, whatever number of parts they were read in."""
    return pa.array(texts.to_numpy(dtype=object), pa.string(), from_pandas=True)


def _photos(rows: pd.DataFrame, rejected: Rejected, name: str, workers: int | None) -> pd.DataFrame:
    """The photos that can be read, once each, sorted by id; the others are rejected."""
    once = rows.dropna(subset=['photo']).drop_duplicates('photo_id').sort_values('photo_id', ignore_index=True)
    columns = {ours: pa.array(once[ours], from_pandas=True) for ours in SCHEMA.names if ours in once}
    table = canonical(columns | {'uri': _column(once['photo'])}, len(once))
    unsure = table['unsure'].drop_null()
    if len(unsure):
        raise InputError(
            f'{name}: the time {unsure[0].as_py()!r} may have its day or its month first; write times as 2021-04-03.'
        )
    marks = Marks(table)
    mark_impossible_times(marks)
    local = np.flatnonzero(is_local(table['uri'].combine_chunks()))
    if len(local):
        table = with_metadata(table.combine_chunks(), local, set(), True, workers)
    kinds = {pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.string(): pd.StringDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    frame['problem'] = frame['problem'].mask(frame['problem'].isna() & ~marks.free, 'impossible time')
    bad = frame['problem'].notna()
    rejected += [
        ('photo', str(i), str(p), '') for i, p in zip(frame['photo_id'][bad], frame['problem'][bad], strict=True)
    ]
    return frame[~bad].drop(columns=['problem', 'detail', 'unsure'])


def _photo_table(photos: pd.DataFrame) -> gpd.GeoDataFrame:
    points = gpd.points_from_xy(photos['lon'], photos['lat'], crs='EPSG:4326')
    points[photos['lon'].isna().to_numpy() | photos['lat'].isna().to_numpy()] = None
    return gpd.GeoDataFrame(photos.drop(columns=['lon', 'lat']), geometry=points)


def _finish(settings: PairImport, recipe_digest: str, cutter: Tiles, tables: dict[str, Any], out: Path) -> PairSummary:
    """Write the tables, then the marker."""
    for name in _TABLES:
        write_table(tables[name], out / f'{name}.parquet')
    rejected = tables['rejected']
    lost = int(rejected['id'][rejected['kind'] == 'photo'].nunique())
    summary = PairSummary(
        photos=len(tables['photos']) + lost,
        rejected=lost,
        tiles=len(tables['tiles']),
        pairs=len(tables['pairs']),
        failed=0,
        splits={str(k): int(v) for k, v in tables['tiles']['split'].value_counts().sort_index().items()},
        reasons={str(k): int(v) for k, v in rejected['reason'].value_counts().items()},
    )
    files = {f'{name}.parquet': file_digest(out / f'{name}.parquet') for name in _TABLES} | cutter.files
    StoreMarker(
        schema_version=SCHEMA_VERSION,
        sensor=cutter.sensor,
        dtype=cutter.dtype,
        imported=settings.model_dump(mode='json'),
        recipe_digest=recipe_digest,
        summary=summary,
        files=files,
        digest=hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest(),
    ).write(out / MARKER)
    return summary
