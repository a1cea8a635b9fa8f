"""Answers as files: GeoJSON, GeoParquet, CSV, and a page with thumbnails that needs no network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from PIL import Image

from grafalign.datasets.pictures import read_picture
from grafalign.errors import GrafalignError, InputError, naming_full_disk
from grafalign.escapes import csv_cell
from grafalign.fields import MARKER as FIELD_MARKER
from grafalign.files import write_atomically
from grafalign.foreign import below
from grafalign.models.thumbnails import picture_of
from grafalign.pages import picture_url, render
from grafalign.search.catalog import Catalog
from grafalign.search.field_source import FieldTiles
from grafalign.search.sources import state_of, tile_state
from grafalign.store import MARKER, PairStore

_THUMBNAIL_PX = 192
FORMATS = ('.html', '.geojson', '.parquet', '.csv')


def write_answers(answers: gpd.GeoDataFrame, catalogs: Sequence[Catalog], path: Path) -> None:
    """Write answers by the ending of the file's name.

    Raises:
        GrafalignError: the ending is unknown.
    """
    check_format(path)
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(answers, catalogs, path)


def _write(answers: gpd.GeoDataFrame, catalogs: Sequence[Catalog], path: Path) -> None:
    write_atomically(path, content_of(answers, catalogs, path.suffix.lower()))


def content_of(answers: gpd.GeoDataFrame, catalogs: Sequence[Catalog], ending: str) -> bytes:
    """Answers as a file of one of `FORMATS`.

    Raises:
        KeyError: the ending is none of them.
    """
    if ending == '.html':
        return _page(answers, catalogs).encode()
    if ending == '.geojson':
        return (plain(answers).to_json(drop_id=True) + '\n').encode()
    if ending == '.parquet':
        buffer = io.BytesIO()
        answers.to_parquet(buffer, index=False)
        return buffer.getvalue()
    if ending == '.csv':
        table = plain(answers)
        centre = table.geometry.representative_point()
        flat = table.drop(columns='geometry').assign(lon=centre.x, lat=centre.y)
        return flat.map(csv_cell).to_csv(index=False).encode()
    raise KeyError(ending)


def check_format(path: Path) -> None:
    """Refuse endings that no answers are written with.

    Raises:
        GrafalignError: the ending is unknown.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise InputError(
            f'{path}: answers are not written as {ending or "a file without ending"}; give one of {", ".join(FORMATS)}.'
        )


def plain(answers: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Answers with times as text (ISO 8601, UTC) and scores rounded to what float32 knows."""
    times = answers['datetime'].dt.strftime('%Y-%m-%dT%H:%M:%SZ')
    known = answers['datetime'].notna()
    times = [t if k else None for t, k in zip(times, known, strict=True)]
    return answers.assign(datetime=np.array(times, dtype=object), score=answers['score'].astype(float).round(6))


def _page(answers: gpd.GeoDataFrame, catalogs: Sequence[Catalog]) -> str:
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    pictures = {str(catalog.path): ItemPictures(catalog) for catalog in catalogs}
    for answer in answers.itertuples():
        place = answer.geometry
        known = place is not None and not place.is_empty
        spot = place.representative_point() if known else shapely.Point()  # in it, also over the date line
        groups.setdefault((answer.number, answer.query), []).append(
            {
                'rank': answer.rank,
                'score': f'{answer.score:.3f}',
                'id': answer.item_id,
                'date': '' if answer.datetime != answer.datetime else f'{answer.datetime:%d %b %Y}',
                'lonlat': f'{spot.x:.5f}, {spot.y:.5f}' if known else '',
                'link': f'https://www.openstreetmap.org/?mlat={spot.y:.5f}&mlon={spot.x:.5f}#map=15'
                f'/{spot.y:.5f}/{spot.x:.5f}'
                if known
                else '',
                'picture': ''
                if (picture := _picture(pictures, answer)) is None
                else picture_url(picture, _THUMBNAIL_PX),
            }
        )
    items = sum(map(len, catalogs))
    made = catalogs[0].marker.model.model_dump(include={'name', 'spec', 'kind'}) | {'items': items}
    return render('grafalign.search', 'page.html', title='Search', groups=groups, made=json.dumps(made, indent=2))


def _picture(pictures: Mapping[str, ItemPictures], answer: Any) -> Image.Image | None:
    """The picture of an answer, whichever index gave it."""
    index = answer.index_path if hasattr(answer, 'index_path') else next(iter(pictures))
    return pictures[index].picture(answer.source, answer.item_id, int(answer.row))


class ItemPictures:
    """Pictures of the items of an index; what they are read from is opened once.

    Args:
        catalog: the index.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._stores: dict[str, PairStore] = {}
        self._fields: dict[str, FieldTiles] = {}

    def picture(self, source: str, item_id: str, row: int) -> Image.Image | None:
        """The picture of an item; None where its pixels cannot be read, or are not those that were indexed.

        An index says where its pictures lie, and may be a stranger's. Its pages are shared, so what goes into them must
        be the very files that were indexed: their size and time, or the digest of their shard, tell.
        """
        known = self._catalog.marker.sources.get(source)
        stamp = str(self._catalog.items['stamp'].iloc[row])
        if known is None:
            return None
        try:
            if '://' in source or (Path(source) / MARKER).exists():
                if source not in self._stores:
                    self._stores[source] = PairStore(source)
                store = self._stores[source]
                tile = int(np.flatnonzero(store.tiles['tile_id'].to_numpy() == item_id)[0])
                if tile_state(store, tile) != stamp:
                    return None
                scale, offset = (v[tile][:, None, None] for v in store.radiometry)
                pixels, bands = store.read_tile(tile) * scale + offset, store.sensor.bands
            elif (Path(source) / FIELD_MARKER).exists():
                if source not in self._fields:
                    self._fields[source] = FieldTiles(Path(source))
                if self._fields[source].stamp != stamp:
                    return None
                return picture_of(self._fields[source].picture(item_id), ('red', 'green', 'blue'), (0, 255))
            else:
                path = below(Path(source), item_id)
                if state_of(path) != stamp:
                    return None
                pixels, bands = read_picture(path, item_id), known.bands
            return picture_of(pixels, bands, known.value_range)
        except (GrafalignError, IndexError, KeyError, OSError, ImportError, ValueError, TypeError):
            return None
