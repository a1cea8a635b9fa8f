"""What the page asks for: answers of searches, and heat, scenes, photos and doubts beside them.

Everything is known to the page by numbers and by the ids of searches; no path or address ever comes from it.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from grafalign.engine import default_workers
from grafalign.errors import GrafalignError, InputError
from grafalign.explore.backdrop import Backdrop
from grafalign.explore.grid import degrees_of
from grafalign.explore.heat import Heat
from grafalign.explore.photos import GroundPhotos
from grafalign.fields import Field
from grafalign.foreign.images import open_image
from grafalign.maps import TunedWords
from grafalign.models import Model
from grafalign.pages import jpeg
from grafalign.search import Catalog, Query, search
from grafalign.search.page import ItemPictures, content_of
from grafalign.search.query import query_vectors

MOST_ANSWERS = 500
MOST_CORNERS = 2000
"""Of a region; what a person draws has a few."""
_KEPT = 64
"""Searches that are kept."""
LONGEST_TEXT = 500
THUMBNAIL_PX = 192
MOST_PIXELS = 30_000_000
"""Of a picture to look for."""


@dataclass(frozen=True)
class SearchQuery:
    """One search of the page."""

    text: str | None = None
    picture: bytes | None = None
    lonlat: tuple[float, float] | None = None
    like: int | None = None
    """Row of an item."""
    k: int = 50
    region: shapely.Geometry | None = None
    begin: datetime | None = None
    end: datetime | None = None
    least: float = -1.0
    """Lowest score."""


@dataclass(frozen=True)
class SearchResult:
    """Its answers."""

    id: str
    heat: str
    """Of its vector: searches that differ in filters alone have the same heat."""
    vector: npt.NDArray[np.float32]
    answers: gpd.GeoDataFrame


class Session:
    """An index with fields and a store, opened once; used by any number of threads.

    Args:
        catalog: the index.
        model: its model.
        fields: fields of the same model.
        photos: ground photos beside the items, where there are any.
        tuned: words that points have moved; a query that is one of them means it.
    """

    def __init__(
        self,
        catalog: Catalog,
        model: Model,
        fields: list[Field],
        photos: GroundPhotos | None = None,
        tuned: TunedWords | None = None,
    ) -> None:
        self.catalog, self.model, self.photos, self.tuned = catalog, model, photos, tuned
        self.heats = [Heat(field) for field in fields]
        self.backdrops = [Backdrop(field, model) for field in fields]
        self.items = catalog.items
        self._found: OrderedDict[str, SearchResult] = OrderedDict()
        self._vectors: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._pictures, self._reading = ItemPictures(catalog), threading.Lock()
        self._decoding = threading.Lock()
        self._embedding = threading.Lock()
        """Embedding a text takes all cores already; side by side, twenty take longer than one after the other."""
        self.drawing = max(1, default_workers() - 1)
        """Tiles that are drawn at a time: a core is left for searches."""

    def search(self, request: SearchQuery) -> SearchResult:
        """Search the index; as `grafalign search` does.

        Raises:
            GrafalignError: the query, the region or the time cannot be used, or nothing is left.
        """
        vector = self._vector(request)
        region = request.region
        query = Query(text=self._label(request), vector=vector)
        k = min(request.k, MOST_ANSWERS)
        answers = search(self.catalog, [query], k, region=region, begin=request.begin, end=request.end)
        answers = answers[answers['score'] >= request.least].reset_index(drop=True)
        parts = [vector.tobytes(), repr((request.k, request.begin, request.end, request.least)).encode()]
        parts += [shapely.to_wkb(region)] if region is not None else []
        key, heat = (hashlib.blake2b(part, digest_size=12).hexdigest() for part in (b'|'.join(parts), parts[0]))
        found = SearchResult(key, heat, vector, answers)
        with self._lock:
            _keep(self._found, key, found)
            _keep(self._vectors, heat, vector)
        return found

    def found(self, key: str) -> SearchResult:
        """A search that was made before.

        Raises:
            KeyError: it is none, or was long ago.
        """
        with self._lock:
            return self._found[key]

    def vector(self, key: str) -> npt.NDArray[np.float32]:
        """What heat is of, [D].

        Raises:
            KeyError: no search had it, or long ago.
        """
        with self._lock:
            return self._vectors[key]

    def _label(self, request: SearchQuery) -> str:
        if request.text is not None:
            return request.text
        if request.lonlat is not None:
            return f'{request.lonlat[0]:g}, {request.lonlat[1]:g}'
        return 'a picture' if request.picture is not None else f'like {self.items["item_id"].iloc[request.like or 0]}'

    def _vector(self, request: SearchQuery) -> npt.NDArray[np.float32]:
        given = [v is not None for v in (request.text, request.picture, request.lonlat, request.like)]
        if sum(given) != 1:
            raise InputError('Give words, a picture, a place or an item, and one of them only.')
        if request.like is not None:
            if not (0 <= request.like < len(self.items) and self.catalog.alive[request.like]):
                raise InputError(f'There is no item {request.like}; search again.')
            return np.asarray(self.catalog.vectors[request.like], dtype=np.float32)
        if request.text is not None and len(request.text) > LONGEST_TEXT:
            raise InputError(f'The query has {len(request.text):,} characters; give at most {LONGEST_TEXT}.')
        if request.text is not None and self.tuned is not None and request.text in self.tuned.names:
            return self.tuned.unit_vector(request.text)
        if request.picture is not None:
            return self._of_picture(request.picture)
        query = Query(text=request.text) if request.text is not None else Query(lonlat=request.lonlat)
        with self._embedding:
            return query_vectors([self.catalog], [query], self.model)[0]

    def _of_picture(self, content: bytes) -> npt.NDArray[np.float32]:
        """The vector of a picture; one is decoded at a time, and others may search meanwhile."""
        with self._decoding, tempfile.NamedTemporaryFile(suffix='.picture') as file:
            try:
                if _pixels_of(content) > MOST_PIXELS:
                    raise InputError(
                        f'The picture has more than {MOST_PIXELS // 1_000_000} million pixels; give a smaller one.'
                    )
                file.write(content)
                file.flush()
                return query_vectors([self.catalog], [Query(image=Path(file.name))], self.model)[0]
            except GrafalignError as error:
                raise InputError(str(error).replace(file.name, 'The picture')) from None

    def thumbnail(self, row: int) -> bytes:
        """The picture of an item as JPEG; empty where it cannot be had.

        Raises:
            IndexError: there is no such item.
        """
        item = self.items.iloc[row]
        with self._reading:
            picture = self._pictures.picture(str(item['source']), str(item['item_id']), row)
        return b'' if picture is None else jpeg(picture, THUMBNAIL_PX)

    def photos_at(self, row: int) -> list[dict[str, Any]]:
        """Ground photos inside an item."""
        place = self.items.geometry.iloc[row]
        if self.photos is None or place is None or place.is_empty:
            return []
        return self.photos.near(place)

    def about(self) -> dict[str, Any]:
        """What there is: items, their bounds and days, fields, and whether there are photos."""
        bounds = self.items.total_bounds.tolist() if len(self.items) else []
        days = self.items['datetime'].dropna()
        return {
            'items': len(self.catalog),
            'model': self.model.name,
            'bounds': bounds if all(np.isfinite(bounds)) and bounds else None,
            'days': [f'{day:%Y-%m-%d}' for day in (days.min(), days.max())] if len(days) else None,
            'photos': self.photos is not None,
            'tuned': [] if self.tuned is None else self.tuned.names,
            'fields': [_about(heat.field) for heat in self.heats],
        }

    def export(self, found: SearchResult, ending: str) -> bytes:
        """Answers as a file, as `grafalign search --out` writes it."""
        return content_of(found.answers, [self.catalog], ending)

    def doubts(self, field: int, words: list[str], count: int = 10) -> list[dict[str, float | str]]:
        """Places of a field where the model doubts most which of some words is there, far from each other.

        Args:
            field: number of the field.
            words: two or more.
            count: of places.

        Raises:
            InputError: there are fewer than two words, or too many.
        """
        if not 2 <= len(words) <= 50:
            raise InputError('Doubt is between words; give 2 to 50 of them, separated by commas.')
        heat = self.heats[field]
        vectors = [self._vector(SearchQuery(text=word)) for word in words]
        keys = [hashlib.blake2b(vector.tobytes(), digest_size=12).hexdigest() for vector in vectors]
        scores = np.stack([heat.scores(key, v)[0] for key, v in zip(keys, vectors, strict=True)], axis=-1)
        best = np.sort(scores, axis=-1)
        margin = best[..., -1] - best[..., -2]
        found: list[dict[str, float | str]] = []
        reach = max(1, int(np.sqrt(margin.size / count / 4)))
        to_degrees = Transformer.from_crs(str(heat.field.geobox.crs), 'EPSG:4326', always_xy=True)
        while len(found) < count and np.isfinite(margin).any():
            row, column = np.unravel_index(int(np.nanargmin(margin)), margin.shape)
            two = np.argsort(scores[row, column])[-2:]
            x, y = heat.field.cells.affine * ((column + 0.5) * heat.factor, (row + 0.5) * heat.factor)
            lon, lat = to_degrees.transform(x, y)
            found.append({'lon': lon, 'lat': lat, 'between': f'{words[two[1]]} and {words[two[0]]}'})
            margin[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = np.nan
        return found


def _pixels_of(content: bytes) -> int:
    """How many pixels a picture says it has; 0 where Pillow does not know it, and others must."""
    try:
        width, height = open_image(io.BytesIO(content), MOST_PIXELS * 1000).size
    except Exception:  # its codecs raise anything
        return 0
    return width * height


def _about(field: Field) -> dict[str, Any]:
    """A field for the page: its name, its day, and its bounds, whose east may lie beyond 180 degrees.

    Where it lies over 180 degrees or a pole, tiles are asked for everywhere: `clip` is false.
    """
    bounds, simple = degrees_of(field.geobox)
    return {'name': field.path.name, 'day': field.plan.scenes[0].datetime[:10], 'bounds': bounds, 'clip': simple}


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    """Keep a value as the newest, and forget the oldest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _KEPT:
        kept.popitem(last=False)
