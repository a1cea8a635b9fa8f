"""Where a model's data came from: the facts of a pair store that a run keeps and a model card tells.

They are what somebody needs who has the model but neither the store nor this machine: counts, sources, licences, places
and times, and the recipe; no photo, no author, no path of this machine and no key of a signed address.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pandas as pd

from grafalign.store import PairStore

NOT_STATED = 'not stated'


def data_facts(store: PairStore) -> dict[str, Any]:
    """Facts of a store, fit for JSON.

    Returns:
        `sensor`; `splits`, for each `tiles`, `photos` and `pairs`; `photos`, `tiles` and `pairs` in all; `licences` and
        `sources` of the photos and `collections` of the tiles, name to count, the most frequent first; `photos_taken`
        and `scenes_taken`, first and last day (UTC) or None; `bounds`, west, south, east, north of the tiles in
        degrees; `recipe` without paths of this machine; `recipe_digest`, `store_digest`.
    """
    photos, tiles, pairs = store.photos, store.tiles, store.pairs
    of_pair = tiles['split'].to_numpy()[pairs['tile']]
    counted = pairs.groupby(of_pair)['photo'].agg(['nunique', 'size'])
    splits = {
        str(name): {'tiles': int(count), 'photos': int(counted['nunique'][name]), 'pairs': int(counted['size'][name])}
        for name, count in tiles['split'].value_counts().items()
        if name in counted.index
    }
    order = [n for n in ('train', 'val', 'test') if n in splits]
    recipe = without_paths(store.marker.recipe)
    (recipe.get('photos') or {}).pop('remote', None)  # how photos were fetched decides nothing
    return {
        'sensor': asdict(store.sensor),
        'splits': {n: splits[n] for n in order + sorted(set(splits) - set(order))},
        'photos': len(photos),
        'tiles': len(tiles),
        'pairs': len(pairs),
        'licences': _counts(photos, 'licence'),
        'sources': _counts(photos, 'source'),
        'collections': _counts(tiles, 'collection'),
        'photos_taken': _period(photos, 'taken_at'),
        'scenes_taken': _period(tiles, 'datetime'),
        'bounds': [round(float(v), 6) for v in tiles.total_bounds],
        'recipe': recipe,
        'recipe_digest': store.marker.recipe_digest or None,
        'store_digest': store.digest,
    }


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


def _period(table: pd.DataFrame, column: str) -> list[str] | None:
    times = pd.to_datetime(table[column], utc=True) if column in table else pd.Series(dtype='datetime64[us, UTC]')
    times = times.dropna()
    return [times.min().date().isoformat(), times.max().date().isoformat()] if len(times) else None
