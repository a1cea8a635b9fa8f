"""Where on the ground the images of a set lie: tiles of a pair store exactly, pictures by centre and pixel size."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import shapely

from grafalign.captions.caption_set import CaptionSet
from grafalign.errors import InputError
from grafalign.geo import project, unproject, utm_epsg
from grafalign.store import PairStore


@dataclass(frozen=True)
class Footprint:
    """A north-up image on the ground."""

    row: int
    """In images.parquet."""
    image_id: str
    epsg: int
    left: float
    """Easting of its left edge, metres."""
    top: float
    """Northing of its top edge, metres."""
    gsd_m: float
    width: int
    height: int
    taken: date | None
    """Day of the scene, where known."""

    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees."""
        right, bottom = self.left + self.width * self.gsd_m, self.top - self.height * self.gsd_m
        along = np.linspace(0, 1, 6)
        x = np.concatenate([self.left + (right - self.left) * along] * 2 + [np.full(6, self.left), np.full(6, right)])
        y = np.concatenate([np.full(6, bottom), np.full(6, self.top)] + [bottom + (self.top - bottom) * along] * 2)
        lon, lat = unproject(x, y, self.epsg)
        return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())

    def to_pixels(self, shape: Any) -> Any:
        """A shape in degrees as one in pixels: across to the right, down from the top edge."""

        def place(points: np.ndarray) -> np.ndarray:
            east, north = project(points[:, 0], points[:, 1], self.epsg)
            return np.stack([(east - self.left) / self.gsd_m, (self.top - north) / self.gsd_m], axis=1)

        return shapely.transform(shape, place)


def footprints(captions: CaptionSet) -> list[Footprint]:
    """Footprints of all images that have one.

    Raises:
        GrafalignError: none has.
    """
    found = _of_store(captions) if captions.marker.store is not None else _of_pictures(captions)
    if not found:
        raise InputError(
            f'No image of {captions.path} says where it lies; landmarks need a set of tiles, or lon, lat and gsd_m of '
            'each image.'
        )
    return found


def _of_store(captions: CaptionSet) -> list[Footprint]:
    store = PairStore(str(captions.marker.store))
    tiles = store.tiles.set_index('tile_id')
    found = []
    for row, name in enumerate(captions.images['image_id'].to_pylist()):
        tile = tiles.loc[name]
        left, top = tile['transform'][2], tile['transform'][5]
        taken = tile['datetime'].date() if 'datetime' in tiles and tile['datetime'] == tile['datetime'] else None
        size, gsd = store.sensor.size_px, store.sensor.gsd_m
        found.append(Footprint(row, name, int(tile['epsg']), float(left), float(top), gsd, size, size, taken))
    return found


def _of_pictures(captions: CaptionSet) -> list[Footprint]:
    columns = captions.images.select(['image_id', 'lon', 'lat', 'gsd_m', 'width', 'height']).to_pylist()
    found = []
    for row, image in enumerate(columns):
        if any(image[n] is None for n in ('lon', 'lat', 'gsd_m', 'width', 'height')):
            continue
        if not (abs(image['lon']) <= 180 and abs(image['lat']) <= 84 and image['gsd_m'] > 0):  # UTM ends at 84 degrees
            continue
        lon, lat = np.array([image['lon']]), np.array([image['lat']])
        epsg = int(utm_epsg(lon, lat)[0])
        (east,), (north,) = project(lon, lat, epsg)
        gsd, width, height = image['gsd_m'], image['width'], image['height']
        left, top = east - width * gsd / 2, north + height * gsd / 2
        found.append(Footprint(row, image['image_id'], epsg, left, top, gsd, width, height, None))
    return found
