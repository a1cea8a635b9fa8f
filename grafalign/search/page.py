"""Answers as files: GeoJSON, GeoParquet, CSV, and a page with thumbnails that needs no network."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from grafalign.datasets.pictures import read_picture
from grafalign.errors import GrafalignError, InputError, naming_full_disk
from grafalign.escapes import csv_cell
from grafalign.fields import MARKER as FIELD_MARKER
from grafalign.files import write_atomically
from grafalign.foreign import below
from grafalign.models.thumbnails import thumbnail
from grafalign.pages import render
from grafalign.search.catalog import Catalog
from grafalign.search.field_source import FieldTiles
from grafalign.search.sources import state_of, tile_state
from grafalign.store import MARKER, PairStore

FORMATS = ('.html', '.geojson', '.parquet', '.csv')


def write_answers(answers: gpd.GeoDataFrame, catalog: Catalog, path: Path) -> None:
    """Write answers by the ending of the file's name.

    Raises:
        GrafalignError: the ending is unknown.
    """
    check_format(path)
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(answers, catalog, path)


def _write(answers: gpd.GeoDataFrame, catalog: Catalog, path: Path) -> None:
    match path.suffix.lower():
        case '.html':
            write_atomically(path, _page(answers, catalog).encode())
        case '.geojson':
            write_atomically(path, (plain(answers).to_json(drop_id=True) + '\n').encode())
        case '.parquet':
            buffer = io.BytesIO()
            answers.to_parquet(buffer, index=False)
            write_atomically(path, buffer.getvalue())
        case '.csv':
            table = plain(answers)
            centre = table.geometry.representative_point()
            flat = table.drop(columns='geometry').assign(lon=centre.x, lat=centre.y)
            write_atomically(path, flat.map(csv_cell).to_csv(index=False).encode())


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


def _page(answers: gpd.GeoDataFrame, catalog: Catalog) -> str:
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    stores: dict[str, PairStore] = {}
    fields: dict[str, FieldTiles] = {}
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
                'picture': _thumbnail(answer.source, answer.item_id, int(answer.row), catalog, stores, fields),
            }
        )
    made = catalog.marker.model.model_dump(include={'name', 'spec', 'kind'}) | {'items': len(catalog)}
    return render('grafalign.search', 'page.html', title='Search', groups=groups, made=json.dumps(made, indent=2))


def _thumbnail(
    source: str,
    item_id: str,
    row: int,
    catalog: Catalog,
    stores: dict[str, PairStore],
    fields: dict[str, FieldTiles],
) -> str:
    """A JPEG data URL of an item, or nothing where its pixels cannot be read, or are not those that were indexed.

    An index says where its pictures lie, and may be a stranger's. Its pages are shared, so what goes into them must be
    the very files that were indexed: their size and time, or the digest of their shard, tell.
    """
    known = catalog.marker.sources.get(source)
    stamp = str(catalog.items['stamp'].iloc[row])
    if known is None:
        return ''
    try:
        if '://' in source or (Path(source) / MARKER).exists():
            store = stores.setdefault(source, PairStore(source)) if source not in stores else stores[source]
            tile = int(np.flatnonzero(store.tiles['tile_id'].to_numpy() == item_id)[0])
            if tile_state(store, tile) != stamp:
                return ''
            scale, offset = (v[tile][:, None, None] for v in store.radiometry)
            pixels, bands = store.read_tile(tile) * scale + offset, store.sensor.bands
        elif (Path(source) / FIELD_MARKER).exists():
            if source not in fields:
                fields[source] = FieldTiles(Path(source))
            if fields[source].stamp != stamp:
                return ''
            return thumbnail(fields[source].picture(item_id), ('red', 'green', 'blue'), (0, 255))
        else:
            path = below(Path(source), item_id)
            if state_of(path) != stamp:
                return ''
            pixels = read_picture(path, item_id)
            bands = known.bands
        return thumbnail(pixels, bands, known.value_range)
    except (GrafalignError, IndexError, KeyError, OSError, ImportError, ValueError, TypeError):
        return ''
