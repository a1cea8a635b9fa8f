"""Works of `changes.py` that are not commands: `python changes_work.py NAME [new]` prints its seconds.

It runs with the code of whichever checkout PYTHONPATH names; `new` turns on what older checkouts do not know.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import shapely


def _known(function: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """Of some settings those that a function has."""
    return {k: v for k, v in settings.items() if k in inspect.signature(function).parameters}


def plan(new: bool) -> float:
    """Plan a million photos around 2,000 towns."""
    from grafalign.geo import TileGrid
    from grafalign.pairing.plan import make_plan

    rng = np.random.default_rng(0)
    towns = np.stack([rng.uniform(-120, 30, 2000), rng.uniform(-50, 60, 2000)], axis=1)
    lon, lat = (towns[rng.integers(0, len(towns), 1_000_000)] + rng.normal(0, 0.05, (1_000_000, 2))).T.copy()
    ids = [f'{n:07d}' for n in range(len(lon))]
    shares = {'train': 0.8, 'val': 0.1, 'test': 0.1}
    buffer = _known(make_plan, buffer_m=2240.0) if new else {}
    started = time.perf_counter()
    make_plan(ids, lon, lat, TileGrid(224, 10.0), 25, 0, 20.0, shares, **buffer)
    return time.perf_counter() - started


def choose(new: bool) -> float:
    """Choose among 140 scenes for 1,000 tiles where two footprints meet."""
    from grafalign.scenes import choose_scenes
    from grafalign.scenes.items import scene_of

    rng, scenes = np.random.default_rng(0), []
    for day in range(70):
        when = (datetime(2021, 1, 1, 12) + timedelta(days=3 * day)).isoformat() + 'Z'
        for west, east in ((-1, 0.501), (0.499, 2)):
            corners = np.array([(west, -1), (east, -1), (east, 2), (west, 2)]) + rng.uniform(-0.005, 0.005, (4, 2))
            outline = shapely.geometry.mapping(shapely.Polygon(corners))
            properties = {'datetime': when, 'eo:cloud_cover': float(rng.uniform(0, 20))}
            scenes.append(scene_of({'id': when, 'geometry': outline, 'assets': {}, 'properties': properties}))
    x, y = rng.uniform(0.492, 0.508, 1000), rng.uniform(0, 1, 1000)
    tiles = shapely.box(x - 0.01, y, x + 0.01, y + 0.02)
    mosaic = _known(choose_scenes, mosaic=True) if new else {}
    days, first = np.full(1000, 18_700.0), np.arange(1001)
    try:
        from grafalign.scenes.scene_table import scene_table

        candidates: Any = scene_table(scenes)
    except ImportError:
        candidates = scenes
    started = time.perf_counter()
    # older checkouts ask for the tiles from one number up to another
    choose_scenes(candidates, lambda *of: tiles[slice(*of) if len(of) == 2 else of[0]], days, first, 5, **mosaic)
    return time.perf_counter() - started


def nearest(new: bool) -> float:
    """A query of an approximate search among 200,000 vectors."""
    import torch

    torch.set_num_threads(2)
    from experiments.performance.retrieval.index import measure

    with tempfile.TemporaryDirectory() as folder:
        row = measure(200_000, 512, Path(folder), ('ivf',))['rows'][-1]
    return 1 / float(row['queries_per_s'])


WORKS = {'plan': plan, 'choose': choose, 'nearest': nearest}

if __name__ == '__main__':
    print(WORKS[sys.argv[1]]('new' in sys.argv[2:]))
