"""Ask an index: words, photos or places, within a region and a time, answered as a GeoDataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign.datasets.pictures import BANDS_BY_COUNT, read_picture
from grafalign.errors import GrafalignError, InputError
from grafalign.foreign.vectors import read_vector
from grafalign.models import Model, to_input
from grafalign.models.pixels import band_places
from grafalign.processes import Team
from grafalign.search.catalog import Catalog
from grafalign.search.signs import signed_vectors


@dataclass(frozen=True)
class Query:
    """One query: a text, an image, a place or a vector; a text beside a vector is its label."""

    text: str | None = None
    """Words, perhaps with signs (`harbour -ships`)."""
    image: Path | None = None
    """A picture, embedded like the items: from above; of the ground too where the model is a CLIP that knows photos."""
    lonlat: tuple[float, float] | None = None
    """A place: what looks like the item there. Degrees."""
    vector: npt.NDArray[np.float32] | None = None
    """Unit vector of the index's space, [D], such as that of a tuned word."""

    @property
    def label(self) -> str:
        """What tables call it."""
        if self.text is not None:
            return self.text
        return str(self.image) if self.image is not None else f'{self.lonlat[0]:g}, {self.lonlat[1]:g}'  # type: ignore[index]


_TOGETHER = 256
"""Queries that are embedded and searched together; several processes share these parts."""
Index = Catalog | Path | str
"""An index or its folder."""


def search(
    index: Index | Sequence[Index],
    queries: Sequence[Query | str],
    k: int = 10,
    *,
    model: Model | None = None,
    region: shapely.Geometry | None = None,
    begin: datetime | None = None,
    end: datetime | None = None,
    team: Team | None = None,
) -> gpd.GeoDataFrame:
    """The k items nearest to each query.

    Args:
        index: an index or its folder; or several of one model, which answer as one of all their items would.
        queries: texts, or `Query`.
        k: how many of each; all that there are where there are fewer.
        model: the model that made the index; loaded by what the index says of it otherwise. Places need none.
        region: only items that meet this geometry (EPSG:4326).
        begin: only items of this time or later; without a zone it is UTC.
        end: only items before this time.
        team: processes that share the queries, all of which call this and get all answers.

    Returns:
        One row an answer, EPSG:4326: query (text), rank (from 1), score (cosine), row, item_id, datetime, source,
        number (of the query, from 0), geometry; of several indexes also `index_path`. An item that is in
        several is answered once.

    Raises:
        GrafalignError: k is less than one, there is no query, a query cannot be embedded, or indexes are of several
            models.

    Example:
        search(['runs/italy', 'runs/austria'], ['vineyard'], k=20)
    """
    several = not isinstance(index, (Catalog, Path, str))
    catalogs = [opened(i) for i in ([index] if isinstance(index, (Catalog, Path, str)) else index)]
    if not catalogs:
        raise InputError('There is no index to search; give at least one.')
    catalog = catalogs[0]
    for other in catalogs[1:]:
        other.check_model(catalog.marker.model.digest, catalog.marker.model.name)
    query_list = [
        Query(text=q) if isinstance(q, str) else q for q in ([queries] if isinstance(queries, str) else queries)
    ]
    if any((q.text is None) + (q.image is None) + (q.lonlat is None) != 2 for q in query_list):
        raise InputError('A query is a text, an image or a place; give exactly one of them.')
    narrow = next((q for q in query_list if q.vector is not None and q.vector.shape != (catalog.width,)), None)
    if narrow is not None:
        raise InputError(
            f'The vector of {narrow.label!r} is not of the space of {catalog.path}; tune it for its model.'
        )
    if not query_list:
        raise InputError('There is no query; give words, --image or --lonlat.')
    if k < 1:
        raise InputError(f'-k {k} makes no sense; ask for at least one.')
    allowed = _allowed_of_each(catalogs, region, begin, end)
    if model is None and any(q.vector is None and q.lonlat is None for q in query_list):
        model = _model_of(catalog)
    team = team or Team()
    starts = range(0, len(query_list), _TOGETHER)
    mine = []
    for part in team.share(len(starts)):
        some = query_list[starts[part] : starts[part] + _TOGETHER]
        vectors = query_vectors(catalogs, some, model)
        answers = [_answers(c, some, vectors, k, mask) for c, mask in allowed]
        best = answers[0] if not several else _merged(answers, [c for c, _ in allowed], k)
        mine.append(best.assign(number=best['number'] + starts[part]))
    best = pd.concat([answer for theirs in team.exchange(mine) for answer in theirs], ignore_index=True)
    return gpd.GeoDataFrame(best, geometry='geometry', crs='EPSG:4326')


def opened(index: Index) -> Catalog:
    """An index, opened if it is a folder."""
    return index if isinstance(index, Catalog) else Catalog(Path(index))


def _answers(
    catalog: Catalog, query_list: Sequence[Query], vectors: np.ndarray, k: int, allowed: np.ndarray | None
) -> pd.DataFrame:
    """The answers of one index."""
    scores, rows = catalog.search(vectors, min(k, max(len(catalog), 1)), allowed)
    shown = catalog.items
    frames = []
    for number, (query, score, row) in enumerate(zip(query_list, scores, rows, strict=True)):
        there = row >= 0
        answer = shown.iloc[row[there]].reset_index(drop=True)
        answer.insert(0, 'query', query.label)
        answer['number'] = number
        answer.insert(1, 'rank', np.arange(1, len(answer) + 1))
        answer.insert(2, 'score', score[there])
        answer.insert(3, 'row', row[there])
        frames.append(answer.drop(columns='stamp'))
    return pd.concat(frames, ignore_index=True)


def _merged(answers: Sequence[pd.DataFrame], catalogs: Sequence[Catalog], k: int) -> pd.DataFrame:
    """The best answers of several indexes to each query, every item once."""
    named = [a.assign(index_path=str(c.path)) for a, c in zip(answers, catalogs, strict=True)]
    every = pd.concat(named, ignore_index=True)
    best = every.sort_values(['number', 'score'], ascending=[True, False], kind='stable')
    best = best.drop_duplicates(['number', 'source', 'item_id']).groupby('number', sort=False).head(k)
    return best.assign(rank=best.groupby('number', sort=False).cumcount() + 1).reset_index(drop=True)


def _allowed_of_each(
    catalogs: Sequence[Catalog], region: shapely.Geometry | None, begin: datetime | None, end: datetime | None
) -> list[tuple[Catalog, np.ndarray | None]]:
    """The indexes that have items in a region and a time, each with its rows.

    Raises:
        GrafalignError: none has any.
    """
    usable: list[tuple[Catalog, np.ndarray | None]] = []
    refusal: GrafalignError | None = None
    for catalog in catalogs:
        try:
            usable.append((catalog, allowed_rows(catalog, region, begin, end)))
        except GrafalignError as error:
            refusal = refusal or error
    if refusal is not None and not usable:
        raise refusal
    return usable


def allowed_rows(
    catalog: Catalog, region: shapely.Geometry | None, begin: datetime | None, end: datetime | None
) -> np.ndarray | None:
    """Rows that a region and a time allow, [rows]; None where everything is. Items of unknown place or time fail them.

    Raises:
        GrafalignError: no item is left.
    """
    if region is None and begin is None and end is None:
        return None
    mask = catalog.alive.copy()
    items = catalog.items
    if region is not None:
        inside = np.zeros(len(items), dtype=bool)
        inside[meeting(items, region)] = True
        mask &= inside
    when = items['datetime']
    moments = when.to_numpy('datetime64[us]') if begin is not None or end is not None else None  # NaT fails both
    if moments is not None and begin is not None:
        mask &= moments >= np.datetime64(_utc(begin).replace(tzinfo=None), 'us')
    if moments is not None and end is not None:
        mask &= moments < np.datetime64(_utc(end).replace(tzinfo=None), 'us')
    if not mask.any():
        placed = int(items.geometry.notna().sum())
        timed = int(when.notna().sum())
        raise InputError(
            f'No item of {catalog.path} is in that region and time ({placed:,} of {len(items):,} have a place and '
            f'{timed:,} a time); widen the filter.'
        )
    return mask


def meeting(items: gpd.GeoDataFrame, region: shapely.Geometry) -> npt.NDArray[np.int64]:
    """Rows of items that meet a region. In a box most are told by their own boxes, many times faster."""
    if not shapely.equals(region, shapely.box(*region.bounds)):
        return np.asarray(items.sindex.query(region, predicate='intersects'))
    rows = items.sindex.query(region)
    west, south, east, north = shapely.bounds(items.geometry.array[rows]).T
    low_x, low_y, high_x, high_y = region.bounds
    within = (west >= low_x) & (south >= low_y) & (east <= high_x) & (north <= high_y)
    unsure = rows[~within]
    return np.concatenate([rows[within], unsure[shapely.intersects(region, items.geometry.array[unsure])]])


def _utc(when: datetime) -> datetime:
    if not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day)
    try:
        return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when.astimezone(timezone.utc)
    except OverflowError:
        raise InputError(f'{when.isoformat()} is no time of UTC; give a later or an earlier one.') from None


def query_vectors(catalogs: Sequence[Catalog], query_list: Sequence[Query], model: Model | None = None) -> np.ndarray:
    """Unit vectors of queries [Q, D]; `model` as of `search`, indexes of one model."""
    catalog = catalogs[0]
    out = np.zeros((len(query_list), catalog.width), dtype=np.float32)
    texts = [i for i, q in enumerate(query_list) if q.text is not None and q.vector is None]
    images = [i for i, q in enumerate(query_list) if q.image is not None]
    if (texts or images) and model is None:
        model = _model_of(catalog)
    if model is not None:
        catalog.check_model(model.digest, model.name)
    for i, query in enumerate(query_list):
        if query.vector is not None:
            out[i] = query.vector
        if query.lonlat is not None:
            out[i] = _vector_at(catalogs, *query.lonlat)
    if texts and model is not None:
        out[texts] = signed_vectors([query_list[i].text or '' for i in texts], model.embed_texts)
    for i in images:
        path = query_list[i].image
        if path is not None and model is not None:
            out[i] = embed_image(catalog, model, path)
    return out


def _model_of(catalog: Catalog) -> Model:
    """The model that an index says it was made by."""
    from grafalign.models import load_model

    made = catalog.marker.model
    try:
        return load_model(made.spec, made.clip)
    except GrafalignError as error:
        raise type(error)(f'{error} The index {catalog.path} names that model; if it moved, give --model.') from None


def embed_image(catalog: Catalog, model: Model, path: Path) -> np.ndarray:
    """A picture's unit vector [D], its pixels prepared as those of the index were."""
    pixels = read_picture(path, str(path))
    sources = list(catalog.marker.sources.values())
    if len(pixels) == 1 and not any(len(s.bands) == 1 for s in sources):
        pixels = np.repeat(pixels, 3, axis=0)
    like = next((s for s in sources if len(s.bands) == len(pixels)), None)
    bands = like.bands if like else BANDS_BY_COUNT.get(len(pixels))
    if bands is None:
        known = ' or '.join(', '.join(s.bands) for s in sources)
        raise InputError(f'{path} has {len(pixels)} bands and the index holds {known}; give a picture of those.')
    if pixels.dtype == np.uint8:
        same = like is not None and like.dtype == 'uint8'
        span = like.value_range if like is not None and same else (0.0, 255.0)
    elif like is None or like.dtype == 'uint8':
        raise InputError(f'{path} holds {pixels.dtype} numbers and the index 8-bit pictures; give one of 8 bits.')
    else:
        span = like.value_range
    taken = to_input(
        pixels[band_places(model.preprocessing, bands)], model.preprocessing, catalog.marker.model.pixels['fit'], span
    )
    return model.embed_images(taken[None])[0]


def _vector_at(catalogs: Sequence[Catalog], lon: float, lat: float) -> npt.NDArray[np.float32]:
    """Vector of the item that holds a place, the one whose centre is nearest where several do; else the nearest of all.

    Raises:
        GrafalignError: the place is none on Earth, or no item has a place.
    """
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise InputError(f'--lonlat {lon:g} {lat:g} is no place on Earth; give longitude, then latitude.')
    candidates = []
    for number, catalog in enumerate(catalogs):
        items = catalog.items
        placed = np.flatnonzero(catalog.alive & (items.geometry.notna() & ~items.geometry.is_empty).to_numpy())
        if not len(placed):
            continue
        holding = np.intersect1d(items.sindex.query(shapely.Point(lon, lat), predicate='intersects'), placed)
        rows = holding if len(holding) else placed
        inside = items.geometry.iloc[rows].representative_point()
        x, y = (inside.x.to_numpy() - lon + 180) % 360 - 180, inside.y.to_numpy() - lat
        away = np.hypot(x * np.cos(np.deg2rad(lat)), y)
        nearest = int(np.nanargmin(away))
        candidates.append((not len(holding), float(away[nearest]), number, int(rows[nearest])))
    if not candidates:
        raise InputError(f'No item of {catalogs[0].path} has a place; ask with words or a picture.')
    _, _, number, row = min(candidates)
    return np.asarray(catalogs[number].vectors[row])


def read_region(path: Path) -> shapely.Geometry:
    """All geometries of a vector file as one, EPSG:4326.

    Raises:
        GrafalignError: the file cannot be read or holds no geometry.
    """
    try:
        table = read_vector(path)
    except Exception as error:  # pyogrio, pyarrow and GDAL raise types of their own
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as a region ({reason}); give GeoJSON or GeoParquet.') from None
    shapes = table.geometry.dropna() if isinstance(table, gpd.GeoDataFrame) else None
    if shapes is None or not len(shapes):
        raise InputError(f'{path} holds no geometry; give a region.')
    return shapely.union_all(shapes.make_valid().to_numpy())
