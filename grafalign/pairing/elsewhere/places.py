"""Where photos stand in their tiles, and where tiles lie that do not know it themselves."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from grafalign.geo import METRES_PER_DEGREE
from grafalign.pairing.elsewhere.tiles import Tiles


def place_photos(rows: pd.DataFrame, tiles: Tiles) -> pd.DataFrame:
    """Rows with `row` and `col` in pixels of the tile.

    Said by the table in pixels of the picture, or found from the photo's position in a georeferenced one; otherwise
    the photo is taken to stand in the middle.

    Args:
        rows: one row a pair, with columns of `rows.COLUMNS`.
        tiles: as they were cut.
    """
    size = tiles.sensor.size_px
    at = np.full((len(rows), 2), size / 2)
    for number, pair in enumerate(rows.itertuples(index=False)):
        ground, square = tiles.grounds.get(pair.tile_id), tiles.squares[pair.tile_id]
        if np.isfinite(pair.row) and np.isfinite(pair.col):
            place = pair.row, pair.col
        elif ground is not None and np.isfinite(pair.lon) and np.isfinite(pair.lat):
            place = ground.row_col(pair.lon, pair.lat)
        else:
            continue
        at[number] = (np.array(place) - (square.top, square.left)) * size / square.side
    return rows.assign(row=at[:, 0], col=at[:, 1])


def outlines(tiles: gpd.GeoDataFrame, rows: pd.DataFrame, pairs: pd.DataFrame, sensor: Any) -> gpd.GeoDataFrame:
    """Tiles with an outline, where their middle is known: from the table, or from a photo that stands in them.

    Args:
        tiles: `tiles.parquet`; outlines that are there stay.
        rows: all rows, those of tiles without photos, too.
        pairs: rows with a photo, `row` and `col` in pixels of the tile.
        sensor: size and metres a pixel.
    """
    half = sensor.size_px / 2
    metres = sensor.gsd_m
    middle = rows[['tile_id', 'tile_lon', 'tile_lat']].rename(columns={'tile_lon': 'lon', 'tile_lat': 'lat'})
    north = (pairs['row'] - half) * metres / METRES_PER_DEGREE
    by_photo = pd.DataFrame({'tile_id': pairs['tile_id'], 'lat': pairs['lat'] + north})
    east = (pairs['col'] - half) * metres / METRES_PER_DEGREE / np.cos(np.deg2rad(by_photo['lat']))
    by_photo['lon'] = pairs['lon'] - east
    middles = pd.concat([middle, by_photo]).dropna().drop_duplicates('tile_id').set_index('tile_id')
    middles = middles.reindex(tiles['tile_id'])
    lon, lat = middles['lon'].to_numpy(), middles['lat'].to_numpy()
    up = half * metres / METRES_PER_DEGREE
    side = up / np.cos(np.deg2rad(lat))
    lon = np.remainder(lon - side + 180, 360) - 180 + side  # across the antimeridian longitudes exceed 180
    boxes = shapely.box(lon - side, lat - up, lon + side, lat + up)
    boxes[np.isnan(lon)] = None
    return tiles.set_geometry(tiles.geometry.where(tiles.geometry.notna(), gpd.GeoSeries(boxes, tiles.index, crs=4326)))
