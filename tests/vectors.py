"""Vectors for tests of indexes: clustered, as embeddings are."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely


def clustered(count: int, width: int = 32, seed: int = 0, kinds: int = 60) -> np.ndarray:
    """Unit vectors [count, width] around `kinds` places; equal seeds share the places."""
    world, rng = np.random.default_rng(7), np.random.default_rng(seed)
    centres = world.normal(size=(kinds, width))
    made = centres[rng.integers(0, kinds, count)] + 0.5 * rng.normal(size=(count, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def items(count: int, first: int = 0, source: str = 'here') -> gpd.GeoDataFrame:
    """Items along a line of longitude, one a hundredth of a degree and a day."""
    number = np.arange(first, first + count)
    return gpd.GeoDataFrame(
        {
            'item_id': [f'item {i}' for i in number],
            'datetime': pd.Timestamp('2020-01-01', tz='UTC') + pd.to_timedelta(number % 1000, unit='D'),
            'source': source,
            'signature': 'as it was',
        },
        geometry=shapely.points(10 + number % 5000 / 1000, 45.0),
        crs='EPSG:4326',
    )
