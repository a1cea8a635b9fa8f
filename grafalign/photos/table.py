"""The photo table: one row a photo, with a checked place; and beside it every rejected row with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from grafalign.errors import GrafalignError
from grafalign.geo import UTM_NORTH_LIMIT, UTM_SOUTH_LIMIT

COLUMNS = ('photo_id', 'accuracy_m', 'heading_deg', 'taken_at', 'uri', 'licence', 'author', 'source')
REJECTED_COLUMNS = ('kind', 'id', 'reason', 'detail')


@dataclass(frozen=True)
class Photos:
    """Usable photos and the rejected ones."""

    table: gpd.GeoDataFrame
    """EPSG:4326 points with `COLUMNS`, sorted by `photo_id`."""
    rejected: pd.DataFrame
    """`REJECTED_COLUMNS`."""


def check_photos(frame: pd.DataFrame, source: str) -> Photos:
    """Turn raw rows into a photo table.

    Args:
        frame: `photo_id`, `uri`, `lon`, `lat` (degrees), `problem` (None or the reason a file is unusable) and any of
            the other `COLUMNS`.
        source: file or folder to name in errors.

    Raises:
        GrafalignError: no usable photo, or latitude and longitude are swapped in the whole table.
    """
    if not len(frame):
        raise GrafalignError(f'{source} holds no photos; give a folder of images or a table with one photo a row.')
    frame = frame.copy()
    frame['photo_id'] = frame['photo_id'].astype(str)
    for column in COLUMNS:
        if column not in frame:
            frame[column] = None
    lon, lat = (pd.to_numeric(frame[c], errors='coerce').to_numpy(dtype=float) for c in ('lon', 'lat'))
    reject_swapped(lon, lat, source)
    reason = np.full(len(frame), None, dtype=object)

    def mark(where: np.ndarray, text: str) -> None:
        reason[where & pd.isna(reason)] = text

    if 'problem' in frame:
        problem = frame['problem'].to_numpy(dtype=object)
        known = ~pd.isna(problem)
        reason[known] = problem[known]
    mark(np.isnan(lon) | np.isnan(lat), 'no position')
    mark((np.abs(lat) > 90) | (np.abs(lon) > 180), 'impossible coordinates')
    mark((np.abs(lon) < 1e-6) & (np.abs(lat) < 1e-6), 'position 0, 0')
    mark((lat > UTM_NORTH_LIMIT) | (lat < UTM_SOUTH_LIMIT), 'outside the UTM zones (80 S to 84 N)')
    mark(frame['uri'].isna().to_numpy(), 'no uri')
    mark(frame.duplicated('photo_id', keep='first').to_numpy(), 'duplicate photo_id')
    bad = ~pd.isna(reason)
    detail = [f'lon {x}, lat {y}' for x, y in zip(frame['lon'], frame['lat'], strict=True)]
    rejected = pd.DataFrame(
        {'kind': 'photo', 'id': frame['photo_id'], 'reason': reason, 'detail': detail}, columns=list(REJECTED_COLUMNS)
    )[bad].reset_index(drop=True)
    if bad.all():
        worst = rejected['reason'].value_counts().index[0]
        raise GrafalignError(
            f'{source}: none of the {len(frame)} photos can be used (most often: {worst}); '
            'check that the images carry a position, or name the position columns in the recipe.'
        )
    kept = frame.loc[~bad, list(COLUMNS)].copy()
    kept['photo_id'], kept['uri'] = kept['photo_id'].astype('string'), kept['uri'].astype('string')
    for column in ('accuracy_m', 'heading_deg'):
        kept[column] = pd.to_numeric(kept[column], errors='coerce').astype('float64')
    for column in ('licence', 'author', 'source'):
        kept[column] = kept[column].astype('string')
    kept['taken_at'] = _times(kept['taken_at']).astype('datetime64[us, UTC]')
    table = gpd.GeoDataFrame(kept, geometry=gpd.points_from_xy(lon[~bad], lat[~bad]), crs='EPSG:4326')
    table = table.sort_values('photo_id', ignore_index=True)
    return Photos(table, rejected.sort_values('id', ignore_index=True, kind='stable'))


def _times(column: pd.Series) -> pd.Series:
    """UTC times of a column: dates in any spelling, or numbers of seconds or milliseconds since 1970."""
    if pd.api.types.is_numeric_dtype(column):
        milliseconds = column.abs().median() > 1e11  # as seconds, that would be the year 5138
        return pd.to_datetime(column, unit='ms' if milliseconds else 's', utc=True, errors='coerce')
    # mixed: by default the first row sets the format, and rows with a fraction of a second or a day alone would be lost
    return pd.to_datetime(column, utc=True, errors='coerce', format='mixed')


def reject_swapped(lon: np.ndarray, lat: np.ndarray, source: str) -> None:
    """Raise if latitude and longitude are exchanged in the table as its values show: latitudes beyond 90 degrees."""
    usable = ~(np.isnan(lon) | np.isnan(lat))
    if usable.sum() == 0:
        return
    beyond = np.abs(lat[usable]) > 90
    fits = (np.abs(lon[usable]) <= 90) & (np.abs(lat[usable]) <= 180)
    if beyond.mean() > 0.5 and fits[beyond].all():
        raise GrafalignError(
            f'{source}: latitude and longitude look swapped ({beyond.sum()} of {usable.sum()} latitudes lie beyond 90 '
            'degrees and would be longitudes); exchange the `lon` and `lat` columns in the recipe.'
        )
