"""From a plan and the metadata of its cut tiles to the four tables of a pair store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign.errors import InputError
from grafalign.pairing.plan import Plan
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.tile_progress import UNREADABLE
from grafalign.photos import Photos
from grafalign.photos.table import REJECTED_COLUMNS
from grafalign.scenes.local import Rejected
from grafalign.scenes.regions import across_antimeridian


@dataclass(frozen=True)
class Tables:
    """The tables; `grafalign.store` says what is in them."""

    photos: gpd.GeoDataFrame
    tiles: gpd.GeoDataFrame
    pairs: pd.DataFrame
    rejected: pd.DataFrame
    dtype: str
    """Data type of all pixels."""


def make_tables(
    recipe: Recipe,
    photos: Photos,
    plan: Plan,
    cut: list[dict[str, Any]],
    rejects: list[Rejected],
    refused: dict[str, str],
) -> Tables:
    """Join what was planned with what was cut; whatever is in no pair goes to `rejected` with its reason.

    Args:
        recipe: the recipe.
        photos: the photo table and its rejected rows.
        plan: the plan over those photos.
        cut: metadata of every cut tile, with its row `number` in the plan, in the order of the shards.
        rejects: tiles that could not be cut and scenes that could not be read.
        refused: `made_from` of the tiles of which all scenes could be read and none would do, by tile id.

    Raises:
        GrafalignError: no tile could be cut, or the scenes store their pixels in several types.
    """
    if not cut:
        counts = pd.Series([reason for _, _, reason, _ in rejects]).value_counts()
        detail = next((d for *_, d in rejects if d), '')
        again = ' If the scenes were away, run it again with --retry-failed.' if UNREADABLE in counts.index else ''
        raise InputError(
            f'None of the {len(plan.tiles)} tiles could be cut (most often: {counts.index[0]}; {detail}); '
            f'check the scenes, sensor.bands and max_nodata of the recipe.{again}'
        )
    kinds = {str(r['dtype']) for r in cut}
    if len(kinds) > 1:
        raise InputError(
            f'The scenes store their pixels as {" and ".join(sorted(kinds))}; a store holds one type, so narrow '
            'scenes.collections to one sensor and pair into another folder.'
        )
    tiles = pd.DataFrame(cut).set_index('number')
    pairs = plan.pairs[plan.pairs['tile'].isin(tiles.index)].sort_values(['tile', 'photo'])
    used = np.unique(pairs['photo'])
    when = pd.to_datetime(tiles['datetime'], utc=True, format='ISO8601').astype('datetime64[us, UTC]')
    return Tables(
        _photo_table(photos, used),
        _tile_table(recipe, plan, tiles, when),
        _pair_table(photos, tiles, pairs, when),
        _rejected_table(photos, plan, used, rejects, refused),
        kinds.pop(),
    )


def _photo_table(photos: Photos, used: npt.NDArray[np.int64]) -> gpd.GeoDataFrame:
    table = photos.table.iloc[used]
    points = gpd.points_from_xy(table['lon'], table['lat'])
    return gpd.GeoDataFrame(table.drop(columns=['lon', 'lat']), geometry=points, crs='EPSG:4326')


def _tile_table(recipe: Recipe, plan: Plan, tiles: pd.DataFrame, when: pd.Series) -> gpd.GeoDataFrame:
    gsd = recipe.sensor.gsd_m
    corners = zip(tiles['left'], tiles['top'], strict=True)
    columns = tiles.drop(columns=['datetime', 'left', 'top', 'dtype']).assign(
        datetime=when,
        transform=pd.Series([[gsd, 0.0, left, 0.0, -gsd, top] for left, top in corners], index=tiles.index),
        cloud_cover=tiles['cloud_cover'].astype('float64'),
        processing_baseline=tiles['processing_baseline'].astype('string'),
        tile_cloud_percent=tiles['tile_cloud_percent'].astype('float64'),
        days_apart=tiles['days_apart'].astype('float64'),
    )
    outlines = recipe.grid.polygons(*(tiles[c].to_numpy() for c in ('epsg', 'left', 'top')))
    # in two parts where they cross the antimeridian (RFC 7946), so that a region on either side finds them
    over = np.flatnonzero(shapely.bounds(outlines)[:, 2] > 180)
    outlines[over] = [across_antimeridian(outline) for outline in outlines[over]]
    return gpd.GeoDataFrame(columns, geometry=outlines, crs='EPSG:4326')


def _pair_table(photos: Photos, tiles: pd.DataFrame, pairs: pd.DataFrame, when: pd.Series) -> pd.DataFrame:
    taken = pd.to_datetime(photos.table['taken_at'].to_numpy()[pairs['photo']], utc=True)
    seen = pd.to_datetime(when.loc[pairs['tile']].to_numpy(), utc=True)
    return pd.DataFrame(
        {
            'tile_id': tiles['tile_id'].loc[pairs['tile']].to_numpy(),
            'photo_id': photos.table['photo_id'].to_numpy()[pairs['photo']],
            'row': pairs['row'].to_numpy(),
            'col': pairs['col'].to_numpy(),
            'days_apart': (pd.Series(seen - taken).dt.total_seconds() / 86400).to_numpy(),
        }
    )


def _rejected_table(
    photos: Photos, plan: Plan, used: npt.NDArray[np.int64], rejects: list[Rejected], refused: dict[str, str]
) -> pd.DataFrame:
    reasons = pd.Series('its tile could not be cut', index=np.arange(len(photos.table)), dtype='str')
    reasons.loc[plan.dropped['photo']] = plan.dropped['reason'].astype('str').to_numpy()
    unused = np.setdiff1d(np.arange(len(photos.table)), used)
    lost = pd.DataFrame(
        {
            'kind': 'photo',
            'id': photos.table['photo_id'].to_numpy()[unused],
            'reason': reasons.to_numpy()[unused],
            'detail': '',
        }
    )
    ours = pd.DataFrame.from_records(rejects, columns=list(REJECTED_COLUMNS))
    parts = [part.astype('string') for part in (ours, lost, photos.rejected) if len(part)] or [ours.astype('string')]
    table = pd.concat(parts, ignore_index=True).sort_values(list(REJECTED_COLUMNS), ignore_index=True)
    made_from = table['id'].map(refused).where(table['kind'] == 'tile')
    return table.assign(made_from=made_from.astype('string'))
