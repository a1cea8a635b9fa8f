"""`data.json` and `captions.json`, where a run's data came from: what it keeps of its pair store and its caption sets.

It is what somebody needs who has the model but neither the store nor this machine: counts, sources, licences, places
and times, and the recipe; no photo, no author, no path of this machine and no key of a signed address.
"""

from __future__ import annotations

import math
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from grafalign.artefacts import Marker
from grafalign.captions.caption_set import CaptionSet
from grafalign.store import PairStore
from grafalign.store_marker import Sensor
from grafalign.training.gather_data import TrainingData

NOT_STATED = 'not stated'


class SplitCounts(BaseModel):
    """What a split holds."""

    model_config = ConfigDict(frozen=True)

    tiles: int
    photos: int
    pairs: int


class DataMarker(Marker):
    """`data.json`: where a run's data came from."""

    NEWEST: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 0  # of before it said its format
    REMEDY: ClassVar[str] = 'train again'

    format: int = 0
    sensor: Sensor
    splits: dict[str, SplitCounts]
    photos: int
    tiles: int
    pairs: int
    licences: dict[str, int]
    """Photos of each licence, the most frequent first."""
    sources: dict[str, int]
    """Photos of each source."""
    collections: dict[str, int]
    """Tiles of each STAC collection."""
    photos_taken: tuple[str, str] | None
    """First and last day (UTC), where any is known."""
    scenes_taken: tuple[str, str] | None
    bounds: tuple[float, float, float, float] | None
    """West, south, east, north of the tiles in degrees; None where no tile knows its place."""
    recipe: dict[str, Any]
    """The pairing recipe, as the release that made the store wrote it, without paths of its machine."""
    imported: dict[str, Any] | None = None
    """How pairs were read that were made elsewhere; None for a store that was paired by its recipe."""
    recipe_digest: str | None
    store_digest: str


class CaptionData(BaseModel):
    """What a run and its model card tell of a caption set."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    images: int
    captions: int
    distinct_captions: int
    splits: dict[str, int]
    kinds: dict[str, int]
    """Captions of each kind: alt, template, model, human."""
    writers: dict[str, int]
    """Captions of each writer, where it is known."""
    licences: dict[str, int]
    """Images of each licence, the most frequent first."""


class CaptionsMarker(Marker):
    """`captions.json`: where a run's captions came from."""

    REMEDY: ClassVar[str] = 'train again'

    format: int
    sets: tuple[CaptionData, ...]


def describe_captions(captions: CaptionSet) -> CaptionData:
    """What a run and its model card tell of a caption set."""
    marker = captions.marker
    writers = captions.captions['writer'].cast(pa.string()).to_pandas().dropna().value_counts()
    return CaptionData(
        name=captions.path.resolve().name,
        digest=captions.digest,
        images=marker.images,
        captions=marker.captions,
        distinct_captions=marker.distinct_captions,
        splits=marker.splits,
        kinds=marker.kinds,
        writers={str(name): int(count) for name, count in writers.items()},
        licences=_counts(captions.images.select(['licence']).to_pandas(), 'licence'),
    )


def describe(data: TrainingData, run: Path) -> None:
    """Write what a run keeps of its data into its folder."""
    if data.store is not None:
        describe_data(data.store).write(run / 'data.json')
    if data.sets:
        sets = tuple(describe_captions(captions) for captions, _ in data.sets)
        CaptionsMarker(format=CaptionsMarker.NEWEST, sets=sets).write(run / 'captions.json')


def describe_data(store: PairStore) -> DataMarker:
    """What a run and its model card tell of a store."""
    photos, tiles, pairs = store.photos, store.tiles, store.pairs
    of_pair = tiles['split'].to_numpy()[pairs['tile']]
    counted = pairs.groupby(of_pair)['photo'].agg(['nunique', 'size'])
    splits = {
        str(name): SplitCounts(tiles=int(count), photos=int(counted['nunique'][name]), pairs=int(counted['size'][name]))
        for name, count in tiles['split'].value_counts().items()
        if name in counted.index
    }
    order = [n for n in ('train', 'val', 'test') if n in splits]
    recipe = without_paths(store.marker.recipe)
    (recipe.get('photos') or {}).pop('remote', None)  # how photos were fetched decides nothing
    imported = store.marker.imported
    west, south, east, north = (round(float(v), 6) for v in tiles.total_bounds)
    return DataMarker(
        format=DataMarker.NEWEST,
        sensor=store.sensor,
        splits={n: splits[n] for n in order + sorted(set(splits) - set(order))},
        photos=len(photos),
        tiles=len(tiles),
        pairs=len(pairs),
        licences=_counts(photos, 'licence'),
        sources=_counts(photos, 'source'),
        collections=_counts(tiles, 'collection'),
        photos_taken=_period(photos, 'taken_at'),
        scenes_taken=_period(tiles, 'datetime'),
        bounds=(west, south, east, north) if math.isfinite(west) else None,
        recipe=recipe,
        imported=without_paths(imported) if imported else None,
        recipe_digest=store.marker.recipe_digest or None,
        store_digest=store.digest,
    )


def without_paths(value: Any) -> Any:
    """Settings as plain values in which absolute paths keep their last part only, and URLs lose keys and queries."""
    if isinstance(value, dict):
        return {str(k): without_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(v) for v in value]
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    if re.match(r'file:', text, re.IGNORECASE):
        text = urlsplit(text).path
    elif '://' in text:
        parts = urlsplit(text)
        return urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', ''))
    if re.match(r'[A-Za-z]:[\\/]|\\\\', text):
        return PureWindowsPath(text).name
    path = PurePosixPath(text)
    return path.name if text.startswith(('/', '~')) or '..' in path.parts else text


def _counts(table: pd.DataFrame, column: str) -> dict[str, int]:
    if column not in table:
        return {NOT_STATED: len(table)}
    names = table[column].astype('string').str.strip().fillna('')
    counts = [(int(count), str(name) or NOT_STATED) for name, count in names.value_counts().items()]
    return {name: count for count, name in sorted(counts, key=lambda row: (-row[0], row[1]))}


def _period(table: pd.DataFrame, column: str) -> tuple[str, str] | None:
    times = pd.to_datetime(table[column], utc=True) if column in table else pd.Series(dtype='datetime64[us, UTC]')
    times = times.dropna()
    return (times.min().date().isoformat(), times.max().date().isoformat()) if len(times) else None
