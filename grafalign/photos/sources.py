"""Where photos come from: a folder of images with EXIF, or a table that lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import geopandas as gpd
import pandas as pd
from pydantic import model_validator

from grafalign import console, engine
from grafalign.config import Settings
from grafalign.errors import GrafalignError
from grafalign.photos.exif import PhotoFacts, read_facts
from grafalign.photos.table import Photos, check_photos

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff')
_GUESSES = {
    'photo_id': ('photo_id', 'id', 'name'),
    'uri': ('uri', 'path', 'file', 'filename', 'url'),
    'lon': ('lon', 'longitude', 'lng', 'long'),
    'lat': ('lat', 'latitude'),
    'accuracy_m': ('accuracy_m', 'accuracy'),
    'heading_deg': ('heading_deg', 'heading', 'compass_angle'),
    'taken_at': ('taken_at', 'datetime', 'date_taken', 'captured_at'),
    'licence': ('licence', 'license'),
    'author': ('author', 'user', 'owner'),
    'source': ('source',),
}


class PhotoSource(Settings):
    """The `photos:` part of a recipe; give `folder` or `table`."""

    folder: Path | None = None
    """Folder of images, searched with its subfolders; positions come from EXIF."""
    table: Path | None = None
    """CSV, Parquet, GeoParquet or GeoJSON; one photo a row."""
    columns: dict[str, str] = {}
    """Our column name to the table's, where they differ (photo_id, uri, lon, lat, taken_at ...)."""
    root: Path | None = None
    """Folder that the table's uris are relative to; the table's own folder by default."""
    verify: bool = True
    """Decode every local image once, so that damaged ones are rejected now."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.table is None):
            raise ValueError('give exactly one of `folder` and `table`')
        unknown = set(self.columns) - set(_GUESSES)
        if unknown:
            raise ValueError(f'`columns` knows {", ".join(_GUESSES)}, not {", ".join(sorted(unknown))}')
        return self


def read_photos(source: PhotoSource, workers: int | None = None) -> Photos:
    """Read and check all photos of a source.

    Raises:
        GrafalignError: the folder or table is missing or unreadable, a column is missing, or no photo is usable.
    """
    if source.folder is not None:
        return _read_folder(source.folder, source.verify, workers)
    assert source.table is not None
    return _read_table(source, source.table, workers)


def _read_folder(folder: Path, verify: bool, workers: int | None) -> Photos:
    if not folder.is_dir():
        raise GrafalignError(f'There is no folder {folder}; set photos.folder to a folder of images.')
    paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    facts = _facts(paths, verify, workers)
    frame = pd.DataFrame(
        {
            'photo_id': [p.relative_to(folder).as_posix() for p in paths],
            'uri': [str(p.resolve()) for p in paths],
            'lon': [f.lon for f in facts],
            'lat': [f.lat for f in facts],
            'accuracy_m': [f.accuracy_m for f in facts],
            'heading_deg': [f.heading_deg for f in facts],
            'taken_at': [f.taken_at for f in facts],
            'problem': [f.problem for f in facts],
            'source': folder.name,
        }
    )
    return check_photos(frame, str(folder))


def _facts(paths: list[Path], verify: bool, workers: int | None) -> list[PhotoFacts]:
    facts = [PhotoFacts()] * len(paths)
    chunks = [range(i, min(i + 64, len(paths))) for i in range(0, len(paths), 64)]

    def read(rows: range) -> list[PhotoFacts]:
        return [read_facts(paths[i], verify) for i in rows]

    for index, part in console.track(engine.run(read, chunks, workers), 'reading photos', len(paths), step=64):
        for row, fact in zip(chunks[index], part, strict=True):
            facts[row] = fact
    return facts


def _read_table(source: PhotoSource, path: Path, workers: int | None) -> Photos:
    raw = _load(path)
    frame = pd.DataFrame(index=raw.index)
    for ours, guesses in _GUESSES.items():
        wanted = source.columns.get(ours)
        if wanted is not None and wanted not in raw:
            columns = ', '.join(map(str, raw.columns))
            raise GrafalignError(f'{path} has no column {wanted!r} for {ours}; its columns are {columns}.')
        lower = {str(c).lower(): c for c in reversed(raw.columns)}
        theirs = wanted or next((lower[g] for g in guesses if g in lower), None)
        if theirs is not None:
            frame[ours] = raw[theirs]
    if isinstance(raw, gpd.GeoDataFrame) and raw.geometry is not None:
        points = raw.geometry.to_crs(4326) if raw.crs else raw.geometry
        points = points.where(points.geom_type == 'Point')  # anything else is no place to stand: its row is rejected
        frame['lon'], frame['lat'] = points.x.to_numpy(), points.y.to_numpy()
    missing = [c for c in ('uri', 'lon', 'lat') if c not in frame]
    if missing:
        raise GrafalignError(
            f'{path} has no column for {" and ".join(missing)}; name it in the recipe, for example '
            f'photos: {{columns: {{{missing[0]}: COLUMN}}}}. Its columns are {", ".join(map(str, raw.columns))}.'
        )
    if 'photo_id' not in frame:
        frame['photo_id'] = frame['uri']
    root = (source.root or path.parent).resolve()
    local = ~frame['uri'].astype('string').str.contains('://', regex=False).fillna(True)
    remote = ~local & frame['uri'].notna()
    frame['problem'] = pd.Series(None, index=frame.index, dtype=object).mask(remote, 'not a local file')
    if local.any():
        files = [root / str(u) for u in frame.loc[local, 'uri']]
        facts = _facts(files, source.verify, workers)
        frame.loc[local, 'problem'] = pd.Series([f.problem for f in facts], index=frame.index[local], dtype=object)
        frame.loc[local, 'uri'] = [str(f) for f in files]
        for column in ('taken_at', 'heading_deg', 'accuracy_m'):
            if column not in frame:  # the table does not speak of it at all, so the files may
                told = pd.Series([getattr(f, column) for f in facts], index=frame.index[local], dtype=object)
                frame[column] = told.reindex(frame.index)
    return check_photos(frame.reset_index(drop=True), str(path))


def _load(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise GrafalignError(
            f'There is no file {path}; set photos.table to a CSV, Parquet, GeoParquet or GeoJSON file.'
        )
    try:
        match path.suffix.lower():
            case '.csv':
                return pd.read_csv(path, dtype={'photo_id': str})
            case '.tsv':
                return pd.read_csv(path, sep='\t', dtype={'photo_id': str})
            case '.parquet' | '.geoparquet':
                try:
                    return gpd.read_parquet(path)
                except ValueError:  # Parquet without a geometry
                    return pd.read_parquet(path)
            case '.geojson' | '.json':
                return gpd.read_file(path)
    except GrafalignError:
        raise
    except Exception as error:  # readers raise types of their own: the user needs the file's name
        raise GrafalignError(f'{path} cannot be read as a table ({error}); check that it is whole.') from None
    raise GrafalignError(
        f'{path}: {path.suffix or "a file without suffix"} is not a known kind of table; '
        'use .csv, .tsv, .parquet, .geoparquet or .geojson.'
    )
