"""Landmarks and captions of many images from a large map."""

from __future__ import annotations

import json
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.performance.captions.commands import command


def make_extract(path: Path, nodes: int) -> Path:
    """Buildings of four nodes, roads of ten and trees, all over half a degree."""
    import osmium

    if path.is_file():
        return path
    rng = np.random.default_rng(0)
    part = path.with_name('part.osm.pbf')
    out = osmium.SimpleWriter(str(part), overwrite=True)
    mutable, when = osmium.osm.mutable, datetime(2015, 1, 1, tzinfo=timezone.utc)
    buildings, roads, trees = int(nodes * 0.7 / 4), int(nodes * 0.25 / 10), int(nodes * 0.05)
    number = 0
    corners = rng.uniform(0, 0.5, (buildings, 2))
    for lon, lat in corners.tolist():
        for across, down in ((0, 0), (1, 0), (1, 1), (0, 1)):
            number += 1
            out.add_node(
                mutable.Node(
                    id=number, location=(10 + lon + across * 2e-4, 50 + lat + down * 1e-4), version=2, timestamp=when
                )
            )
    for lon, lat in rng.uniform(0, 0.5, (roads, 2)).tolist():
        for step in range(10):
            number += 1
            out.add_node(
                mutable.Node(id=number, location=(10 + lon + step * 1e-3, 50 + lat), version=2, timestamp=when)
            )
    for lon, lat in rng.uniform(0, 0.5, (trees, 2)).tolist():
        number += 1
        out.add_node(
            mutable.Node(id=number, location=(10 + lon, 50 + lat), tags={'natural': 'tree'}, version=2, timestamp=when)
        )
    for one in range(buildings):
        first = 4 * one + 1
        out.add_way(
            mutable.Way(
                id=one + 1,
                nodes=[first, first + 1, first + 2, first + 3, first],
                tags={'building': 'house'},
                version=2,
                timestamp=when,
            )
        )
    for one in range(roads):
        first = 4 * buildings + 10 * one + 1
        out.add_way(
            mutable.Way(
                id=buildings + one + 1,
                nodes=list(range(first, first + 10)),
                tags={'highway': 'residential'},
                version=2,
                timestamp=when,
            )
        )
    out.close()
    part.replace(path)
    return path


def measure_landmarks(data: Path, nodes: int, images: int) -> dict[str, Any]:
    """Landmarks of many images from a large extract."""
    data.mkdir(parents=True, exist_ok=True)
    extract = make_extract(data / f'{nodes}.osm.pbf', nodes)
    Image.new('RGB', (224, 224), 'grey').save(data / 'grey.png')
    side = int(np.ceil(np.sqrt(images)))
    rows = [
        {
            'image': 'grey.png',
            'image_id': f'{n}',
            'lon': 10 + (n % side) * 0.5 / side,
            'lat': 50 + n // side * 0.5 / side,
            'gsd_m': 1.0,
        }
        for n in range(images)
    ]
    (data / 'places.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    command('captions', 'import', data / 'places.jsonl', data / 'places', '--uncaptioned')
    shutil.rmtree(data / 'landmarks', ignore_errors=True)
    found = command('captions', 'landmarks', data / 'places', data / 'landmarks', '--osm', extract)
    shutil.rmtree(data / 'captioned', ignore_errors=True)
    written = command('captions', 'write', data / 'places', data / 'landmarks', data / 'captioned')
    started = time.perf_counter()
    import osmium

    counted = sum(1 for _ in osmium.FileProcessor(str(extract)).with_areas())
    alone = time.perf_counter() - started
    return {
        'nodes': nodes,
        'extract_mb': round(extract.stat().st_size / 1e6),
        'images': images,
        'landmarks': found,
        'write': written,
        'osmium_alone_s': round(alone, 1),
        'osmium_objects': counted,
    }
